"""List or delete the finished networks that are kept in the folders of their runs, below kept/.

A network is kept under a key that its settings, its data and its code decide. When a setting is changed and changed
back, the network is taken from there instead of being trained again. A network in use is linked, and takes no space.
"""

import argparse
import filecmp
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robreg.runs.settings import describe_differences, hash_settings
from robreg.tables import parquet
from robreg.tables.files import atomic_write, cannot_write
from robreg.tables.provenance import code_hash

FILES = ("checkpoint.pt", "history.parquet")

log = logging.getLogger(__name__)


def kept_folder(run: Path, settings: Mapping[str, Any], data_sha256: str) -> Path:
    """Return the folder in which a network with these settings and data, and the present code, is kept.

    run: the run's folder; settings: its training settings.
    """
    return run / "kept" / _key(hash_settings(settings), data_sha256, code_hash(settings["factory"]))


def _key(settings_hash: str, data_sha256: str, code: str) -> str:
    return hashlib.sha256(f"{settings_hash} {data_sha256} {code}".encode()).hexdigest()[:16]


def keep(run: Path) -> None:
    """Keep the finished network in a run's folder, if there is one. Raises OSError if it cannot be written."""
    if not all((run / name).exists() for name in FILES):
        return
    try:
        meta = parquet.read_metadata(run / "history.parquet")
        folder = run / "kept" / _key(meta["settings_hash"], meta["data_sha256"], meta.get("code_hash", ""))
    except (KeyError, ValueError) as error:
        log.warning("%s is not kept, because its history cannot be read (%s)", run, error)
        return
    if any(_holds(one, run) for one in folder.parent.glob(f"{folder.name}*")):  # it may have been set aside
        return
    try:
        set_aside(folder)
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name in FILES:
            _link(run / name, temporary / name)
        temporary.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def take_up(folder: Path, run: Path) -> None:
    """Use a kept network in a run's folder again. Its files count as new, so that its measures are repeated."""
    for name in FILES:
        with atomic_write(run / name) as temporary:
            temporary.unlink(missing_ok=True)
            _link(folder / name, temporary)
        os.utime(run / name)


def set_aside(folder: Path) -> None:
    """Rename a kept network, if there is one, so that it is not taken up again, and not lost either."""
    if folder.exists():
        names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
        folder.rename(next(name for name in names if not name.exists()))


def _holds(folder: Path, run: Path) -> bool:
    """Return whether the network in a run's folder is kept in `folder`."""
    pairs = [(folder / name, run / name) for name in FILES]
    return all(kept.exists() and filecmp.cmp(kept, used, shallow=False) for kept, used in pairs)


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class KeptNetwork:
    """A kept network: its folder, its size in bytes, whether its run uses it, and how its settings differ."""

    folder: Path
    size: int
    used: bool
    differences: str


def kept_networks(root: Path) -> list[KeptNetwork]:
    """List the networks that are kept in root, or in any folder below it."""
    folders = {path.parent for path in root.rglob(FILES[0]) if path.parent.parent.name == "kept"}
    return [_describe(folder) for folder in sorted(folders) if not folder.name.startswith(".")]


def _describe(folder: Path) -> KeptNetwork:
    run = folder.parent.parent
    size = sum(file.stat().st_size for file in folder.iterdir())
    differences = (
        describe_differences(_settings(folder), _settings(run), "{key} is {new}, not {old}")
        if (run / FILES[1]).exists()
        else ""
    )
    return KeptNetwork(folder, size, _holds(folder, run) if (run / FILES[0]).exists() else False, differences)


def _settings(folder: Path) -> dict[str, Any]:
    """Return the training settings of the network in a folder; {} if they were not recorded."""
    stored = parquet.read_metadata(folder / "history.parquet").get("settings", "{}")
    return dict(json.loads(stored))


def _main() -> Iterator[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="runs, or single kept networks (default: all in results)")
    parser.add_argument("--delete", action="store_true", help="delete those that no run uses, in the folders given")
    given = parser.parse_args()
    if given.delete and not given.folders:
        parser.error("--delete needs the folders in which to delete; to delete in all runs, give results")
    if missing := [str(folder) for folder in given.folders if not folder.is_dir()]:
        parser.error(f"there is no such folder: {', '.join(missing)}")
    networks = [one for folder in given.folders or [Path("results")] for one in kept_networks(folder)]
    for one in networks:
        delete = given.delete and not one.used
        if delete:
            shutil.rmtree(one.folder)
        state = "in use" if one.used else "deleted" if delete else "not in use"
        detail = f" (in the run, {one.differences})" if one.differences else ""
        yield f"{one.folder}  {one.size / 1e6:.1f} MB  {state}{detail}"
    free = sum(one.size for one in networks if not one.used) / 1e6
    yield f"{len(networks)} networks; those that no run uses {'took' if given.delete else 'take'} {free:.1f} MB."


if __name__ == "__main__":
    for line in _main():
        print(line)

"""List or delete the finished networks that are kept in the folders of their runs, below kept/.

A network is kept under a key that its settings, its data and its code decide. When a setting is changed and changed
back, the network is taken from there instead of being trained again. A network in use is linked, and takes no space.
"""

import argparse
import errno
import filecmp
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robreg.data.errors import printable
from robreg.runs.settings import describe_differences, hash_settings, with_present_names
from robreg.tables import parquet
from robreg.tables.files import cannot_write, remove_leftovers, temporary_path
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


def _recorded_key(meta: Mapping[str, Any]) -> str:
    """Return the key of a network from the metadata of its history. Raises KeyError or ValueError if they lack it."""
    hashes = [meta["settings_hash"], meta["data_sha256"], meta.get("code_hash", "")]
    if not all(isinstance(one, str) for one in hashes):
        raise ValueError("its hashes are not text")
    return _key(*hashes)


def keep(run: Path) -> None:
    """Keep the finished network in a run's folder, if there is one. Raises OSError if it cannot be written."""
    if not all((run / name).exists() for name in FILES):
        return
    try:
        folder = run / "kept" / _recorded_key(parquet.read_metadata(run / "history.parquet"))
    except (OSError, KeyError, ValueError) as error:  # it is kept all the same, but not used again by itself
        folder = run / "kept" / "unreadable"
        why = printable(str(error))
        log.warning("%s: its history cannot be read (%s), so it is kept in %s", run, why, folder)
    if _holds(folder, run):
        return
    try:
        refuse_link(folder.parent)
        folder.parent.mkdir(exist_ok=True)
        temporary = temporary_path(folder)
        temporary.mkdir()
        remove_leftovers(folder, temporary)
        for name in FILES:
            _link((run / name).resolve(), temporary / name)  # a checkpoint may be a link to a larger disk
        set_aside(folder)
        temporary.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def take_up(folder: Path, run: Path) -> None:
    """Use a kept network in a run's folder again. Its files count as new, so that its measures are repeated."""
    temporary = {name: temporary_path(run / name) for name in FILES}
    try:
        for name in FILES:
            _link(folder / name, temporary[name])
            remove_leftovers(run / name, temporary[name])
            os.utime(temporary[name], follow_symlinks=False)
        for name in reversed(FILES):
            with temporary[name].open("rb") as file:
                os.fsync(file.fileno())
            temporary[name].replace(run / name)
    except OSError as error:
        raise cannot_write(run / FILES[0], error) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def wants_training(folder: Path) -> Path:
    """Return the file that says that a run is to be trained although its network is kept in `folder`."""
    return folder.with_name(f".train-{folder.name}")


def set_aside(folder: Path) -> None:
    """Rename a kept network, if there is one, so that it is not taken up again, and not lost either."""
    if folder.exists():
        names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
        folder.rename(next(name for name in names if not name.exists()))


def refuse_link(folder: Path) -> None:
    """Raise OSError for a link in place of a run's folder kept: files would be made, or deleted, wherever it leads."""
    if folder.is_symlink():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def has_results(run: Path) -> bool:
    """Return whether a run's folder holds a network, or the tables that were made from one."""
    return any((run / name).exists() for name in (FILES[0], "checks.parquet", "metrics.parquet"))


def is_trained(run: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a run's folder holds a network that was trained with these training settings, or its tables.

    Results may be passed on without their networks. Raises OSError or ValueError if the history cannot be read.
    """
    history = run / "history.parquet"
    if not history.exists() or not has_results(run):
        return False
    return not describe_differences(with_present_names(parquet.read_settings(history)), settings)


def _holds(folder: Path, run: Path) -> bool:
    """Return whether the network in a run's folder is kept in `folder`."""
    pairs = [(folder / name, run / name) for name in FILES]
    return all(
        kept.exists() and (kept.samefile(used) or filecmp.cmp(kept, used, shallow=False)) for kept, used in pairs
    )


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has no hard links; neither follows a link at either path."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file, target.open("xb") as copy:
            shutil.copyfileobj(file, copy)


@dataclass(frozen=True)
class KeptNetwork:
    """A kept network: its folder, its size in bytes, whether its run uses it, and how its settings differ."""

    folder: Path
    size: int
    used: bool
    differences: str


def kept_networks(root: Path) -> list[KeptNetwork]:
    """List the networks that are kept in root, or in any folder below it.

    root may be a link, but links below it are not followed: in a received folder they may lead anywhere, and what is
    found may be deleted.
    """
    places = [Path(place) for place, _, files in os.walk(_real(root)) if FILES[0] in files]
    folders = [place for place in places if place.parent.name == "kept" and not place.name.startswith(".")]
    return [_describe(folder) for folder in sorted(folders)]


def _real(root: Path) -> Path:
    return root.resolve() if root.is_symlink() else root


def _links(root: Path) -> list[Path]:
    """List the links to folders below root, which are not followed."""
    found = [Path(place, name) for place, folders, _ in os.walk(_real(root)) for name in folders]
    return sorted(path for path in found if path.is_symlink())


def _describe(folder: Path) -> KeptNetwork:
    run = folder.parent.parent
    size = sum(file.lstat().st_size for file in folder.iterdir())
    whole = all((run / name).exists() for name in FILES)
    differences = ""
    try:
        phrase = "in the run, {key} is {new}, not {old}"
        if whole:
            own, used = (
                with_present_names(parquet.read_settings(place / "history.parquet")) for place in (folder, run)
            )
            differences = describe_differences(own, used, phrase)
    except (OSError, ValueError) as error:
        differences = f"a history cannot be read: {error}"
    return KeptNetwork(folder, size, whole and _holds(folder, run), differences)


def _main() -> Iterator[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="runs, or single kept networks (default: all in results)")
    parser.add_argument("--delete", action="store_true", help="delete those that no run uses, in the folders given")
    given = parser.parse_args()
    if given.delete and not given.folders:
        parser.error("--delete needs the folders in which to delete; to delete in all runs, give results")
    if missing := [str(folder) for folder in given.folders if not folder.is_dir()]:
        parser.error(f"there is no such folder: {', '.join(missing)}")
    folders = given.folders or [Path("results")]
    networks = [one for folder in folders for one in kept_networks(folder)]
    for one in networks:
        delete = given.delete and not one.used
        if delete:
            shutil.rmtree(one.folder)
        state = "in use" if one.used else "deleted" if delete else "not in use"
        detail = f" ({one.differences})" if one.differences else ""
        yield f"{one.folder}  {one.size / 1e6:.1f} MB  {state}{detail}"
    for link in (link for folder in folders for link in _links(folder)):
        yield f"{link}  a link, which is not followed: give the folder that it leads to"
    free = sum(one.size for one in networks if not one.used) / 1e6
    yield f"{len(networks)} networks; those that no run uses {'took' if given.delete else 'take'} {free:.1f} MB."


if __name__ == "__main__":
    for line in _main():
        print(printable(line))

"""Seals: the SHA-256 of the files that a check or an audit looked at, so that a later change of one is noticed.

They protect against a file that was changed after the check. Whoever changes all files of a run consistently cannot be
noticed this way; `make verify` measures a network again.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from robreg.tables import parquet
from robreg.tables.files import open_regular
from robreg.tables.provenance import history_hash

# The tables of a run that its checks compare, and seal.
CHECKED = ("history", "margins", "attacks", "lossvar", "sv", "svstd", "live", "padding", "metrics", "masking")
BASIC = tuple(kind for kind in CHECKED if kind != "lossvar")  # those that every run of every study has
CHECKPOINT = "checkpoint.pt"  # results may be passed on without it


def seal(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Compute the SHA-256 of files in a folder, by name; without the times in a history, which are no result."""
    return {name: _digest(folder / name) for name in names}


def refuse_changed(folder: Path, names: Iterable[str], where: Path) -> None:
    """Raise ValueError if the table `where` seals other files than these, or if one is not what it was then.

    names: the files in folder that must be sealed. A checkpoint that is missing is not needed.
    """
    expected = set(names)
    optional = {name for name in expected if Path(name).name == CHECKPOINT and not (folder / name).exists()}
    seals = parquet.read_metadata(where).get("sealed")
    if not isinstance(seals, dict) or seals.keys() - optional != expected - optional:
        raise ValueError(
            f"{where} does not hold the SHA-256 of exactly the files that it checked; delete it to check them again"
        )
    if changed := [str(folder / name) for name in sorted(expected - optional) if _changed(folder / name, seals[name])]:
        raise ValueError(
            f"{', '.join(changed)} changed after {where} was made from them, or are missing; delete {where} to check "
            "them again, or delete the changed files to have them made again"
        )


def _changed(path: Path, sealed: object) -> bool:
    try:
        return _digest(path) != sealed
    except FileNotFoundError:
        return True


def _digest(path: Path) -> str:
    # No report shows what is in a checkpoint, so that it may be a link, for example to a larger disk.
    with open_regular(path, follow=path.name == CHECKPOINT) as file:
        if path.name != "history.parquet":
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = [history_hash(parquet.read_history(path)), parquet.read_metadata(path)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

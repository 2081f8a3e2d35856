"""Seals: the SHA-256 of the files that a check or an audit looked at, so that a later change of one is noticed.

They protect against a file that was changed after the check. Whoever changes all files of a run consistently cannot be
noticed this way; `make verify` measures a network again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from robreg.tables import parquet
from robreg.tables.provenance import history_hash


def seal(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Compute the SHA-256 of files in a folder, by name; without the times in a history, which are no result."""
    return {name: _digest(folder / name) for name in names}


def refuse_changed(folder: Path, seals: Mapping[str, str], where: str) -> None:
    """Raise ValueError for files that are not those that were sealed. A missing checkpoint is not needed.

    where: the file that holds the seals.
    """
    present = {name: sealed for name, sealed in seals.items() if (folder / name).exists() or name != "checkpoint.pt"}
    changed = [name for name, sealed in present.items() if _digest(folder / name) != sealed]
    if changed:
        raise ValueError(
            f"{folder}: {', '.join(changed)} changed after {where} was made from them; delete {where} to check them "
            "again, or delete the changed files to have them made again"
        )


def _digest(path: Path) -> str:
    if path.name != "history.parquet":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = [history_hash(parquet.read(path).to_pylist()), parquet.read_metadata(path)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

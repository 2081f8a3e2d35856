"""Checks of relations that must hold between correct result tables: one row per check, and an error if one fails."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NOISE = 1e-9  # tolerance for sums of the same numbers in another order; relative, as in equal
FLOAT32 = 1e-6  # tolerance for values that were computed in float32; relative, as in equal
RUN_IDENTITY = ("dataset", "variant", "seed", "settings_hash")  # metadata that all tables of one run share
Row = dict[str, Any]  # the columns of checks.parquet, and "files", the names of the files that the check compares

log = logging.getLogger(__name__)


def equal(name: str, what: str, found: float, expected: float, tolerance: float = NOISE) -> Row:
    """Return the row of a check that two numbers differ by at most tolerance * max(1, |expected|)."""
    close = abs(found - expected) <= tolerance * max(1.0, abs(expected))  # False for NaN
    return _row(name, what, found, "=", expected, tolerance, passed=close)


def at_most(name: str, what: str, found: float, limit: float, tolerance: float = NOISE) -> Row:
    """Return the row of a check that a number exceeds limit by at most tolerance * max(1, |limit|)."""
    return _row(name, what, found, "<=", limit, tolerance, passed=found <= limit + tolerance * max(1.0, abs(limit)))


def count_violations(name: str, what: str, bad: Any) -> Row:  # noqa: ANN401 - anything that numpy reads as an array
    """Return the row of a check that no element of bad is true; found counts those that are."""
    return equal(name, what, float(np.asarray(bad).sum()), 0.0)


def with_files(rows: Iterable[Row], *files: str) -> list[Row]:
    """Add to every row the names of the files that it compares."""
    return [{**row, "files": files} for row in rows]


def same_run(metadata: Mapping[str, Mapping[str, Any]], folder: Path) -> Row:
    """Return the row of the check that all files belong to the run of folder, and share its seed and settings hash.

    metadata: the metadata of every file, by its name; folder: the run's, {dataset}/{variant}.
    """
    identities = {name: [one.get(key) for key in RUN_IDENTITY] for name, one in metadata.items()}
    most_common = Counter(map(str, identities.values())).most_common(1)[0][0]
    expected = [folder.parent.name, folder.name]
    foreign = [name for name, one in identities.items() if str(one) != most_common or one[:2] != expected]
    row = equal("same_run", "tables of another run or other settings", len(foreign), 0.0)
    return {**row, "files": tuple(foreign)}


def raise_if_violated(rows: Sequence[Row], folder: Path) -> None:
    """Log every row, and raise ValueError if a check failed.

    The error names the checks that failed, their files in folder, and the fix.
    """
    for row in rows:
        found = f"{row['found']:g} {row['relation']} {row['expected']:g}"
        log.info("%s %s: %s: %s", "holds" if row["passed"] else "VIOLATED", row["check"], row["what"], found)
    if bad := [row for row in rows if not row["passed"]]:
        failures = "; ".join(
            f"{row['check']} ({row['what']}: {row['found']:g}, not {row['expected']:g})" for row in bad
        )
        files = list(dict.fromkeys(name for row in bad for name in row["files"]))
        fix = (
            "delete the wrong files, ask Snakemake for each by its name (a report alone does not notice that it is "
            "missing), and start again"
        )
        if "history.parquet" in files:
            fix += "; delete history.parquet last, because without it the network is trained again"
        raise ValueError(f"{folder}: {', '.join(files)} contradict each other or themselves: {failures}; {fix}")


def _row(name: str, what: str, found: float, relation: str, expected: float, tolerance: float, *, passed: bool) -> Row:  # noqa: PLR0913
    values = {"found": float(found), "relation": relation, "expected": float(expected), "tolerance": tolerance}
    return {"check": name, "what": what, **values, "passed": bool(passed)}

"""A row for each thing that cannot be otherwise if result tables are right, and the refusal of tables that are not."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NOISE = 1e-9  # of sums of the same numbers in another order, relative to 1
FLOAT32 = 1e-6  # of what was computed in float32
SAME = ("dataset", "variant", "seed", "settings_hash")
Row = dict[str, Any]  # the columns of checks.parquet, and "files", which it holds against each other

log = logging.getLogger(__name__)


def equal(name: str, what: str, found: float, expected: float, tolerance: float = NOISE) -> Row:
    """Make the row of a check that two numbers are equal, within tolerance relative to the larger of 1 and expected."""
    close = abs(found - expected) <= tolerance * max(1.0, abs(expected))  # false of NaN
    return _row(name, what, found, "=", expected, tolerance, passed=close)


def at_most(name: str, what: str, found: float, limit: float, tolerance: float = NOISE) -> Row:
    """Make the row of a check that a number is at most another, within tolerance relative to the larger of 1 and it."""
    return _row(name, what, found, "<=", limit, tolerance, passed=found <= limit + tolerance * max(1.0, abs(limit)))


def nowhere(name: str, what: str, bad: Any) -> Row:  # noqa: ANN401 - any array
    """Make the row of a check that is violated nowhere: found counts the places that bad marks."""
    return equal(name, what, float(np.asarray(bad).sum()), 0.0)


def about_files(rows: Iterable[Row], *files: str) -> list[Row]:
    """Say of rows which files they hold against each other."""
    return [{**row, "files": files} for row in rows]


def same_run(metadata: Mapping[str, Mapping[str, Any]], folder: Path) -> Row:
    """Make the row of the check that files, whose metadata these are by name, are of folder's run, all with one hash.

    folder: {dataset}/{variant}, the run that it is the folder of.
    """
    own = {name: [one.get(key) for key in SAME] for name, one in metadata.items()}
    usual = Counter(map(str, own.values())).most_common(1)[0][0]
    here = [folder.parent.name, folder.name]
    strange = [name for name, one in own.items() if str(one) != usual or one[:2] != here]
    found = equal("same_run", "tables of another run or other settings", len(strange), 0.0)
    return {**found, "files": tuple(strange)}


def refuse_violated(rows: Sequence[Row], folder: Path) -> None:
    """Log every row; raise ValueError, naming those that have not passed, their files in folder, and the mend."""
    for row in rows:
        found = f"{row['found']:g} {row['relation']} {row['expected']:g}"
        log.info("%s %s: %s: %s", "holds" if row["passed"] else "VIOLATED", row["check"], row["what"], found)
    if bad := [row for row in rows if not row["passed"]]:
        said = "; ".join(f"{row['check']} ({row['what']}: {row['found']:g}, not {row['expected']:g})" for row in bad)
        files = list(dict.fromkeys(name for row in bad for name in row["files"]))
        mend = "delete what is wrong of them, ask for it by its name, for a report does not miss it, and start again"
        if "history.parquet" in files:
            mend += " (history.parquet last: without it the network is trained anew)"
        raise ValueError(f"{folder}: {', '.join(files)} contradict each other, or themselves: {said}; {mend}")


def _row(name: str, what: str, found: float, relation: str, expected: float, tolerance: float, *, passed: bool) -> Row:  # noqa: PLR0913
    values = {"found": float(found), "relation": relation, "expected": float(expected), "tolerance": tolerance}
    return {"check": name, "what": what, **values, "passed": bool(passed)}

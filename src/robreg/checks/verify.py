"""Measure a network again from its checkpoint, and compare the result with the tables that are there.

`make verify RUN=digits/ar8` runs this. A checkpoint decides its tables, so whoever receives results, and trusts the
checkpoint alone, can know them to be right. What tells rows apart, labels and counts of layers must be equal;
predictions too, except of examples whose margin is nearly 0; floats but for rounding; and attacks may succeed on a few
examples more or fewer, because another processor may take another path to them. Not covered: history.parquet, which
only training again shows to be right; checks.parquet, which is made again; and everything in results/studies.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robreg.checks.seals import CHECKPOINT
from robreg.data.errors import printable
from robreg.tables import parquet
from robreg.tables.files import open_regular
from robreg.tables.schemas import SCHEMAS

_TOLERANCE = 1e-3  # relative: what another processor or number of threads may change
_SMALL = 1e-3  # of a column's largest value, below which differences are relative to this instead of the value
_UNDECIDED = 1e-5  # of the largest margin: below it, another processor may predict the other class
_SHARE = 0.002  # of the examples, and at least _FEWEST: on so many, an attack may have another result
_FEWEST = 2
_SHARE_VARIED = 0.02  # of the examples, whose loss variation may differ
_NOISE = 1e-9  # percentage points: rounding of percentages of equal counts
_SETTINGS = ("eps", "step", "limit")  # columns of floats that are no results
# Of tables, or single columns, of means and extremes over what attacks have found, or of what they found on an image.
_TOLERANCES: dict[Any, float] = {"spread": 1e-2, "theory": 1e-2, ("examples", "adversarial_margin"): 1e-2}
# Columns with one value per attacked example, of which a few may be others, as long as their mean is nearly the same.
_FOUND_BY_ATTACKS = {("lossvar", name) for name in ("loss_adv", "variation", "prob_adv", "prob_variation")}
_NOT_MEASURED = ("history", "checks")
_MEASURES = ("margins", "apgd", "attacks", "masking", "lossvar", "sv", "spread", "examples", "theory", "metrics")
_RULES = ("prepare", *_MEASURES, "checks")


@dataclass(frozen=True)
class Comparison:
    """How a table that was received differs from the one that was measured again.

    wrong: the columns that differ by more than is tolerated; floats: the largest relative difference of two floats of
    the others; cells: how many of their other cells differ, with percentages of attacked or predicted examples.
    """

    wrong: tuple[str, ...]
    floats: float = 0.0
    cells: int = 0


def compare(kind: str, received: pa.Table, measured: pa.Table, margins: pd.DataFrame) -> Comparison:
    """Compare a table of a run with the one that was measured again. margins: the run's, measured again."""
    if not received.schema.equals(measured.schema) or len(received) != len(measured):
        return Comparison(wrong=("all columns, because they or the number of rows are not the same",))
    one, other = received.to_pandas(), measured.to_pandas()
    room = _room(kind, other, margins)
    wrong, floats, cells = [], 0.0, 0
    for name in other.columns:
        if name in room:
            gaps = (one[name].astype("float64") - other[name].astype("float64")).abs()
            missing = one[name].isna() != other[name].isna()
            bad, cells = missing | (gaps > room[name]), cells + int((gaps > 0).sum())
        elif pa.types.is_list(measured.schema.field(name).type):
            bad, differing = _pixels_differ(name, received, measured)
            cells += differing
        elif pd.api.types.is_float_dtype(other[name]) and name not in _SETTINGS:
            gaps = _relative(one[name], other[name])
            bad = ~(gaps <= _TOLERANCES.get(kind, _TOLERANCES.get((kind, name), _TOLERANCE)))
            if (kind, name) in _FOUND_BY_ATTACKS and _few_per_radius(bad, one[name], other):
                bad, cells = bad & False, cells + int(bad.sum())
            else:
                floats = max(floats, float(gaps.max()))
        else:
            differ = (one[name] != other[name]) & ~(one[name].isna() & other[name].isna())
            bad, cells = differ & ~_may_differ(kind, name, other, room), cells + int(differ.sum())
        if bad.any():
            wrong.append(name)
    return Comparison(tuple(wrong), floats, cells)


def _relative(one: pd.Series, other: pd.Series) -> pd.Series:
    """Return the differences relative to other, 0 where both are missing, and inf where one is, or is not finite."""
    one, other = one.astype("float64"), other.astype("float64")
    size = other.abs() + max(_SMALL * other.abs().max(), np.finfo(float).tiny)
    gaps = ((one - other).abs() / size).fillna(np.inf)
    return gaps.mask((one == other) | (one.isna() & other.isna()), 0.0)


def _pixels_differ(name: str, received: pa.Table, measured: pa.Table) -> tuple[pd.Series, int]:
    """Return in which rows the images of a column differ by too much, and how many pixels differ.

    Clean images must be equal. In an attacked one, a few pixels may differ, or all if another restart may have been the
    best one, by as much as the attack may have moved them.
    """
    found, count = [], 0
    for one, other in zip(received.to_pylist(), measured.to_pylist(), strict=True):
        images = [np.asarray(row[name] or [], dtype="float64") for row in (one, other)]
        if images[0].shape != images[1].shape:
            found.append(True)
            continue
        clean = np.asarray(other["image"]) / 255
        most = np.abs(np.asarray(other["adversarial"]) - clean).max() + _TOLERANCE
        few = len(clean) if other["restarts"] > 1 else max(_FEWEST, _SHARE_VARIED * len(clean))
        differ = int((~(np.abs(images[0] - images[1]) <= _TOLERANCE)).sum())
        possible = bool((np.abs(images[0] - clean) <= most).all() and ((images[0] >= 0) & (images[0] <= 1)).all())
        found.append(differ > 0 if name == "image" else not possible or differ > few)
        count += differ
    return pd.Series(found), count


def _room(kind: str, measured: pd.DataFrame, margins: pd.DataFrame) -> dict[str, pd.Series]:
    """Return by how much counts of examples, and percentages that follow from them, may differ, by column."""
    n, tied = margins["split"].value_counts(), _undecided(margins).groupby(margins["split"]).sum()
    if kind in ("attacks", "apgd"):
        robust = _few(measured["n"]) + tied["test"]
        correct = pd.Series(tied["test"], measured.index)
        conditional = 100 * (robust + correct) / measured["n_correct"].clip(lower=1)
        room = {"n_robust": robust, "acc_robust": 100 * robust / measured["n"]}
        return room | {"n_correct": correct, "acc_conditional": conditional}
    if kind == "masking":
        share = 100 * (_few(measured["n"]) + tied["test"]) / measured["n"]
        return {"before": share, "after": share, "value": 2 * share}
    if kind == "metrics":
        clean, robust = 100 * tied / n + _NOISE, 100 * (_few(n) + tied)["test"]
        right = ((margins["prediction"] == margins["label"]) & (margins["split"] == "test")).sum()
        room = {"train_acc": clean["train"], "test_acc": clean["test"], "acc_gap": clean.sum()}
        room |= {"robust_acc": robust / n["test"], "pgd_acc": (robust + 100 * tied["test"]) / max(right, 1)}
        return {name: pd.Series(value, measured.index) for name, value in room.items()}
    return {}


def _few(n: pd.Series) -> pd.Series:
    return (_SHARE * n).clip(lower=_FEWEST)


def _few_per_radius(bad: pd.Series, received: pd.Series, measured: pd.DataFrame) -> bool:
    """Return whether few examples differ at each radius, and their mean by no more than another mean may."""
    parts = bad.groupby(measured["eps"])
    means = [values.astype("float64").groupby(measured["eps"]).mean() for values in (received, measured[received.name])]
    few = parts.mean() <= _SHARE_VARIED
    known = (received.isna() == measured[received.name].isna()).all()
    return bool(known and few.all() and (_relative(*means) <= _TOLERANCES["spread"]).all())


def _undecided(margins: pd.DataFrame) -> pd.Series:
    """Return which examples have a margin of nearly 0."""
    return margins["margin"].abs() <= _UNDECIDED * margins["margin"].abs().max()


def _may_differ(kind: str, name: str, measured: pd.DataFrame, room: dict[str, pd.Series]) -> pd.Series:
    """Return in which rows a cell may differ although it is no number, because a number is near its threshold."""
    if (kind, name) == ("margins", "prediction"):
        return _undecided(measured)
    if kind == "examples" and name.endswith("prediction"):  # 0 is the margin of two classes that are equally likely
        margin = measured[name.replace("prediction", "margin")].abs()
        return margin <= _UNDECIDED * margin.max()
    if (kind, name) == ("masking", "passed"):
        return (measured["value"] - measured["limit"]).abs() <= room["value"]
    return pd.Series(data=False, index=measured.index)


def verify(run: str, *, cores: int) -> Iterator[tuple[str, Comparison]]:
    """Measure a run again; yield each table's name and what compare returns. run: {dataset}/{variant}.

    The tables that are measured replace those that were there, which are first copied to the folder received beside
    them. Raises FileNotFoundError if there is no checkpoint or no table, ValueError if one is a link or not a table,
    and CalledProcessError if a measure fails.
    """
    folder = Path("results", run)
    kinds = [kind for kind in SCHEMAS if kind not in _NOT_MEASURED and (folder / f"{kind}.parquet").exists()]
    if not kinds or not (folder / CHECKPOINT).exists():
        raise FileNotFoundError(f"{folder} has no {CHECKPOINT} or no tables to compare; name a run, as digits/ar8")
    open_regular(folder / CHECKPOINT, follow=True).close()
    copies = Path(tempfile.mkdtemp(prefix="received-", dir=folder))
    for kind in kinds:
        with open_regular(folder / f"{kind}.parquet") as file, (copies / f"{kind}.parquet").open("xb") as copy:
            shutil.copyfileobj(file, copy)
    received = {kind: parquet.read(copies / f"{kind}.parquet") for kind in kinds}
    files = [str(folder / f"{kind}.parquet") for kind in dict.fromkeys([*kinds, "margins"])]
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--rerun-triggers", "mtime", "--quiet", "all"]
    command += ["--allowed-rules", *_RULES, "--forcerun", *files, "--", *files]
    subprocess.run(command, check=True)
    margins = parquet.read(folder / "margins.parquet").to_pandas()
    for kind in kinds:
        yield f"{kind}.parquet", compare(kind, received[kind], parquet.read(folder / f"{kind}.parquet"), margins)


def _describe(found: Comparison) -> str:
    if found.wrong:
        return f"NOT EQUAL in {', '.join(found.wrong)}"
    if not (found.floats or found.cells):
        return "equal in every value"
    return f"equal but for rounding (floats differ by {found.floats:.1e}, and {found.cells} counts or predictions)"


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="{dataset}/{variant}, such as digits/ar8")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores (default: 1)")
    given = parser.parse_args()
    try:
        found = dict(verify(given.run, cores=given.cores))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        parser.error(printable(" ".join(str(error).splitlines())))
    for name, comparison in found.items():
        print(f"{name}: {_describe(comparison)}")
    print("Not compared: history.parquet, checks.parquet, and tables and figures of studies.")
    wrong = [name for name, comparison in found.items() if comparison.wrong]
    verdict = f"these tables are not those of the checkpoint: {', '.join(wrong)}" if wrong else "verified"
    print(printable(f"{given.run}: {verdict}"))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(_main())

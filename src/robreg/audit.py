"""A study's tables and claims, traced to the files of its runs and computed again from them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robreg import claim, study, table
from robreg.checks import Row, equal, refuse
from robreg.item import Run


def record(
    name: str, runs: Sequence[Run], shown: dict[str, list[Run]], *, compare: Sequence[int], folder: Path
) -> None:
    """Write audit.parquet of a study: the checks of all its runs, and its own; raise ValueError if one is violated.

    shown: the runs of each table; compare: the two strengths (1/255); folder: the study's.
    """
    own = [row for table_name, members in shown.items() for row in tables(table_name, members, compare, folder)]
    own += claims(runs, compare, folder)
    refuse(own, f"{folder}/tables/* or claims.*")
    frames = [pd.DataFrame(own).assign(place=str(folder))]
    for run in runs:
        frames.append(table.read(Path(run["folder"]) / "checks.parquet").to_pandas().assign(place=run["folder"]))
    found = pd.concat(frames, ignore_index=True)[["place", *table.SCHEMAS["checks"].names]]
    table.write_frame(folder / "audit.parquet", pa.Table.from_pandas(found, preserve_index=False), {"study": name})


def tables(name: str, runs: Sequence[Run], compare: Sequence[int], folder: Path) -> Iterator[Row]:
    """Check one table: as its runs' files have it, its means and stds over seeds, and its CSV files."""
    path = folder / "tables" / f"{name}.parquet"
    frame, summary = table.read(path).to_pandas(), table.read(path.with_stem(f"{name}_summary")).to_pandas()
    wrong = differing(frame, study.compose(name, runs, compare)), _unlike(frame, summary)
    yield equal(f"{name}_cells", f"cells of {name} other than in the files of its runs", wrong[0], 0)
    yield equal(f"{name}_summary", f"means and stds over seeds of {name} other than of its rows", wrong[1], 0)
    for stem, made in ((name, frame), (f"{name}_summary", summary)):
        text = pd.read_csv(path.with_name(f"{stem}.csv"), float_precision="round_trip")
        yield equal(f"{stem}_csv", f"cells of {stem}.csv other than in {stem}.parquet", differing(made, text), 0)


def claims(runs: Sequence[Run], compare: Sequence[int], folder: Path) -> Iterator[Row]:
    """Check the claims: as judged again from the runs' files, and as in the CSV file."""
    found = table.read(folder / "claims.parquet").to_pandas()
    again = pa.Table.from_pylist(list(claim.judge_all(claim.families(runs), *compare)), claim.SCHEMA).to_pandas()
    yield equal("claims_cells", "cells of claims other than judged again", differing(found, again), 0)
    text = pd.read_csv(folder / "claims.csv", float_precision="round_trip")
    yield equal("claims_csv", "cells of claims.csv other than in claims.parquet", differing(found, text), 0)


def differing(one: pd.DataFrame, other: pd.DataFrame) -> int:
    """Count the cells that differ, missing ones being equal; all of them if rows or columns are others."""
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return max(one.size, other.size)
    return sum(int((~_same(one[key], other[key])).sum()) for key in one.columns)


def _same(one: pd.Series, other: pd.Series) -> np.ndarray:
    both = one.isna().to_numpy() & other.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(one) or pd.api.types.is_numeric_dtype(other):
        numbers = [pd.to_numeric(side, errors="coerce").to_numpy("float64", na_value=np.nan) for side in (one, other)]
        return both | (numbers[0] == numbers[1])
    return both | (one.astype(str).to_numpy() == other.astype(str).to_numpy())


def _unlike(frame: pd.DataFrame, summary: pd.DataFrame) -> int:
    """Count the means and stds that are not those of the rows that a line of the summary is of."""
    keys = [key for key in frame.columns if key in summary.columns]
    metrics = [key.removesuffix("_mean") for key in summary.columns if key.endswith("_mean")]
    count = 0
    for line in summary.to_dict("records"):
        rows = frame[np.logical_and.reduce([_same(frame[key], pd.Series([line[key]] * len(frame))) for key in keys])]
        count += int(line["n_seeds"] != len(rows))
        for name in metrics:
            values = rows[name].astype("float64").dropna().to_numpy()
            mean = values.mean() if len(values) else np.nan
            std = values.std(ddof=1) if len(values) > 1 else np.nan
            count += sum(_apart(line[f"{name}_{part}"], value) for part, value in (("mean", mean), ("std", std)))
    return count


def _apart(found: Any, expected: float) -> bool:  # noqa: ANN401 - a cell
    if pd.isna(found) or np.isnan(expected):
        return bool(pd.isna(found)) != bool(np.isnan(expected))
    return not np.isclose(found, expected, rtol=1e-9, atol=1e-9)

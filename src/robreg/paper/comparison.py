"""Every number that the paper prints beside a study's own, as a table and as a plot."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from robreg.claims.claim import NOT_RUN
from robreg.paper import reference
from robreg.runs.catalogue import Run
from robreg.tables import study_tables

SCHEMA = pa.schema(
    [(key, pa.string()) for key in ("table", "dataset", "run_dataset", "arch", "train_attack", "space")]
    + [("spectral_norm", pa.float64()), ("ar", pa.int64()), ("ar_high", pa.int64()), ("metric", pa.string())]
    + [(key, pa.float64()) for key in ("paper", "ours_mean", "ours_std")]
    + [("n_seeds", pa.int64()), ("difference", pa.float64()), ("status", pa.string()), ("note", pa.string())]
)
COMPARED = "compared"
B2 = (4, 16)  # the strengths of appendix B.2
_CELL = ("dataset", "arch", "train_attack", "spectral_norm", "ar", "metric")


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Make a row for every number of the paper, or one for each of our data sets and spaces that stand beside it.

    A run stands beside the paper's if its data set's key "paper" names the paper's, and network, training attack,
    bound and strength are the same; the paper leaves the space of its perturbations open. difference: ours - paper.
    """
    beside: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in ours(runs):
        beside.setdefault(tuple(row[key] for key in _CELL), []).append(row)
    rows = []
    for cell in _plain(reference.read()):
        found = beside.get(tuple(cell[key] for key in _CELL), [])
        rows += [_compared(cell, row) for row in found] or [{**cell, "status": cell["status"] or NOT_RUN}]
    return rows


def ours(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """List the numbers of the runs that stand for the paper's: one row per setting, strength and metric.

    dataset is the paper's, run_dataset ours; mean, std (ddof 1, None for one seed) and n_seeds over seeds.
    """
    of = {run["dataset"]: run["paper"] for run in runs if run["paper"] is not None}
    chosen = [run for run in runs if run["dataset"] in of]
    for frame in _tables(chosen) if chosen else ():
        summary = study_tables.summarise(frame)
        metrics = [name for name in frame if f"{name}_mean" in summary]
        for row in _plain(summary):
            keys = {key: row[key] for key in study_tables.SETTING} | {"run_dataset": row["dataset"]}
            keys |= {"dataset": of[row["dataset"]], "n_seeds": row["n_seeds"]}
            for metric in metrics:
                yield keys | {"metric": metric, "mean": row[f"{metric}_mean"], "std": row[f"{metric}_std"]}


def _tables(runs: Sequence[Run]) -> list[pd.DataFrame]:
    """The study's tables that have the paper's columns, one row per run; appendix B.2 where two strengths allow it."""
    found = [study_tables.table3(runs), study_tables.table1(runs)]
    places = [
        {tuple(run[key] for key in study_tables.KEYS if key != "ar") for run in runs if run["ar"] == ar} for ar in B2
    ]
    if places[0] & places[1]:
        b2 = study_tables.b2(runs, B2)
        found.append(b2[b2["layers"] == "convolutions"].drop(columns="layers"))
    return found


def _compared(cell: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """One number of the paper beside one of ours."""
    return {
        **cell,
        "run_dataset": row["run_dataset"],
        "space": row["space"],
        "ours_mean": row["mean"],
        "ours_std": row["std"],
        "n_seeds": row["n_seeds"],
        "difference": None if row["mean"] is None else row["mean"] - cell["paper"],
        "status": cell["status"] or COMPARED,
    }


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a frame into rows with None for what is missing."""
    return pa.Table.from_pandas(frame, preserve_index=False).to_pylist()

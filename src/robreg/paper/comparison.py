"""Compare every number that the paper prints with a study's own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from robreg.claims.claim import NOT_RUN
from robreg.paper import reference
from robreg.runs.catalogue import Run
from robreg.runs.variant import base_attack, paper_name
from robreg.tables import study_tables

SCHEMA = pa.schema(
    [(key, pa.string()) for key in ("table", "dataset", "run_dataset", "arch", "train_attack", "space")]
    + [("spectral_norm", pa.float64()), ("ar", pa.int64()), ("ar_high", pa.int64()), ("metric", pa.string())]
    + [(key, pa.float64()) for key in ("paper", "ours_mean", "ours_std")]
    + [("n_seeds", pa.int64()), ("difference", pa.float64()), ("status", pa.string()), ("note", pa.string())]
)
COMPARED = "compared"
B2 = (4, 16)  # the strengths of appendix B.2, in 1/255
_CELL = ("dataset", "arch", "train_attack", "spectral_norm", "ar", "metric")
_OUR_CELL = ("dataset", "paper_arch", "paper_attack", "spectral_norm", "ar", "metric")


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Make one row for every number of the paper and every data set and space of ours that it can be compared with.

    A run can be compared if the key "paper" of its data set names the paper's data set, and architecture, training
    attack, bound and strength are the same. The paper does not state the space of its perturbations, and leaves open
    which of Fixup's scalars its networks have and whether they see clean examples, so all of ours are compared. A
    number of the paper without such runs has one row without a number of ours. difference: ours - paper.
    """
    ours_by_cell: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in our_numbers(runs):
        ours_by_cell.setdefault(tuple(row[key] for key in _OUR_CELL), []).append(row)
    rows = []
    for cell in _to_rows(reference.read_reference()):
        matching = ours_by_cell.get(tuple(cell[key] for key in _CELL), [])
        rows += [_comparison_row(cell, row) for row in matching] or [{**cell, "status": cell["status"] or NOT_RUN}]
    return rows


def our_numbers(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """List the numbers of the runs that correspond to the paper's: one row per setting, strength and metric.

    dataset is the paper's name, run_dataset ours; mean, std (ddof 1, None for one seed) and n_seeds are over seeds.
    """
    paper_names = {run["dataset"]: run["paper"] for run in runs if run["paper"] is not None}
    chosen = [run for run in runs if run["dataset"] in paper_names]
    for frame in _paper_tables(chosen) if chosen else ():
        summary = study_tables.summarise(frame)
        metrics = [name for name in frame if f"{name}_mean" in summary]
        for row in _to_rows(summary):
            keys = {key: row[key] for key in study_tables.SETTING} | {"run_dataset": row["dataset"]}
            keys |= {"dataset": paper_names[row["dataset"]], "n_seeds": row["n_seeds"]}
            keys |= {"paper_arch": paper_name(row["arch"]), "paper_attack": base_attack(row["train_attack"])}
            for metric in metrics:
                yield keys | {"metric": metric, "mean": row[f"{metric}_mean"], "std": row[f"{metric}_std"]}


def _paper_tables(runs: Sequence[Run]) -> list[pd.DataFrame]:
    """Make the study's tables with the paper's columns, one row per run; B.2 only if both of its strengths ran."""
    tables = [study_tables.table3(runs), study_tables.table1(runs)]
    places = [
        {tuple(run[key] for key in study_tables.KEYS if key != "ar") for run in runs if run["ar"] == ar} for ar in B2
    ]
    if places[0] & places[1]:
        b2 = study_tables.b2(runs, B2, live=False)
        tables.append(b2[b2["layers"] == "convolutions"].drop(columns="layers"))
    return tables


def _comparison_row(cell: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that compares one number of the paper with one of ours."""
    return {
        **cell,
        **{key: row[key] for key in ("run_dataset", "arch", "train_attack", "space")},
        "ours_mean": row["mean"],
        "ours_std": row["std"],
        "n_seeds": row["n_seeds"],
        "difference": None if row["mean"] is None else row["mean"] - cell["paper"],
        "status": cell["status"] or COMPARED,
    }


def _to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to a list of rows, with None for missing values."""
    return pa.Table.from_pandas(frame, preserve_index=False).to_pylist()

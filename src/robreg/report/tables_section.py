"""Transpose the tables of a study for the report: one block per setting, a column per strength, a row per quantity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robreg.report.claims_section import to_rows
from robreg.report.units import Cell, describe, format_cell
from robreg.runs.groups import group_by_setting
from robreg.tables.study_tables import KEYS


def table_blocks(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Split a study's summary into blocks, one per setting, each with its name, columns, and a row of cells per metric.

    A column is named after its strength and whatever else distinguishes the rows of the summary. Metrics that are null
    in a whole setting are left out, and so is the count of failed checks for gradient masking if it is 0.
    """
    other = [name for name in summary.columns if name not in (*KEYS, "n_seeds") and not _is_metric(name)]
    setting_blocks = []
    for name, rows in group_by_setting(to_rows(summary)).items():
        lines = [
            {"quantity": describe(key), "cells": [_cell(key, row) for row in rows]}
            for key in _metrics(summary)
            if any(row[f"{key}_mean"] if key == "masking_failed" else row[f"{key}_mean"] is not None for row in rows)
        ]
        setting_blocks.append({"name": name, "columns": [_column(row, other) for row in rows], "rows": lines})
    return setting_blocks


def constant_metrics(summary: pd.DataFrame) -> list[str]:
    """List the metrics that have the same mean in all rows, such as a measure's settings; none for a single row."""
    if len(summary) < 2:
        return []
    return [key for key in _metrics(summary) if summary[f"{key}_mean"].nunique(dropna=False) == 1]


def split_constants(summary: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Remove the constants from a summary; return it, and the constants that are not null as "label: value"."""
    keys = constant_metrics(summary)
    values = {key: summary[f"{key}_mean"].iloc[0] for key in keys if summary[f"{key}_mean"].notna().any()}
    texts = [
        f"{describe(key).label}: {describe(key).text(value)} {describe(key).unit}" for key, value in values.items()
    ]
    columns = [f"{key}_{part}" for key in keys for part in ("mean", "std")]
    return summary.drop(columns=columns), [text.strip() for text in texts]


def _metrics(summary: pd.DataFrame) -> list[str]:
    """List the names of the metrics of a summary, without the suffix _mean."""
    return [name.removesuffix("_mean") for name in summary.columns if name.endswith("_mean")]


def _is_metric(name: str) -> bool:
    return name.endswith(("_mean", "_std"))


def _column(row: Mapping[str, Any], other: Sequence[str]) -> str:
    """Name a column of a block: "8", or "8 → 32, convolutions"."""
    high = [f"{row['ar']:g} → {row['ar_high']:g}"] if row.get("ar_high") is not None else [f"{row['ar']:g}"]
    return ", ".join(high + [str(row[key]) for key in other if key != "ar_high" and row[key] is not None])


def _cell(key: str, row: Mapping[str, Any]) -> Cell:
    """Format mean and std of one metric in one row of a summary."""
    mean, std = (
        math.nan if row[f"{key}_{statistic}"] is None else row[f"{key}_{statistic}"] for statistic in ("mean", "std")
    )
    return format_cell(describe(key), mean, std)

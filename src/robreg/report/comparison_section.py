"""The paper's numbers beside a study's, as the report shows them: one block per table of the paper and setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robreg.report.claims_section import place, plain
from robreg.report.units import Quantity, describe

_CELL = ("table", "dataset", "arch", "train_attack", "spectral_norm", "ar", "ar_high", "metric")
_PLACE = ("dataset", "arch", "train_attack", "spectral_norm", "space")


@dataclass(frozen=True)
class Pair:
    """One cell: ours (mean, std over seeds) and the paper's as text, their difference, and the mark of a note."""

    ours: str
    std: str
    paper: str
    difference: str
    mark: str


@dataclass(frozen=True)
class Block:
    """One setting of one of the paper's tables: strengths across, metrics down. run: whether any cell is ours too."""

    table: str
    setting: str
    strengths: tuple[str, ...]
    rows: tuple[tuple[Quantity, tuple[Pair | None, ...]], ...]
    run: bool
    notes: tuple[str, ...]
    n_seeds: tuple[int, ...]

    @property
    def cells(self) -> int:
        """How many numbers of the paper are in it."""
        return sum(pair is not None for _, pairs in self.rows for pair in pairs)


def blocks(frame: pd.DataFrame) -> list[Block]:
    """Put comparison.parquet into blocks, in its own order; a setting that ran in several data sets has one each."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in plain(frame):
        settings.setdefault((row["table"], row.get("run_dataset"), *(row[key] for key in _PLACE)), []).append(row)
    return [_block(rows) for rows in settings.values()]


def counted(frame: pd.DataFrame) -> str:
    """Say how many of the paper's numbers stand beside one of ours, and how many of those have a note."""
    numbers = len(frame.drop_duplicates(list(_CELL)))
    beside = frame[frame["ours_mean"].notna()].drop_duplicates(list(_CELL))
    if beside.empty:
        return f"None of the {numbers} numbers that the paper prints belongs to a network of this study."
    odd = int(beside["note"].fillna("").ne("").sum())
    be = "is" if odd == 1 else "are"
    marked = f" Of these, {odd} {be} marked as odd in the paper itself: probable misprints, or rounding." if odd else ""
    stand = "stands" if len(beside) == 1 else "stand"
    return f"{len(beside)} of the {numbers} numbers that the paper prints {stand} beside one of this study's.{marked}"


def _block(rows: Sequence[Mapping[str, Any]]) -> Block:
    strengths = list(dict.fromkeys(_strength(row) for row in rows))
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    first = rows[0]
    metrics: dict[str, dict[str, Pair]] = {}
    for row in rows:
        metrics.setdefault(row["metric"], {})[_strength(row)] = _pair(row, notes)
    data = first.get("run_dataset")
    setting = place({key: first[key] for key in _PLACE})
    return Block(
        table=str(first["table"]),
        setting=setting if data in (None, first["dataset"]) else f"{setting}; ours: {data}",
        strengths=tuple(strengths),
        rows=tuple((describe(key), tuple(map(cells.get, strengths))) for key, cells in metrics.items()),
        run=any(row["ours_mean"] is not None for row in rows),
        notes=tuple(f"{_mark(index)} {note}" for index, note in enumerate(notes)),
        n_seeds=tuple(sorted({int(row["n_seeds"]) for row in rows if row["ours_mean"] is not None})),
    )


def _pair(row: Mapping[str, Any], notes: Sequence[str]) -> Pair:
    quantity = describe(row["metric"])
    sign = "+" if (row["difference"] or 0) > 0 else ""
    return Pair(
        ours=quantity.text(row["ours_mean"]),
        std="" if row["ours_std"] is None else quantity.text(row["ours_std"]),
        paper=quantity.text(row["paper"]),
        difference="" if row["difference"] is None else sign + quantity.text(row["difference"]),
        mark=_mark(notes.index(row["note"])) if row["note"] else "",
    )


def _strength(row: Mapping[str, Any]) -> str:
    high = row.get("ar_high")
    return f"{row['ar']:g}" if high is None else f"{row['ar']:g} → {high:g}"


def _mark(index: int) -> str:
    return "†‡§¶"[index % 4] * (1 + index // 4)

"""Prepare the comparison with the paper for the report: one block per table of the paper and setting."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robreg.paper.conventions import FLOORS, SURVIVORS, rank_conventions
from robreg.paper.experiments import judge
from robreg.report.claims_section import setting_name, to_rows
from robreg.report.units import Quantity, describe
from robreg.runs.variant import base_attack, paper_name

_CELL = ("table", "dataset", "arch", "train_attack", "spectral_norm", "ar", "ar_high", "metric")
_REACHED = {True: "passes", False: "fails", None: "not run"}
_EXPLAINED = (
    "The paper leaves open in which space radii are measured, whether training sees clean examples, too, and which of "
    "Fixup's scalars its networks have. Here, what was tried is ranked by its distance to the numbers that the paper "
    "prints for ResNet-56 on CIFAR-10 at AR 4 and 16: the mean of |ours - paper| / tolerance, where the tolerance is "
    "what another training, or recompressed images, may change (about one point of accuracy). A distance below 1 "
    "means that they differ by less than that on average. Networks that were trained for fewer epochs than the paper's "
    "200 may be further away for that reason alone.",
    f"“AR 0” says whether standard training reaches {FLOORS['train_acc']:g} % on the training and "
    f"{FLOORS['test_acc']:g} % on the test images, as the paper's networks do at AR 4.",
    "The last columns give the radius in pixels (in 1/255) at which PGD leaves as many of the correctly classified "
    "examples correct as the paper prints; at AR 4, where its number is a misprint, as its similar networks have. It "
    "is interpolated between the radii that were tried. If the paper evaluated all its networks alike, both are the "
    "same.",
)
_PLACE = ("dataset", "arch", "train_attack", "spectral_norm", "space")


@dataclass(frozen=True)
class ComparisonCell:
    """One cell as text: our number (mean and std over seeds), the paper's, their difference, and a footnote mark."""

    ours: str
    std: str
    paper: str
    difference: str
    mark: str


@dataclass(frozen=True)
class Block:
    """One setting of one of the paper's tables: a column per strength, a row per metric.

    run: whether this study has a number for at least one cell.
    """

    table: str
    setting: str
    strengths: tuple[str, ...]
    rows: tuple[tuple[Quantity, tuple[ComparisonCell | None, ...]], ...]
    run: bool
    notes: tuple[str, ...]
    n_seeds: tuple[int, ...]

    @property
    def cells(self) -> int:
        """The number of the paper's numbers in the block."""
        return sum(pair is not None for _, pairs in self.rows for pair in pairs)


def comparison_blocks(frame: pd.DataFrame) -> list[Block]:
    """Split comparison.parquet into blocks, in the order of its rows.

    A setting of the paper that several of our data sets stand for has one block per data set.
    """
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in to_rows(frame):
        settings.setdefault((row["table"], row.get("run_dataset"), *(row[key] for key in _PLACE)), []).append(row)
    return [_block(rows) for rows in settings.values()]


def count_sentence(frame: pd.DataFrame) -> str:
    """State how many of the paper's numbers can be compared with one of ours, and how many of those have a note."""
    frame = frame.assign(arch=frame["arch"].map(paper_name), train_attack=frame["train_attack"].map(base_attack))
    numbers = len(frame.drop_duplicates(list(_CELL)))
    comparable = frame[frame["ours_mean"].notna()].drop_duplicates(list(_CELL))
    if comparable.empty:
        return f"The paper prints {numbers} numbers, but none for the networks of this study, so none can be compared."
    doubtful = int(comparable["note"].fillna("").ne("").sum())
    be = "is" if doubtful == 1 else "are"
    note = (
        f" Of these, {doubtful} {be} marked as doubtful in the paper itself, probably because of misprints or rounding."
    )
    compared = "is" if len(comparable) == 1 else "are"
    return (
        f"{len(comparable)} of the {numbers} numbers that the paper prints {compared} compared with a number of this "
        f"study.{note if doubtful else ''}"
    )


@dataclass(frozen=True)
class Experiment:
    """One experiment, as text. rule: what passes, "" if there is no rule; rows: network, epochs, verdict, measured."""

    question: str
    rule: str
    rows: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Conventions:
    """Conventions ranked by their distance to the paper's numbers, as text, and the experiments that judge them.

    columns, rows: of the ranking; explained: sentences about it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    explained: tuple[str, ...]
    experiments: tuple[Experiment, ...]


def judge_conventions(frame: pd.DataFrame, study: Mapping[str, Any]) -> Conventions | None:
    """Rank and judge the conventions of a study; None if it has only one, so that there is no choice.

    frame: comparison.parquet; study: as in page.write.
    """
    epochs = {name: one["training"]["epochs"] for name, one in study["settings"].items()}
    epochs |= {f"{run['dataset']}/{run['variant']}": run["epochs"] for run in study["not_run"]}
    ranked = rank_conventions(frame, study["runs"], epochs, study["not_run"])
    if len(ranked) < 2:
        return None
    radius = [f"radius in pixels with {value:g} % (AR {ar})" for ar, value in sorted(SURVIVORS.items())]
    columns = ("Networks", "epochs", "numbers compared", "within tolerance", "distance", "AR 0", *radius)
    rows = []
    for row in to_rows(ranked):
        attack = f"pgd+clean{row['clean']:g}" if row["clean"] else "pgd"
        name = setting_name({**row, "dataset": row["run_dataset"], "train_attack": attack})
        numbers = [f"{row['n']}", f"{row['within']}"] if row["n"] else ["none" if row["ran"] else "not run", ""]
        radii = [_or_unknown(row[f"radius_ar{ar}"], ".1f") for ar in sorted(SURVIVORS)]
        found = (_or_unknown(row["distance"], ".1f"), _REACHED[row["ar0"]])
        rows.append((name, f"{row['epochs']}", *numbers, *found, *radii))
    return Conventions(columns, tuple(rows), _EXPLAINED, tuple(_experiments(study, epochs)))


def _experiments(study: Mapping[str, Any], epochs: Mapping[str, int]) -> Iterator[Experiment]:
    outcomes = judge(study["runs"], study["not_run"], epochs)
    for (name, question, rule), members in itertools.groupby(
        outcomes, key=lambda one: (one.experiment, one.question, one.rule)
    ):
        rows = tuple((setting_name(one.run), f"{one.epochs}", one.verdict, one.found) for one in members)
        yield Experiment(f"{name}: {question}", rule, rows)


def _or_unknown(value: float | None, pattern: str) -> str:
    return "not known" if value is None else format(value, pattern)


def _block(rows: Sequence[Mapping[str, Any]]) -> Block:
    """Make the block of one table and setting from its rows of comparison.parquet."""
    strengths = list(dict.fromkeys(_strength(row) for row in rows))
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    first = rows[0]
    metrics: dict[str, dict[str, ComparisonCell]] = {}
    for row in rows:
        metrics.setdefault(row["metric"], {})[_strength(row)] = _pair(row, notes)
    data = first.get("run_dataset")
    setting = setting_name({key: first[key] for key in _PLACE})
    return Block(
        table=str(first["table"]),
        setting=setting if data in (None, first["dataset"]) else f"{setting} (in this study: {data})",
        strengths=tuple(strengths),
        rows=tuple((describe(key), tuple(map(cells.get, strengths))) for key, cells in metrics.items()),
        run=any(row["ours_mean"] is not None for row in rows),
        notes=tuple(f"{_mark(index)} {note}" for index, note in enumerate(notes)),
        n_seeds=tuple(sorted({int(row["n_seeds"]) for row in rows if row["ours_mean"] is not None})),
    )


def _pair(row: Mapping[str, Any], notes: Sequence[str]) -> ComparisonCell:
    """Format one row of comparison.parquet; its footnote mark is given by the place of its note in notes."""
    quantity = describe(row["metric"])
    sign = "+" if (row["difference"] or 0) > 0 else ""
    return ComparisonCell(
        ours=quantity.text(row["ours_mean"]),
        std="" if row["ours_std"] is None else quantity.text(row["ours_std"]),
        paper=quantity.text(row["paper"]),
        difference="" if row["difference"] is None else sign + quantity.text(row["difference"]),
        mark=_mark(notes.index(row["note"])) if row["note"] else "",
    )


def _strength(row: Mapping[str, Any]) -> str:
    """Name the strength of a row, "8", or the two strengths that it compares, "8 → 32"."""
    high = row.get("ar_high")
    return f"{row['ar']:g}" if high is None else f"{row['ar']:g} → {high:g}"


def _mark(index: int) -> str:
    """Return the footnote mark of a note: four symbols in turn, repeated as often as needed to stay unique."""
    return "†‡§¶"[index % 4] * (1 + index // 4)

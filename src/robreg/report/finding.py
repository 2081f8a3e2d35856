"""Say what a study found: how its main quantities change with the strength of adversarial training.

A change is described as it is between each two neighbouring strengths, so that a quantity that rises first and falls
afterwards is not reported as one that falls.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robreg.report.phrases import format_range, join_words
from robreg.report.tables_section import table_blocks
from robreg.report.units import Quantity
from robreg.runs.catalogue import FIGURES, Run
from robreg.runs.groups import group_by_setting, list_strengths
from robreg.tables import parquet
from robreg.tables.study_tables import KEYS, summarise

NAMES = {  # the main quantities: in the words of a sentence, and how a sentence writes their numbers
    "loss_gap": ("the loss gap", Quantity("", "nats", 3)),
    "pgd_acc": ("the adversarial accuracy", Quantity("", "%", 1)),
    "sv_spread": ("the spread of singular values", Quantity("", "", 3)),
    "margin_spread": ("the spread of margins", Quantity("", "logits", 2)),
}
SHOWN_IN = {  # the quantities that a figure shows
    "fig1": ("sv_spread", "margin_spread", "pgd_acc"),
    "fig3": ("loss_gap",),
    "fig4": ("margin_spread",),
    "fig5": ("sv_spread",),
    "fig12": ("pgd_acc",),
}


@dataclass(frozen=True)
class Course:
    """How one quantity changes with the strength in one setting.

    means, stds: over seeds, at every one of the strengths, in increasing order; a std of one seed is NaN.
    """

    quantity: Quantity
    name: str
    strengths: Sequence[int]
    means: Sequence[float]
    stds: Sequence[float]

    def sentence(self) -> str:
        """Return "the loss gap falls (0.07, 0.04 and 0.03 nats)", with the steps that go the other way."""
        values = join_words([self.quantity.text(value) for value in self.means])
        turns = self._turns()
        doubt = "" if turns else self._doubt(0, -1)
        return f"{self.name} {self._verb()} ({f'{values} {self.quantity.unit}'.strip()}){doubt}{turns}"

    def _verb(self) -> str:
        change = self.means[-1] - self.means[0]
        if math.isnan(change):
            return "is not known at one end, or at both"
        direction = "falls" if change < 0 else "rises" if change > 0 else "does not change"
        if change and self.quantity.text(self.means[0]) == self.quantity.text(self.means[-1]):
            direction = "hardly changes"
        return f"{direction} from end to end" if self._reversed() else direction

    def _reversed(self) -> list[int]:
        """List the steps, by the index of their first strength, that go against the change from end to end."""
        change = self.means[-1] - self.means[0]
        steps = [after - before for before, after in itertools.pairwise(self.means)]
        return [index for index, step in enumerate(steps) if step * change < 0]

    def _turns(self) -> str:
        verb = "rises" if self.means[-1] < self.means[0] else "falls"
        steps = [
            f"from AR {self.strengths[i]} to {self.strengths[i + 1]}{self._doubt(i, i + 1)}" for i in self._reversed()
        ]
        return f", but {verb} {join_words(steps)}" if steps else ""

    def _doubt(self, first: int, last: int) -> str:
        """Say of the change between two strengths whether seeds vary by more than it."""
        spread = math.hypot(self.stds[first], self.stds[last])
        return " (by less than seeds differ)" if abs(self.means[last] - self.means[first]) < spread else ""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the main quantities of every run: KEYS and NAMES."""
    return pd.DataFrame([{key: run[key] for key in KEYS} | _measure(Path(run["folder"])) for run in runs])


def _measure(folder: Path) -> dict[str, float]:
    (metrics,) = parquet.read(folder / "metrics.parquet", ["loss_gap", "pgd_acc"]).to_pylist()
    stds = parquet.read(folder / "svstd.parquet", ["std"]).to_pandas()["std"].astype("float64")
    margins = parquet.read(folder / "margins.parquet", ["split", "margin"]).to_pandas()
    tested = margins.loc[margins["split"] == "test", "margin"].astype("float64")
    values = {**metrics, "sv_spread": stds.mean(), "margin_spread": tested.std(ddof=0)}
    return {key: math.nan if values[key] is None else float(values[key]) for key in NAMES}


def main_settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the settings that show a change: those of Figure 1, or else all, that have several strengths."""
    settings = group_by_setting(FIGURES["fig1"].choice.choose(runs) or runs)
    return {name: members for name, members in settings.items() if len(list_strengths(members)) > 1}


def courses(members: Sequence[Run]) -> dict[str, Course]:
    """Return the courses of the main quantities in one setting, by the keys of NAMES."""
    strengths = list_strengths(members)
    values = measure(members).set_index("ar")[list(NAMES)]
    groups = [values.loc[[ar]] for ar in strengths]  # as in the tables, one seed without a value leaves none
    return {
        key: Course(
            quantity,
            name,
            strengths,
            [float(group[key].mean(skipna=False)) for group in groups],
            [float(group[key].std(skipna=False)) for group in groups],
        )
        for key, (name, quantity) in NAMES.items()
    }


def answer(settings: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return two sentences about the first of the main settings; one that says why, if there is none."""
    if not settings:
        return ["No setting of this study has networks of two strengths, so nothing here shows a change with AR."]
    name, members = next(iter(settings.items()))
    parts = [course.sentence() for course in courses(members).values()]
    where = f"On {name}, as AR grows" if len(settings) > 1 else "As AR grows"
    return [
        f"{where} ({join_words([str(ar) for ar in list_strengths(members)])} in 1/255; {_seeds(members)}), "
        f"{parts[0]}, and {parts[1]}.",
        f"{parts[2][:1].upper()}{parts[2][1:]}, and {parts[3]}.",
    ]


def _seeds(members: Sequence[Run]) -> str:
    """Say of how many seeds the numbers are."""
    counts = pd.DataFrame(members).groupby("ar").size().tolist()
    return "one seed each" if set(counts) == {1} else f"means over {format_range(counts)} seeds"


def glance(settings: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return a block for every main setting, as table_blocks does, with the main quantities at every strength."""
    blocks = []
    for name, members in settings.items():
        (block,) = table_blocks(summarise(measure(members)))
        blocks.append(block | {"name": name, "seeds": _seeds(members)})
    return blocks


def lines_about(figure: str, shown: Sequence[Run]) -> list[str]:
    """Say in a sentence what a figure shows of the first main setting; [] for a figure of other quantities."""
    settings = main_settings(shown) if figure in SHOWN_IN else {}
    for name, members in list(settings.items())[:1]:
        found = courses(members)
        said = join_words([found[key].sentence() for key in SHOWN_IN[figure]])
        return [f"Here, with {name}, as AR grows ({join_words([str(ar) for ar in list_strengths(members)])}): {said}."]
    return []

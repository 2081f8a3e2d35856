"""What came out of a study: how each quantity moves with the strength, and whether it does so in the paper too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from robreg.item import Run
from robreg.quantity import Quantity, describe
from robreg.setting import group
from robreg.study import KEYS, gather

# Column, its direction in the paper as AR grows (None: differs between data sets), and where the paper says so.
PAPER: tuple[tuple[str, str | None, str], ...] = (
    ("loss_gap", "falls", "falls (section 4.1, Tables 3 to 5)"),
    ("acc_gap", None, "rises on CIFAR-10, falls on CIFAR-100 and Tiny-ImageNet (section 4.1, B.3)"),
    ("margin_std", "falls", "falls: margins concentrate (section 4.2.1, Figure 4)"),
    ("svstd_sum", "falls", "falls (section 4.2, appendix B.2)"),
    ("loss_variation", "falls", "falls (appendix B.5, Table 1)"),
    ("pgd_acc", "rises", "rises (appendix D.2, Figure 12)"),
    ("train_loss", "rises", "rises (Tables 3 to 5)"),
    ("test_acc", "falls", "falls (section 4.1, Tables 3 to 5)"),
)


@dataclass(frozen=True)
class Point:
    """A quantity at one strength: mean over seeds, and their std (ddof 1; nan for one seed)."""

    ar: int
    mean: float
    std: float


@dataclass(frozen=True)
class Finding:
    """A quantity over the strengths of one setting. paper_direction: rises, falls or None.

    verdict, and adversarial (the same for AR > 0 only): see judge.
    """

    quantity: Quantity
    paper: str
    paper_direction: str | None
    points: tuple[Point, ...]
    verdict: str
    adversarial: str


def findings(runs: Sequence[Run], table1: pd.DataFrame | None = None) -> dict[str, list[Finding]]:
    """Find, in every setting, how the quantities of PAPER move with the strength.

    table1: the study's table of that name, one row per run; without it nothing is said of the loss variation.
    """
    found = {}
    for name, members in group(runs).items():
        frame, columns = collect(members, table1)
        listed = [(columns[key], wanted, words) for key, wanted, words in PAPER if key in columns]
        found[name] = [_find(frame, column, wanted, words) for column, wanted, words in listed]
    return found


def collect(runs: Sequence[Run], table1: pd.DataFrame | None) -> tuple[pd.DataFrame, dict[str, str]]:
    """Make one row per run: KEYS and the columns that PAPER speaks of, and say which column each of them is.

    margin_std is over test examples (ddof 0); the loss variation is the one at the largest eps.
    """
    frame = gather(runs, "metrics")
    margins = gather(runs, "margins", ["split", "margin"]).query("split == 'test'").astype({"margin": "float64"})
    by_run = ["ar", "seed"]
    extra = pd.DataFrame(
        {
            "margin_std": margins.groupby(by_run)["margin"].std(ddof=0),
            "svstd_sum": gather(runs, "svstd", ["std"]).groupby(by_run)["std"].sum(),
        }
    )
    frame = frame.merge(extra, left_on=by_run, right_index=True)
    columns = {key: key for key in frame.columns if key not in KEYS}
    if table1 is not None:
        bound = {"spectral_norm": "float64"}  # null in every run is a float too
        frame = frame.astype(bound).merge(table1.astype(bound), on=KEYS)
        widest = _widest(frame.dropna(axis="columns", how="all"))  # a column of another data set's radius is empty
        if widest is not None:
            columns["loss_variation"] = widest
    return frame, columns


def judge(points: Sequence[Point], wanted: str | None) -> str:
    """Say how the means move from the weakest to the strongest: a key of VERDICTS.

    "single": one strength only. "one seed": no spread to hold a change against. "unclear": the change is no larger than
    the std of a difference of two seeds. With a direction to compare with, "agrees" at every step, "partly" only from
    end to end, or "differs"; without, "rises" or "falls".
    """
    if len(points) < 2:
        return "single"
    change = points[-1].mean - points[0].mean
    spread = math.hypot(*(0.0 if math.isnan(end.std) else end.std for end in (points[0], points[-1])))
    if abs(change) <= spread:
        return "unclear"
    if any(math.isnan(point.std) for point in points):
        return "one seed"
    if wanted is None:
        return "rises" if change > 0 else "falls"
    sign = 1 if wanted == "rises" else -1
    steps = [sign * (after.mean - before.mean) for before, after in pairwise(points)]
    if sign * change < 0:
        return "differs"
    return "agrees" if all(step > 0 for step in steps) else "partly"


VERDICTS = {
    "agrees": "as in the paper, at every step",
    "partly": "as in the paper from end to end, but not at every step",
    "differs": "the other way round than in the paper",
    "unclear": "no change beyond the spread over seeds",
    "rises": "rises",
    "falls": "falls",
    "single": "one strength only",
    "one seed": "one seed only: no verdict",
}


def _find(frame: pd.DataFrame, column: str, wanted: str | None, words: str) -> Finding:
    over = frame.astype({column: "float64"}).groupby("ar")[column].agg(["mean", "std"]).dropna(subset="mean")
    points = tuple(Point(int(ar), mean, std) for ar, mean, std in over.reset_index().to_numpy())
    positive = [point for point in points if point.ar > 0]
    return Finding(describe(column), words, wanted, points, judge(points, wanted), judge(positive, wanted))


def _widest(table1: pd.DataFrame) -> str | None:
    """The column of the mean loss variation at the largest eps."""
    names = [name for name in table1.columns if name.startswith("loss_variation_mean_eps")]
    return max(names, key=lambda name: float(name.rpartition("eps")[2]), default=None)

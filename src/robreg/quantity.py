"""The numbers that a report prints: what a column is called, its unit, its decimals, and times and sizes in words."""

import math
import re
from dataclasses import dataclass

_VARIATION = re.compile(r"loss_variation_(mean|std)_eps(.+)")


@dataclass(frozen=True)
class Quantity:
    """A column of a study's tables in words. unit: "" for a pure number."""

    label: str
    unit: str
    decimals: int

    def text(self, value: float | None) -> str:
        """Write a value with this quantity's decimals; a dash for null."""
        if value is None or math.isnan(value):
            return "\N{EN DASH}"
        return f"{value:.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")


_KNOWN = {
    "train_acc": Quantity("train accuracy", "%", 2),
    "test_acc": Quantity("test accuracy", "%", 2),
    "acc_gap": Quantity("error gap", "% points", 2),
    "train_loss": Quantity("train loss", "nats", 4),
    "test_loss": Quantity("test loss", "nats", 4),
    "loss_gap": Quantity("loss gap", "nats", 4),
    "pgd_acc": Quantity("adversarial accuracy", "%", 2),
    "robust_acc": Quantity("robust accuracy, all examples", "%", 2),
    "margin_std": Quantity("std of test margins", "logits", 3),
    "svstd_sum": Quantity("std of singular values, summed over layers", "", 3),
}


def describe(column: str) -> Quantity:
    """Describe a column of a study's table; one that is not known keeps its name, with four decimals."""
    variation = _VARIATION.fullmatch(column)
    if variation:
        return Quantity(f"loss variation at eps {variation[2]}, {variation[1]}", "nats", 4)
    return _KNOWN.get(column, Quantity(column.replace("_", " "), "", 4))


@dataclass(frozen=True)
class Cell:
    """A number as text: mean, and std over seeds ("" where there is none)."""

    mean: str
    std: str


def cell(quantity: Quantity, mean: float, std: float) -> Cell:
    """Write mean and std (nan: not known, left out) with the quantity's decimals."""
    return Cell(quantity.text(mean), "" if math.isnan(std) or math.isnan(mean) else quantity.text(std))


def duration(seconds: float | None) -> str:
    """Write seconds so that they can be read: "41 s", "3 min 05 s", "2 h 10 min"; a dash for None."""
    if seconds is None or math.isnan(seconds):
        return "\N{EN DASH}"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(megabytes: float | None) -> str:
    """Write a size given in MB; a dash for None."""
    return "\N{EN DASH}" if megabytes is None or math.isnan(megabytes) else f"{megabytes:.0f} MB"

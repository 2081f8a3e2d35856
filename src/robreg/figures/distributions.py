"""Draw distributions over test examples: histograms of probabilities and losses, and the loss variation.

Vertical axes are logarithmic: almost all examples are in one bin, and a small radius changes a loss by little, so that
what differs between strengths would lie on the horizontal axis.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from robreg.figures import strength_axis
from robreg.figures.panels import std_over_seeds, write_plain_numbers
from robreg.figures.series import Series
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.tables.study_tables import gather

PROBABILITY = np.linspace(0, 1, 11)
LOSS = np.arange(0, 3, 0.25)  # nats; the last bin holds all larger losses
Statistic = Literal["mean", "std"]


def histogram(ax: Axes, series: Series, column: str) -> None:
    """Draw the share (percent) of test examples in each bin of "prob" or "loss": mean over seeds, bars of one std.

    Error bars of different series are side by side inside a bin.
    """
    bins = PROBABILITY if column == "prob" else LOSS
    means = []
    for place, (look, runs) in enumerate(series, 1):
        shares = np.array([_shares(run, column, bins) for run in runs])  # (seeds, bins)
        means.append(shares.mean(0))
        ax.stairs(means[-1], bins, linewidth=1.4, **look.line)
        centre = bins[:-1] + np.diff(bins) * place / (len(series) + 1)
        error = std_over_seeds(shares)
        ax.errorbar(centre, means[-1], error, fmt="none", ecolor=look.color, elinewidth=0.9, capsize=0)
    ax.set_yscale("log", nonpositive="clip")
    every = np.concatenate(means)
    ax.set(xlim=(bins[0], bins[-1]), ylim=(every[every > 0].min() / 1.5, 130), ylabel="test examples in a bin (%)")
    write_plain_numbers(ax)
    ax.set_xlabel("estimated probability of the label" if column == "prob" else "loss (nats); last bin: all above")


def _shares(run: Run, column: str, bins: np.ndarray) -> np.ndarray:
    """Return the share (percent) of a run's test examples in each bin, (bins,); the last one holds all above, too."""
    frame = gather([run], "margins", ["split", column]).query("split == 'test'")
    values = frame[column].to_numpy("float64").clip(max=(bins[-2] + bins[-1]) / 2)
    return 100 * np.histogram(values, bins)[0] / len(values)


def variation(ax: Axes, runs: Sequence[Run], looks: Mapping[float, Look], statistic: Statistic) -> None:
    """Draw mean or std over test examples of the loss variation against the training radius, for every eps.

    Both are computed for each run and averaged over seeds, as in Table 1; error bars are the std over seeds.
    All runs are of one setting.
    """
    frame = gather(runs, "lossvar", ["eps", "prob_variation"]).astype({"prob_variation": "float64"})
    values = frame.groupby(["eps", "ar", "seed"])["prob_variation"]
    each = (values.mean() if statistic == "mean" else values.std(ddof=0)).reset_index()
    unit = strength_axis.pixels_per_unit(runs[0])
    for eps, look in looks.items():
        over = each[each["eps"] == eps].groupby("ar")["prob_variation"].agg(["mean", "std"])
        if len(over):  # else a radius of another data set
            ax.errorbar(over.index * unit, over["mean"], over["std"].fillna(0), elinewidth=1, **look.marked)
    ax.set(xlabel=strength_axis.LABEL, ylabel=f"{statistic} of the loss variation\n(label's probability)")
    ax.set_yscale("log", nonpositive="clip")
    write_plain_numbers(ax)

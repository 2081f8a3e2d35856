"""What one panel of a figure shows, of the runs of one setting. Bars and bands are std over seeds, with ddof 1."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from robreg.setting import strengths
from robreg.study import Run, gather
from robreg.style import Look

STRENGTH = "AR strength (1/255)"
_GRID = 240  # points of a density's curve
_SHOWN = np.array([0.001, 0.999])  # quantiles of a split's margins between which their densities are drawn


def metric(ax: Axes, frame: pd.DataFrame, looks: Mapping[str, Look], *, ylabel: str) -> None:
    """Draw columns of frame, the keys of looks, against AR: mean over seeds, bars of one std.

    frame: one row per run, with ar; null values (an accuracy conditional on nothing) are left out.
    """
    for name, look in looks.items():
        sns.lineplot(
            frame, x="ar", y=name, errorbar="sd", err_style="bars", ax=ax, err_kws={"elinewidth": 1}, **look.marked
        )
    ax.set(xlabel=STRENGTH, ylabel=ylabel, xticks=sorted(frame["ar"].unique()))
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))


def spectra(ax: Axes, runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> None:
    """Draw the std of every layer's singular values at the strengths of compare: mean over seeds, band of one std."""
    frame = gather([run for run in runs if run["ar"] in compare], "svstd", ["layer", "std"])
    for part, look in _parts(frame, looks):
        sns.lineplot(part, x="layer", y="std", errorbar="sd", ax=ax, err_kws={"linewidth": 0}, **look.marked)
    ax.set(xlabel="layer (input to output)", ylabel="std of singular values")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.set_ylim(bottom=0)


def margins(ax: Axes, runs: Sequence[Run], split: str, looks: Mapping[int, Look]) -> None:
    """Draw the density of a split's margins at every strength: mean over seeds, band of one std; a line at margin 0.

    A seed's density is a Gaussian kernel estimate with Scott's bandwidth.
    """
    frame = gather(runs, "margins", ["split", "margin"])
    ends = frame.groupby("split")["margin"].quantile(_SHOWN)  # of both splits, to be compared
    grid = np.linspace(ends.min(), ends.max(), _GRID)
    for part, look in _parts(frame[frame["split"] == split], looks):
        curves = [density(values.to_numpy("float64"), grid) for _, values in part.groupby("seed")["margin"]]
        _band(ax, grid, np.array(curves), look)
    ax.axvline(0, color="black", linewidth=0.9)
    ax.set(xlabel=f"margin ({split} set, logits)", ylabel="density", xlim=(grid[0], grid[-1]))
    ax.set_ylim(bottom=0)


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Estimate the density of values (N,) at the points of grid (P,): Gaussian kernels, Scott's bandwidth."""
    width = max(float(values.std(ddof=1)) * len(values) ** -0.2, 1e-9)
    kernels = (np.exp(-0.5 * ((point - values) / width) ** 2).mean() for point in grid)
    return np.fromiter(kernels, "float64", len(grid)) / (width * np.sqrt(2 * np.pi))


def histogram(ax: Axes, frame: pd.DataFrame, column: str, bins: np.ndarray, looks: Mapping[int, Look]) -> None:
    """Draw the share (percent) of examples in each bin at every strength: mean over seeds, bars of one std.

    frame: ar, seed and the column. Bars of different strengths stand side by side inside a bin.
    """
    width = np.diff(bins)
    present = sorted(frame["ar"].unique())
    for place, ar in enumerate(present):
        runs = [values.to_numpy() for _, values in frame[frame["ar"] == ar].groupby("seed")[column]]
        shares = np.array([100 * np.histogram(values, bins)[0] / len(values) for values in runs])  # (seeds, bins)
        ax.stairs(shares.mean(0), bins, linewidth=1.4, **looks[ar].line)
        centre = bins[:-1] + width * (place + 1) / (len(present) + 1)
        ax.errorbar(centre, shares.mean(0), _std(shares), fmt="none", ecolor=looks[ar].color, elinewidth=0.9, capsize=0)
    ax.set_xlim(bins[0], bins[-1])
    ax.set_ylim(bottom=0)


def variation(ax: Axes, runs: Sequence[Run], looks: Mapping[float, Look]) -> None:
    """Draw the loss variation against AR for every eps: mean over test examples, thin bars of their std.

    Mean and std are a run's, averaged over seeds, as in Table 1; thick bars are the std over seeds of the mean. Series
    are moved sideways so that their bars can be told apart.
    """
    frame = gather(runs, "lossvar", ["eps", "variation"]).astype({"variation": "float64"})
    each = frame.groupby(["eps", "ar", "seed"])["variation"].agg(mean="mean", spread=lambda values: values.std(ddof=0))
    places = strengths(runs)
    shift = 0.12 * min(np.diff(places), default=1.0)
    for index, (eps, look) in enumerate(looks.items()):
        if eps not in each.index:  # another data set's radius
            continue
        over = each.loc[eps].groupby("ar").agg({"mean": ["mean", "std"], "spread": "mean"})
        x = over.index + shift * (index - (len(looks) - 1) / 2)
        mean = over["mean", "mean"]
        ax.errorbar(x, mean, over["spread", "mean"], elinewidth=0.9, **look.marked)
        ax.errorbar(x, mean, over["mean", "std"].fillna(0), fmt="none", ecolor=look.color, elinewidth=3, capsize=0)
    ax.set(xlabel=STRENGTH, ylabel="loss variation (nats)", xticks=places)
    ax.set_ylim(bottom=0)


def _parts(frame: pd.DataFrame, looks: Mapping[int, Look]) -> Iterator[tuple[pd.DataFrame, Look]]:
    """Yield the rows of every strength that frame has, with the strength's look."""
    for ar, look in looks.items():
        part = frame[frame["ar"] == ar]
        if not part.empty:
            yield part, look


def _band(ax: Axes, x: np.ndarray, curves: np.ndarray, look: Look) -> None:
    """curves: (seeds, points)."""
    mean, std = curves.mean(0), _std(curves)
    ax.plot(x, mean, **look.line)
    ax.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.15, linewidth=0)


def _std(values: np.ndarray) -> np.ndarray:
    """Std over the first axis with ddof 1; 0 for one row, where nothing is drawn."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

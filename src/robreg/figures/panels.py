"""Draw a panel of a figure from the runs of one setting. Error bars and bands are stds over seeds, with ddof 1."""

from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from robreg.figures.series import Series
from robreg.figures.style import Look
from robreg.tables.study_tables import gather

KINDS = {"random": "random", "pgd": "PGD"}  # perturbations in spread.parquet, and their names in figures
_MOST_MARKERS = 30  # the largest number of layers for which each has a marker
_GRID_POINTS = 240  # points per density curve
_SHOWN_QUANTILES = np.array([0.001, 0.999])  # quantiles of a split's margins; densities are drawn between them


def spectra_std(ax: Axes, series: Series) -> None:
    """Draw the std of every layer's singular values: mean over seeds, band of one std."""
    for look, runs in series:
        layer_lines(ax, gather(runs, "svstd", ["layer", "std"]), "std", look)
    ax.set(xlabel="layer (input to output)", ylabel="std of singular values")
    if ax.lines:
        _start_at_zero(ax)
    else:
        _say_that_no_layer_is_measured(ax)


def layer_lines(ax: Axes, frame: pd.DataFrame, column: str, look: Look) -> None:
    """Draw a column of frame against its column layer, if it has rows: mean over seeds, band of one std."""
    if frame.empty:
        return
    keywords = look.marked if frame["layer"].nunique() <= _MOST_MARKERS else look.line
    sns.lineplot(frame, x="layer", y=column, errorbar="sd", ax=ax, err_kws={"linewidth": 0}, **keywords)
    ax.set_xlim(0.5, frame["layer"].max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def margins(ax: Axes, series: Series, split: str) -> None:
    """Draw the density of a split's margins: mean over seeds, band of one std, and a line at 0.

    The density of each seed is a Gaussian kernel estimate with Scott's bandwidth.
    """
    frames = [(look, gather(runs, "margins", ["split", "margin"])) for look, runs in series]
    both = pd.concat([frame for _, frame in frames])
    ends = both.groupby("split")["margin"].quantile(_SHOWN_QUANTILES)  # both splits have the same axis
    grid = np.linspace(ends.min(), ends.max(), _GRID_POINTS)
    for look, frame in frames:
        seeds = frame[frame["split"] == split].groupby("seed")["margin"]
        _draw_band(ax, grid, np.array([density(values.to_numpy("float64"), grid) for _, values in seeds]), look)
    ax.axvline(0, color="black", linewidth=0.9)
    ax.set(xlabel=f"margin ({split} set, logits)", ylabel="density", xlim=(grid[0], grid[-1]))
    ax.set_ylim(bottom=0)


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Estimate the density of values (N,) at the points of grid (P,), with Gaussian kernels and Scott's bandwidth."""
    width = max(float(values.std(ddof=1)) * len(values) ** -0.2, 1e-9)
    kernels = (np.exp(-0.5 * ((point - values) / width) ** 2).mean() for point in grid)
    return np.fromiter(kernels, "float64", len(grid)) / (width * np.sqrt(2 * np.pi))


def layer_amplification(ax: Axes, series: Series, kind: str) -> None:
    """Draw mean and std over examples of every layer's |change of output| / |change of input|.

    kind: of the perturbations, "random" or "pgd". Bands are stds over seeds.
    """
    for look, runs in series:
        frame = gather(runs, "spread")
        part = frame[(frame["layer"] > 0) & (frame["perturbation"] == kind)]  # layer 0 is the margin
        layer_lines(ax, part, "mean", mean_look(look))
        layer_lines(ax, part, "std", std_look(look))
    ax.set(xlabel="layer (input to output)", ylabel="‖δ out‖ / ‖δ in‖")
    if ax.lines:
        _make_logarithmic(ax)
    else:
        _say_that_no_layer_is_measured(ax)


def margin_change(ax: Axes, series: Series) -> None:
    """Draw mean and std over examples of the change of the margin, with error bars of one std over seeds."""
    for index, (look, runs) in enumerate(series):
        frame = gather(runs, "spread").query("layer == 0")
        shift = 0.5 * (index - (len(series) - 1) / 2) / max(len(series) - 1, 1)
        for place, kind in enumerate(KINDS):
            for column, one in (("mean", mean_look(look)), ("std", std_look(look))):
                values = frame.loc[frame["perturbation"] == kind, column].to_numpy()
                error = std_over_seeds(values[:, None])
                ax.errorbar(place + shift, values.mean(), error, elinewidth=1, **one.marked)
    ax.set(ylabel="|Δ margin| (logits)")
    ax.set(xticks=range(len(KINDS)), xticklabels=KINDS.values(), xlim=(-0.5, 1.5))
    _make_logarithmic(ax)


def mean_look(look: Look) -> Look:
    """Return the look of a strength's mean over examples."""
    return replace(look, dashes="solid", marker="o", filled=True)


def std_look(look: Look) -> Look:
    """Return the look of a strength's std over examples."""
    return replace(look, dashes=(0, (3, 1.5)), marker="s", filled=False)


def published_point(ax: Axes, ar: float, value: float, label: str) -> Look:
    """Mark a published accuracy (percent) with a star and dotted lines to both axes; return its look for the legend."""
    look = Look(label, "#3d3d3d", (0, (1, 1.5)), "*")
    edge, _ = limits = ax.get_xlim()
    ax.plot([edge, ar, ar], [value, value, ax.get_ylim()[0]], linewidth=1, **look.line)
    ax.plot(ar, value, markersize=11, **look.marked)
    ax.set_xlim(limits)
    return look


def _say_that_no_layer_is_measured(ax: Axes) -> None:
    ax.text(
        0.5, 0.5, "these networks have\nno layer that is measured", transform=ax.transAxes, ha="center", va="center"
    )


def _start_at_zero(ax: Axes) -> None:
    """Start the vertical axis at 0, and leave room for markers at its upper end."""
    ax.set_ylim(0, 1.06 * ax.dataLim.y1)


def _make_logarithmic(ax: Axes) -> None:
    """Make the vertical axis logarithmic, because stds are far smaller than their means."""
    ax.set_yscale("log", nonpositive="clip")
    write_plain_numbers(ax)


def write_plain_numbers(ax: Axes) -> None:
    """Write 0.1, not a power of ten, at the ticks of a logarithmic vertical axis, and at 2 and 5 in a short one."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_band(ax: Axes, x: np.ndarray, curves: np.ndarray, look: Look) -> None:
    """Draw the mean over seeds of curves (seeds, points) with a band of one std."""
    mean, std = curves.mean(0), std_over_seeds(curves)
    ax.plot(x, mean, **look.line)
    ax.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.15, linewidth=0)


def std_over_seeds(values: np.ndarray) -> np.ndarray:
    """Return the std over the first axis with ddof 1, or 0 for a single row, which has no error bar."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

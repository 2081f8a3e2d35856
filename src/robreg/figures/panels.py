"""Draw a panel of a figure from the runs of one setting. Error bars and bands are stds over seeds, with ddof 1."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from robreg.figures import strength_axis, style
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.runs.groups import list_strengths
from robreg.tables.study_tables import gather

KINDS = {"random": "random", "pgd": "PGD"}  # perturbations in spread.parquet, and their names in figures
_MOST_MARKERS = 30  # the largest number of layers for which each has a marker
_GRID_POINTS = 240  # points per density curve
_SHOWN_QUANTILES = np.array([0.001, 0.999])  # quantiles of a split's margins; densities are drawn between them


def metric_lines(ax: Axes, frame: pd.DataFrame, looks: Mapping[str, Look], *, ylabel: str, x: str = "radius") -> None:
    """Draw columns of frame, the keys of looks, against the training radius: mean over seeds, error bars of one std.

    frame: one row per run, with the column radius, in pixels; x: another column for the horizontal axis. As in the
    summaries of tables, a mean of seeds of which one has no value (a conditional accuracy of no examples) is left out.
    """
    for name, look in looks.items():
        missing = frame[name].isna().groupby(frame[x]).transform("any")
        sns.lineplot(
            frame[~missing],
            x=x,
            y=name,
            errorbar="sd",
            err_style="bars",
            ax=ax,
            err_kws={"elinewidth": 1},
            **look.marked,
        )
    ax.set(xlabel=strength_axis.LABEL, ylabel=ylabel)
    low, high = min(0, ax.dataLim.y0), ax.dataLim.y1
    room = 0.05 * ((high - low) or 1)  # so that no marker is cut off
    ax.set_ylim(low - room, high + room)


def losses_and_errors(
    ax: Axes, frame: pd.DataFrame, left: Mapping[str, Look], right: Mapping[str, Look], labels: str
) -> Axes:
    """Draw losses on the left axis and errors on the right one, each axis in the colour of its lines.

    labels: appended to "loss" and "error" in the axis labels, " gap" or "". Returns the right axis.
    """
    other = ax.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    metric_lines(ax, frame, left, ylabel=f"loss{labels} (nats)")
    metric_lines(other, frame, right, ylabel=f"error{labels} (% points)" if labels else "error (%)")
    for axis, color, side in ((ax, style.LOSS, "left"), (other, style.ERROR, "right")):
        axis.tick_params(axis="y", colors=color)
        axis.yaxis.label.set_color(color)
        axis.spines[side].set_color(color)
    return other


def spectra_std(ax: Axes, runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> None:
    """Draw the std of every layer's singular values at the strengths of compare: mean over seeds, band of one std.

    If the runs have none of these strengths, all strengths are drawn.
    """
    frame = gather(runs_at_strengths(runs, compare), "svstd", ["layer", "std"])
    for part, look in _by_strength(frame, looks):
        layer_lines(ax, part, "std", look)
    ax.set(xlabel="layer (input to output)", ylabel="std of singular values")
    if frame.empty:
        _say_that_no_layer_is_measured(ax)
    else:
        _start_at_zero(ax)


def layer_lines(ax: Axes, frame: pd.DataFrame, column: str, look: Look) -> None:
    """Draw a column of frame against its column layer: mean over seeds, band of one std."""
    keywords = look.marked if frame["layer"].nunique() <= _MOST_MARKERS else look.line
    sns.lineplot(frame, x="layer", y=column, errorbar="sd", ax=ax, err_kws={"linewidth": 0}, **keywords)
    ax.set_xlim(0.5, frame["layer"].max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def runs_at_strengths(runs: Sequence[Run], compare: Sequence[int]) -> Sequence[Run]:
    """Return the runs at the strengths of compare, or all runs if there is none."""
    return [run for run in runs if run["ar"] in compare] or runs


def margins(ax: Axes, runs: Sequence[Run], split: str, looks: Mapping[int, Look]) -> None:
    """Draw the density of a split's margins at every strength: mean over seeds, band of one std, and a line at 0.

    The density of each seed is a Gaussian kernel estimate with Scott's bandwidth.
    """
    frame = gather(runs, "margins", ["split", "margin"])
    ends = frame.groupby("split")["margin"].quantile(_SHOWN_QUANTILES)  # both splits have the same axis
    grid = np.linspace(ends.min(), ends.max(), _GRID_POINTS)
    for part, look in _by_strength(frame[frame["split"] == split], looks):
        curves = [density(values.to_numpy("float64"), grid) for _, values in part.groupby("seed")["margin"]]
        _draw_band(ax, grid, np.array(curves), look)
    ax.axvline(0, color="black", linewidth=0.9)
    ax.set(xlabel=f"margin ({split} set, logits)", ylabel="density", xlim=(grid[0], grid[-1]))
    ax.set_ylim(bottom=0)


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Estimate the density of values (N,) at the points of grid (P,), with Gaussian kernels and Scott's bandwidth."""
    width = max(float(values.std(ddof=1)) * len(values) ** -0.2, 1e-9)
    kernels = (np.exp(-0.5 * ((point - values) / width) ** 2).mean() for point in grid)
    return np.fromiter(kernels, "float64", len(grid)) / (width * np.sqrt(2 * np.pi))


def histogram(ax: Axes, frame: pd.DataFrame, column: str, bins: np.ndarray, looks: Mapping[int, Look]) -> None:
    """Draw the share (percent) of examples in each bin at every strength: mean over seeds, error bars of one std.

    frame: has the columns ar, seed and column. Error bars of different strengths are side by side inside a bin.
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


def make_room_for_inset(ax: Axes, box: tuple[float, float, float, float], *, margin: float) -> None:
    """Raise the upper limit of a panel of histograms until the bars stay below an inset and the margin for its labels.

    box: (left, bottom, width, height) of the inset; margin: of its labels; both in fractions of the panel.
    """
    begin, end = (ax.get_xlim()[1] * share for share in (box[0] - margin, box[0] + box[2]))
    full, top = ax.get_ylim()[1], ax.get_ylim()[1]
    for patch in ax.patches:
        if isinstance(patch, StepPatch):
            values, edges, _ = patch.get_data()
            beneath = values[(edges[1:] > begin) & (edges[:-1] < end)]
            top = max(top, beneath.max(initial=0) / (box[1] - margin))
    ax.set_ylim(0, top)
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= full])  # no bar reaches into the added room


def variation(ax: Axes, runs: Sequence[Run], looks: Mapping[float, Look]) -> None:
    """Draw the loss variation against the training radius for every eps, with thin error bars of one std over examples.

    Points are means over test examples. Mean and std are computed for each run and averaged over seeds, as in Table 1;
    thick error bars are the std of the mean over seeds. Series are shifted horizontally so that their error bars do not
    overlap. All runs are of one setting.
    """
    frame = gather(runs, "lossvar", ["eps", "prob_variation"]).astype({"prob_variation": "float64"})
    each = frame.groupby(["eps", "ar", "seed"])["prob_variation"].agg(
        mean="mean", spread=lambda values: values.std(ddof=0)
    )
    unit = strength_axis.pixels_per_unit(runs[0])
    places = [ar * unit for ar in list_strengths(runs)]
    shift = min(0.12 * min(np.diff(places), default=1.0), 0.05 * (places[-1] - places[0] or 8))
    for index, (eps, look) in enumerate(looks.items()):
        if eps not in each.index:  # a radius of another data set
            continue
        over = each.loc[eps].groupby("ar").agg({"mean": ["mean", "std"], "spread": "mean"})
        x = over.index * unit + shift * (index - (len(looks) - 1) / 2)
        mean = over["mean", "mean"]
        ax.errorbar(x, mean, over["spread", "mean"], elinewidth=0.9, **look.marked)
        ax.errorbar(x, mean, over["mean", "std"].fillna(0), fmt="none", ecolor=look.color, elinewidth=3, capsize=0)
    ax.set(xlabel=strength_axis.LABEL, ylabel="loss variation\n(label's probability)")
    ax.set_ylim(bottom=0)


def layer_amplification(ax: Axes, frame: pd.DataFrame, looks: Mapping[int, Look]) -> None:
    """Draw mean and std over examples of every layer's |change of output| / |change of input|, at every strength.

    frame: rows of spread.parquet with ar and seed; layer 0, the margin, is left out. Bands are stds over seeds.
    """
    layers = frame[frame["layer"] > 0]
    for part, look in _by_strength(layers, looks):
        layer_lines(ax, part, "mean", mean_look(look))
        layer_lines(ax, part, "std", std_look(look))
    ax.set(xlabel="layer (input to output)", ylabel="‖δ out‖ / ‖δ in‖")
    if layers.empty:
        _say_that_no_layer_is_measured(ax)
    else:
        _make_logarithmic(ax)


def margin_change(ax: Axes, frame: pd.DataFrame, looks: Mapping[int, Look]) -> None:
    """Draw mean and std over examples of the change of the margin, with error bars of one std over seeds.

    frame: rows of layer 0 of spread.parquet.
    """
    parts = list(_by_strength(frame, looks))
    for index, (part, look) in enumerate(parts):
        shift = 0.36 * (index - (len(parts) - 1) / 2) / max(len(parts) - 1, 1)
        for place, kind in enumerate(KINDS):
            for column, one in (("mean", mean_look(look)), ("std", std_look(look))):
                values = part.loc[part["perturbation"] == kind, column].to_numpy()
                error = _std(values[:, None])
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
    ax.text(0.5, 0.5, "these networks have\nno layer that is measured", transform=ax.transAxes, ha="center", va="center")


def _start_at_zero(ax: Axes) -> None:
    """Start the vertical axis at 0, and leave room for markers at its upper end."""
    ax.set_ylim(0, 1.06 * ax.dataLim.y1)


def _make_logarithmic(ax: Axes) -> None:
    """Make the vertical axis logarithmic, because stds are far smaller than their means; ticks are plain numbers."""
    ax.set_yscale("log", nonpositive="clip")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _by_strength(frame: pd.DataFrame, looks: Mapping[int, Look]) -> Iterator[tuple[pd.DataFrame, Look]]:
    """Yield the rows of every strength in frame, with the look of the strength."""
    for ar, look in looks.items():
        part = frame[frame["ar"] == ar]
        if not part.empty:
            yield part, look


def _draw_band(ax: Axes, x: np.ndarray, curves: np.ndarray, look: Look) -> None:
    """Draw the mean over seeds of curves (seeds, points) with a band of one std."""
    mean, std = curves.mean(0), _std(curves)
    ax.plot(x, mean, **look.line)
    ax.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.15, linewidth=0)


def _std(values: np.ndarray) -> np.ndarray:
    """Return the std over the first axis with ddof 1, or 0 for a single row, which has no error bar."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

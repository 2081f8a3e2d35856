"""What one panel of a figure shows, of the runs of one setting. Bars and bands are std over seeds, with ddof 1."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from robreg.figures import style
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.runs.groups import strengths
from robreg.tables.study_tables import gather

KINDS = {"random": "random", "pgd": "PGD"}  # perturbations of spread.parquet
STRENGTH = "AR strength (1/255)"
_MARKED = 30  # layers up to which each has its marker
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
    low, high = min(0, ax.dataLim.y0), ax.dataLim.y1
    room = 0.05 * ((high - low) or 1)  # that no marker is cut
    ax.set_ylim(low - room, high + room)


def twins(ax: Axes, frame: pd.DataFrame, left: Mapping[str, Look], right: Mapping[str, Look], labels: str) -> Axes:
    """Draw losses against the left axis and errors against the right one, each axis in its lines' colour.

    labels: what they are, "gap" or "", said behind loss and error. Returns the right axis.
    """
    other = ax.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    metric(ax, frame, left, ylabel=f"loss{labels} (nats)")
    metric(other, frame, right, ylabel=f"error{labels} (% points)" if labels else "error (%)")
    for axis, color, side in ((ax, style.LOSS, "left"), (other, style.ERROR, "right")):
        axis.tick_params(axis="y", colors=color)
        axis.yaxis.label.set_color(color)
        axis.spines[side].set_color(color)
    return other


def spectra(ax: Axes, runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> None:
    """Draw the std of every layer's singular values at the strengths of compare: mean over seeds, band of one std.

    Of a setting that has neither strength, those that it has.
    """
    frame = gather(at(runs, compare), "svstd", ["layer", "std"])
    for part, look in _parts(frame, looks):
        layers(ax, part, "std", look)
    ax.set(xlabel="layer (input to output)", ylabel="std of singular values")
    _from_zero(ax)


def layers(ax: Axes, frame: pd.DataFrame, column: str, look: Look) -> None:
    """Draw a column of frame, with layer and seed, against the layer: mean over seeds, band of one std."""
    keywords = look.marked if frame["layer"].nunique() <= _MARKED else look.line
    sns.lineplot(frame, x="layer", y=column, errorbar="sd", ax=ax, err_kws={"linewidth": 0}, **keywords)
    ax.set_xlim(0.5, frame["layer"].max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def at(runs: Sequence[Run], compare: Sequence[int]) -> Sequence[Run]:
    """Choose the runs at the strengths of compare; all of them if there is none."""
    return [run for run in runs if run["ar"] in compare] or runs


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


def lower(ax: Axes, box: tuple[float, float, float, float], *, margin: float) -> None:
    """Raise the top of a panel of histograms until its bars stay below an inset's box and the margin for its labels.

    box: (left, bottom, width, height), and margin, in shares of the panel.
    """
    begin, end = (ax.get_xlim()[1] * share for share in (box[0] - margin, box[0] + box[2]))
    full, top = ax.get_ylim()[1], ax.get_ylim()[1]
    for patch in ax.patches:
        if isinstance(patch, StepPatch):
            values, edges, _ = patch.get_data()
            beneath = values[(edges[1:] > begin) & (edges[:-1] < end)]
            top = max(top, beneath.max(initial=0) / (box[1] - margin))
    ax.set_ylim(0, top)
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= full])  # no share is as large as the room above


def variation(ax: Axes, runs: Sequence[Run], looks: Mapping[float, Look]) -> None:
    """Draw the loss variation against AR for every eps: mean over test examples, thin bars of their std.

    Mean and std are a run's, averaged over seeds, as in Table 1; thick bars are the std over seeds of the mean. Series
    are moved sideways so that their bars can be told apart.
    """
    frame = gather(runs, "lossvar", ["eps", "variation"]).astype({"variation": "float64"})
    each = frame.groupby(["eps", "ar", "seed"])["variation"].agg(mean="mean", spread=lambda values: values.std(ddof=0))
    places = strengths(runs)
    shift = min(0.12 * min(np.diff(places), default=1.0), 0.05 * (places[-1] - places[0] or 8))
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


def passed(ax: Axes, frame: pd.DataFrame, looks: Mapping[int, Look]) -> None:
    """Draw mean and std over examples of the layers' |change of output| / |change of input|, at every strength.

    frame: rows of spread.parquet with ar and seed; layer 0, the margin, is left out. Bands are std over seeds.
    """
    for part, look in _parts(frame[frame["layer"] > 0], looks):
        layers(ax, part, "mean", solid(look))
        layers(ax, part, "std", std_look(look))
    ax.set(xlabel="layer (input to output)", ylabel="‖δ out‖ / ‖δ in‖")
    _logarithmic(ax)


def margin_change(ax: Axes, frame: pd.DataFrame, looks: Mapping[int, Look]) -> None:
    """Draw mean and std over examples of the margin's change, layer 0 of spread.parquet; bars of one std over seeds."""
    parts = list(_parts(frame, looks))
    for index, (part, look) in enumerate(parts):
        shift = 0.36 * (index - (len(parts) - 1) / 2) / max(len(parts) - 1, 1)
        for place, kind in enumerate(KINDS):
            for column, one in (("mean", solid(look)), ("std", std_look(look))):
                values = part.loc[part["perturbation"] == kind, column].to_numpy()
                error = _std(values[:, None])
                ax.errorbar(place + shift, values.mean(), error, elinewidth=1, **one.marked)
    ax.set(ylabel="|Δ margin| (logits)")
    ax.set(xticks=range(len(KINDS)), xticklabels=KINDS.values(), xlim=(-0.5, 1.5))
    _logarithmic(ax)


def solid(look: Look) -> Look:
    """Give a strength's mean over examples its look."""
    return replace(look, dashes="solid", marker="o", filled=True)


def std_look(look: Look) -> Look:
    """Give a strength's std over examples its look."""
    return replace(look, dashes=(0, (3, 1.5)), marker="s", filled=False)


def reference(ax: Axes, ar: float, value: float, label: str) -> Look:
    """Mark a published accuracy (percent) by a star where dotted lines meet; return its look for the legend."""
    look = Look(label, "#3d3d3d", (0, (1, 1.5)), "*")
    edge, _ = limits = ax.get_xlim()
    ax.plot([edge, ar, ar], [value, value, ax.get_ylim()[0]], linewidth=1, **look.line)
    ax.plot(ar, value, markersize=11, **look.marked)
    ax.set_xlim(limits)
    return look


def _from_zero(ax: Axes) -> None:
    """Let the vertical axis begin at 0, with room for markers at its upper end."""
    ax.set_ylim(0, 1.06 * ax.dataLim.y1)


def _logarithmic(ax: Axes) -> None:
    """Make the vertical axis logarithmic, for std that are far smaller than their means; ticks are plain numbers."""
    ax.set_yscale("log", nonpositive="clip")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


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

"""Plot a study's numbers against the paper's, with one panel per kind of quantity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from robreg.figures import style
from robreg.figures.style import Look
from robreg.paper.comparison import SCHEMA, compare
from robreg.paper.reference import MISPRINT
from robreg.runs.catalogue import Run
from robreg.tables import files
from robreg.tables.parquet import write_frame

PANELS = {  # title: prefixes of the names of the metrics shown, unit, whether the axes may be logarithmic
    "Accuracies": (("train_acc", "test_acc", "pgd_acc"), "%", False),
    "Losses": (("train_loss", "test_loss"), "nats", True),
    "Loss variation": (("probability_variation",), "probability", True),
    "Error gap": (("acc_gap",), "% points", False),
    "Loss gap": (("loss_gap",), "nats", False),
    "Std of singular values (B.2)": (("svstd",), "change, AR 4 to 16", False),
}
LINEAR_SPAN = 5  # axes are linear if max / min of the numbers is at most this factor
NOTHING_TO_COMPARE = "The paper prints no numbers for the networks of this study, so there is nothing to compare."
_RED = "#c00000"


def draw_comparison(frame: pd.DataFrame) -> Figure:
    """Draw comparison.parquet: our numbers (mean over seeds, error bars of one std) against the paper's.

    Equal numbers lie on the diagonal. Every data set of ours and perturbation space has its own colour and marker; a
    ring marks a suspected misprint of the paper.
    """
    ran = frame[frame["ours_mean"].notna()]
    if ran.empty:
        return _empty_comparison()
    panels = {title: _select_metrics(ran, metrics) for title, (metrics, _, _) in PANELS.items()}
    shown = [title for title, part in panels.items() if len(part)]
    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(style.WIDTH, 0.5 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, min(3, len(shown)), squeeze=False).flatten()
    looks = _choose_looks(ran)
    for ax, title in zip(axes, shown, strict=False):
        _draw_panel(ax, panels[title], looks, title)
    for ax in axes[len(shown) :]:
        ax.remove()
    ring = [Look(MISPRINT, _RED, "none", "o", filled=False)] if (ran["status"] == MISPRINT).any() else []
    style.legend(figure, [*looks.values(), *ring])
    return figure


def _draw_panel(ax: Axes, frame: pd.DataFrame, looks: Mapping[tuple[str, str], Look], title: str) -> None:
    _, unit, logarithmic = PANELS[title]
    for (dataset, space), look in looks.items():
        part = frame[(frame["run_dataset"] == dataset) & (frame["space"] == space)]
        error = part["ours_std"].fillna(0)
        ax.errorbar(part["paper"], part["ours_mean"], error, elinewidth=0.8, capsize=0, **look.marked)
    odd = frame[frame["status"] == MISPRINT]
    ax.scatter(odd["paper"], odd["ours_mean"], s=110, facecolors="none", edgecolors=_RED)
    both = pd.concat([frame["paper"], frame["ours_mean"]])
    _scale(ax, both, logarithmic=logarithmic and both.max() > LINEAR_SPAN * both.min() > 0)
    ax.plot(ax.get_xlim(), ax.get_xlim(), color="#9a9a9a", linewidth=0.9, zorder=0)  # the diagonal
    ax.set(title=title, xlabel=f"paper ({unit})", ylabel=f"ours ({unit})", box_aspect=1)


def _scale(ax: Axes, values: pd.Series, *, logarithmic: bool) -> None:
    """Set the same limits and ticks on both axes, with room for the markers."""
    low, high = values.min(), values.max()
    room = (high / low) ** 0.06 if logarithmic else 0.06 * (high - low or 1)
    limits = (low / room, high * room) if logarithmic else (low - room, high + room)
    scale = "log" if logarithmic else "linear"
    ax.set(xscale=scale, yscale=scale, xlim=limits, ylim=limits)
    decades = high / low > 100 if logarithmic else False
    for axis in (ax.xaxis, ax.yaxis):
        if logarithmic:
            axis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5), numticks=8))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(4))


def _choose_looks(frame: pd.DataFrame) -> dict[tuple[str, str], Look]:
    """Choose a colour and a marker for every data set; markers are filled for pixel space, else hollow."""
    keys = list(frame[["run_dataset", "space"]].drop_duplicates().itertuples(index=False, name=None))
    by_data = style.by_setting(list(dict.fromkeys(dataset for dataset, _ in keys)))
    return {
        (dataset, space): Look(
            dataset if space == "pixel" else f"{dataset}, {space} space",
            by_data[dataset].color,
            "none",
            by_data[dataset].marker,
            filled=space == "pixel",
        )
        for dataset, space in keys
    }


def _select_metrics(frame: pd.DataFrame, metrics: tuple[str, ...]) -> pd.DataFrame:
    return frame[frame["metric"].str.startswith(metrics)]


def _empty_comparison() -> Figure:
    figure = Figure(figsize=(style.WIDTH, 0.8), layout="constrained")
    figure.text(0.5, 0.5, NOTHING_TO_COMPARE, ha="center", va="center")
    return figure


def record(runs: Sequence[Run], *, study: str, parquet: Path, csv: Path, svg: Path, png: Path) -> None:
    """Write the comparison of a study as Parquet and CSV, and draw it. runs: as returned by config.study_runs."""
    table = pa.Table.from_pylist(compare(runs), SCHEMA)
    write_frame(parquet, table, {"study": study})
    frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    with files.atomic_write(csv) as file:
        frame.to_csv(file, index=False)
    with mpl.rc_context(style.THEME):
        style.save(draw_comparison(table.to_pandas()), svg, png)

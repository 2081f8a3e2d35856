"""Draw quantities of whole networks, one number per run, against the training strength."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from robreg.figures import strength_axis
from robreg.figures.grid import Section, Shared
from robreg.figures.lone import Panel
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.tables.study_tables import KEYS, gather


def read_metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run: KEYS, the columns of metrics.parquet as floats (NaN for null), both errors, and radius.

    radius: of training, in pixels (1/255).
    """
    frame = gather(runs, "metrics")
    numbers = frame.drop(columns=KEYS).astype("float64")
    errors = {f"{split}_error": 100 - numbers[f"{split}_acc"] for split in ("train", "test")}
    radius = [run["ar"] * strength_axis.pixels_per_unit(run) for run in runs]
    return frame[KEYS].join(numbers.assign(**errors, radius=radius))


def metric_section(
    heading: str, looks: Mapping[str, Look], ylabel: str, *, guests: Mapping[str, Look], shared: Shared = "none"
) -> Section:
    """Return a section that draws columns of metrics.parquet, the keys of looks, against the strength."""

    def fill(ax: Axes, panel: Panel) -> None:
        metric_lines(ax, read_metrics(panel.runs), looks, ylabel=ylabel)
        for label, members in panel.guests.items():
            metric_points(ax, read_metrics(members), looks, guests[label])

    return Section(heading, fill, list(looks.values()), height=1.9, shared=shared, over_strength=True)


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
    fit_vertical_range(ax)


def metric_points(ax: Axes, frame: pd.DataFrame, looks: Mapping[str, Look], guest: Look) -> None:
    """Draw columns of the runs of one strength as single points: mean over seeds, error bars of one std.

    guest: gives the marker and its colour; a marker is filled if that of its column is.
    """
    for name, look in looks.items():
        values = frame[name]
        if values.notna().all():
            face = guest.color if look.filled else "white"
            error = values.std(ddof=1) if len(values) > 1 else 0.0
            keywords = guest.marked | {"linestyle": "none", "markerfacecolor": face, "markersize": 9}
            ax.errorbar(frame["radius"].mean(), values.mean(), error, elinewidth=1, zorder=5, **keywords)
    fit_vertical_range(ax)


def fit_vertical_range(ax: Axes) -> None:
    """Start the vertical axis at 0, or below a negative value, and leave room so that no marker is cut off."""
    low, high = min(0, ax.dataLim.y0), ax.dataLim.y1
    room = 0.05 * ((high - low) or 1)
    ax.set_ylim(low - room, high + room)

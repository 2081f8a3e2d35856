"""Horizontal axes of training strengths, as radii in pixels, so that both perturbation spaces are in one unit."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from robreg.runs.catalogue import Run
from robreg.runs.groups import list_strengths
from robreg.runs.variant import split_spaces
from robreg.tables import parquet

LABEL = "AR: radius in pixels (1/255)"


def pixels_per_unit(run: Run) -> float:
    """Return the radius in pixels of a perturbation of radius 1 in the run's space.

    It is 1 in pixel space, and 1/2 in symmetric space. In normalised space, the radius is that of pixels divided by
    their channel's std: it differs between channels, and this is its mean, the mean of the stds. Raises ValueError if
    masking.parquet, which every figure depends on, does not state the stds.
    """
    space, _ = split_spaces(run["space"])
    if space != "normalised":
        return {"pixel": 1.0, "symmetric": 0.5}[space]
    path = Path(run["folder"]) / "masking.parquet"
    std = parquet.read_metadata(path).get("std")
    if not (isinstance(std, list) and std and all(isinstance(one, (int, float)) for one in std)):
        raise ValueError(f"{path} does not state the channels' standard deviations; delete it and make it again")
    return float(sum(std) / len(std))


def set_strengths(ax: Axes, runs: Sequence[Run]) -> None:
    """Label the horizontal axis, and place a tick at the strength of every run, at its radius in pixels.

    In another space than that of pixels, a tick names the strength, too. Runs of different data sets in normalised
    space have strengths at places that are close together, so the ticks are then at round radii.
    """
    ax.set_xlabel(LABEL)
    units = sorted({pixels_per_unit(run) for run in runs})
    if len(units) == 1:
        (unit,) = units
        places = list_strengths(runs)
        labels = [f"{ar}" if unit == 1 else f"{ar * unit:.2g}\n(AR {ar})" for ar in places]
        ax.set_xticks([ar * unit for ar in places], labels)


def limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the limits of an axis that shows the strengths of these runs, with room for markers."""
    places = sorted(run["ar"] * pixels_per_unit(run) for run in runs)
    room = 0.08 * (places[-1] - places[0] or 8)
    return places[0] - room, places[-1] + room

"""How a figure's panels are arranged: sections, each with a heading, a legend and one panel per setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from robreg.figures import style
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.runs.groups import strengths

Panels = list[list[Axes]]  # of every section, its panels in the order of the settings
_TITLE = 30  # letters of a panel's title that a third of the width has room for


@dataclass(frozen=True)
class Section:
    """draw fills the panel of one setting, and returns the panel's right axis if it makes one.

    looks: of its legend; height: of a row of panels, in inches; wide: one panel fills the width; shared: all panels
    have the same vertical ranges; over_strength: the horizontal axis is the AR strength, and the same for all panels.
    """

    heading: str
    draw: Callable[[Axes, Sequence[Run]], Axes | None]
    looks: Sequence[Look] = ()
    height: float = 2.1
    wide: bool = False
    shared: bool = False
    over_strength: bool = False


def arrange(
    settings: Mapping[str, Sequence[Run]], rows: Sequence[Sequence[Section]], looks: Sequence[Look] = ()
) -> tuple[Figure, Panels]:
    """Arrange sections below one another, under a legend of looks.

    If there is but one setting, sections of one row stand side by side, under one legend that bears its name.
    """
    alone = len(settings) == 1
    lines = rows if alone else [[section] for row in rows for section in row]
    heights = [max(_height(section, settings) for section in line) for line in lines]
    figure = Figure(figsize=(style.WIDTH, sum(heights) + 0.3 + 0.2 * alone), layout="constrained")
    panels = []
    for part, line in zip(_column(figure, heights), lines, strict=True):
        for place, section in zip(_row(part, len(line)), line, strict=True):
            panels.append(_fill(place, section, settings))
    if alone:
        own = [look for line in lines for section in line for look in section.looks]
        style.legend(figure, [*looks, *own], title=next(iter(settings)))
    elif looks:
        style.legend(figure, looks)
    return figure, panels


def share(panels: Sequence[Axes]) -> None:
    """Give panels the same vertical range."""
    bottom, top = min(ax.get_ylim()[0] for ax in panels), max(ax.get_ylim()[1] for ax in panels)
    for ax in panels:
        ax.set_ylim(bottom, top)


def columns(section: Section, settings: Mapping[str, Sequence[Run]]) -> int:
    """Say how many panels stand side by side: at most three; two if a title is long, or if there are four."""
    count = len(settings)
    if section.wide:
        return 1
    narrow = count != 4 and max(map(len, settings)) <= _TITLE
    return min(count, 3 if narrow else 2)


def _height(section: Section, settings: Mapping[str, Sequence[Run]]) -> float:
    """In inches, with heading and legend."""
    return section.height * -(-len(settings) // columns(section, settings)) + 0.25 + 0.25 * bool(section.looks)


def _column(figure: Figure, heights: Sequence[float]) -> list[SubFigure]:
    return list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel())


def _row(part: SubFigure, count: int) -> list[SubFigure]:
    return list(part.subfigures(1, count, squeeze=False).ravel())


def _fill(part: SubFigure, section: Section, settings: Mapping[str, Sequence[Run]]) -> list[Axes]:
    """Draw a section's panels. Labels that neighbours share stand once, at the outer panels."""
    across = columns(section, settings)
    axes = part.subplots(-(-len(settings) // across), across, squeeze=False).ravel()
    for ax in axes[len(settings) :]:
        ax.remove()
    panels = list(axes[: len(settings)])
    right = []
    for index, (ax, (name, members)) in enumerate(zip(panels, settings.items(), strict=True)):
        twin = section.draw(ax, members)
        ax.set_title(name if len(settings) > 1 else "")
        if index % across:
            ax.set_ylabel("")
        if twin is not None:
            right.append(twin)
            if index % across < across - 1 and index < len(panels) - 1:
                twin.set_ylabel("")
    if section.shared:
        share(panels)
        share(right or panels)
    if section.over_strength:
        _share_strengths(panels, [run for members in settings.values() for run in members])
    part.suptitle(section.heading, x=0.008, ha="left", fontsize=9, fontweight="bold")
    if section.looks and len(settings) > 1:
        style.legend(part, section.looks, right=True)
    return panels


def _share_strengths(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    places = strengths(runs)
    room = 0.08 * (places[-1] - places[0] or 8)
    for ax in panels:
        ax.set(xticks=places, xlim=(places[0] - room, places[-1] + room))

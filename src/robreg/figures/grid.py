"""Arrange the panels of a figure in sections, each with a heading, a legend and one panel per setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from robreg.figures import strength_axis, style
from robreg.figures.style import Look
from robreg.runs.catalogue import Run

Panels = list[list[Axes]]  # per section, its panels in the order of the settings
Shared = Literal["none", "data set", "all"]
_LONGEST_TITLE = {3: 30, 2: 45}  # the longest title, in letters, that fits a panel, by the number of panels in a row


@dataclass(frozen=True)
class Section:
    """A section of a figure, with one panel per setting.

    draw: fills the panel of one setting, and returns the panel's right axis if it makes one; looks: entries of the
    legend; height: of a row of panels, in inches; across: the most panels in a row; shared: which panels
    have the same vertical ranges, none, those of one data set, or all; over_strength: whether the horizontal axis is
    the AR strength, in which case it is the same for all panels in which a strength is the same radius in pixels.
    """

    heading: str
    draw: Callable[[Axes, Sequence[Run]], Axes | None]
    looks: Sequence[Look] = ()
    height: float = 2.1
    across: int = 3
    shared: Shared = "none"
    over_strength: bool = False


def arrange(
    settings: Mapping[str, Sequence[Run]], rows: Sequence[Sequence[Section]], looks: Sequence[Look] = ()
) -> tuple[Figure, Panels]:
    """Arrange sections below each other, under a legend of looks. Returns the figure and its panels.

    If there is only one setting, the sections of a row are side by side, under one legend with the setting's name.
    """
    alone = len(settings) == 1
    lines = rows if alone else [[section] for row in rows for section in row]
    heights = [max(_height(section, settings) for section in line) for line in lines]
    figure = Figure(figsize=(style.WIDTH, sum(heights) + 0.3 + 0.2 * alone), layout="constrained")
    panels = []
    for part, line in zip(_stack_rows(figure, heights), lines, strict=True):
        for place, section in zip(_split_row(part, len(line)), line, strict=True):
            panels.append(_draw_section(place, section, settings))
    if alone:
        own = [look for line in lines for section in line for look in section.looks]
        style.legend(figure, [*looks, *own], title=next(iter(settings)))
    elif looks:
        style.legend(figure, looks)
    return figure, panels


def share_vertical_range(panels: Sequence[Axes]) -> None:
    """Set the same vertical range on all panels."""
    bottom, top = min(ax.get_ylim()[0] for ax in panels), max(ax.get_ylim()[1] for ax in panels)
    for ax in panels:
        ax.set_ylim(bottom, top)


def panels_per_row(section: Section, settings: Mapping[str, Sequence[Run]]) -> int:
    """Return how many panels are side by side: two if there are four, and fewer if titles are long."""
    longest, most = max(map(len, settings)), min(section.across, 2 if len(settings) == 4 else 3)
    fitting = (across for across, letters in _LONGEST_TITLE.items() if across <= most and longest <= letters)
    return min(len(settings), next(fitting, 1))


def _height(section: Section, settings: Mapping[str, Sequence[Run]]) -> float:
    """Return the height of a section in inches, including its heading and legend."""
    return section.height * -(-len(settings) // panels_per_row(section, settings)) + 0.25 + 0.25 * bool(section.looks)


def _stack_rows(figure: Figure, heights: Sequence[float]) -> list[SubFigure]:
    return list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel())


def _split_row(part: SubFigure, count: int) -> list[SubFigure]:
    return list(part.subfigures(1, count, squeeze=False).ravel())


def _draw_section(part: SubFigure, section: Section, settings: Mapping[str, Sequence[Run]]) -> list[Axes]:
    """Draw a section's panels. Labels of vertical axes are shown only at the outer panels."""
    across = panels_per_row(section, settings)
    axes = part.subplots(-(-len(settings) // across), across, squeeze=False).ravel()
    for ax in axes[len(settings) :]:
        ax.remove()
    panels = list(axes[: len(settings)])
    right = list[Axes]()
    for index, (ax, (name, members)) in enumerate(zip(panels, settings.items(), strict=True)):
        twin = section.draw(ax, members)
        ax.set_title(name if len(settings) > 1 else "")
        if index % across:
            ax.set_ylabel("")
        if twin is not None:
            right.append(twin)
            if index % across < across - 1 and index < len(panels) - 1:
                twin.set_ylabel("")
    for alike in _panels_to_share(section.shared, list(settings.values())):
        share_vertical_range([panels[index] for index in alike])
        share_vertical_range([(right or panels)[index] for index in alike])
    if section.over_strength:
        _share_strengths(panels, list(settings.values()))
    part.suptitle(section.heading, x=0.008, ha="left", fontsize=9, fontweight="bold")
    if section.looks and len(settings) > 1:
        style.legend(part, section.looks, right=True)
    return panels


def _panels_to_share(shared: Shared, settings: Sequence[Sequence[Run]]) -> list[list[int]]:
    """List the panels, by their index, that have the same vertical ranges."""
    groups: dict[str, list[int]] = {}
    for index, members in enumerate(settings):
        groups.setdefault("" if shared == "all" else members[0]["dataset"], []).append(index)
    return [] if shared == "none" else list(groups.values())


def _share_strengths(panels: Sequence[Axes], settings: Sequence[Sequence[Run]]) -> None:
    """Give panels whose strengths are the same radii in pixels the same ticks and limits."""
    units = [strength_axis.pixels_per_unit(members[0]) for members in settings]
    for ax, unit in zip(panels, units, strict=True):
        alike = [run for members, other in zip(settings, units, strict=True) if other == unit for run in members]
        strength_axis.set_strengths(ax, alike)
        ax.set_xlim(strength_axis.limits(alike))

"""Arrange the panels of a figure in sections, each with a heading, a legend and one panel per setting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from robreg.figures import strength_axis, style
from robreg.figures.lone import Panel
from robreg.figures.style import Look

Shared = Literal["none", "data set", "all"]
_LONGEST_TITLE = {3: 30, 2: 45}  # the longest title, in letters, that fits a panel, by the number of panels in a row


@dataclass(frozen=True)
class Section:
    """A section of a figure, with one panel per setting.

    draw: fills a panel; looks: entries of the legend; height: of a row of panels, in inches; across: the most panels in
    a row; shared: which panels have the same vertical ranges, none, those of one data set, or all; over_strength:
    whether the horizontal axis is the AR strength, in which case it is the same for all panels in which a strength is
    the same radius in pixels.
    """

    heading: str
    draw: Callable[[Axes, Panel], None]
    looks: Sequence[Look] = ()
    height: float = 2.1
    across: int = 3
    shared: Shared = "none"
    over_strength: bool = False


def arrange(
    panels: Sequence[Panel], rows: Sequence[Sequence[Section]], looks: Sequence[Look] = ()
) -> tuple[Figure, list[list[Axes]]]:
    """Arrange sections below each other, under a legend of looks. Returns the figure and, per section, its axes.

    If there is only one panel, the sections of a row are side by side, under one legend with the panel's name.
    """
    alone = len(panels) == 1
    lines = rows if alone else [[section] for row in rows for section in row]
    heights = [max(_height(section, panels) for section in line) for line in lines]
    own = dict.fromkeys(look for line in lines for section in line for look in section.looks) if alone else ()
    every = [*looks, *own]
    above = style.legend_height(every) + 0.15 + 0.2 * alone
    figure = Figure(figsize=(style.WIDTH, sum(heights) + above), layout="constrained")
    drawn = []
    for part, line in zip(_stack_rows(figure, heights), lines, strict=True):
        for place, section in zip(_split_row(part, len(line)), line, strict=True):
            drawn.append(_draw_section(place, section, panels))
    if every:
        style.legend(figure, every, title=panels[0].name if alone else None)
    return figure, drawn


def share_vertical_range(panels: Sequence[Axes]) -> None:
    """Set the same vertical range on all panels that show data."""
    filled = [ax for ax in panels if ax.has_data()]
    ranges = [ax.get_ylim() for ax in filled]
    for ax in filled:
        ax.set_ylim(min(bottom for bottom, _ in ranges), max(top for _, top in ranges))


def panels_per_row(section: Section, panels: Sequence[Panel]) -> int:
    """Return how many panels are side by side: two if there are four, and fewer if titles are long."""
    longest, most = max(len(panel.name) for panel in panels), min(section.across, 2 if len(panels) == 4 else 3)
    fitting = (across for across, letters in _LONGEST_TITLE.items() if across <= most and longest <= letters)
    return min(len(panels), next(fitting, 1))


def _height(section: Section, panels: Sequence[Panel]) -> float:
    """Return the height of a section in inches, including its heading and legend."""
    return section.height * -(-len(panels) // panels_per_row(section, panels)) + 0.25 + 0.25 * bool(section.looks)


def _stack_rows(figure: Figure, heights: Sequence[float]) -> list[SubFigure]:
    return list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel())


def _split_row(part: SubFigure, count: int) -> list[SubFigure]:
    return list(part.subfigures(1, count, squeeze=False).ravel())


def _draw_section(part: SubFigure, section: Section, panels: Sequence[Panel]) -> list[Axes]:
    """Draw a section's panels. Labels of vertical axes are shown only at the outer panels."""
    across = panels_per_row(section, panels)
    axes = part.subplots(-(-len(panels) // across), across, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    drawn = list(axes[: len(panels)])
    for index, (ax, panel) in enumerate(zip(drawn, panels, strict=True)):
        section.draw(ax, panel)
        ax.set_title(panel.name if len(panels) > 1 else "")
        if index % across:
            ax.set_ylabel("")
    for alike in _panels_to_share(section.shared, panels):
        share_vertical_range([drawn[index] for index in alike])
    if section.over_strength:
        _share_strengths(drawn, panels)
    part.suptitle(section.heading, x=0.008, ha="left", fontsize=9, fontweight="bold")
    if section.looks and len(panels) > 1:
        style.legend(part, section.looks, right=True)
    return drawn


def _panels_to_share(shared: Shared, panels: Sequence[Panel]) -> list[list[int]]:
    """List the panels, by their index, that have the same vertical ranges."""
    groups: dict[str, list[int]] = {}
    for index, panel in enumerate(panels):
        groups.setdefault("" if shared == "all" else panel.runs[0]["dataset"], []).append(index)
    return [] if shared == "none" else list(groups.values())


def _share_strengths(drawn: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Give panels whose strengths are the same radii in pixels the same ticks and limits."""
    units = [strength_axis.pixels_per_unit(panel.runs[0]) for panel in panels]
    for ax, unit in zip(drawn, units, strict=True):
        alike = [panel for panel, other in zip(panels, units, strict=True) if other == unit]
        strength_axis.set_strengths(ax, [run for panel in alike for run in panel.runs])
        ax.set_xlim(strength_axis.limits([run for panel in alike for run in panel.everyone]))

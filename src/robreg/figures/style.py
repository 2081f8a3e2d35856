"""The look of figures: sizes, colours and markers; and reproducible files, bit-identical when drawn again."""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from robreg.tables.files import atomic_write

WIDTH = 7.2  # inches, of every figure; text is 9 pt, and at least 8 pt
DPI = 200
THEME: dict[Any, Any] = {  # Any, because the type stubs of matplotlib list every key as a literal
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # is part of matplotlib; an SVG also names the generic family
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "svg.fonttype": "none",  # keep text as text
    "text.parse_math": False,  # a dollar sign in a label is not mathematics
    "svg.hashsalt": "robreg",
}
_HANDLE_WIDTH, _LETTER_WIDTH = 0.56, 0.078  # approximate widths of a legend's handle and of a letter, in inches
_DASHES = ("solid", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (2.2, 1.2)), (0, (5, 1.2, 1, 1.2, 1, 1.2)))
# The name that matplotlib gives a clip path.
_CLIP_PATH = re.compile(r"(?:(?<=url\(#)|(?<=<clipPath id=\"))p[0-9a-f]{10}(?=[)\"])")
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class Look:
    """The look of a series: its name in the legend, colour, dashes, marker, and whether the marker is filled."""

    label: str
    color: str
    dashes: Any = "solid"
    marker: str = "o"
    filled: bool = True

    @property
    def line(self) -> dict[str, Any]:
        """The keyword arguments for a line without markers."""
        return {"color": self.color, "linestyle": self.dashes}

    @property
    def marked(self) -> dict[str, Any]:
        """The keyword arguments for a line with markers."""
        face = self.color if self.filled else "white"
        return {**self.line, "marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.color}


LOSS, ERROR = "#0060a8", "#c04a00"  # of lines and their axes; distinguishable for colour-blind readers and in greyscale
_PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")  # based on that of Okabe and Ito

_GUESTS = ("#c2006b", "#b85c00", "#5b3fb0")  # none of them is near a colour of a strength


def by_strength(strengths: Sequence[int]) -> dict[int, Look]:
    """Choose a look for every strength (1/255): stronger is darker; AR 0, standard training, is grey and dotted.

    The colour of a strength depends on which other strengths the figure shows.
    """
    positive = sorted({strength for strength in strengths if strength}, reverse=True)  # so that the strongest is solid
    shades = _choose_shades("viridis", len(positive), dark=0.05, light=0.72)
    looks = {
        ar: _make_look(f"AR {ar}", shade, index) for index, (ar, shade) in enumerate(zip(positive, shades, strict=True))
    }
    if 0 in strengths:
        looks[0] = Look("AR 0", "#8a8a8a", (0, (1, 1.1)), "o", filled=False)
    return dict(sorted(looks.items()))


def by_radius(radii: Sequence[float], unit: str) -> dict[float, Look]:
    """Choose a look for every radius of a loss variation, from another colour map than the strengths'.

    unit: what follows "/255" in the legend.
    """
    ordered = sorted(set(radii), reverse=True)
    shades = _choose_shades("inferno", len(ordered), dark=0.2, light=0.72)
    looks = [
        _make_look(f"radius {eps:g}/255{unit}", shade, index)
        for index, (eps, shade) in enumerate(zip(ordered, shades, strict=True))
    ]
    return dict(sorted(zip(ordered, looks, strict=True)))


def by_setting(names: Sequence[str]) -> dict[str, Look]:
    """Choose a look for every setting in a panel that shows them all; colours repeat after six, dashes after five."""
    return {name: _make_look(name, _PALETTE[index % len(_PALETTE)], index) for index, name in enumerate(names)}


def by_guest(labels: Sequence[str]) -> dict[str, Look]:
    """Choose a look for every setting that is a single point in the panel of another one, by its label."""
    return {
        label: Look(label, _GUESTS[index % len(_GUESTS)], (0, (3, 1, 1, 1)), "P*X"[index % 3])
        for index, label in enumerate(labels)
    }


def legend_height(looks: Sequence[Look]) -> float:
    """Return the height of a legend over the full width of a figure, in inches."""
    return 0.17 * -(-len(looks) // _count_columns(_entry_widths(looks), WIDTH)) if looks else 0.0


def legend(figure: Figure | SubFigure, looks: Sequence[Look], *, title: str | None = None, right: bool = False) -> None:
    """Add a legend above a figure's panels, so that it never covers data, in as few rows as the width allows."""
    handles = [Line2D([], [], label=look.label, **look.marked) for look in looks]
    columns = _count_columns(_entry_widths(looks), figure.bbox.width / figure.dpi)
    figure.legend(
        handles=handles,
        loc="outside upper right" if right else "outside upper center",
        ncols=columns,
        title=title,
        title_fontproperties={"weight": "bold"},
        columnspacing=1.4,
    )


def add_warning(figure: Figure, text: str) -> None:
    """Write a warning at the bottom of a figure with a constrained layout, and enlarge the figure accordingly."""
    lines = textwrap.wrap(text, 110)
    width, height = figure.get_size_inches()
    room = 0.16 * len(lines) + 0.06  # inches
    figure.set_size_inches(width, height + room)
    figure.set_layout_engine("constrained", rect=(0, room / (height + room), 1, height / (height + room)))
    figure.text(0.008, 0.04 / (height + room), "\n".join(lines), color=ERROR, fontsize=8, va="bottom")


def save(figure: Figure, svg: Path, png: Path) -> None:
    """Write a figure as SVG (with text as text) and PNG (200 dpi), both without dates."""
    with mpl.rc_context(THEME):
        figure.draw_without_rendering()  # with axes of a fixed shape, the layout is final only in the second drawing
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        with atomic_write(svg) as file:
            file.write(_number_clip_paths(drawn.getvalue()).encode())
        with atomic_write(png) as file:
            figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def _number_clip_paths(svg: str) -> str:
    """Number the clip paths of an SVG, which matplotlib names by a hash of their bounds.

    The last bits of a layout, which are not written to the file, differ between processes and would change the hashes.
    """
    numbers = {name: f"clip{index}" for index, name in enumerate(dict.fromkeys(_CLIP_PATH.findall(svg)))}
    return _CLIP_PATH.sub(lambda match: numbers[match[0]], svg)


def _entry_widths(looks: Sequence[Look]) -> list[float]:
    return [_HANDLE_WIDTH + _LETTER_WIDTH * len(look.label) for look in looks]


def _count_columns(widths: Sequence[float], available: float) -> int:
    """Return the number of columns for entries of these widths (inches), so that rows have about equal length."""
    if sum(widths) <= available:
        return len(widths)
    most = max(1, int(available / max(widths)))
    rows = -(-len(widths) // most)
    return -(-len(widths) // rows)


def _make_look(label: str, color: str, index: int) -> Look:
    return Look(label, color, _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)])


def _choose_shades(name: str, count: int, *, dark: float, light: float) -> list[str]:
    """Return count colours of a perceptually uniform colour map, from dark to light."""
    step = (light - dark) / max(count - 1, 1)
    return [mpl.colors.to_hex(mpl.colormaps[name](dark + step * index)) for index in range(count)]

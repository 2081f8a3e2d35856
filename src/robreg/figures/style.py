"""How figures look: sizes, one scale of colours for the AR strength, and files that are equal when drawn again."""

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

WIDTH = 7.2  # inches, of every figure; text is 9 pt, and never below 8
DPI = 200
THEME: dict[Any, Any] = {  # matplotlib's stubs list every key as a literal
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; an SVG also names the generic family
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
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # and a dollar in the user's a dollar
    "svg.hashsalt": "robreg",
}
_HANDLE, _LETTER = 0.56, 0.078  # inches that a legend's handle and a letter of its text take, about
_DASHES = ("solid", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (2.2, 1.2)), (0, (5, 1.2, 1, 1.2, 1, 1.2)))
_CLIP = re.compile(r"(?:(?<=url\(#)|(?<=<clipPath id=\"))p[0-9a-f]{10}(?=[)\"])")  # matplotlib's name of a clip path
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class Look:
    """A series: its name in the legend, colour, dashes, marker, and whether the marker is filled."""

    label: str
    color: str
    dashes: Any = "solid"
    marker: str = "o"
    filled: bool = True

    @property
    def line(self) -> dict[str, Any]:
        """Keywords for a line without markers."""
        return {"color": self.color, "linestyle": self.dashes}

    @property
    def marked(self) -> dict[str, Any]:
        """Keywords for a line with markers."""
        face = self.color if self.filled else "white"
        return {**self.line, "marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.color}


LOSS, ERROR = "#0060a8", "#c04a00"  # of lines and of their axes; told apart by colour-blind readers and in grey
_SETTINGS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")  # after Okabe and Ito


def by_strength(strengths: Sequence[int]) -> dict[int, Look]:
    """Give every strength (1/255) its look: the stronger the darker; AR 0, standard training, is grey and dotted."""
    positive = sorted({strength for strength in strengths if strength}, reverse=True)  # the strongest is solid
    shades = _shades("viridis", len(positive), dark=0.05, light=0.72)
    looks = {
        ar: _look(f"AR {ar}", shade, index) for index, (ar, shade) in enumerate(zip(positive, shades, strict=True))
    }
    if 0 in strengths:
        looks[0] = Look("AR 0", "#8a8a8a", (0, (1, 1.1)), "o", filled=False)
    return dict(sorted(looks.items()))


def by_radius(radii: Sequence[float]) -> dict[float, Look]:
    """Give every radius (1/255) of a loss variation its look, on another scale of colours than the strengths'."""
    ordered = sorted(set(radii), reverse=True)
    shades = _shades("inferno", len(ordered), dark=0.2, light=0.72)
    looks = [
        _look(f"radius {eps:g}/255", shade, index)
        for index, (eps, shade) in enumerate(zip(ordered, shades, strict=True))
    ]
    return dict(sorted(zip(ordered, looks, strict=True)))


def by_setting(names: Sequence[str]) -> dict[str, Look]:
    """Give every setting its look, where one panel shows them all; colours come again after six, dashes after five."""
    return {name: _look(name, _SETTINGS[index % len(_SETTINGS)], index) for index, name in enumerate(names)}


def legend(figure: Figure | SubFigure, looks: Sequence[Look], *, title: str | None = None, right: bool = False) -> None:
    """Put a legend above a figure's panels, never over data, in as few rows as its width allows."""
    handles = [Line2D([], [], label=look.label, **look.marked) for look in looks]
    columns = _columns([_HANDLE + _LETTER * len(look.label) for look in looks], figure.bbox.width / figure.dpi)
    figure.legend(
        handles=handles,
        loc="outside upper right" if right else "outside upper center",
        ncols=columns,
        title=title,
        title_fontproperties={"weight": "bold"},
        columnspacing=1.4,
    )


def warn(figure: Figure, text: str) -> None:
    """Write a warning below everything else in a figure with a constrained layout, which gets room for it."""
    lines = textwrap.wrap(text, 110)
    width, height = figure.get_size_inches()
    room = 0.16 * len(lines) + 0.06  # inches
    figure.set_size_inches(width, height + room)
    figure.set_layout_engine("constrained", rect=(0, room / (height + room), 1, height / (height + room)))
    figure.text(0.008, 0.04 / (height + room), "\n".join(lines), color=ERROR, fontsize=8, va="bottom")


def save(figure: Figure, svg: Path, png: Path) -> None:
    """Write a figure as SVG (text as text) and PNG (200 dpi), both without dates."""
    with mpl.rc_context(THEME):
        figure.draw_without_rendering()  # around axes of a fixed shape the layout settles with the second drawing only
        with atomic_write(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
            temporary.write_text(_numbered(temporary.read_text(encoding="utf-8")), encoding="utf-8")
        with atomic_write(png) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def _numbered(svg: str) -> str:
    """Number an SVG's clip paths instead of naming them by a hash of their bounds.

    A layout's last bits, below what the file says of them, differ from one process to another.
    """
    numbers = {name: f"clip{index}" for index, name in enumerate(dict.fromkeys(_CLIP.findall(svg)))}
    return _CLIP.sub(lambda found: numbers[found[0]], svg)


def _columns(widths: Sequence[float], available: float) -> int:
    """How many columns entries of these widths (inches) can have, in rows of about equal length."""
    if sum(widths) <= available:
        return len(widths)
    most = max(1, int(available / max(widths)))
    rows = -(-len(widths) // most)
    return -(-len(widths) // rows)


def _look(label: str, color: str, index: int) -> Look:
    return Look(label, color, _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)])


def _shades(name: str, count: int, *, dark: float, light: float) -> list[str]:
    """Take count colours of a perceptually uniform map, from dark to light."""
    step = (light - dark) / max(count - 1, 1)
    return [mpl.colors.to_hex(mpl.colormaps[name](dark + step * index)) for index in range(count)]

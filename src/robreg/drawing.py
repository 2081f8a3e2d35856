"""The pictures of a page: figures as data URIs, and the workflow's rules as a drawing."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whose files each rule reads, without what others imply; a test holds this against Snakemake's own graph.
READS: Mapping[str, tuple[str, ...]] = {
    "prepare": (),
    "train": ("prepare",),
    "margins": ("train",),
    "sv": ("train",),
    "apgd": ("margins",),
    "spread": ("train",),
    "lossvar": ("margins",),
    "theory": ("margins", "sv"),
    "attacks": ("apgd",),
    "masking": ("apgd",),
    "metrics": ("sv", "attacks"),
    "checks": ("metrics", "lossvar", "masking"),
    "table": ("metrics", "lossvar", "theory", "masking"),
    "figure": ("metrics", "lossvar", "spread", "masking"),
    "claims": ("metrics", "lossvar", "spread"),
    "comparison": ("metrics", "lossvar"),
    "audit": ("checks", "table", "claims"),
    "report": ("figure", "comparison", "audit"),
}
_WIDTH, _ROW, _HEIGHT, _GAP = 360.0, 58.0, 26.0, 6.0  # CSS pixels: legible on a phone without being scaled
_CHARACTER = 6.6  # of the 12 px font, and some air
_LARGE, _ALL = 1_500_000, 13_000_000  # bytes of one SVG, and of all figures of a page as base64


@dataclass(frozen=True)
class Embedded:
    """A figure in a page. raster: the PNG stands for an SVG that is too large."""

    name: str
    uri: str
    raster: bool


def embed(figures: Sequence[Path]) -> dict[str, Embedded]:
    """Embed SVG files, by their stem. Beside each stands a PNG of the same name."""
    raster = {path for path in figures if path.stat().st_size > _LARGE}
    for path in sorted(figures, key=lambda path: path.stat().st_size, reverse=True):
        if _encoded(figures, raster) <= _ALL:
            break
        raster.add(path)
    return {path.stem: _embed(path, raster=path in raster) for path in figures}


def _encoded(figures: Sequence[Path], raster: set[Path]) -> float:
    """Bytes of all figures as base64."""
    return sum((path.with_suffix(".png") if path in raster else path).stat().st_size for path in figures) * 4 / 3


def _embed(path: Path, *, raster: bool) -> Embedded:
    source, kind = (path.with_suffix(".png"), "png") if raster else (path, "svg+xml")
    return Embedded(
        name=path.stem,
        uri=f"data:image/{kind};base64,{base64.b64encode(source.read_bytes()).decode()}",
        raster=raster,
    )


def rules() -> dict[str, Any]:
    """Lay the graph of rules out from top to bottom.

    Returns width and height; boxes: name, x, y (centre), width, height; arrows: SVG paths.
    """
    rows: dict[int, list[str]] = {}
    for name in READS:
        rows.setdefault(_depth(name), []).append(name)
    boxes = {name: box for depth, names in rows.items() for name, box in _row(names, depth).items()}
    arrows = [_arrow(boxes[source], boxes[name]) for name, sources in READS.items() for source in sources]
    height = (max(rows) + 1) * _ROW - (_ROW - _HEIGHT) + 2 * _GAP
    return {"width": _WIDTH, "height": height, "boxes": list(boxes.values()), "arrows": arrows}


def _depth(name: str) -> int:
    """The longest way from the data to a rule."""
    return 1 + max(map(_depth, READS[name]), default=-1)


def _row(names: list[str], depth: int) -> dict[str, dict[str, Any]]:
    """Spread boxes evenly over one row."""
    widths = {name: len(name) * _CHARACTER + 12 for name in names}
    space = (_WIDTH - sum(widths.values())) / (len(names) + 1)
    left, boxes = 0.0, {}
    for name, width in widths.items():
        left += space
        centre = {"x": round(left + width / 2, 1), "y": depth * _ROW + _GAP + _HEIGHT / 2}
        boxes[name] = {"name": name, "width": round(width, 1), "height": _HEIGHT} | centre
        left += width
    return boxes


def _arrow(start: Mapping[str, Any], end: Mapping[str, Any]) -> str:
    """A curve from the lower edge of one box to the upper edge of another."""
    top, bottom = start["y"] + _HEIGHT / 2, end["y"] - _HEIGHT / 2
    bend = (bottom - top) / 2
    return f"M{start['x']} {top:g} C{start['x']} {top + bend:g} {end['x']} {bottom - bend:g} {end['x']} {bottom - 4:g}"

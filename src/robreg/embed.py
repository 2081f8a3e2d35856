"""Figures inside a page: every SVG as a data URI, and its PNG instead where the page would grow too large."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LARGE, _ALL = 1_500_000, 13_000_000  # bytes of one SVG, and of all figures of a page as base64
_NARROW = 380  # CSS pixels: a figure that a phone shows unscaled
_PX_PER_PT = 96 / 72


@dataclass(frozen=True)
class Embedded:
    """A figure in a page. narrow: a phone shows it unscaled; raster: the PNG stands for an SVG that is too large."""

    name: str
    uri: str
    narrow: bool
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
    width = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', path.read_bytes()[:4096])
    source, kind = (path.with_suffix(".png"), "png") if raster else (path, "svg+xml")
    return Embedded(
        name=path.stem,
        uri=f"data:image/{kind};base64,{base64.b64encode(source.read_bytes()).decode()}",
        narrow=width is not None and float(width[1]) * _PX_PER_PT < _NARROW,
        raster=raster,
    )

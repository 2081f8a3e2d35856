"""Figures as data URIs, for a page that opens offline."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

"""Embed figures in a page as data URIs, so that the page opens offline."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LARGE = 1_500_000  # bytes; an SVG larger than this is replaced by its PNG
_ALL = 13_000_000  # bytes of all figures of a page in base64, at most


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure embedded in a page. raster: whether it is the PNG because the SVG is too large."""

    name: str
    uri: str
    raster: bool


def embed_figures(figures: Sequence[Path]) -> dict[str, EmbeddedFigure]:
    """Embed SVG files and return them by their stem; the PNG of the same name must be in the same folder.

    SVG files that are too large, on their own or together (the largest first), are replaced by their PNG files. Raises
    ValueError if these are too large, too, before any is read.
    """
    raster = {path for path in figures if path.stat().st_size > _LARGE}
    for path in sorted(figures, key=lambda path: path.stat().st_size, reverse=True):
        if _encoded(figures, raster) <= _ALL:
            break
        raster.add(path)
    if (size := _encoded(figures, raster)) > _ALL:
        names = ", ".join(path.name for path in figures)
        raise ValueError(f"{names} need {size:,.0f} bytes even as PNG, but the limit is {_ALL:,}; list fewer figures")
    return {path.stem: _embed(path, raster=path in raster) for path in figures}


def _encoded(figures: Sequence[Path], raster: set[Path]) -> float:
    """Return the size of all figures in base64, in bytes."""
    return sum((path.with_suffix(".png") if path in raster else path).stat().st_size for path in figures) * 4 / 3


def _embed(path: Path, *, raster: bool) -> EmbeddedFigure:
    """Encode one figure, as SVG or, if raster, as PNG."""
    source, kind = (path.with_suffix(".png"), "png") if raster else (path, "svg+xml")
    return EmbeddedFigure(
        name=path.stem,
        uri=f"data:image/{kind};base64,{base64.b64encode(source.read_bytes()).decode()}",
        raster=raster,
    )

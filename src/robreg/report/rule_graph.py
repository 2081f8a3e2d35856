"""Draw the rules of the workflow as a graph."""

from collections.abc import Mapping
from typing import Any

# For each rule, the rules whose files it reads, without those that follow from the others. A test compares this with
# the graph that Snakemake prints.
RULE_INPUTS: Mapping[str, tuple[str, ...]] = {
    "prepare": (),
    "train": ("prepare",),
    "margins": ("train",),
    "sv": ("train",),
    "apgd": ("margins",),
    "spread": ("train",),
    "examples": ("train",),
    "lossvar": ("margins",),
    "theory": ("margins", "sv"),
    "attacks": ("apgd",),
    "masking": ("apgd",),
    "metrics": ("sv", "attacks"),
    "checks": ("metrics", "lossvar", "masking"),
    "table": ("metrics", "lossvar", "theory", "masking"),
    "figure": ("metrics", "lossvar", "spread", "examples", "masking"),
    "claims": ("metrics", "lossvar", "spread"),
    "comparison": ("metrics", "lossvar"),
    "audit": ("checks", "table", "figure", "claims", "comparison"),
    "report": ("audit",),
}
_WIDTH, _ROW, _HEIGHT, _GAP = 360.0, 58.0, 26.0, 6.0  # CSS pixels; legible on a phone without scaling
_CHARACTER = 6.6  # CSS pixels per character of the 12 px font, with some space


def rule_graph() -> dict[str, Any]:
    """Lay out the graph of rules from top to bottom.

    Returns width and height of the drawing in CSS pixels; boxes, each with name, x and y of its centre, width and
    height; and arrows, as SVG paths.
    """
    rows: dict[int, list[str]] = {}
    for name in RULE_INPUTS:
        rows.setdefault(_depth(name), []).append(name)
    boxes = {name: box for depth, names in rows.items() for name, box in _row(names, depth).items()}
    arrows = [_arrow(boxes[source], boxes[name]) for name, sources in RULE_INPUTS.items() for source in sources]
    height = (max(rows) + 1) * _ROW - (_ROW - _HEIGHT) + 2 * _GAP
    return {"width": _WIDTH, "height": height, "boxes": list(boxes.values()), "arrows": arrows}


def _depth(name: str) -> int:
    """Return the number of edges on the longest path from the first rule to this one."""
    return 1 + max(map(_depth, RULE_INPUTS[name]), default=-1)


def _row(names: list[str], depth: int) -> dict[str, dict[str, Any]]:
    """Place the boxes of one row with equal space between them."""
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
    """Return the SVG path of a curve from the lower edge of one box to the upper edge of another."""
    top, bottom = start["y"] + _HEIGHT / 2, end["y"] - _HEIGHT / 2
    bend = (bottom - top) / 2
    return f"M{start['x']} {top:g} C{start['x']} {top + bend:g} {end['x']} {bottom - bend:g} {end['x']} {bottom - 4:g}"

"""Draw test images as every network sees them: clean and attacked, with the change, the prediction and the margin."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from robreg.figures import style
from robreg.figures.lone import Panel, choose_panels
from robreg.figures.series import choose_looks
from robreg.runs.catalogue import Run
from robreg.tables.examples import Example, read_examples

_ROUNDING = 1e-6  # a smaller change of a pixel is one of rounding
_ROW, _HEADING, _TITLE = 1.08, 0.4, 0.2  # inches: of a row of images, of the headings above, and of a panel's name


def examples(runs: Sequence[Run]) -> Figure:
    """Draw images attacked with the radius of the evaluation (left) and with each network's own strength (right).

    A panel has a row of images for every strength, from one network each.
    """
    panels = choose_panels(runs)
    looks = choose_looks(panels)
    rows = [
        [(look.label, read_examples(Path(first["folder"]) / "examples.parquet")) for look, (first, *_) in series]
        for series in map(looks.series, panels)
    ]
    heights = [_ROW * (1 + len(one)) + _HEADING + _TITLE for one in rows]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False).ravel()
    for part, panel, networks in zip(parts, panels, rows, strict=True):
        _fill(part, panel, networks)
    return figure


def _fill(part: SubFigure, panel: Panel, networks: Sequence[tuple[str, list[Example]]]) -> None:
    """Draw one panel: the clean images in the first row, and every network's attacked ones below."""
    part.suptitle(panel.name, x=0.008, ha="left", fontsize=9, fontweight="bold")
    index = sorted({row["index"] for _, rows in networks for row in rows})
    across = 2 * len(index)  # an image and its change, for each
    heights = [_HEADING / _ROW] + [1.0] * (1 + len(networks))
    grid = part.add_gridspec(len(heights), 2 * across + 1, height_ratios=heights, width_ratios=_widths(across))
    for radius, first in (("evaluation", 0), ("training", across + 1)):
        if not any(row["radius"] == radius for _, rows in networks for row in rows):
            continue
        chosen = [[row for row in rows if row["radius"] == radius] for _, rows in networks]
        heading = _empty(part.add_subplot(grid[0, first : first + across]))
        words = _heading(radius, [row for rows in chosen for row in rows])
        heading.text(0.5, 0, words, ha="center", va="bottom").set_in_layout(False)  # or it would widen the columns
        for column, position in enumerate(index):
            clean = next(row for _, rows in networks for row in rows if row["index"] == position)
            axes = _empty(part.add_subplot(grid[1, first + 2 * column]))
            _show(axes, clean["image"])
            axes.set_xlabel(f"class {clean['label']}", fontsize=8)
            for line, ((label, _), rows) in enumerate(zip(networks, chosen, strict=True), start=2):
                left, right = (_empty(part.add_subplot(grid[line, first + 2 * column + side])) for side in (0, 1))
                if not first and not column:
                    left.set_ylabel(label.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
                _draw(left, right, next((row for row in rows if row["index"] == position), None))


def _widths(across: int) -> list[float]:
    return [1.0] * across + [0.3] + [1.0] * across


def _empty(axes: Axes) -> Axes:
    """Remove all lines and numbers from axes."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _heading(radius: str, rows: Sequence[Example]) -> str:
    spaces = {row["space"] for row in rows}
    where = f" in {spaces.pop()} space" if len(spaces) == 1 else ",\neach in its own space"
    where = where.replace(" in pixel space", "")
    if radius == "training":
        return f"each attacked with its AR strength{where}"
    radii = dict.fromkeys(f"{row['eps']:g}/255" for row in rows)
    return f"all attacked with {' or '.join(radii)}{where}"


def _draw(left: Axes, right: Axes, row: Example | None) -> None:
    """Draw an attacked image, if there is one, and beside it by how much it was changed."""
    if row is None:
        left.text(0.5, 0.5, "no attack", ha="center", va="center", fontsize=8)
        return
    attacked, change = row["adversarial"], row["adversarial"] - row["image"]
    largest = float(np.abs(change).max())
    moved = largest > _ROUNDING
    _show(left, attacked)
    _show(right, change / (2 * largest) + 0.5 if moved else np.full_like(change, 0.5))
    fooled = row["adversarial_prediction"] != row["label"]
    words = [f"{row['prediction']} → {row['adversarial_prediction']}"]
    words += [f"{row['margin']:.1f} → {row['adversarial_margin']:.1f}".replace("-", "\N{MINUS SIGN}")]
    left.set_xlabel("\n".join(words), fontsize=8, color=style.ERROR if fooled else "black")
    right.set_xlabel(f"±{255 * largest:.3g}/255" if moved else "no change", fontsize=8)


def _show(axes: Axes, pixels: np.ndarray) -> None:
    """Show pixels (C, H, W) in [0, 1]: three channels in colour, any other number as their mean, in grey."""
    colour = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(0)
    axes.imshow(colour.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="none")

"""Read the attacked images of a run, which may have been received from others, and refuse what cannot be drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robreg.tables import parquet
from robreg.tables.schemas import SCHEMAS

CLASSES = 2  # images of a run, one of each
RADII = ("evaluation", "training")
LARGEST = 3 * 2**20  # values of an image, at most
Example = dict[str, Any]  # a row, with image and adversarial as arrays (C, H, W) in [0, 1]


def read_examples(path: Path) -> list[Example]:
    """Read examples.parquet. Raises as parquet.read does, and ValueError for a table that does not describe images."""
    table = parquet.read(path)
    if not table.schema.equals(SCHEMAS["examples"]) or not 0 < len(table) <= CLASSES * len(RADII):
        raise ValueError(f"{path} has other columns or rows than attacked images have; delete it and make it again")
    rows = table.to_pylist()
    if problems := sorted(set(_problems(rows))):
        raise ValueError(f"{path}: {'; '.join(problems)}; delete it and make it again")
    return [_with_pixels(row) for row in rows]


def _problems(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with rows, none of which has more than LARGEST values."""
    places = [(row["radius"], row["index"]) for row in rows]
    if len(set(places)) < len(places) or not {radius for radius, _ in places} <= set(RADII):
        yield "an image is there twice, or its radius is neither that of the evaluation nor that of the training"
    if any(value is None for row in rows for value in row.values()):
        yield "a value is missing"
        return
    for row in rows:
        sizes = [row[name] for name in ("channels", "height", "width")]
        if min(sizes) < 1 or [len(row[name]) for name in ("image", "adversarial")] != [np.prod(sizes)] * 2:
            yield "the images have not as many pixels as the table states"
        elif None in row["image"] or None in row["adversarial"]:
            yield "a pixel is missing"
        elif not all(0 <= pixel <= 1 for pixel in row["adversarial"]):  # False for NaN
            yield "a pixel is not in [0, 1]"
        if not np.isfinite([row[name] for name in ("eps", "step", "margin", "adversarial_margin")]).all():
            yield "a number is not finite"


def _with_pixels(row: dict[str, Any]) -> Example:
    shape = [row[name] for name in ("channels", "height", "width")]
    image, attacked = (np.asarray(row[name], dtype=float).reshape(shape) for name in ("image", "adversarial"))
    return {**row, "image": image / 255, "adversarial": attacked}

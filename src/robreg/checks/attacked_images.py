"""Check the attacked images of a run against its other tables and against the radius of their attack."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robreg.checks.invariants import FLOAT32, Row, count_violations, with_files
from robreg.tables import parquet
from robreg.tables.examples import Example, read_examples

_BATCH = 1e-3  # by how much a margin may differ in a batch of another size, relative and absolute
_CLEAN = ("split", "index", "label", "prediction", "margin")


def check_images(folder: Path) -> list[Row]:
    """Return the rows of the checks of examples.parquet. folder: the run's. Raises as read_examples does."""
    rows = read_examples(folder / "examples.parquet")
    clean = parquet.read(folder / "margins.parquet", _CLEAN).to_pandas()
    tested = clean[clean["split"] == "test"].set_index("index")
    clean_check = count_violations(
        "examples_clean",
        "clean images whose class, prediction or margin is other than in margins.parquet",
        [row["index"] not in tested.index or not _agrees(row, tested.loc[row["index"]]) for row in rows],
    )
    own = [
        count_violations(
            "examples_radius",
            "attacked images that were changed by more than the radius of an attack in pixels",
            [row["space"] == "pixel" and _change(row) > row["eps"] / 255 + FLOAT32 for row in rows],
        ),
        count_violations(
            "examples_margin",
            "attacked images whose prediction does not follow from their margin",
            [row["adversarial_margin"] * (1 if _is_correct(row) else -1) < 0 for row in rows],
        ),
    ]
    return with_files([clean_check], "examples.parquet", "margins.parquet") + with_files(own, "examples.parquet")


def _agrees(row: Example, clean: Mapping[Any, Any] | pd.Series) -> bool:
    near = np.isclose(row["margin"], clean["margin"], rtol=_BATCH, atol=_BATCH)
    return bool(near) and (row["label"], row["prediction"]) == (clean["label"], clean["prediction"])


def _change(row: Example) -> float:
    return float(np.abs(row["adversarial"] - row["image"]).max())


def _is_correct(row: Example) -> bool:
    return bool(row["adversarial_prediction"] == row["label"])

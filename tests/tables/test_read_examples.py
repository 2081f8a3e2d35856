"""Attacked images that were received are refused if they cannot be drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.figure_tables import META, write_examples

from robreg.tables import parquet
from robreg.tables.examples import read_examples
from robreg.tables.schemas import SCHEMAS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_examples(tmp_path, 8, 0)
    return tmp_path / "examples.parquet"


def test_images_are_read_as_arrays(path: Path) -> None:
    rows = read_examples(path)
    assert [(row["radius"], row["index"]) for row in rows] == [
        ("evaluation", 3),
        ("evaluation", 5),
        ("training", 3),
        ("training", 5),
    ]
    np.testing.assert_allclose(rows[0]["image"], np.arange(6).reshape(1, 2, 3) / 5)
    assert rows[0]["adversarial"].shape == (1, 2, 3)


def rewrite(path: Path, **changes: Any) -> None:
    """Write other values into the first row, without the checks of parquet.write."""
    rows = parquet.read(path).to_pylist()
    rows[0] |= changes
    parquet.write_frame(path, pa.Table.from_pylist(rows, SCHEMAS["examples"]), META)


PIXELS = [0.5] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": "x"}, "neither that of the evaluation nor that of the training"),
        ({"index": 5}, "an image is there twice"),
        ({"label": None}, "a value is missing"),
        ({"image": None}, "a value is missing"),
        ({"channels": -1}, "not as many pixels as the table states"),
        ({"channels": 0, "image": [], "adversarial": []}, "not as many pixels as the table states"),
        ({"channels": -1, "height": -2}, "not as many pixels as the table states"),
        ({"adversarial": PIXELS[:5]}, "not as many pixels as the table states"),
        ({"image": [1] * 7}, "not as many pixels as the table states"),
        ({"adversarial": [None, *PIXELS[1:]]}, "a pixel is missing"),
        ({"adversarial": [float("nan"), *PIXELS[1:]]}, r"a pixel is not in \[0, 1\]"),
        ({"adversarial": [1e38, *PIXELS[1:]]}, r"a pixel is not in \[0, 1\]"),
        ({"margin": float("nan")}, "a number is not finite"),
        ({"eps": float("inf")}, "a number is not finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str, path: Path) -> None:
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}.*; delete it and make it again$"):
        read_examples(path)


@pytest.mark.parametrize("rows", [0, 5])
def test_another_number_of_rows_is_refused(rows: int, path: Path) -> None:
    table = parquet.read(path)
    parquet.write_frame(path, pa.concat_tables([table, table]).slice(0, rows), META)
    with pytest.raises(ValueError, match="has other columns or rows than attacked images have"):
        read_examples(path)


def test_a_text_instead_of_a_class_is_refused(path: Path) -> None:
    table = parquet.read(path)
    column = table.schema.get_field_index("prediction")
    parquet.write_frame(path, table.set_column(column, "prediction", pa.array(["a word"] * 4)), META)
    with pytest.raises(ValueError, match="has other columns or rows than attacked images have"):
        read_examples(path)

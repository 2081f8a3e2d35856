"""Attacked images must agree with the margins of their network, and lie in the ball of their attack."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.figure_tables import META, make_run

from robreg.checks.attacked_images import check_images
from robreg.tables import parquet
from robreg.tables.schemas import SCHEMAS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a run whose attacked images have the labels, predictions and margins of its margins.parquet."""
    make_run(tmp_path, 8, 0)
    clean = parquet.read(tmp_path / "margins.parquet").to_pandas()
    tested = clean[clean["split"] == "test"].set_index("index")
    rows = parquet.read(tmp_path / "examples.parquet").to_pylist()
    for row in rows:
        row.update(tested.loc[row["index"], ["label", "prediction", "margin"]].to_dict())
        row.update(adversarial_prediction=row["label"] if row["adversarial_margin"] > 0 else row["label"] + 1)
    write(tmp_path, rows)
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_frame(folder / "examples.parquet", pa.Table.from_pylist(rows, SCHEMAS["examples"]), META)


def failed(folder: Path) -> list[str]:
    return [row["check"] for row in check_images(folder) if not row["passed"]]


def test_images_that_belong_to_their_run_pass_all_checks(folder: Path) -> None:
    assert [row["check"] for row in check_images(folder)] == ["examples_clean", "examples_radius", "examples_margin"]
    assert failed(folder) == []


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"label": 9}, "examples_clean"),
        ({"prediction": 9}, "examples_clean"),
        ({"margin": 100.0}, "examples_clean"),
        ({"index": 999}, "examples_clean"),
        ({"eps": 8.0}, "examples_radius"),
        ({"adversarial_prediction": 0, "adversarial_margin": -1.0}, "examples_margin"),
        ({"adversarial_prediction": 1, "adversarial_margin": 1.0}, "examples_margin"),
    ],
)
def test_a_false_value_is_found(changes: dict[str, Any], check: str, folder: Path) -> None:
    rows = parquet.read(folder / "examples.parquet").to_pylist()
    rows[0] |= changes
    write(folder, rows)
    assert check in failed(folder)


def test_a_radius_in_another_space_is_not_compared_with_pixels(folder: Path) -> None:
    rows = [row | {"space": "normalised", "eps": 1.0} for row in parquet.read(folder / "examples.parquet").to_pylist()]
    write(folder, rows)
    assert failed(folder) == []

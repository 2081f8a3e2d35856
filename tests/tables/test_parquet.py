"""Result tables are written completely, with the expected columns and their metadata, or not at all."""

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robreg.tables import parquet, schemas

META = {"dataset": "digits", "variant": "ar8", "seed": 0, "version": "0.1.0", "nested": {"eps": [1.5, 2], "none": None}}
EXPECTED_COLUMNS = {
    "history": "epoch lr loss acc sigma_max seconds examples_per_s",
    "margins": "split index label prediction margin prob loss",
    "attacks": "attack space start loss eps step steps restarts seed split n n_correct n_robust acc_conditional "
    "acc_robust",
    "lossvar": "eps index loss_clean loss_adv variation prob_clean prob_adv prob_variation",
    "sv": "layer name sigma multiplicity",
    "svstd": "layer name kind c_in c_out kernel stride height width n mean std min max "
    "kernel_width stride_width groups calls rows columns operator method error_mean error_std",
    "metrics": "train_acc test_acc acc_gap train_loss test_loss loss_gap pgd_acc robust_acc spectral_complexity "
    "log10_spectral_complexity",
    # Tables of the optional measures and of the checks.
    "apgd": "attack space start loss eps step steps restarts seed split n n_correct n_robust acc_conditional "
    "acc_robust",
    "checks": "check what found relation expected tolerance passed",
    "masking": "check eps n before after value limit passed",
    "live": "layer name rows columns dead_rows frozen_columns frozen_share std max std_live max_live",
    "padding": "layer name method std_circular std_zero max_circular max_zero",
    "spread": "layer name perturbation eps n mean std",
    "examples": "radius space eps step steps restarts index label prediction margin adversarial_prediction "
    "adversarial_margin channels height width image adversarial",
    "theory": "n m gamma eta c_x k eps sigma_min_zero_layers log10_sigma_min_product w_min v_min_upper "
    "log10_u_min_upper first_term_lower log10_second_term ramp_risk_train ramp_risk_test ramp_gap "
    "lemma_pairs lemma_pieces lemma_share lemma_residual lemma_slack",
}


def columns(**changes: object) -> dict[str, Any]:
    return {"layer": [1, 1], "name": ["a", "a"], "sigma": [2.0, 1.0], "multiplicity": [1, 2]} | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "sv.parquet"


def check_refused(path: Path, content: dict[str, Any], message: str, kind: str = "sv") -> None:
    """Check that refusing a table leaves the old file unchanged, and no other file in its folder."""
    parquet.write(path, "sv", columns(), META)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        parquet.write(path, kind, content, META)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", EXPECTED_COLUMNS)
def test_the_schemas_have_the_expected_columns(kind: str) -> None:
    assert schemas.SCHEMAS[kind].names == EXPECTED_COLUMNS[kind].split()
    assert schemas.SCHEMAS.keys() == EXPECTED_COLUMNS.keys()


def test_a_table_is_read_back_with_its_types_and_metadata(path: Path) -> None:
    parquet.write(path, "sv", columns(), META)
    found = parquet.read(path)
    assert found.to_pydict() == columns()
    assert found.schema.remove_metadata() == schemas.SCHEMAS["sv"]
    assert parquet.read_metadata(path) == META


def test_only_the_given_columns_are_read(path: Path) -> None:
    parquet.write(path, "sv", columns(), META)
    assert parquet.read(path, ["sigma", "layer"]).to_pydict() == {"sigma": [2.0, 1.0], "layer": [1, 1]}


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_the_error_for_a_damaged_table_names_the_file(keep: float, path: Path) -> None:
    parquet.write(path, "sv", columns(), META)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    for read in (parquet.read, parquet.read_metadata):
        with pytest.raises(
            ValueError, match=r"sv\.parquet is damaged or lacks a column .*; delete it and make it again"
        ):
            read(path)


def test_the_error_for_a_missing_column_names_the_file(path: Path) -> None:
    parquet.write(path, "sv", columns(), META)
    with pytest.raises(ValueError, match=r"sv\.parquet is damaged or lacks a column .*nothing.*; delete it"):
        parquet.read(path, ["sigma", "nothing"])
    with pytest.raises(FileNotFoundError):
        parquet.read(path.with_name("absent.parquet"))


def test_a_file_from_another_program_has_no_metadata(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    assert parquet.read_metadata(tmp_path / "x.parquet") == {}


@pytest.mark.parametrize("stored", ["[]", "1", "null", "[" * 100_000, "{"])
def test_metadata_that_are_no_object_are_refused(path: Path, stored: str) -> None:
    path.parent.mkdir()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"robreg": stored}), path)
    with pytest.raises(ValueError, match=f"{path} is damaged or lacks a column .*; delete it and make it again"):
        parquet.read_metadata(path)


def test_missing_extra_and_misplaced_columns_are_refused(path: Path) -> None:
    missing = columns()
    del missing["sigma"]
    check_refused(path, missing, "sv.parquet.*sigma")
    check_refused(path, columns(extra=[1, 2]), "sv.parquet.*extra")
    check_refused(path, dict(reversed(columns().items())), "sv.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": [1.0]},
        {"layer": [1.5, 2.0]},
        {"layer": ["one", "two"]},
        {"sigma": ["a", "b"]},
        {"name": [1, 2]},
        {"multiplicity": [2**70, 1]},
    ],
)
def test_a_column_of_another_length_or_type_is_refused(path: Path, change: dict[str, Any]) -> None:
    parquet.write(path, "sv", columns(), META)
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError, OverflowError)):
        parquet.write(path, "sv", columns(**change), META)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [list, np.array, pd.Series])
def test_the_error_for_a_number_that_is_not_finite_names_its_column(path: Path, bad: float, make: Any) -> None:
    check_refused(path, columns(sigma=make([1.0, bad])), "sv.parquet.*sigma.*not finite")


def test_a_number_too_large_for_the_columns_type_is_refused(path: Path) -> None:
    names = schemas.SCHEMAS["lossvar"].names
    special = {"index": [0], "variation": [1e300]}  # infinite in single precision
    check_refused(path, {name: special.get(name, [1.0]) for name in names}, "variation.*not finite", kind="lossvar")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_also_refused_inside_a_list(path: Path, bad: float) -> None:
    row = {"epoch": [1], "lr": [0.1], "loss": [1.0], "acc": [9.0], "sigma_max": [[1.0, bad]], "seconds": [1.0]}
    check_refused(path, row | {"examples_per_s": [1.0]}, "sigma_max.*not finite", kind="history")


def history(**changes: Any) -> dict[str, Any]:
    row = {"epoch": [1, 2], "lr": [0.1] * 2, "loss": [1.0] * 2, "acc": [8.0, 9.0], "sigma_max": [None, [1.0, 2.0]]}
    return row | {"seconds": [1.0] * 2, "examples_per_s": [1.0] * 2} | changes


def test_null_is_distinguished_from_nan(path: Path) -> None:
    parquet.write(path, "history", history(), META)
    assert parquet.read(path, ["acc", "sigma_max"]).to_pydict() == {"acc": [8.0, 9.0], "sigma_max": [None, [1.0, 2.0]]}


def test_null_is_refused_in_a_column_that_must_not_have_nulls(path: Path) -> None:
    check_refused(path, history(acc=[None, 9.0]), "column acc has 1 missing values", kind="history")


def test_a_failure_while_writing_leaves_only_the_old_file(path: Path, monkeypatch: Any) -> None:
    parquet.write(path, "sv", columns(), META)
    before = path.read_bytes()

    def write_half(content: pa.Table, where: BinaryIO) -> None:
        where.write(b"PAR1 half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(OSError, match="No space"):
        parquet.write(path, "sv", columns(layer=[7, 7]), META)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_write_frame_keeps_the_metadata_of_pandas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    parquet.write_frame(tmp_path / "f.parquet", pa.Table.from_pandas(frame, preserve_index=False), {"study": "demo"})
    assert parquet.read_metadata(tmp_path / "f.parquet") == {"study": "demo"}
    assert b"pandas" in pq.read_schema(tmp_path / "f.parquet").metadata
    pd.testing.assert_frame_equal(parquet.read(tmp_path / "f.parquet").to_pandas(), frame)


def test_files_do_not_depend_on_the_order_of_the_metadata_keys(tmp_path: Path) -> None:
    for name, meta in (("a", META), ("b", dict(reversed(META.items())))):
        parquet.write(tmp_path / name, "sv", columns(), meta)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("columns", [{"x": pa.nulls(5)}, {"epoch": [1], "lr": [0.1]}])
def test_a_history_of_other_columns_is_refused_before_it_is_made_python_objects(columns, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "history.parquet")
    with pytest.raises(ValueError, match=r"history\.parquet has other columns than a history"):
        parquet.read_history(tmp_path / "history.parquet")

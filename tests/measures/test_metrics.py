"""Compute the metrics of a run from tables whose results are worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robreg.measures import metrics
from robreg.tables import parquet, schemas

MARGINS = pd.DataFrame(
    {
        "split": ["train"] * 4 + ["test"] * 5,
        "index": [*range(4), *range(5)],
        "label": [0, 1, 2, 3, 0, 1, 2, 3, 4],
        "prediction": [0, 1, 2, 0, 0, 1, 0, 0, 0],
        "margin": [1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0],
        "prob": [0.5] * 9,
        "loss": [0.25, 0.25, 0.5, 1.0, 0.5, 0.5, 1.0, 1.5, 1.5],
    }
)
ATTACKS = pd.DataFrame({"attack": ["pgd"], "split": ["test"], "acc_conditional": [60.0], "acc_robust": [24.0]})


def svstd(*largest: float) -> pd.DataFrame:
    return pd.DataFrame({"name": [f"layer{n}" for n in range(len(largest))], "max": list(largest), "calls": 1})


def test_gaps_have_the_papers_signs() -> None:
    found = metrics.compute_metrics(MARGINS, ATTACKS, svstd(2.0))
    assert list(found) == schemas.SCHEMAS["metrics"].names
    assert found["train_acc"] == 75.0
    assert found["test_acc"] == 40.0
    assert found["acc_gap"] == 35.0  # training minus test
    assert found["train_loss"] == 0.5
    assert found["test_loss"] == 1.0
    assert found["loss_gap"] == 0.5  # test minus training
    assert found["pgd_acc"] == 60.0
    assert found["robust_acc"] == 24.0


def test_the_order_of_rows_does_not_matter() -> None:
    shuffled = MARGINS.sample(frac=1, random_state=0)
    assert metrics.compute_metrics(shuffled, ATTACKS, svstd(2.0)) == pytest.approx(
        metrics.compute_metrics(MARGINS, ATTACKS, svstd(2.0))
    )


def test_losses_are_averaged_in_double_precision() -> None:
    above = float(
        np.nextafter(np.float32(1), np.float32(2))
    )  # the mean of 1 and this number does not exist in single precision
    frame = pd.DataFrame({"split": ["train", "train", "test"], "label": 0, "prediction": 0, "loss": [1.0, above, 1.0]})
    found = metrics.compute_metrics(frame.astype({"loss": "float32"}), ATTACKS, svstd(1.0))
    assert found["train_loss"] == (1 + above) / 2
    assert found["loss_gap"] < 0


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_no_correct_example_gives_no_conditional_accuracy(nothing: float | None) -> None:
    attacks = pd.DataFrame({"attack": ["pgd"], "split": ["test"], "acc_conditional": [nothing], "acc_robust": [0.0]})
    found = metrics.compute_metrics(MARGINS, attacks, svstd(2.0))
    assert found["pgd_acc"] is None
    assert found["robust_acc"] == 0.0


def test_spectral_complexity_is_the_product_of_the_spectral_norms() -> None:
    found = metrics.compute_metrics(MARGINS, ATTACKS, svstd(2.0, 5.0, 0.5, 20.0))
    assert found["spectral_complexity"] == pytest.approx(100.0, rel=1e-12)
    assert found["log10_spectral_complexity"] == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("norm", [1e10, 1e-10])
def test_a_product_outside_the_range_of_a_float_is_none_but_has_a_logarithm(norm: float) -> None:
    found = metrics.compute_metrics(MARGINS, ATTACKS, svstd(*[norm] * 40))
    assert found["spectral_complexity"] is None
    assert found["log10_spectral_complexity"] == pytest.approx(400 * math.copysign(1, math.log(norm)))


def test_huge_and_tiny_norms_may_cancel() -> None:
    found = metrics.compute_metrics(MARGINS, ATTACKS, svstd(*[1e200, 1e200, 1e-200, 1e-200]))
    assert found["spectral_complexity"] == pytest.approx(1.0)


def test_a_layer_of_norm_0_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\['layer1'\]"):
        metrics.compute_metrics(MARGINS, ATTACKS, svstd(2.0, 0.0, 3.0))


@pytest.mark.parametrize("other", [("pgd", "train"), ("apgd", "test")])
def test_only_pgd_on_the_test_split_counts(other: tuple[str, str]) -> None:
    frame = pd.DataFrame([(*other, 99.0, 98.0)], columns=["attack", "split", "acc_conditional", "acc_robust"])
    for attacks in (pd.concat([frame, ATTACKS]), pd.concat([ATTACKS, frame])):
        found = metrics.compute_metrics(MARGINS, attacks, svstd(2.0))
        assert (found["pgd_acc"], found["robust_acc"]) == (60.0, 24.0)


def test_record_reads_three_tables_and_writes_one_row(tmp_path: Path) -> None:
    meta = {"dataset": "digits", "variant": "ar8", "seed": 0}
    setting = {"attack": "pgd", "space": "pixel", "start": "random", "loss": "cross_entropy", "eps": 8.0, "step": 2.0}
    counts = {"steps": 10, "restarts": 1, "seed": 0, "split": "test", "n": 5, "n_correct": 0, "n_robust": 0}
    attack = setting | counts | {"acc_conditional": None, "acc_robust": 0.0}
    layer = dict.fromkeys(schemas.SCHEMAS["svstd"].names, 1) | {"operator": "matrix", "method": "dense"}
    layer |= {"name": "linear", "kind": "linear"} | dict.fromkeys(("mean", "std", "min", "max"), 10.0)
    paths = {name: tmp_path / f"{name}.parquet" for name in ("margins", "attacks", "svstd", "metrics")}
    tables = {
        "margins": MARGINS.to_dict("list"),
        "attacks": {key: [attack[key]] for key in schemas.SCHEMAS["attacks"].names},
        "svstd": {key: [layer[key]] for key in schemas.SCHEMAS["svstd"].names},
    }
    for name, table in tables.items():
        parquet.write(paths[name], name, table, meta | ({"unmeasured": {}} if name == "svstd" else {}))
    metrics.record(**paths)
    (row,) = parquet.read(tmp_path / "metrics.parquet").to_pylist()
    assert row == {
        "train_acc": 75.0,
        "test_acc": 40.0,
        "acc_gap": 35.0,
        "train_loss": 0.5,
        "test_loss": 1.0,
        "loss_gap": 0.5,
        "pgd_acc": None,
        "robust_acc": 0.0,
        "spectral_complexity": 10.0,
        "log10_spectral_complexity": 1.0,
    }
    assert parquet.read_metadata(tmp_path / "metrics.parquet") == meta


def test_a_layer_counts_as_often_as_it_is_called() -> None:
    table = svstd(2.0, 5.0).assign(calls=[3, 1])
    assert metrics.compute_metrics(MARGINS, ATTACKS, table)["spectral_complexity"] == pytest.approx(40.0)


def test_a_network_with_a_part_without_singular_values_has_no_spectral_complexity(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = metrics.compute_metrics(MARGINS, ATTACKS, svstd(2.0), unmeasured={"network.attention": "why"})
    assert found["spectral_complexity"] is found["log10_spectral_complexity"] is None
    assert found["test_acc"] == 40.0
    assert "because these have no singular values: network.attention" in caplog.text

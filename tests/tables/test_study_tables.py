"""A study's tables, made from runs with invented tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.study_files import write_masking

from robreg.report.units import Quantity, describe
from robreg.runs.catalogue import TABLES, select_runs
from robreg.tables import parquet, schemas, study_tables

KEYS = ["dataset", "arch", "train_attack", "space", "spectral_norm", "ar", "seed"]
TABLE3 = ["train_acc", "test_acc", "acc_gap", "train_loss", "test_loss", "loss_gap", "pgd_acc", "robust_acc"]
VARIATION = {1.0: [0.0, 1.0, 2.0, 5.0], 2.0: [1.0, 1.0, 4.0, 6.0]}  # of four test examples, by eps


def make_run(root: Path, ar: int, seed: int, bound: float | None = None, pgd: float | None = 50.0) -> dict[str, Any]:
    """Write a run whose accuracy is 90 - ar + seed, and whose loss variation is ar * VARIATION + seed."""
    folder = root / f"ar{ar}-sn{bound}-s{seed}"
    numbers = dict.fromkeys(schemas.SCHEMAS["metrics"].names, 1.0)
    numbers |= {"train_acc": 90.0 - ar + seed, "pgd_acc": pgd, "loss_gap": 0.1 * seed}
    parquet.write(folder / "metrics.parquet", "metrics", {key: [value] for key, value in numbers.items()}, {})
    variation = {eps: [ar * value + seed for value in values] for eps, values in VARIATION.items()}
    content = {
        "eps": [eps for eps in variation for _ in range(4)],
        "index": [0, 1, 2, 3] * 2,
        "loss_clean": [1.0] * 8,
        "loss_adv": [1.0 + value for values in variation.values() for value in values],
        "variation": [value for values in variation.values() for value in values],
        "prob_clean": [1.0] * sum(map(len, variation.values())),
        "prob_adv": [1.0 - value / 1000 for values in variation.values() for value in values],
        "prob_variation": [value / 1000 for values in variation.values() for value in values],
    }
    parquet.write(folder / "lossvar.parquet", "lossvar", content, {})
    write_masking(folder, {})
    run = {"dataset": "digits", "arch": "resnet8", "train_attack": "pgd", "space": "pixel", "spectral_norm": bound}
    return run | {"ar": ar, "seed": seed, "variant": folder.name, "folder": str(folder)}


def with_spectra(run: dict[str, Any], stds: Sequence[float]) -> dict[str, Any]:
    """Add svstd and padding of convolutions and a final linear layer; only layer 2's zero-padded one is inexact."""
    count = len(stds)
    layers: dict[str, Any] = dict.fromkeys(schemas.SCHEMAS["svstd"].names, [1] * count) | {"std": list(stds)}
    layers |= {"layer": [*range(1, count + 1)], "name": [f"layer{index}" for index in range(count)]}
    layers |= {"kind": ["conv"] * (count - 1) + ["linear"], **dict.fromkeys(("operator", "method"), ["x"] * count)}
    parquet.write(Path(run["folder"]) / "svstd.parquet", "svstd", layers, {})
    live: dict[str, Any] = dict.fromkeys(schemas.SCHEMAS["live"].names, [1] * count) | {"std": list(stds)}
    live |= {"layer": layers["layer"], "name": layers["name"], "std_live": [None, *(2 * std for std in stds[1:])]}
    parquet.write(Path(run["folder"]) / "live.parquet", "live", live, {})
    padding = {key: layers[key] for key in ("layer", "name")}
    padding |= {"method": [{2: "lanczos", count: "same"}.get(layer, "dense") for layer in layers["layer"]]}
    padding |= {
        "std_circular": stds,
        "std_zero": [None if layer == 2 else 0.9 * stds[layer - 1] for layer in layers["layer"]],
    }
    padding |= {"max_circular": [2.0] * count, "max_zero": [2.0 - 0.1 * layer for layer in layers["layer"]]}
    parquet.write(Path(run["folder"]) / "padding.parquet", "padding", padding, {})
    return run


def with_attacks(run: dict[str, Any], losses: Sequence[str], pgd: float | None = 50.0) -> dict[str, Any]:
    rows = [{"attack": "pgd", "loss": "cross_entropy", "n": 500, "acc_conditional": pgd, "acc_robust": 45.0}]
    rows += [
        {"attack": "apgd", "loss": loss, "n": 100, "acc_conditional": 1.0, "acc_robust": 44.0 - place}
        for place, loss in enumerate(losses)
    ]
    rest: dict[str, Any] = {"space": "pixel", "start": "random", "eps": 8.0, "step": 2.0, "steps": 10, "restarts": 1}
    rest |= {"seed": 0, "split": "test", "n_correct": 1, "n_robust": 1}
    columns = {name: [(rest | row)[name] for row in rows] for name in schemas.SCHEMAS["attacks"].names}
    parquet.write(Path(run["folder"]) / "attacks.parquet", "attacks", columns, {})
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[dict[str, Any]]:
    """Three seeds at ar 8, one at ar 16, and two at ar 8 with a bound, in no particular order."""
    settings = [(16, 0, None), (8, 0, None), (8, 1, 3.0), (8, 2, None), (8, 0, 3.0), (8, 1, None)]
    return [make_run(tmp_path, *setting) for setting in settings]


def test_gather_concatenates_tables_with_the_keys_in_front(runs: list[dict[str, Any]]) -> None:
    frame = study_tables.gather(runs, "lossvar", ["eps", "variation"])
    assert list(frame) == [*KEYS, "eps", "variation"]
    assert len(frame) == 8 * len(runs)
    assert frame.index.tolist() == list(range(len(frame)))
    assert frame["ar"].tolist() == [run["ar"] for run in runs for _ in range(8)]
    assert frame["seed"].tolist() == [run["seed"] for run in runs for _ in range(8)]
    own = frame[(frame["ar"] == 16) & (frame["eps"] == 2.0)]
    assert own["variation"].tolist() == [16.0, 16.0, 64.0, 96.0]
    assert list(study_tables.gather(runs, "lossvar"))[len(KEYS) :] == schemas.SCHEMAS["lossvar"].names


def test_table3_has_the_expected_columns_and_one_row_per_run(runs: list[dict[str, Any]]) -> None:
    frame = study_tables.table3(runs)
    assert list(frame) == KEYS + TABLE3
    assert frame["train_acc"].tolist() == [90.0 - run["ar"] + run["seed"] for run in runs]
    assert frame["pgd_acc"].tolist() == [50.0] * 6


def test_table1_has_mean_and_population_std_over_test_examples(runs: list[dict[str, Any]]) -> None:
    frame = study_tables.table1(runs)
    kinds = ("probability", "loss")  # the one that the paper's numbers suggest comes first
    names = [f"{kind}_variation_{part}_eps{eps}" for kind in kinds for eps in (1, 2) for part in ("mean", "std")]
    assert list(frame) == KEYS + names
    for row, run in zip(frame.to_dict("records"), runs, strict=True):
        for eps, values in VARIATION.items():
            expected = run["ar"] * np.array(values) + run["seed"]
            assert row[f"loss_variation_mean_eps{eps:g}"] == pytest.approx(expected.mean())
            assert row[f"loss_variation_std_eps{eps:g}"] == pytest.approx(expected.std(ddof=0))
            assert row[f"probability_variation_mean_eps{eps:g}"] == pytest.approx(expected.mean() / 1000)
            assert row[f"probability_variation_std_eps{eps:g}"] == pytest.approx(expected.std(ddof=0) / 1000)


def test_the_summary_has_one_row_for_every_setting(runs: list[dict[str, Any]]) -> None:
    frame = study_tables.summarise(study_tables.table3(runs))
    metrics = [f"{name}_{statistic}" for name in TABLE3 for statistic in ("mean", "std")]
    assert list(frame) == [*KEYS[:-1], *metrics, "n_seeds"]
    found = {
        (row["ar"], None if pd.isna(row["spectral_norm"]) else row["spectral_norm"]): row
        for row in frame.to_dict("records")
    }
    assert found.keys() == {(8, None), (16, None), (8, 3.0)}
    assert {key: row["n_seeds"] for key, row in found.items()} == {(8, None): 3, (16, None): 1, (8, 3.0): 2}
    assert found[8, None]["train_acc_mean"] == pytest.approx(83.0)
    assert found[8, None]["train_acc_std"] == pytest.approx(1.0)  # of 82, 83, 84 with ddof 1
    assert found[8, 3.0]["train_acc_mean"] == pytest.approx(82.5)
    assert found[8, 3.0]["train_acc_std"] == pytest.approx(0.5**0.5)
    assert found[16, None]["train_acc_mean"] == pytest.approx(74.0)
    assert pd.isna(found[16, None]["train_acc_std"])
    assert frame["ar"].tolist() == [16, 8, 8]  # in the order of the runs


def test_the_std_over_seeds_is_not_confused_with_that_over_examples(runs: list[dict[str, Any]]) -> None:
    frame = study_tables.summarise(study_tables.table1(runs))
    row = frame[(frame["ar"] == 8) & frame["spectral_norm"].isna()].iloc[0]
    assert row["loss_variation_mean_eps1_mean"] == pytest.approx(17.0)  # 8 x 2 + seed
    assert row["loss_variation_mean_eps1_std"] == pytest.approx(1.0)
    assert row["loss_variation_std_eps1_mean"] == pytest.approx(8 * np.std(VARIATION[1.0]))
    assert row["loss_variation_std_eps1_std"] == pytest.approx(0.0, abs=1e-12)
    assert row["n_seeds"] == 3


def test_settings_that_differ_in_any_key_are_not_averaged(tmp_path: Path) -> None:
    base = make_run(tmp_path, 8, 0)
    others = [{"dataset": "c10"}, {"arch": "resnet56"}, {"train_attack": "fgsm"}, {"space": "normalised"}]
    frame = study_tables.summarise(study_tables.table3([base, *(base | other for other in others)]))
    assert frame["n_seeds"].tolist() == [1] * 5


@pytest.mark.parametrize("bounds", [(None, None), (None, 3.0), (3.0, 5.0), (3.0, None)])
def test_runs_with_and_without_bounds_are_summarised(tmp_path: Path, bounds: tuple[float | None, float | None]) -> None:
    runs = [make_run(tmp_path, ar, 0, bound) for ar, bound in zip((4, 8), bounds, strict=True)]
    frame = study_tables.summarise(study_tables.table3(runs))
    assert [None if pd.isna(value) else value for value in frame["spectral_norm"]] == list(bounds)
    assert frame["train_acc_mean"].tolist() == [86.0, 82.0]


def test_a_mean_is_over_all_seeds_of_its_row_or_null(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, 8, seed, pgd=pgd) for seed, pgd in enumerate((None, 40.0, 44.0))]
    runs += [make_run(tmp_path, 16, seed, pgd=pgd) for seed, pgd in enumerate((40.0, 44.0))]
    frame = study_tables.summarise(study_tables.table3(runs))
    assert frame["n_seeds"].tolist() == [3, 2]
    assert frame["pgd_acc_mean"].isna().tolist() == frame["pgd_acc_std"].isna().tolist() == [True, False]
    assert frame["pgd_acc_mean"][1] == 42.0
    assert frame["train_acc_mean"].notna().all()  # other metrics of the row keep their means


def test_table2_has_the_four_columns_of_the_paper(runs: list[dict[str, Any]]) -> None:
    frame = study_tables.table2(runs)
    assert list(frame) == [*KEYS, "test_acc", "train_loss", "test_loss", "loss_gap"]
    assert frame["loss_gap"].tolist() == pytest.approx([0.1 * run["seed"] for run in runs])


def test_b2_sums_decreases_and_increases_with_and_without_the_linear_layer(tmp_path: Path) -> None:
    stds = {
        (4, 0): [1, 2, 3, 5],
        (16, 0): [0.5, 2, 3.25, 3],
        (4, 1): [1, 1, 1, 1],
        (16, 1): [0, 0, 1, 2],
        (8, 0): [9] * 4,
    }
    runs = [with_spectra(make_run(tmp_path, ar, seed), values) for (ar, seed), values in stds.items()]
    runs.append(with_spectra(make_run(tmp_path, 4, 2), [1.0] * 4))  # this seed does not exist at 16
    runs.append(with_spectra(make_run(tmp_path, 16, 0, bound=3.0), [7.0] * 4))  # another setting
    frame = study_tables.b2(runs, [4, 16])
    changes = ["svstd_decrease_sum", "svstd_decrease_mean", "svstd_increase_sum", "svstd_increase_mean"]
    counts = ["n_decreased", "n_increased"]
    live = [name.replace("svstd_", "svstd_live_").replace("n_", "n_live_") for name in (*changes, *counts)]
    assert list(frame) == [*KEYS, "ar_high", "layers", *changes, *counts, *live]
    assert frame[["seed", "ar", "ar_high"]].to_numpy().tolist() == [[0, 4, 16]] * 2 + [[1, 4, 16]] * 2
    assert frame["layers"].tolist() == ["convolutions", "all"] * 2
    values = frame[[*changes, *counts]].to_numpy().astype(float)
    expected = [
        [0.5, 0.5, 0.25, 0.25, 1, 1],
        [2.5, 1.25, 0.25, 0.25, 2, 1],
        [2, 1, 0, np.nan, 2, 0],
        [2, 1, 1, 1, 2, 1],
    ]
    np.testing.assert_allclose(values, expected)
    expected = [  # nothing is left of the first layer; the other stds are twice as large
        [0, np.nan, 0.5, 0.5, 0, 1],
        [4, 4, 0.5, 0.5, 1, 1],
        [2, 2, 0, np.nan, 1, 0],
        [2, 2, 2, 2, 1, 1],
    ]
    np.testing.assert_allclose(frame[live].to_numpy().astype(float), expected)
    published = study_tables.b2(runs, [4, 16], live=False)
    pd.testing.assert_frame_equal(published, frame[list(published)])
    assert list(published) == [name for name in frame if "live" not in name]
    summary = study_tables.summarise(frame)
    assert list(summary)[:8] == [*KEYS[:-1], "ar_high", "layers"]
    assert summary["n_seeds"].tolist() == [2, 2]
    np.testing.assert_allclose(summary["svstd_decrease_sum_mean"], [1.25, 2.25])


def test_architectures_have_rows_of_their_own(tmp_path: Path) -> None:
    runs = []
    for arch, stds in {"resnet8": (1.0, 0.5), "mynet": (2.0, 5.0)}.items():
        for ar, std in zip((4, 16), stds, strict=True):
            runs.append(with_spectra(make_run(tmp_path / arch, ar, 0), [1.0, std, 3.0]) | {"arch": arch})
    frame = study_tables.compose("b2", select_runs("b2", runs), [4, 16])
    convolutions = frame[frame["layers"] == "convolutions"].set_index("arch")
    assert convolutions["svstd_decrease_sum"].to_dict() == {"resnet8": 0.5, "mynet": 0}
    assert convolutions["svstd_increase_sum"].to_dict() == {"resnet8": 0, "mynet": 3}
    frame = study_tables.compose("table1", select_runs("table1", runs), [4, 16])
    assert frame["arch"].tolist() == ["resnet8", "resnet8", "mynet", "mynet"]
    assert study_tables.summarise(frame)["arch"].tolist() == frame["arch"].tolist()


def test_b2_refuses_strengths_that_no_setting_has_both_of(tmp_path: Path) -> None:
    runs = [with_spectra(make_run(tmp_path, ar, ar), [1.0]) for ar in (4, 16)]  # with different seeds
    with pytest.raises(ValueError, match="no setting has both strengths 4 and 16"):
        study_tables.b2(runs, [4, 16])


def test_attacks_are_side_by_side_and_a_missing_loss_is_null(tmp_path: Path) -> None:
    runs = [
        with_attacks(make_run(tmp_path, 4, 0), ["cross_entropy", "dlr", "worst"]),
        with_attacks(make_run(tmp_path, 8, 0), ["cross_entropy", "worst"], pgd=None),
    ]
    frame = study_tables.attacks(runs)
    names = ["pgd_acc", "robust_acc", "apgd_n", "pixel_acc_eps8", "apgd_ce_robust", "apgd_dlr_robust", "apgd_robust"]
    assert list(frame) == [*KEYS, *names]
    expected = [[50, 45, 100, 50, 44, 43, 42], [np.nan, 45, 100, np.nan, 44, np.nan, 43]]
    np.testing.assert_array_equal(frame[names].to_numpy("float64"), expected)


def test_padding_compares_exact_spectra_of_convolutions_and_norms_of_all_layers(tmp_path: Path) -> None:
    frame = study_tables.padding([with_spectra(make_run(tmp_path, 4, 0), [1.0, 5.0, 2.0, 8.0])])
    (row,) = frame.to_dict("records")
    assert row["n_dense"] == 2  # all except layer 2 and the linear layer
    assert (row["std_circular"], row["std_zero"]) == pytest.approx((1.5, 1.35))
    assert row["std_relative_difference"] == pytest.approx(-0.1)
    assert (row["max_ratio_median"], row["max_ratio_max"]) == pytest.approx((0.875, 0.95))
    assert row["max_zero"] == pytest.approx(1.9)
    assert row["log10_complexity_circular"] == pytest.approx(np.log10(2.0**4))
    assert row["log10_complexity_zero"] == pytest.approx(np.log10(1.9 * 1.8 * 1.7 * 1.6))


def test_theory_keeps_all_columns_of_the_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4, 0)
    content = {"bound": [1.5], "direction": ["upper"], "n": [3]}
    parquet.write_frame(Path(run["folder"]) / "theory.parquet", pa.table(content), {})
    frame = study_tables.theory([run])
    assert list(frame) == [*KEYS, "bound", "direction", "n"]
    summary = study_tables.summarise(frame)
    assert list(summary) == [*KEYS[:-1], "direction", "bound_mean", "bound_std", "n_mean", "n_std", "n_seeds"]


def test_every_column_of_every_table_has_a_description(tmp_path: Path) -> None:
    runs = [with_spectra(make_run(tmp_path, ar, 0), [1.0, 2.0, 3.0]) for ar in (8, 16)]
    for run in runs:
        with_attacks(run, ["worst"])
    makers = [
        study_tables.table1,
        study_tables.table2,
        study_tables.table3,
        study_tables.attacks,
        study_tables.padding,
        lambda runs: study_tables.b2(runs, [8, 16]),
    ]
    columns = {column for maker in makers for column in maker(runs) if column not in (*KEYS, "ar_high", "layers")}
    for column in columns | set(schemas.SCHEMAS["theory"].names):
        assert describe(column) != Quantity(column.replace("_", " "), "", 4), column
    assert describe("lemma_residual").text(-1.5e-12) == "\N{MINUS SIGN}1.5e\N{MINUS SIGN}12"
    assert describe("n_decreased").text(41.0) == "41"


def test_every_table_has_a_maker() -> None:
    assert {*study_tables.TABLE_FUNCTIONS, "b2"} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_record_writes_the_same_table_and_summary_as_parquet_and_csv(
    runs: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "tables"
    for run in runs:
        with_attacks(with_spectra(run, [1.0, 2.0, 3.0 / run["ar"]]), ["cross_entropy", "worst"])
        parquet.write_frame(Path(run["folder"]) / "theory.parquet", pa.table({"bound": [0.5]}), {})
    study_tables.record(name, runs, compare=[8, 16], folder=folder, study="demo")
    assert {file.name for file in folder.iterdir()} == {
        f"{stem}.{suffix}" for stem in (name, f"{name}_summary") for suffix in ("parquet", "csv")
    }
    for stem, rows in ((name, 6), (f"{name}_summary", 3)):
        arrow = parquet.read(folder / f"{stem}.parquet")
        frame = arrow.to_pandas()
        assert len(frame) == (2 if name == "b2" else rows)
        assert parquet.read_metadata(folder / f"{stem}.parquet") == {"study": "demo"}
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{stem}.csv"), frame, check_dtype=False, rtol=1e-12)
        assert set(arrow["spectral_norm"].to_pylist()) == ({None} if name == "b2" else {None, 3.0})  # null, not NaN


def test_the_bounds_of_runs_without_any_bound_are_a_column_of_nulls(tmp_path: Path) -> None:
    study_tables.record("table3", [make_run(tmp_path, 8, 0)], compare=[8, 16], folder=tmp_path / "tables", study="demo")
    for stem in ("table3", "table3_summary"):
        arrow = parquet.read(tmp_path / "tables" / f"{stem}.parquet")
        assert str(arrow.schema.field("spectral_norm").type) == "double"
        assert arrow["spectral_norm"].to_pylist() == [None]
    assert arrow["train_acc_std"].to_pylist() == [None]  # one seed

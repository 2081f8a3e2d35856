"""Comparison with the paper: invented runs that have exactly the paper's numbers, or similar ones."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.collections import PathCollection

from robreg.figures import comparison_plot
from robreg.paper import agreement, comparison, reference
from robreg.report.comparison_section import count_sentence
from robreg.runs import config
from robreg.runs.variant import base_attack, paper_name
from robreg.tables import parquet, schemas

ROOT = Path(__file__).parents[2]
EXPECTED_COLUMNS = [
    "table",
    "dataset",
    "arch",
    "train_attack",
    "space",
    "spectral_norm",
    "ar",
    "metric",
    "paper",
    "ours_mean",
]
EXPECTED_COLUMNS += ["ours_std", "n_seeds", "difference", "status", "note"]
NUMBERS = 264
STDS = {4: 1.0, 16: 0.8}  # of the singular values of every layer except the first, by AR


def make(root: Path, run: dict[str, Any], *, factor: float = 1.0) -> dict[str, Any]:
    """Write a run with the paper's numbers times factor; numbers that the paper does not print are 7."""
    paper = reference.read_reference()
    keys = ["arch", "train_attack", "spectral_norm", "ar"]
    own = {**run, "arch": paper_name(run["arch"]), "train_attack": base_attack(run["train_attack"])}
    same = paper[keys].fillna(0) == [own[key] or 0 for key in keys]
    mine = paper[same.all(axis=1) & (paper["dataset"] == run["paper"])]
    values = {row.metric: factor * row.paper for row in mine.itertuples()}
    folder = root / run["folder"]
    numbers = {name: [values.get(name, 7.0)] for name in schemas.SCHEMAS["metrics"].names}
    parquet.write(folder / "metrics.parquet", "metrics", numbers, {})
    rows = {name: [] for name in schemas.SCHEMAS["lossvar"].names}
    for eps in (1, 2, 4):
        mean, std = (values.get(f"probability_variation_{name}_eps{eps}", 7.0) for name in ("mean", "std"))
        two = [[eps] * 2, [0, 1], *[[1.0] * 2] * 5, [mean - std, mean + std]]
        rows = {name: old + new for (name, old), new in zip(rows.items(), two, strict=True)}
    parquet.write(folder / "lossvar.parquet", "lossvar", rows, {})
    layers = 5
    std = [factor * (STDS.get(run["ar"], 1.0) if index else 1.0 + 0.01 * run["ar"]) for index in range(layers)]
    columns: dict[str, Any] = {name: [1] * layers for name in schemas.SCHEMAS["svstd"].names[3:10]}
    columns = {"layer": range(layers), "name": list("abcde"), "kind": ["conv"] * 4 + ["linear"], **columns}
    columns |= {"mean": [1.0] * layers, "std": std, "min": [0.0] * layers, "max": [2.0] * layers}
    columns |= {name: [1] * layers for name in schemas.SCHEMAS["svstd"].names[14:20]}
    columns |= {"operator": ["circular"] * layers, "method": ["fft"] * layers}
    columns |= {"error_mean": [None] * layers, "error_std": [None] * layers}
    parquet.write(folder / "svstd.parquet", "svstd", columns, {})
    return {**run, "folder": str(folder)}


def study(name: str) -> list[dict[str, Any]]:
    return config.study_runs(yaml.safe_load((ROOT / "config.yaml").read_text()), name)


def compared(runs: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(comparison.compare(runs), columns=comparison.SCHEMA.names)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("paper")
    return [make(root, run) for run in study("paper")]


def test_the_paper_s_study_is_compared_with_every_number(paper):
    frame = compared(paper)
    assert len(frame) == NUMBERS
    assert frame["status"].value_counts().to_dict() == {"compared": NUMBERS - 3, "suspected misprint": 3}
    assert frame["ours_mean"].notna().all()
    rest = frame[frame["table"] != "B.2"]
    np.testing.assert_allclose(rest["difference"].astype(float), 0, atol=1e-6)
    assert set(frame["space"]) == {"normalised"}
    assert (frame["dataset"] == frame["run_dataset"]).all()


def test_b2_is_over_convolutions_between_ar_4_and_16(paper):
    frame = compared(paper)
    found = frame[(frame["table"] == "B.2") & (frame["dataset"] == "c10")].set_index("metric")["ours_mean"]
    expected = {"svstd_decrease_sum": 0.6, "svstd_decrease_mean": 0.2, "svstd_increase_sum": 0.12}
    assert {key: pytest.approx(found[key]) for key in expected} == expected  # 3 convolutions fall, 1 rises
    assert found["svstd_increase_mean"] == pytest.approx(0.12)


def test_a_study_without_the_paper_s_networks_lists_every_number_as_not_run(tmp_path):
    frame = compared(study("demo"))
    assert len(frame) == NUMBERS
    assert set(frame["status"]) == {"not run", "suspected misprint"}
    assert frame[["run_dataset", "space", "ours_mean", "ours_std", "n_seeds", "difference"]].isna().all(axis=None)


def test_both_spaces_and_data_sets_with_other_names_have_separate_rows(tmp_path):
    runs = study("conventions") + study("literal")
    frame = compared([make(tmp_path, run) for run in runs])
    table3 = frame[(frame["table"] == "3") & (frame["metric"] == "test_acc") & frame["ours_mean"].notna()]
    found = table3[["ar", "run_dataset", "arch", "train_attack", "space"]].astype(object).values.tolist()
    assert sorted(found) == [
        [4, "c10", "resnet56", "pgd", "normalised"],
        [4, "c10", "resnet56nobias", "pgd", "pixel"],
        [8, "c10", "resnet56nobias", "pgd", "pixel"],
        [16, "c10", "resnet56", "pgd", "normalised"],
        [16, "c10", "resnet56nobias", "pgd", "pixel"],
        [16, "c10e40", "resnet56", "pgd", "normalised"],
        [16, "c10e40", "resnet56", "pgd", "symmetric"],
        [16, "c10e40", "resnet56", "pgd+clean0.5", "symmetric"],
    ]
    assert set(frame[frame["spectral_norm"] == 3]["status"]) == {"not run"}
    cells = [key for key in ("table", "dataset", "spectral_norm", "ar", "ar_high", "metric") if key in frame]
    of_56 = frame[frame["ours_mean"].notna()].assign(fgsm=frame["train_attack"] == "fgsm")
    numbers = len(of_56.drop_duplicates([*cells, "fgsm"]))
    assert count_sentence(frame).startswith(f"{numbers} of the {NUMBERS} numbers that the paper prints are compared")


def test_seeds_give_mean_and_std_with_ddof_1_and_one_seed_gives_no_std(tmp_path):
    first = next(run for run in study("paper") if (run["dataset"], run["variant"]) == ("c10", "ar8"))
    seeds = [
        make(tmp_path, {**first, "seed": seed, "folder": f"s{seed}"}, factor=factor)
        for seed, factor in enumerate((0.9, 1.0, 1.4))
    ]
    row = compared(seeds).query("table == '3' and ar == 8 and arch == 'resnet56' and metric == 'test_acc'").iloc[0]
    assert row["ours_mean"] == pytest.approx(87.51 * 1.1)
    assert row["ours_std"] == pytest.approx(87.51 * np.std([0.9, 1.0, 1.4], ddof=1))
    assert (row["n_seeds"], row["difference"]) == (3, pytest.approx(8.751))
    alone = compared(seeds[:1]).query("table == '3' and ar == 8 and metric == 'test_acc'").iloc[0]
    assert np.isnan(alone["ours_std"])


def test_an_adversarial_accuracy_of_no_correct_examples_has_no_value(tmp_path):
    run = make(tmp_path, next(run for run in study("paper") if run["variant"] == "ar8"))
    path = Path(run["folder"]) / "metrics.parquet"
    parquet.write(path, "metrics", {**parquet.read(path).to_pydict(), "pgd_acc": [None]}, {})
    row = compared([run]).query("table == '3' and ar == 8 and arch == 'resnet56' and metric == 'pgd_acc'").iloc[0]
    assert row[["ours_mean", "difference"]].isna().all()
    assert row["status"] == "compared"


def test_the_closer_space_is_found_on_the_numbers_that_both_have(tmp_path):
    runs = [run for run in study("paper") if run["dataset"] == "c10"]
    pixel = [make(tmp_path, {**run, "space": "pixel"}, factor=1.3) for run in runs]
    other = [
        make(tmp_path, {**run, "space": "normalised", "folder": f"n/{run['folder']}"}, factor=0.9)
        for run in runs
        if run["variant"] == "ar8"
    ]
    frame = compared(pixel + other)
    found = agreement.summarise_agreement(frame).set_index(["table", "space"])
    assert (found["run_dataset"] == "c10").all()
    assert found.loc[("3", "pixel"), "median_relative_difference"] == pytest.approx(0.3)
    assert found.loc[("3", "normalised"), "median_relative_difference"] == pytest.approx(0.1)
    assert found.loc["3", "n"].tolist() == [7, 7]  # only those of AR 8
    assert found.loc["3", "nearest"].to_dict() == {"pixel": False, "normalised": True}
    assert "Table 3, c10: normalised space 10 %, pixel space 30 % (of 7 numbers)." in agreement.describe_closer_space(
        frame
    )
    assert agreement.describe_closer_space(compared(pixel)) == ""
    assert agreement.describe_closer_space(compared([])) == ""


def test_a_suspected_misprint_and_a_zero_do_not_count_in_the_agreement(paper):
    found = agreement.summarise_agreement(compared(paper)).set_index(["table", "dataset"])["n"]
    assert found["B.2", "c100"] == 3
    counted = compared(paper).query("table == '3' and dataset == 'c10'")
    assert found["3", "c10"] == len(counted) - 1
    assert found["5", "tin"] == 27


# The paper's numbers.


def test_all_of_the_paper_s_numbers_are_read_and_the_misprint_is_marked():
    frame = reference.read_reference()
    assert len(frame) == NUMBERS
    odd = frame[frame["status"].notna()]
    assert odd[["table", "dataset", "metric", "paper"]].to_numpy().tolist() == [
        ["3", "c10", "pgd_acc", 65.92],
        ["6", "c10", "pgd_acc", 65.92],
        ["B.2", "c100", "svstd_increase_sum", 0.4372],
    ]
    assert pytest.approx(1.76, abs=0.01) == 0.1103 * 16
    alike = frame[(frame["dataset"] == "c10") & (frame["ar"] == 4) & (frame["metric"] == "pgd_acc")]
    similar = alike[(alike["status"].isna()) & (alike["train_attack"] == "pgd")]["paper"]
    assert sorted(similar) == [54.91, 56.83, 57.93, 58.02]  # as the note says


def test_exactly_the_gaps_that_differ_from_their_losses_have_a_note_on_rounding():
    frame = reference.read_reference()
    keys = ["table", "dataset", "arch", "train_attack", "spectral_norm", "ar"]
    wide = frame.pivot_table(index=keys, columns="metric", values="paper", dropna=False).reset_index()

    def sorted_keys(rows):
        return sorted(map(tuple, rows[keys].astype(str).to_numpy()))

    off = wide[(wide["test_loss"] - wide["train_loss"] - wide["loss_gap"]).abs() > 5e-4]
    noted = frame[frame["note"].str.contains("rounding")]
    assert sorted_keys(off) == sorted_keys(noted)
    assert len(noted) == 3


def test_the_error_for_a_damaged_file_names_it(tmp_path):
    lines = reference.FILE.read_text().splitlines(keepends=True)
    damaged = {
        "columns": [lines[0].replace("value", "number"), *lines[1:]],
        "missing or listed twice": [*lines, lines[5]],
        "which has a note": [line for line in lines if "svstd_increase_sum" not in line],
    }
    for words, content in damaged.items():
        (tmp_path / "reference.csv").write_text("".join(content))
        with pytest.raises(ValueError, match=rf"reference\.csv: .*{words}"):
            reference.read_reference(tmp_path / "reference.csv")


# Files.


def test_the_record_has_the_expected_columns_and_is_identical_when_made_again(paper, tmp_path):
    for name in ("one", "two"):
        files = {kind: tmp_path / f"{name}.{kind}" for kind in ("parquet", "csv", "svg", "png")}
        comparison_plot.record(paper, study="paper", **files)
    columns = parquet.read(tmp_path / "one.parquet").column_names
    assert [name for name in columns if name in EXPECTED_COLUMNS] == EXPECTED_COLUMNS
    for kind in ("parquet", "csv", "svg", "png"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    assert all(title in text for title in comparison_plot.PANELS)
    assert "suspected misprint" in text


def test_a_plot_without_any_numbers_says_so(tmp_path):
    files = {kind: tmp_path / f"none.{kind}" for kind in ("parquet", "csv", "svg", "png")}
    comparison_plot.record(study("demo"), study="demo", **files)
    assert comparison_plot.NOTHING_TO_COMPARE in files["svg"].read_text()


@pytest.mark.parametrize(
    ("last", "scale"), [(comparison_plot.LINEAR_SPAN - 0.1, "linear"), (comparison_plot.LINEAR_SPAN + 0.1, "log")]
)
def test_axes_of_losses_are_logarithmic_if_the_numbers_span_more_than_the_caption_says(paper, last, scale):
    frame = (
        compared([run for run in paper if run["variant"] == "ar8"])
        .query("ours_mean == ours_mean and metric == 'test_loss'")
        .head(2)
    )
    frame = frame.assign(paper=[1.0, last], ours_mean=[1.0, last])
    assert comparison_plot.draw_comparison(frame).axes[0].get_xscale() == scale
    caption = (ROOT / "workflow/report/comparison.rst").read_text()
    assert f"logarithmic if the numbers span more than a factor of {comparison_plot.LINEAR_SPAN}." in caption


def test_misprints_are_ringed_in_the_plot(paper):
    figure = comparison_plot.draw_comparison(compared(paper))
    ringed = {}
    for ax in figure.axes:
        rings = [one for one in ax.collections if isinstance(one, PathCollection)]  # other collections are error bars
        ringed[ax.get_title()] = sorted(float(x) for one in rings for x, _ in one.get_offsets())
    assert ringed["Accuracies"] == [65.92, 65.92]
    assert ringed["Std of singular values (B.2)"] == [0.4372]


def test_snakemake_s_report_has_the_claims_and_the_comparison():
    rules = (ROOT / "workflow/rules/study.smk").read_text()
    for file in ("claims.csv", "comparison.csv", "figures/comparison.svg"):
        assert re.search(rf'report\(\s*"results/studies/{{study}}/{file}"', rules)


def test_every_metric_of_the_paper_has_a_panel():
    prefixes = tuple(name for metrics, _, _ in comparison_plot.PANELS.values() for name in metrics)
    assert reference.read_reference()["metric"].str.startswith(prefixes).all()

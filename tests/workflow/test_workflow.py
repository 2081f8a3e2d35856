"""The whole workflow at reduced size: what it makes, what it makes again, and what it refuses."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from helpers.browser import assert_works_offline
from helpers.snakemake_copy import ROOT, SNAKEMAKE, copy_tree, planned, same_weights, snakemake, started, trainer

from robreg.data.dataset import _fingerprint, hash_meta
from robreg.runs import settings
from robreg.runs.config import validate
from robreg.tables import parquet
from robreg.training.kept import FILES

REPORT = "results/studies/demo/report.html"
FIGURES = ("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig8", "fig9", "fig10", "fig11", "fig12")
FIGURES += ("spread", "examples")
TABLES = ("table1", "table2", "table3", "table6", "b2", "attacks", "padding", "theory")
# Jobs that are repeated after a change of any run; fig2 shows no run.
STUDY = {"table": 8, "figure": 12, "claims": 1, "comparison": 1, "audit": 1, "report": 1, "demo": 1}
MEASURES = ("margins", "apgd", "attacks", "masking", "lossvar", "sv", "spread", "theory", "metrics", "checks")
COLUMNS = {
    "history": "epoch lr loss acc sigma_max seconds examples_per_s",
    "margins": "split index label prediction margin prob loss",
    "attacks": "attack space start loss eps step steps restarts seed split n n_correct n_robust "
    "acc_conditional acc_robust",
    "lossvar": "eps index loss_clean loss_adv variation prob_clean prob_adv prob_variation",
    "sv": "layer name sigma multiplicity",
    "svstd": "layer name kind c_in c_out kernel stride height width n mean std min max "
    "kernel_width stride_width groups calls rows columns operator method error_mean error_std",
    "live": "layer name rows columns dead_rows frozen_columns frozen_share std max std_live max_live",
    "padding": "layer name method std_circular std_zero max_circular max_zero",
    "spread": "layer name perturbation eps n mean std",
    "metrics": "train_acc test_acc acc_gap train_loss test_loss loss_gap pgd_acc robust_acc spectral_complexity "
    "log10_spectral_complexity",
}
TIMES = {"history.parquet": ("seconds", "examples_per_s")}  # columns of result files that hold times
TIMED = {"report.html"}  # states how long everything took
SETTING = "dataset arch train_attack space spectral_norm ar"
PLAIN = {"ar0": (0, 0), "ar0-s1": (0, 1), "ar8": (8, 0), "ar8-s1": (8, 1)}
SHOWN_AS_EXAMPLES = ("ar0", "ar8", "ar8-normspace")
RUNS = {**PLAIN, "ar8-fgsm": (8, 0), "ar8-sn1": (8, 0), "ar8-normspace": (8, 0)}


def reduce(config):
    """Reduce the demo to 300 images, 4 epochs, two strengths, two seeds and one run of every other kind."""
    digits = config["datasets"]["digits"]
    digits |= {"max_train": 300, "max_test": 100}
    digits["training"] |= {"epochs": 4, "lr_drops": [3]}
    digits["strong_attack"] |= {"steps": 10, "n": 50}
    digits["theory"] |= {"n": 10, "steps": 20, "pairs": 1}
    kinds = ({"attack": ["fgsm"]}, {"spectral_norm": [1]}, {"space": ["normalised"]})
    runs = [
        {"dataset": "digits", "ar": [0, 8], "seeds": [0, 1]},
        *({"dataset": "digits", "ar": [8], **k} for k in kinds),
    ]
    config["studies"]["demo"] |= {"runs": runs, "compare": [0, 8]}


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Run the reduced demo study; return its folder. Tests that change it must restore it."""
    folder = copy_tree(tmp_path_factory.mktemp("demo"), reduce)
    snakemake(folder, "--cores", "all", "demo")
    return folder


@pytest.fixture
def restored(demo):
    """Return the finished demo, and restore its files, and what Snakemake knows of them, after the test."""
    parts = ("config.yaml", "workflow", "src", "results", ".snakemake/metadata")
    watched = [path for part in parts for path in files(demo / part)]
    before = {path: (path.read_bytes(), path.stat()) for path in watched}
    yield demo
    for path, (content, stat) in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def files(path):
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def test_the_demo_makes_all_documented_files(demo):
    for variant in RUNS:
        run = demo / "results/digits" / variant
        tables = [f"{kind}.parquet" for kind in (*COLUMNS, "apgd", "masking", "checks", "theory")]
        own = ["examples.parquet"] if variant in SHOWN_AS_EXAMPLES else []
        assert sorted(path.name for path in run.iterdir()) == sorted(["checkpoint.pt", "kept", *own, *tables])
        for rule in ("train", *MEASURES, *(["examples"] if variant in SHOWN_AS_EXAMPLES else [])):
            assert (demo / f"logs/{rule}/digits/{variant}.log").exists()
            assert (demo / f"benchmarks/{rule}/digits/{variant}.tsv").exists()
    study = demo / "results/studies/demo"
    for name in ("claims", "comparison"):
        assert len(pd.read_csv(study / f"{name}.csv")) == parquet.read(study / f"{name}.parquet").num_rows > 50
    for name in TABLES:
        for end in (".parquet", ".csv", "_summary.parquet", "_summary.csv"):
            assert (study / f"tables/{name}{end}").stat().st_size > 0
    for name in (*FIGURES, "comparison"):
        assert (study / f"figures/{name}.svg").read_text().startswith("<?xml")
        assert (study / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", COLUMNS)
def test_tables_have_the_documented_columns_and_provenance(demo, kind):
    hashes = set()
    for variant, (_, seed) in RUNS.items():
        path = demo / f"results/digits/{variant}/{kind}.parquet"
        assert parquet.read(path).column_names == COLUMNS[kind].split()
        found = parquet.read_metadata(path)
        assert (found["dataset"], found["variant"], found["seed"]) == ("digits", variant, seed)
        assert re.fullmatch(r"\d+\.\d+\.\d+", found["version"])
        hashes.add(found["settings_hash"])
        checkpoint = torch.load(demo / f"results/digits/{variant}/checkpoint.pt", weights_only=True)
        assert found["settings_hash"] == checkpoint["meta"]["settings_hash"]
    assert len(hashes) == len(RUNS)


@pytest.mark.parametrize("variant", RUNS)
def test_the_tables_of_a_run_agree_with_each_other(demo, variant):
    run = demo / "results/digits" / variant
    frames = {kind: parquet.read(run / f"{kind}.parquet").to_pandas() for kind in COLUMNS}
    margins, (metrics,), attacks = frames["margins"], *(frames[k].to_dict("records") for k in ("metrics", "attacks"))
    attack, in_pixels, strong = attacks[0], attacks[1:4], attacks[4:]
    assert [(row["attack"], row["space"], row["eps"], row["step"]) for row in in_pixels] == [
        ("pgd", "pixel", eps, eps / 4) for eps in (4, 8, 16)
    ]
    assert margins.groupby("split")["index"].apply(list).to_dict() == {"test": [*range(100)], "train": [*range(300)]}
    correct = margins[margins["prediction"] == margins["label"]]
    assert (correct["margin"] >= 0).all()
    assert (margins.drop(correct.index)["margin"] <= 0).all()
    for split, n in (("train", 300), ("test", 100)):
        assert metrics[f"{split}_acc"] == pytest.approx(100 * (correct["split"] == split).sum() / n)
        assert metrics[f"{split}_loss"] == pytest.approx(
            margins.loc[margins["split"] == split, "loss"].mean(), rel=1e-5
        )
    assert metrics["acc_gap"] == pytest.approx(metrics["train_acc"] - metrics["test_acc"])
    assert metrics["loss_gap"] == pytest.approx(metrics["test_loss"] - metrics["train_loss"])
    assert (attack["eps"], attack["step"], attack["steps"], attack["n"]) == (32, 8, 10, 100)
    assert attack["n_robust"] <= attack["n_correct"] == (correct["split"] == "test").sum()
    assert metrics["robust_acc"] == attack["acc_robust"] == attack["n_robust"]
    assert [(row["attack"], row["loss"], row["n"]) for row in strong] == [
        ("apgd", loss, 50) for loss in ("cross_entropy", "dlr", "worst")
    ]
    assert strong[2]["n_robust"] <= min(strong[0]["n_robust"], strong[1]["n_robust"])
    assert {row["space"] for row in [attack, *strong]} == {"normalised" if "normspace" in variant else "pixel"}
    assert frames["history"]["sigma_max"].isna().all() == ("sn1" not in variant)
    assert frames["spread"].groupby("layer").size().to_dict() == {layer: 2 for layer in range(9)}
    assert frames["padding"]["name"].tolist() == frames["svstd"]["name"].tolist()
    lossvar = frames["lossvar"]
    assert lossvar.groupby("eps").size().to_dict() == {4: 100, 8: 100, 16: 100}
    assert (lossvar["variation"] >= 0).all()
    clean = margins.loc[margins["split"] == "test", "loss"].to_numpy()
    assert all(abs(part["loss_clean"].to_numpy() - clean).max() < 1e-5 for _, part in lossvar.groupby("eps"))
    svstd, sv = frames["svstd"], frames["sv"]
    assert svstd["n"].tolist() == sv.groupby("layer")["multiplicity"].sum().tolist()
    assert svstd["max"].tolist() == sv.groupby("layer")["sigma"].max().tolist()
    assert metrics["log10_spectral_complexity"] == pytest.approx(sum(math.log10(value) for value in svstd["max"]))
    assert variant != "ar8-sn1" or frames["padding"]["max_zero"].max() <= 1 + 1e-6
    keys = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    assert all(f"{name}.weight" in keys for name in svstd["name"])


@pytest.mark.parametrize("variant", SHOWN_AS_EXAMPLES)
def test_the_attacked_images_of_a_run_are_those_of_its_attacks_and_network(demo, variant):
    run = demo / "results/digits" / variant
    rows = parquet.read(run / "examples.parquet").to_pylist()
    attack = parquet.read(run / "attacks.parquet").to_pylist()[0]
    margins = parquet.read(run / "margins.parquet").to_pandas().query("split == 'test'").set_index("index")
    radii = {"evaluation": 32} if variant.startswith("ar0") else {"evaluation": 32, "training": 8}
    assert [(row["radius"], row["eps"]) for row in rows] == [pair for pair in radii.items() for _ in range(2)]
    assert {key: rows[0][key] for key in ("space", "step", "steps", "restarts")} == {
        key: attack[key] for key in ("space", "step", "steps", "restarts")
    }
    for row in rows:
        clean = margins.loc[row["index"]]
        assert (row["label"], row["prediction"]) == (clean["label"], clean["prediction"])
        assert row["margin"] == pytest.approx(clean["margin"], rel=1e-4)


def test_study_tables_have_a_row_per_run_and_a_row_per_setting(demo):
    folder = demo / "results/studies/demo/tables"
    for name in ("table1", "table3"):
        rows = parquet.read(folder / f"{name}.parquet").to_pandas()
        assert rows.columns[:7].tolist() == [*SETTING.split(), "seed"]
        assert list(zip(rows["ar"], rows["seed"], strict=True)) == [*PLAIN.values(), (8, 0)]
        assert rows["space"].tolist() == ["pixel"] * 4 + ["normalised"]
        summary = parquet.read(folder / f"{name}_summary.parquet").to_pandas()
        assert summary.columns[:6].tolist() == SETTING.split()
        assert summary["n_seeds"].tolist() == [2, 2, 1]
        rows, summary = rows[:4], summary[:2]
        for metric in rows.columns[7:]:
            groups = rows.groupby("ar")[metric]
            assert summary[f"{metric}_mean"].tolist() == pytest.approx(groups.mean().tolist())
            assert summary[f"{metric}_std"].tolist() == pytest.approx(groups.std(ddof=1).tolist())
        assert pd.read_csv(folder / f"{name}_summary.csv").columns.tolist() == summary.columns.tolist()


@pytest.mark.parametrize("width", [375, 1280])
def test_the_demo_s_report_works_offline(demo, page, width):
    assert_works_offline(
        page, demo / REPORT, width=width, figures=len(FIGURES)
    )  # without a comparison plot, because the paper has no such runs


def test_no_cell_of_a_csv_file_is_a_formula(demo):
    config = yaml.safe_load((demo / "config.yaml").read_text())
    texts = [config["studies"]["demo"]["title"], config["datasets"]["digits"]["title"]]
    found = sorted((demo / "results").rglob("*.csv"))
    assert len(found) == 2 * len(TABLES) + 2
    for path in found:
        content = path.read_text()
        assert not any(text in content for text in texts)  # tables only contain names, which are letters and digits
        for row in csv.reader(io.StringIO(content)):
            assert not [cell for cell in row if cell[:1] in tuple("=+-@\t\r") and not number(cell)], path


def number(cell):
    """Return whether a cell is a plain number."""
    return re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?|[+-]?inf", cell) is not None


def test_nothing_is_planned_for_a_finished_study(demo):
    assert planned(demo, "demo") == {}


def two_networks(config, **others):
    """Add a study of two networks of the demo that shows one figure and judges no claims."""
    study = {"title": "Mine", "runs": [{"dataset": "digits", "ar": [0, 8]}], "figures": ["fig1"], "tables": ["table3"]}
    config["studies"]["mine"] = {**study, "claims": False, **others}


def configure(folder, edit):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def test_a_study_without_claims_makes_only_what_it_shows(restored):
    configure(restored, two_networks)
    study = restored / "results/studies/mine"
    made = {"figure": 1, "table": 1, "audit": 1, "report": 1, "mine": 1}
    assert planned(restored, "mine") == made
    output = snakemake(restored, "-c1", "mine")
    assert output.splitlines()[-3:] == [
        "The study mine is finished: 2 networks are trained and measured.",
        "Report: results/studies/mine/report.html (open it in a browser)",
        "Numbers: results/studies/mine/tables, and of each network, results/digits",
    ]
    assert "localrule report:" in output
    assert "localrule mine:" not in output
    assert not (study / "claims.csv").exists()
    assert not (study / "comparison.csv").exists()
    report = (study / "report.html").read_text()
    assert 'href="#claims"' not in report
    assert 'id="comparison"' not in report
    assert 'id="fig1"' in report
    assert "Stronger attack" in report
    for words in ("Spread in the layers", "Loss variation", "loss_variation", "loss variation", "theory."):
        assert words not in report
    assert "Spread in the layers" in (restored / "results/studies/demo/report.html").read_text()
    rows = parquet.read(study / "audit.parquet").to_pandas()
    for variant in ("ar0", "ar8"):  # the audit checks what the rule checks does, but for the loss variation
        full = parquet.read(restored / f"results/digits/{variant}/checks.parquet").to_pandas()["check"].tolist()
        own = rows[rows["place"] == f"results/digits/{variant}"]["check"].tolist()
        assert own == [name for name in full if not name.startswith(("lossvar", "variation"))]
    sealed = parquet.read_metadata(study / "audit.parquet")["sealed"]
    assert {"results/digits/ar8/checkpoint.pt", "results/digits/ar8/masking.parquet"} <= sealed.keys()
    assert "Nothing to be done" in snakemake(restored, "-c1", "mine")
    # Of new networks, only what is shown and what says whether accuracies can be trusted is measured.
    configure(restored, lambda config: two_networks(config, runs=[{"dataset": "digits", "ar": [0, 8], "seeds": [7]}]))
    measures = dict.fromkeys(("train", "margins", "apgd", "attacks", "masking", "sv", "metrics"), 2)
    assert planned(restored, "mine") == made | measures
    # Nothing is compared in a study of a single strength.
    configure(restored, lambda config: two_networks(config, runs=[{"dataset": "digits", "ar": [8]}]))
    snakemake(restored, "-c1", "mine")
    report = (study / "report.html").read_text()
    assert "No setting of this study has networks of two strengths" in report
    # A false table of a run is found, although the run's own checks are not made.
    configure(restored, two_networks)
    table = restored / "results/digits/ar8/attacks.parquet"
    table.write_bytes((restored / "results/digits/ar0/attacks.parquet").read_bytes())
    output = snakemake(restored, "-c1", "--rerun-triggers", "mtime", "--forcerun", "audit", "--", "mine", check=False)
    assert "same_run" in output
    shutil.rmtree(study)


def test_a_deleted_table_is_made_again_by_its_own_rule_only(restored):
    target = "results/digits/ar8/svstd.parquet"
    before = (restored / target).read_bytes()
    (restored / target).unlink()
    assert planned(restored, target) == {"sv": 1}
    snakemake(restored, "-c1", target)
    assert (restored / target).read_bytes() == before


@pytest.mark.parametrize(
    ("false", "column", "check"),
    [
        ("results/digits/ar8/metrics.parquet", "test_acc", "metrics_test_acc"),
        ("results/studies/demo/tables/table3.parquet", "test_acc", "table3_cells"),
    ],
)
def test_no_report_is_made_from_results_that_contradict_each_other(false, column, check, restored):
    """The job fails, names the wrong file and the fix, and logs all checks; the fix then works."""
    path, audit = restored / false, "results/studies/demo/audit.parquet"
    before = {each: (restored / each).read_bytes() for each in (false, audit)}
    found = parquet.read(path).to_pandas()
    found.loc[0, column] += 0.5
    parquet.write_frame(path, pa.Table.from_pandas(found, preserve_index=False), parquet.read_metadata(path))
    of_study = ("audit", "demo", audit)
    rule, place, made = (
        of_study if "studies" in false else ("checks", "digits/ar8", "results/digits/ar8/checks.parquet")
    )
    assert {rule, "audit", "report"} <= planned(restored, "demo").keys()
    said = snakemake(restored, "-c1", audit, check=False)
    assert re.search(
        rf"Error: .*{Path(false).name}.* contradict .*{check} .*; delete the wrong files, ask Snakemake for each by",
        said,
    )
    log = (restored / f"logs/{rule}/{place}.log").read_text()
    assert f"VIOLATED {check}:" in log
    assert log.count("holds ") > 5
    assert not (restored / made).exists()
    path.unlink()
    snakemake(restored, "-c1", false)
    assert {rule, "audit", "report"} <= planned(restored, "demo").keys()
    snakemake(restored, "-c1", audit)
    assert {each: (restored / each).read_bytes() for each in (false, audit)} == before


@pytest.mark.parametrize("edited", ["config.yaml", "workflow/scripts/train.py", "workflow/scripts/margins.py"])
def test_adding_a_comment_repeats_nothing(restored, edited):
    with (restored / edited).open("a") as file:
        file.write("# a comment\n")
    assert planned(restored, "demo") == {}


@pytest.mark.parametrize(("edited", "spread"), [("singular_values", 0), ("layers", 7)])
def test_editing_the_spectrum_code_repeats_what_depends_on_it_but_no_training(edited, spread, restored):
    with (restored / f"src/robreg/spectra/{edited}.py").open("a") as file:
        file.write("# another way to compute it\n")
    plan = planned(restored, "demo")
    assert (plan["sv"], plan.get("spread", 0), plan["theory"], plan["metrics"]) == (7, spread, 7, 7)
    assert not {"prepare", "train", "margins", "apgd", "attacks", "lossvar"} & set(plan)


def test_editing_training_code_trains_nothing(restored):
    with (restored / "src/robreg/training/loop.py").open("a") as file:
        file.write("# another way to train\n")
    assert planned(restored, "demo") == {"report": 1, "demo": 1}  # the report says that networks are older


def edit_config(folder, edit):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def test_an_override_repeats_only_its_run(restored):
    edit_config(restored, lambda config: config["runs"].update({"digits/ar8": {"training": {"epochs": 5}}}))
    once = {rule: 1 for rule in ("train", *MEASURES, "examples")}
    plan = planned(restored, "demo")
    assert {rule: plan[rule] for rule in once} == once
    assert {rule: plan[rule] for rule in STUDY} == STUDY | {"table": plan["table"], "figure": plan["figure"]}
    assert planned(restored, "results/digits/ar8-s1/metrics.parquet") == {}


def test_another_evaluation_attack_repeats_only_what_depends_on_it(restored):
    edit_config(restored, lambda config: config["datasets"]["digits"]["evaluation"].update(steps=3))
    plan = planned(restored, "demo")
    assert (plan["attacks"], plan["metrics"]) == (7, 7)
    assert not {"train", "margins", "apgd", "lossvar", "sv", "spread", "theory"} & set(plan)


def test_a_study_of_the_runs_that_are_trained_trains_nothing_and_lists_the_others(restored):
    more = {"dataset": "digits", "ar": [8], "seeds": [7]}
    edit_config(restored, lambda config: config["studies"]["demo"]["runs"].append(more))
    assert planned(restored, "demo")["train"] == 1
    assert planned(restored, "demo", "--config", "only_finished=false")["train"] == 1
    for wanted in ("true", "True"):
        assert set(planned(restored, "--config", f"only_finished={wanted}", "--", "demo")) == {"report", "demo"}
    snakemake(restored, "-c1", "--config", "only_finished=true", "--", "demo")
    page = (restored / "results/studies/demo/report.html").read_text()
    assert "1 of the 8 networks of this study</summary>\n<p>These are digits/ar8-s7." in page
    refused = snakemake(restored, "-n", "--config", "only_finished=true", "--", "literal", check=False)
    assert (
        "only_finished: none of the 4 runs of the study literal is trained yet with the settings of config.yaml"
        in refused
    )


@pytest.mark.parametrize("setting", ["data_root=elsewhere", "device=cpu"])
def test_another_data_folder_or_device_repeats_nothing(demo, setting):
    assert planned(demo, "demo", "--config", setting) == {}


def test_preparing_data_again_trains_nothing(demo, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(demo, again, symlinks=True)
    target = "results/digits/ar8/margins.parquet"
    snakemake(again, "-c1", "--force", "data/prepared/digits/meta.json")
    assert planned(again, target) == {}  # the bytes are the same
    edit_config(again, lambda config: config["datasets"]["digits"].update(label_column="unused"))
    assert planned(again, target) == {"prepare": 1, "margins": 1}
    snakemake(again, "-c1", target)
    assert (again / target).read_bytes() == (demo / target).read_bytes()


def test_networks_that_were_trained_on_other_data_are_not_measured(demo, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(demo, other, symlinks=True)
    prepared = other / "data/prepared/digits"
    images = np.load(prepared / "test_images.npy")
    images[0] += 1
    np.save(prepared / "test_images.npy", images)
    meta = json.loads((prepared / "meta.json").read_text())
    meta["sha256"] = _fingerprint(prepared)
    (prepared / "meta.json").write_text(json.dumps(meta | {"meta_sha256": hash_meta(meta)}))
    output = snakemake(other, "-c1", "--force", "results/digits/ar8/margins.parquet", check=False)
    assert "checkpoint.pt was not trained on the data that data/prepared/digits now holds" in output
    assert not (other / "results/digits/ar8/margins.parquet").exists()


def test_a_clock_that_jumps_repeats_no_training(demo, tmp_path):
    """If files are dated in the future or the past, at most measures are made again."""
    for name, seconds in (("ahead", 86_400), ("behind", -86_400)):
        folder = tmp_path / name
        shutil.copytree(demo, folder, symlinks=True)
        for path in [
            *(folder / "data/prepared/digits").iterdir(),
            *(folder / "results/digits").glob("*/checkpoint.pt"),
        ]:
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime + seconds))
        assert not {"prepare", "train"} & set(planned(folder, "demo"))


def test_a_measure_that_is_killed_leaves_no_incomplete_file_and_is_made_again(restored):
    target = restored / "results/digits/ar8/lossvar.parquet"
    before, script = target.read_bytes(), restored / "workflow/scripts/lossvar.py"
    whole = script.read_text()
    target.unlink()
    dies = (
        "import os, signal\nfrom pathlib import Path\nPath.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script.write_text(dies + whole)
    assert "SIGKILL" in snakemake(restored, "-c1", str(target.relative_to(restored)), check=False)
    assert not target.exists()
    script.write_text(whole)
    snakemake(restored, "-c1", str(target.relative_to(restored)))
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


def test_a_second_driver_is_refused_and_an_interrupted_first_one_resumes(demo, tmp_path):
    folder, target = copy_tree(tmp_path / "tree", reduce), "results/digits/ar8/checkpoint.pt"
    driver = started(folder, target)
    training = trainer(driver)
    training.suspend()
    for flags in ([], ["--rerun-incomplete"]):
        said = snakemake(folder, "-c1", *flags, target, check=False)
        assert "Another Snakemake is working on these files" in said
        assert (folder / "results/digits/ar8/resume.pt").exists()
    driver.send_signal(signal.SIGINT)
    training.send_signal(signal.SIGINT)  # Ctrl-C signals all processes of a terminal
    training.resume()
    assert driver.wait() != 0
    assert "resume.pt" in {path.name for path in (folder / target).parent.iterdir()}
    snakemake(folder, "-c1", "--rerun-incomplete", target)
    assert same_weights(folder / target, demo / target)


@pytest.mark.parametrize("victim", ["training", "everything"])
def test_a_training_killed_under_snakemake_resumes_bit_identically(victim, demo, tmp_path):
    folder = copy_tree(tmp_path, reduce)
    run, target = folder / "results/digits/ar8", "results/digits/ar8/checkpoint.pt"
    driver, log = started(folder, target), folder / "logs/train/digits/ar8.log"
    if victim == "training":
        trainer(driver).kill()
    else:
        os.killpg(driver.pid, signal.SIGKILL)
    assert driver.wait() != 0
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == ["lease.json", "resume.pt"]
    if victim == "everything":  # these are the two commands of docs/how-to/again.md
        snakemake(folder, "--unlock", target)
    snakemake(folder, "-c1", "--rerun-incomplete", target)
    assert re.search(r"resuming after epoch [1-4]", log.read_text())
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "history.parquet", "kept"]
    assert same_weights(folder / target, demo / target)


def assert_same_results(one, other, *, parts=("results", "data")):
    """Assert that all files of a folder are the same in another one, except for TIMES; return the number of files."""
    compared = [path for part in parts for path in files(one / part) if path.name not in TIMED]
    for path in compared:
        twin = other / path.relative_to(one)
        if columns := TIMES.get(path.name):
            mine, theirs = (parquet.read(each).drop_columns(list(columns)) for each in (path, twin))
            assert mine.equals(theirs, check_metadata=True), path
        else:
            assert path.read_bytes() == twin.read_bytes(), path
    return len(compared)


def test_a_run_made_in_another_folder_with_another_number_of_cores_has_the_same_bytes(demo, tmp_path):
    folder = copy_tree(tmp_path / "elsewhere", reduce)
    runs = [file for variant in ("ar8-s1", "ar8-sn1") for file in (demo / "results/digits" / variant).glob("*.*")]
    snakemake(folder, "--cores", "1", *(str(file.relative_to(demo)) for file in runs))
    kept = 2 * len(FILES)  # the networks of both runs
    assert assert_same_results(folder, demo) == len(runs) + kept + len(files(demo / "data"))


@pytest.mark.long
def test_the_demo_made_in_two_folders_has_the_same_bytes(tmp_path):
    one, other = (copy_tree(tmp_path / name) for name in ("one", "other"))
    snakemake(one, "--cores", "all", "demo")
    snakemake(other, "--cores", "1", "demo")
    compared = assert_same_results(one, other)
    assert compared == assert_same_results(other, one) > 15 * 12
    print(f"{compared} files of the demo are the same in two places, byte for byte")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/digits/ar08/svstd.parquet", "digits/ar08: 'ar08' must be written 'ar8'"),
        ("results/digits/ar8-s0/metrics.parquet", "digits/ar8-s0: 'ar8-s0' must be written 'ar8'"),
        ("results/digits/ar0-fgsm/checkpoint.pt", "'ar0-fgsm' must be written 'ar0'"),
        (
            "results/digit/ar8/svstd.parquet",
            "unknown data set 'digit': did you mean 'digits'? known: c10, c100, tin, c10wd",
        ),
        ("results/digits/ar8-vgg/svstd.parquet", "unknown architecture 'vgg': use one of ['resnet8'"),
        ("results/digits/ar8-sn3.0/svstd.parquet", "must be written 'ar8-sn3'"),
        (
            "results/studies/dema/report.html",
            "there is no study 'dema'; add its block, or ask for one of: paper, literal, c",
        ),
        (
            "results/studies/demo/figures/fig7.svg",
            "studies.demo.figures: fig7 is not listed; add it there, or ask for one of",
        ),
    ],
)
def test_a_wrong_target_is_refused_with_a_suggestion(demo, target, message):
    assert message in snakemake(demo, "-n", "-c1", target, check=False)


def test_the_plan_on_a_cluster_has_two_jobs_per_run(demo):
    plan = snakemake(demo, "--profile", "slurm", "-n", "all")
    groups = re.findall(r"Group job measures_(\S+) ", plan)
    alone = re.findall(r"^rule (\w+):", plan, re.MULTILINE)
    assert len(groups) == len(set(groups)) == alone.count("train") == 40
    assert set(alone) == {"train", "prepare", "all", *STUDY} - {"demo"}  # all except train run on the submitting host


@pytest.mark.parametrize(
    ("run", "attempt", "memory", "minutes"),
    [("c10/ar8", 1, 6000, 1440), ("c10/ar8", 2, 12000, 1440), ("c10/ar8", 9, 12000, 1440), ("tin/ar8", 1, 40000, 5760)],
)
def test_a_training_requests_the_resources_that_its_network_needs(demo, run, attempt, memory, minutes):
    target = f"results/{run}/checkpoint.pt"
    plan = snakemake(demo, "--profile", "slurm", "-n", "--attempt", str(attempt), target)
    asked = re.search(r"^rule train:\n(?: .*\n)*? +resources: (.*)$", plan, re.MULTILINE)[1]
    assert {f"mem_mb={memory}", "gpu=1", f"runtime={minutes}", "slurm_extra=--signal=TERM@120"} <= set(
        asked.split(", ")
    )


def test_a_bad_config_starts_no_job(demo):
    output = snakemake(demo, "-c1", "demo", "--config", "devise=cpu", check=False)
    assert "config.yaml: devise: unknown key 'devise': did you mean 'device'?" in output
    assert "Job stats" not in output


@pytest.mark.parametrize(
    "target",
    [
        "results/c10/ar16/svstd.parquet",
        "results/c10/ar8-resnet110-s2/metrics.parquet",
        "results/c10jpeg/ar4/margins.parquet",
        "results/c100/ar8-fgsm/attacks.parquet",
        "results/tin/ar4/theory.parquet",
        "results/c10/ar16-sn0.5/spread.parquet",
        "results/c10/ar16-fixup56-clean0.5-symmetric-evalpixel/attacks.parquet",
    ],
)
def test_runs_on_the_data_of_the_paper_are_planned(demo, target):
    plan = planned(demo, target)
    assert (plan["prepare"], plan["train"]) == (1, 1)


@pytest.mark.parametrize(
    ("target", "runs", "figures", "tables"),
    [("all", 40, 14, 10), ("conventions", 11, 9, 7), ("literal", 4, 9, 6), ("c10-small", 6, 9, 6)],
)
def test_every_study_is_planned_completely(demo, target, runs, figures, tables):
    plan = planned(demo, target)
    assert {plan[rule] for rule in ("train", *MEASURES)} == {runs}
    assert (plan["figure"], plan["table"], plan["claims"], plan["comparison"]) == (figures, tables, 1, 1)


def test_a_missing_source_is_refused_with_the_fix(demo):
    output = snakemake(demo, "-c1", "results/c10jpeg/ar0/checkpoint.pt", check=False)
    assert re.search(r"Error: datasets\.c10jpeg\.source: no folder or file .*data_root", output)


PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
BLOCK, INLINE = r"```sh\n(.*?)```", r"`((?:snakemake|make) [^`…]+)`"
# What is too expensive, or needs a cluster, is planned, or finds that nothing is left to do.
AFFORDABLE = {
    "--profile slurm all": "--profile slurm -n all",
    "--profile slurm paper": "--profile slurm -n paper",
    "sbatch --no": "true --no",
    "-c all --forcerun train": "-n --forcerun train",
    "minutes 15 conventions": "minutes 1 demo",
    "only_finished=true -- conventions": "only_finished=true -- demo",
}


def commands(pattern):
    """List the commands that README and documentation give, each with the pages that give it."""
    found = {}
    for page, text in PAGES.items():
        for command in re.findall(pattern, text, re.DOTALL):
            found.setdefault(" ".join(command.split()) if pattern == INLINE else command, []).append(page)
    return [
        pytest.param(command, id=f"{','.join(pages)}: {' '.join(command.split())[:90]}")
        for command, pages in found.items()
    ]


@pytest.fixture(scope="module")
def documented(demo):
    """Return the demo as its readers have it: with an environment, and the documented study and network."""
    if not (demo / ".venv").exists():
        (demo / ".venv").symlink_to(SNAKEMAKE.parents[1])
    text = (demo / "config.yaml").read_text() + example("studies").removeprefix("studies:\n")  # its last block
    text += example("architectures").replace("architectures:", "more:")  # of which the configuration has a block
    config = yaml.safe_load(text)
    config["architectures"] |= config.pop("more")
    (demo / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (script,) = re.findall(r"```python\n(.*?)```", PAGES["docs/tutorial.md"], re.DOTALL)
    (demo / "fig1_column.py").write_text(script)
    return demo


@pytest.mark.parametrize("script", [*commands(BLOCK), *commands(INLINE)])
def test_the_documented_commands_work(documented, script):
    done = run_documented(documented, script)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for pattern in re.findall(r"(?<!-n )results/\S+", affordable(script)):
        targets = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True).stdout
        assert [target for target in targets.split() if not (documented / target).exists()] == []  # bash expands braces


def affordable(script):
    """Replace what is too expensive in a documented command; nothing is installed, and no test runs these tests."""
    script = re.sub(r"^make (?!demo)", "make -n ", script, flags=re.MULTILINE)
    script = script.replace("make demo", "make -o .venv/run.done demo")
    for text, instead in AFFORDABLE.items():
        script = script.replace(text, instead)
    return script


def run_documented(folder, script):
    path = f"{SNAKEMAKE.parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-ec", affordable(script)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


def test_a_documented_command_that_fails_is_seen(documented):
    assert run_documented(documented, ". .venv/bin/activate\nsnakemake -n small-step\ntrue").returncode != 0


def test_the_tutorial_makes_its_study_and_its_figure(documented):
    blocks = re.findall(BLOCK, PAGES["docs/tutorial.md"], re.DOTALL)
    for script in blocks[2:]:
        done = run_documented(documented, script)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = documented / "results/studies/small-steps"
    assert sorted(path.name for path in (folder / "figures").glob("*.svg")) == [
        "comparison.svg",
        "fig1.svg",
        "fig3.svg",
    ]
    assert (folder / "report.html").exists()
    assert (documented / "fig1_column.pdf").read_bytes().startswith(b"%PDF")
    rows = pd.read_csv(folder / "tables/table3.csv")
    assert sorted(zip(rows["ar"], rows["seed"], strict=True)) == [(ar, seed) for ar in (0, 4, 8) for seed in (0, 1)]


def test_the_python_of_the_readme_reads_the_demo(documented):
    (script,) = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)
    done = subprocess.run([sys.executable, "-c", script], cwd=documented, capture_output=True, text=True, check=False)
    assert re.search(r"^ar +seed *\n0 +0 +\d", done.stdout, re.MULTILINE), done.stderr


def examples_of(key):
    """Return the examples of a block of config.yaml, each once."""
    blocks = [text for page in PAGES.values() for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    return list(dict.fromkeys(text for text in blocks if text.startswith(f"{key}:")))


def example(key):
    """Return the only example of a block of config.yaml, which is the same on every page that has one."""
    (block,) = examples_of(key)
    return block


def test_the_documented_config_blocks_are_valid():
    text = (ROOT / "config.yaml").read_text()
    line = example("datasets").splitlines()[1]  # it copies settings of the file, so it must stand in it
    config = yaml.safe_load(text.replace("\narchitectures:", f"\n{line}\n\narchitectures:", 1))
    assert config["datasets"]["photos"]["training"] == config["datasets"]["digits"]["training"]
    keys = ("studies", "architectures", "pretrained", "runs")
    blocks = [(key, block) for key in keys for block in examples_of(key)]
    for key, block in blocks:
        config.setdefault(key, {}).update(yaml.safe_load(block)[key])
    # The study is both in README and in the tutorial.
    assert sum(page.count("```yaml") for page in PAGES.values()) == 1 + len(blocks) + 1
    validate(config, ROOT / "workflow/schemas/config.schema.yaml")
    assert settings.run_settings(config, "c10", "ar8-vgg")["factory"]["callable"] == "torchvision.models:vgg11_bn"

"""Every check of the tables of a run or a study passes for correct tables, and fails if a value is falsified."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import study_files

from robreg.checks import invariants, run_checks, study_audit
from robreg.checks.run_checks import check
from robreg.checks.seals import CHECKED, seal
from robreg.claims import verdicts
from robreg.measures import (
    evaluation_attack,
    gradient_masking,
    loss_variation,
    margins,
    metrics,
    spectra,
    strong_attack,
)
from robreg.runs.catalogue import TABLES, select_runs
from robreg.tables import study_tables
from robreg.tables.parquet import read, read_metadata, write, write_frame

BOUND = 100.0
LAYER = 3


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Write a run's tables with its measures, and a history that is invented from the norms of its layers."""
    out = tmp_path_factory.mktemp("tables") / "digits/ar8"
    out.mkdir(parents=True)
    one = {"checkpoint": run.checkpoint, "data": run.prepared, "batch": 16, "device": "cpu"}
    margins.record(**one, margins=out / "margins.parquet")
    spec = {"space": "pixel", "seed": 0}
    strong = spec | {"eps": 8.0, "steps": 5, "restarts": 1, "n": 30}
    weak = spec | {"attack": "pgd", "loss": "cross_entropy", "start": "random", "eps": 8.0, "step": 2.0}
    one["margins"] = out / "margins.parquet"
    strong_attack.record(**one, apgd=out / "apgd.parquet", attack=strong)
    both = one | {"apgd": out / "apgd.parquet"}
    pixels = {"eps": [1.0, 4.0], "relative_step": 0.25, "steps": 2, "n": 20, "seed": 0}
    weak |= {"steps": 5, "restarts": 1}
    evaluation_attack.record(**both, attacks=out / "attacks.parquet", attack=weak, radii=pixels)
    radii = spec | {"eps": [4.0, 8.0], "relative_step": 0.25, "steps": 3, "n": 30}
    loss_variation.record(**one, lossvar=out / "lossvar.parquet", attack=radii)
    files = {kind: out / f"{kind}.parquet" for kind in ("sv", "svstd", "live", "padding")}
    spectra.record(checkpoint=run.checkpoint, **files, dense=100, device="cpu")
    metrics.record(**{kind: out / f"{kind}.parquet" for kind in ("margins", "attacks", "svstd", "metrics")})
    meta = read_metadata(out / "margins.parquet")
    masking_spec = spec | {"n": 30, "eps": [8.0, 64.0], "steps": 2, "more_steps": 4, "restarts": 2}
    masking_spec |= {"strength": 8, "attack_eps": 8.0}
    gradient_masking.record(**both, masking=out / "masking.parquet", spec=masking_spec)
    norms = [1.1 * norm for norm in read(out / "padding.parquet", ["max_zero"])["max_zero"].to_pylist()]
    rows = {"epoch": [1, 2], "lr": [0.1] * 2, "loss": [1.0] * 2, "acc": [50.0] * 2, "sigma_max": [norms] * 2}
    write(out / "history.parquet", "history", rows | {"seconds": [1.0] * 2, "examples_per_s": [1.0] * 2}, meta)
    return out


@pytest.fixture
def tables(folder):
    return {kind: read(folder / f"{kind}.parquet").to_pandas() for kind in CHECKED}


def change_value(kind, column, change, where=0):
    """Return a function that changes one value of a table."""

    def falsify(tables):
        frame = tables[kind]
        frame[column] = frame[column].astype(frame[column].dtype)
        row = frame.index[where(frame)][0] if callable(where) else frame.index[where]
        frame.at[row, column] = change(frame.at[row, column])

    return falsify


def where_equal(column, value):
    return lambda frame: frame[column] == value


def add_one(value):
    return value + 1


def drop_row(kind, row=0):
    """Return a function that drops one row of a table."""
    return lambda tables: tables.update({kind: tables[kind].drop(index=tables[kind].index[row])})


def duplicate_row(kind):
    """Return a function that duplicates the first row of a table."""
    return lambda tables: tables.update({kind: pd.concat([tables[kind].iloc[:1], tables[kind]], ignore_index=True)})


def swap_two_signs(tables):
    """Change the signs of two margins, one of each sign, so that the share of positive margins stays the same."""
    frame = tables["margins"]
    right = (frame["prediction"] == frame["label"]) & (frame["split"] == "test")
    wrong = (frame["prediction"] != frame["label"]) & (frame["split"] == "test")
    frame.loc[[right.idxmax(), wrong.idxmax()], "margin"] *= -1


def apgd_rows(loss):
    return lambda frame: (frame["attack"] == "apgd") & (frame["loss"] == loss)


FALSIFIERS = {
    **{
        f"{kind}_rows": drop_row(kind)
        for kind in ("history", "margins", "lossvar", "svstd", "live", "padding", "metrics")
    },
    "attacks_rows": drop_row("attacks", -1),
    "sv_rows": change_value("sv", "name", lambda value: value + "x"),
    "masking_rows": duplicate_row("masking"),
    **{
        f"{kind}_values": change_value(kind, column, lambda _: np.nan)
        for kind, column in (
            ("history", "loss"),
            ("margins", "margin"),
            ("attacks", "acc_robust"),
            ("lossvar", "loss_adv"),
            ("sv", "sigma"),
            ("svstd", "mean"),
            ("live", "frozen_share"),
            ("padding", "max_zero"),
            ("metrics", "loss_gap"),
            ("masking", "value"),
        )
    },
    "margin_sign_train": change_value("margins", "margin", lambda value: -value - 1, where_equal("split", "train")),
    "margin_sign_test": swap_two_signs,
    "margin_probability_train": change_value(
        "margins", "margin", lambda value: value - 1, where_equal("split", "train")
    ),
    "margin_probability_test": change_value(
        "margins", "prob", lambda value: value / 2 + 0.5, where_equal("split", "test")
    ),
    "positive_margins_train": change_value(
        "margins", "margin", lambda value: -value - 1, where_equal("split", "train")
    ),
    "positive_margins_test": change_value("margins", "margin", lambda value: -value - 1, where_equal("split", "test")),
    "probability_train": change_value("margins", "prob", add_one, where_equal("split", "train")),
    "probability_test": change_value("margins", "prob", lambda _: -0.5, where_equal("split", "test")),
    "loss_train": change_value("margins", "loss", add_one, where_equal("split", "train")),
    "loss_test": change_value("margins", "loss", add_one, where_equal("split", "test")),
    **{
        f"metrics_{name}": change_value("metrics", name, lambda value: value + 1e-5)
        for name in ("train_acc", "test_acc", "acc_gap", "train_loss", "test_loss", "loss_gap", "robust_acc", "pgd_acc")
    },
    "robust_below_clean": change_value("metrics", "robust_acc", lambda _: 100.5),
    "attack_counts": change_value("attacks", "n_robust", lambda _: 41),
    "attack_correct": change_value("attacks", "n_correct", add_one),
    "attack_acc_robust": change_value("attacks", "acc_robust", lambda value: value + 1e-3),
    "attack_acc_conditional": change_value("attacks", "acc_conditional", lambda _: None, apgd_rows("dlr")),
    "attack_lost": change_value("attacks", "n_robust", lambda value: value - 100, apgd_rows("worst")),
    "masking_percent": change_value("masking", "after", lambda _: 100.5),
    "masking_value": change_value("masking", "value", lambda value: value + 0.01, where_equal("check", "more_steps")),
    "masking_passed": change_value("masking", "passed", lambda value: not value),
    "masking_loss": change_value("masking", "after", lambda value: value + 0.01, where_equal("check", "other_loss")),
    "attack_worst": change_value("attacks", "n_robust", lambda value: value + 30, where_equal("loss", "worst")),
    "variation_negative": change_value("lossvar", "variation", lambda _: -1e-3),
    "variation_clean": change_value("lossvar", "loss_clean", lambda value: value * 1.001),
    "variation_prob_clean": change_value("lossvar", "prob_clean", lambda value: value / 2 + 1e-3),
    "variation_prob_adv": change_value("lossvar", "prob_adv", lambda value: value + 1e-3),
    "variation_probability": change_value("lossvar", "prob_variation", lambda value: value + 1e-3),
    "variation_difference": change_value("lossvar", "loss_adv", lambda value: value + 1e-2),
    "spectrum_size": change_value("sv", "multiplicity", add_one),
    f"spectrum_{LAYER}": change_value("svstd", "std", lambda value: value + 1e-7, where_equal("layer", LAYER)),
    "operator_size": change_value("svstd", "rows", add_one, where_equal("operator", "circular")),
    "spectrum_estimates": change_value("svstd", "method", lambda _: "lanczos"),
    "complexity_null": change_value("metrics", "log10_spectral_complexity", lambda _: np.nan),
    "padding_nulls": change_value("padding", "std_circular", lambda _: np.nan),
    "spectral_complexity": change_value("metrics", "log10_spectral_complexity", lambda value: value + 1e-6),
    "log10_complexity": change_value("metrics", "spectral_complexity", lambda value: value * (1 + 1e-6)),
    "bound_epochs": change_value("history", "sigma_max", lambda value: np.asarray(value) + BOUND),
    "bound": change_value("padding", "max_zero", lambda _: BOUND * (1 + 2e-6)),
    "bound_history": change_value("history", "sigma_max", lambda value: np.asarray(value) / 2, -1),
    "live_published": change_value("live", "std", lambda value: value + 1e-12),
    "padding_published": change_value("padding", "max_circular", lambda value: value + 1e-12),
    "live_counts": change_value("live", "dead_rows", lambda _: 100),
    "live_nulls": change_value("live", "std_live", lambda _: None),
    "live_max": change_value("live", "max_live", lambda value: value * 100),
}


def failed_checks(tables):
    return {row["check"] for row in check(tables, bound=BOUND, variations=30) if not row["passed"]}


def test_correct_tables_pass_and_every_check_can_fail(tables):
    rows = check(tables, bound=BOUND, variations=30)
    assert failed_checks(tables) == set()
    names = {row["check"] for row in rows}
    assert len(names) == len(rows)
    assert names == FALSIFIERS.keys() | {name for name in names if name.startswith("spectrum_")}
    without_bound = {row["check"] for row in check(tables, bound=None, variations=30)}
    assert without_bound == names - {"bound", "bound_epochs", "bound_history"}


@pytest.mark.parametrize("name", FALSIFIERS)
def test_a_false_value_is_found(name, tables):
    FALSIFIERS[name](tables)
    assert name in failed_checks(tables)


@pytest.mark.parametrize("kind", CHECKED)
def test_an_empty_table_is_found(kind, tables):
    tables[kind] = tables[kind].iloc[:0]
    assert f"{kind}_rows" in failed_checks(tables)


@pytest.mark.parametrize("kind", ["history", "margins", "attacks", "lossvar", "svstd", "live", "padding", "metrics"])
def test_a_duplicate_row_is_found(kind, tables):
    duplicate_row(kind)(tables)
    assert f"{kind}_rows" in failed_checks(tables)


def test_a_network_that_is_always_wrong_has_no_conditional_accuracy(tables):
    """A conditional accuracy that is null is consistent with no correct examples; a number is not."""
    margins, attacks, metrics = tables["margins"], tables["attacks"], tables["metrics"]
    test = margins["split"] == "test"
    margins.loc[test, "prediction"] = (margins.loc[test, "label"] + 1) % 10
    margins.loc[test, "margin"] = -abs(margins.loc[test, "margin"])
    attacks[["n_correct", "n_robust"]] = 0
    attacks["acc_robust"], attacks["acc_conditional"] = 0.0, np.nan
    metrics["pgd_acc"] = None
    shares = {"metrics_pgd_acc", "attack_acc_conditional"}
    assert not shares & failed_checks(tables)
    metrics["pgd_acc"] = 0.0
    assert shares & failed_checks(tables) == {"metrics_pgd_acc"}
    metrics["pgd_acc"], attacks["acc_conditional"] = None, 0.0
    assert shares <= failed_checks(tables)


def test_examples_with_margin_0_may_be_right_or_wrong(tables):
    tables["margins"].loc[:5, "margin"] = 0.0
    assert not {"positive_margins_train", "positive_margins_test"} & failed_checks(tables)


def test_the_checks_of_a_run_are_written_and_a_failed_one_is_an_error(folder, caplog):
    caplog.set_level("INFO")
    run_checks.record(folder, bound=BOUND, unprotected=False)
    rows = read(folder / "checks.parquet").to_pandas()
    assert rows["passed"].all()
    stored = {kind: read(folder / f"{kind}.parquet").to_pandas() for kind in CHECKED}
    assert len(rows) == len(check(stored, bound=BOUND, variations=30)) + 1
    assert read_metadata(folder / "checks.parquet")["variant"] == "ar8"
    (folder / "checks.parquet").unlink()
    with pytest.raises(
        ValueError,
        match=r"ar8: padding\.parquet, history\.parquet contradict.*: bound \(largest.*: \S+, not 1\); .*; delete "
        r"the wrong files, ask Snakemake for each by its name .* start again; delete history\.parquet last, because "
        r"without it the network is trained again",
    ):
        run_checks.record(folder, bound=0.1, unprotected=False)
    assert not (folder / "checks.parquet").exists()
    assert "VIOLATED bound" in caplog.text


@pytest.mark.parametrize(
    ("left", "eps", "passed"),
    [(95.0, 8.0, [True]), (95.1, 8.0, [False]), (100.0, 8.0, [False]), (100.0, 0.0, []), (None, 8.0, [])],
)
def test_an_attack_that_leaves_an_unprotected_network_untouched_is_pointed_out(left, eps, passed, caplog):
    others = {"attack": ["apgd", "pgd"], "split": ["test", "train"], "eps": 8.0, "acc_conditional": 100.0}
    own = {"attack": ["pgd"], "split": ["test"], "eps": eps, "acc_conditional": left}
    rows = run_checks.weak_attack(pd.concat([pd.DataFrame(others), pd.DataFrame(own)]))
    assert [row["passed"] for row in rows] == passed
    said = (
        "attack_strength: percent of the correctly classified examples that PGD leaves correct, though nothing protects"
    )
    assert (said in caplog.text) == (passed == [False])


def test_a_weak_attack_is_written_but_no_error(folder, monkeypatch):
    monkeypatch.setattr(run_checks, "_UNTOUCHED", -1.0)
    run_checks.record(folder, bound=BOUND, unprotected=True)
    assert read(folder / "checks.parquet").to_pandas()["passed"].all()  # this network has hardly learned anything
    monkeypatch.setattr(run_checks, "MIN_TRAINED", 0.0)
    run_checks.record(folder, bound=BOUND, unprotected=True)
    rows = read(folder / "checks.parquet").to_pandas()
    assert rows.loc[~rows["passed"], "check"].tolist() == ["attack_strength"]


@pytest.mark.parametrize(
    ("key", "value"), [("settings_hash", "other"), ("seed", 1), ("variant", "ar9"), ("dataset", "c10")]
)
def test_tables_of_two_runs_are_found(key, value, folder, tmp_path):
    copy = copy_tables(folder, tmp_path / "digits/ar8")
    own = read_metadata(folder / "lossvar.parquet") | {key: value}
    write_frame(copy / "lossvar.parquet", read(folder / "lossvar.parquet"), own)
    with pytest.raises(ValueError, match=r"ar8: lossvar\.parquet .*same_run \(tables of another run.*: 1, not 0\)"):
        run_checks.record(copy, bound=None, unprotected=False)


@pytest.mark.parametrize("place", ["digits/ar16", "c10/ar8"])
def test_a_folder_of_another_run_s_tables_is_found(place, folder, tmp_path):
    with pytest.raises(ValueError, match=r"history\.parquet, margins\.parquet, .*same_run .*: 10, not 0"):
        run_checks.record(copy_tables(folder, tmp_path / place), bound=None, unprotected=False)


def copy_tables(folder, place):
    place.mkdir(parents=True)
    for path in folder.glob("*.parquet"):
        (place / path.name).write_bytes(path.read_bytes())
    return place


# The checks of a study.


@pytest.fixture
def study_copy(finished_study, tmp_path, monkeypatch):
    """Copy the finished study, so that it can be falsified."""
    root, *found = finished_study
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    """Make a study of invented runs, with its tables and claims."""
    root = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(root):
        return root, *make_study()


def make_study():
    described, _ = study_files.make("demo", "The demo")
    out = Path("results/studies/demo")
    names = ["table3", "table6", "b2", "attacks", "padding", "theory", "table1"]
    shown = dict.fromkeys([*names, "fig3"])
    assert set(names) <= TABLES.keys()
    for run in described["runs"]:
        write_claimed(Path(run["folder"]), run)
        passed = {key: [value] for key, value in invariants.equal("one", "made up", 1, 1).items()}
        agree_on_pgd(Path(run["folder"]))
        meta = study_files.META | {key: run[key] for key in ("dataset", "variant", "seed")}
        for path in Path(run["folder"]).glob("*.parquet"):
            write_frame(path, read(path), meta)
        spectrum = {"layer": [1], "name": ["conv1"], "sigma": [1.0], "multiplicity": [1]}
        write(Path(run["folder"]) / "sv.parquet", "sv", spectrum, meta)
        sealed = seal(Path(run["folder"]), [f"{kind}.parquet" for kind in CHECKED])
        write(Path(run["folder"]) / "checks.parquet", "checks", passed, {**meta, "sealed": sealed})
    compare = described["compare"]
    for name in names:
        members = select_runs(name, described["runs"])
        study_tables.record(name, members, compare=compare, folder=out / "tables", study="demo")
    verdicts.record(
        described["runs"], compare=compare, study="demo", parquet=out / "claims.parquet", csv=out / "claims.csv"
    )
    return described["runs"], shown, compare, out


def agree_on_pgd(folder):
    """Copy the accuracies of the invented metrics to the invented row of PGD."""
    attacks = read(folder / "attacks.parquet").to_pandas()
    own = read(folder / "metrics.parquet").to_pylist()[0]
    attacks.loc[attacks["attack"] == "pgd", ["acc_conditional", "acc_robust"]] = own["pgd_acc"], own["robust_acc"]
    study_files.write_frame(folder / "attacks.parquet", attacks)


def write_claimed(folder, run):
    """Write the tables that claims are judged by, but keep those that study_files.make wrote."""
    from helpers.figure_tables import make_run

    keep = {
        kind: (folder / f"{kind}.parquet").read_bytes()
        for kind in ("metrics", "lossvar", "svstd", "masking", "history")
    }
    make_run(folder, run["ar"], run["seed"])
    for kind, content in keep.items():
        (folder / f"{kind}.parquet").write_bytes(content)


def run_audit(runs, shown, compare, out):
    study_audit.record("demo", runs, shown, compare=compare, folder=out)
    return read(out / "audit.parquet").to_pandas()


def test_the_checks_of_a_correct_study_pass(study_copy):
    runs, shown, _, out = study_copy
    rows = run_audit(*study_copy)
    assert rows["passed"].all()
    own = rows[rows["place"] == str(out)]["check"].tolist()
    assert own == [
        f"{name}_{part}"
        for name in shown
        if name in TABLES
        for part in ("cells", "files", "summary", "csv", "summary_csv")
    ] + [
        "claims_cells",
        "claims_verdict",
        "claims_csv",
    ]
    assert rows["place"].nunique() == len(runs) + 1


def edit_cell(path, column, change, row=0):
    """Change one cell of a Parquet or CSV file; row None means the first row with a value."""
    parquet = path.suffix == ".parquet"
    frame = read(path).to_pandas() if parquet else pd.read_csv(path)
    row = frame[column].first_valid_index() if row is None else row
    frame.loc[row, column] = change(frame.loc[row, column])
    rewrite(path, frame)


def rewrite(path, frame):
    if path.suffix == ".parquet":
        write_frame(path, study_files.pa.Table.from_pandas(frame, preserve_index=False), {})
    else:
        frame.to_csv(path, index=False)


@pytest.mark.parametrize("content", [b"," * 10**6, b"x\n" * 10**5])
def test_a_csv_file_that_is_longer_than_its_table_is_not_read(content, study_copy, monkeypatch):
    parsed = []
    read_csv = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda file, **options: parsed.append(file) or read_csv(file, **options))
    (study_copy[-1] / "tables/table3.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"table3_csv \(cells of table3\.csv other than in table3\.parquet"):
        run_audit(*study_copy)
    assert max(len(file.getvalue()) for file in parsed) < 10**5


@pytest.mark.parametrize("content", [b"no zip", {"x": 1}, {"meta": 3}])
def test_a_checkpoint_that_is_none_is_named(content, folder, tmp_path):
    out = tmp_path / "digits/ar8"
    shutil.copytree(folder, out)
    if isinstance(content, bytes):
        (out / "checkpoint.pt").write_bytes(content)
    else:
        torch.save(content, out / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"ar8/checkpoint\.pt is damaged, or not a checkpoint: delete it and train"):
        list(run_checks._check_checkpoint(out / "checkpoint.pt", {}))


FALSE_CELLS = {
    "table3_cells": ("tables/table3.parquet", "test_acc"),
    "table3_files": ("tables/table3.parquet", "loss_gap"),
    "attacks_files": ("tables/attacks.parquet", "pgd_acc"),
    "theory_files": ("tables/theory.parquet", "w_min"),
    "table3_summary": ("tables/table3_summary.parquet", "loss_gap_mean"),
    "attacks_summary": ("tables/attacks_summary.parquet", "apgd_robust_std"),
    "b2_cells": ("tables/b2.parquet", "svstd_increase_sum"),
    "table3_csv": ("tables/table3.csv", "train_loss"),
    "b2_summary_csv": ("tables/b2_summary.csv", "svstd_decrease_sum_mean"),
    "claims_cells": ("claims.parquet", "effect"),
    "claims_verdict": ("claims.parquet", "verdict"),
    "claims_csv": ("claims.csv", "ci_low"),
}


@pytest.mark.parametrize("name", FALSE_CELLS)
def test_a_false_cell_of_a_study_is_found(name, study_copy):
    file, column = FALSE_CELLS[name]

    def change(value):
        if isinstance(value, str):
            return "undecided" if value == "holds" else "holds"
        return (0.0 if pd.isna(value) else value) + 1e-3

    edit_cell(study_copy[-1] / file, column, change, 0 if name == "attacks_summary" else None)
    with pytest.raises(ValueError, match=rf"demo: .*{file}.* contradict.*: .*{name} .*delete the wrong files"):
        run_audit(*study_copy)


def test_one_seed_with_a_verdict_of_several_is_found(study_copy):
    runs, _, compare, out = study_copy
    frame = read(out / "claims.parquet").to_pandas()
    row = frame.index[frame["verdict"].isin(["holds", "fails"])][0]
    edit_cell(out / "claims.parquet", "n_seeds", lambda _: 1, row)
    _, found, _ = study_audit.claims(runs, compare, out)
    assert (found["check"], found["passed"], found["found"]) == ("claims_verdict", False, 1)


def test_a_verdict_in_the_wrong_direction_is_found(study_copy):
    runs, _, compare, out = study_copy
    frame = read(out / "claims.parquet").to_pandas()
    row = frame.index[frame["verdict"].isin(["holds", "fails"])][0]
    edit_cell(out / "claims.parquet", "verdict", lambda word: {"holds": "fails", "fails": "holds"}[word], row)
    _, found, _ = study_audit.claims(runs, compare, out)
    assert (found["check"], found["passed"], found["found"]) == ("claims_verdict", False, 1)


def test_every_check_of_a_study_can_fail(study_copy):
    rows = run_audit(*study_copy)
    found = rows[rows["place"] == str(study_copy[-1])]["check"]
    assert {name.split("_", 1)[1] for name in found} == {name.split("_", 1)[1] for name in FALSE_CELLS}
    assert {name for name in found if name.startswith("claims")} <= FALSE_CELLS.keys()


def test_a_table_that_is_always_composed_wrongly_is_found(study_copy, monkeypatch):
    """Cells are compared not only with a table that is made again, but also with the files of the runs."""
    *_, out = study_copy
    path = out / "tables/table3.parquet"
    edit_cell(path, "test_acc", lambda value: value + 1e-3)
    monkeypatch.setattr(study_tables, "compose", lambda *_: read(path).to_pandas())
    (cells, files, *_) = study_audit.tables("table3", *study_copy[:1], study_copy[2], out)
    assert (cells["check"], cells["passed"]) == ("table3_cells", True)
    assert (files["check"], files["passed"], files["found"]) == ("table3_files", False, 1)


@pytest.mark.parametrize("stem", ["table3", "table3_summary"])
@pytest.mark.parametrize("end", [".parquet", ".csv"])
@pytest.mark.parametrize("falsify", ["a row less", "a row twice", "a column less", "another network"])
def test_a_table_with_other_rows_or_columns_is_found(falsify, end, stem, study_copy):
    path = study_copy[-1] / f"tables/{stem}{end}"
    frame = read(path).to_pandas() if end == ".parquet" else pd.read_csv(path)
    wrong = {
        "a row less": frame.iloc[:-1],
        "a row twice": pd.concat([frame, frame.iloc[[-1]]]),
        "a column less": frame.iloc[:, :-1],
        "another network": frame.assign(arch="resnet9"),
    }
    rewrite(path, wrong[falsify])
    name = {".parquet": "table3_(cells|summary)", ".csv": f"{stem}_csv"}[end]
    with pytest.raises(ValueError, match=rf"demo: .*contradict.*{name} \("):
        run_audit(*study_copy)


def test_a_run_s_table_with_other_settings_is_found(study_copy):
    runs, *_ = study_copy
    folder = Path(runs[3]["folder"])
    own = read_metadata(folder / "theory.parquet") | {"settings_hash": "old"}
    write_frame(folder / "theory.parquet", read(folder / "theory.parquet"), own)
    with pytest.raises(ValueError, match=rf"{folder}: theory\.parquet contradict.*same_run \("):
        run_audit(*study_copy)


def test_rows_of_a_run_that_is_not_in_the_study_are_found(study_copy):
    runs, _, compare, out = study_copy
    rows = study_audit.tables("table3", runs[:-1], compare, out)
    assert {row["check"] for row in rows if not row["passed"]} == {"table3_cells", "table3_files"}


def test_the_error_for_a_missing_table_names_it(study_copy):
    runs, *_ = study_copy
    (Path(runs[0]["folder"]) / "metrics.parquet").unlink()
    with pytest.raises(ValueError, match=r"metrics\.parquet .*are missing"):
        run_audit(*study_copy)


def test_the_audit_wants_a_null_mean_where_a_seed_has_no_value():
    keys = {"dataset": "d", "arch": "a", "train_attack": "pgd", "space": "pixel", "spectral_norm": None, "ar": 8}
    frame = pd.DataFrame([keys | {"seed": seed, "pgd_acc": value} for seed, value in enumerate((None, 40.0, 44.0))])
    summary = study_tables.summarise(frame)
    assert study_audit._count_wrong_summaries(frame, summary) == 0
    assert study_audit._count_wrong_summaries(frame, summary.assign(pgd_acc_mean=42.0)) == 1

"""Every check of a run's or a study's tables holds on real ones, and fails when one value is falsified."""

from pathlib import Path

import made
import numpy as np
import pandas as pd
import pytest

from robreg import apgd, attack, audit, checks, claim, lossvar, margin, metrics, spectrum, table
from robreg.checks import check
from robreg.item import TABLES, chosen

BOUND = 1e6
LAYER = 3


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """A run's tables, as its measures make them; the history is made up from the spectrum."""
    out = tmp_path_factory.mktemp("tables")
    one = {"checkpoint": run.checkpoint, "data": run.folder, "batch": 16, "device": "cpu"}
    margin.record(**one, out=out / "margins.parquet")
    spec = {"space": "pixel", "seed": 0}
    strong = spec | {"eps": 8.0, "steps": 5, "restarts": 1, "n": 30}
    weak = spec | {"attack": "pgd", "loss": "cross_entropy", "start": "random", "eps": 8.0, "step": 2.0}
    apgd.record(**one, out=out / "apgd.parquet", margins=out / "margins.parquet", attack=strong)
    attack.record(**one, out=out / "attacks.parquet", tables=out, attack=weak | {"steps": 5, "restarts": 1})
    radii = spec | {"eps": [4.0, 8.0], "relative_step": 0.25, "steps": 3}
    lossvar.record(**one, out=out / "lossvar.parquet", margins=out / "margins.parquet", attack=radii)
    files = {kind: out / f"{kind}.parquet" for kind in ("sv", "svstd", "padding")}
    spectrum.record(run.checkpoint, **files, dense=100, device="cpu")
    metrics.record(
        **{kind: out / f"{kind}.parquet" for kind in ("margins", "attacks", "svstd")}, out=out / "metrics.parquet"
    )
    meta = table.metadata(out / "margins.parquet")
    made.write_masking(out, meta)
    norms = table.read(out / "svstd.parquet", ["max"])["max"].to_pylist()
    rows = {"epoch": [1], "lr": [0.1], "loss": [1.0], "acc": [50.0], "sigma_max": [norms], "seconds": [1.0]}
    table.write(out / "history.parquet", "history", rows | {"examples_per_s": [1.0]}, meta)
    return out


@pytest.fixture
def tables(folder):
    return {kind: table.read(folder / f"{kind}.parquet").to_pandas() for kind in checks._TABLES}


def put(kind, column, change, where=0):
    """A falsifier: one value of a table, changed."""

    def falsify(tables):
        frame = tables[kind]
        frame[column] = frame[column].astype(frame[column].dtype)
        row = frame.index[where(frame)][0] if callable(where) else frame.index[where]
        frame.at[row, column] = change(frame.at[row, column])

    return falsify


def of(column, value):
    return lambda frame: frame[column] == value


def more(value):
    return value + 1


FALSE = {
    "positive_margins_train": put("margins", "margin", lambda value: -value - 1, of("split", "train")),
    "positive_margins_test": put("margins", "margin", lambda value: -value - 1, of("split", "test")),
    "probability_train": put("margins", "prob", more, of("split", "train")),
    "probability_test": put("margins", "prob", lambda _: -0.5, of("split", "test")),
    "loss_train": put("margins", "loss", more, of("split", "train")),
    "loss_test": put("margins", "loss", more, of("split", "test")),
    **{
        f"metrics_{name}": put("metrics", name, lambda value: value + 1e-5)
        for name in ("train_acc", "test_acc", "acc_gap", "train_loss", "test_loss", "loss_gap", "robust_acc", "pgd_acc")
    },
    "robust_below_clean": put("metrics", "robust_acc", lambda _: 100.5),
    "attack_counts": put("attacks", "n_robust", lambda _: 41),
    "attack_correct": put("attacks", "n_correct", more),
    "attack_rates": put("attacks", "acc_robust", lambda value: value + 1e-3),
    "attack_worst": put("attacks", "n_robust", lambda value: value + 30, of("loss", "worst")),
    "variation_negative": put("lossvar", "variation", lambda _: -1e-3),
    "variation_clean": put("lossvar", "loss_clean", lambda value: value * 1.001),
    "variation_difference": put("lossvar", "loss_adv", lambda value: value + 1e-2),
    "spectrum_size": put("sv", "multiplicity", more),
    f"spectrum_{LAYER}": put("svstd", "std", lambda value: value + 1e-7, of("layer", LAYER)),
    "spectral_complexity": put("metrics", "log10_spectral_complexity", lambda value: value + 1e-6),
    "bound": put("svstd", "max", lambda _: BOUND * 1.001),
    "bound_history": put("history", "sigma_max", lambda value: np.asarray(value) + 1e-3),
}


def failing(tables):
    return {row["check"] for row in check(tables, bound=BOUND) if not row["passed"]}


def test_real_tables_agree_and_every_check_can_fail(tables):
    rows = check(tables, bound=BOUND)
    assert failing(tables) == set()
    names = {row["check"] for row in rows}
    assert len(names) == len(rows)
    assert names == FALSE.keys() | {name for name in names if name.startswith("spectrum_")}
    assert {row["check"] for row in check(tables, bound=None)} == names - {"bound", "bound_history"}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_value_is_found(name, tables):
    FALSE[name](tables)
    assert name in failing(tables)


def test_a_tie_of_two_logits_may_be_right_or_wrong(tables):
    tables["margins"].loc[:5, "margin"] = 0.0
    assert not {"positive_margins_train", "positive_margins_test"} & failing(tables)


def test_a_run_s_checks_are_a_table_and_a_violated_one_ends_the_job(folder, caplog):
    caplog.set_level("INFO")
    checks.record(folder, bound=BOUND)
    rows = table.read(folder / "checks.parquet").to_pandas()
    assert rows["passed"].all()
    assert (
        len(rows)
        == len(
            check({kind: table.read(folder / f"{kind}.parquet").to_pandas() for kind in checks._TABLES}, bound=BOUND)
        )
        + 1
    )
    assert table.metadata(folder / "checks.parquet")["variant"] == "ar8"
    (folder / "checks.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"\*\.parquet contradict each other: bound \(largest.*: \S+, not 0\.1\); delete those tables"
    ):
        checks.record(folder, bound=0.1)
    assert not (folder / "checks.parquet").exists()
    assert "VIOLATED bound" in caplog.text


def test_tables_of_two_runs_are_found(folder, tmp_path):
    for path in folder.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    own = table.metadata(folder / "lossvar.parquet")
    table.write_frame(
        tmp_path / "lossvar.parquet", table.read(folder / "lossvar.parquet"), own | {"settings_hash": "other"}
    )
    with pytest.raises(ValueError, match=r"same_run \(tables of another run or other settings: 1, not 0\)"):
        checks.record(tmp_path, bound=None)


# A study


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """A study of made-up runs, with its tables and claims."""
    monkeypatch.chdir(tmp_path)
    described, _ = made.make("demo", "The demo")
    out = tmp_path / "results/studies/demo"
    names = ["table3", "table6", "b2", "attacks", "padding", "theory", "table1"]
    shown = {name: chosen(name, described["runs"]) for name in names}
    assert set(names) <= TABLES.keys()
    for run in described["runs"]:
        write_claimed(Path(run["folder"]), run)
        passed = {key: [value] for key, value in checks.equal("one", "made up", 1, 1).items()}
        table.write(Path(run["folder"]) / "checks.parquet", "checks", passed, {})
    compare = described["compare"]
    claim.record(
        described["runs"], compare=compare, study="demo", parquet=out / "claims.parquet", csv=out / "claims.csv"
    )
    return described["runs"], shown, compare, out


def write_claimed(folder, run):
    """The tables that claims are judged by, beside those that made.make leaves."""
    from drawn import make_run

    keep = {
        kind: (folder / f"{kind}.parquet").read_bytes()
        for kind in ("metrics", "lossvar", "svstd", "masking", "history")
    }
    make_run(folder, run["ar"], run["seed"])
    for kind, content in keep.items():
        (folder / f"{kind}.parquet").write_bytes(content)


def audited(runs, shown, compare, out):
    audit.record("demo", runs, shown, compare=compare, folder=out)
    return table.read(out / "audit.parquet").to_pandas()


def test_a_study_s_tables_and_claims_are_traced(studied):
    runs, shown, _, out = studied
    rows = audited(*studied)
    assert rows["passed"].all()
    own = rows[rows["place"] == str(out)]["check"].tolist()
    assert own == [f"{name}_{part}" for name in shown for part in ("cells", "summary", "csv", "summary_csv")] + [
        "claims_cells",
        "claims_csv",
    ]
    assert rows["place"].nunique() == len(runs) + 1


def edited(path, column, change):
    frame = table.read(path).to_pandas()
    frame.loc[0, column] = change(frame.loc[0, column])
    made.table.write_frame(path, made.pa.Table.from_pandas(frame, preserve_index=False), {})


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("table3_cells", "tables/table3.parquet", "test_acc"),
        ("table3_summary", "tables/table3_summary.parquet", "loss_gap_mean"),
        ("attacks_summary", "tables/attacks_summary.parquet", "apgd_robust_std"),
        ("b2_cells", "tables/b2.parquet", "svstd_increase_sum"),
        ("theory_cells", "tables/theory.parquet", "w_min"),
        ("claims_cells", "claims.parquet", "effect"),
    ],
)
def test_a_false_cell_of_a_study_is_found(name, file, column, studied):
    edited(studied[-1] / file, column, lambda value: (0.0 if pd.isna(value) else value) + 1e-3)
    with pytest.raises(ValueError, match=rf"contradict each other: .*{name} .*delete those tables"):
        audited(*studied)


@pytest.mark.parametrize("name", ["tables/table3", "tables/b2_summary", "claims"])
def test_a_false_cell_of_a_csv_file_is_found(name, studied):
    path = studied[-1] / f"{name}.csv"
    frame = pd.read_csv(path)
    column = frame.select_dtypes("float").dropna(axis=1, how="all").columns[-1]
    row = frame[column].first_valid_index()
    frame.loc[row, column] += 1e-3
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"{Path(name).name}_csv"):
        audited(*studied)


def test_rows_of_a_run_that_the_study_lost_are_found(studied):
    runs, shown, compare, out = studied
    shown["table3"] = shown["table3"][:-1]
    with pytest.raises(ValueError, match="table3_cells"):
        audited(runs, shown, compare, out)


def test_a_table_that_is_not_there_is_named(studied):
    runs, *_ = studied
    (Path(runs[0]["folder"]) / "metrics.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.parquet"):
        audited(*studied)

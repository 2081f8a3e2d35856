"""Results that somebody sent: tables that were altered reach no report, and a run can be measured again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.snakemake_copy import copy_tree, planned, snakemake

from robreg.checks.study_audit import refuse_changed_study
from robreg.tables import parquet

RUN = "results/digits/ar8"


def small(config):
    digits = config["datasets"]["digits"]
    digits |= {"max_train": 200, "max_test": 60}
    digits["training"] |= {"epochs": 2, "lr_drops": []}
    digits["strong_attack"] |= {"steps": 5, "n": 20}
    digits["masking"] |= {"n": 20, "more_steps": 12, "restarts": 2}
    runs = [{"dataset": "digits", "ar": [0, 8]}]
    config["studies"]["mine"] = {"title": "Mine", "runs": runs, "compare": [0, 8], "figures": ["fig3"], "tables": []}
    config["studies"]["mine"]["tables"] = ["table3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = copy_tree(tmp_path_factory.mktemp("made"), small)
    snakemake(folder, "-c2", "mine")
    return folder


@pytest.fixture
def received(made, tmp_path):
    """A copy of the results as `cp -a`, rsync and tar make it, with all times."""
    subprocess.run(["cp", "-a", str(made), str(tmp_path / "received")], check=True)
    assert planned(tmp_path / "received", "mine") == {}
    return tmp_path / "received"


def alter(path: Path, column):
    """Change the first value of a column, and keep the file's times."""
    stat, table = path.stat(), parquet.read(path)
    frame = table.to_pandas()
    row = frame[column].first_valid_index()
    frame.loc[row, column] = frame.loc[row, column] * 0.9
    parquet.write_frame(path, table.from_pandas(frame, schema=table.schema), parquet.read_metadata(path))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


ALTERED = {
    "metrics": "test_acc",
    "svstd": "std",
    "history": "loss",
    "attacks": "acc_robust",
    "masking": "after",
    "margins": "margin",
    "spread": "mean",
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_table_of_a_run_is_named(kind, received, monkeypatch):
    monkeypatch.chdir(received)
    runs, audit = [{"folder": "results/digits/ar0"}, {"folder": RUN}], Path("results/studies/mine/audit.parquet")
    refuse_changed_study(runs, audit)
    alter(Path(RUN, f"{kind}.parquet"), ALTERED[kind])
    with pytest.raises(ValueError, match=rf"{kind}\.parquet changed after .* have them made again"):
        refuse_changed_study(runs, audit)


def test_an_altered_table_reaches_no_report(received):
    alter(received / RUN / "metrics.parquet", "test_acc")
    said = snakemake(received, "-c1", "--forcerun", "report", "--", "mine", check=False)
    assert "results/digits/ar8: metrics.parquet changed after checks.parquet was made from them" in said
    assert not (received / "results/studies/mine/report.html").exists()


def test_a_history_that_is_not_that_of_the_checkpoint_is_refused_by_the_checks(received):
    alter(received / RUN / "history.parquet", "loss")
    said = snakemake(received, "-c1", "--forcerun", "checks", "--", f"{RUN}/checks.parquet", check=False)
    assert "history_checkpoint (histories other than that of the checkpoint's training: 1, not 0)" in said


def test_results_without_checkpoints_make_a_report(received):
    for path in (received / "results").rglob("checkpoint.pt"):
        path.unlink()
    shutil.rmtree(received / RUN / "kept")
    snakemake(received, "-c1", "--forcerun", "report", "--", "mine")


def verify(folder, run):
    command = [sys.executable, "-m", "robreg.checks.verify", run]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_run_is_verified_by_measuring_it_again(received):
    done = verify(received, "digits/ar8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digits/ar8: verified" in done.stdout
    assert done.stdout.count("equal in every value") == len(list((received / RUN).glob("*.parquet"))) - 2
    assert "train" not in done.stderr.replace("training", "")
    alter(received / RUN / "margins.parquet", "loss")
    alter(received / RUN / "spread.parquet", "mean")
    wanted = [path.read_bytes() for path in sorted((received / RUN).glob("*.parquet"))]
    done = verify(received, "digits/ar8")
    assert done.returncode == 1
    assert "these tables are not those of the checkpoint: margins.parquet, spread.parquet" in done.stdout
    copies = sorted((received / RUN).glob("received-*"), key=lambda path: path.stat().st_mtime)
    assert (copies[-1] / "spread.parquet").read_bytes() in wanted


def test_verifying_what_is_not_there_says_so(received):
    done = verify(received, "digits/ar7")
    assert done.returncode == 2
    assert "results/digits/ar7 has no checkpoint.pt or no tables to compare" in done.stderr

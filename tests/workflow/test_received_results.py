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
    config["studies"]["mine"] = {"title": "Mine", "runs": runs, "compare": [0, 8], "figures": [], "tables": []}
    config["studies"]["mine"] |= {"figures": ["fig3", "examples"], "tables": ["table3"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = copy_tree(tmp_path_factory.mktemp("made"), small)
    snakemake(folder, "-c2", "mine")
    return folder


@pytest.fixture
def received(made, tmp_path):
    """A copy of the results as `cp -a`, rsync and tar make it, with all times."""
    subprocess.run(["cp", "-a", str(made), str(tmp_path / "received")], check=True)
    return tmp_path / "received"


@pytest.fixture
def inside(received, monkeypatch):
    monkeypatch.chdir(received)


def test_received_results_are_finished(received):
    assert planned(received, "mine") == {}


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
    "examples": "adversarial_margin",
}


STUDY = "results/studies/mine"
SHOWN = [
    *(f"{STUDY}/{stem}{end}" for stem in ("claims", "comparison") for end in (".parquet", ".csv")),
    *(f"{STUDY}/tables/table3{end}" for end in (".parquet", ".csv", "_summary.parquet", "_summary.csv")),
    *(f"{STUDY}/figures/{name}{end}" for name in ("fig3", "examples", "comparison") for end in (".svg", ".png")),
    "data/prepared/digits/meta.json",
    f"{RUN}/checks.parquet",
]


def refuse():
    same = {"dataset": "digits", "arch": "resnet8", "train_attack": "pgd", "space": "pixel", "spectral_norm": None}
    runs = [{**same, "folder": f"results/digits/ar{ar}", "ar": ar, "seed": 0} for ar in (0, 8)]
    refuse_changed_study(runs, {"fig3": None, "examples": None, "table3": None}, Path(STUDY, "audit.parquet"))


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_table_of_a_run_is_named(kind, inside):
    refuse()
    alter(Path(RUN, f"{kind}.parquet"), ALTERED[kind])
    with pytest.raises(ValueError, match=rf"{kind}\.parquet changed after .* have them made again"):
        refuse()


@pytest.mark.parametrize("file", SHOWN)
def test_all_that_a_report_shows_is_sealed(file, inside):
    path = Path(file)
    if path.name == "checks.parquet":  # its rows are shown; its seals are right
        alter(path, "expected")
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"^{file} changed after {STUDY}/audit.parquet was made from them"):
        refuse()
    path.unlink()
    if path.name != "checks.parquet":
        with pytest.raises(ValueError, match=f"^{file} changed after .*, or are missing; delete .* made again$"):
            refuse()


PLANTED = {"a link": lambda path: path.symlink_to("/dev/zero"), "a pipe": os.mkfifo, "a folder": Path.mkdir}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("file", [f"{STUDY}/figures/fig3.svg", f"{RUN}/spread.parquet", f"{RUN}/history.parquet"])
def test_what_is_no_file_is_not_read(plant, file, inside):
    Path(file).unlink()
    plant(Path(file))
    with pytest.raises(ValueError, match=f"^{file} is a link, or no file: put a copy"):
        refuse()


def reseal(path, change):
    metadata = parquet.read_metadata(path)
    metadata["sealed"] = change(metadata["sealed"])
    parquet.write_frame(path, parquet.read(path), metadata)


RESEALED = {
    "none": lambda _: None,
    "an empty list": lambda _: [],
    "a list": list,
    "text": str,
    "without one": lambda seals: dict(list(seals.items())[1:]),
    "without any": lambda _: {},
    "a file elsewhere": lambda seals: {**seals, "/dev/zero": "0"},
    "a file above": lambda seals: {**seals, "../../../victim": "0"},
    "a file elsewhere in place of one": lambda seals: {**dict(list(seals.items())[1:]), "/dev/zero": "0"},
}


@pytest.mark.parametrize("change", RESEALED.values(), ids=RESEALED)
@pytest.mark.parametrize("file", [f"{RUN}/checks.parquet", f"{STUDY}/audit.parquet"])
def test_seals_of_other_files_are_refused(change, file, inside):
    reseal(Path(file), change)
    with pytest.raises(ValueError, match=f"^{file} does not hold the SHA-256 of exactly .*; delete it to check them"):
        refuse()


def test_a_checkpoint_must_be_sealed_if_it_is_there(inside):
    reseal(Path(RUN, "checks.parquet"), lambda seals: {key: seals[key] for key in seals if key != "checkpoint.pt"})
    with pytest.raises(ValueError, match=f"^{RUN}/checks.parquet does not hold"):
        refuse()


def test_a_seal_that_is_no_text_is_that_of_no_file(inside):
    reseal(Path(STUDY, "audit.parquet"), lambda seals: {**seals, f"{STUDY}/claims.csv": [1]})
    with pytest.raises(ValueError, match=f"^{STUDY}/claims.csv changed after"):
        refuse()


def test_an_altered_figure_reaches_no_report_until_it_is_drawn_again(received):
    figure = received / STUDY / "figures/fig3.svg"
    stat, before = figure.stat(), figure.read_bytes()
    figure.write_bytes(before + b" ")
    os.utime(figure, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    said = snakemake(received, "-c1", "--forcerun", "report", "--", "mine", check=False)
    assert f"Error: {STUDY}/figures/fig3.svg changed after {STUDY}/audit.parquet was made from them" in said
    figure.unlink()
    snakemake(received, "-c1", f"{STUDY}/figures/fig3.svg")
    assert figure.read_bytes() == before
    assert planned(received, "mine") == {"report": 1, "mine": 1}  # Snakemake sees that the content is the same


def test_a_figure_that_is_drawn_differently_is_sealed_again(received):
    figure = received / STUDY / "figures/fig3.svg"
    figure.write_bytes(figure.read_bytes() + b" ")
    assert planned(received, "mine") == {"audit": 1, "report": 1, "mine": 1}
    snakemake(received, "-c1", "mine")
    assert planned(received, "mine") == {}


def test_an_altered_table_reaches_no_report(received):
    alter(received / RUN / "metrics.parquet", "test_acc")
    said = snakemake(received, "-c1", "--forcerun", "report", "--", "mine", check=False)
    assert (
        "results/digits/ar8/metrics.parquet changed after results/digits/ar8/checks.parquet was made from them" in said
    )
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

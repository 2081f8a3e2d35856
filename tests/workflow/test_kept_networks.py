"""Finished networks and edited architectures in the real workflow: what is trained, kept, used again and refused."""

import os
import re
import signal

import psutil
import pytest
from helpers.snakemake_copy import copy_tree, planned, snakemake, started, trainer
from helpers.trainings import TIMES

from robreg.tables import parquet
from robreg.training.kept import FILES, kept_networks

RUN = "results/digits/ar8"
TARGET = f"{RUN}/margins.parquet"
BOTH = (f"{RUN}/checkpoint.pt", TARGET)
NET = '''"""A small architecture."""
from torch import nn


class MyNet(nn.Module):
    """A network of one convolution."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3)))
'''


def configure(folder, epochs, variant="ar8"):
    """Give a run a number of epochs in a configuration of its own; return Snakemake's arguments."""
    name = f"{variant}-{epochs}.yaml"
    training = f"{{training: {{epochs: {epochs}, lr_drops: []}}}}"
    (folder / name).write_text(f"runs: {{digits/{variant}: {training}}}\n")
    return ["--configfile", name, "--"]


def small(config):
    config["datasets"]["digits"] |= {"max_train": 300, "max_test": 100}
    config["architectures"] |= {"mynet": {"callable": "mynet:MyNet"}}


def trained(folder):
    """Return the log of the last training of digits/ar8, and count the epochs in it."""
    return len(re.findall(r"INFO epoch \d", (folder / "logs/train/digits/ar8.log").read_text()))


def content(folder):
    """Return the run's checkpoint and margins as bytes, and its history without times."""
    history = parquet.read(folder / RUN / "history.parquet").drop_columns(list(TIMES))
    return (folder / RUN / "checkpoint.pt").read_bytes(), (folder / TARGET).read_bytes(), history.to_pylist()


def test_settings_there_and_back_with_a_kill_in_between_train_each_setting_once(tmp_path):
    folder = copy_tree(tmp_path / "tree", small)
    short, long = configure(folder, 1), configure(folder, 4)
    snakemake(folder, "-c1", *short, TARGET)
    assert trained(folder) == 1
    first = content(folder)
    driver = started(folder, *long, TARGET)  # trains, until it is killed together with its driver
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before_kill = trained(folder)
    assert 1 <= before_kill < 4
    assert not (folder / RUN / "checkpoint.pt").exists()
    snakemake(folder, "--unlock", *short, TARGET)
    assert planned(folder, *short, TARGET) == {}  # these margins are of that network
    assert planned(folder, "--rerun-incomplete", *long, TARGET) == {"train": 1, "margins": 1}
    output = snakemake(folder, "-c1", "--rerun-incomplete", *short, *BOTH)
    assert "digits/ar8: its kept network is used again, and nothing is trained" in output
    assert trained(folder) == 0
    assert content(folder) == first
    snakemake(folder, "-c1", *long, TARGET)
    assert trained(folder) == 4 - before_kill
    second = content(folder)
    for _ in range(2):
        for arguments, expected in ((short, first), (long, second)):
            plan = snakemake(folder, "-n", *arguments, TARGET)
            was, now = (4, 1) if arguments is short else (1, 4)
            line = f"digits/ar8: training.epochs was {was}, is {now}; its kept network is used again, and nothing is"
            assert line in plan
            snakemake(folder, "-c1", *arguments, TARGET)
            assert trained(folder) == 0
            assert content(folder) == expected
            assert planned(folder, *arguments, TARGET) == {}
    other = copy_tree(tmp_path / "undisturbed", small)
    snakemake(other, "-c1", *configure(other, 4), TARGET)
    assert content(other) == second
    assert len(kept_networks(folder / "results")) == 2


def test_a_forced_training_trains_and_loses_nothing(tmp_path):
    folder = copy_tree(tmp_path / "tree", small)
    short = configure(folder, 1)
    snakemake(folder, "-c1", *short, TARGET)
    (before,) = kept_networks(folder / "results")
    plan = snakemake(folder, "-n", "--forcerun", "train", *short, TARGET)
    assert "is used again" not in plan
    assert [one.folder for one in kept_networks(folder / "results")] == [before.folder]
    snakemake(folder, "-c1", "--forcerun", "train", *short, TARGET)
    assert trained(folder) == 1
    names = [one.folder.name for one in kept_networks(folder / "results")]
    assert names == [before.folder.name, f"{before.folder.name}.1"]
    snakemake(folder, "-c1", "--touch", "--forcerun", "train", *short, TARGET)
    assert [one.folder.name for one in kept_networks(folder / "results")] == names


def test_a_network_of_an_earlier_version_is_kept_before_its_files_are_deleted(tmp_path):
    folder = copy_tree(tmp_path / "tree", small)
    checkpoint = f"{RUN}/checkpoint.pt"
    snakemake(folder, "-c1", *configure(folder, 1), checkpoint)
    before = {name: (folder / RUN / name).read_bytes() for name in FILES}
    (one,) = kept_networks(folder / "results")
    for name in FILES:
        (one.folder / name).unlink()
    one.folder.rmdir()
    snakemake(folder, "-c1", *configure(folder, 2), checkpoint)
    kept = {one.used: one.folder for one in kept_networks(folder / "results")}
    assert {name: (kept[False] / name).read_bytes() for name in FILES} == before


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run of a user-defined architecture, measured; its folder and the arguments that make it."""
    folder = copy_tree(tmp_path_factory.mktemp("own"), small)
    (folder / "mynet.py").write_text(NET)
    arguments = [*configure(folder, 1, "ar8-mynet"), "results/digits/ar8-mynet/margins.parquet"]
    snakemake(folder, "-c1", *arguments)
    return folder, arguments


@pytest.fixture
def edited(own):
    """The run of a user-defined architecture, whose code is restored after the test."""
    yield own
    (own[0] / "mynet.py").write_text(NET)


def test_a_comment_in_an_architecture_plans_nothing(edited):
    folder, arguments = edited
    assert planned(folder, *arguments) == {}
    (folder / "mynet.py").write_text(NET.replace('    """A network of', '    # comment\n    """A net of'))
    assert planned(folder, *arguments) == {}


def test_an_edit_that_changes_no_shape_plans_the_training_and_is_refused_by_measures(edited):
    folder, arguments = edited
    (folder / "mynet.py").write_text(NET.replace("mean((2, 3))", "amax((2, 3))"))
    plan = snakemake(folder, "-n", *arguments)
    assert re.search(r"digits/ar8-mynet: factory\.code\.mynet was \w{16}, is \w{16}$", plan, re.MULTILINE)
    assert planned(folder, *arguments) == {"train": 1, "margins": 1}
    forced = ["-c1", "--rerun-triggers", "mtime", "--forcerun", "margins", *arguments]
    said = snakemake(folder, *forced, check=False)
    assert re.search(
        r"^margins digits/ar8-mynet: results/digits/ar8-mynet/checkpoint\.pt: this is not the network that was "
        r"trained: its logits differ by \S+ % of the largest one\. Since then mynet was edited: undo that, or train "
        r"again$",
        said,
        re.MULTILINE,
    )
    assert not (folder / "results/digits/ar8-mynet/margins.parquet").exists()
    (folder / "mynet.py").write_text(NET)
    snakemake(folder, "-c1", *arguments)
    assert "resuming" not in (folder / "logs/train/digits/ar8-mynet.log").read_text()
    assert planned(folder, *arguments) == {}


def test_an_edit_that_changes_a_shape_is_refused_as_an_edit(edited):
    folder, arguments = edited
    (folder / "mynet.py").write_text(NET.replace("Conv2d(1, 8", "Conv2d(1, 6").replace("Linear(8", "Linear(6"))
    forced = ["-c1", "--rerun-triggers", "mtime", "--forcerun", "margins", *arguments]
    said = snakemake(folder, *forced, check=False)
    assert "does not fit its architecture, whose code has changed since it was trained: mynet was edited" in said
    (folder / "mynet.py").write_text(NET)
    snakemake(folder, "-c1", *arguments)


def test_the_reason_of_a_measure_is_one_line_too(edited):
    folder, arguments = edited
    (folder / "batch.yaml").write_text("datasets: {digits: {evaluation_batch: 250}}\n")
    plan = snakemake(folder, "-n", "--configfile", arguments[1], "batch.yaml", *arguments[2:])
    assert "Params have changed since last execution: value was 500, is 250" in plan


def test_a_killed_trainer_leaves_the_kept_network_whole(tmp_path):
    folder = copy_tree(tmp_path / "tree", small)
    snakemake(folder, "-c1", *configure(folder, 1), TARGET)
    first = content(folder)
    driver = started(folder, *configure(folder, 4), TARGET)
    trainer(driver).kill()
    assert driver.wait() != 0
    assert not psutil.pid_exists(driver.pid)
    snakemake(folder, "-c1", "--rerun-incomplete", *configure(folder, 1), *BOTH)
    assert trained(folder) == 0
    assert content(folder) == first

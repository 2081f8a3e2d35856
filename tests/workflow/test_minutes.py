"""Training for a number of minutes without Snakemake: what fits, in order, and what Snakemake makes of it."""

import logging
import subprocess
import sys

import pytest
import torch
import yaml
from helpers.snakemake_copy import ROOT, copy_tree, planned
from helpers.trainings import assert_same, result
from helpers.trainings import run as train_directly

from robreg.data.dataset import load_dataset
from robreg.runs.settings import ConfigError, run_settings, training_settings
from robreg.workflow import minutes

HOUR = 3600.0


@pytest.fixture
def config():
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["datasets"]["digits"] |= {"max_train": 128, "max_test": 64}
    config["datasets"]["digits"]["training"] |= {"epochs": 2, "lr_drops": []}
    config["studies"]["two"] = {"runs": [{"dataset": "digits", "ar": [0, 8]}]}
    return config


@pytest.fixture
def here(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    return tmp_path


def test_the_runs_are_trained_in_order_as_the_workflow_trains_them(config, here, caplog):
    assert minutes.train_within(config, ["digits/ar8-s1", "two", "digits/ar0"], seconds=HOUR, data_root=here)
    started = [line.split(":")[0] for line in caplog.messages if line.endswith(": 2 epochs")]
    assert started == ["digits/ar8-s1", "digits/ar0", "digits/ar8"]
    settings = training_settings(run_settings(config, "digits", "ar8"))
    other = train_directly(settings, load_dataset(here / "data/prepared/digits"), here / "directly")
    assert_same(result(here / "results/digits/ar8"), other)
    caplog.clear()
    assert minutes.train_within(config, ["two"], seconds=HOUR, data_root=here)
    assert "digits/ar8: trained already" in caplog.messages
    assert not [line for line in caplog.messages if line.endswith("epochs")]


def test_training_stops_before_the_end_and_goes_on_next_time(config, here, caplog):
    config["datasets"]["digits"]["training"]["epochs"] = 100_000
    epochs = []
    for _ in range(2):
        seconds = minutes._SPARE + 3
        assert minutes.train_within(config, ["two"], seconds=seconds, data_root=here)
        state = torch.load(here / "results/digits/ar0/resume.pt", weights_only=True)
        epochs.append(len(state["history"]))
    assert 0 < epochs[0] < epochs[1]
    assert not (here / "results/digits/ar8").exists()
    assert any("digits/ar0: the time is over. SIGTERM in epoch" in line for line in caplog.messages)


def test_no_time_begins_nothing(config, here):
    assert minutes.train_within(config, ["two"], seconds=0, data_root=here)
    assert not (here / "results").exists()


def test_a_run_that_fails_is_named_and_the_next_one_begins(config, here, caplog):
    config["runs"] = {"digits/ar0": {"training": {"lr": 1e30}}}
    assert not minutes.train_within(config, ["two"], seconds=HOUR, data_root=here)
    assert any(line.startswith("digits/ar0: epoch 1, batch") for line in caplog.messages)
    assert (here / "results/digits/ar8/checkpoint.pt").exists()


def test_a_name_that_is_neither_a_study_nor_a_run_is_refused(config, here):
    with pytest.raises(ConfigError, match="there is no study 'tow'"):
        minutes.train_within(config, ["tow"], seconds=HOUR, data_root=here)


def make_run(name, epochs, work):
    return minutes.Run(name, {"training": {"epochs": epochs}}, None, work)


def test_what_fits_is_expected_from_the_cost_of_an_operation():
    runs = [make_run("a", 10, 1.0), make_run("b", 4, 3.0), make_run("c", 8, 2.0), make_run("d", 1, 100.0)]
    seconds = 2 * (8 * 1 + 4 * 3 + 3 * 2) + 1 + minutes._SPARE  # at 2 seconds an operation
    assert list(minutes.expectations(runs, 2, 2.0, seconds)) == [
        "a: 0.3 more minutes; it is expected to finish",
        "b: 0.4 more minutes; it is expected to finish",
        "c: 0.5 more minutes; 3 of 8 epochs are expected",
        "d: 3.3 more minutes; there is no time for it",
    ]


def test_an_attack_of_ten_steps_is_eight_times_the_work(config, here):
    runs = list(minutes._runs(config, ["two"], here))
    assert runs[1].work / runs[0].work == pytest.approx(23 / 3)
    layer = 2 * 9 * 16 * 8 * 8 * 128 * 3  # the operations of one convolution for an epoch, at least
    assert layer < runs[0].work < 100 * layer


def test_the_expectation_leaves_out_an_epoch_that_includes_the_compiler(caplog):
    caplog.set_level(logging.INFO)
    for compiled, told in ((True, [2]), (False, [1])):
        run = minutes.Run("a", {"training": {"epochs": 3, "compile": compiled}}, None, 1.0)
        tell, found = minutes._teller([run], 1e12), []
        for epochs in (1, 2, 3):
            caplog.clear()
            tell([{"seconds": 1.0}] * epochs)
            found += [epochs] * bool(caplog.messages)
        assert found == told


def test_the_command_leaves_results_that_snakemake_takes_as_its_own(tmp_path):
    def edit(config):
        config["datasets"]["digits"]["training"] |= {"epochs": 1, "lr_drops": []}

    folder = copy_tree(tmp_path / "copy", edit)
    command = [sys.executable, "-m", "robreg.workflow.minutes", "30", "digits/ar0"]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "to train in 30 minutes: digits/ar0" in done.stdout
    assert set(planned(folder, "results/digits/ar0/margins.parquet")) == {"margins"}
    refused = subprocess.run([*command[:-1], "digits/ar"], cwd=folder, text=True, capture_output=True, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert refused.stderr.startswith("Error: digits/ar: ")

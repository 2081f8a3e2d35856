"""The view of what runs are doing: every state, the time left, files that others made, terminals and pipes."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest
import yaml
from helpers.leases import lease_text
from helpers.snakemake_copy import ROOT, copy_tree

from robreg.runs.needs import ALWAYS
from robreg.runs.settings import ConfigError
from robreg.workflow import progress, watch
from robreg.workflow.progress import look

STAMP = "2026-01-02 03:04:05,678 INFO"
FIRST = f"{STAMP} training takes about 1.4 min on the CPU, by its first steps (epochs left: 20)\n"
NAME = "digits/ar8"
MEASURES = ("margins", "apgd")


def epoch(number, left, total=20):
    return f"{STAMP} epoch {number}/{total} lr 0.1 loss 1.2345 acc 50.00 % 304 examples/s, {left} s left\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def put(folder, path, text="", *, age=0.0):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    when = time.time() - age
    os.utime(file, (when, when))
    return file


def put_log(folder, text, *, age=0.0, rule="train", name=NAME):
    return put(folder, f"logs/{rule}/{name}.log", text, age=age)


def put_lease(folder, *, age=0.0, name=NAME, **changes):
    return put(folder, f"results/{name}/lease.json", lease_text(held=True, **changes), age=age)


def seen(measures=MEASURES):
    found = look(NAME, measures)
    return found.state, found.text


def test_a_run_without_files_waits(here):
    assert seen() == ("waiting", "")


def test_a_job_that_has_just_begun_is_starting(here):
    put_log(here, f"{STAMP} device cpu\n")
    assert seen() == ("starting", "")


def test_a_log_from_long_ago_starts_nothing(here):
    put_log(here, f"{STAMP} device cpu\n", age=2 * progress.HOLDER_TIMEOUT)
    assert seen() == ("waiting", "")


def test_before_the_first_epoch_the_first_steps_tell_the_time(here):
    put_lease(here)
    put_log(here, FIRST)
    assert seen() == ("training", "epoch 1, about 84 s left by its first steps")


def test_a_training_shows_its_last_epoch_and_the_time_left(here):
    put_lease(here)
    put_log(here, FIRST + epoch(1, 190) + epoch(2, 180))
    assert seen() == ("training", "epoch 2 of 20 is finished, 3 min 00 s left")


@pytest.mark.parametrize(("age", "left"), [(4.0, "96 s"), (1000.0, "90 s"), (-50.0, "100 s")])
def test_the_time_since_the_last_epoch_is_taken_off_but_at_most_one_epoch(here, age, left):
    put_lease(here)
    put_log(here, epoch(10, 100), age=age)
    assert seen() == ("training", f"epoch 10 of 20 is finished, {left} left")


def test_a_job_on_a_cluster_is_named_with_its_node(here):
    put_lease(here, place=["node7", "boot", "container"], job="4711")
    put_log(here, epoch(1, 19))
    assert seen() == ("training", "epoch 1 of 20 is finished, 19 s left; on node7, SLURM job 4711")


def test_a_node_without_a_sign_of_life_is_reported(here):
    put_lease(here, place=["node7", "boot", "container"], age=600.0)
    assert seen() == ("training", "on node7; no sign of life for 10 min 00 s")


def test_a_killed_training_is_stopped(here):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    put_lease(here, pid=child.pid, born="1")
    put_log(here, epoch(7, 100))
    assert seen() == ("stopped", "epoch 7 of 20 is finished")


def test_a_released_lease_without_an_error_is_a_stopped_training(here):
    put(here, f"results/{NAME}/lease.json", lease_text())
    put_log(here, epoch(7, 100))
    assert seen() == ("stopped", "epoch 7 of 20 is finished")


def test_a_failed_training_shows_its_error(here):
    put(here, f"results/{NAME}/lease.json", lease_text())
    put_log(here, f"{STAMP.replace('INFO', 'ERROR')} the loss is nan\n    Traceback\n")
    assert seen() == ("failed", "the loss is nan")


def test_measures_are_counted_if_they_are_newer_than_their_network(here):
    put(here, f"results/{NAME}/margins.parquet", age=100.0)
    put(here, f"results/{NAME}/checkpoint.pt", age=50.0)
    assert seen() == ("trained", "0 of 2 measures")
    put(here, f"results/{NAME}/margins.parquet", age=40.0)
    put_log(here, "", rule="apgd", age=30.0)
    assert seen() == ("measuring", "apgd; 1 of 2 measures finished")
    put(here, f"results/{NAME}/apgd.parquet", age=20.0)
    assert seen() == ("measured", "")


def test_a_log_of_a_measure_of_an_earlier_network_counts_for_nothing(here):
    put(here, f"results/{NAME}/checkpoint.pt", age=50.0)
    put_log(here, f"{STAMP.replace('INFO', 'ERROR')} no space\n", rule="apgd", age=60.0)
    assert seen() == ("trained", "0 of 2 measures")


def test_a_failed_measure_shows_its_error(here):
    put(here, f"results/{NAME}/checkpoint.pt", age=50.0)
    put_log(here, f"{STAMP.replace('INFO', 'ERROR')} no space\n", rule="apgd")
    assert seen() == ("failed", "apgd: no space")


def test_results_without_their_network_are_measured(here):
    for table in (*MEASURES, "checks"):
        put(here, f"results/{NAME}/{table}.parquet")
    assert seen() == ("measured", "")


def test_control_characters_of_an_error_are_not_printed(here):
    put_log(here, f"{STAMP.replace('INFO', 'ERROR')} a\x1b[2Jb\u202ec{'d' * 5000}\n")
    state, text = seen()
    assert state == "failed"
    assert text.startswith("a\\x1b[2Jb\\u202ecd")
    assert len(text) == progress._SHOWN


def test_only_the_end_of_a_log_is_read(here, monkeypatch):
    monkeypatch.setattr(progress, "_LIMIT", 200)
    put_lease(here)
    put_log(here, epoch(3, 90) + "x" * 100_000 + "\n" + epoch(4, 80))
    assert len(progress._read_end(here / f"logs/train/{NAME}.log").text) == 200
    assert seen()[1] == "epoch 4 of 20 is finished, 80 s left"


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_log_and_no_lease_is_not_read(here, make):
    (here / "logs/train/digits").mkdir(parents=True)
    make(here / f"logs/train/{NAME}.log")
    assert seen() == ("waiting", "")
    (here / f"results/{NAME}").mkdir(parents=True)
    make(here / f"results/{NAME}/lease.json")
    assert seen() == (
        "failed",
        f"results/{NAME}/lease.json is not a regular file: delete it if no other process is training this run",
    )


@pytest.mark.parametrize("text", [epoch(0, 0, 0), epoch(9, 5, 3), epoch("9" * 30, 5), "\xff\xfe" * 50])
def test_nonsense_in_a_log_is_survived(here, text):
    put_lease(here)
    put_log(here, text)
    assert seen()[0] == "training"


def test_the_view_of_a_study_sums_up_sorts_and_names_the_report(here, config):
    put_lease(here, name="digits/ar16")
    put_log(here, epoch(10, 100), name="digits/ar16")
    put(here, "results/digits/ar8/checkpoint.pt")
    lines = watch.view(config, "demo")
    # 100 s of AR 16, and 20 epochs of 10 s of each of the eight others of its kind (PGD of any strength).
    assert lines[0] == (
        "demo, 15 in all: 1 training, 13 waiting, 1 trained; about 28 min 20 s of training left with 1 at a time, not "
        "counting 5 of a kind of which no epoch is finished yet"
    )
    assert lines[1] == "digits/ar16            training   epoch 10 of 20 is finished, 100 s left"
    assert lines[-2:] == [
        f"digits/ar8             trained    0 of {len(ALWAYS) + 5} measures",
        "report: results/studies/demo/report.html (not made yet)",
    ]
    assert len(lines) == 17


def test_without_a_study_only_runs_that_have_begun_are_shown(here, config):
    assert watch.view(config, None) == ["No run has begun."]
    put_lease(here, name="c10/ar8")
    assert watch.view(config, None) == ["begun, 1 in all: 1 training", "c10/ar8  training"]


def test_a_low_terminal_shows_what_matters(here, config):
    put_lease(here, name="digits/ar32-s2")
    lines = watch.view(config, "demo", 8)
    assert len(lines) <= 8
    assert lines[1].startswith("digits/ar32-s2")
    assert lines[-2] == "... and 11 more"


def test_an_unknown_study_is_refused(here, config):
    with pytest.raises(ConfigError, match="did you mean demo"):
        watch.view(config, "dmeo")


def test_a_study_is_finished_with_its_report_and_all_measures(here, config):
    put(here, "results/studies/demo/report.html")
    assert not watch.is_finished(config, "demo")
    for run in watch.view(config, "demo")[1:-1]:
        name = run.split()[0]
        own = [] if re.search("-(s1|s2|fgsm|sn1)$", name) else ["examples"]  # a figure that does not show all runs
        for table in (*ALWAYS, "lossvar", "spread", *own, "theory", "checks"):
            assert not watch.is_finished(config, "demo")
            put(here, f"results/{name}/{table}.parquet")
    assert watch.is_finished(config, "demo")
    assert not watch.is_finished(config, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = copy_tree(tmp_path_factory.mktemp("watch"))
    put_lease(folder)
    put_log(folder, epoch(10, 100))
    return folder


def test_a_pipe_gets_one_plain_print(folder):
    done = subprocess.run(
        [sys.executable, "-m", "robreg.workflow.watch", "demo"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert done.stdout.count("report: ") == 1
    assert "digits/ar8             training   epoch 10 of 20 is finished" in done.stdout
    assert not done.stderr


@pytest.mark.usefixtures("alarm")
def test_a_terminal_is_drawn_again_until_ctrl_c(folder):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "robreg.workflow.watch", "demo"]
    child = subprocess.Popen(command, cwd=folder, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    while text.count(b"\x1b[H\x1b[J") < 2:
        text += os.read(master, 4096)
    child.send_signal(2)
    assert child.wait() == 0
    assert b"Traceback" not in text


def test_a_wrong_study_is_answered_in_one_sentence(folder):
    command = [sys.executable, "-m", "robreg.workflow.watch", "dmeo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: config.yaml: studies: there is no study 'dmeo'")
    assert done.stderr.count("\n") == 1

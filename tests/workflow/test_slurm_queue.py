"""SLURM's queue: finding the jobs that an earlier driver left behind, and waiting for them."""

import os
import re

import pytest

from robreg.workflow import slurm

# The first call runs script 1, the next one script 2, and so on; the last script is run again and again.
FAKE = """#!/bin/sh
cd "$(dirname "$0")/$(basename "$0").d"
echo "$@" >> calls
n=$(($(wc -l < calls)))
while [ ! -e "$n" ]; do n=$((n - 1)); done
. "./$n"
"""
DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that puts a command on PATH, which runs one of the scripts per call.

    That function returns another one, for the arguments of the calls so far.
    """

    def make(name, *scripts):
        command, folder = tmp_path / "bin" / name, tmp_path / "bin" / f"{name}.d"
        folder.mkdir(parents=True)
        for number, script in enumerate(scripts, start=1):
            (folder / str(number)).write_text(script)
        command.write_text(FAKE)
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
        return lambda: (folder / "calls").read_text().removesuffix("\n").split("\n")

    return make


def queue(*lines):
    """Return a script that prints jobs; their fields are separated by |, except in the last one."""
    records = [slurm._RECORD + slurm._FIELD.join(line.split("|", 4)) for line in lines]
    return "cat <<'END'\n" + "\n".join(records) + "\nEND\n" if lines else "true"


def test_only_jobs_of_drivers_in_this_folder_are_found(fake, tmp_path):
    folder, link = tmp_path / "here", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    calls = fake(
        "squeue",
        queue(
            f"11|RUNNING|robreg_5b1c|{folder}|rule_train_wildcards_digits_ar8",
            f"12_[1-3]|PENDING|robreg_5b1c|{link}|a|b",
            f"13|RUNNING|robregister_77|{folder}|another workflow's",
            f"14|RUNNING|5b1c|{folder}|without a prefix",
            f"15|RUNNING|robreg_77|{tmp_path}/elsewhere|another checkout's",
            f"16|COMPLETING|robreg_77|{folder}|",
            "a word of SLURM's own",
            f"17|RUNNING|robreg_78|{folder}|lines\n18|RUNNING|robreg_79|{folder}|and signs \x1b[2J\x1f\x07",
        ),
    )
    found = slurm.unfinished_jobs("robreg", link)
    assert found == [
        ("11", "RUNNING", "rule_train_wildcards_digits_ar8"),
        ("12_[1-3]", "PENDING", "a|b"),
        ("16", "COMPLETING", ""),
        ("17", "RUNNING", f"lines?18|RUNNING|robreg_79|{folder}|and signs ?[2J??"),
    ]
    assert calls() == [f"--noheader --user={os.geteuid()} --format=\x1e%i\x1f%T\x1f%j\x1f%Z\x1f%k"]


def test_names_and_folders_with_any_text_are_read_as_they_are(fake, tmp_path):
    folder = tmp_path / "a|b\nc"
    folder.mkdir()
    jobs = [("11", "RUNNING", "robreg_5b1c", folder, ""), ("12", "RUNNING", f"x|robreg_1|{folder}\n13|", folder, "")]
    records = "\n".join(slurm._RECORD + slurm._FIELD.join(map(str, job)) for job in jobs)
    fake("squeue", f"cat <<'END'\n{records}\nEND\n")
    assert [job.id for job in slurm.unfinished_jobs("robreg", folder)] == ["11"]


def test_an_error_quotes_slurm_s_message(fake, tmp_path, monkeypatch):
    fake("squeue", DOWN)
    with pytest.raises(slurm.ClusterError, match=r"^squeue failed: .*Unable to contact slurm controller$"):
        slurm.unfinished_jobs("robreg", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.ClusterError, match=r"squeue failed: .*No such file"):
        slurm.unfinished_jobs("robreg", tmp_path)


def test_an_empty_queue_is_not_waited_for(fake, tmp_path):
    calls, messages = fake("squeue", queue()), []
    slurm.wait_for_jobs("robreg", tmp_path, seconds=60, say=messages.append)
    assert (len(calls()), messages) == (1, [])


def test_jobs_left_behind_are_named_and_waited_for(fake, tmp_path):
    one = f"11|RUNNING|robreg_5b1c|{tmp_path}|rule_train_wildcards_digits_ar8"
    other = f"12|PENDING|robreg_5b1c|{tmp_path}|rule_prepare_wildcards_c10"
    calls, messages = fake("squeue", queue(one, other), queue(other), DOWN, queue(one), queue()), []
    slurm.wait_for_jobs("robreg", tmp_path, seconds=0, say=messages.append)
    assert len(calls()) == 5
    first, down, last = messages
    assert re.findall("^.*job.*$|^  .*$", first, re.MULTILINE)[:3] == [
        "2 job(s) of another Snakemake, killed or running, are still in SLURM's queue:",
        "  11 RUNNING rule_train digits_ar8",
        "  12 PENDING rule_prepare c10",
    ]
    assert first.endswith("in another shell: scancel 11 12")
    assert down.startswith("squeue failed: ")
    assert down.endswith("asking again in 0 s")
    assert "have ended" in last


def test_a_cluster_that_is_down_from_the_start_is_not_waited_for(fake, tmp_path):
    calls, messages = fake("squeue", DOWN), []
    with pytest.raises(slurm.ClusterError):
        slurm.wait_for_jobs("robreg", tmp_path, seconds=60, say=messages.append)
    assert (len(calls()), messages) == (1, [])


def test_an_empty_job_name_prefix_is_refused(tmp_path):
    with pytest.raises(slurm.ClusterError, match="slurm-jobname-prefix: set a prefix"):
        slurm.unfinished_jobs("", tmp_path)

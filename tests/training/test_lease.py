"""The lease: one process trains a run, a dead process loses its lease, and attempts without progress are counted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.trainings import make_settings
from helpers.trainings import run as fit

from robreg.training import lease
from robreg.training.lease import HeldError, Lease, LostError, StalledError, stalled_attempts
from robreg.training.resume import ResumeFile

CHILD = """
import sys, time
from robreg.training import lease
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "lease.json"


@pytest.fixture
def start():
    """Return a function that starts a process, which runs the lines of code that it is sent until the test ends."""
    started = []

    def one():
        command = [sys.executable, "-c", CHILD]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield one
    for process in started:
        with process:
            process.kill()


def send(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process, line):
    send(process, line)
    return process.stdout.readline().strip()


def holder(process, path, settings=""):
    assert answer(process, f"{settings}held = lease.Lease(lease.Path({str(path)!r})).__enter__()") == "done"
    return process


def far(beat):
    """Return code that makes a process appear to be on another machine."""
    return f"lease.this_machine = lambda: ['far', '', '']; lease.RENEWAL_SECONDS = {beat}; "


def read(path):
    return json.loads(path.read_text())


def edit(path, **changes):
    path.write_text(json.dumps(read(path) | changes))


def fail(path, *, progress=False):
    """Hold the lease during a block that fails."""
    held = Lease(path).__enter__()
    if progress:
        held.progress()
    held.__exit__(SystemExit, SystemExit(1), None)


def refused(path, message, error=HeldError):
    with pytest.raises(error, match=message), Lease(path):
        pass


def granted(path):
    with Lease(path):
        return read(path)["pid"] == os.getpid()


def test_a_living_process_keeps_its_lease_and_a_killed_one_loses_it_at_once(path, start):
    other = holder(start(), path)
    refused(path, rf"is being trained by process {other.pid} on \S+ \(.*wait for it, or stop it first")
    other.send_signal(signal.SIGSTOP)  # it is alive, but renews nothing
    refused(path, f"process {other.pid} ")
    other.kill()
    other.wait()
    assert granted(path)


def test_a_zombie_process_counts_as_dead(path, start):
    other = holder(start(), path)
    other.kill()
    # This leaves a zombie, as in a container whose process 1 does not reap dead children.
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert granted(path)


def test_another_process_with_the_same_id_is_not_the_holder(path):
    fail(path)
    edit(path, held=True)
    refused(path, f"process {os.getpid()} ")
    edit(path, born="1")
    assert granted(path)


def test_a_remote_holder_that_renews_its_lease_keeps_it(path, start, monkeypatch):
    other = holder(start(), path, far(beat=0.05))
    monkeypatch.setattr(lease, "HOLDER_TIMEOUT", 5.0)
    refused(path, f"process {other.pid} on far")
    assert answer(other, "held.progress()") == answer(other, "held.__exit__(None, None, None)") == "done"
    assert not path.exists()


def test_a_suspended_remote_holder_loses_its_lease_and_notices_when_it_continues(path, start, monkeypatch):
    other = holder(start(), path, far(beat=0.2))
    while read(path)["beat"] == 0:  # afterwards its thread sleeps until the next renewal
        time.sleep(0.005)
    other.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(lease, "HOLDER_TIMEOUT", 0.3)
    with Lease(path):
        content = path.read_text()
        other.send_signal(signal.SIGCONT)
        assert answer(other, "held.check()").startswith(f"LostError {path} was taken by another process")
        assert answer(other, "held.progress()").startswith("LostError")
        assert answer(other, "held.__exit__(None, None, None)") == "done"
        assert path.read_text() == content


@pytest.mark.parametrize(
    ("change", "over", "after"),
    [
        (lambda path: None, True, lease.HOLDER_TIMEOUT),
        (lambda path: path.unlink(), True, 1),
        (lambda path: edit(path, held=False), True, 1),
        (lambda path: edit(path, beat=8), False, 1),
        (lambda path: edit(path, token="a third process's"), False, 1),
    ],
    ids=["no change", "released after success", "released after failure", "renewed", "taken by another process"],
)
def test_a_remote_holder_is_watched(change, over, after, path, monkeypatch):
    fail(path)
    edit(path, held=True, place=["far", "", ""], beat=7)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[-1])
    monkeypatch.setattr(time, "sleep", lambda seconds: (clock.append(clock[-1] + seconds), change(path)))
    assert granted(path) if over else refused(path, "on far") is None
    assert clock[-1] == after


def test_the_file_is_removed_after_success_and_kept_after_failure(path):
    with Lease(path):
        assert read(path)["held"]
    assert not path.exists()
    fail(path)
    assert not read(path)["held"]
    assert [found.name for found in path.parent.iterdir()] == ["lease.json"]


@pytest.mark.parametrize("error", [None, SystemExit])
def test_a_lost_lease_is_left_to_the_process_that_took_it(error, path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    held = Lease(path).__enter__()
    while read(path)["beat"] < 2:
        time.sleep(0.005)
    with held._lock:  # between two renewals
        edit(path, token="another process's")
        content = path.read_text()
    for renew in (held.check, held.progress):
        with pytest.raises(LostError, match=r"lease\.json was taken by another process"):
            renew()
    time.sleep(0.05)
    held.__exit__(error, error and error(), None)
    assert path.read_text() == content


@pytest.mark.parametrize("part", ["_is_mine", "_write"])
def test_a_lease_survives_a_temporary_failure_of_the_file_system(part, path, monkeypatch, caplog):
    works, calls = getattr(Lease, part), []

    def fails_once(*arguments, **keywords):
        calls.append(part)
        if len(calls) == 2:  # the first call of _write takes the lease
            raise OSError("stale file handle")
        return works(*arguments, **keywords)

    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    monkeypatch.setattr(Lease, part, fails_once)
    with Lease(path):
        while read(path)["beat"] < 3 and any(thread.name == "lease" for thread in threading.enumerate()):
            time.sleep(0.005)
        assert read(path)["beat"] >= 3
    assert [record.getMessage() for record in caplog.records] == [f"{path} could not be renewed: stale file handle"]


def test_attempts_without_a_finished_epoch_are_counted(path):
    found = [stalled_attempts(path)]
    for progress in (False, False, False, True, False):
        fail(path, progress=progress)
        found.append(stalled_attempts(path))
    assert found == [0, 1, 2, 3, 0, 1]


def test_a_job_that_slurm_restarts_without_progress_is_refused(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for _ in range(2):
        fail(path)
    refused(path, r"SLURM started job 7 3 times, .* in the last 2 attempts: give it more time", StalledError)
    assert stalled_attempts(path) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    fail(path)
    monkeypatch.delenv("SLURM_JOB_ID")
    for progress in (False, False, True):
        fail(path, progress=progress)


@pytest.mark.parametrize("content", ["", "{", "\0" * 200])
def test_a_damaged_file_is_refused_by_name(content, path):
    path.write_text(content)
    refused(path, r"lease\.json is damaged: delete it", ValueError)
    assert path.read_text() == content


@pytest.mark.parametrize("dead", [False, True], ids=["no holder", "dead holder"])
def test_only_one_of_two_processes_that_start_at_once_gets_the_lease(dead, path, start):
    both = [start(), start()]
    for race in range(20):
        place = path.parent / str(race) / "lease.json"
        if dead:
            fail(place)
            edit(place, held=True, born="1")
        moment = time.time() + 0.01
        wait = f"time.sleep(max(0, {moment} - time.time()))"
        for process in both:
            send(process, f"held = lease.Lease(lease.Path({str(place)!r})); {wait}; held.__enter__()")
        taken = sorted(process.stdout.readline().split()[0] for process in both)
        assert dead or taken == ["HeldError", "done"]
        assert sorted(answer(process, "held.check()").split()[0] for process in both) == ["LostError", "done"]


def content(folder):
    return {found.name: found.read_bytes() for found in folder.iterdir()}


def test_a_run_that_another_process_is_training_is_refused(run, path, start):
    other = holder(start(), path)
    before = content(path.parent)
    with pytest.raises(HeldError, match=f"process {other.pid} "):
        fit(make_settings("ar0"), run.data, path.parent)
    assert content(path.parent) == before


@pytest.mark.parametrize("saves", [1, 2, 4], ids=["first", "middle", "last"])
def test_a_training_that_lost_its_lease_writes_nothing_more(saves, run, path, monkeypatch):
    save, states = ResumeFile.save, []

    def losing(resume, state):
        save(resume, state)
        states.append(content(path.parent))
        if len(states) == saves:
            edit(path, token="another process's")
            states.append(content(path.parent))

    monkeypatch.setattr(ResumeFile, "save", losing)
    with pytest.raises(LostError):
        fit(make_settings("ar0"), run.data, path.parent)
    assert len(states) == saves + 1
    assert content(path.parent) == states[-1]

"""Whatever others put in place of a lease: a training refuses it by name, and no made-up holder blocks a run."""

import json
import os
import socket
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers.leases import lease_text
from helpers.other_user import ATTACKER, MEMBER, ROOT, act, shared_folder

from robreg.tables import processes
from robreg.tables.processes import start_time
from robreg.training import lease
from robreg.training.lease import HeldError, Lease, holder_token, made_progress, stalled_attempts

pytestmark = pytest.mark.usefixtures("alarm")


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(lease, "HOLDER_TIMEOUT", 0.3)
    return tmp_path / "lease.json"


NO_FILES = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a lease": lambda path: (path.with_name("a").write_text(lease_text()), path.symlink_to("a")),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
}
TEXTS = {
    "deep lists": "[" * 4000,
    "deep objects": '{"a":' * 800,
    "a list": "[]",
    "an object without keys": "{}",
    "not UTF-8": "\udcff",
    "a large file": lease_text() + " " * lease.LIMIT,
    "a number of too many digits": lease_text().replace('"beat": 0', f'"beat": {"9" * 3000}'),
    **{
        f"{key} {value!r}"[:60]: lease_text(**{key: value})
        for key, values in {
            "token": [None, 1, [], {}, "a\nb", "\x1b[2J", "a" * 256],
            "held": [None, 1, "true"],
            "job": [1, [], "7\x07", "\u202e7"],
            "pid": [None, "1", 0, -1, 1.5, True, 2**31, []],
            "beat": [None, "1", -1, 1.5],
            "place": [None, [], "abc", ["a", "b"], ["a", "b", 3], ["a\nb", "", ""], [["a"], "", ""]],
            "born": [1, [], "1\n"],
            "stalls": [None, "x", -1, 1e300, True, 2**31],
        }.items()
        for value in values
    },
}


def refused(path, message, error=ValueError):
    with pytest.raises(error, match=message) as found, Lease(path):
        pass
    assert str(found.value).isprintable()


def granted(path):
    with Lease(path):
        return json.loads(path.read_text())["pid"] == os.getpid()


def assert_driver_goes_on(path):
    assert (stalled_attempts(path), holder_token(path), made_progress(path)) == (0, None, False)


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_not_a_file_is_refused_by_name(kind, path, caplog):
    NO_FILES[kind](path)
    assert_driver_goes_on(path)
    assert caplog.messages == [f"{path} is not a regular file: delete it if no other process is training this run"]
    refused(path, r"lease\.json is not a regular file: delete it if no other process is training this run")


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_that_is_no_lease_is_refused_by_name(kind, path):
    path.write_bytes(TEXTS[kind].encode(errors="surrogateescape"))
    assert_driver_goes_on(path)
    refused(path, r"lease\.json is damaged: delete it if no other process is training this run")


def test_a_file_that_is_swapped_after_it_was_checked_is_not_read(path, monkeypatch):
    path.write_text(lease_text(token="the one that was checked"))
    fstat = os.fstat

    def swap(descriptor):
        found = fstat(descriptor)
        path.unlink()
        path.write_text(lease_text(token="another one"))
        return found

    monkeypatch.setattr(os, "fstat", swap)
    assert holder_token(path) == "the one that was checked"


def test_a_lease_that_is_replaced_by_something_else_stops_the_training_but_not_its_renewals(path, monkeypatch, caplog):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    with Lease(path) as held:
        with held._lock:
            path.unlink()
            path.mkdir()
        with pytest.raises(ValueError, match="is not a regular file"):
            held.check()
        while "could not be renewed" not in caplog.text:
            time.sleep(0.005)
        with held._lock:
            path.rmdir()
            held._write()
        beat = held._content["beat"]
        while held._content["beat"] < beat + 2:
            time.sleep(0.005)


@pytest.mark.parametrize("plant", [lambda path: path.write_text("{"), lambda path: (path.unlink(), path.mkdir())])
@pytest.mark.parametrize("error", [None, KeyError])
def test_what_is_planted_during_a_training_does_not_hide_its_error(error, plant, path, caplog):
    with pytest.raises(error) if error else nullcontext(), Lease(path):
        plant(path)
        if error:
            raise error
    assert f"{path} could not be released: {path} is " in caplog.text
    assert path.exists()


def holder(pid, **changes):
    """Return the text of a lease that a process of this machine holds, if it is true."""
    return lease_text(held=True, pid=pid, born=start_time(pid), **changes)


def is_watched(path, message):
    """Assert that a run gets the lease, but only after its holder has been watched."""
    begin = time.monotonic()
    assert granted(path), message
    assert time.monotonic() - begin >= lease.HOLDER_TIMEOUT


def test_process_1_of_this_machine_is_not_taken_for_a_training(path):
    path.write_text(holder(1))
    is_watched(path, "held by process 1")
    path.write_text(lease_text(held=True, pid=1, born="1"))
    assert granted(path)


def test_a_program_that_cannot_be_a_training_is_watched(path):
    with subprocess.Popen(["sleep", "60"]) as other:
        while b"sleep" not in Path(f"/proc/{other.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        path.write_text(holder(other.pid))
        is_watched(path, "held by sleep")
        other.kill()


def test_a_process_that_cannot_be_seen_is_watched(path, monkeypatch):
    def hidden(*_):
        raise PermissionError

    path.write_text(holder(os.getpid()))
    monkeypatch.setattr(processes, "start_time", lambda _: None)  # as if /proc was mounted with hidepid=2
    monkeypatch.setattr(os, "kill", hidden)
    is_watched(path, "held by a hidden process")


def test_a_holder_on_another_machine_that_does_not_renew_is_watched(path):
    path.write_text(holder(os.getpid(), place=["far", "", ""]))
    is_watched(path, "held on another machine")


@ROOT
def test_a_process_of_another_user_than_the_file_is_watched(path):
    path.write_text(holder(os.getpid()))
    refused(path, f"is being trained by process {os.getpid()} ", HeldError)
    os.chown(path, ATTACKER, ATTACKER)
    is_watched(path, "held by a process of root, says another user")


@ROOT
def test_the_training_of_another_member_of_a_group_keeps_its_lease(path):
    with shared_folder(0o2775) as folder:
        path, read, write = folder / "lease.json", *os.pipe()
        ready, tell = os.pipe()

        def train():
            with Lease(path):
                os.write(tell, b"held")
                os.read(read, 1)

        if not (child := os.fork()):
            os._exit(act(MEMBER, train, umask=0o002))
        assert os.read(ready, 4) == b"held"
        for user in (0, ATTACKER):
            assert act(user, lambda: refused(path, "is being trained by process", HeldError)) == 0
        os.write(write, b".")
        assert os.waitpid(child, 0)[1] == 0
        for end in (read, write, ready, tell):
            os.close(end)


@ROOT
def test_the_lease_of_a_dead_training_of_another_member_is_taken_over(path):
    with shared_folder(0o2775) as folder:
        path = folder / "lease.json"
        act(MEMBER, lambda: path.write_text(lease_text(held=True, pid=os.getpid(), born=start_time(os.getpid()))))
        assert act(ATTACKER, lambda: granted(path) or os._exit(1), umask=0o002) == 0
        assert not path.exists()


@ROOT
def test_a_lease_that_another_user_hides_does_not_stop_the_driver_and_is_refused_by_name(path):
    with shared_folder(0o2775) as folder:
        path = folder / "lease.json"
        path.write_text(lease_text())
        path.chmod(0o600)
        assert act(MEMBER, lambda: assert_driver_goes_on(path)) == 0
        assert act(MEMBER, lambda: refused(path, r"lease\.json cannot be read \(Permission denied\)", OSError)) == 0

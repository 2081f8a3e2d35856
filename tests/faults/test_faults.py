"""Deliberate faults: after each, the next start gives the results of an undisturbed training, or names the fix.

No finished file is damaged, and no incomplete file has a final name. `make faults` tries many more moments and bytes,
and prints what it tried.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress

import pytest
import torch
from helpers.trainings import CPU, SERVER, assert_same, child, kill_at, make_settings, run

from robreg.data import dataset, preparation
from robreg.measures import margins
from robreg.networks import checkpoint
from robreg.tables import parquet
from robreg.training import loop
from robreg.training.resume import ResumeFile, resume_identity

DONE = ["checkpoint.pt", "history.parquet"]
EVENTS = {"batch": 12, "before write": 5, "inside write": 6, "after write": 6}  # times that each happens in a training
tried: Counter[tuple[str, str]] = Counter()
long = pytest.mark.long


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """Train without faults; return the weights and the history, and the folder of the files."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(make_settings(), prepared, folder), folder


@pytest.fixture(scope="module")
def state(source, tmp_path_factory):
    """Return the bytes of a resume.pt after one finished epoch."""
    folder = tmp_path_factory.mktemp("state")
    assert kill_at("batch", 6, make_settings(), source, folder) == -signal.SIGKILL
    return (folder / "resume.pt").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def summary():
    """Print which faults were tried, and their outcomes."""
    yield
    print("\n\n| fault | outcome | times |\n|---|---|---|")
    for (fault, outcome), times in sorted(tried.items()):
        print(f"| {fault} | {outcome} | {times} |")


def assert_resumes(fault, prepared, folder, whole):
    """Assert that the next start ends as if nothing had happened."""
    assert_same(run(make_settings(), prepared, folder), whole[0])
    assert sorted(path.name for path in folder.iterdir()) == [*DONE, "kept"]
    tried[fault, "bit-identical"] += 1


def final(folder):
    """Return the files with a final name."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def assert_complete(folder):
    """Assert that every file with a final name is complete."""
    for name, read in (("checkpoint.pt", checkpoint.load_network), ("history.parquet", parquet.read)):
        if (folder / name).exists():
            read(folder / name)


# A training is killed.


def kill_after(seconds, source, folder, number):
    """Train in a child process, and send it a signal after some seconds; return its exit code."""
    process = SERVER.Process(target=child, args=("", 0, make_settings(), (source, folder), number))
    process.start()
    time.sleep(seconds)
    with suppress(ProcessLookupError):  # the process has ended
        os.kill(process.pid, number)
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def duration(source, tmp_path_factory):
    """Return how many seconds a training takes in a child process."""
    kill_at("batch", 1, make_settings(), source, tmp_path_factory.mktemp("first"))  # this starts the fork server
    begin = time.monotonic()
    process = SERVER.Process(target=child, args=("", 0, make_settings(), (source, tmp_path_factory.mktemp("t")), 0))
    process.start()
    process.join()
    return time.monotonic() - begin


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=long) for seed in range(4, 40))])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_that_is_stopped_at_any_moment(  # noqa: PLR0917
    number, seed, duration, source, prepared, whole, tmp_path
):
    folder = tmp_path / "run"
    status = kill_after(random.Random(seed).uniform(0, duration), source, folder, number)
    assert status in (0, 7, -number)
    if folder.exists():
        assert_complete(folder)
    assert_resumes(f"{number.name} at a random moment of training", prepared, folder, whole)


@long
@pytest.mark.parametrize(("event", "count"), [(event, n + 1) for event, count in EVENTS.items() for n in range(count)])
def test_a_training_that_is_killed_at_every_event(event, count, source, prepared, whole, tmp_path):
    assert kill_at(event, count, make_settings(), source, tmp_path) == -signal.SIGKILL
    assert_complete(tmp_path)
    assert_resumes(f"SIGKILL {event}" if "write" in event else "SIGKILL in a batch", prepared, tmp_path, whole)


# Bytes of a file change.


def restored(path, content, prepared):
    """Load a state; return the error message, or "" if there was none."""
    path.write_bytes(content)
    fresh = loop._initial_state(make_settings(), prepared, CPU)
    try:
        ResumeFile(path, resume_identity(make_settings(), prepared.sha256), lease=None).restore(fresh, CPU)
    except ValueError as error:
        return str(error)
    return ""


def was_refused(fault, message, path):
    """Check an error message and count the outcome; return whether the file was refused."""
    if message:
        assert message.startswith(f"{path} is damaged")
        assert "delete it" in message
    tried[fault, f"refused: {path.name} is damaged" if message else "harmless"] += 1
    return bool(message)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=long)])
def test_flipped_bits_of_a_state(count, state, prepared, tmp_path):
    rng, path, seen = random.Random(count), tmp_path / "resume.pt", 0
    assert restored(path, state, prepared) == ""
    for _ in range(count):
        place, changed = rng.randrange(len(state)), bytearray(state)
        changed[place] ^= 1 << rng.randrange(8)
        seen += was_refused("a bit of resume.pt flipped", restored(path, bytes(changed), prepared), path)
    assert seen > 0.9 * count  # other bits are in bytes of the container that have no meaning


@pytest.mark.parametrize("kilobytes", [16, pytest.param(1, marks=long)])
def test_a_truncated_state(kilobytes, state, prepared, tmp_path):
    path = tmp_path / "resume.pt"
    for keep in range(0, len(state), 1024 * kilobytes):
        assert was_refused("resume.pt cut at a kilobyte", restored(path, state[:keep], prepared), path)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=long)])
def test_flipped_bits_of_a_checkpoint(count, whole, tmp_path):
    rng, path, seen = random.Random(count), tmp_path / "checkpoint.pt", 0
    content = (whole[1] / "checkpoint.pt").read_bytes()
    for _ in range(count):
        place, changed, message = rng.randrange(len(content)), bytearray(content), ""
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            model, _ = checkpoint.load_network(path)
        except ValueError as error:
            message = str(error)
        else:
            assert all(torch.equal(value, whole[0][0][key]) for key, value in model.state_dict().items())
        seen += was_refused("a bit of checkpoint.pt flipped", message, path)
    assert seen > 0.9 * count


def test_a_state_of_another_version(state, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("robreg.training.resume.FORMAT", 99)
    message = restored(tmp_path / "resume.pt", state, prepared)
    assert message.startswith(f"{tmp_path / 'resume.pt'} belongs to other settings (format was 2, is 99)")
    tried["resume.pt of another version", "refused: names what differs"] += 1


# The disk is full or read-only.


def mounted(folder, size):
    """Mount a small file system in memory; skip the test if that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    return folder


@pytest.fixture
def small(tmp_path):
    """Mount a file system of 4 MB for a test."""
    yield mounted(tmp_path / "small", "4m")
    subprocess.run(["umount", "-l", tmp_path / "small"], check=True)


def fill(folder, left):
    """Fill the disk except for `left` bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(max(0, free - left)))


def full(source, folder):
    """Train on a full disk, and write the error message to a file outside of it."""
    torch.set_num_threads(1)
    try:
        run(make_settings(), dataset.load_dataset(source), folder)
    except OSError as error:
        (folder.parents[1] / "message").write_text(str(error))
        os._exit(1)


# Free bytes. A state has about 600,000, and is written to a second file before it replaces the last one.
LEFT = [0, 4096, 300_000, 650_000, 1_100_000, *(pytest.param(50_000 * place + 99, marks=long) for place in range(30))]


@pytest.mark.parametrize("left", LEFT)
def test_a_disk_that_is_full_when_a_training_writes(left, small, source, prepared, whole):
    folder = small / "run"
    folder.mkdir()
    fill(small, left)
    process = SERVER.Process(target=full, args=(source, folder))
    process.start()
    process.join()
    assert process.exitcode in (0, 1)
    assert_complete(folder)
    if process.exitcode:
        message = (small.parent / "message").read_text()
        assert message.startswith(f"[Errno {errno.ENOSPC}] {folder}/")
        assert "cannot be written (" in message
        assert message.endswith(
            "free up disk space or make the path writable, then start again: finished files are kept"
        )
        tried["disk full while a training writes", "stopped: names the file and the fix"] += 1
    (small / "filler").unlink()
    if final(folder) != [*DONE, "kept"]:
        assert_resumes("disk full while a training writes, then not", prepared, folder, whole)


def test_a_disk_that_is_full_when_a_table_or_data_are_written(small, whole, source):
    table_file, out = small / "margins.parquet", small / "prepared"
    files = {"checkpoint": whole[1] / "checkpoint.pt", "data": source / "meta.json", "margins": table_file}
    margins.record(**files, batch=50, device="cpu")
    before = table_file.read_bytes()
    fill(small, 4096)
    with pytest.raises(OSError, match="No space left"):
        margins.record(**files, batch=50, device="cpu")
    spec = {"kind": "digits", "source": None, "max_train": None, "max_test": None, "subset_seed": 0}
    with pytest.raises(OSError, match="No space left"):
        preparation.prepare(spec, data_root=small, out=out)
    assert table_file.read_bytes() == before
    assert final(small) == ["filler", "margins.parquet", "prepared"]
    assert list(out.iterdir()) == []
    tried["disk full while a table or data are written", "stopped, the old file complete, no incomplete file"] += 2


def test_a_folder_that_is_read_only(tmp_path, source, prepared, whole):
    folder = mounted(tmp_path / "small", "4m")
    try:
        for name in DONE:
            shutil.copy(whole[1] / name, folder)
        before = {name: (folder / name).read_bytes() for name in DONE}
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            run(make_settings(), prepared, folder)
        with pytest.raises(OSError, match=r"margins\.parquet cannot be written \(Read-only file system\); free up"):
            margins.record(
                checkpoint=folder / "checkpoint.pt",
                data=source / "meta.json",
                margins=folder / "margins.parquet",
                batch=50,
                device="cpu",
            )
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        tried["a read-only folder", "stopped, all files unchanged"] += 2
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# The clock jumps back.


def test_a_clock_that_jumps_back_in_training(prepared, whole, tmp_path, monkeypatch):
    now = time.time
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now() - 3600.0 * next(jumps))
    assert_resumes("a clock that jumps back in training", prepared, tmp_path, whole)

"""Small training runs that tests start, stop and compare."""

import multiprocessing
import os
import signal
from pathlib import Path

import torch
import yaml

from robreg.data import dataset
from robreg.runs.settings import run_settings, training_settings
from robreg.tables import parquet
from robreg.training import epoch, loop
from robreg.training.step import TrainingStep

ROOT = Path(__file__).parents[2]


CPU = torch.device("cpu")


TIMES = ("seconds", "examples_per_s")


def make_settings(variant="ar8", **training):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["runs"] = {f"digits/{variant}": {"training": {"epochs": 3, "lr_drops": [2], **training}}}
    return training_settings(run_settings(config, "digits", variant))


def run(settings, prepared, folder, device=CPU):
    folder.mkdir(parents=True, exist_ok=True)
    files = {"checkpoint": folder / "checkpoint.pt", "history": folder / "history.parquet"}
    loop.train(settings, prepared, **files, device=device)
    return result(folder)


def result(folder):
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return weights, parquet.read(folder / "history.parquet").drop_columns(list(TIMES)).to_pylist()


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    assert one[1] == other[1]


def child(event, count, settings, folders, number, device=CPU):
    """Train in this process, which sends itself the signal `number` at the count-th event."""
    torch.set_num_threads(1)
    left = [count]

    def counted(function, *, after=False):
        def wrapper(*args, **kwargs):
            left[0] -= 1
            value = function(*args, **kwargs) if after else None
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return value if after else function(*args, **kwargs)

        return wrapper

    if event == "batch":
        TrainingStep.__call__ = counted(TrainingStep.__call__)
    elif event == "before write":
        torch.save = counted(torch.save)
    elif event == "inside write":  # the temporary file is complete but not yet renamed
        os.fsync = counted(os.fsync)
    elif event == "after write":
        Path.replace = counted(Path.replace, after=True)
    try:
        run(settings, dataset.load_dataset(folders[0]), folders[1], device)
    except epoch.StoppedError:
        os._exit(7)


# Children are forked from a process that has imported torch but computed nothing: threads do not survive a fork.
SERVER = multiprocessing.get_context("forkserver")


def kill_at(event, count, settings, source, folder, number=signal.SIGKILL, *, device=CPU):
    """Train in a child process that sends itself a signal at the count-th event; return its exit code."""
    process = SERVER.Process(target=child, args=(event, count, settings, (source, folder), number, device))
    process.start()
    process.join()
    return process.exitcode

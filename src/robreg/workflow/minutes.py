"""Train as many runs as fit into a number of minutes, one after the other, without Snakemake.

It is for whoever has a GPU for minutes only. It prepares data that are not prepared yet, goes on from resume.pt where a
run has one, and leaves results/ as the workflow does: copied to another machine, with data/prepared, Snakemake goes on
from there. For example, in the folder of the Snakefile:

    python -m robreg.workflow.minutes 15 conventions c10/ar8
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from robreg.data.dataset import Dataset, load_dataset
from robreg.data.errors import printable
from robreg.data.preparation import prepare
from robreg.networks.build import build_initial_network
from robreg.networks.device import choose_device
from robreg.runs import config as study_config
from robreg.runs.settings import ConfigError, data_settings, run_settings, training_settings
from robreg.training.epoch import StoppedError
from robreg.training.kept import is_trained
from robreg.training.loop import train

SCHEMA = Path("workflow/schemas/config.schema.yaml")
_SPARE = 20.0  # seconds before the end at which training stops, to leave time for saving and copying

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is to be trained. work: floating-point operations of one epoch, of which only ratios are used."""

    name: str
    settings: Mapping[str, Any]
    data: Dataset
    work: float

    @property
    def folder(self) -> Path:
        """The folder of its results."""
        return Path("results", *self.name.split("/"))

    @property
    def epochs(self) -> int:
        """The number of epochs that it is trained for."""
        return int(self.settings["training"]["epochs"])


def train_within(config: Mapping[str, Any], names: Sequence[str], *, seconds: float, data_root: Path) -> bool:
    """Train the runs of studies, or single ones such as "c10/ar16", in this order until the time is over.

    config: the validated configuration; seconds: from now on. A run that fails is reported, and the next one begins.
    Returns whether none failed. Raises ConfigError for a name that is neither a study nor a run, and DataError if data
    cannot be prepared.
    """
    end = time.monotonic() + seconds
    runs = [run for run in _runs(config, names, data_root) if _is_missing(run)]
    log.info("to train in %.0f minutes: %s", seconds / 60, ", ".join(run.name for run in runs) or "nothing")
    failed = False
    for number, run in enumerate(runs):
        if time.monotonic() >= end:
            break
        device = choose_device(config["device"], run.settings["threads"])
        files = {"checkpoint": run.folder / "checkpoint.pt", "history": run.folder / "history.parquet"}
        run.folder.mkdir(parents=True, exist_ok=True)
        log.info("%s: %d epochs", run.name, run.epochs)
        try:
            with _stopped_at(end):
                train(run.settings, run.data, **files, device=device, on_epoch=_teller(runs[number:], end))
        except StoppedError as error:
            log.info("%s: the time is over. %s", run.name, error)
            break
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
            log.error("%s: %s", run.name, printable(str(error)))
            failed = True
    return not failed


def _runs(config: Mapping[str, Any], names: Sequence[str], data_root: Path) -> Iterator[Run]:
    """Yield the runs with their data, which are prepared if they are not there."""
    loaded: dict[str, Dataset] = {}
    for dataset, variant in dict.fromkeys(_expand(config, names)):
        settings = training_settings(run_settings(config, dataset, variant))
        folder = Path("data/prepared", dataset)
        if dataset not in loaded:
            if not (folder / "meta.json").exists():
                prepare(data_settings(config, dataset), data_root=data_root, out=folder)
            loaded[dataset] = load_dataset(folder, settings["data"])
        yield Run(f"{dataset}/{variant}", settings, loaded[dataset], _work(settings, loaded[dataset]))


def _expand(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        dataset, slash, variant = name.partition("/")
        if slash:
            yield dataset, variant
        else:
            yield from study_config.run_names(config, name)


def _is_missing(run: Run) -> bool:
    if "pretrained" in run.settings:
        log.info("%s: its weights are given, and Snakemake takes them", run.name)
        return False
    if not is_trained(run.folder, run.settings):
        return True
    log.info("%s: trained already", run.name)
    return False


def _work(settings: Mapping[str, Any], data: Dataset) -> float:
    """Return the floating-point operations of one epoch: forward and backward passes of the attack and of training."""
    chosen = {key: settings[key] for key in ("arch", "seed", "width", "factory")}
    mean, std = list(data.mean), list(data.std)
    model = build_initial_network(**chosen, shape=list(data.shape), classes=data.classes, mean=mean, std=std)
    attack = settings["train_attack"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *data.shape))
    clean = bool(attack and attack.get("clean_share"))  # clean examples are as many as adversarial ones
    passes = 3 * (1 + clean) + 2 * (attack["steps"] if attack else 0)  # the attack needs no gradients of weights
    return float(counter.get_total_flops()) * passes * len(data.train_images)


def _teller(runs: Sequence[Run], end: float) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Return a function for train that logs, once, what is expected of the first run, in training, and of the others.

    An operation is taken to cost what it cost in the epoch before, unless that included the compiler's time.
    """
    told = False

    def tell(history: Sequence[Mapping[str, Any]]) -> None:
        nonlocal told
        with_compiler = runs[0].settings["training"].get("compile") and len(history) == 1
        if not told and not with_compiler:
            told = True
            per_operation = history[-1]["seconds"] / runs[0].work
            for line in expectations(runs, len(history), per_operation, end - time.monotonic()):
                log.info("%s", line)

    return tell


def expectations(runs: Sequence[Run], done: int, per_operation: float, seconds: float) -> Iterator[str]:
    """Say of each run what is expected of it within so many seconds; done: the epochs of the first one so far."""
    left = seconds - _SPARE
    for run in runs:
        each = run.work * per_operation
        wanted = run.epochs - done
        fits = max(0, min(wanted, int(left / each)))
        took = f"{wanted * each / 60:.1f} more minutes"
        if fits == wanted:
            yield f"{run.name}: {took}; it is expected to finish"
        elif fits or done:
            yield f"{run.name}: {took}; {done + fits} of {run.epochs} epochs are expected"
        else:
            yield f"{run.name}: {took}; there is no time for it"
        left, done = left - wanted * each, 0


@contextmanager
def _stopped_at(end: float) -> Iterator[None]:
    """Ask training, in this process, to stop shortly before the end; only between epochs and steps can it do so."""
    over = threading.Event()

    def remind() -> None:
        wait = max(0.0, end - _SPARE - time.monotonic())
        while not over.wait(wait):
            os.kill(os.getpid(), signal.SIGTERM)
            wait = 1.0  # while training builds its network, it does not listen yet

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # train listens for itself; after it, nothing is to stop
    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, help="how long, in all")
    parser.add_argument("names", nargs="+", help="studies of config.yaml, or runs such as c10/ar16")
    parser.add_argument("--data-root", type=Path, help="as the key data_root of config.yaml")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.captureWarnings(capture=True)
    try:
        config = study_config.load(Path("config.yaml"), SCHEMA)
        root = given.data_root or Path(config["data_root"])
        return 0 if train_within(config, given.names, seconds=60 * given.minutes, data_root=root) else 1
    except (ConfigError, OSError, ValueError) as error:
        print(printable(f"Error: {error}"), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(_main())

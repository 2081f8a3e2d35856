"""What each run is doing, as its logs, its lease and its tables say.

Nothing here asks a scheduler, so that it is the same for jobs on this machine and on a cluster. The files may have been
sent by others: of a log only the end is read, and what is shown of it is numbers and printable text of limited length.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robreg.data.errors import printable
from robreg.report.units import format_duration
from robreg.tables.files import open_regular
from robreg.tables.processes import is_running, this_machine
from robreg.training.kept import has_results
from robreg.training.lease import HOLDER_TIMEOUT, read_lease

# In the order in which they are shown: what needs the user comes first, then what is going on.
STATES = ("failed", "stopped", "training", "starting", "measuring", "waiting", "trained", "measured")
_LIMIT = 2**16  # bytes that are read at the end of a log, in which an epoch has a line of about 100
_SHOWN = 160  # characters of an error
_STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
_EPOCH = re.compile(_STAMP + r"INFO epoch (\d{1,7})/(\d{1,7}) lr .{1,100}, (\d{1,9}) s left$", re.MULTILINE)
_ESTIMATE = re.compile(
    _STAMP + r"INFO training takes about (\d{1,6}(?:\.\d)?) (s|min|h|days) on .{0,200}\(epochs left: (\d{1,7})\)$",
    re.MULTILINE,
)
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
_ERROR = re.compile(_STAMP + r"ERROR (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Progress:
    """What a run is doing: its name, one of STATES, and what else there is to say.

    left: the seconds that its training still takes, 0 for a trained network, None if that is not known; each: the
    seconds that an epoch took, None if that is not known.
    """

    name: str
    state: str
    text: str = ""
    left: float | None = None
    each: float | None = None


@dataclass(frozen=True)
class _Log:
    """The end of a log: its text, "" for one that is missing or no file, and the time of its last entry."""

    text: str
    written: float

    def error(self) -> str | None:
        """Return the last error in it, None if there is none."""
        found = _ERROR.findall(self.text)
        return printable(found[-1])[:_SHOWN] if found else None


@dataclass(frozen=True)
class _Epochs:
    """What the log of a training says. done, total: its finished epochs, of how many; None if it does not say."""

    done: int | None = None
    total: int | None = None
    left: float | None = None
    each: float | None = None

    def __str__(self) -> str:
        if self.done is None:
            return "" if self.left is None else f"epoch 1, about {format_duration(self.left)} left by its first steps"
        end = "" if self.left is None else f", {format_duration(self.left)} left"
        return f"epoch {self.done} of {self.total} is finished{end}"


def look(name: str, measures: Sequence[str]) -> Progress:
    """Look at the files of a run, such as "digits/ar8". measures: the rules whose tables are wanted of it."""
    folder, log = Path("results", name), _read_end(Path("logs/train", f"{name}.log"))
    epochs = _read_epochs(log)
    try:
        lease = read_lease(folder / "lease.json")
    except (OSError, ValueError) as error:
        return Progress(name, "failed", printable(str(error))[:_SHOWN])
    if lease is not None and lease["held"]:
        return _look_at_holder(name, lease, epochs)
    if lease is None and has_results(folder):
        return _look_at_measures(name, measures, epochs.each)
    return _look_at_log(name, log, epochs, was_begun=lease is not None)


def _look_at_log(name: str, log: _Log, epochs: _Epochs, *, was_begun: bool) -> Progress:
    """Describe a run that no process trains and that has no network. was_begun: whether an attempt left its lease."""
    if failure := log.error():
        return Progress(name, "failed", failure)
    if time.time() - log.written < HOLDER_TIMEOUT and epochs.done is None:
        return Progress(name, "starting")
    return (
        Progress(name, "stopped", str(_Epochs(epochs.done, epochs.total))) if was_begun else Progress(name, "waiting")
    )


def _look_at_holder(name: str, lease: Mapping[str, Any], epochs: _Epochs) -> Progress:
    """Describe a run whose lease is held, by a process that may have been killed."""
    if lease["place"] == this_machine():
        if lease["born"] is not None and is_running(lease["pid"], lease["born"]) is False:
            return Progress(name, "stopped", str(_Epochs(epochs.done, epochs.total)))
        where = ""
    else:
        where = f"on {lease['place'][0]}"
    where = f"{where}, SLURM job {lease['job']}".removeprefix(", ") if lease["job"] else where
    silent = time.time() - Path("results", name, "lease.json").lstat().st_mtime
    signs = f"no sign of life for {format_duration(silent)}" if silent > HOLDER_TIMEOUT else ""
    text = "; ".join(part for part in (str(epochs), where, signs) if part)
    return Progress(name, "training", text, epochs.left, epochs.each)


def _look_at_measures(name: str, measures: Sequence[str], each: float | None) -> Progress:
    """Describe a run whose network is trained: which measures are made from it, or are being made."""
    since = _modified(Path("results", name, "checkpoint.pt"))
    missing = [rule for rule in measures if _modified(Path("results", name, f"{rule}.parquet")) < max(since, 1)]
    logs = {rule: _read_end(Path("logs", rule, f"{name}.log")) for rule in missing}
    begun = {rule: log for rule, log in logs.items() if log.written >= max(since, 1)}
    for rule, log in begun.items():
        if error := log.error():
            return Progress(name, "failed", f"{rule}: {error}", 0.0, each)
    counted = f"{len(measures) - len(missing)} of {len(measures)} measures" if missing else ""
    if begun:
        return Progress(name, "measuring", f"{', '.join(begun)}; {counted} finished", 0.0, each)
    return Progress(name, "trained" if missing else "measured", counted, 0.0, each)


def _read_epochs(log: _Log) -> _Epochs:
    """Find the last finished epoch and the time that is left; before the first one, the estimate by the first steps.

    Since that line was written, time has passed, but at most that of an epoch: then another line would be there.
    """
    lines = [tuple(map(int, numbers)) for numbers in _EPOCH.findall(log.text)]
    means = [left / (total - done) for done, total, left in lines if done < total]
    each, passed = means[-1] if means else None, max(0.0, time.time() - log.written)
    if lines:
        done, total, left = lines[-1]
        return _Epochs(done, total, max(0.0, left - min(passed, each or 0.0)), each)
    for number, unit, epochs in _ESTIMATE.findall(log.text)[-1:]:
        seconds = float(number) * _SECONDS[unit]
        each = seconds / max(1, int(epochs))
        return _Epochs(left=max(0.0, seconds - min(passed, each)), each=each)
    return _Epochs()


def _read_end(path: Path) -> _Log:
    """Read the end of a log; one that is missing, unreadable or no file counts as empty."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LIMIT))
            return _Log(file.read(_LIMIT).decode(errors="replace"), path.lstat().st_mtime)
    except (OSError, ValueError):
        return _Log("", 0.0)


def _modified(path: Path) -> float:
    """Return when a file was last changed, 0 for one that is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

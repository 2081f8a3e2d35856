"""A lease on a run's folder: only one process trains a run at a time, and attempts without progress are counted."""

import errno
import json
import logging
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from robreg.tables.files import cannot_write, temporary_file
from robreg.tables.processes import is_python_of, is_running, start_time, this_machine

RENEWAL_SECONDS = 20.0  # seconds between two renewals of the file
# Seconds after which a holder on another machine that renews nothing counts as dead; changes may show a minute late.
HOLDER_TIMEOUT = 5 * RENEWAL_SECONDS
# Consecutive attempts without a finished epoch, after which another one is not worth its wait in the queue.
MAX_STALLED_ATTEMPTS = 2

LIMIT = 4096  # bytes of a lease file; ten times what it needs


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 255 and value.isprintable()  # it is printed on the terminal


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


_IS_VALID: dict[str, Callable[[Any], bool]] = {  # keys that every lease file has
    "token": _is_text,
    "held": lambda value: type(value) is bool,
    "job": lambda value: value is None or _is_text(value),
    "pid": lambda value: _is_count(value) and value > 0,
    "beat": _is_count,
    "place": lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_text, value)),
    "born": lambda value: value is None or _is_text(value),
    "stalls": _is_count,
}

_warned: set[Path] = set()  # lease files that this process has called unusable

log = logging.getLogger(__name__)


class HeldError(RuntimeError):
    """Another process holds the lease and is alive."""


class LostError(RuntimeError):
    """Another process took the lease, because this one showed no sign of life."""


class StalledError(RuntimeError):
    """SLURM starts the same job again and again, but no epoch is finished."""


class Lease:
    """The right to train one run: a context manager around a JSON file, which it renews every RENEWAL_SECONDS seconds.

    A holder on this machine is alive if its process is, and dead if it is not. Any other holder is alive if the file
    changes within HOLDER_TIMEOUT: one on another machine, and one whose process cannot be a training of the user whose
    file this is, so that no made-up holder blocks a run for ever. The clocks of two machines are never compared, and no
    file is locked, because not every network file system supports locks. The file is removed if the block succeeds, and
    kept as a record of attempts if it fails.
    Entering the block raises HeldError, StalledError, or ValueError if the file is damaged or not a lease.
    """

    def __init__(self, path: Path) -> None:
        """Set the path of the file; the lease is only taken when the block is entered."""
        self._path = path
        self._token = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._content: dict[str, Any] = {}

    def __enter__(self) -> "Lease":
        """Take the lease, and start a thread that renews it."""
        job = os.environ.get("SLURM_JOB_ID")
        old = read_lease(self._path)
        if old is not None and old["held"]:
            if self._is_alive(old):
                raise HeldError(
                    f"{self._path.parent} is being trained by process {old['pid']} on {old['place'][0]}"
                    + (f", SLURM job {old['job']}" if old["job"] else "")
                    + f" ({self._path}): wait for it, or stop it first"
                )
            old = read_lease(self._path)  # it may have changed while it was watched
        stalls = 0 if old is None else old["stalls"]
        if old is not None and job and old["job"] == job and stalls >= MAX_STALLED_ATTEMPTS:
            raise StalledError(
                f"{self._path.parent}: SLURM started job {job} {stalls + 1} times, and no epoch was finished in the "
                f"last {stalls} attempts: give it more time (runtime), and read the SLURM log"
            )
        self._content = {"token": self._token, "held": True, "job": job, "pid": os.getpid(), "beat": 0}
        self._content |= {"place": this_machine(), "born": start_time(os.getpid()), "stalls": stalls + 1}
        self._write(new=old is None)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lease; if another process has taken it, or put something else there, leave the file as it is."""
        self._released.set()
        with self._lock:
            try:
                if not self._is_mine():
                    return
            except (OSError, ValueError) as failure:  # all files of the run are written, or the block's error matters
                log.warning("%s could not be released: %s", self._path, failure)
                return
            if kind is None:
                self._path.unlink()
                return
            self._content["held"] = False
            try:
                self._write()
            except OSError as failure:  # the block's own error matters more, and a dead process holds no lease anyway
                log.warning("%s could not be released: %s", self._path, failure)

    def check(self) -> None:
        """Raise LostError if this process no longer holds the lease; call it before any file of the run is written."""
        if not self._is_mine():
            raise LostError(f"{self._path} was taken by another process, which trains this run now: this one stops")

    def progress(self) -> None:
        """Check the lease, and record that this attempt finished an epoch."""
        with self._lock:
            self.check()
            self._content["stalls"] = 0
            self._write()

    def _renew(self) -> None:
        """Write the file every RENEWAL_SECONDS seconds until the lease is released or lost."""
        while not self._released.wait(RENEWAL_SECONDS):
            with self._lock:
                try:
                    if self._released.is_set() or not self._is_mine():
                        return
                    self._content["beat"] += 1
                    self._write()
                except (OSError, ValueError) as error:
                    log.warning("%s could not be renewed: %s", self._path, error)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        """Return whether the holder that a lease names is alive; watch the file if its process is no proof of that."""
        if holder["place"] == this_machine() and holder["born"] is not None:
            running = is_running(holder["pid"], holder["born"])
            if running is False:
                return False
            if running and is_python_of(holder["pid"], holder["owner"]):
                return True
        log.info("%s is held by a process on %s: watching it for %g s", self._path, holder["place"][0], HOLDER_TIMEOUT)
        end = time.monotonic() + HOLDER_TIMEOUT
        while time.monotonic() < end:
            time.sleep(min(1.0, HOLDER_TIMEOUT / 10))
            now = read_lease(self._path)
            if now is None or not now["held"]:
                return False
            if (now["token"], now["beat"]) != (holder["token"], holder["beat"]):
                return True
        return False

    def _is_mine(self) -> bool:
        content = read_lease(self._path)
        return content is not None and content["token"] == self._token

    def _write(self, *, new: bool = False) -> None:
        """Replace the file atomically, from a temporary file that no other process uses; new: only if none exists."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_file(self._path) as (temporary, file):
                file.write(json.dumps(self._content).encode())
                file.close()  # so that other machines see the content as soon as the name
                if new:
                    os.link(temporary, self._path)
                else:
                    temporary.replace(self._path)
        except FileExistsError as error:
            raise HeldError(f"{self._path.parent}: another process started training this run just now") from error
        except OSError as error:
            raise cannot_write(self._path, error) from error


def stalled_attempts(path: Path) -> int:
    """Return how many attempts in a row, including the running one, have not finished an epoch (0 without a file)."""
    content = _read_if_valid(path)
    return 0 if content is None else int(content["stalls"])


def made_progress(path: Path) -> bool:
    """Return whether the last attempt that took the lease finished an epoch."""
    return holder_token(path) is not None and stalled_attempts(path) == 0


def holder_token(path: Path) -> str | None:
    """Return the token of the last attempt that took the lease, which no other attempt has (None without a file)."""
    content = _read_if_valid(path)
    return None if content is None else str(content["token"])


def _read_if_valid(path: Path) -> dict[str, Any] | None:
    """Return the content of a lease file, or None if it is missing, or, after one warning, if it is unusable.

    The driver calls this often; the training itself refuses such a file.
    """
    try:
        return read_lease(path)
    except (OSError, ValueError) as error:
        if path not in _warned:
            _warned.add(path)
            log.warning("%s", error)
        return None


def read_lease(path: Path) -> dict[str, Any] | None:
    """Return the content of a lease file and its "owner", a user id; None if the file is missing.

    Raises ValueError if it is damaged, or is not a small file: anybody who shares the folder can put anything there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, or a socket
            raise _refusal(path, "not a regular file") from error
        why = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"{path} cannot be read ({why}); make it readable, or delete it") from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _refusal(path, "not a regular file")
        text = os.read(descriptor, LIMIT + 1)
    finally:
        os.close(descriptor)
    try:
        content = json.loads(text) if len(text) <= LIMIT else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not all(key in content and _IS_VALID[key](content[key]) for key in _IS_VALID):
        raise _refusal(path, "damaged")
    return content | {"owner": info.st_uid}


def _refusal(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is {why}: delete it if no other process is training this run")

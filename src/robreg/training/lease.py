"""A lease on a run's folder: only one process trains a run at a time, and attempts without progress are counted."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from robreg.tables.files import cannot_write

RENEWAL_SECONDS = 20.0  # seconds between two renewals of the file
# Seconds after which a holder on another machine that renews nothing counts as dead; changes may show a minute late.
HOLDER_TIMEOUT = 5 * RENEWAL_SECONDS
# Consecutive attempts without a finished epoch, after which another one is not worth its wait in the queue.
MAX_STALLED_ATTEMPTS = 2

KEYS = {"token", "held", "job", "pid", "beat", "place", "born", "stalls"}  # that every lease file has

log = logging.getLogger(__name__)


class HeldError(RuntimeError):
    """Another process holds the lease and is alive."""


class LostError(RuntimeError):
    """Another process took the lease, because this one showed no sign of life."""


class StalledError(RuntimeError):
    """SLURM starts the same job again and again, but no epoch is finished."""


class Lease:
    """The right to train one run: a context manager around a JSON file, which it renews every RENEWAL_SECONDS seconds.

    A holder on this machine is alive if its process is. A holder on another machine is alive if the file changes within
    HOLDER_TIMEOUT: the clocks of two machines are never compared, and no file is locked, because not every network file
    system supports locks. The file is removed if the block succeeds, and kept as a record of attempts if it fails.
    Entering the block raises HeldError, StalledError, or ValueError if the file is damaged.
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
        old = _read(self._path)
        if old is not None and old["held"]:
            if self._is_alive(old):
                raise HeldError(
                    f"{self._path.parent} is being trained by process {old['pid']} on {old['place'][0]}"
                    + (f", SLURM job {old['job']}" if old["job"] else "")
                    + f" ({self._path}): wait for it, or stop it first"
                )
            old = _read(self._path)  # it may have changed while it was watched
        stalls = 0 if old is None else old["stalls"]
        if old is not None and job and old["job"] == job and stalls >= MAX_STALLED_ATTEMPTS:
            raise StalledError(
                f"{self._path.parent}: SLURM started job {job} {stalls + 1} times, and no epoch was finished in the "
                f"last {stalls} attempts: give it more time (runtime), and read the SLURM log"
            )
        self._content = {"token": self._token, "held": True, "job": job, "pid": os.getpid(), "beat": 0}
        self._content |= {"place": _pid_namespace(), "born": _start_time(os.getpid()), "stalls": stalls + 1}
        self._write(new=old is None)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lease; if another process has taken it, leave the file as it is."""
        self._released.set()
        with self._lock:
            if not self._is_mine():
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
                except OSError as error:
                    log.warning("%s could not be renewed: %s", self._path, error)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        """Return whether the holder that a lease names is alive; watch the file if its process cannot be looked up."""
        if holder["place"] == _pid_namespace() and holder["born"] is not None:
            return bool(_start_time(holder["pid"]) == holder["born"])
        log.info("%s is held by a process on %s: watching it for %g s", self._path, holder["place"][0], HOLDER_TIMEOUT)
        end = time.monotonic() + HOLDER_TIMEOUT
        while time.monotonic() < end:
            time.sleep(min(1.0, HOLDER_TIMEOUT / 10))
            now = _read(self._path)
            if now is None or not now["held"]:
                return False
            if (now["token"], now["beat"]) != (holder["token"], holder["beat"]):
                return True
        return False

    def _is_mine(self) -> bool:
        content = _read(self._path)
        return content is not None and content["token"] == self._token

    def _write(self, *, new: bool = False) -> None:
        """Replace the file atomically, from a temporary file that no other process uses; new: only if none exists."""
        temporary = self._path.with_name(f".{self._path.name}.{self._token}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._content))
            if new:
                os.link(temporary, self._path)
            else:
                temporary.replace(self._path)
        except FileExistsError as error:
            raise HeldError(f"{self._path.parent}: another process started training this run just now") from error
        except OSError as error:
            raise cannot_write(self._path, error) from error
        finally:
            if temporary.exists():
                temporary.unlink()


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
    """Return the content of a lease file, or None if it is missing or damaged."""
    try:
        return _read(path)
    except ValueError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a lease file, or None if it is missing; raise ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not set(content) >= KEYS:
        raise ValueError(f"{path} is damaged: delete it if no other process is training this run")
    return content


def _pid_namespace() -> list[str]:
    """Return the host, its boot and its container, within which a process id names one process at a time."""
    boot, container = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    has_proc = boot.exists()  # without /proc, a holder is watched instead of looked up
    return [
        socket.gethostname(),
        boot.read_text().strip() if has_proc else "",
        os.readlink(container) if has_proc else "",
    ]


def _start_time(pid: int) -> str | None:
    """Return when a process of this machine started, or None if it is dead; a process id may be used again later."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # Z: dead, but its parent has not waited for it
    except (FileNotFoundError, ProcessLookupError):
        return None

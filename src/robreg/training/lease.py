"""A lease on a run's folder: no two processes train one run, wherever they are, and a run that gets nowhere is seen."""

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

BEAT = 20.0  # seconds between two signs of life
SILENCE = 5 * BEAT  # after which a holder elsewhere is taken for dead; file systems may show a change a minute late
STALLED = 2  # attempts in a row without a finished epoch, after which another is not worth its queueing

KEYS = {"token", "held", "job", "pid", "beat", "place", "born", "stalls"}  # of the file

log = logging.getLogger(__name__)


class HeldError(RuntimeError):
    """Another process holds the lease, and lives."""


class LostError(RuntimeError):
    """Another process took the lease, because this one gave no sign of life."""


class StalledError(RuntimeError):
    """SLURM starts one job again and again, and no epoch gets finished."""


class Lease:
    """The right to train one run, a JSON file renewed every BEAT seconds; a context manager takes and releases it.

    A holder on this machine lives if its process does. One elsewhere lives if the file changes within SILENCE: no
    clocks of two machines are compared, and no file is locked, which not every network file system does. The file stays
    when the block fails, as a record of attempts, and is removed when it succeeds.
    Raises HeldError, StalledError, or ValueError if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is taken yet."""
        self._path = path
        self._token = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._content: dict[str, Any] = {}

    def __enter__(self) -> "Lease":
        """Take the lease, and keep it alive from a thread."""
        job = os.environ.get("SLURM_JOB_ID")
        old = _read(self._path)
        if old is not None and old["held"]:
            if self._lives(old):
                raise HeldError(
                    f"{self._path.parent} is being trained by process {old['pid']} on {old['place'][0]}"
                    + (f", SLURM job {old['job']}" if old["job"] else "")
                    + f" ({self._path}): wait for it, or stop it first"
                )
            old = _read(self._path)  # it was watched for a while
        stalls = 0 if old is None else old["stalls"]
        if old is not None and job and old["job"] == job and stalls >= STALLED:
            raise StalledError(
                f"{self._path.parent}: SLURM started job {job} {stalls + 1} times and no epoch was finished in the "
                f"last {stalls}: give it more time (runtime), and look at the SLURM log"
            )
        self._content = {"token": self._token, "held": True, "job": job, "pid": os.getpid(), "beat": 0}
        self._content |= {"place": _place(), "born": _born(os.getpid()), "stalls": stalls + 1}
        self._write(new=old is None)
        threading.Thread(target=self._beat, name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lease; a lease that was lost is the taker's, and stays as it is."""
        self._released.set()
        with self._lock:
            if not self._mine():
                return
            if kind is None:
                self._path.unlink()
                return
            self._content["held"] = False
            try:
                self._write()
            except OSError as why:  # the first error is the one to hear of; this process's end frees the lease too
                log.warning("%s could not be released: %s", self._path, why)

    def check(self) -> None:
        """Raise LostError unless the lease is still this process's; called before anything of the run is written."""
        if not self._mine():
            raise LostError(f"{self._path} was taken by another process, which trains this run now: this one stops")

    def progress(self) -> None:
        """Check, and note that an epoch was finished in this attempt."""
        with self._lock:
            self.check()
            self._content["stalls"] = 0
            self._write()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with self._lock:
                try:
                    if self._released.is_set() or not self._mine():
                        return
                    self._content["beat"] += 1
                    self._write()
                except OSError as error:
                    log.warning("%s could not be renewed: %s", self._path, error)

    def _lives(self, old: dict[str, Any]) -> bool:
        if old["place"] == _place() and old["born"] is not None:
            return bool(_born(old["pid"]) == old["born"])
        log.info("%s is held by a process on %s: watching it for %g s", self._path, old["place"][0], SILENCE)
        end = time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENCE / 10))
            now = _read(self._path)
            if now is None or not now["held"]:
                return False
            if (now["token"], now["beat"]) != (old["token"], old["beat"]):
                return True
        return False

    def _mine(self) -> bool:
        found = _read(self._path)
        return found is not None and found["token"] == self._token

    def _write(self, *, new: bool = False) -> None:
        """Replace the file at once, under a name that no other process uses; new: only if there is none."""
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
    """Return how many attempts in a row, the running one included, have not finished an epoch (0 without a file)."""
    found = _known(path)
    return 0 if found is None else int(found["stalls"])


def made_progress(path: Path) -> bool:
    """Say whether the last attempt that took the lease finished an epoch."""
    return holder_token(path) is not None and stalled_attempts(path) == 0


def holder_token(path: Path) -> str | None:
    """Return what tells the last attempt that took the lease from all others."""
    found = _known(path)
    return None if found is None else str(found["token"])


def _known(path: Path) -> dict[str, Any] | None:
    """Return what a lease says, for those who only look: a damaged one says nothing."""
    try:
        return _read(path)
    except ValueError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not set(found) >= KEYS:
        raise ValueError(f"{path} is damaged: delete it if no other process trains this run")
    return found


def _place() -> list[str]:
    """Say where process ids mean the same: host, its start, and the container if there is one."""
    boot, container = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = boot.exists()  # not everywhere: then a holder is watched
    return [socket.gethostname(), boot.read_text().strip() if known else "", os.readlink(container) if known else ""]


def _born(pid: int) -> str | None:
    """Return when a process of this machine started, which tells it from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # dead, if nobody has asked for its end
    except (FileNotFoundError, ProcessLookupError):
        return None

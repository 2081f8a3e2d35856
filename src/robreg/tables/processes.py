"""Look up processes by what stays true after they end: their machine, their id, and when they started."""

import os
import re
import socket
from pathlib import Path


def this_machine() -> list[str]:
    """Return the host, its boot and its container, within which a process id names one process at a time."""
    boot, container = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    has_proc = boot.exists()  # without /proc, no process can be looked up
    return [
        socket.gethostname(),
        boot.read_text().strip() if has_proc else "",
        os.readlink(container) if has_proc else "",
    ]


def start_time(pid: int) -> str | None:
    """Return when a process of this machine started, or None if it is dead or hidden; ids are used again later."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # Z: dead, but its parent has not waited for it
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_running(pid: int, born: str) -> bool | None:
    """Return whether the process of this machine that started at born is alive, or None if that cannot be seen."""
    if (found := start_time(pid)) is not None:
        return found == born
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return None  # /proc may be mounted so that it hides other users' processes
    except ProcessLookupError:
        return False
    return False  # dead, but its parent has not waited for it


def is_python_of(pid: int, uid: int) -> bool:
    """Return whether a process of this machine is seen to run Python as a user; a training is such a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return re.search(rf"^Uid:\t\d+\t{uid}\t", status, re.MULTILINE) is not None and b"python" in command

"""Open files that others may have put there, and write files atomically: either the whole file appears, or nothing.

No link that stands in place of a file is followed.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from robreg.tables.processes import is_running, start_time, this_machine

# Seconds after which a temporary file counts as left behind if its process cannot be looked up from this machine.
ABANDONED = 3600.0

log = logging.getLogger(__name__)


def cannot_write(path: Path, error: OSError) -> OSError:
    """Return an OSError that names the file that could not be written, the reason from error, and the fix."""
    why = os.strerror(error.errno) if error.errno else error
    fix = "free up disk space or make the path writable, then start again: finished files are kept"
    return OSError(error.errno, f"{path} cannot be written ({why}); {fix}")


def open_regular(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a file of a received folder for reading, if it is a regular file; folders above it may be links.

    A link is refused, because it may name any file of the reader, whose content would then be passed on in a report.
    follow: whether the file may be a link all the same, because its content is not passed on.
    Raises ValueError, naming the file, for a link, pipe, socket, device or folder, and OSError if it cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, or a socket
            raise _not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def _not_regular(path: Path) -> ValueError:
    return ValueError(f"{path} is a link, or no file: put a copy of the file itself in its place, or delete it")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file in the same folder; it replaces path if the block succeeds, and is removed otherwise.

    Raises an OSError that names path if it cannot be written, or if the block writes nothing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path) as (temporary, file):
            yield file
            file.flush()
            if not os.fstat(file.fileno()).st_size:
                raise OSError("nothing was written to it")
            os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file in the folder of path, and its path, which is removed after the block if it still exists.

    It has the permissions that the umask gives, so that a group can read what it shares.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("x+b") as file:  # x: fails if anything stands there, even a link
            remove_leftovers(path, temporary)
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a path in the folder of path that nobody can foresee, and that tells which process uses it."""
    born = start_time(os.getpid()) or "0"
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{born}-{secrets.token_hex(8)}.tmp")


def remove_leftovers(path: Path, temporary: Path) -> None:
    """Remove what processes that were killed left in place of path; temporary: what this process just made for path.

    What a process of this machine uses stays as long as the process lives; what cannot be looked up is removed if it is
    ABANDONED seconds older than temporary, by the clock of the file server.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})-(\d{{1,9}})-(\d{{1,20}})-[0-9a-f]{{16}}\.tmp")
    machine = _machine()
    for entry in list(os.scandir(path.parent)):
        if not (found := pattern.fullmatch(entry.name)) or entry.name == temporary.name:
            continue
        here = found[1] == machine and found[3] != "0"
        alive = is_running(int(found[2]), found[3]) if here else None
        try:
            if alive is None:
                alive = temporary.lstat().st_ctime - entry.stat(follow_symlinks=False).st_ctime < ABANDONED
            if not alive:
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
        except FileNotFoundError:  # another process removed it
            continue
        except OSError as error:
            log.info("%s was left by a process that was killed, and cannot be removed: %s", entry.path, error)


def _machine() -> str:
    return hashlib.sha256("\0".join(this_machine()).encode()).hexdigest()[:8]

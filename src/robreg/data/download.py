"""Download official archives once; a file gets its final name only after its checksum is verified."""

import errno
import fcntl
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from robreg.data.errors import DataError

DOWNLOAD_AGAIN = "delete it and download it again"
ATTEMPTS = 5  # connections for a file; each goes on where the last one ended, if the server can do so
STALLED = 60.0  # seconds, in which at least SLOWEST bytes must come
SLOWEST = 2**16
_CHUNK = 2**20  # bytes that are read at a time

log = logging.getLogger(__name__)


class RemoteFile(NamedTuple):
    """A published file: its address, its name, its MD5 in hexadecimal, and its size in bytes."""

    url: str
    filename: str
    md5: str
    size: int


def fetch(remote: RemoteFile, folder: Path, where: str) -> Path:
    """Download a file into `folder` unless it is already there, and return its path.

    What a download that failed or was killed has received stays in a hidden file beside it, with which the next one
    goes on. Raises DataError, whose message begins with `where`, if the download fails, stalls, or is too long, or if
    the file has another MD5.
    """
    path = folder / remote.filename
    if path.is_file():
        return path
    if path.exists():
        raise DataError(f"{where}: {path} is not a regular file; delete it, or put the archive there yourself")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{remote.filename}.{os.geteuid()}.partial"
    try:
        with _own_file(partial, where) as file:
            if path.is_file():  # another process has just finished it
                return path
            log.info("downloading %s to %s", remote.url, path)
            _download(remote, file, where)
            file.flush()
            check_md5(partial, remote.md5, name=f"{where}: the file from {remote.url}")
            os.umask(mask := os.umask(0o077))  # there is no other way to look at it
            os.fchmod(file.fileno(), 0o666 & ~mask)
            os.replace(partial, path)
    except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
        fix = f"try again, or put the archive at {path} yourself"
        raise DataError(f"{where}: cannot download {remote.url} ({error}); {fix}") from error
    return path


@contextmanager
def _own_file(path: Path, where: str) -> Iterator[BinaryIO]:
    """Open a file of this user for writing, or make it, and lock it, so that one process at a time writes to it.

    The file is removed if it is empty or of no use in the end. Raises DataError if something else is in its place.
    """
    file = _locked(path, where)
    while not _is_at(path, file):
        file.close()  # another process renamed or removed it meanwhile
        file = _locked(path, where)
    with file:
        try:
            yield file
        except DataError:
            file.truncate(0)
            raise
        finally:
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _locked(path: Path, where: str) -> BinaryIO:
    """Open a file of this user, or make it, and wait until no other process has its lock. Raises as _own_file does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EACCES} and os.path.lexists(path):
            raise _not_own(path, where) from error
        raise
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink > 1:
        os.close(descriptor)
        raise _not_own(path, where)
    file = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that downloads %s", path)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # the checksum notices if two processes write to it
        log.warning("%s cannot be locked (%s): let only one process download it at a time", path, error)
    return file


def _not_own(path: Path, where: str) -> DataError:
    return DataError(f"{where}: {path} is not a file of your own, to which a download could go; delete it")


def _download(remote: RemoteFile, file: BinaryIO, where: str) -> None:
    """Download to a file what it does not have yet, over several connections if one breaks off or stalls.

    Raises OSError or HTTPException if the last one fails too, or if the server refuses one, and DataError if more
    arrives than the file has.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            _continue_download(remote, file, where)
        except (OSError, HTTPException) as error:
            unknown_part = isinstance(error, HTTPError) and error.code == 416
            if not left or (isinstance(error, HTTPError) and not unknown_part):
                raise
            if unknown_part:
                file.truncate(0)
            size = file.seek(0, os.SEEK_END)
            log.warning("%s: the download broke off after %d bytes (%s); going on", where, size, error)
        else:
            return


def _continue_download(remote: RemoteFile, file: BinaryIO, where: str) -> None:
    """Download what a file does not have yet, or everything if the server cannot send a part of a file."""
    begun = file.seek(0, os.SEEK_END)
    if begun == remote.size:
        return
    begun = begun if begun < remote.size else 0
    part = {"Range": f"bytes={begun}-"} if begun else {}
    with _answer(Request(remote.url, headers={"User-Agent": "robreg", **part})) as response:
        if response.status != 206:
            begun = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            raise OSError("the server sent another part than it was asked for")
        file.seek(begun)
        file.truncate()
        _receive(response, file, begun, remote=remote, where=where)


def _answer(request: Request) -> HTTPResponse:
    """Send a request, and return the answer when its headers are complete.

    Raises TimeoutError if they are not after STALLED seconds: a server may send them a byte at a time.
    """
    found: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def connect() -> None:
        try:
            found.put(urlopen(request, timeout=STALLED))
        except Exception as error:
            found.put(error)

    threading.Thread(target=connect, name="connect", daemon=True).start()
    try:
        answer = found.get(block=True, timeout=1.5 * STALLED)
    except Empty:
        raise TimeoutError(f"the server did not answer completely in {1.5 * STALLED:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _receive(response: HTTPResponse, file: BinaryIO, begun: int, *, remote: RemoteFile, where: str) -> None:
    """Write a response to a file that has `begun` bytes. Raises DataError as soon as it becomes too long."""
    received, mark, due = begun, begun, time.monotonic() + STALLED
    announced = response.length  # None if the end of the connection is to be that of the file
    while True:
        if received + (response.length or 0) > remote.size:
            fix = "the server sends something else; try again later, or download the archive yourself"
            raise DataError(f"{where}: {remote.url} has more than the {remote.size} bytes of the archive; {fix}")
        chunk = response.read1(_CHUNK)
        if not chunk:
            break
        file.write(chunk)
        received += len(chunk)
        if received - mark >= SLOWEST:
            _log_progress(mark, received, remote)
            mark, due = received, time.monotonic() + STALLED
        elif time.monotonic() > due:
            raise TimeoutError(f"fewer than {SLOWEST} bytes came in {STALLED:g} seconds")
    if missing := remote.size - received if announced is None else response.length:
        raise ConnectionError(f"the connection ended {missing} bytes too early")


def _log_progress(before: int, received: int, remote: RemoteFile) -> None:
    """Log each further tenth of a file."""
    if 10 * before // remote.size < (tenths := 10 * received // remote.size):
        log.info("downloaded %d %% of %s", 10 * tenths, remote.filename)


def check_md5(path: Path, expected: str, *, name: str, fix: str = DOWNLOAD_AGAIN) -> None:
    """Check the MD5 of a file. Raises DataError, which calls the file `name` and ends with `fix`, if it differs."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise DataError(f"{name} has MD5 {actual}, not {expected}; {fix}")

"""Download official archives once; a file gets its final name only after its checksum is verified."""

import hashlib
import logging
import os
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
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

    Raises DataError, whose message begins with `where`, if the download fails, stalls, or is too long, or if the file
    has another MD5.
    """
    path = folder / remote.filename
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s to %s", remote.url, path)
    with TemporaryDirectory(dir=folder, prefix=".partial-") as unfinished:
        try:
            _download(remote, Path(unfinished, remote.filename), where)
        except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
            fix = f"try again, or put the archive at {path} yourself"
            raise DataError(f"{where}: cannot download {remote.url} ({error}); {fix}") from error
        check_md5(Path(unfinished, remote.filename), remote.md5, name=f"{where}: the file from {remote.url}")
        os.replace(Path(unfinished, remote.filename), path)
    return path


def _download(remote: RemoteFile, path: Path, where: str) -> None:
    """Download a file to `path`, over several connections if one breaks off or stalls.

    Raises OSError or HTTPException if the last one fails too, or if the server refuses one, and DataError if more
    arrives than the file has.
    """
    path.touch()
    for left in reversed(range(ATTEMPTS)):
        try:
            _continue_download(remote, path, where)
        except HTTPError:
            raise
        except (OSError, HTTPException) as error:
            if not left:
                raise
            log.warning("%s: the download broke off after %d bytes (%s); going on", where, path.stat().st_size, error)
        else:
            return


def _continue_download(remote: RemoteFile, path: Path, where: str) -> None:
    """Download what `path` does not have yet, or everything if the server cannot send a part of a file."""
    begun = path.stat().st_size
    part = {"Range": f"bytes={begun}-"} if begun else {}
    with urlopen(Request(remote.url, headers={"User-Agent": "robreg", **part}), timeout=STALLED) as response:
        if response.status != 206:
            begun = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            raise OSError("the server sent another part than it was asked for")
        with path.open("ab" if begun else "wb") as file:
            _receive(response, file, begun, remote=remote, where=where)


def _receive(response: HTTPResponse, file: BinaryIO, begun: int, *, remote: RemoteFile, where: str) -> None:
    """Write a response to a file that has `begun` bytes. Raises DataError as soon as it becomes too long."""
    received, mark, due = begun, begun, time.monotonic() + STALLED
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
    if response.length:  # bytes that were announced
        raise ConnectionError(f"the connection ended {response.length} bytes too early")


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

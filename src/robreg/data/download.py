"""Download official archives once; a file gets its final name only after its checksum is verified."""

import hashlib
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from robreg.data.errors import DataError

DOWNLOAD_AGAIN = "delete it and download it again"

log = logging.getLogger(__name__)


class RemoteFile(NamedTuple):
    """A published file: its address, its name, and its MD5 in hexadecimal."""

    url: str
    filename: str
    md5: str


def fetch(remote: RemoteFile, folder: Path, where: str) -> Path:
    """Download a file into `folder` unless it is already there, and return its path.

    Raises DataError, whose message begins with `where`, if the download fails or has another MD5.
    """
    path = folder / remote.filename
    if path.exists():
        return path
    from torchvision.datasets.utils import download_url  # noqa: PLC0415  takes three seconds, which only a download needs

    folder.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s to %s", remote.url, path)
    with TemporaryDirectory(dir=folder, prefix=".partial-") as unfinished:
        try:
            download_url(remote.url, unfinished, remote.filename)
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            fix = f"try again, or put the archive at {path} yourself"
            raise DataError(f"{where}: cannot download {remote.url} ({error}); {fix}") from error
        check_md5(Path(unfinished, remote.filename), remote.md5, name=f"{where}: the file from {remote.url}")
        os.replace(Path(unfinished, remote.filename), path)
    return path


def check_md5(path: Path, expected: str, *, name: str, fix: str = DOWNLOAD_AGAIN) -> None:
    """Check the MD5 of a file. Raises DataError, which calls the file `name` and ends with `fix`, if it differs."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise DataError(f"{name} has MD5 {actual}, not {expected}; {fix}")

"""Downloads that break off, stall, or do not end."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.data_sources import RNG
from helpers.http_server import Server, serving
from helpers.other_user import ATTACKER, ROOT, act, shared_folder

from robreg.data import cifar, download, tiny_imagenet
from robreg.data.errors import DataError

CONTENT = RNG.bytes(300_000)
PARTIAL = f".file.{os.geteuid()}.partial"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "served") as http:
        (tmp_path / "served/file").write_bytes(CONTENT)
        yield http


def fetch(server: Server, tmp_path: Path, size: int = len(CONTENT)) -> Path:
    """Download the file into tmp_path/data."""
    remote = download.RemoteFile(server.url("file"), "file", hashlib.md5(CONTENT).hexdigest(), size)
    return download.fetch(remote, tmp_path / "data", "datasets.d.source")


def refusal_message(server: Server, tmp_path: Path, size: int = len(CONTENT)) -> str:
    """Return the message of a download that fails, and check that only what it received is left of it."""
    with pytest.raises(DataError) as caught:
        fetch(server, tmp_path, size)
    assert os.listdir(tmp_path / "data") in ([], [PARTIAL])
    return str(caught.value)


def test_sizes_of_the_official_archives() -> None:
    assert cifar.remote_archive("cifar10").size == 170_498_071
    assert cifar.remote_archive("cifar100").size == 169_001_437
    assert tiny_imagenet.ARCHIVE.size == 248_100_043


@pytest.mark.parametrize("fault", ["cut", "short", "stall"])
def test_a_download_that_breaks_off_goes_on_where_it_ended(
    fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(download, "STALLED", 0.3)
    server.faults = [fault, fault]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == [0, 100_000, 200_000]
    assert "datasets.d.source: the download broke off after 100000 bytes" in caplog.text


def test_a_download_begins_again_if_the_server_cannot_send_a_part(server: Server, tmp_path: Path) -> None:
    server.sends_parts = False
    server.faults = ["cut"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == [0, 0]


def test_the_next_start_goes_on_where_a_download_ended(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.faults = ["cut"] * 2
    for received in (100_000, 200_000):
        assert "100000 bytes too early" in refusal_message(server, tmp_path) or received == 100_000
        partial = tmp_path / "data" / PARTIAL
        assert (partial.stat().st_size, partial.stat().st_mode & 0o777) == (received, 0o600)
    path = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.sent == [0, 100_000, 200_000]
    assert os.listdir(tmp_path / "data") == ["file"]
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"?", b"?" * len(CONTENT)])
def test_whatever_is_left_of_a_download_its_checksum_decides(left: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / PARTIAL).write_bytes(left)
    if left[:1] == b"?":
        assert "has MD5" in refusal_message(server, tmp_path)
        assert os.listdir(tmp_path / "data") == []
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == (left != CONTENT)


def test_a_part_that_the_server_does_not_have_begins_the_download_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / PARTIAL).write_bytes(bytes(350_000))
    assert fetch(server, tmp_path, size=400_000).read_bytes() == CONTENT
    assert server.sent == [350_000]
    assert server.requests == 2


def test_slow_headers_end_with_a_sentence(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALLED", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.faults = ["slow headers"] * 2
    assert "the server did not answer completely in 0.3 seconds" in refusal_message(server, tmp_path)
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_in_place_of_an_archive_is_refused(
    make: Callable[[Path], object], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data/file")
    with pytest.raises(DataError, match=r"data/file is not a regular file; delete it, or put the archive there"):
        fetch(server, tmp_path)


PLANTED: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to(path.parents[1] / "victim"),
    "hard link": lambda path: path.hardlink_to(path.parents[1] / "victim"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_download_goes_to_a_file_of_its_own(kind: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "data").mkdir()
    PLANTED[kind](tmp_path / "data" / PARTIAL)
    with pytest.raises(DataError, match=rf"{PARTIAL} is not a file of your own, to which a download could go; delete"):
        fetch(server, tmp_path)
    assert (tmp_path / "victim").read_text() == "precious"


@ROOT
def test_a_file_of_another_user_is_not_written_to(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / PARTIAL).write_bytes(CONTENT[:1000])
    os.chown(tmp_path / "data" / PARTIAL, ATTACKER, ATTACKER)
    with pytest.raises(DataError, match="is not a file of your own"):
        fetch(server, tmp_path)


@ROOT
def test_a_folder_that_cannot_be_written_to_is_named(server: Server) -> None:
    def refused() -> None:
        with pytest.raises(DataError, match=r"cannot download .*Permission denied: .*data/\.file\.\d+\.partial"):
            fetch(server, folder)

    with shared_folder(0o755) as folder:
        (folder / "data").mkdir()
        assert act(ATTACKER, refused) == 0


def test_two_downloads_at_once_wait_for_each_other(server: Server, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    server.faults = ["pause"]
    with ThreadPoolExecutor() as pool:
        paths = {one.result() for one in [pool.submit(fetch, server, tmp_path) for _ in range(3)]}
    assert paths == {tmp_path / "data/file"}
    assert "waiting for another process that downloads" in caplog.text
    assert server.requests == 1
    assert (tmp_path / "data/file").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "data") == ["file"]


def test_a_file_that_another_process_removes_between_two_looks_is_opened_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, lstat = [], Path.lstat

    def removed(path: Path) -> os.stat_result:
        if path.name.endswith(".partial"):
            looks.append(path)
            if len(looks) == 1:
                path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", removed)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(looks) == 2


def test_another_part_than_the_one_asked_for_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", *["wrong part"] * 4]
    assert "the server sent another part than it was asked for" in refusal_message(server, tmp_path)
    assert server.requests == download.ATTEMPTS


@pytest.mark.parametrize("fault", ["stall", "trickle"])
def test_a_server_that_sends_next_to_nothing_ends_with_a_sentence(
    fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALLED", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.faults = [fault] * 2
    message = refusal_message(server, tmp_path)
    assert message.startswith(f"datasets.d.source: cannot download {server.url('file')} (")
    assert ("timed out" if fault == "stall" else "fewer than 65536 bytes came in 0.2 seconds") in message
    assert f"try again, or put the archive at {tmp_path / 'data/file'} yourself" in message


def test_a_download_without_end_is_stopped_at_its_size(server: Server, tmp_path: Path) -> None:
    server.faults = ["endless"]
    message = refusal_message(server, tmp_path, size=400_000)
    assert message.startswith(f"datasets.d.source: {server.url('file')} has more than the 400000 bytes of the archive")
    assert server.requests == 1


def test_an_announced_size_that_is_too_large_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    assert "has more than the 299999 bytes of the archive" in refusal_message(server, tmp_path, size=299_999)
    assert server.requests == 1


def test_a_resumed_download_is_judged_by_its_checksum(server: Server, tmp_path: Path) -> None:
    def change(_: logging.LogRecord) -> bool:
        (tmp_path / "served/file").write_bytes(CONTENT[::-1])
        return True

    server.faults = ["cut"]
    download.log.addFilter(change)  # changes the file where the download breaks off
    try:
        assert "has MD5" in refusal_message(server, tmp_path)
    finally:
        download.log.removeFilter(change)


def test_a_refused_request_is_not_repeated(server: Server, tmp_path: Path) -> None:
    (tmp_path / "served/file").unlink()
    assert "HTTP Error 404" in refusal_message(server, tmp_path)
    assert server.requests == 1

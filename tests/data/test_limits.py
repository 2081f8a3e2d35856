"""Small files that claim or unpack to far more than they are, and files that cannot be read to their end."""

import bz2
import io
import logging
import lzma
import os
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_sources import RNG, encode, understate_sizes, write_folder
from helpers.tiny_imagenet_source import BASE, layout, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robreg.data import parquet_folder, parquet_pages, source, tiny_imagenet
from robreg.data.errors import DataError, printable
from robreg.data.preparation import prepare
from robreg.tables import page_headers
from robreg.workflow.job import logged

PARQUET = {"name": "d", "kind": "parquet", "source": "set", "max_train": None, "max_test": None, "subset_seed": 0}
TINY = PARQUET | {"kind": "tiny-imagenet", "source": "t.zip", "incomplete": True}
IMAGE = "train/n10/images/n10_9.JPEG"
PNG = encode(np.arange(108, dtype=np.uint8).reshape(6, 6, 3))
LONG = PNG + bytes(2**22)  # bytes after the end of a PNG are ignored
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def refusal_message(folder: Path, spec: dict[str, object]) -> str:
    with pytest.raises(DataError) as caught:
        prepare(spec, data_root=folder, out=folder / "out")
    assert not list((folder / "out").glob("*"))
    return str(caught.value)


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Fail if Python, or pyarrow, allocates more than so many bytes at a time."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield
        assert max(pool.max_memory(), tracemalloc.get_traced_memory()[1]) < limit
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


# Zips


@pytest.fixture(autouse=True)
def small_official_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source.OFFICIAL, "tiny-imagenet", source.OfficialSize(3, 12, 6, (3, 64, 64)))


def write_lying_zip(path: Path, packed: bytes, method: int, size: int) -> None:
    """Write a zip, one image of which is stored as it is, but stated to be `packed` from so many bytes of zeros."""
    write_zip(path, {name: content for name, content in layout().items() if name != IMAGE})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(BASE + IMAGE, packed)
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo(BASE + IMAGE)
        info.compress_type, info.file_size, info.CRC = method, size, zlib.crc32(bytes(size))
        archive.comment = b"so that the directory is written again"
    content = bytearray(path.read_bytes())
    content[info.header_offset + 8 : info.header_offset + 10] = method.to_bytes(2, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("method", ["deflate", "bzip2", "lzma"])
def test_a_file_that_unpacks_to_more_than_the_zip_states(method: str, tmp_path: Path) -> None:
    size = 2**27
    raw = [{"id": lzma.FILTER_LZMA1}]
    packed, code = {
        "deflate": lambda: (zlib.compress(bytes(size), 9)[2:-4], zipfile.ZIP_DEFLATED),
        "bzip2": lambda: (bz2.compress(bytes(size)), zipfile.ZIP_BZIP2),
        "lzma": lambda: (
            b"\x09\x04\x05\0\x5d\0\0\x80\0" + lzma.compress(bytes(size), lzma.FORMAT_RAW, filters=raw),
            14,
        ),
    }[method]()
    write_lying_zip(tmp_path / "t.zip", packed, code, 300)
    assert (tmp_path / "t.zip").stat().st_size < 2**19
    with at_most(2**25):
        message = refusal_message(tmp_path, TINY)
    fix = (
        "cannot be decoded" if method == "deflate" else "is neither stored nor deflated; write the zip again with defl"
    )
    assert message.startswith(f"{tmp_path / 't.zip'}: {BASE}{IMAGE} {fix}")


def test_a_long_file_in_a_zip_is_not_read_to_its_end(tmp_path: Path) -> None:
    write_zip(tmp_path / "t.zip", layout() | {"words.txt": b"a\n" * 2**25})
    with at_most(2**25):
        assert f"words.txt has more than {tiny_imagenet.MAX_FILE} bytes" in refusal_message(tmp_path, TINY)


def test_a_file_without_end_in_a_folder_is_not_read(tmp_path: Path) -> None:
    for name, content in layout().items():
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).write_bytes(content)
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
        (tmp_path / "t/words.txt").unlink()
        make(tmp_path / "t/words.txt")
        message = refusal_message(tmp_path, TINY | {"source": "t"})
        assert "words.txt cannot be read (OSError: it is not a regular file)" in message


# Folders of Parquet files


def write_long(folder: Path, images: list[bytes], **options: object) -> Path:
    """Write images as both splits, and let the footers state that they need no memory. Returns the training file."""
    (folder / "set").mkdir()
    for split in ("train", "test"):
        table = pa.table({"image": pa.array([{"bytes": image, "path": None} for image in images], KIND)})
        table = table.append_column("label", pa.array(np.arange(len(images)) % 2))
        pq.write_table(table, folder / f"set/{split}.parquet", compression="zstd", **options)
        understate_sizes(folder / f"set/{split}.parquet")
    return folder / "set/train.parquet"


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}], ids=repr)
def test_an_image_that_unpacks_to_more_than_a_page_may_have(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_long(tmp_path, [PNG, LONG], **options)
    assert path.stat().st_size < 2**13
    monkeypatch.setattr(parquet_pages, "MAX_PAGE", 2**22)
    with at_most(2**20):
        message = refusal_message(tmp_path, PARQUET)
    assert message.startswith(f"{path}: the column image.bytes has a page of ")
    assert "not at most 4194304; write the file again with fewer rows in a row group" in message


def test_a_repeated_image_does_not_fill_the_memory_although_the_footer_states_a_small_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_folder, "BATCH_BYTES", 2**22)
    path = write_long(tmp_path, [LONG] * 100, dictionary_pagesize_limit=2**24)
    assert path.stat().st_size < 2**13
    with at_most(2**26):
        prepare(PARQUET, data_root=tmp_path, out=tmp_path / "out")


def test_a_dictionary_of_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set", RNG.integers(0, 256, (20, 6, 6, 3), np.uint8), np.arange(20) % 2)
    monkeypatch.setattr(page_headers, "MAX_DISTINCT", 6)  # row groups have 7 rows
    message = refusal_message(tmp_path, PARQUET)
    assert "the column image.bytes has a dictionary of 7 values, not at most 6; write" in message


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_encodings_that_count_their_values_themselves_are_refused(encoding: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "set", RNG.integers(0, 256, (20, 6, 6, 3), np.uint8), np.arange(20) % 2)
    table = pq.read_table(tmp_path / "set/train.parquet")
    chosen = {"image.bytes": encoding, "image.path": "PLAIN", "label": "DELTA_BINARY_PACKED"}
    pq.write_table(table, tmp_path / "set/train.parquet", use_dictionary=False, column_encoding=chosen)
    message = refusal_message(tmp_path, PARQUET)
    assert f"image.bytes has values in Parquet's encoding {6 if 'LENGTH' in encoding else 7}, which is not" in message
    pq.write_table(
        table, tmp_path / "set/train.parquet", use_dictionary=False, column_encoding=chosen | {"image.bytes": "PLAIN"}
    )
    prepare(PARQUET, data_root=tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_largest_page_is_found_whatever_the_compression(version: str, dictionary: bool, tmp_path: Path) -> None:
    images = [RNG.bytes(n) for n in (10, 50_000, 300, 20)]
    table = pa.table({"image": pa.array(images * 3, pa.binary()), "label": [*range(12)]})
    for compression in ("none", "snappy", "gzip", "zstd"):
        path = tmp_path / compression
        options = {"use_dictionary": dictionary, "data_page_version": version, "row_group_size": 6}
        pq.write_table(table, path, compression=compression, **options)
        largest = 50_330 + 4 * 4 if dictionary else 100_340 + 6 * 4  # each has its length before it
        found = parquet_pages.largest_page(path, pq.read_metadata(path), "image")
        assert largest <= found < largest + 100  # a data page also has levels, and compression lengthens noise


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=st.binary(max_size=60))
def test_any_header_of_a_page_is_read_or_refused(content: bytes) -> None:
    try:
        fields = page_headers._read_struct(io.BytesIO(content), 0)
    except ValueError:
        return
    assert len(fields) < len(content)


def test_a_header_that_states_two_sizes_is_refused() -> None:
    assert page_headers._read_struct(io.BytesIO(b"\x25\x10\x00"), 0) == {2: 8}
    for second in (b"\x05\x04\x02", b"\x06\x04\x02"):  # of 32 bits, and of 64, which pyarrow would ignore
        with pytest.raises(ValueError, match="the field 2 twice"):
            page_headers._read_struct(io.BytesIO(b"\x25\x10" + second + b"\x00"), 0)
    with pytest.raises(ValueError, match="too deep"):
        page_headers._read_struct(io.BytesIO(b"\x1c" * 99), 0)


def test_metadata_nested_without_end_give_no_class_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", RNG.integers(0, 256, (20, 6, 6, 3), np.uint8), np.arange(20) % 2)
    for key, message in (("huggingface", None), ("pandas", "not a readable Parquet file (maximum recursion depth")):
        table = pq.read_table(tmp_path / "set/train.parquet")
        pq.write_table(table.replace_schema_metadata({key: "[" * 100_000}), tmp_path / "set/train.parquet")
        if message is None:
            prepare(PARQUET, data_root=tmp_path, out=tmp_path / "ok")
            assert '"class_names": null' in (tmp_path / "ok/meta.json").read_text()
        else:
            assert message in refusal_message(tmp_path, PARQUET)


# Memory that nothing above foresees


def test_too_much_memory_ends_with_one_sentence(tmp_path: Path) -> None:
    """In a process of its own, as a job is: one that has freed memory before may use that again within the limit."""
    script = f"""
import numpy as np
from robreg.workflow.job import limited_memory, logged
try:
    with logged({str(tmp_path / "log")!r}), limited_memory(100, "prepare"):
        [np.ones(size, np.uint8) for size in (2**25, 2**28)]
except SystemExit:
    assert np.ones(2**28, np.uint8)[-1]  # the limit holds in the block only
    print("ended")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
    assert "Error: the data need more than 100 MB of memory while they are read" in done.stderr


def test_missing_memory_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    write_folder(tmp_path / "set", RNG.integers(0, 256, (20, 6, 6, 3), np.uint8), np.arange(20) % 2)
    write_zip(tmp_path / "t.zip", layout())
    for owner, name in ((Image, "open"), (pa.Array, "cast"), (zipfile.ZipExtFile, "read"), (zipfile, "ZipFile")):
        spec = TINY if owner in (zipfile, zipfile.ZipExtFile) else PARQUET
        with monkeypatch.context() as patch:
            if owner is pa.Array:
                patch.setattr(parquet_folder, "choose_columns", fail)
            else:
                patch.setattr(owner, name, fail)
            with pytest.raises(MemoryError):
                prepare(spec, data_root=tmp_path, out=tmp_path / "out")


# Text from files


def test_control_characters_are_escaped() -> None:
    assert printable("Größe 5 µm, 日本") == "Größe 5 µm, 日本"
    assert printable("\x1b[2J\r\t\x9b\u202e\u200b\udc80") == "\\x1b[2J\\r\\t\\x9b\\u202e\\u200b\\udc80"
    assert str(DataError("a\n  b\x1b")) == "a b\\x1b"


def test_text_from_files_cannot_command_a_terminal_or_forge_an_entry_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;x\x07\u202e\n2026-01-02 03:04:05,678 ERROR all is well"

    def fail() -> None:
        logging.getLogger("robreg.data").info("class %s", evil)
        raise ValueError(evil)

    with pytest.raises(SystemExit), logged(str(tmp_path / "log"), shown=True):
        fail()
    printed, log = capsys.readouterr().err, (tmp_path / "log").read_text()
    for text in (printed, log):
        assert "\\x1b]0;x\\x07\\u202e" in text
        assert text.replace("\n", "").isprintable()
    assert "\n2026-01-02" not in log + printed
    assert printed.count("\n") == 3  # the entry has two lines
    assert "\n    ValueError: \\x1b" in log

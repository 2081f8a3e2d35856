"""Tables whose files claim more than they have, or unpack to far more than they are, do not fill the memory."""

import io
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.peak_memory import peak_memory

from robreg.tables import page_headers, parquet, parquet_bounds

ROWS = 123_457  # a number that stands for nothing else in a footer


def varint(number: int) -> bytes:
    """Encode a whole number in Thrift's compact protocol."""
    code = [2 * number >> shift & 127 | 128 for shift in range(0, (2 * number).bit_length(), 7)]
    return bytes([*code[:-1], code[-1] & 127])


def patch_footer(path: Path, old: bytes, new: bytes, count: int = -1) -> None:
    """Replace bytes in the footer of a Parquet file, the first times or everywhere."""
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - size], content[-8 - size : -8]
    assert old in footer
    footer = footer.replace(old, new, count)
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **{"compression": "zstd"} | options)
    return path


def claims_rows(folder: Path) -> Path:
    path = write(folder / "sv.parquet", pa.table({"sigma": np.zeros(ROWS)}))
    patch_footer(path, varint(ROWS), varint(2**40))
    return path


def claims_rows_of_no_column(folder: Path) -> Path:
    path = write(folder / "metrics.parquet", pa.table({"a": [1]}).select([]))
    patch_footer(path, b"\x16\0\x16\0", b"\x16\0\x16" + varint(2**40))  # of the row group
    patch_footer(path, b"\x16\0\x19\x1c", b"\x16" + varint(2**40) + b"\x19\x1c", 1)
    return path


def claims_a_long_column(folder: Path) -> Path:
    path = write(folder / "sv.parquet", pa.table({"sigma": np.arange(99.0)}), use_dictionary=False)
    size = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    patch_footer(path, varint(size), varint(2**31))
    return path


def long_text(folder: Path, **options: Any) -> Path:
    return write(folder / "claims.parquet", pa.table({"id": ["a", "b" * (parquet_bounds.MAX_SMALL + 1)]}), **options)


def repeated_text(folder: Path, *, stored: bool = False) -> Path:
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**17, np.int32)), pa.array(["b" * 2**14]))
    return write(folder / "claims.parquet", pa.table({"id": texts}), store_schema=stored)


def long_list(folder: Path) -> Path:
    offsets = pa.array([0, 2**24], pa.int32())
    return write(
        folder / "history.parquet", pa.table({"sigma_max": pa.ListArray.from_arrays(offsets, np.zeros(2**24))})
    )


def many_rows(folder: Path) -> Path:
    return write(folder / "sv.parquet", pa.table({name: np.zeros(2**23, bool) for name in "abcdef"}))


def wide_values(folder: Path) -> Path:
    values = pa.DictionaryArray.from_arrays(np.zeros(2**10, np.int32), pa.array([bytes(2**14)], pa.binary(2**14)))
    return write(folder / "sv.parquet", pa.table({"a": values}), store_schema=False)


def deep_lists(folder: Path) -> Path:
    kind, value = pa.int64(), 1
    for _ in range(30):
        kind, value = pa.list_(kind), [value]
    return write(folder / "sv.parquet", pa.table({"a": pa.array([value], kind)}))


def large_footer(folder: Path) -> Path:
    table = pa.table({"a": [1]}).replace_schema_metadata({"robreg": "x" * parquet_bounds.MAX_FOOTER})
    return write(folder / "metrics.parquet", table)


def many_columns(folder: Path) -> Path:
    return write(folder / "metrics.parquet", pa.table({f"c{number}": [1] for number in range(4100)}))


def many_pages(folder: Path) -> Path:
    options = {"data_page_size": 1, "write_batch_size": 1, "use_dictionary": False}
    return write(folder / "sv.parquet", pa.table({"a": np.arange(2**14 + 1)}), **options)


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "rows": (claims_rows, f"its column sigma claims {2**40} values, but has {ROWS}"),
    "rows of no column": (claims_rows_of_no_column, "takes more than the 16777216 bytes of memory that such a"),
    "a long column": (claims_a_long_column, "its column sigma ends beyond the end of the file"),
    "long text": (long_text, "takes more than the 16777216 bytes of memory that such a table may take"),
    "long text not in a dictionary": (
        lambda folder: long_text(folder, use_dictionary=False),
        "takes more than the 16777216",
    ),
    "repeated text": (repeated_text, "the text in it takes more than the 8388608 bytes"),
    "repeated text of a category": (lambda folder: repeated_text(folder, stored=True), "its column id has values of a"),
    "long list": (long_list, "takes more than the 16777216 bytes of memory that such a table may take"),
    "rows of a large table": (many_rows, "takes more than the 536870912 bytes of memory that such a table may take"),
    "wide values": (wide_values, "its column a has values of a kind that no table has"),
    "deep lists": (deep_lists, r"its column a\.list\S+ has values of a kind that no table has"),
    "large footer": (large_footer, "its footer has .* bytes, more than 4194304"),
    "many columns": (many_columns, "MaxMessageSize|[Ee]xceeded size limit|thrift"),
    "many pages": (many_pages, "it has more than 16384 pages"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_table_that_would_fill_the_memory_is_refused(kind: str, tmp_path: Path) -> None:
    make, why = BOMBS[kind]
    path = make(tmp_path)
    assert path.stat().st_size < 2**24
    memory, message = peak_memory(parquet.read, path)
    assert message.startswith(f"{path} is damaged or lacks a column (")
    assert message.endswith("); delete it and make it again")
    assert re.search(why, message), message
    assert memory < 200


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    texts = pa.array(["a", None, "", "ä" * 40] * 5000)
    table = pa.table({"a": texts, "b": texts.cast(pa.large_string()), "c": np.arange(20_000) % 7, "d": [True] * 20_000})
    lists = [[1.0, 2.0], None, [], [3.0]] * 5000
    table = table.append_column("e", pa.array(lists)).append_column("f", pa.nulls(20_000))
    for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"row_group_size": 3000}):
        path = write(tmp_path / "x.parquet", table, **options)
        assert parquet.read(path).equals(table)
        assert parquet.read(path, ["e", "b"]).equals(table.select(["e", "b"]))
    assert parquet.read(write(path, table[:0])).equals(table[:0])
    assert parquet.read(write(path, table), ["a"]).to_pandas()["a"].dtype == "str"


def test_the_largest_tables_are_read(tmp_path: Path) -> None:
    rows, rng = 2_000_000, np.random.default_rng(0)
    names = [f"stages.{number % 3}.{number % 18}.convolution" for number in range(rows)]
    columns = {"layer": np.arange(rows), "name": names, "sigma": rng.random(rows), "multiplicity": np.ones(rows, int)}
    parquet.write(tmp_path / "sv.parquet", "sv", columns, {})
    assert len(parquet.read(tmp_path / "sv.parquet")) == rows


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link": lambda path: path.symlink_to(write(path.with_name("other"), pa.table({"a": [1]}))),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("read", [parquet.read, parquet.read_metadata])
def test_what_is_not_a_file_is_not_opened(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    NO_FILES[kind](tmp_path / "a")
    with pytest.raises(ValueError, match="/a is a link, or no file: "):
        read(tmp_path / "a")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "1", '"text"', "null", "{"])
def test_metadata_that_are_no_mapping_are_refused(content: str, tmp_path: Path) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"robreg": content, "pandas": "[" * 100_000})
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged or lacks a column \(.*\); delete it and"):
        parquet.read_metadata(path)
    assert len(parquet.read(path).to_pandas()) == 1


def test_a_list_without_end_in_a_page_s_header_is_not_skipped_for_ever() -> None:
    endless = b"\xff" * 8 + b"\x7f"
    for value in (b"\x19\xf7" + endless, b"\x18" + endless, b"\x1b" + endless + b"\x77"):
        with pytest.raises(ValueError, match=r"not complete|without end"):
            page_headers._read_struct(io.BytesIO(value + bytes(100)), 0)


@pytest.mark.parametrize("settings", ['{"a":' * 400 + "1" + "}" * 400, "[" * 100_000, "[]", "{", 7, [], None])
def test_settings_that_are_no_mapping_or_deep_are_refused(settings: object, tmp_path: Path) -> None:
    parquet.write_frame(tmp_path / "a.parquet", pa.table({"a": [1]}), {"settings": settings})
    with pytest.raises(ValueError, match=r"a\.parquet is damaged or lacks a column \(.*\); delete it and make"):
        parquet.read_settings(tmp_path / "a.parquet")

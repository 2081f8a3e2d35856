"""Read the headers of the pages of a Parquet file, because its footer may state anything.

A page's header states how many bytes the page has when it is unpacked, and pyarrow unpacks no more than that. The
headers are structs in Thrift's compact protocol (parquet.thrift in github.com/apache/parquet-format).
"""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq

MAX_DISTINCT = 2**20  # values in a dictionary, which pyarrow fills up to a megabyte, or with 1024 images
# PLAIN, PLAIN_DICTIONARY, RLE, BIT_PACKED, DELTA_BINARY_PACKED of whole numbers, RLE_DICTIONARY. The other encodings
# count their values in the page, where a few bytes can claim billions.
ENCODINGS = (0, 2, 3, 4, 5, 8)
_MAX_DEPTH = 16  # of structs, lists and maps in each other; those of a page's header are three deep

_TYPE, _UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_V2 = 1, 2, 3, 5, 7, 8  # fields of a page's header
_COUNT, _ENCODING, _ENCODING_V2 = 1, 2, 4  # fields of the header in it that is particular to the kind of page


class PageError(ValueError):
    """Raised for a page that could fill the memory; the message continues a sentence that begins with its column."""


class Page(NamedTuple):
    """What a page's header states: its bytes when it is unpacked, and how many values it has besides its dictionary."""

    size: int
    values: int


def pages(file: BinaryIO, part: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """Yield the pages of one column in one row group, from the place where pyarrow reads them.

    Raises PageError for a dictionary of too many values and for unknown encodings, and ValueError for headers that
    cannot be read.
    """
    for header in _page_headers(file, part):
        data, data_v2, dictionary = (_struct(header, kind) for kind in (_DATA, _DATA_V2, _DICTIONARY))
        if (count := _number(dictionary, _COUNT)) > MAX_DISTINCT:
            raise PageError(f"has a dictionary of {count} values, not at most {MAX_DISTINCT}")
        if unknown := {_number(data, _ENCODING), _number(data_v2, _ENCODING_V2)} - {*ENCODINGS}:
            raise PageError(f"has values in Parquet's encoding {min(unknown)}, which is not read")
        size = max(_number(header, _UNPACKED), _number(header, _PACKED))
        yield Page(size, max(_number(data, _COUNT), _number(data_v2, _COUNT)))


def _struct(fields: dict[int, Any], number: int) -> dict[int, Any]:
    """Return a field that is a struct, or an empty one: pyarrow skips a field of another kind."""
    found = fields.get(number)
    return found if isinstance(found, dict) else {}


def _number(fields: dict[int, Any], number: int) -> int:
    """Return a field that is a whole number, or 0."""
    found = fields.get(number)
    return found if isinstance(found, int) else 0


def first_page(part: pq.ColumnChunkMetaData) -> int:
    """Return the place in the file where pyarrow begins to read one column in one row group."""
    start = int(part.data_page_offset)
    has_dictionary = part.has_dictionary_page and 0 < part.dictionary_page_offset < start
    return int(part.dictionary_page_offset) if has_dictionary else start


def _page_headers(file: BinaryIO, part: pq.ColumnChunkMetaData) -> Iterator[dict[int, Any]]:
    """Yield the headers of the pages of one column in one row group, from the place where pyarrow reads them."""
    position = start = first_page(part)
    while position < start + part.total_compressed_size:
        file.seek(position)
        header = _read_struct(file, 0)
        if not {_UNPACKED, _PACKED} <= header.keys():
            raise ValueError("a page's header does not state its size")
        position = file.tell() + max(0, _number(header, _PACKED))
        yield header


def _read_struct(file: BinaryIO, depth: int) -> dict[int, Any]:
    """Read a struct. Returns its fields that are whole numbers or structs; raises ValueError if it is damaged."""
    fields: dict[int, Any] = {}
    number = 0
    while kind := (head := _read_byte(file)) & 15:
        number = number + (head >> 4) if head >> 4 else _zigzag(_read_varint(file))
        if number in fields:  # pyarrow would take the last one, or the last one of the right kind
            raise ValueError(f"a page's header has the field {number} twice")
        fields[number] = _read_value(file, kind, depth + 1, in_struct=True)
    return fields


def _read_value(file: BinaryIO, kind: int, depth: int, *, in_struct: bool = False) -> Any:  # noqa: ANN401
    """Read a value of one of Thrift's kinds. in_struct: whether a truth value is in its kind, without a byte."""
    if depth > _MAX_DEPTH:
        raise ValueError("a page's header is too deep")
    if kind in (1, 2):  # true, false
        return None if in_struct else _read_byte(file)
    if kind in (4, 5, 6):  # whole numbers of 16, 32 and 64 bits; those that matter have 32, and pyarrow drops the rest
        return _zigzag(_read_varint(file) & 0xFFFFFFFF) if kind == 5 else _read_varint(file)
    readers: dict[int, Callable[[], Any]] = {
        3: lambda: _read_byte(file),
        7: lambda: _skip(file, 8),  # float of 64 bits
        8: lambda: _skip(file, _read_varint(file)),  # bytes
        9: lambda: _skip_list(file, depth),
        10: lambda: _skip_list(file, depth),  # set
        11: lambda: _skip_map(file, depth),
        12: lambda: _read_struct(file, depth),
    }
    if kind not in readers:
        raise ValueError(f"a page's header has a value of the unknown kind {kind}")
    return readers[kind]()


def _skip_list(file: BinaryIO, depth: int) -> None:
    head = _read_byte(file)
    for _ in range(head >> 4 if head >> 4 < 15 else _read_varint(file)):
        _read_value(file, head & 15, depth + 1)


def _skip_map(file: BinaryIO, depth: int) -> None:
    if size := _read_varint(file):
        kinds = _read_byte(file)
        for _ in range(size):
            _read_value(file, kinds >> 4, depth + 1)
            _read_value(file, kinds & 15, depth + 1)


def _skip(file: BinaryIO, length: int) -> None:
    if 0 < length < 2**31:
        file.seek(length - 1, 1)
        _read_byte(file)  # raises beyond the end, where a list without end could be skipped for ever
    elif length:
        raise ValueError("a page's header has text without end")


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _read_byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a page's header has a number of more than 64 bits")


def _zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _read_byte(file: BinaryIO) -> int:
    if not (byte := file.read(1)):
        raise ValueError("a page's header is not complete")
    return byte[0]

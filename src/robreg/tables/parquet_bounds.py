"""Bound the memory that reading a table takes before it is read: its sender may have claimed or packed anything."""

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robreg.tables.page_headers import first_page, pages

# Bytes that a table may take, and half as many for its text: 7 million singular values, 5 million rows of margins, or
# some images of a thousand times a thousand pixels.
# Other tables have at most some thousand rows, and many are turned into Python objects, which take ten times as much.
LARGE = ("margins", "lossvar", "sv", "examples")
MAX_LARGE, MAX_SMALL = 2**29, 2**24
MAX_FOOTER = 2**22  # bytes of the description at the end of a file; that of a study with a hundred runs has 2**19
MAX_ENTRIES = 2**12  # columns, row groups, or pairs of metadata; pyarrow takes about a thousand bytes for each
_NUMBERS = ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE")  # Parquet's names of the kinds of values
_MAX_PAGES = 2**14  # which take about a second to look through; the largest tables have a tenth of that
_BYTES_PER_VALUE = 12  # in memory: the value, whether it is null, and whether a list begins with it


def open_footer(file: BinaryIO) -> pq.ParquetFile:
    """Open a Parquet file whose description of itself is no larger than those of this package's tables."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    if (footer := int.from_bytes(file.read(4), "little")) > MAX_FOOTER:
        raise ValueError(f"its footer has {footer} bytes, more than {MAX_FOOTER}")
    file.seek(0)
    return pq.ParquetFile(file, thrift_string_size_limit=MAX_FOOTER, thrift_container_size_limit=MAX_ENTRIES)


def read_bounded(file: BinaryIO, path: Path, columns: Collection[str] | None) -> pa.Table:
    """Read a table, or the given columns of it, if they take at most MAX_LARGE or MAX_SMALL bytes.

    path: decides whether it is one of the LARGE tables. Raises ValueError if they take more, or if a column is missing
    or of a kind that no table of this package has.
    """
    limit = MAX_LARGE if path.stem in LARGE else MAX_SMALL
    metadata = open_footer(file).metadata
    schema = metadata.schema.to_arrow_schema()
    if missing := [name for name in columns or () if name not in schema.names]:
        raise ValueError(f"there is no column {missing[0]}")
    texts = _text_columns(metadata, schema)
    if _needed(file, metadata, columns) > limit:
        raise ValueError(f"it takes more than the {limit} bytes of memory that such a table may take")
    # As a dictionary, a text that is repeated in many rows is in memory only once.
    found = pq.ParquetFile(file, metadata=metadata, read_dictionary=texts).read(list(columns) if columns else None)
    table = found.select(list(columns)) if columns else found
    texts = [name for name in table.column_names if name in texts]
    if sum(_text_bytes(table[name]) for name in texts) > limit // 2:
        raise ValueError(f"the text in it takes more than the {limit // 2} bytes of memory that it may take")
    for name in texts:
        field = schema.field(name)
        table = table.set_column(table.column_names.index(name), field, _to_text(table[name], field.type))
    # Without metadata, because pandas would parse and obey its own whatever it contains; the types say all it needs.
    return table.replace_schema_metadata(None)


def _text_columns(metadata: pq.FileMetaData, schema: pa.Schema) -> list[str]:
    """List the columns with text. Raises ValueError for columns of other kinds than tables of this package have."""
    if len(set(schema.names)) < len(schema.names):
        raise ValueError("two of its columns have the same name")
    texts = []
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        name = column.path.partition(".")[0]
        is_text = column.physical_type == "BYTE_ARRAY"
        if is_text and column.path in schema.names and schema.field(name).type in (pa.string(), pa.large_string()):
            texts.append(name)
        elif is_text or column.physical_type not in _NUMBERS or column.path.count(".") > 2:
            raise ValueError(f"its column {column.path} has values of a kind that no table has")
    return texts


def _needed(file: BinaryIO, metadata: pq.FileMetaData, columns: Collection[str] | None) -> int:
    """Return how many bytes reading the given columns takes at most, if the text in them is not repeated."""
    size, needed, looked_at = file.seek(0, 2), 0, 0
    for part in _parts(metadata, columns):
        if not 0 <= first_page(part) <= size - part.total_compressed_size <= size:
            raise ValueError(f"its column {part.path_in_schema} ends beyond the end of the file")
        found = list(islice(pages(file, part), _MAX_PAGES - looked_at)) if part.num_values else []
        looked_at += len(found) + 1
        if looked_at > _MAX_PAGES:
            raise ValueError(f"it has more than {_MAX_PAGES} pages")
        values = sum(page.values for page in found)
        if values < part.num_values:  # pyarrow would go on behind the last page
            raise ValueError(f"its column {part.path_in_schema} claims {part.num_values} values, but has {values}")
        needed += part.total_compressed_size + sum(page.size for page in found) + _BYTES_PER_VALUE * values
    rows = sum(abs(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups))
    return needed + _BYTES_PER_VALUE * max(rows, metadata.num_rows)


def _parts(metadata: pq.FileMetaData, columns: Collection[str] | None) -> Iterator[pq.ColumnChunkMetaData]:
    """Yield the parts of the given columns in all row groups."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            part = group.column(index)
            if columns is None or part.path_in_schema.partition(".")[0] in columns:
                yield part


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return how many bytes the values of a dictionary-encoded column of text have, with repetitions."""
    return sum(
        pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0 for chunk in column.chunks
    )


def _to_text(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.dictionary_decode().cast(kind) for chunk in column.chunks], kind)

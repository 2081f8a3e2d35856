"""Find how much memory the pages of a Parquet file of images need."""

from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from robreg.data.errors import DataError
from robreg.tables.page_headers import PageError, pages

MAX_PAGE = 2**27  # bytes of an unpacked page, in which pyarrow puts up to 1024 images; reading takes up to 7 times that


def largest_page(path: Path, metadata: pq.FileMetaData, column: str) -> int:
    """Return the bytes of the largest page of a column when it is unpacked, of any row group; 0 if there is none.

    column: path of its values, such as image.bytes. Raises DataError for pages that could fill the memory, and
    ValueError for headers that cannot be read.
    """
    largest = 0
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            parts = [metadata.row_group(group).column(index) for index in range(metadata.row_group(group).num_columns)]
            for part in parts:
                if part.path_in_schema == column and part.num_values > 0:  # of an empty column pyarrow reads no page
                    largest = max(largest, _largest_of(file, part, f"{path}: the column {column}"))
    return largest


def _largest_of(file: BinaryIO, part: pq.ColumnChunkMetaData, where: str) -> int:
    """Return the bytes of the largest page of a column in a row group. Raises DataError, which begins with `where`."""
    largest = 0
    fix = "write the file again with fewer rows in a row group, with smaller images, or in the encoding PLAIN"
    try:
        for page in pages(file, part):
            if page.size > MAX_PAGE:
                raise PageError(f"has a page of {page.size} bytes when it is unpacked, not at most {MAX_PAGE}")
            largest = max(largest, page.size)
    except PageError as error:
        raise DataError(f"{where} {error}; {fix}") from error
    return largest

"""Read folders of Parquet files that contain encoded images, in the layout of Hugging Face data sets."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from robreg.data.columns import check_same_columns, choose_columns
from robreg.data.errors import DataError
from robreg.data.parquet_pages import largest_page
from robreg.data.source import OFFICIAL, Columns, Images, Labels, Settings, Source, Stream, config_key, stream_images

BATCH_ROWS, BATCH_BYTES = 256, 2**26  # limits on the encoded images that are in memory at a time
_BUFFER = 2**16  # bytes of a file that pyarrow reads at a time, beyond which a page counts
LOSSLESS = ("cifar10", "cifar100")  # kinds whose official images never had lossy compression
MAX_ROWS = 2**24  # of a split, because a few bytes can claim any number of equal rows
MAX_PIXELS = 2**22  # of an image, because a small file can claim thousands of times as many
GRAY = ("1", "L", "LA")  # Pillow's modes of images without colour
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # without EPS, for which Pillow would run Ghostscript
DEEP = ("I", "F")  # first letters of Pillow's modes with more than 8 bits per channel


class _Split(NamedTuple):
    """The files of a split, and the path of the encoded images in them, such as image.bytes."""

    files: list[Path]
    column: str


def open_folder(folder: Path, settings: Settings) -> Source:
    """Open a folder with train*.parquet and test*.parquet (or valid*.parquet), one or several files for each split.

    `choose_columns` says which columns have images and labels; they must be the same in all files. The number of
    classes is that of the official data set, or one more than the largest training label. Raises DataError if the
    files do not fit this.
    """
    train_files = _find_files(folder, ["train"], config_key(settings, "source"))
    test_files = _find_files(folder, ["test", "valid"], config_key(settings, "source"))
    with _open_file(train_files[0]) as file:
        columns = choose_columns(file.schema_arrow, settings, train_files[0])
    train_labels, test_labels = (_read_labels(files, settings, columns) for files in (train_files, test_files))
    train, test = (_Split(files, columns.images.path) for files in (train_files, test_files))
    kind = settings["kind"]
    classes = OFFICIAL[kind].classes if kind in OFFICIAL else int(train_labels.max(initial=-1)) + 1

    def read(train_rows: Labels, test_rows: Labels) -> tuple[Stream, Stream]:
        if kind in LOSSLESS:
            _refuse_lossy(train, kind, config_key(settings, "kind"))
        train_size, train_gray = _read_headers(train, train_rows)
        test_size, test_gray = _read_headers(test, test_rows)
        channels = 1 if train_gray and test_gray and kind != "tiny-imagenet" else 3
        return (
            stream_images(_decode_rows(train, train_rows, train_size, channels), (channels, *train_size)),
            stream_images(_decode_rows(test, test_rows, test_size, channels), (channels, *test_size)),
        )

    return Source(train_labels, test_labels, classes, _class_names(columns, classes), read, columns)


def _find_files(folder: Path, prefixes: Sequence[str], where: str) -> list[Path]:
    """List the Parquet files of a split, sorted by name: those with the first of `prefixes` that any file name has."""
    for prefix in prefixes:
        files = [path for path in folder.rglob("*.parquet") if path.name.startswith(prefix)]
        if files:
            return sorted(files, key=lambda path: (path.name, path))
    patterns = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
    raise DataError(f"{where}: no {patterns} in {folder}; put the split's files there")


@contextmanager
def _open_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, whose pages are then read one by one.

    Raises DataError, which names the file, for anything in it that pyarrow cannot read, and for a file that is none,
    such as a pipe, which could be read for ever.
    """
    if not path.is_file():
        raise DataError(f"{path}: not a regular file; put the file itself there")
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{path}: not a readable Parquet file ({error}); copy it again") from error


def _read_labels(files: Sequence[Path], settings: Settings, columns: Columns) -> Labels:
    """Read the labels (N,) of a split. Raises DataError for other columns, or if a label is null or negative."""
    parts, rows = [], 0
    for path in files:
        with _open_file(path) as file:
            check_same_columns(choose_columns(file.schema_arrow, settings, path), columns)
            rows += _count_rows(file.metadata)
            if rows > MAX_ROWS:
                raise DataError(f"{path}: with it, its split has more than {MAX_ROWS} rows; leave some of them out")
            largest_page(path, file.metadata, columns.labels.path)  # raises for pages that could fill the memory
            column = file.read(columns=[columns.labels.path]).column(columns.labels.path)
            labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
        wrong = np.flatnonzero(labels < 0)
        if len(wrong):
            value = column[wrong[0]].as_py()
            where = f"row {wrong[0]} of the column {columns.labels.name}"
            raise DataError(f"{path}: label {value} in {where}; labels must be whole numbers from 0")
        parts.append(labels)
    return np.concatenate(parts)


def _class_names(columns: Columns, classes: int) -> list[str] | None:
    """Read the names of the classes from Hugging Face's metadata; None if it has none."""
    with _open_file(columns.file) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][columns.labels.name]["names"][:classes]
        names = [name for name in names if isinstance(name, str)]
    except (KeyError, TypeError, ValueError, RecursionError):  # of metadata in another layout, or nested without end
        return None
    return names if len(names) == classes else None


def _read_headers(split: _Split, rows: Labels) -> tuple[tuple[int, int], bool]:
    """Read the headers of the images of `rows`. Returns the height and width of the first, and whether all are gray.

    Raises DataError if an image cannot be opened or has more than MAX_PIXELS pixels.
    """
    shape = None
    for path, row, encoded in _encoded_images(split, rows):
        with _open_image(encoded, path, row) as image:
            size, gray = (image.height, image.width), image.mode in GRAY
        shape = shape or size
        if math.prod(shape) > MAX_PIXELS:
            raise DataError(
                f"{path}: the image in row {row} has more than {MAX_PIXELS} pixels; make the images smaller"
            )
        if not gray:
            return shape, False
    assert shape is not None  # an empty split was refused before
    return shape, True


def _decode_rows(split: _Split, rows: Labels, shape: tuple[int, int], channels: int) -> Iterator[Images]:
    """Decode images, each to (channels, *shape); rows: sorted, numbered over all files. Raises DataError."""
    for path, row, encoded in _encoded_images(split, rows):
        yield _decode(encoded, path, row, shape)[:channels]


def _encoded_images(split: _Split, rows: Labels) -> Iterator[tuple[Path, int, bytes | None]]:
    """Yield file, row in the file and encoded image for each of `rows`, with one batch in memory at a time."""
    first = 0
    for path in split.files:
        start = first
        with _open_file(path) as file:
            for batch in file.iter_batches(_rows_per_batch(path, file.metadata, split.column), columns=[split.column]):
                low, high = np.searchsorted(rows, [first, first + len(batch)])
                column = batch.column(0)
                values = column.field("bytes") if pa.types.is_struct(column.type) else column
                for row in rows[low:high]:  # one copy at a time
                    yield path, int(row) - start, values[int(row) - first].as_py()
                first += len(batch)


def _count_rows(metadata: pq.FileMetaData) -> int:
    """Count the rows of a file, as pyarrow does: by row group, and not by the total in the footer."""
    return sum(abs(metadata.row_group(index).num_rows) for index in range(metadata.num_row_groups))


def _rows_per_batch(path: Path, metadata: pq.FileMetaData, column: str) -> int:
    """Compute how many rows to read at a time, so that a long image repeated in every row does not fill the memory.

    A small file can contain such rows, because it stores equal values once; no value is longer than its page. Raises
    DataError for pages that could fill the memory.
    """
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, largest_page(path, metadata, column))))


def _refuse_lossy(split: _Split, kind: str, where: str) -> None:
    """Raise DataError if the first image has lossy compression, because its pixels are then not those of `kind`."""
    _, _, encoded = next(_encoded_images(split, np.array([0])))
    if encoded is not None and encoded.startswith((b"\xff\xd8", b"RIFF")):
        problem = f"{split.files[0]} contains JPEG or WEBP images, whose pixels are not those of {kind}"
        raise DataError(f"{where}: {problem}; give kind parquet")


@contextmanager
def _open_image(encoded: bytes | None, path: Path, row: int) -> Iterator[Image.Image]:
    """Open an encoded image. Raises DataError, which names its file and row, for any error while it is open."""
    if encoded is None:
        raise DataError(f"{path}: no image bytes in row {row}; write the file again with the encoded images in it")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors for a damaged image
        fix = "copy the file again, or write encoded images such as PNG, not pixels"
        raise DataError(f"{path}: the image in row {row} cannot be decoded ({error}); {fix}") from error


def _decode(encoded: bytes | None, path: Path, row: int, shape: tuple[int, int]) -> Images:
    """Decode one image to RGB (3, H, W). Raises DataError if its size is not `shape` (H, W) or it cannot be decoded.

    The size is read from the header, so that an image of another size is never decoded.
    """
    with _open_image(encoded, path, row) as image:
        mode, size = image.mode, (image.height, image.width)
        pixels = np.asarray(image.convert("RGB")) if size == shape else None
    if pixels is None:
        sizes = [f"{width}x{height}" for height, width in (size, shape)]
        raise DataError(f"{path}: the image in row {row} is {sizes[0]}, not {sizes[1]}; make all images the same size")
    if mode.startswith(DEEP):
        raise DataError(
            f"{path}: the image in row {row} has more than 8 bits per channel (mode {mode}); convert it to 8 bits"
        )
    return pixels.transpose(2, 0, 1)

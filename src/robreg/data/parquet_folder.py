"""Read folders of Parquet files that contain encoded images, in the layout of Hugging Face data sets."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from robreg.data.errors import DataError
from robreg.data.source import OFFICIAL, Images, Labels, Settings, Source, Stream, config_key, stream_images

BATCH_ROWS, BATCH_BYTES = 256, 2**30  # limits on the encoded images that are in memory at a time
LOSSLESS = ("cifar10", "cifar100")  # kinds whose official images never had lossy compression
LABEL_NAMES = ("label", "fine_label")
MAX_ROWS = 2**24  # of a file, because a few bytes can claim any number of equal rows
MAX_PIXELS = 2**22  # of an image, because a small file can claim thousands of times as many
GRAY = ("1", "L", "LA")  # Pillow's modes of images without colour
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # without EPS, for which Pillow would run Ghostscript
DEEP = ("I", "F")  # first letters of Pillow's modes with more than 8 bits per channel


def open_folder(folder: Path, settings: Settings) -> Source:
    """Open a folder with train*.parquet and test*.parquet (or valid*.parquet), one or several files for each split.

    The images are the struct column with a `bytes` field. The labels are the column `label_column` if it is set,
    otherwise label or fine_label, otherwise the only column of whole numbers. The number of classes is that of the
    official data set, or one more than the largest training label. Raises DataError if the files do not fit this.
    """
    train = _find_files(folder, ["train"], config_key(settings, "source"))
    test = _find_files(folder, ["test", "valid"], config_key(settings, "source"))
    train_labels, test_labels = _read_labels(train, settings), _read_labels(test, settings)
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

    return Source(train_labels, test_labels, classes, _class_names(train[0], settings, classes), read)


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
    """Open a Parquet file. Raises DataError, which names the file, for anything in it that pyarrow cannot read."""
    try:
        with pq.ParquetFile(path) as file:
            if sum(group.num_rows for group in _row_groups(file.metadata)) > MAX_ROWS:
                raise DataError(f"{path}: it has more than {MAX_ROWS} rows; split it into several files")
            yield file
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{path}: not a readable Parquet file ({error}); copy it again") from error


def _read_labels(files: Sequence[Path], settings: Settings) -> Labels:
    """Read the labels (N,) of a split. Raises DataError if a label is null or negative."""
    parts = []
    for path in files:
        with _open_file(path) as file:
            name = _label_column(file.schema_arrow, settings, path)
            column = file.read(columns=[name]).column(name)
            labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
        wrong = np.flatnonzero(labels < 0)
        if len(wrong):
            value = column[wrong[0]].as_py()
            raise DataError(f"{path}: label {value} in row {wrong[0]}; labels must be whole numbers from 0")
        parts.append(labels)
    return np.concatenate(parts)


def _label_column(schema: pa.Schema, settings: Settings, path: Path) -> str:
    """Choose the column of labels. Raises DataError unless exactly one column qualifies."""
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    chosen = settings.get("label_column")
    candidates = [chosen] if chosen else [name for name in LABEL_NAMES if name in integers] or integers
    if len(candidates) != 1 or candidates[0] not in integers:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        fix = f"name a column of whole numbers in {config_key(settings, 'label_column')}"
        raise DataError(f"{path}: cannot tell which column has the labels: {columns}; {fix}")
    return str(candidates[0])


def _class_names(path: Path, settings: Settings, classes: int) -> list[str] | None:
    """Read the names of the classes from Hugging Face's metadata; None if it has none."""
    with _open_file(path) as file:
        metadata = file.schema_arrow.metadata or {}
        name = _label_column(file.schema_arrow, settings, path)
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][name]["names"][:classes]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if len(names) == classes else None


def _read_headers(files: Sequence[Path], rows: Labels) -> tuple[tuple[int, int], bool]:
    """Read the headers of the images of `rows`. Returns the height and width of the first, and whether all are gray.

    Raises DataError if an image cannot be opened or has more than MAX_PIXELS pixels.
    """
    shape = None
    for path, row, encoded in _encoded_images(files, rows):
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


def _decode_rows(files: Sequence[Path], rows: Labels, shape: tuple[int, int], channels: int) -> Iterator[Images]:
    """Decode images, each to (channels, *shape); rows: sorted, numbered over all files. Raises DataError."""
    for path, row, encoded in _encoded_images(files, rows):
        yield _decode(encoded, path, row, shape)[:channels]


def _encoded_images(files: Sequence[Path], rows: Labels) -> Iterator[tuple[Path, int, bytes | None]]:
    """Yield file, row in the file and encoded image for each of `rows`, with one batch in memory at a time."""
    first = 0
    for path in files:
        start = first
        with _open_file(path) as file:
            column = f"{_image_column(file.schema_arrow, path)}.bytes"
            for batch in file.iter_batches(_rows_per_batch(file.metadata, column), columns=[column]):
                low, high = np.searchsorted(rows, [first, first + len(batch)])
                encoded = batch.column(0).field("bytes").take(pa.array(rows[low:high] - first))
                for row, image in zip(rows[low:high], encoded.to_pylist(), strict=True):
                    yield path, int(row) - start, image
                first += len(batch)


def _row_groups(metadata: pq.FileMetaData) -> list[pq.RowGroupMetaData]:
    """List the row groups of a file."""
    return [metadata.row_group(index) for index in range(metadata.num_row_groups)]


def _rows_per_batch(metadata: pq.FileMetaData, column: str) -> int:
    """Compute how many rows to read at a time, so that a long image repeated in every row does not fill the memory.

    A small file can contain such rows, because it stores equal values once. The sizes come from the file's footer,
    which cannot be verified before the images are read.
    """
    parts = [group.column(index) for group in _row_groups(metadata) for index in range(group.num_columns)]
    longest = max((part.total_uncompressed_size for part in parts if part.path_in_schema == column), default=1)
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, longest)))


def _refuse_lossy(files: Sequence[Path], kind: str, where: str) -> None:
    """Raise DataError if the first image has lossy compression, because its pixels are then not those of `kind`."""
    _, _, encoded = next(_encoded_images(files, np.array([0])))
    if encoded is not None and encoded.startswith((b"\xff\xd8", b"RIFF")):
        raise DataError(
            f"{where}: {files[0]} contains JPEG or WEBP images, whose pixels are not those of {kind}; give kind parquet"
        )


def _image_column(schema: pa.Schema, path: Path) -> str:
    """Choose the column of images, a struct with a binary field `bytes`. Raises DataError unless there is just one."""
    candidates = [field.name for field in schema if _is_image_type(field.type)]
    if len(candidates) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{path}: expected one column of images, a struct with a binary field bytes, but found {columns}; "
            "give it exactly one"
        )
    return str(candidates[0])


def _is_image_type(kind: pa.DataType) -> bool:
    """Return whether a column's type is that of Hugging Face images."""
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    encoded = kind.field("bytes").type
    return bool(pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded))


@contextmanager
def _open_image(encoded: bytes | None, path: Path, row: int) -> Iterator[Image.Image]:
    """Open an encoded image. Raises DataError, which names its file and row, for any error while it is open."""
    if encoded is None:
        raise DataError(f"{path}: no image bytes in row {row}; write the file again with the encoded images in it")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise many types of errors for a damaged image
        raise DataError(f"{path}: the image in row {row} cannot be decoded ({error}); copy the file again") from error


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

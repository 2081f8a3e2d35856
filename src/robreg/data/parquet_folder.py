"""Folders of Parquet files that hold encoded images, in the layout of Hugging Face data sets."""

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

from robreg.data.source import OFFICIAL, DataError, Images, Labels, Settings, Source, Stream, config_key, stream_images

BATCH_ROWS, BATCH_BYTES = 256, 2**30  # encoded images in memory at a time
LOSSLESS = ("cifar10", "cifar100")  # kinds whose official pixels have never been compressed with loss
LABEL_NAMES = ("label", "fine_label")
MAX_ROWS = 2**24  # of a file; a few bytes can claim any number of equal rows
MAX_PIXELS = 2**22  # of an image; a small file can claim thousands of times as many
GRAY = ("1", "L", "LA")  # Pillow's modes
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # not EPS: Pillow would run Ghostscript
DEEP = ("I", "F")  # beginnings of Pillow's modes with more than 8 bits


def open_folder(folder: Path, settings: Settings) -> Source:
    """Open a folder with train*.parquet and test*.parquet (else valid*.parquet), each split in one file or several.

    Images are the struct column with a `bytes` field; labels the column `label_column`, else label or fine_label,
    else the only column of whole numbers. There are as many classes as the largest training label says.
    """
    train = _find_files(folder, ["train"], config_key(settings, "source"))
    test = _find_files(folder, ["test", "valid"], config_key(settings, "source"))
    train_labels, test_labels = _read_labels(train, settings), _read_labels(test, settings)
    kind = settings["kind"]
    classes = OFFICIAL[kind].classes if kind in OFFICIAL else int(train_labels.max(initial=-1)) + 1

    def read(train_rows: Labels, test_rows: Labels) -> tuple[Stream, Stream]:
        if kind in LOSSLESS:
            _refuse_lossy(train, kind, config_key(settings, "kind"))
        train_size, train_gray = _probe(train, train_rows)
        test_size, test_gray = _probe(test, test_rows)
        channels = 1 if train_gray and test_gray and kind != "tiny-imagenet" else 3
        return (
            stream_images(_decode_rows(train, train_rows, train_size, channels), (channels, *train_size)),
            stream_images(_decode_rows(test, test_rows, test_size, channels), (channels, *test_size)),
        )

    return Source(train_labels, test_labels, classes, _class_names(train[0], settings, classes), read)


def _find_files(folder: Path, prefixes: Sequence[str], where: str) -> list[Path]:
    """Find the Parquet files of a split, in order of name: those of the first prefix that any file name starts with."""
    for prefix in prefixes:
        files = [path for path in folder.rglob("*.parquet") if path.name.startswith(prefix)]
        if files:
            return sorted(files, key=lambda path: (path.name, path))
    wanted = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
    raise DataError(f"{where}: no {wanted} in {folder}; put the split's files there")


@contextmanager
def _open_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; whatever pyarrow cannot read becomes a DataError that names the file."""
    try:
        with pq.ParquetFile(path) as file:
            if sum(group.num_rows for group in _groups(file.metadata)) > MAX_ROWS:
                raise DataError(f"{path}: more than {MAX_ROWS} rows; cut it into several files")
            yield file
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{path}: not a readable Parquet file ({error}); copy it again") from error


def _read_labels(files: Sequence[Path], settings: Settings) -> Labels:
    """Read the labels (N,) of a split; raises DataError at a null or negative one."""
    parts = []
    for path in files:
        with _open_file(path) as file:
            name = _label_column(file.schema_arrow, settings, path)
            column = file.read(columns=[name]).column(name)
            labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
        wrong = np.flatnonzero(labels < 0)
        if len(wrong):
            found = column[wrong[0]].as_py()
            raise DataError(f"{path}: label {found} in row {wrong[0]}; labels are whole numbers from 0")
        parts.append(labels)
    return np.concatenate(parts)


def _label_column(schema: pa.Schema, settings: Settings, path: Path) -> str:
    """Choose the column of labels; raises DataError unless exactly one can be meant."""
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    wanted = settings.get("label_column")
    found = [wanted] if wanted else [name for name in LABEL_NAMES if name in integers] or integers
    if len(found) != 1 or found[0] not in integers:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        mend = f"name one of whole numbers in {config_key(settings, 'label_column')}"
        raise DataError(f"{path}: cannot tell the column of labels among {columns}; {mend}")
    return str(found[0])


def _class_names(path: Path, settings: Settings, classes: int) -> list[str] | None:
    """Read the names of the classes from Hugging Face's metadata, None where there are none."""
    with _open_file(path) as file:
        metadata = file.schema_arrow.metadata or {}
        name = _label_column(file.schema_arrow, settings, path)
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][name]["names"][:classes]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if len(names) == classes else None


def _probe(files: Sequence[Path], rows: Labels) -> tuple[tuple[int, int], bool]:
    """Look at the headers of the images of `rows`: height and width of the first, and whether all are gray."""
    shape = None
    for path, row, encoded in _encoded_images(files, rows):
        with _opened(encoded, path, row) as image:
            size, gray = (image.height, image.width), image.mode in GRAY
        shape = shape or size
        if math.prod(shape) > MAX_PIXELS:
            raise DataError(f"{path}: the image in row {row} has more than {MAX_PIXELS} pixels; make images smaller")
        if not gray:
            return shape, False
    assert shape is not None  # an empty split is refused before
    return shape, True


def _decode_rows(files: Sequence[Path], rows: Labels, shape: tuple[int, int], channels: int) -> Iterator[Images]:
    """Decode the images of `rows`, sorted and counted over all files, each to (channels, *shape); raises DataError."""
    for path, row, encoded in _encoded_images(files, rows):
        yield _decode(encoded, path, row, shape)[:channels]


def _encoded_images(files: Sequence[Path], rows: Labels) -> Iterator[tuple[Path, int, bytes | None]]:
    """Yield file, row in the file and encoded image of each of `rows`, a batch in memory at a time."""
    first = 0
    for path in files:
        start = first
        with _open_file(path) as file:
            column = f"{_image_column(file.schema_arrow, path)}.bytes"
            for batch in file.iter_batches(_batch_rows(file.metadata, column), columns=[column]):
                low, high = np.searchsorted(rows, [first, first + len(batch)])
                encoded = batch.column(0).field("bytes").take(pa.array(rows[low:high] - first))
                for row, image in zip(rows[low:high], encoded.to_pylist(), strict=True):
                    yield path, int(row) - start, image
                first += len(batch)


def _groups(metadata: pq.FileMetaData) -> list[pq.RowGroupMetaData]:
    return [metadata.row_group(index) for index in range(metadata.num_row_groups)]


def _batch_rows(metadata: pq.FileMetaData, column: str) -> int:
    """Say how many rows to read at a time: a file may hold a long image once and say that each row has it.

    Believes the file's footer, of which nobody knows whether it is true before the images are read.
    """
    parts = [group.column(index) for group in _groups(metadata) for index in range(group.num_columns)]
    longest = max((part.total_uncompressed_size for part in parts if part.path_in_schema == column), default=1)
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, longest)))


def _refuse_lossy(files: Sequence[Path], kind: str, where: str) -> None:
    """Refuse to call a set CIFAR whose first image has been through lossy compression: its pixels are others."""
    _, _, encoded = next(_encoded_images(files, np.array([0])))
    if encoded is not None and encoded.startswith((b"\xff\xd8", b"RIFF")):
        raise DataError(
            f"{where}: {files[0]} holds JPEG or WEBP images, which are not {kind}'s pixels; give kind parquet"
        )


def _image_column(schema: pa.Schema, path: Path) -> str:
    """Choose the column of images: the one struct with a binary field `bytes`; raises DataError for none or several."""
    found = [field.name for field in schema if _is_image(field.type)]
    if len(found) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(f"{path}: not one column of images, a struct with binary bytes, among {columns}; make it one")
    return str(found[0])


def _is_image(kind: pa.DataType) -> bool:
    """Tell whether a column's type is that of Hugging Face images."""
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    encoded = kind.field("bytes").type
    return bool(pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded))


@contextmanager
def _opened(encoded: bytes | None, path: Path, row: int) -> Iterator[Image.Image]:
    """Open an encoded image; whatever goes wrong with it becomes a DataError that names its place."""
    if encoded is None:
        raise DataError(f"{path}: no image bytes in row {row}; make the file again with the images inside")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise many kinds at a corrupt image
        raise DataError(f"{path}: the image in row {row} cannot be decoded ({error}); copy the file again") from error


def _decode(encoded: bytes | None, path: Path, row: int, shape: tuple[int, int]) -> Images:
    """Decode one image to RGB (3, H, W), unless its header has another size than shape, (H, W); raises DataError."""
    with _opened(encoded, path, row) as image:
        mode, size = image.mode, (image.height, image.width)
        pixels = np.asarray(image.convert("RGB")) if size == shape else None
    if pixels is None:
        sizes = [f"{width}x{height}" for height, width in (size, shape)]
        raise DataError(f"{path}: the image in row {row} is {sizes[0]}, not {sizes[1]}; make all of one size")
    if mode.startswith(DEEP):
        raise DataError(f"{path}: the image in row {row} has more than 8 bits (mode {mode}); convert it to 8")
    return pixels.transpose(2, 0, 1)

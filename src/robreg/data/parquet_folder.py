"""Read folders of Parquet files that contain encoded images, in the layout of Hugging Face data sets."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robreg.data.classes import MAX_NAMES, refuse_untrained
from robreg.data.columns import check_same_columns, choose_columns
from robreg.data.encoded_images import Encoded, stream_splits
from robreg.data.errors import MAX_NAME, DataError, safe_names
from robreg.data.parquet_pages import largest_page
from robreg.data.source import MAX_ROWS, OFFICIAL, Columns, Labels, Settings, Source, Stream, config_key

BATCH_ROWS, BATCH_BYTES = 256, 2**26  # limits on the encoded images that are in memory at a time
_BUFFER = 2**16  # bytes of a file that pyarrow reads at a time, beyond which a page counts
LOSSLESS = ("cifar10", "cifar100")  # kinds whose official images never had lossy compression


class _Split(NamedTuple):
    """The files of a split, and the path of the encoded images in them, such as image.bytes."""

    files: list[Path]
    column: str


def open_folder(folder: Path, settings: Settings) -> Source:
    """Open a folder with train*.parquet and test*.parquet (or valid*.parquet), one or several files for each split.

    `choose_columns` says which columns have images and labels; they must be the same in all files. Labels are whole
    numbers from label_offset, by default 0, or the names of classes, which are numbered in their order. The number of
    classes is that of the official data set, or that of the names or of the numbers up to the largest training label.
    Raises DataError if the files do not fit this.
    """
    train_files = _find_files(folder, ["train"], config_key(settings, "source"))
    test_files = _find_files(folder, ["test", "valid"], config_key(settings, "source"))
    with _open_file(train_files[0]) as file:
        columns = choose_columns(file.schema_arrow, settings, train_files[0])
    read_labels = _read_names if columns.labels.text else _read_numbers
    train_labels, test_labels, names = read_labels(train_files, test_files, settings, columns)
    train, test = (_Split(files, columns.images.path) for files in (train_files, test_files))
    kind = settings["kind"]
    classes = OFFICIAL[kind].classes if kind in OFFICIAL else int(train_labels.max(initial=-1)) + 1
    names = names[:classes] if names is not None and len(names) >= classes else None

    def read(train_rows: Labels, test_rows: Labels) -> tuple[Stream, Stream]:
        if kind in LOSSLESS:
            _refuse_lossy(train, kind, config_key(settings, "kind"))
        return stream_splits(
            lambda: _encoded_images(train, train_rows),
            lambda: _encoded_images(test, test_rows),
            colour=kind == "tiny-imagenet",
        )

    return Source(train_labels, test_labels, classes, names, read, columns)


def _find_files(folder: Path, prefixes: Sequence[str], where: str) -> list[Path]:
    """List the Parquet files of a split, sorted by name: those with the first of `prefixes` that any file name has."""
    for prefix in prefixes:
        files = [path for path in folder.rglob("*.parquet") if path.name.startswith(prefix)]
        if files:
            return sorted(files, key=lambda path: (path.name, path))
    patterns = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
    raise DataError(f"{where}: no {patterns} in {folder}; put the split's files there")


@contextmanager
def _open_file(path: Path, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, whose pages are then read one by one; dictionaries: the columns to read as dictionaries.

    Raises DataError, which names the file, for anything in it that pyarrow cannot read, and for a file that is none,
    such as a pipe, which could be read for ever.
    """
    if not path.is_file():
        raise DataError(f"{path}: not a regular file; put the file itself there")
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, read_dictionary=list(dictionaries)) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{path}: not a readable Parquet file ({error}); copy it again") from error


def _read_numbers(
    train: Sequence[Path], test: Sequence[Path], settings: Settings, columns: Columns
) -> tuple[Labels, Labels, list[str] | None]:
    """Read the labels (N,) of both splits, less the label_offset, and Hugging Face's names of the classes, if any.

    Raises DataError if a label is null or less than the label_offset.
    """
    offset = settings.get("label_offset", 0)

    def read(files: Sequence[Path]) -> Labels:
        parts = [np.empty(0, np.int64)]
        for path, start, column in _label_columns(files, settings, columns):
            labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
            wrong = np.flatnonzero(labels < offset)
            if len(wrong):
                where = f"row {start + wrong[0]} of the column {columns.labels.name}"
                problem = f"label {column[wrong[0]].as_py()} in {where}; labels must be whole numbers from {offset}"
                key = config_key(settings, "label_offset")
                raise DataError(f"{path}: {problem}{f', because {key} is {offset}' if offset else ''}")
            parts.append(labels - offset)
        return np.concatenate(parts)

    names = _class_names(columns)
    return read(train), read(test), None if names is None else names[offset:]


def _read_names(
    train: Sequence[Path], test: Sequence[Path], settings: Settings, columns: Columns
) -> tuple[Labels, Labels, list[str]]:
    """Read labels (N,) that are names of classes, as numbers in the order of the training split's names.

    Returns the labels of both splits and the names. Raises DataError for a name that only the test split has.
    """
    if "label_offset" in settings:
        problem = f"the labels in the column {columns.labels.name} are text and have no offset; remove this key"
        raise DataError(f"{config_key(settings, 'label_offset')}: {problem}")
    (train_labels, train_names), (test_labels, test_names) = (
        _read_texts(files, settings, columns) for files in (train, test)
    )
    number = {name: label for label, name in enumerate(sorted(train_names))}
    refuse_untrained(test_names, number, config_key(settings, "source"))
    train_labels, test_labels = (
        np.array([number[name] for name in names], dtype=np.int64)[labels]
        for labels, names in ((train_labels, train_names), (test_labels, test_names))
    )
    return train_labels, test_labels, safe_names(number)


def _read_texts(files: Sequence[Path], settings: Settings, columns: Columns) -> tuple[Labels, list[str]]:
    """Read the labels of a split that are text, as row numbers (N,) in the list of their distinct texts.

    Raises DataError for a label that is null or empty, or has more than MAX_NAME letters, and for more than MAX_NAMES.
    """
    number, parts = dict[str, int](), [np.empty(0, np.int64)]
    key = config_key(settings, "label_column")
    for path, first_row, column in _label_columns(files, settings, columns):
        start = first_row
        for chunk in column.chunks:
            rows = chunk.indices.fill_null(-1).to_numpy().astype(np.int64)
            used, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
            texts = chunk.dictionary.take(pa.array(used, mask=used < 0))
            sizes = pc.utf8_length(texts).fill_null(0).to_numpy()
            wrong = np.flatnonzero((sizes == 0) | (sizes > MAX_NAME))
            if len(wrong):
                where = f"row {start + first[wrong[0]]} of the column {columns.labels.name}"
                fix = f"give every image the name of its class, or name another column in {key}"
                raise DataError(f"{path}: no text of 1 to {MAX_NAME} letters in {where}; {fix}")
            labels = [number.setdefault(text, len(number)) for text in texts.to_pylist()]
            if len(number) > MAX_NAMES:
                problem = f"the column {columns.labels.name} has more than {MAX_NAMES} different texts"
                raise DataError(f"{path}: {problem}; name the column of labels in {key}")
            parts.append(np.array(labels, dtype=np.int64)[inverse])
            start += len(chunk)
    return np.concatenate(parts), list(number)


def _label_columns(
    files: Sequence[Path], settings: Settings, columns: Columns
) -> Iterator[tuple[Path, int, pa.ChunkedArray]]:
    """Yield the labels of a split as they are stored, one row group at a time, after its file and its first row in it.

    Texts come with their dictionary, because a small file can contain a long text in every row. Raises DataError for
    other columns, too many rows, and pages that could fill the memory.
    """
    rows = 0
    for path in files:
        with _open_file(path, [columns.labels.path] if columns.labels.text else []) as file:
            check_same_columns(choose_columns(file.schema_arrow, settings, path), columns)
            rows += _count_rows(file.metadata)
            if rows > MAX_ROWS:
                raise DataError(f"{path}: with it, its split has more than {MAX_ROWS} rows; leave some of them out")
            largest_page(path, file.metadata, columns.labels.path)
            start = 0
            for group in range(file.metadata.num_row_groups):
                column = file.read_row_group(group, columns=[columns.labels.path]).column(columns.labels.path)
                yield path, start, column
                start += len(column)


def _class_names(columns: Columns) -> list[str] | None:
    """Read the names of the classes (ClassLabel) from Hugging Face's metadata; None if it has none."""
    with _open_file(columns.file) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][columns.labels.name]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):  # of metadata in another layout, or nested without end
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return safe_names(names[:MAX_NAMES])


def _encoded_images(split: _Split, rows: Labels) -> Iterator[Encoded]:
    """Yield the images of `rows`, sorted and numbered over all files, with one batch in memory at a time.

    Raises DataError for a row without an image.
    """
    first = 0
    for path in split.files:
        start = first
        with _open_file(path) as file:
            for batch in file.iter_batches(_rows_per_batch(path, file.metadata, split.column), columns=[split.column]):
                low, high = np.searchsorted(rows, [first, first + len(batch)])
                column = batch.column(0)
                values = column.field("bytes") if pa.types.is_struct(column.type) else column
                for row in rows[low:high]:  # one copy at a time
                    content = values[int(row) - first].as_py()
                    if content is None:
                        raise DataError(
                            f"{path}: no image bytes in row {row - start}; write the file again with the encoded "
                            "images in it"
                        )
                    yield Encoded(f"{path}: the image in row {row - start}", content)
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
    if next(_encoded_images(split, np.array([0]))).content.startswith((b"\xff\xd8", b"RIFF")):
        problem = f"{split.files[0]} contains JPEG or WEBP images, whose pixels are not those of {kind}"
        raise DataError(f"{where}: {problem}; give kind parquet")

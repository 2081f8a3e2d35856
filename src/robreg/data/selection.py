"""Open a source (the digits, an archive or a folder), check it, and choose a subset of it."""

import logging
from pathlib import Path

import numpy as np

from robreg.data import cifar, image_folder, parquet_folder, tiny_imagenet
from robreg.data.classes import check_guess, check_subset, check_training_images, describe_classes, other_column
from robreg.data.digits import open_digits
from robreg.data.download import fetch
from robreg.data.errors import DataError
from robreg.data.source import (
    FOLDERS,
    KINDS,
    OFFICIAL,
    Labels,
    Selection,
    Settings,
    Source,
    Stream,
    config_key,
    format_shape,
)
from robreg.data.subset import stratified_subset

log = logging.getLogger(__name__)


def read_selection(settings: Settings, *, data_root: Path) -> Selection:
    """Open the data set that `settings` describe and choose its subset; the images are read later, from its streams.

    Logs which columns of Parquet files have the images and labels, and how many chosen images each class has. Raises
    DataError if the data cannot be used, as reading from the streams does.
    """
    source = _open_source(settings, data_root)
    _log_columns(source, settings)
    _check_labels(source, settings)
    train_rows = _choose(source.train_labels, settings, "max_train")
    test_rows = _choose(source.test_labels, settings, "max_test")
    labels = source.train_labels[train_rows], source.test_labels[test_rows]
    check_subset(source, labels[0], settings)
    for split, chosen in zip(("training", "test"), labels, strict=True):
        log.info("%s: the %s split has %s", config_key(settings, "source"), split, describe_classes(chosen, source))
    train, test = source.read(train_rows, test_rows)
    _check_shapes(train, test, settings)
    return Selection(train, labels[0], test, labels[1], source.classes, source.class_names, source.columns)


def _log_columns(source: Source, settings: Settings) -> None:
    """Log which columns have the images and the labels, and why; warn of a key for columns where there are none."""
    if source.columns is not None:
        for what, column in (("images", source.columns.images), ("labels", source.columns.labels)):
            where = config_key(settings, "source")
            log.info("%s: the %s come from the column %s, because %s", where, what, column.name, column.reason)
        return
    for field in ("image_column", "label_column", "label_offset"):
        if field in settings:
            log.warning("%s: only Parquet files have columns; remove this key", config_key(settings, field))


def _check_shapes(train: Stream, test: Stream, settings: Settings) -> None:
    """Raise DataError for splits of different shapes, images without the kind's shape, and a crop that does not fit."""
    where, kind, crop = config_key(settings, "source"), settings["kind"], settings.get("crop")
    shape = format_shape(train.shape)
    if train.shape != test.shape:
        raise DataError(
            f"{where}: training images are {shape}, test images {format_shape(test.shape)}; "
            "make all images the same size"
        )
    if kind in OFFICIAL and train.shape != OFFICIAL[kind].shape:
        expected = format_shape(OFFICIAL[kind].shape)
        raise DataError(f"{where}: images of kind {kind} are {expected}, not {shape}; give kind parquet")
    if crop is not None and not 1 <= crop <= min(train.shape[1:]):
        fix = f"give 1 to {min(train.shape[1:])}, or null for the whole image"
        raise DataError(f"{config_key(settings, 'crop')}: {crop} does not fit into images {shape}; {fix}")


def _choose(labels: Labels, settings: Settings, field: str) -> Labels:
    """Choose the rows of a split: all, or a stratified subset of `settings[field]` rows, drawn with subset_seed."""
    limit = settings.get(field)
    if limit is not None and limit < 1:
        raise DataError(f"{config_key(settings, field)}: {limit} leaves no example; give at least 1, or null for all")
    if limit is None or limit >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    return stratified_subset(labels, limit, settings["subset_seed"])


def _check_labels(source: Source, settings: Settings) -> None:
    """Raise DataError for an empty split, labels outside 0..classes-1, one class, or an incomplete official set."""
    check_guess(source, settings)
    where, kind, column = config_key(settings, "source"), settings["kind"], other_column(source, settings)
    for split, labels in (("training", source.train_labels), ("test", source.test_labels)):
        if len(labels) == 0:
            raise DataError(f"{where}: the {split} split is empty; give a source with examples in both splits")
        wrong = np.flatnonzero((labels < 0) | (labels >= source.classes))
        if len(wrong):
            problem = f"label {labels[wrong[0]]} in row {wrong[0]} of the {split} split"
            fix = f"correct the labels of the source{column}"
            raise DataError(f"{where}: {problem} is outside 0..{source.classes - 1}; {fix}")
    if source.classes < 2:
        only = source.class_names[0] if source.class_names else "0"
        raise DataError(f"{where}: all training labels are {only}; give a source with two classes or more{column}")
    if kind in OFFICIAL:
        _check_official(source, settings)
    check_training_images(source, settings)


def _check_official(source: Source, settings: Settings) -> None:
    """Raise DataError unless a published data set is complete, or marked as incomplete, and has all its classes."""
    where, kind = config_key(settings, "source"), settings["kind"]
    counts, official = (len(source.train_labels), len(source.test_labels)), OFFICIAL[kind]
    expected = official.train, official.test
    incomplete = settings.get("incomplete") and counts[0] <= expected[0] and counts[1] <= expected[1]
    if counts != expected and not incomplete:
        raise DataError(f"{where}: {kind} has {expected} training and test images, not {counts}; give kind parquet")
    present = len(np.unique(source.train_labels))
    if present != official.classes:
        raise DataError(
            f"{where}: {kind} has {official.classes} classes, the training labels have {present}; give kind parquet"
        )


def _open_source(settings: Settings, data_root: Path) -> Source:
    """Open the source that `settings` name, without reading its images. Raises DataError if there is no such source."""
    kind, source, where = settings["kind"], settings.get("source"), config_key(settings, "source")
    if kind not in KINDS:
        raise DataError(f"{config_key(settings, 'kind')}: unknown kind {kind!r}; give one of {', '.join(KINDS)}")
    if kind == "digits":
        if source is not None:
            raise DataError(f"{where}: kind digits is bundled with scikit-learn; leave source out, or give null")
        return open_digits(where)
    if not source or (source == "download" and kind in FOLDERS):
        raise DataError(f"{where}: {source!r} is not a source for kind {kind}; give a path relative to data_root")
    if source == "download":
        return _open_download(settings, data_root / "download")
    path = _locate(source, data_root, where)
    return _open_folder(path, settings) if path.is_dir() else _open_file(path, settings)


def _locate(source: str, data_root: Path, where: str) -> Path:
    """Return the path of a source below data_root, or of one that is absolute. Raises DataError if there is none.

    A relative source cannot leave data_root by dots. It can by links, which only the user puts into data_root, as the
    cache of Hugging Face does; of what a link leads to, only folders and regular files are read.
    """
    path = data_root / source
    if Path(source).is_absolute():
        log.info("%s: %s is an absolute path: it is read although it need not be in data_root", where, source)
    elif ".." in path.relative_to(data_root).parts:
        fix = "put the data below data_root, or give an absolute path"
        raise DataError(f"{where}: {source} may lead out of data_root, {data_root}, because of its '..'; {fix}")
    if not path.exists():
        fix = f"put it there or pass --config data_root=<folder that holds {source}>"
        raise DataError(f"{where}: no folder or file {path}; {fix}")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{where}: {path} is neither a folder nor a regular file; give one of them")
    return path


def _open_download(settings: Settings, folder: Path) -> Source:
    """Open the official archive of the kind, which is downloaded into `folder` if it is not there."""
    kind, where = settings["kind"], config_key(settings, "source")
    if kind == "tiny-imagenet":
        return tiny_imagenet.open_layout(fetch(tiny_imagenet.ARCHIVE, folder, where), settings)
    return cifar.open_archive(fetch(cifar.remote_archive(kind), folder, where), kind)


def _open_file(path: Path, settings: Settings) -> Source:
    """Open an archive that is a local file. Raises DataError for a kind that needs a folder."""
    kind = settings["kind"]
    if kind in FOLDERS:
        content = "the .parquet files" if kind == "parquet" else "the folders train and test"
        raise DataError(
            f"{config_key(settings, 'source')}: {path} is a file; kind {kind} needs the folder that contains {content}"
        )
    if kind == "tiny-imagenet":
        return tiny_imagenet.open_layout(path, settings)
    return cifar.open_archive(path, kind)


def _open_folder(path: Path, settings: Settings) -> Source:
    """Open a folder of Parquet files or of images, or an unpacked Tiny-ImageNet."""
    if settings["kind"] == "imagefolder":
        return image_folder.open_folder(path, settings)
    if settings["kind"] == "tiny-imagenet" and not any(path.rglob("*.parquet")):
        return tiny_imagenet.open_layout(path, settings)
    return parquet_folder.open_folder(path, settings)

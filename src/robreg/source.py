"""Open a source (bundled digits, a CIFAR archive, a folder of Parquet files), check it and choose the subset."""

from pathlib import Path

import numpy as np

from robreg.raw import (
    CIFAR_CLASSES,
    CIFAR_COUNTS,
    CIFAR_SHAPE,
    Arrays,
    DataError,
    Labels,
    Settings,
    Source,
    from_arrays,
    key,
    size,
)

DIGITS_TEST = 500


def read(settings: Settings, *, data_root: Path) -> Arrays:
    """Read the data set that `settings` describe, subset included; raises DataError."""
    source = _open_source(settings, data_root)
    _check_labels(source, settings)
    train_rows = _choose(source.train_labels, settings, "max_train")
    test_rows = _choose(source.test_labels, settings, "max_test")
    train, test = source.read(train_rows, test_rows)
    where, kind = key(settings, "source"), settings["kind"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{where}: training images are {size(train)}, test images {size(test)}; make all of one size")
    if kind in CIFAR_CLASSES and train.shape[1:] != CIFAR_SHAPE:
        raise DataError(f"{where}: images of kind {kind} are 3x32x32, not {size(train)}; give kind parquet")
    labels = source.train_labels[train_rows], source.test_labels[test_rows]
    return Arrays(train, labels[0], test, labels[1], source.classes, source.class_names)


def _choose(labels: Labels, settings: Settings, field: str) -> Labels:
    """Choose the rows of a split: all, or a stratified subset of `settings[field]` that depends on nothing but seed."""
    limit = settings.get(field)
    if limit is not None and limit < 1:
        raise DataError(f"{key(settings, field)}: {limit} leaves no example; give at least 1, or null for all")
    if limit is None or limit >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    return stratified(labels, limit, settings["subset_seed"])


def stratified(labels: Labels, n: int, seed: int) -> Labels:
    """Choose n rows in the proportions of the classes, by largest remainder (ties: the lower class).

    labels (N,), 1 <= n <= N; returns sorted rows (n,).
    """
    if not 1 <= n <= len(labels):
        raise ValueError(f"cannot choose {n} of {len(labels)} rows")
    classes, counts = np.unique(labels, return_counts=True)
    share, remainder = np.divmod(n * counts, len(labels))
    share[np.argsort(-remainder, kind="stable")[: n - share.sum()]] += 1
    rng = np.random.RandomState(seed)  # numpy promises this stream for ever; a Generator's may change
    rows = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def _check_labels(source: Source, settings: Settings) -> None:
    """Refuse an empty split, a label outside 0..classes-1, and a CIFAR that is not complete."""
    where, kind = key(settings, "source"), settings["kind"]
    for split, labels in (("training", source.train_labels), ("test", source.test_labels)):
        if len(labels) == 0:
            raise DataError(f"{where}: the {split} split is empty; give a source with examples in both splits")
        wrong = np.flatnonzero((labels < 0) | (labels >= source.classes))
        if len(wrong):
            found = f"label {labels[wrong[0]]} in row {wrong[0]} of the {split} split"
            raise DataError(f"{where}: {found} is outside 0..{source.classes - 1}; correct the labels of the source")
    if source.classes < 2:
        raise DataError(f"{where}: all training labels are 0; give a source with two classes or more")
    counts = len(source.train_labels), len(source.test_labels)
    if kind in CIFAR_COUNTS and counts != CIFAR_COUNTS[kind]:
        raise DataError(
            f"{where}: {kind} has {CIFAR_COUNTS[kind]} training and test images, not {counts}; give kind parquet"
        )
    present = len(np.unique(source.train_labels))
    if kind in CIFAR_CLASSES and present != CIFAR_CLASSES[kind]:
        raise DataError(
            f"{where}: {kind} has {CIFAR_CLASSES[kind]} classes, the training labels have {present}; give kind parquet"
        )


def _open_source(settings: Settings, data_root: Path) -> Source:
    """Open the source that `settings` name, its images not yet read; raises DataError."""
    kind, source, where = settings["kind"], settings.get("source"), key(settings, "source")
    if kind not in ("digits", "parquet", *CIFAR_CLASSES):
        raise DataError(f"{key(settings, 'kind')}: unknown kind {kind!r}; give digits, cifar10, cifar100 or parquet")
    if kind == "digits":
        if source is not None:
            raise DataError(f"{where}: kind digits is bundled with scikit-learn; leave source out, or null")
        return _open_digits()
    if not source or (source == "download" and kind == "parquet"):
        raise DataError(f"{where}: {source!r} is no source for kind {kind}; give a path relative to data_root")
    if source == "download":
        from robreg import archive  # noqa: PLC0415  torchvision: three seconds that no other source needs

        return archive.open_archive(archive.download(kind, data_root / "download", where), kind)
    return _open_local(data_root / source, settings)


def _open_local(path: Path, settings: Settings) -> Source:
    """Open a folder of Parquet files, or an archive of a CIFAR, that lies under `data_root`."""
    kind, where = settings["kind"], key(settings, "source")
    if not path.exists():
        mend = f"put it there or pass --config data_root=<folder that holds {settings['source']}>"
        raise DataError(f"{where}: no folder or file {path}; {mend}")
    if path.is_dir():
        from robreg import parquet  # noqa: PLC0415  what a job does not use it does not import

        return parquet.open_folder(path, settings)
    if kind == "parquet":
        raise DataError(f"{where}: {path} is a file; kind parquet wants the folder that holds the .parquet files")
    from robreg import archive  # noqa: PLC0415  as above

    return archive.open_archive(path, kind)


def _open_digits() -> Source:
    """Open scikit-learn's handwritten digits: 1797 images 1x8x8, pixels round(255 v / 16), 500 of them for test."""
    # Here, because it costs two seconds that no other source needs.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    pixels, targets = load_digits(return_X_y=True)
    images = np.round(255 * pixels / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = targets.astype(np.int64)
    test = stratified(labels, DIGITS_TEST, seed=0)  # the split is part of the data set: subset_seed has no say
    train = np.setdiff1d(np.arange(len(labels)), test)
    names = [str(digit) for digit in range(10)]
    return from_arrays((images[train], labels[train]), (images[test], labels[test]), names)

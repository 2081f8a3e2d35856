"""Prepare a data set: read its source once, check it, and write it as arrays of uint8."""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robreg.data.dataset import ARRAYS, META_FILE, hash_meta
from robreg.data.encoded_images import describe_conversions
from robreg.data.errors import DataError
from robreg.data.selection import read_selection
from robreg.data.source import Images, Selection, Settings, config_key, format_shape
from robreg.tables.files import remove_leftovers, temporary_path

log = logging.getLogger(__name__)

RECORDED = ("kind", "source", "max_train", "max_test", "subset_seed", "crop")


def prepare(settings: Settings, *, data_root: Path, out: Path) -> None:
    """Read the data set that `settings` describe, and write its arrays and meta.json to the folder `out`.

    settings: kind, source, max_train, max_test, subset_seed; optionally crop, incomplete, image_column, label_column,
    label_offset, name. A local source is relative to `data_root`. The images are never all in memory at once. Files get
    their final names only after all are complete, meta.json last. Raises DataError if the data cannot be used.
    """
    chosen, where = read_selection(settings, data_root=data_root), config_key(settings, "source")
    out.mkdir(parents=True, exist_ok=True)
    with _unfinished(out) as unfinished:
        histogram, fingerprint = _write(chosen, unfinished, where)
        if converted := chosen.train_images.converted + chosen.test_images.converted:
            log.warning("%s: %s", where, describe_conversions(converted))
        meta = _describe(chosen, settings, histogram) | {"sha256": fingerprint}
        meta["meta_sha256"] = hash_meta(meta)
        (unfinished / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (out / META_FILE).unlink(missing_ok=True)  # so that the old file never describes new arrays
        for file in (*(f"{name}.npy" for name in ARRAYS), META_FILE):
            os.replace(unfinished / file, out / file)
    counts = f"{meta['n_train']} training and {meta['n_test']} test images {format_shape(meta['shape'])}"
    log.info("prepared %s: %s, %d classes", out, counts, chosen.classes)


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Yield a new folder in `out`, which is removed in the end, as those are that killed preparations left there."""
    folder = temporary_path(out / META_FILE)
    folder.mkdir(mode=0o700)
    try:
        remove_leftovers(out / META_FILE, folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def _write(chosen: Selection, folder: Path, where: str) -> tuple[npt.NDArray[np.int64], str]:
    """Write the four arrays in one pass, with one chunk in memory at a time.

    Returns how often each value occurs in each channel of the training images, (C, 256), and the SHA-256 of the bytes
    of all arrays, in the order of ARRAYS. The arrays are written as plain files. The pages of a memory map would count
    as memory of the job, and a full disk would end the job with a signal instead of an error.
    """
    digest, histogram = hashlib.sha256(), np.zeros((chosen.train_images.shape[0], 256), np.int64)
    splits = (("train", chosen.train_images, chosen.train_labels), ("test", chosen.test_images, chosen.test_labels))
    for split, images, labels in splits:
        shape, n = (len(labels), *images.shape), 0
        with Path(folder, f"{split}_images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in images.chunks:
                pixels, n = np.ascontiguousarray(chunk), n + len(chunk)
                file.write(pixels.data)
                digest.update(pixels.data)
                if split == "train":
                    histogram += _histogram(pixels)
        if n != len(labels):
            raise DataError(
                f"{where}: {n} images for {len(labels)} labels: the source changed while it was read; prepare it again"
            )
        np.save(Path(folder, f"{split}_labels.npy"), labels)
        digest.update(np.ascontiguousarray(labels).data)
    return histogram, digest.hexdigest()


def _histogram(images: Images) -> npt.NDArray[np.int64]:
    """Count how often each value occurs in each channel of images (N, C, H, W). Returns counts (C, 256)."""
    channels = np.moveaxis(images, 1, 0)
    return np.stack([np.bincount(pixels.ravel(), minlength=256) for pixels in channels])


def _describe(chosen: Selection, settings: Settings, histogram: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Make the content of meta.json, without hashes. Raises DataError if a channel of the training set is constant."""
    mean, std = _moments(histogram)
    if 0 in std:
        problem = f"channel {std.index(0)} of the training images is constant"
        raise DataError(
            f"{config_key(settings, 'source')}: {problem} and cannot be normalised; give a source where it varies"
        )
    return {
        **{field: settings.get(field) for field in RECORDED},
        **({"columns": chosen.columns.names()} if chosen.columns else {}),  # earlier versions did not record them
        **({"label_offset": settings["label_offset"]} if "label_offset" in settings else {}),
        "classes": chosen.classes,
        "class_names": chosen.class_names,
        "n_train": len(chosen.train_labels),
        "n_test": len(chosen.test_labels),
        "shape": list(chosen.train_images.shape),
        "mean": mean,
        "std": std,
    }


def _moments(histogram: npt.NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Compute the mean and population standard deviation of each channel, in [0, 1] units, from counts (C, 256)."""
    mean, std = [], []
    for count in histogram:  # sums of whole numbers, so that the results are bit-identical on every machine
        n, total, squares = (int(count @ np.arange(256) ** power) for power in range(3))
        mean.append(total / (255 * n))
        std.append(math.sqrt(n * squares - total**2) / (255 * n))
    return mean, std

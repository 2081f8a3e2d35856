"""Data sets as uint8 arrays: prepared once on disk, loaded memory-mapped, augmented on the device."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from robreg.raw import Arrays, DataError, Images, Settings, key, size
from robreg.source import read

__all__ = ["DataError", "Dataset", "load", "prepare", "random_crop_flip", "to_float"]

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
RECORDED = ("kind", "source", "max_train", "max_test", "subset_seed")
META = "meta.json"
CHUNK = 4096  # images

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set: images uint8 (N, C, H, W) and labels int64 (N,), memory-mapped tensors.

    mean and std are per channel, of the training set, in [0, 1] units; sha256 is the fingerprint of the data.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    sha256: str

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the images and labels of "train" or "test"."""
        return (self.train_images, self.train_labels) if name == "train" else (self.test_images, self.test_labels)


def prepare(settings: Settings, *, data_root: Path, out: Path) -> None:
    """Read the data set that `settings` describe and write its arrays and meta.json to the folder `out`.

    settings: kind, source, max_train, max_test, subset_seed, optionally label_column and name; a local source is
    relative to `data_root`. Raises DataError; files get their final names only once all are complete, meta.json last.
    """
    arrays = read(settings, data_root=data_root)
    meta = _describe(arrays, settings)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".partial-") as unfinished:
        for name in ARRAYS:
            np.save(Path(unfinished, f"{name}.npy"), getattr(arrays, name))
        Path(unfinished, META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (out / META).unlink(missing_ok=True)  # so that an old one never describes new arrays
        for file in (*(f"{name}.npy" for name in ARRAYS), META):
            os.replace(Path(unfinished, file), out / file)
    counts = f"{meta['n_train']} training and {meta['n_test']} test images {size(arrays.train_images)}"
    log.info("prepared %s: %s, %d classes", out, counts, arrays.classes)


def _describe(arrays: Arrays, settings: Settings) -> dict[str, Any]:
    """Make the content of meta.json; raises DataError if a channel of the training images is constant."""
    mean, std = _moments(arrays.train_images)
    if 0 in std:
        found = f"channel {std.index(0)} of the training images is constant"
        raise DataError(f"{key(settings, 'source')}: {found} and cannot be normalised; give a source where it varies")
    return {
        **{field: settings.get(field) for field in RECORDED},
        "classes": arrays.classes,
        "class_names": arrays.class_names,
        "n_train": len(arrays.train_labels),
        "n_test": len(arrays.test_labels),
        "shape": list(arrays.train_images.shape[1:]),
        "mean": mean,
        "std": std,
        "sha256": _fingerprint([getattr(arrays, name) for name in ARRAYS]),
    }


def _moments(images: Images) -> tuple[list[float], list[float]]:
    """Compute mean and population standard deviation of each channel, in [0, 1] units, of images (N, C, H, W)."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), CHUNK):
        for channel, pixels in enumerate(np.moveaxis(images[start : start + CHUNK], 1, 0)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    mean, std = [], []
    for count in counts:  # in whole numbers, so that the same images give the same bits everywhere
        n, total, squares = (int(count @ np.arange(256) ** power) for power in range(3))
        mean.append(total / (255 * n))
        std.append(math.sqrt(n * squares - total**2) / (255 * n))
    return mean, std


def _fingerprint(arrays: Sequence[npt.NDArray[Any]]) -> str:
    """Hash the bytes of the arrays, in order, to hexadecimal SHA-256."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load(folder: Path) -> Dataset:
    """Map the arrays that `prepare` wrote to `folder`; raises DataError where a file disagrees with meta.json."""
    meta = _load_meta(folder)
    tensors = {}
    for name in ARRAYS:
        n = meta["n_train"] if name.startswith("train") else meta["n_test"]
        if name.endswith("images"):
            tensors[name] = _load_array(folder / f"{name}.npy", (n, *meta["shape"]), np.dtype(np.uint8))
        else:
            tensors[name] = _load_array(folder / f"{name}.npy", (n,), np.dtype(np.int64))
            _check_range(tensors[name], meta["classes"], folder / f"{name}.npy")
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    return Dataset(**tensors, mean=mean, std=std, classes=meta["classes"], sha256=meta["sha256"])


def _load_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json; raises DataError if it is missing, broken or lacks an entry."""
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        missing = {"n_train", "n_test", "shape", "mean", "std", "classes", "sha256"} - set(meta)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, str(error)) from error
    if missing:
        raise _unusable(path, f"lacks {', '.join(sorted(missing))}")
    return dict(meta)


def _load_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Map one array as a tensor, without copying; raises DataError unless it has the shape and dtype."""
    try:
        array = np.load(path, mmap_mode="c")  # copy-on-write: torch has no read-only tensors
    except (OSError, ValueError, EOFError) as error:
        raise _unusable(path, str(error)) from error
    if array.shape != shape or array.dtype != dtype:
        raise _unusable(path, f"holds {array.dtype} {array.shape}, and meta.json says {dtype} {shape}")
    return torch.from_numpy(array)


def _check_range(labels: Tensor, classes: int, path: Path) -> None:
    """Refuse labels (N,) outside 0..classes-1."""
    low, high = (int(label) for label in labels.aminmax())
    if low < 0 or high >= classes:
        raise _unusable(path, f"holds labels {low}..{high}, and meta.json says {classes} classes")


def _unusable(path: Path, reason: str) -> DataError:
    """Make the error for a prepared file that cannot be used."""
    return DataError(f"{path}: {reason}; make it anew: snakemake -c1 --force {path.parent / META}")


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [0, 1], exactly v/255."""
    # A number as divisor would become a factor 1/255 on a GPU, off by a rounding for some v.
    return images.to(torch.float32) / torch.full((), 255, dtype=torch.float32, device=images.device)


def random_crop_flip(images: Tensor, *, pad: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros, crop at a random place to the old size, flip left-right with probability 1/2.

    images (B, C, H, W), any dtype, on the generator's device; every example draws its own place and flip.
    """
    batch, _, height, width = images.shape
    draw = partial(torch.randint, size=(batch,), generator=generator, device=generator.device)
    top, left, flip = draw(2 * pad + 1), draw(2 * pad + 1), draw(2).bool()
    windows = (
        F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    )  # (B, C, places, places, H, W)
    crops = windows[torch.arange(batch, device=generator.device), :, top, left]  # (B, C, H, W)
    return torch.where(flip[:, None, None, None], crops.flip(3), crops)

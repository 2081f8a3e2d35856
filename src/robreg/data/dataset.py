"""Load a prepared data set as memory-mapped arrays, checked when they are loaded."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robreg.data.errors import DataError
from robreg.tables.files import open_regular

Shape = tuple[int, int, int]  # C, H, W

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
META_FILE = "meta.json"
_CHUNK = 2**22  # bytes that are read at a time
_META_TYPES = {
    "n_train": int,
    "n_test": int,
    "classes": int,
    "shape": list,
    "mean": list,
    "std": list,
    "sha256": str,  # of the arrays
    "meta_sha256": str,  # of all other entries of meta.json
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set: images uint8 (N, C, H, W) and labels int64 (N,), memory-mapped tensors.

    mean, std: of each channel of the training set, in [0, 1] units; sha256: fingerprint of the arrays; crop: side in
    pixels of the square that networks see of an image, None for the whole image. The stored images are not cropped.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    sha256: str
    crop: int | None

    @property
    def shape(self) -> Shape:
        """The shape (C, H, W) of the images that networks see."""
        channels, height, width = self.train_images.shape[1:]
        return (channels, height, width) if self.crop is None else (channels, self.crop, self.crop)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the images (N, *shape), cropped to their centres if crop is set, and the labels (N,) of a split.

        name: "train" or "test". The images are a view of the mapped images, not a copy. If a margin is odd, its larger
        half is at the right or at the bottom (D.1).
        """
        images, labels = (
            (self.train_images, self.train_labels) if name == "train" else (self.test_images, self.test_labels)
        )
        (height, width), (full_height, full_width) = self.shape[1:], images.shape[2:]
        top, left = (full_height - height) // 2, (full_width - width) // 2
        return images[:, :, top : top + height, left : left + width], labels


def load_dataset(folder: Path, expected: Mapping[str, Any] | None = None) -> Dataset:
    """Map the arrays that `prepare` wrote to `folder`.

    expected: settings, such as kind and crop, with which they must have been prepared. Raises DataError if they were
    not, or if a byte is not as meta.json states.
    """
    meta = _load_meta(folder)
    for key, value in (expected or {}).items():
        if meta.get(key) != value:
            found, wanted = json.dumps(meta.get(key)), json.dumps(value)
            raise _unusable(folder / META_FILE, f"was prepared with {key}: {found}, but config.yaml has {wanted}")
    tensors = {}
    for name in ARRAYS:
        n = meta["n_train"] if name.startswith("train") else meta["n_test"]
        if name.endswith("images"):
            tensors[name] = _load_array(folder / f"{name}.npy", (n, *meta["shape"]), np.dtype(np.uint8))
        else:
            tensors[name] = _load_array(folder / f"{name}.npy", (n,), np.dtype(np.int64))
            _check_range(tensors[name], meta["classes"], folder / f"{name}.npy")
    if _fingerprint(folder) != meta["sha256"]:
        raise _unusable(folder / META_FILE, "states a SHA-256 that is not that of the arrays in the same folder")
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    return Dataset(**tensors, mean=mean, std=std, classes=meta["classes"], sha256=meta["sha256"], crop=meta["crop"])


def _load_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json. Raises DataError if it is missing or damaged, or if an entry is missing or impossible."""
    path = folder / META_FILE
    try:
        with open_regular(path, follow=True) as file:  # a pipe would never end
            meta = json.loads(file.read())
        wrong = [name for name, kind in _META_TYPES.items() if not _is_possible(meta[name], kind)]
        wrong += ["crop"] if meta["crop"] is not None and not _is_possible(meta["crop"], int) else []
        actual_hash = hash_meta(meta)
    except KeyError as error:
        raise _unusable(path, f"has no entry {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unusable(path, str(error)) from error
    if not wrong and (len(meta["shape"]) != 3 or not len(meta["mean"]) == len(meta["std"]) == meta["shape"][0]):
        wrong = ["shape, mean or std"]
    elif not wrong and (meta["crop"] or 1) > min(meta["shape"][1:]):
        wrong = ["crop"]
    if wrong:
        raise _unusable(path, f"has an impossible value: {wrong[0]}")
    if actual_hash != meta["meta_sha256"]:
        raise _unusable(path, "was changed after it was written: its SHA-256 is not the one that it states")
    return dict(meta)


def hash_meta(meta: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of the canonical JSON of all entries of meta.json except this hash itself."""
    entries = {key: value for key, value in meta.items() if key != "meta_sha256"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _is_possible(value: object, kind: type) -> bool:
    """Return whether a value of meta.json is possible: a whole number in 1..2^31-1, a list of numbers >= 0, or text."""
    if kind is list:
        return isinstance(value, list) and all(
            type(number) in (int, float) and 0 <= number < math.inf for number in value
        )
    return type(value) is kind and (not isinstance(value, int) or 0 < value < 2**31)


def _fingerprint(folder: Path) -> str:
    """Compute the SHA-256 of the arrays, as `prepare` did.

    They are read as plain files, because the pages of a memory map would count as memory of the job.
    """
    digest = hashlib.sha256()
    for name in ARRAYS:
        with (folder / f"{name}.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _load_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Map one array as a tensor, without copying. Raises DataError unless it has the given shape and dtype."""
    try:
        with open_regular(path, follow=True) as file:
            np.lib.format.read_magic(file)
            found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        if fortran:
            raise ValueError("is in Fortran order, but was written in C order")
        if (found_shape, found_dtype) != (shape, dtype):
            raise ValueError(f"contains {found_dtype} {found_shape}, but meta.json states {dtype} {shape}")
        array = np.memmap(path, dtype, "c", start, shape)  # copy-on-write: torch has no read-only tensors
    except Exception as error:  # numpy parses the header as Python, so that a damaged one may raise any error
        raise _unusable(path, str(error)) from error
    return torch.from_numpy(array)


def _check_range(labels: Tensor, classes: int, path: Path) -> None:
    """Raise DataError if a label (N,) is outside 0..classes-1, or if all training images have the same."""
    low, high = (int(label) for label in labels.aminmax())
    if low < 0 or high >= classes:
        raise _unusable(path, f"contains labels {low}..{high}, but meta.json states {classes} classes")
    if low == high and path.name == "train_labels.npy":
        raise _unusable(path, f"gives all training images the label {low}, of which no network can learn anything")


def _unusable(path: Path, reason: str) -> DataError:
    """Make the error for a prepared file that cannot be used; reason: continues a sentence about it."""
    return DataError(f"{path}: {reason}; make it again: snakemake -c1 --force {path.parent / META_FILE}")


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images (N, C, H, W) to float32 in [0, 1], exactly v/255.

    Colour images get the memory format channels last, in which ResNet-56 is a quarter faster on a CPU. For images of
    one channel the formats do not differ.
    """
    layout = torch.channels_last if images.shape[1] > 1 else torch.contiguous_format
    pixels = images.to(torch.float32, memory_format=layout)
    # On a GPU, division by a Python number would become multiplication by 1/255, which rounds differently for some v.
    return pixels / torch.full((), 255, dtype=torch.float32, device=images.device)

"""A prepared data set: memory-mapped arrays of uint8, checked when they are loaded."""

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

from robreg.data.source import CHUNK, DataError, Shape

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
META_FILE = "meta.json"
_META_TYPES = {
    "n_train": int,
    "n_test": int,
    "classes": int,
    "shape": list,
    "mean": list,
    "std": list,
    "sha256": str,  # of the arrays
    "meta_sha256": str,  # of everything else here
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set: images uint8 (N, C, H, W) and labels int64 (N,), memory-mapped tensors.

    mean and std are per channel, of the training set, in [0, 1] units; sha256 is the fingerprint of the data.
    crop is the side of the square that networks see of an image, None for all of it; the stored images are whole.
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
        """The shape (C, H, W) of what networks see."""
        channels, height, width = self.train_images.shape[1:]
        return (channels, height, width) if self.crop is None else (channels, self.crop, self.crop)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the images (N, *shape) and labels (N,) of "train" or "test": the whole images, or their centres.

        A centre is a view of the mapped images, not a copy; of an odd margin the larger half is right and below (D.1).
        """
        images, labels = (
            (self.train_images, self.train_labels) if name == "train" else (self.test_images, self.test_labels)
        )
        (height, width), (full_height, full_width) = self.shape[1:], images.shape[2:]
        top, left = (full_height - height) // 2, (full_width - width) // 2
        return images[:, :, top : top + height, left : left + width], labels


def load_dataset(folder: Path) -> Dataset:
    """Map the arrays that `prepare` wrote to `folder`; raises DataError where a byte is not as meta.json says."""
    meta = _load_meta(folder)
    tensors = {}
    for name in ARRAYS:
        n = meta["n_train"] if name.startswith("train") else meta["n_test"]
        if name.endswith("images"):
            tensors[name] = _load_array(folder / f"{name}.npy", (n, *meta["shape"]), np.dtype(np.uint8))
        else:
            tensors[name] = _load_array(folder / f"{name}.npy", (n,), np.dtype(np.int64))
            _check_range(tensors[name], meta["classes"], folder / f"{name}.npy")
    if _fingerprint(folder) != meta["sha256"]:
        raise _unusable(folder / META_FILE, "says another SHA-256 than that of the arrays beside it")
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    return Dataset(**tensors, mean=mean, std=std, classes=meta["classes"], sha256=meta["sha256"], crop=meta["crop"])


def _load_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json; raises DataError if it is missing, broken or lacks an entry."""
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name, kind in _META_TYPES.items() if not _fits(meta[name], kind)]
        wrong += ["crop"] if meta["crop"] is not None and not _fits(meta["crop"], int) else []
        sealed = hash_meta(meta)
    except KeyError as error:
        raise _unusable(path, f"lacks {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unusable(path, str(error)) from error
    if not wrong and (len(meta["shape"]) != 3 or not len(meta["mean"]) == len(meta["std"]) == meta["shape"][0]):
        wrong = ["shape, mean or std"]
    elif not wrong and (meta["crop"] or 1) > min(meta["shape"][1:]):
        wrong = ["crop"]
    if wrong:
        raise _unusable(path, f"has a value that cannot be: {wrong[0]}")
    if sealed != meta["meta_sha256"]:
        raise _unusable(path, "was changed since it was written: it says another SHA-256 of itself")
    return dict(meta)


def hash_meta(meta: Mapping[str, Any]) -> str:
    """Hash what meta.json says, but for this hash: SHA-256 of its canonical JSON."""
    said = {key: value for key, value in meta.items() if key != "meta_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _fits(value: object, kind: type) -> bool:
    """Say whether a value of meta.json can be: a whole number from 1 to 2^31, a list of numbers from 0, text."""
    if kind is list:
        return isinstance(value, list) and all(type(one) in (int, float) and 0 <= one < math.inf for one in value)
    return type(value) is kind and (not isinstance(value, int) or 0 < value < 2**31)


def _fingerprint(folder: Path) -> str:
    """Hash the arrays as _write did; read as plain files, for the pages of a map would count as the job's memory."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        with (folder / f"{name}.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _load_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Map one array as a tensor, without copying; raises DataError unless it has the shape and dtype."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        if fortran:
            raise ValueError("not laid out as it was written")
        if (found, kind) != (shape, dtype):
            raise ValueError(f"holds {kind} {found}, and meta.json says {dtype} {shape}")
        array = np.memmap(path, dtype, "c", start, shape)  # copy-on-write: torch has no read-only tensors
    except Exception as error:  # a damaged header is read as Python, and may raise anything
        raise _unusable(path, str(error)) from error
    return torch.from_numpy(array)


def _check_range(labels: Tensor, classes: int, path: Path) -> None:
    """Refuse labels (N,) outside 0..classes-1."""
    low, high = (int(label) for label in labels.aminmax())
    if low < 0 or high >= classes:
        raise _unusable(path, f"holds labels {low}..{high}, and meta.json says {classes} classes")


def _unusable(path: Path, reason: str) -> DataError:
    """Make the error for a prepared file that cannot be used."""
    return DataError(f"{path}: {reason}; make it anew: snakemake -c1 --force {path.parent / META_FILE}")


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [0, 1], exactly v/255; in colour, laid out as convolutions read them fastest.

    That is channels last: a quarter faster for ResNet-56 on a CPU. Grey images have but one layout worth the name.
    """
    layout = torch.channels_last if images.shape[1] > 1 else torch.contiguous_format
    pixels = images.to(torch.float32, memory_format=layout)
    # A number as divisor would become a factor 1/255 on a GPU, off by a rounding for some v.
    return pixels / torch.full((), 255, dtype=torch.float32, device=images.device)

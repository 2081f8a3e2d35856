"""What reading a source deals in: arrays of images and labels, an opened source, an error that names the mend."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
Settings = Mapping[str, Any]

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
CIFAR_COUNTS = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}  # training, test
CIFAR_SHAPE = (3, 32, 32)


class DataError(ValueError):
    """Data that cannot be used: one sentence that names the file or key, and the mend."""


@dataclass(frozen=True)
class Source:
    """An opened source: the labels of all examples (N,), and `read`, which fetches the images of chosen rows.

    `read(train_rows, test_rows)` returns two arrays of images, uint8 (len(rows), C, H, W).
    """

    train_labels: Labels
    test_labels: Labels
    classes: int
    class_names: list[str] | None
    read: Callable[[Labels, Labels], tuple[Images, Images]]


@dataclass(frozen=True)
class Arrays:
    """A data set in memory: images uint8 (N, C, H, W), labels int64 (N,) in 0..classes-1."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: int
    class_names: list[str] | None


def key(settings: Settings, field: str) -> str:
    """Name a setting as config.yaml does: `datasets.c10.source`."""
    return f"datasets.{settings['name']}.{field}" if settings.get("name") else field


def size(images: Images) -> str:
    """Write the size of one image for a message: 3x32x32."""
    return "x".join(map(str, images.shape[1:]))


def from_arrays(train: tuple[Images, Labels], test: tuple[Images, Labels], names: Sequence[str]) -> Source:
    """Make a source of (images, labels) that are in memory already."""
    return Source(train[1], test[1], len(names), list(names), lambda a, b: (train[0][a], test[0][b]))

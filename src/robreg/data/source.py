"""What reading a source deals in: streams of images, an opened source, an error that names the mend."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]  # (N, C, H, W), or one image (C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
Settings = Mapping[str, Any]
Shape = tuple[int, int, int]  # C, H, W

CHUNK = 2**22  # bytes of images in memory at a time


class Official(NamedTuple):
    """The size of a published data set: numbers of classes, training and test images, and the shape of an image."""

    classes: int
    train: int
    test: int
    shape: Shape


OFFICIAL = {
    "cifar10": Official(10, 50_000, 10_000, (3, 32, 32)),
    "cifar100": Official(100, 50_000, 10_000, (3, 32, 32)),
    "tiny-imagenet": Official(200, 100_000, 10_000, (3, 64, 64)),
}


class DataError(ValueError):
    """Data that cannot be used: one sentence that names the file or key, and the mend."""

    def __init__(self, said: str) -> None:
        """Take the sentence; what it quotes of another error may have several lines."""
        super().__init__(" ".join(line.strip() for line in said.splitlines()))


@dataclass(frozen=True)
class Stream:
    """Images of one shape (C, H, W), read while they are asked for: `chunks` are uint8 arrays (n, C, H, W), in order.

    It can be read once. A chunk has about CHUNK bytes, so that a set of any size passes through bounded memory.
    """

    shape: Shape
    chunks: Iterator[Images]


@dataclass(frozen=True)
class Source:
    """An opened source: the labels of all examples (N,), and `read`, which streams the images of chosen rows.

    `read(train_rows, test_rows)` returns the two streams; rows are sorted.
    """

    train_labels: Labels
    test_labels: Labels
    classes: int
    class_names: list[str] | None
    read: Callable[[Labels, Labels], tuple[Stream, Stream]]


@dataclass(frozen=True)
class Selection:
    """The examples chosen from a source: their images, as many as there are labels, int64 (N,) in 0..classes-1."""

    train_images: Stream
    train_labels: Labels
    test_images: Stream
    test_labels: Labels
    classes: int
    class_names: list[str] | None


def config_key(settings: Settings, field: str) -> str:
    """Name a setting as config.yaml does: `datasets.c10.source`."""
    return f"datasets.{settings['name']}.{field}" if settings.get("name") else field


def format_shape(shape: Sequence[int]) -> str:
    """Write the shape of an image for a message: 3x32x32."""
    return "x".join(map(str, shape))


def stream_images(images: Iterable[Images], shape: Shape) -> Stream:
    """Make a stream of single images, each (C, H, W)."""
    return Stream(shape, _chunks(iter(images), max(1, CHUNK // math.prod(shape))))


def _chunks(images: Iterator[Images], n: int) -> Iterator[Images]:
    """Stack up to n images at a time."""
    while chunk := list(islice(images, n)):
        yield np.stack(chunk)


def source_from_arrays(train: tuple[Images, Labels], test: tuple[Images, Labels], names: Sequence[str]) -> Source:
    """Make a source of (images, labels) that are in memory already."""

    def pick(images: Images, rows: Labels) -> Stream:
        return stream_images((images[row] for row in rows), images.shape[1:])

    return Source(train[1], test[1], len(names), list(names), lambda a, b: (pick(train[0], a), pick(test[0], b)))


KINDS = ("digits", *OFFICIAL, "parquet")

"""Define the types that the readers of all sources share: streams of images, an opened source, a selection."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from robreg.data.dataset import Shape

Images = npt.NDArray[np.uint8]  # (N, C, H, W), or a single image (C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
Settings = Mapping[str, Any]

CHUNK = 2**22  # bytes of decoded images that are in memory at a time
MAX_ROWS = 2**24  # of a split, because a few bytes can claim any number of equal ones


class OfficialSize(NamedTuple):
    """The size of a published data set: the numbers of classes, training and test images, and the shape of an image."""

    classes: int
    train: int
    test: int
    shape: Shape


OFFICIAL = {
    "cifar10": OfficialSize(10, 50_000, 10_000, (3, 32, 32)),
    "cifar100": OfficialSize(100, 50_000, 10_000, (3, 32, 32)),
    "tiny-imagenet": OfficialSize(200, 100_000, 10_000, (3, 64, 64)),
}


@dataclass(frozen=True)
class Stream:
    """Images of one shape (C, H, W) that are read on demand, in order, as `chunks`: uint8 arrays (n, C, H, W).

    A stream can be read once. A chunk has about CHUNK bytes, so that data sets of any size need little memory.
    converted: how many images of which mode lost something so far, such as alpha.
    """

    shape: Shape
    chunks: Iterator[Images]
    converted: Counter[str] = field(default_factory=Counter)


class Column(NamedTuple):
    """A column of a Parquet file that has been chosen.

    path: of its values inside the file, such as image.bytes; reason: why it was chosen, ends a sentence after
    "because"; guessed: whether neither its name nor the configuration says that it is the right one; text: whether its
    values are text, for labels.
    """

    name: str
    path: str
    reason: str
    guessed: bool = False
    text: bool = False


class Columns(NamedTuple):
    """The columns that have the images and the labels in all Parquet files of a data set; file: the first of these."""

    images: Column
    labels: Column
    file: Path

    def names(self) -> dict[str, str]:
        """Return the names of both columns, for meta.json."""
        return {"images": self.images.name, "labels": self.labels.name}


@dataclass(frozen=True)
class Source:
    """An opened source: the labels of all its examples, (N,), and a function that streams the images of chosen rows.

    read: called with sorted row numbers (train_rows, test_rows), returns the streams of the two splits.
    columns: those of a folder of Parquet files, None for other sources.
    """

    train_labels: Labels
    test_labels: Labels
    classes: int
    class_names: list[str] | None
    read: Callable[[Labels, Labels], tuple[Stream, Stream]]
    columns: Columns | None = None


@dataclass(frozen=True)
class Selection:
    """The examples chosen from a source: their images, and as many labels, int64 (N,) in 0..classes-1."""

    train_images: Stream
    train_labels: Labels
    test_images: Stream
    test_labels: Labels
    classes: int
    class_names: list[str] | None
    columns: Columns | None


def config_key(settings: Settings, field: str) -> str:
    """Return the key of a setting in config.yaml, such as `datasets.c10.source`."""
    return f"datasets.{settings['name']}.{field}" if settings.get("name") else field


def format_shape(shape: Sequence[int]) -> str:
    """Format the shape of an image for a message, such as 3x32x32."""
    return "x".join(map(str, shape))


def stream_images(images: Iterable[Images], shape: Shape, converted: Counter[str] | None = None) -> Stream:
    """Make a stream from single images, each of the given shape (C, H, W); converted: see Stream."""
    chunks = _chunks(iter(images), max(1, CHUNK // math.prod(shape)))
    return Stream(shape, chunks, Counter() if converted is None else converted)


def _chunks(images: Iterator[Images], n: int) -> Iterator[Images]:
    """Yield stacks of n images, the last of which may have fewer."""
    while chunk := list(islice(images, n)):
        yield np.stack(chunk)


def source_from_arrays(train: tuple[Images, Labels], test: tuple[Images, Labels], names: Sequence[str]) -> Source:
    """Make a source from the (images, labels) of both splits that are already in memory; names: of the classes."""

    def pick(images: Images, rows: Labels) -> Stream:
        return stream_images((images[row] for row in rows), images.shape[1:])

    return Source(train[1], test[1], len(names), list(names), lambda a, b: (pick(train[0], a), pick(test[0], b)))


FOLDERS = ("parquet", "imagefolder")  # kinds of images of the user's own, which are in a folder
KINDS = ("digits", *OFFICIAL, *FOLDERS)

"""Decode encoded images, such as PNG, of rows of Parquet files or of a folder, after their headers are checked."""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image

from robreg.data.errors import DataError
from robreg.data.source import Images, Stream, stream_images

MAX_PIXELS = 2**22  # of an image, because a small file can claim thousands of times as many
GRAY = ("1", "L", "LA")  # Pillow's modes of images without colour
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # without EPS, for which Pillow would run Ghostscript
DEEP = ("I", "F")  # first letters of Pillow's modes with more than 8 bits per channel
_UNCHANGED = ("1", "L", "RGB")  # Pillow's modes from which nothing is lost


class Encoded(NamedTuple):
    """An encoded image; where: names it, as the beginning of a message."""

    where: str
    content: bytes


Read = Callable[[], Iterator[Encoded]]


def stream_splits(train: Read, test: Read, *, colour: bool) -> tuple[Stream, Stream]:
    """Make the streams of both splits, whose images all have the size of the split's first one.

    train, test: read the chosen images of a split, in order, each time that they are called. Images have three
    channels, or one if both splits are gray and `colour` is false. Raises DataError, as reading the streams does.
    """
    train_size, train_gray = _read_headers(train)
    test_size, test_gray = _read_headers(test)
    channels = 1 if train_gray and test_gray and not colour else 3
    return _stream(train, train_size, channels), _stream(test, test_size, channels)


def describe_conversions(converted: Counter[str]) -> str:
    """Say how many images were converted from which modes, as the end of a sentence."""
    each = ", ".join(f"{count} of mode {mode}" for mode, count in sorted(converted.items()))
    return f"{converted.total()} images were converted to 8 bits of red, green and blue, or of gray: {each}"


def _stream(read: Read, size: tuple[int, int], channels: int) -> Stream:
    converted = Counter[str]()
    images = (_decode(encoded, size, converted)[:channels] for encoded in read())
    return stream_images(images, (channels, *size), converted)


def _read_headers(read: Read) -> tuple[tuple[int, int], bool]:
    """Read the headers of images. Returns the height and width of the first, and whether all are gray.

    Raises DataError if an image cannot be opened or has more than MAX_PIXELS pixels.
    """
    shape = None
    for encoded in read():
        with _open_image(encoded) as image:
            size, gray = (image.height, image.width), image.mode in GRAY
        shape = shape or size
        if math.prod(shape) > MAX_PIXELS:
            raise DataError(f"{encoded.where} has more than {MAX_PIXELS} pixels; make the images smaller")
        if not gray:
            return shape, False
    assert shape is not None  # an empty split was refused before
    return shape, True


@contextmanager
def _open_image(encoded: Encoded) -> Iterator[Image.Image]:
    """Open an encoded image. Raises DataError, which names it, for any error while it is open."""
    try:
        with Image.open(io.BytesIO(encoded.content), formats=FORMATS) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors for a damaged image
        fix = "copy the file again, or write encoded images such as PNG, not pixels"
        raise DataError(f"{encoded.where} cannot be decoded ({error}); {fix}") from error


def _decode(encoded: Encoded, shape: tuple[int, int], converted: Counter[str]) -> Images:
    """Decode one image to RGB (3, H, W), and count it in `converted` if that loses anything but repeats gray.

    The size is read from the header, so that an image of another size is never decoded. Raises DataError if its size
    is not `shape` (H, W) or it cannot be decoded.
    """
    with _open_image(encoded) as image:
        mode, size, alpha = image.mode, (image.height, image.width), image.has_transparency_data
        pixels = np.asarray(image.convert("RGB")) if size == shape else None
    if pixels is None:
        sizes = [f"{width}x{height}" for height, width in (size, shape)]
        raise DataError(f"{encoded.where} is {sizes[0]}, not {sizes[1]}; make all images the same size")
    if mode.startswith(DEEP):
        raise DataError(f"{encoded.where} has more than 8 bits per channel (mode {mode}); convert it to 8 bits")
    if alpha or mode not in _UNCHANGED:
        converted[f"{mode}{' (alpha was dropped)' if alpha else ''}"] += 1
    return pixels.transpose(2, 0, 1)

"""Make Tiny-ImageNet's official layout with a few images, for the tests."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from robreg.data import tiny_imagenet

WNIDS = ["n30", "n10", "n20"]  # classes in label order, which is not alphabetical
NUMBERS = [10, 9, 0, 2]  # in the file names of a class's training images, not sorted
BASE = tiny_imagenet.BASE
RNG = np.random.default_rng(0)

Files = dict[str, bytes]


def jpeg(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    """Make a random JPEG; size: width and height in pixels."""
    channels = {"RGB": (3,), "L": (), "CMYK": (4,)}[mode]
    blocks = RNG.integers(0, 256, (8, 8, *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks, mode).resize(size).save(file, "JPEG")
    return file.getvalue()


def layout(classes: int = 3) -> Files:
    """Make the files of a small data set, with 4 training and 2 validation images in each of three classes.

    classes: how many classes have training images.
    """
    files = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n", "test/images/test_0.JPEG": jpeg()}
    words = "".join(f"{wnid}\tthing {wnid}, a thing\n" for wnid in sorted([*WNIDS, "n00", "n99"]))
    files["words.txt"] = words.encode()
    for wnid in WNIDS[:classes]:
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"n_0.JPEG\t0\t10\t63\t58\n"
        files |= {f"train/{wnid}/images/{wnid}_{n}.JPEG": jpeg() for n in NUMBERS}
    validation = [f"val_{n}.JPEG" for n in (0, 1, 2, 3, 10, 11)]
    files |= {f"val/images/{name}": jpeg() for name in validation}
    lines = [f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in zip(validation, [*WNIDS, *WNIDS], strict=True)]
    files["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    return files


def write_zip(path: Path, files: Files, base: str = BASE) -> Path:
    """Write files as a zip, in the folder `base`, and return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(base or "empty/")
        for name, content in files.items():
            archive.writestr(base + name, content)
    return path

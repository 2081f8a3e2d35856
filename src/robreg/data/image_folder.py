"""Read folders of image files in the layout of torchvision's ImageFolder: train/cat/1.png, test/dog/2.png and so on."""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from robreg.data.classes import refuse_untrained
from robreg.data.encoded_images import FORMATS, Encoded, stream_splits
from robreg.data.errors import DataError, safe_names
from robreg.data.source import MAX_ROWS, Labels, Settings, Source, Stream, config_key
from robreg.tables.files import open_regular

TRAIN, TEST = ("train",), ("test", "val", "valid", "validation")  # names of the folders of the splits
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
MAX_FILE = 2**26  # bytes of an encoded image

log = logging.getLogger(__name__)


def open_folder(folder: Path, settings: Settings) -> Source:
    """Open a folder with a folder for each split, in which each class has a folder of images; images are read later.

    Classes are numbered in the order of their names in the training split, and images come in the order of their
    classes and file names. Hidden files are ignored; other files that are no images are left out with a warning. Raises
    DataError, which names what does not fit this.
    """
    where, left_out = config_key(settings, "source"), list[str]()
    splits = [_find_split(folder, names, where) for names in (TRAIN, TEST)]
    train, test = (_list_classes(split, folder, left_out) for split in splits)
    if empty := [name for name, files in train.items() if not files]:
        raise DataError(f"{where}: class {empty[0]!r} has no training image; add images of it, or remove its folder")
    number = {name: label for label, name in enumerate(train)}
    refuse_untrained((name for name, files in test.items() if files), number, where)
    if left_out:
        log.warning("%s: %d files are no images and are left out, the first is %s", where, len(left_out), left_out[0])
    (train_files, train_labels), (test_files, test_labels) = (_number(split, number) for split in (train, test))

    def read(train_rows: Labels, test_rows: Labels) -> tuple[Stream, Stream]:
        return stream_splits(
            lambda: _read_files(train_files, train_rows), lambda: _read_files(test_files, test_rows), colour=False
        )

    return Source(train_labels, test_labels, len(number), safe_names(number), read)


def _find_split(folder: Path, names: Sequence[str], where: str) -> Path:
    """Return the folder of a split, which has the first of `names` that there is."""
    for name in names:
        if (folder / name).is_dir():
            _refuse_link_out(folder / name, folder)
            return folder / name
    raise DataError(f"{where}: no folder {' or '.join(names)} in {folder}; put a folder of images for each class there")


def _list_classes(split: Path, source: Path, left_out: list[str]) -> dict[str, list[str]]:
    """List the paths of the images of each class, classes and paths sorted by name; left_out gets those of no images.

    Raises DataError for what is neither a file nor a folder, for a folder below that of a class, for a link that leads
    out of the source, and for more than MAX_ROWS files.
    """
    classes, n = dict[str, list[str]](), 0
    for entry in _entries(split, source):
        if entry.is_file():
            left_out.append(entry.path)
            continue
        classes[entry.name] = images = list[str]()
        for file in _entries(Path(entry.path), source):
            if file.is_dir():
                raise DataError(f"{file.path}: a folder inside that of a class; put its images into that of the class")
            (images if _is_image(file) else left_out).append(file.path)
            if (n := n + 1) > MAX_ROWS:
                raise DataError(f"{split}: more than {MAX_ROWS} files; leave some of them out")
    return classes


def _entries(folder: Path, source: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder and not hidden, sorted by name. Raises DataError as _list_classes does."""
    with os.scandir(folder) as found:
        entries = sorted(islice(found, MAX_ROWS + 1), key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            _refuse_link_out(Path(entry.path), source)
        if not entry.is_file() and not entry.is_dir():
            raise DataError(f"{entry.path}: neither a folder nor a regular file; put the file itself there")
        yield entry


def _refuse_link_out(path: Path, source: Path) -> None:
    """Raise DataError if a path leads out of the source by a link, which whoever sent the images can have made."""
    if not path.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{path}: a link that leads out of {source}; put a copy of what it names in its place")


def _is_image(file: os.DirEntry[str]) -> bool:
    """Return whether a file has the extension of an image, which it must then be, or otherwise begins as an image."""
    if file.name.lower().endswith(EXTENSIONS):
        return True
    try:
        with open_regular(Path(file.path), follow=True) as content, Image.open(content, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # of a damaged image, which is refused by name when it is decoded
        return True


def _number(classes: dict[str, list[str]], number: dict[str, int]) -> tuple[list[str], Labels]:
    """Return the paths of all images of a split, and their labels (N,)."""
    used = {name: files for name, files in classes.items() if files}
    labels = np.array([number[name] for name in used], dtype=np.int64)
    return [file for files in used.values() for file in files], np.repeat(labels, [*map(len, used.values())])


def _read_files(files: Sequence[str], rows: Labels) -> Iterator[Encoded]:
    """Yield the files of `rows`. Raises DataError if one cannot be read or has more than MAX_FILE bytes."""
    for row in rows:
        try:
            with open_regular(Path(files[row]), follow=True) as file:
                content = file.read(MAX_FILE + 1)
        except (OSError, ValueError) as error:
            raise DataError(f"{files[row]}: cannot be read ({error}); copy it again") from error
        if len(content) > MAX_FILE:
            raise DataError(f"{files[row]}: more than {MAX_FILE} bytes; make the image smaller")
        yield Encoded(f"{files[row]}: the image", content)

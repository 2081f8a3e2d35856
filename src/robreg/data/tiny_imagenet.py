"""Read Tiny-ImageNet in its official layout, from the zip, which is never unpacked, or from a folder."""

import io
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from robreg.data.download import DOWNLOAD_AGAIN, RemoteFile, check_md5
from robreg.data.errors import DataError
from robreg.data.source import OFFICIAL, Images, Labels, Settings, Source, Stream, config_key, stream_images

ARCHIVE = RemoteFile(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    248_100_043,
)
BASE = "tiny-imagenet-200/"  # the folder inside the zip
SUFFIX = ".JPEG"
MAX_FILE = 4 * 2**20  # bytes; the largest official file, words.txt, has 2.6 MB
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of compression: others unpack all of a file at once
COPY_AGAIN = "copy it again"

log = logging.getLogger(__name__)


class _Tree(NamedTuple):
    """A zip or a folder: functions that list its files (relative, with slashes), and open one."""

    path: Path
    names: Callable[[], Iterable[str]]
    open: Callable[[str], IO[bytes]]

    def read(self, name: str) -> bytes:
        """Read a file, whatever size is stated for it. Raises DataError if it cannot be read or is too large."""
        try:
            with self.open(name) as file:
                content = file.read(MAX_FILE + 1)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # zipfile raises many types of errors for damaged members
            reason = f"{name} cannot be read ({type(error).__name__}: {error})"
            raise DataError(f"{self.path}: {reason}; {COPY_AGAIN}") from error
        if len(content) > MAX_FILE:
            raise DataError(f"{self.path}: {name} has more than {MAX_FILE} bytes; {COPY_AGAIN}")
        return content


@dataclass(frozen=True)
class _Layout:
    """The content of a source.

    base: the folder in it that has wnids.txt; images: the names of the image files in each folder; read: returns the
    content of a file; incomplete: whether classes may have fewer images than in the official set; key: of `incomplete`
    in config.yaml.
    """

    path: Path
    base: str
    images: Mapping[str, list[str]]
    read: Callable[[str], bytes]
    incomplete: bool
    key: str

    def error(self, problem: str, fix: str = COPY_AGAIN) -> DataError:
        """Make the error for a problem; problem: begins with the name of a file or folder in `base`."""
        return DataError(f"{self.path}: {self.base}{problem}; {fix}")


def open_layout(path: Path, settings: Settings) -> Source:
    """Open a zip or a folder in the official layout. Raises DataError, which names what is wrong in it.

    Labels are line numbers in wnids.txt, from 0; the validation images are the test split. Training images are sorted
    by class, and all images by file name, with numbers in numerical order. A zip must have the official MD5 unless
    settings mark it as `incomplete`; classes may then have fewer images than in the official set. Files that do not
    belong to the layout are ignored.
    """
    if path.is_file():
        _check_zip(path, settings)
    with _open_tree(path) as tree:
        layout = _find_layout(path, tree, settings)
        wnids = _read_wnids(layout)
        names = _read_names(layout, wnids)
        train, train_labels = _list_training(layout, wnids)
        test, test_labels = _list_validation(layout, wnids)

    def pick(files: Sequence[str], rows: Labels) -> Stream:
        return stream_images(_decode_files(path, [files[row] for row in rows]), OFFICIAL["tiny-imagenet"].shape)

    return Source(train_labels, test_labels, len(wnids), names, lambda a, b: (pick(train, a), pick(test, b)))


def _check_zip(path: Path, settings: Settings) -> None:
    """Raise DataError for a zip that is not the official one, unless it is marked as incomplete."""
    if settings.get("incomplete") and settings["source"] != "download":
        log.info("%s is marked as incomplete: its MD5 is not checked", path)
        return
    fix = f"{DOWNLOAD_AGAIN}, or set {config_key(settings, 'incomplete')}: true for a subset of it"
    check_md5(path, ARCHIVE.md5, name=str(path), fix=DOWNLOAD_AGAIN if settings["source"] == "download" else fix)


@contextmanager
def _open_tree(path: Path) -> Iterator[_Tree]:
    """Open a zip or a folder. Raises DataError if it is neither."""
    if path.is_dir():
        yield _Tree(
            path,
            lambda: [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()],
            lambda name: _open_regular(path / name),
        )
        return
    try:
        archive = zipfile.ZipFile(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged central directory may raise anything
        raise DataError(f"{path}: not a readable zip ({error}); {DOWNLOAD_AGAIN}") from error
    with archive:
        yield _Tree(path, archive.namelist, lambda name: _open_member(archive, name))


def _open_regular(path: Path) -> IO[bytes]:
    """Open a file of a folder. Raises OSError if it is not a regular file, such as a pipe or a device without end."""
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    return path.open("rb")


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member of a zip. Raises DataError if it has another compression than the official zip."""
    info = archive.getinfo(name)
    if info.compress_type not in METHODS:
        raise DataError(f"{archive.filename}: {name} is neither stored nor deflated; write the zip again with deflate")
    return archive.open(info)


def _find_layout(path: Path, tree: _Tree, settings: Settings) -> _Layout:
    """Find the base folder, and the images of each folder sorted by name. Raises DataError if there is no wnids.txt."""
    names = set(tree.names())
    base = BASE if f"{BASE}wnids.txt" in names else ""
    if f"{base}wnids.txt" not in names:
        fix = "give a zip or a folder in Tiny-ImageNet's official layout, or a folder of .parquet files"
        raise DataError(f"{config_key(settings, 'source')}: no wnids.txt in {path}; {fix}")
    images: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):  # so that x_2 comes before x_10
        file = PurePosixPath(name)
        if file.suffix == SUFFIX and not file.name.startswith("."):
            images.setdefault(str(file.parent), []).append(name)
    return _Layout(path, base, images, tree.read, bool(settings.get("incomplete")), config_key(settings, "incomplete"))


def _read_lines(layout: _Layout, name: str) -> list[list[str]]:
    """Read the lines of a text file that are not empty, split at tabs. Raises DataError if it is not text."""
    try:
        text = layout.read(f"{layout.base}{name}").decode()
    except UnicodeDecodeError as error:
        raise layout.error(f"{name} is not text ({error})") from error
    return [line.split("\t") for line in text.splitlines() if line.strip()]


def _read_wnids(layout: _Layout) -> list[str]:
    """Read the WordNet ids of the classes, in the order of their labels. Raises DataError if their number is wrong."""
    wnids, expected = [line[0].strip() for line in _read_lines(layout, "wnids.txt")], OFFICIAL["tiny-imagenet"].classes
    if len(wnids) != expected or len(set(wnids)) != expected:
        raise layout.error(
            f"wnids.txt names {len(set(wnids))} classes on {len(wnids)} lines, not {expected} on {expected}"
        )
    return wnids


def _read_names(layout: _Layout, wnids: Sequence[str]) -> list[str]:
    """Read the names of the classes from words.txt, which also has others. Raises DataError if one is missing."""
    words = {line[0]: line[1] for line in _read_lines(layout, "words.txt") if len(line) == 2}
    for wnid in wnids:
        if wnid not in words:
            raise layout.error(f"words.txt does not describe class {wnid} of wnids.txt")
    return [words[wnid] for wnid in wnids]


def _list_training(layout: _Layout, wnids: Sequence[str]) -> tuple[list[str], Labels]:
    """List the training files and their labels (N,). Raises DataError if a class has a wrong number of files."""
    official, files, counts = OFFICIAL["tiny-imagenet"], [], []
    for wnid in wnids:
        folder = f"train/{wnid}/images"
        images = layout.images.get(f"{layout.base}{folder}", [])
        if not images:
            raise layout.error(f"{folder} is missing or contains no {SUFFIX} file")
        _check_count(layout, len(images), official.train // official.classes, f"{folder} contains")
        files += images
        counts.append(len(images))
    return files, np.repeat(np.arange(len(wnids), dtype=np.int64), counts)


def _list_validation(layout: _Layout, wnids: Sequence[str]) -> tuple[list[str], Labels]:
    """List the validation files and their labels (N,). Raises DataError if files and annotations do not match."""
    official, annotations = OFFICIAL["tiny-imagenet"], "val/val_annotations.txt"
    label = {wnid: i for i, wnid in enumerate(wnids)}
    annotated: dict[str, int] = {}
    for line in _read_lines(layout, annotations):
        name = f"{layout.base}val/images/{line[0]}"
        if len(line) < 2 or line[1] not in label or name in annotated:
            raise layout.error(f"{annotations}: {line[0]} has no class that is in wnids.txt, or several classes")
        annotated[name] = label[line[1]]
    files = layout.images.get(f"{layout.base}val/images", [])
    for name in sorted(annotated.keys() - set(files)):
        raise DataError(f"{layout.path}: {name} is listed in {annotations} but missing; {COPY_AGAIN}")
    for name in sorted(set(files) - annotated.keys()):
        raise DataError(f"{layout.path}: {name} is not listed in {annotations}; {COPY_AGAIN}")
    labels = np.array([annotated[name] for name in files], dtype=np.int64)
    for wnid, count in zip(wnids, np.bincount(labels, minlength=len(wnids)), strict=True):
        _check_count(layout, int(count), official.test // official.classes, f"{annotations} gives class {wnid}")
    return files, labels


def _check_count(layout: _Layout, count: int, expected: int, subject: str) -> None:
    """Raise DataError if a class does not have `expected` images; an incomplete set may have fewer.

    subject: the beginning of the message, which continues with the count.
    """
    if count == expected or (layout.incomplete and count < expected):
        return
    fix = (
        COPY_AGAIN if layout.incomplete or count > expected else f"{COPY_AGAIN}, or set {layout.key}: true for a subset"
    )
    raise layout.error(f"{subject} {count} images, not {expected}", fix)


def _decode_files(path: Path, names: Iterable[str]) -> Iterator[Images]:
    """Yield the image files `names` as RGB, uint8 (3, 64, 64). Raises DataError if one cannot be decoded."""
    with _open_tree(path) as tree:
        for name in names:
            yield _decode(tree.read(name), f"{path}: {name}")


def _decode(encoded: bytes, where: str) -> Images:
    """Decode one JPEG to RGB, uint8 (3, 64, 64). Raises DataError, whose message begins with `where`."""
    height, width = OFFICIAL["tiny-imagenet"].shape[1:]
    try:
        with Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
            size = image.size
            pixels = np.asarray(image.convert("RGB")) if size == (width, height) else None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors for a damaged image
        raise DataError(f"{where} cannot be decoded ({error}); {COPY_AGAIN}") from error
    if pixels is None:
        raise DataError(f"{where} is {size[0]}x{size[1]}, not {width}x{height}; {COPY_AGAIN}")
    return pixels.transpose(2, 0, 1)

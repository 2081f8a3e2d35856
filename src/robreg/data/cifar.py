"""Read the CIFAR archives in their official Python format, checked and without unpacking them to disk."""

import gzip
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from torchvision import datasets

from robreg.data.download import DOWNLOAD_AGAIN, RemoteFile, check_md5
from robreg.data.errors import DataError
from robreg.data.source import OFFICIAL, Images, Labels, Source, source_from_arrays

SIZES = {"cifar10": 170_498_071, "cifar100": 169_001_437}  # bytes of the official archives
MAX_UNPACKED = 256 * 2**20  # bytes of a whole unpacked archive; the official ones have 178 MiB


def torchvision_class(kind: str) -> Any:  # noqa: ANN401  torchvision is untyped
    """Return torchvision's class for cifar10 or cifar100, which has the archive's URL, checksum and member names."""
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]


def remote_archive(kind: str) -> RemoteFile:
    """Return the address, file name, MD5 and size of the official archive of cifar10 or cifar100."""
    archive = torchvision_class(kind)
    return RemoteFile(archive.url, archive.filename, archive.tgz_md5, SIZES[kind])


class _DtypeStub:
    """Stands in for a numpy dtype when a pickle is loaded; keeps only the dtype's name."""

    def __init__(self, name: object, *_: object) -> None:
        """Accept the arguments of numpy's dtype."""
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Ignore numpy's state, which is not needed for bytes."""


class _ArrayStub:
    """Stands in for a numpy array when a pickle is loaded, because numpy's own unpickling trusts its input."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep an array of bytes. Raises UnpicklingError for an array of any other type."""
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # pickled by Python 2
            content = content.encode("latin1")
        if type(dtype) is not _DtypeStub or dtype.name != "u1":
            raise pickle.UnpicklingError("only arrays of bytes are allowed")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode_latin1(text: str, *_: object) -> bytes:
    """Restore bytes that Python 3 pickled as Latin-1 text, as it does in the protocols of Python 2."""
    return text.encode("latin1")


PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "dtype"): _DtypeStub,
    ("numpy", "ndarray"): _ArrayStub,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _ArrayStub(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _ArrayStub(),
}


class _CifarUnpickler(pickle._Unpickler):
    """Loads only arrays of bytes and plain values, because unpickling anything else could run arbitrary code.

    It derives from the unpickler written in Python. The faster one in C allocates as much memory as a number in the
    pickle demands.
    """

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  as in the base class
        """Return the stand-in for an allowed global. Raises UnpicklingError for any other."""
        if (module, name) not in PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return PICKLE_GLOBALS[module, name]


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that refuses to unpack more than MAX_UNPACKED bytes, whatever the headers in it claim."""

    def read(self, size: int | None = -1) -> bytes:
        """Read size bytes. Raises ValueError if more than MAX_UNPACKED bytes have been unpacked."""
        content = super().read(size)
        if self.tell() > MAX_UNPACKED:
            raise ValueError(f"it has more than {MAX_UNPACKED} bytes when unpacked")
        return content


def open_archive(path: Path, kind: str) -> Source:
    """Open an archive in the official Python format, after its MD5 is verified; nothing is unpacked to disk.

    Raises DataError if the archive is not the official one or cannot be read.
    """
    archive = torchvision_class(kind)
    check_md5(path, archive.tgz_md5, name=str(path))
    train = [f"{archive.base_folder}/{name}" for name, _ in archive.train_list]
    test = [f"{archive.base_folder}/{name}" for name, _ in archive.test_list]
    meta = f"{archive.base_folder}/{archive.meta['filename']}"
    contents = _unpickle_members(path, {*train, *test, meta})
    names = contents[meta].get(archive.meta["key"])
    if not isinstance(names, list) or [type(name) for name in names] != [str] * OFFICIAL[kind].classes:
        raise DataError(f"{path}: {meta} does not name {OFFICIAL[kind].classes} classes; {DOWNLOAD_AGAIN}")
    field = "fine_labels" if kind == "cifar100" else "labels"
    splits = [
        _concatenate([_batch_arrays(contents[m], field, f"{path}: {m}") for m in members]) for members in (train, test)
    ]
    return source_from_arrays(splits[0], splits[1], names)


def _unpickle_members(path: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """Unpickle the members `names` of a .tar.gz in one pass. Raises DataError if one is missing or cannot be read."""
    contents = {}
    try:
        with _BoundedGzip(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.name in names:
                    contents[member.name] = _unpickle(tar, member, path)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged header may raise anything
        raise DataError(f"{path}: not a readable .tar.gz ({error}); {DOWNLOAD_AGAIN}") from error
    if missing := sorted(names - contents.keys()):
        raise DataError(f"{path}: it does not contain {', '.join(missing)}; {DOWNLOAD_AGAIN}")
    return contents


def _unpickle(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, Any]:
    """Unpickle one member, a dict. Raises DataError if it is too large, not a plain file, or not a valid pickle."""
    file = tar.extractfile(member) if member.isreg() and member.size <= MAX_UNPACKED else None
    if file is None:
        raise DataError(f"{path}: {member.name} is not a plain file of at most {MAX_UNPACKED} bytes; {DOWNLOAD_AGAIN}")
    try:
        batch = _load_pickle(file)
    except MemoryError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        reason = f"{member.name} cannot be unpickled ({type(error).__name__}: {error})"
        raise DataError(f"{path}: {reason}; {DOWNLOAD_AGAIN}") from error
    return batch


def _load_pickle(file: IO[bytes]) -> dict[str, Any]:
    """Load a dict that Python 2 pickled; its byte strings, including the contents of arrays, are read as Latin-1 text.

    Raises UnpicklingError for a type that is not allowed; a damaged pickle may raise any error.
    """
    batch = _CifarUnpickler(file, encoding="latin1").load()
    if not isinstance(batch, dict):
        raise pickle.UnpicklingError("not a dictionary")
    return batch


def _batch_arrays(batch: dict[str, Any], field: str, where: str) -> tuple[Images, Labels]:
    """Convert an unpickled batch to images (N, 3, 32, 32) and labels (N,); field: the key of the labels.

    Raises DataError, whose message begins with `where`, if the batch does not have them.
    """
    pixels, labels = batch.get("data"), batch.get(field)
    data = getattr(pixels, "array", None) if type(pixels) is _ArrayStub else None
    if data is None or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{where} has no uint8 array (N, 3072) named data; {DOWNLOAD_AGAIN}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(map(_fits_int32, labels)):
        raise DataError(f"{where} has no list of {len(data)} whole numbers named {field}; {DOWNLOAD_AGAIN}")
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _fits_int32(label: object) -> bool:
    """Return whether a label is a whole number that fits into 32 bits."""
    return type(label) is int and abs(label) < 2**31


def _concatenate(batches: Sequence[tuple[Images, Labels]]) -> tuple[Images, Labels]:
    """Concatenate batches of (images, labels)."""
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)

"""The CIFAR archives in their official Python format: checked, and read without unpacking to disk."""

import gzip
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from torchvision import datasets

from robreg.data.download import Remote, check_md5
from robreg.data.source import OFFICIAL, DataError, Images, Labels, Source, source_from_arrays

MAX_UNPACKED = 256 * 2**20  # bytes of a whole archive; the genuine ones have 178 MiB


def layout(kind: str) -> Any:  # noqa: ANN401  torchvision is untyped
    """Look up torchvision's class, whose attributes know address, checksum and member names of an archive."""
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]


def remote(kind: str) -> Remote:
    """Say where the official archive of cifar10 or cifar100 is published."""
    archive = layout(kind)
    return Remote(archive.url, archive.filename, archive.tgz_md5)


class _Dtype:
    """Stands for a numpy dtype in a pickle: keeps its name alone."""

    def __init__(self, name: object, *_: object) -> None:
        """Take what numpy's would."""
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Leave numpy's details: bytes have none."""


class _Array:
    """Stands for a numpy array in a pickle; numpy's own ways to be unpickled trust what they are given."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep an array of bytes; raises UnpicklingError for all others."""
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # as Python 2 wrote it
            content = content.encode("latin1")
        if type(dtype) is not _Dtype or dtype.name != "u1":
            raise pickle.UnpicklingError("an array of anything but bytes is not admitted")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, *_: object) -> bytes:
    """Make the bytes that Python 3 writes as text, in latin1, where it writes for Python 2."""
    return text.encode("latin1")


PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
}


class _CifarUnpickler(pickle._Unpickler):
    """Rebuilds arrays of bytes and plain values, and admits nothing else: unpickling can run any code.

    Python's own unpickler, not the faster one in C, which takes as much memory as a number in the pickle says.
    """

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  the base class says so
        """Return what stands for an admitted global; raises UnpicklingError for every other."""
        if (module, name) not in PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return PICKLE_GLOBALS[module, name]


class _Bounded(gzip.GzipFile):
    """A .gz that is not read beyond MAX_UNPACKED bytes, whatever the headers in it claim."""

    def read(self, size: int | None = -1) -> bytes:
        """Read size bytes; raises ValueError beyond the bound."""
        content = super().read(size)
        if self.tell() > MAX_UNPACKED:
            raise ValueError(f"it has more than {MAX_UNPACKED} bytes unpacked")
        return content


def open_archive(path: Path, kind: str) -> Source:
    """Open an archive in the official Python format, once its MD5 is right; nothing is unpacked to disk."""
    archive = layout(kind)
    check_md5(path, archive.tgz_md5, name=str(path))
    train = [f"{archive.base_folder}/{name}" for name, _ in archive.train_list]
    test = [f"{archive.base_folder}/{name}" for name, _ in archive.test_list]
    meta = f"{archive.base_folder}/{archive.meta['filename']}"
    found = _unpickle_members(path, {*train, *test, meta})
    names = found[meta].get(archive.meta["key"])
    if not isinstance(names, list) or [type(name) for name in names] != [str] * OFFICIAL[kind].classes:
        raise DataError(
            f"{path}: {meta} does not name {OFFICIAL[kind].classes} classes; delete it and download it again"
        )
    field = "fine_labels" if kind == "cifar100" else "labels"
    splits = [_stack([_batch_arrays(found[m], field, f"{path}: {m}") for m in members]) for members in (train, test)]
    return source_from_arrays(splits[0], splits[1], names)


def _unpickle_members(path: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """Unpickle the members `names` of a .tar.gz in one pass; raises DataError if one is missing or not a plain file."""
    found = {}
    try:
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.name in names:
                    found[member.name] = _unpickle(tar, member, path)
    except DataError:
        raise
    except Exception as error:  # a damaged header may raise anything
        raise DataError(f"{path}: not a readable .tar.gz ({error}); delete it and download it again") from error
    if missing := sorted(names - found.keys()):
        raise DataError(f"{path}: {', '.join(missing)} missing; delete it and download it again")
    return found


def _unpickle(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, Any]:
    """Unpickle one member, a dict; raises DataError."""
    file = tar.extractfile(member) if member.isreg() and member.size <= MAX_UNPACKED else None
    if file is None:
        raise DataError(f"{path}: {member.name} is not a plain file of at most {MAX_UNPACKED} bytes; download it again")
    try:
        batch = _load_pickle(file)
    except Exception as error:  # a broken pickle may raise anything
        reason = f"{member.name} cannot be unpickled ({type(error).__name__}: {error})"
        raise DataError(f"{path}: {reason}; delete it and download it again") from error
    return batch


def _load_pickle(file: IO[bytes]) -> dict[str, Any]:
    """Load a dict that Python 2 pickled: its byte strings, array contents among them, become latin-1 text."""
    batch = _CifarUnpickler(file, encoding="latin1").load()
    if not isinstance(batch, dict):
        raise pickle.UnpicklingError("not a dictionary")
    return batch


def _batch_arrays(batch: dict[str, Any], field: str, where: str) -> tuple[Images, Labels]:
    """Turn an unpickled batch into images (N, 3, 32, 32) and labels (N,)."""
    found, labels = batch.get("data"), batch.get(field)
    data = getattr(found, "array", None) if type(found) is _Array else None
    if data is None or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{where} holds no uint8 array (N, 3072) named data")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(map(_is_small, labels)):
        raise DataError(f"{where} holds no list of {len(data)} whole numbers named {field}")
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _is_small(label: object) -> bool:
    return type(label) is int and abs(label) < 2**31


def _stack(batches: Sequence[tuple[Images, Labels]]) -> tuple[Images, Labels]:
    """Join batches of (images, labels)."""
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)

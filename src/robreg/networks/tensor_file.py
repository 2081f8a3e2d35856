"""Write and read files of tensors and plain values in torch's format, and refuse files that hold anything else.

Nothing in a file is executed, and reading one takes no more memory than its size: whoever receives a checkpoint has not
written it.
"""

import errno
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from robreg.data.errors import printable
from robreg.tables.files import atomic_write, open_regular

MAX_PICKLE = 2**22  # bytes of the description of all tensors and values, which take up to 100 times that in memory;
# that of ResNet-1202 has 0.6 MB, and a history of 200 epochs with the bounds of all its layers 2 MB
MAX_VALUES = 2**22  # values and characters, of which a few bytes can stand for any number
_BEGINNING = b"PK\x03\x04"  # torch would read a file that begins otherwise in another format, without our checks
# What tensors and state_dict() are made of; in addition, the kinds of values that a tensor may have.
_ADMITTED = {"collections OrderedDict", "torch._utils _rebuild_parameter", "torch._utils _rebuild_tensor_v2"}
_END = struct.Struct("<4s4H2IH")  # the end record of a zip archive
_LOCATOR = struct.Struct("<4sIQI")  # of the long end record, which is before it
_UNKNOWN = 2**32 - 1  # in place of a number that does not fit
_ENDS = 56 + _LOCATOR.size + _END.size
_KIND = re.compile(r"torch [A-Z][A-Za-z0-9]*Storage")


def save_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a file that load_file reads.

    Raises OSError, naming the file, if it cannot be written, and ValueError if load_file would refuse what it holds.
    """
    try:
        _check_values(content)
    except ValueError as error:
        raise ValueError(f"{path}: its state cannot be saved, because {error}") from error
    with atomic_write(path) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch raises this when the disk is full
            raise OSError(errno.ENOSPC, "torch could not write the whole file") from error
        file.seek(0)
        with zipfile.ZipFile(file) as members:
            try:
                _check_pickle(members)
            except zipfile.BadZipFile as error:
                why = f"its state cannot be saved ({error}); keep tensors only in state_dict()"
                raise ValueError(f"{path}: {why}") from error


def load_file(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Load a file that save_file wrote, after verifying that no byte has changed; nothing in it is executed.

    A link to such a file is followed. The file is a zip archive, whose checksums torch.load does not verify, and whose
    parts are not compressed, so that they are no larger than the file. Damaged files raise many kinds of errors.
    """
    with open_regular(path, follow=True) as file:
        _check_archive(file)
        file.seek(0)
        content = torch.load(file, map_location=device, weights_only=True)
    _check_values(content)
    return dict(content)


def _check_archive(file: BinaryIO) -> None:
    """Raise zipfile.BadZipFile unless a file is an archive that torch.save wrote, without compression or damage."""
    if file.read(len(_BEGINNING)) != _BEGINNING:
        raise zipfile.BadZipFile("it is not an archive that torch writes")
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise zipfile.BadZipFile("it holds compressed data, which no checkpoint does")
        if sum(one.file_size for one in members) > size:
            raise zipfile.BadZipFile("its parts are larger than the file")
        _check_directory(file, archive, size)
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{bad} does not match the CRC-32 that was stored when it was written")
        _check_pickle(archive)


def _check_directory(file: BinaryIO, archive: zipfile.ZipFile, size: int) -> None:
    """Raise zipfile.BadZipFile if torch could find another list of parts in an archive than zipfile has found.

    zipfile takes the list before the end of the file, and torch the one at the place that is stated there. Both are the
    same if nothing comes after the end record and if the stated place is that of zipfile's list. torch ignores case in
    names, and zipfile what follows a null byte.
    """
    file.seek(max(0, size - _ENDS))
    tail = file.read(_ENDS)
    signature, *_, length, start, comment = _END.unpack(tail[-_END.size :])
    places, lists_end = [(start, length)], size - _END.size
    right = signature == b"PK\x05\x06" and comment == 0
    if tail[-_END.size - _LOCATOR.size :].startswith(b"PK\x06\x07"):  # a long end record, which the short one repeats
        lists_end = size - _ENDS
        _, _, place, _ = _LOCATOR.unpack(tail[-_END.size - _LOCATOR.size : -_END.size])
        right = right and place == lists_end and tail.startswith(b"PK\x06\x06")
        long_length, long_start = struct.unpack_from("<QQ", tail, 40)
        places.append((long_start, long_length))
        if _UNKNOWN in (start, length):  # it is too large for the short one
            places = places[1:]
    right = right and all(place == (archive.start_dir, lists_end - archive.start_dir) for place in places)
    names = [one.orig_filename.lower() for one in archive.infolist()]
    if not right or len(set(names)) < len(names) or any("\0" in name for name in names):
        raise zipfile.BadZipFile("its list of parts is ambiguous")


def _check_pickle(archive: zipfile.ZipFile) -> None:
    """Raise zipfile.BadZipFile if the values of an archive are not tensors and plain values only.

    torch.load admits more than that: bytearray(n), for one, takes n bytes of memory.
    """
    described = [one for one in archive.infolist() if one.filename.lower().rpartition("/")[2] == "data.pkl"]
    if len(described) != 1 or described[0].file_size > MAX_PICKLE:
        raise zipfile.BadZipFile(f"it has not one part data.pkl of at most {MAX_PICKLE} bytes")
    for operation, name, _ in pickletools.genops(archive.read(described[0])):
        if operation.name == "GLOBAL" and name not in _ADMITTED and not _KIND.fullmatch(str(name)):
            raise zipfile.BadZipFile(
                f"it holds a value of {printable(str(name)[:100])}, not only tensors and plain values"
            )


def repeats_values(tensor: Tensor) -> bool:
    """Return whether a tensor has more values than are stored, as after expand."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _check_values(content: Any) -> None:  # noqa: ANN401 - it comes from a file
    """Raise ValueError if a file's values are more than MAX_VALUES, or if a tensor has more values than are stored.

    A list can hold one list many times, which holds one many times, and so on; a tensor can repeat its values.
    """
    left, waiting = MAX_VALUES, [content]
    while waiting:
        value = waiting.pop()
        left -= 1 + (len(value) if isinstance(value, Mapping | list | tuple | str | bytes) else 0)
        if left < 0:
            raise ValueError(f"its values, written out, are more than {MAX_VALUES}")
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, Tensor) and repeats_values(value):
            raise ValueError("one of its tensors repeats its values")  # a small file could fill any memory

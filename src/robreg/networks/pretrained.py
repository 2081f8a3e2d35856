"""Load the weights of a network that was trained elsewhere, from a file of PyTorch or of safetensors.

Nothing in a file is executed, and no size that it states is believed.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.data.errors import describe_error, printable
from robreg.networks.checkpoint import load_weights
from robreg.networks.tensor_file import load_file
from robreg.networks.user_defined import ArchitectureError
from robreg.tables.files import open_regular

SUFFIXES = (".pt", ".pth", ".safetensors")
MAX_HEADER = 2**24  # bytes of the description of a safetensors file; that of ResNet-1202 has 0.3 MB
_WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the weights, beside other values
_PARALLEL = "module."  # what DataParallel puts before every name
_LISTED = 3  # names in a message
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

log = logging.getLogger(__name__)


def load_pretrained(network: nn.Module, path: Path, sha256: str) -> None:
    """Load the weights in a file with this SHA-256 into a network, without converting them.

    The file is one of torch.save, whose name ends in .pt or .pth and which holds weights by name, also below
    "state_dict" or "model"; or one of safetensors. The prefix "module." of DataParallel is removed.
    Raises ArchitectureError, naming the file, if the names, shapes or types of its weights are not exactly those of the
    network, or if a value is not finite; and ValueError or OSError if it cannot be read or has another SHA-256.
    """
    with open_regular(path, follow=True) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{path} changed after this job was planned; start Snakemake again")
    weights = read_weights(path)
    if weights and all(name.startswith(_PARALLEL) for name in weights):
        log.info("%s: the prefix %s of all names, which DataParallel adds, is removed", path, _PARALLEL)
        weights = {name.removeprefix(_PARALLEL): value for name, value in weights.items()}
    if differences := _describe_differences(network.state_dict(), weights):
        raise ArchitectureError(
            f"{path} does not fit its network: {differences}; correct the callable or its arguments, or give the "
            "weights of this network"
        )
    if bad := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise ArchitectureError(f"{path}: {printable(bad[0])} holds values that are not finite; give other weights")
    try:
        load_weights(network, weights)
    except (RuntimeError, ValueError) as error:
        raise ArchitectureError(
            f"{path} does not fit its network ({describe_error(error)}); convert the weights, or correct the callable"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by name from a file as load_pretrained does, as they are.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: weights are read from files that end in {', '.join(SUFFIXES)}; give one of these")
    try:
        weights = _read_safetensors(path) if path.suffix == ".safetensors" else _unwrap(load_file(path, "cpu"))
        if other := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"{other[0]!r} in it is no tensor")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise any kind of error
        raise ValueError(
            f"{path} is damaged, or holds more than weights by name; save the network's state_dict() alone, with "
            f"torch.save ({describe_error(error)})"
        ) from error
    return weights


def _unwrap(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights in the content of a file, which may lie below one of _WRAPPERS."""
    inside = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    return dict(content) if inside is None else _unwrap(inside)


def _describe_differences(own: Mapping[str, Any], given: Mapping[str, Tensor]) -> str:
    """Describe how given weights differ from those of a network, in names and in shapes; "" if they do not."""
    missing, unexpected = [name for name in own if name not in given], [name for name in given if name not in own]
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and isinstance(value, Tensor) and value.shape != given[name].shape
    ]
    kinds = {"lacks": missing, "has no place for": unexpected, "has other shapes": shapes}
    return printable("; ".join(f"it {kind}{_list(found)}" for kind, found in kinds.items() if found))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f" {', '.join(name[:100] for name in names[:_LISTED])}{more}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file: the length of its header, 8 bytes; the header, JSON; and the bytes of all tensors.

    Raises ValueError, KeyError or TypeError unless the tensors cover these bytes exactly once.
    """
    with open_regular(path, follow=True) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(f"its header would have {size} bytes, and at most {MAX_HEADER} are read")
        header = json.loads(file.read(size))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    weights, end = dict[str, Tensor](), 0
    for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (first, last) = _TYPES[one["dtype"]], one["shape"], one["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
            raise ValueError(f"{name!r} has an impossible size")
        if first != end or last - first != math.prod(shape) * kind.itemsize or last > len(data):
            raise ValueError(f"{name!r} does not lie where it must")
        content = torch.frombuffer(data, dtype=torch.uint8, count=last - first, offset=first) if last > first else None
        weights[name] = torch.empty(shape, dtype=kind) if content is None else content.clone().view(kind).view(shape)
        end = last
    if end != len(data):
        raise ValueError("it has bytes that belong to no tensor")
    return weights

"""Checkpoints and states: written whole or not at all, read as they were written or not at all."""

import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.table import atomic


def pack(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a file that torch.load reads; raises OSError, naming it, if that fails."""
    with atomic(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # torch's word for a disk that takes no more
            raise OSError(errno.ENOSPC, "torch could not write all of it") from error


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a model as they are; raises ValueError or RuntimeError where they are not exactly its own kind.

    load_state_dict alone would convert their types.
    """
    for name, own in model.state_dict().items():
        if name in weights and isinstance(own, Tensor) and weights[name].dtype != own.dtype:
            raise ValueError(f"{name} is of {weights[name].dtype}, and its architecture makes it of {own.dtype}")
    model.load_state_dict(weights)


def unpack(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Load what pack wrote, and nothing of it if a byte changed since; nothing in the file is executed.

    torch.load does not look at the checksums of the zip that such a file is. Raises many kinds of errors.
    """
    with zipfile.ZipFile(path) as file:
        if (bad := file.testzip()) is not None:
            raise zipfile.BadZipFile(f"{bad} has another CRC-32 than when it was written")
    return torch.load(path, map_location=device, weights_only=True)

"""Checkpoints and training states: written whole or not at all, and read as they were written or not at all."""

import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.networks.build import build_network
from robreg.networks.classifier import Classifier
from robreg.networks.user_defined import ArchitectureError
from robreg.tables.files import atomic_write


def save_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a file that torch.load reads; raises OSError, naming it, if that fails."""
    with atomic_write(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # torch's word for a disk that takes no more
            raise OSError(errno.ENOSPC, "torch could not write all of it") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a model as they are; raises ValueError or RuntimeError where they are not exactly its own kind.

    load_state_dict alone would convert their types.
    """
    for name, own in model.state_dict().items():
        if name in weights and isinstance(own, Tensor) and weights[name].dtype != own.dtype:
            raise ValueError(f"{name} is of {weights[name].dtype}, and its architecture makes it of {own.dtype}")
    model.load_state_dict(weights)


def load_file(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Load what pack wrote, and nothing of it if a byte changed since; nothing in the file is executed.

    torch.load does not look at the checksums of the zip that such a file is. Raises many kinds of errors.
    """
    with zipfile.ZipFile(path) as file:
        if (bad := file.testzip()) is not None:
            raise zipfile.BadZipFile(f"{bad} has another CRC-32 than when it was written")
    return torch.load(path, map_location=device, weights_only=True)


_META_TYPES = {  # by a checkpoint, beside what its network is built from
    "dataset": str,
    "variant": str,
    "seed": int,
    "threads": int,
    "data_sha256": str,
    "settings_hash": str,
    "version": str,
}


def _refuse_inconsistent(weights: Mapping[str, Tensor], model: Classifier, meta: Mapping[str, Any]) -> None:
    """Raise ValueError for a normalisation that is not the meta data's, and for meta data that a measure would miss."""
    for name, value in model.normalise.state_dict().items():
        if not torch.equal(weights[f"normalise.{name}"], value):
            raise ValueError(f"normalise.{name} is not that of the meta data")
    for key, kind in _META_TYPES.items():
        if type(meta[key]) is not kind:
            raise ValueError(f"{key} is not of type {kind.__name__}")


def load_network(checkpoint: str | Path, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Load a trained network from its checkpoint, in eval mode, and its meta data.

    The network maps pixels (B, C, H, W) in [0, 1] to logits (B, classes); the meta data say what it was made from:
    "shape" (C, H, W), "classes", "arch", "dataset", "variant", "settings". Nothing in the file is executed; a user's
    architecture is imported and called as build_user_network describes.
    Raises ValueError, naming the file, if it is damaged, does not fit its own meta data or holds a value that is not
    finite; ArchitectureError if the user's architecture cannot be imported here.

    >>> import robreg
    >>> model, meta = robreg.load("results/digits/ar8/checkpoint.pt")
    >>> meta["arch"], meta["classes"]
    ('resnet8', 10)
    """
    checkpoint = Path(checkpoint)
    try:
        content = load_file(checkpoint, "cpu")
        meta = content["meta"]
        keys = ("width", "shape", "classes", "mean", "std", "factory")
        model = build_network(meta["arch"], **{key: meta[key] for key in keys})
        _refuse_inconsistent(content["model"], model, meta)
        load_weights(model, content["model"])
    except (FileNotFoundError, ArchitectureError):
        raise
    except Exception as error:  # damaged bytes can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{checkpoint} is damaged, or not a checkpoint of this version: delete it and train again ({why})"
        ) from error
    if bad := [name for name, value in content["model"].items() if not bool(value.isfinite().all())]:
        raise ValueError(f"{checkpoint}: {bad[0]} holds values that are not finite: delete it and train again")
    return model.to(device).eval(), meta

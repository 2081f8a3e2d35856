"""Read and write checkpoints and training states.

A file is written completely or not at all, and a file that changed since it was written is not read.
"""

import copy
import errno
import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.networks.build import build_network
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.probe import TOLERANCE, probe_difference
from robreg.networks.user_defined import ArchitectureError
from robreg.runs.source_code import describe_changes
from robreg.tables.files import atomic_write
from robreg.tables.provenance import code_hash

log = logging.getLogger(__name__)


def save_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a file that torch.load reads.

    Raises OSError, naming the file, if it cannot be written.
    """
    with atomic_write(path) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch raises this when the disk is full
            raise OSError(errno.ENOSPC, "torch could not write the whole file") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a model without converting them.

    load_state_dict alone would convert their data types. A model on torch's device "meta" gets the tensors themselves.
    Raises ValueError or RuntimeError if the names, shapes or data types of the weights are not exactly those of the
    model.
    """
    own_weights = model.state_dict()
    for name, own in own_weights.items():
        if name in weights and isinstance(own, Tensor) and weights[name].dtype != own.dtype:
            raise ValueError(f"{name} has type {weights[name].dtype}, but the architecture defines it as {own.dtype}")
    model.load_state_dict(weights, assign=any(own.is_meta for own in own_weights.values() if isinstance(own, Tensor)))


def load_file(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Load a file that save_file wrote, after verifying that no byte has changed; nothing in it is executed.

    Such a file is a zip archive, whose checksums torch.load does not verify. Its parts are not compressed, so that they
    are no larger than the file. Damaged files raise many kinds of errors.
    """
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise zipfile.BadZipFile("it holds compressed data, which no checkpoint does")
        if sum(one.file_size for one in members) > path.stat().st_size:
            raise zipfile.BadZipFile("its parts are larger than the file")
        if (bad := file.testzip()) is not None:
            raise zipfile.BadZipFile(f"{bad} does not match the CRC-32 that was stored when it was written")
    return torch.load(path, map_location=device, weights_only=True)


_META_TYPES = {  # metadata of a checkpoint in addition to what its network is built from
    "dataset": str,
    "variant": str,
    "seed": int,
    "threads": int,
    "data_sha256": str,
    "settings_hash": str,
    "version": str,
}


def _check_content(weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Raise ValueError if weights or normalisation cannot be right, or if metadata that measures need are wrong.

    Raises KeyError if they are missing.
    """
    for name, value in weights.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name} repeats its values")  # a small file could make a network of any size
    for name, value in Normalise(meta["mean"], meta["std"]).state_dict().items():
        if not torch.equal(weights[f"normalise.{name}"], value):
            raise ValueError(f"normalise.{name} does not match the metadata")
    for key, kind in _META_TYPES.items():
        if type(meta[key]) is not kind:
            raise ValueError(f"{key} is not of type {kind.__name__}")


def load_network(
    checkpoint: str | Path,
    device: torch.device | str = "cpu",
    *,
    architecture: Mapping[str, Any] | nn.Module | None = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Load a trained network in eval mode, and its metadata, from a checkpoint.

    The network maps pixels (B, C, H, W) in [0, 1] to logits (B, classes). The metadata describe how it was made:
    "shape" (C, H, W), "classes", "arch", "dataset", "variant", "settings". Nothing in the file is executed, and nothing
    that it names is imported: for a user-defined architecture, give the network to load the weights into.
    architecture: a network for normalised pixels; or, as the workflow does, the settings "arch", "width" and "factory"
    of the run, which the checkpoint must agree with; or None for the package's architectures.
    Raises ValueError, naming the file, if it is damaged, does not match its own metadata or the architecture, holds
    values that are not finite, or if the network gives other logits than it gave at the end of its training.
    Raises ArchitectureError if a user-defined architecture is needed and not given, or cannot be built.

    >>> import robreg
    >>> model, meta = robreg.load("results/digits/ar8/checkpoint.pt")
    >>> meta["arch"], meta["classes"]
    ('resnet8', 10)
    """
    checkpoint = Path(checkpoint)
    meta: dict[str, Any] = {}
    try:
        content = load_file(checkpoint, "cpu")
        meta, weights = content["meta"], content["model"]
        _check_content(weights, meta)
        model = _build(checkpoint, meta, architecture)
        load_weights(model, weights)
        bad = [name for name, value in weights.items() if not bool(value.isfinite().all())]
        difference = None if bad else _compare_logits(model, content)
    except (FileNotFoundError, ArchitectureError):
        raise
    except Exception as error:  # damaged files can raise any kind of error
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(_unusable(checkpoint, meta, why)) from error
    if bad:
        raise ValueError(f"{checkpoint}: {bad[0]} holds values that are not finite: delete it and train again")
    _check_behaviour(checkpoint, meta, difference)
    return model.to(device).eval(), meta


def _build(checkpoint: Path, meta: Mapping[str, Any], architecture: Mapping[str, Any] | nn.Module | None) -> Classifier:
    """Build the network of a checkpoint without any code or size that only the file names.

    The package's large architectures are built on the device "meta": they need no memory until they get the weights.
    """
    if isinstance(architecture, nn.Module):
        return Classifier(Normalise(meta["mean"], meta["std"]), architecture)
    if architecture is None and meta["factory"] is not None:
        raise ArchitectureError(
            f"{checkpoint} holds a network of the user-defined architecture {meta['arch']!r}, and what a file names is "
            "not imported: give the network, as in robreg.load(checkpoint, architecture=MyNet(num_classes=10))"
        )
    stated, own = ({key: one[key] for key in _ARCHITECTURE} for one in (meta, architecture or meta))
    if _without_code(stated) != _without_code(own):
        raise ArchitectureError(
            f"{checkpoint} states that its network is {_without_code(stated)}, but by config.yaml that of its run is "
            f"{_without_code(own)}; train again, or correct config.yaml"
        )
    options = {**{key: meta[key] for key in ("shape", "classes", "mean", "std")}, **own}
    if own["factory"] is not None or _is_small(meta):
        return build_network(**options)
    with torch.device("meta"):
        return build_network(**options)


def _is_small(meta: Mapping[str, Any]) -> bool:
    """Return whether any network that the metadata can state takes less than 200 MB; building it directly is faster."""
    depth = re.fullmatch(r"resnet(\d{1,3})", meta["arch"])
    sizes = (meta["width"], *meta["shape"][:1], meta["classes"] / 16)
    return depth is not None and int(depth[1]) <= 110 and all(size <= 64 for size in sizes)


_UNKNOWN = "Nothing that is recorded has changed since, so its weights have, or code or files that are not recorded"
_ARCHITECTURE = ("arch", "width", "factory")


def _without_code(architecture: Mapping[str, Any]) -> str:
    """Write down an architecture, without the hashes of its code, which the run's logits are the judge of."""
    factory = architecture["factory"]
    built = f" by {factory['callable']} with {dict(factory['arguments'])}" if factory else ""
    return f"{architecture['arch']} of width {architecture['width']}{built}"


def _compare_logits(model: Classifier, content: Mapping[str, Any]) -> float | None:
    """Return what probe_difference does; None for a checkpoint of before logits were recorded.

    A copy of the model is evaluated, because a network may keep tensors from its first evaluation. Raises ValueError if
    the checkpoint lacks logits that its metadata announce.
    """
    announced, probe = content["meta"].get("probe_images"), content.get("probe")
    if announced is None and probe is None:
        return None
    if not announced or probe is None or len(probe["images"]) != announced:
        raise ValueError("it has not the logits that its metadata announce")
    return probe_difference(copy.deepcopy(model), probe)


def _unusable(checkpoint: Path, meta: Mapping[str, Any], why: str) -> str:
    """Explain why a checkpoint cannot be used: its architecture's code has changed, or else it is damaged."""
    if changes := _architecture_changes(meta):
        return (
            f"{checkpoint} does not fit its architecture, whose code has changed since it was trained: {changes}; "
            f"restore the code, or train again ({why})"
        )
    return f"{checkpoint} is damaged, or not a checkpoint of this version: delete it and train again ({why})"


def _check_behaviour(checkpoint: Path, meta: Mapping[str, Any], difference: float | None) -> None:
    """Raise ValueError, which says what has changed, if a network gives other logits than it did when it was trained.

    difference: as probe_difference returns it, or None for a checkpoint that has nothing to compare with.
    """
    if difference is None:
        log.warning("%s holds no logits to compare with, so it cannot be verified that this is its network", checkpoint)
    elif not difference <= TOLERANCE:
        changes = [_architecture_changes(meta)]
        if not changes[0] and meta.get("code_hash") != code_hash(meta["factory"]):
            changes.append("the code of robreg was edited")
        if meta.get("torch") != torch.__version__:
            changes.append(f"torch was {meta.get('torch')}, is {torch.__version__}")
        found = "; ".join(change for change in changes if change)
        raise ValueError(
            f"{checkpoint}: this is not the network that was trained: its logits differ by {100 * difference:.3g} % of "
            f"the largest one. {f'Since then {found}' if found else _UNKNOWN}: undo that, or train again"
        )


def _architecture_changes(meta: Mapping[str, Any]) -> str:
    """Describe how the code of a user-defined architecture has changed since the training; "" if it has not."""
    factory = meta.get("factory") or {}
    recorded = factory.get("code")  # missing in older checkpoints
    return describe_changes(factory["callable"], recorded) if isinstance(recorded, dict) else ""

"""Read checkpoints: build the network that one holds, and refuse one that is not what it states."""

import copy
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.data.errors import describe_error, printable
from robreg.networks.build import build_network, first_layer
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.probe import TOLERANCE, check_probe, probe_difference
from robreg.networks.tensor_file import load_file
from robreg.networks.user_defined import ArchitectureError
from robreg.runs.source_code import describe_changes
from robreg.tables.provenance import code_hash

log = logging.getLogger(__name__)


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


_META_TYPES = {  # metadata of a checkpoint in addition to what its network is built from
    "dataset": str,
    "variant": str,
    "seed": int,
    "threads": int,
    "data_sha256": str,
    "settings_hash": str,
    "version": str,
}
_SIZES = {"width": 2**16, "classes": 2**20}  # the largest that a checkpoint may state
_LONGEST = 200  # letters of a file's text in a message


def _check_description(meta: Mapping[str, Any]) -> None:
    """Raise ValueError if what a network is built from, or what measures need, has another form than it must have.

    Raises KeyError if something is missing.
    """
    for key, kind in _META_TYPES.items():
        if type(meta[key]) is not kind:
            raise ValueError(f"{key} is not of type {kind.__name__}")
    shape, factory = meta["shape"], meta["factory"]
    right = {key: type(meta[key]) is int and 0 < meta[key] <= most for key, most in _SIZES.items()}
    right["arch"] = type(meta["arch"]) is str and len(meta["arch"]) <= _LONGEST
    right["shape"] = type(shape) is list and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    for key in ("mean", "std"):
        right[key] = type(meta[key]) is list and all(type(one) in (int, float) for one in meta[key])
        right[key] = right[key] and right["shape"] and len(meta[key]) == shape[0]
    right["factory"] = factory is None or (
        isinstance(factory, dict)
        and type(factory["callable"]) is str
        and isinstance(factory["arguments"], dict)
        and type(factory.get("normalises", False)) is bool
    )
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise ValueError(f"{wrong[0]} is not what a checkpoint of this project has")


def _check_normalisation(weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Raise ValueError if the normalisation is not that of the metadata; KeyError if it is missing."""
    for name, value in Normalise(meta["mean"], meta["std"]).state_dict().items():
        if not torch.equal(weights[f"normalise.{name}"], value):
            raise ValueError(f"normalise.{name} does not match the metadata")


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
    >>> meta["dataset"], meta["classes"]
    ('digits', 10)
    """
    model, meta, _ = load_with_images(Path(checkpoint), architecture=architecture)
    return model.to(device), meta


def load_with_images(
    checkpoint: Path, *, architecture: Mapping[str, Any] | nn.Module | None = None
) -> tuple[Classifier, dict[str, Any], Tensor]:
    """Load a network onto the CPU and its metadata, as load_network does, and the test images that are kept with them.

    The images are uint8 (N, C, H, W): the first N of the test set, where N is 0 for a checkpoint that holds none.
    """
    meta: dict[str, Any] = {}
    try:
        content = load_file(checkpoint, "cpu")
        _check_description(content["meta"])
        weights = content["model"]
        meta = {**content["meta"], "arch": _architecture_name(content["meta"], weights)}
        _check_normalisation(weights, meta)
        model = _build(checkpoint, meta, architecture)
        load_weights(model, weights)
        bad = [name for name, value in weights.items() if not bool(value.isfinite().all())]
        difference = None if bad else _compare_logits(model, content)
    except (FileNotFoundError, ArchitectureError):
        raise
    except Exception as error:  # damaged files can raise any kind of error
        raise ValueError(_unusable(checkpoint, meta, describe_error(error))) from error
    if bad:
        raise ValueError(
            f"{checkpoint}: {printable(bad[0])} holds values that are not finite: delete it and train again"
        )
    _check_behaviour(checkpoint, meta, difference)
    images = torch.empty(0, *meta["shape"], dtype=torch.uint8) if difference is None else content["probe"]["images"]
    return model.eval(), meta, images


def _architecture_name(meta: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return the present name of a network's architecture: without biases, resnet56nobias was once called resnet56."""
    old = re.fullmatch(r"resnet\d+", meta["arch"]) and meta["factory"] is None and "network.bias1" not in weights
    return f"{meta['arch']}nobias" if old else meta["arch"]


def _build(checkpoint: Path, meta: Mapping[str, Any], architecture: Mapping[str, Any] | nn.Module | None) -> Classifier:
    """Build the network of a checkpoint without any code or size that only the file names.

    The package's large architectures are built on the device "meta": they need no memory until they get the weights.
    """
    if isinstance(architecture, nn.Module):
        return Classifier(first_layer(meta["mean"], meta["std"], meta["factory"]), architecture)
    if architecture is None and meta["factory"] is not None:
        raise ArchitectureError(
            f"{checkpoint} holds a network of the user-defined architecture {meta['arch']!r}, and what a file names is "
            "not imported: give the network, as in robreg.load(checkpoint, architecture=MyNet(num_classes=10))"
        )
    stated, own = ({key: one[key] for key in ("arch", "width", "factory")} for one in (meta, architecture or meta))
    if _without_code(stated) != _without_code(own):
        raise ArchitectureError(
            f"{checkpoint} states that its network is {_describe(stated)}, but by config.yaml that of its run is "
            f"{_describe(own)}; train again, or correct config.yaml"
        )
    options = {**{key: meta[key] for key in ("shape", "classes", "mean", "std")}, **own}
    if own["factory"] is not None or _is_small(meta):
        return build_network(**options)
    with torch.device("meta"):
        return build_network(**options)


def _is_small(meta: Mapping[str, Any]) -> bool:
    """Return whether any network that the metadata can state takes less than 200 MB; building it directly is faster."""
    depth = re.fullmatch(r"(?:resnet|fixup)(\d{1,3})(?:nobias)?", meta["arch"])
    sizes = (meta["width"], *meta["shape"][:1], meta["classes"] / 16)
    return depth is not None and int(depth[1]) <= 110 and all(size <= 64 for size in sizes)


_UNKNOWN = "Nothing that is recorded has changed since, so its weights have, or code or files that are not recorded"


def _without_code(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the hashes of an architecture's code, which the run's logits are the judge of."""
    factory = architecture["factory"]
    return {**architecture, "factory": factory and {key: value for key, value in factory.items() if key != "code"}}


def _describe(architecture: Mapping[str, Any]) -> str:
    """Describe an architecture in a few words, of which some may come from a file."""
    factory = architecture["factory"]
    built = f" by {factory['callable']} with {dict(factory['arguments'])}" if factory else ""
    built += ", normalising its input itself" if factory and factory.get("normalises") else ""
    return printable(f"{architecture['arch']} of width {architecture['width']}{built}"[: 2 * _LONGEST])


def _compare_logits(model: Classifier, content: Mapping[str, Any]) -> float | None:
    """Return what probe_difference does; None for a checkpoint that holds no logits.

    A copy of the model is evaluated, because a network may keep tensors from its first evaluation. Raises ValueError if
    the checkpoint lacks logits that its metadata announce.
    """
    announced, probe = content["meta"].get("probe_images"), content.get("probe")
    if not announced and (probe is None or not len(probe["images"])):
        return None
    if not announced or probe is None or len(probe["images"]) != announced:
        raise ValueError("it has not the logits that its metadata announce")
    check_probe(probe, content["meta"]["shape"])
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

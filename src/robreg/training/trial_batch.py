"""Try a network on one batch before it is trained, so that one that cannot be trained is refused at once."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from robreg.data.dataset import Dataset, to_float
from robreg.data.errors import describe_error
from robreg.networks.classifier import Classifier
from robreg.networks.user_defined import ArchitectureError

IMAGES = 8  # of a trial: enough for batch normalisation, and few enough for any device
_EXPECTED = "it must return logits (batch, classes)"

log = logging.getLogger(__name__)


class _SingleImageError(ArchitectureError):
    """Batch normalisation cannot be trained with a single image."""


def try_batch(model: Classifier, settings: Mapping[str, Any], data: Dataset) -> bool:
    """Compute one batch forward and backward, in evaluation and in training mode, and try the last batch of an epoch.

    Copies of the network are used, and the state of torch's random numbers is restored, so that no result changes.
    Returns whether the last image of an epoch must join the batch before it: whether it is alone in its batch, and the
    network has batch normalisation that cannot be trained with a single image.
    Raises ArchitectureError, with the fix, unless the network returns finite logits (batch, classes) that depend on the
    images and, in training, on its weights.
    """
    arch, size, attack = settings["arch"], settings["training"]["batch_size"], settings["train_attack"]
    copies = 2 if attack is not None and attack.get("clean_share") else 1  # how often a step computes with an image
    device = model.normalise.mean.device
    images, labels = (part[: min(size, IMAGES)].to(device) for part in data.split("train"))
    alone = size > 1 and len(data.train_labels) % size == 1
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        try_evaluation(model, arch, data)
        batch = images.repeat(copies, 1, 1, 1), labels.repeat(copies)
        _try(model, *batch, data.classes, f"{arch}: in training mode", training=True)
        if not alone:
            return False
        batch = images[:1].repeat(copies, 1, 1, 1), labels[:1].repeat(copies)
        try:
            _try(model, *batch, data.classes, f"{arch}: in the last batch of an epoch, of one image", training=True)
        except _SingleImageError:
            log.info("batch normalisation needs several images: the last image of an epoch joins the batch before it")
            return True
    return False


def try_evaluation(model: Classifier, arch: str, data: Dataset) -> None:
    """Compute a few images forward and backward in evaluation mode, and raise as try_batch does."""
    device = model.normalise.mean.device
    images, labels = (part[:IMAGES].to(device) for part in data.split("train"))
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        _try(model, images, labels, data.classes, f"{arch}: in evaluation mode")


def _try(model: nn.Module, images: Tensor, labels: Tensor, classes: int, where: str, *, training: bool = False) -> None:
    """Compute a batch of uint8 images forward and backward with a copy of a network. where: how a message begins."""
    trial = copy.deepcopy(model).train(training)
    x = to_float(images).requires_grad_()  # (B, C, H, W)
    weights = [weight for weight in trial.parameters() if training and weight.requires_grad]
    gradients: tuple[Tensor | None, ...] = (None,)
    try:
        logits = trial(x)
        _check_logits(logits, len(x), classes, where)
        if logits.requires_grad:
            loss = functional.cross_entropy(logits, labels)
            gradients = torch.autograd.grad(loss, [x, *weights], allow_unused=True)
    except (ArchitectureError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a user's network may raise anything
        if training and len(x) == 1 and isinstance(error, ValueError) and _has_batch_norm(trial):
            raise _SingleImageError(
                f"{where}, batch normalisation cannot be trained with a single image; give a larger "
                "training.batch_size, or more training images"
            ) from error
        raise ArchitectureError(
            f"{where}, the network cannot compute with images {tuple(x.shape)} ({describe_error(error)})"
        ) from error
    if gradients[0] is None:
        raise ArchitectureError(
            f"{where}, no gradient of the logits reaches the images, so that no attack is possible; remove detach(), "
            "torch.no_grad() and conversions to other types from forward"
        )
    if training and all(gradient is None for gradient in gradients[1:]):
        raise ArchitectureError(f"{where}, no gradient reaches a weight of the network; give it weights to train")


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _check_logits(logits: Any, n: int, classes: int, where: str) -> None:  # noqa: ANN401 - a user's network made it
    """Raise ArchitectureError unless logits are finite floats (n, classes)."""
    if not isinstance(logits, Tensor):
        raise ArchitectureError(f"{where}, the network returned a {type(logits).__name__}; {_EXPECTED}")
    if logits.ndim != 2 or len(logits) != n:
        found = f"a tensor {tuple(logits.shape)} for {n} images"
        raise ArchitectureError(f"{where}, the network returned {found}; {_EXPECTED}")
    if logits.shape[1] != classes:
        found = f"{logits.shape[1]} outputs per image, but the data have {classes} classes"
        raise ArchitectureError(f"{where}, the network returned {found}; {_EXPECTED}")
    if not logits.is_floating_point():
        raise ArchitectureError(f"{where}, the network returned {logits.dtype}; {_EXPECTED} as floats")
    if not bool(logits.isfinite().all()):
        fix = "look for a division by zero, a logarithm of zero, or initial weights that are too large"
        raise ArchitectureError(f"{where}, the network returned logits that are not finite; {fix}")

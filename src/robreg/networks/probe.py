"""The logits of a few images, kept with a network's weights, which show later whether the network is still the same.

Weights alone do not: the code that builds the network around them may have been edited since.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robreg.data.dataset import to_float
from robreg.networks.classifier import Classifier
from robreg.networks.user_defined import ArchitectureError

IMAGES = 8
MAX_PIXELS = 2**18  # of all images together: whoever wrote a checkpoint must not decide what it takes to open it
# Largest difference between two logits, as a fraction of the largest logit. Among CPUs with and without AVX, 1 to 4
# threads, batches of 1 and of 8, torch 2.11 and 2.14, ResNet-56 and a wide ResNet-50 differ by 2e-6 at most. Evaluated
# in bf16, which is a small change that matters, they differ by 4e-3 at least.
TOLERANCE = 1e-4


def first_images(images: Tensor) -> Tensor:
    """Choose the images that logits are compared on, uint8 (N, C, H, W): the first ones, on the CPU.

    These are IMAGES, or fewer if they have more than MAX_PIXELS together, but at least one.
    """
    return images[: max(1, min(IMAGES, MAX_PIXELS // images[0, 0].numel()))].cpu().clone()


def make_probe(model: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Record the logits (N, classes) that a network gives to the first images, uint8 (N, C, H, W), with these images.

    Nothing is recorded (N = 0) if one image has more than MAX_PIXELS. Raises ArchitectureError as evaluate does.
    """
    chosen = first_images(images)
    logits = evaluate(model, chosen)
    n = len(chosen) if chosen[:, 0].numel() <= MAX_PIXELS else 0
    return {"images": chosen[:n].clone(), "logits": logits[:n].clone()}


def check_probe(probe: Mapping[str, Any], shape: Sequence[int]) -> None:
    """Raise ValueError if recorded images and logits from a file cannot be those of a network for images of `shape`.

    shape: (C, H, W). Raises KeyError, TypeError or AttributeError for other damage.
    """
    images, logits = probe["images"], probe["logits"]
    if images.dtype != torch.uint8 or logits.dtype != torch.float32 or len(images) != len(logits):
        raise ValueError("its recorded images and logits do not belong together")
    if tuple(images.shape[1:]) != tuple(shape):
        raise ValueError("its recorded images have another shape than its metadata state")
    if len(images) > IMAGES or images[:, 0].numel() > MAX_PIXELS:
        raise ValueError("its recorded images are too many or too large")


def probe_difference(model: Classifier, probe: Mapping[str, Any]) -> float:
    """Return the largest difference between a network's logits and the recorded ones, relative to the largest of these.

    It is inf or NaN if they cannot be compared.
    """
    logits, recorded = evaluate(model, probe["images"]), probe["logits"]
    if logits.shape != recorded.shape:
        return float("inf")
    if torch.equal(logits, recorded):
        return 0.0
    return float((logits - recorded).abs().max() / recorded.abs().max())


def evaluate(model: Classifier, images: Tensor) -> Tensor:
    """Compute the logits (N, classes) of images, uint8 (N, C, H, W), in eval mode and float32, on the model's device.

    The result is on the CPU. The mode of every module stays, and so does the state of torch's random numbers. Raises
    ArchitectureError if the network does not return logits.
    """
    device, modes = model.normalise.mean.device, [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device]), torch.no_grad():
            torch.manual_seed(0)  # for a network that draws random numbers in eval mode
            logits = model.eval()(to_float(images.to(device)))
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(logits, Tensor) or logits.shape[:1] != images.shape[:1] or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ArchitectureError(
            f"the network returned {found} for {len(images)} images; it must return logits (images, classes)"
        )
    return logits.float().cpu()

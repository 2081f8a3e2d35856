"""One epoch of adversarial training (paper, appendices B.1 and D), with its learning rate and its random numbers."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robreg.attacks.pgd import draw_noise, pixel_radius
from robreg.data.augmentation import random_crop_flip, random_resized_crop_flip
from robreg.data.dataset import to_float
from robreg.runs.settings import DEFAULTS
from robreg.spectra.projection import project
from robreg.training.resume import TrainingState, learning_rate
from robreg.training.step import StepAttack, TrainingStep


class StoppedError(Exception):
    """SIGTERM asked training to stop; resume.pt holds the state after the last finished epoch."""


class DivergedError(ArithmeticError):
    """The loss or a weight is no longer finite."""


def make_step(state: TrainingState, settings: Mapping[str, Any]) -> TrainingStep:
    """Make the step that attacks a batch and trains on the result."""
    spec, attack = settings["training"], settings["train_attack"]
    if attack is not None:
        std = state.model.normalise.std
        eps, step = (pixel_radius(attack[key], settings["space"], std) for key in ("eps", "step"))
        attack = StepAttack(eps, step, attack["steps"], attack.get("clean_share", 0.0))
    options = {key: spec.get(key, default) for key, default in DEFAULTS.items()}
    return TrainingStep(state.model, state.optimizer, attack=attack, **options)


def train_epoch(
    state: TrainingState,
    step: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]],
    settings: Mapping[str, Any],
    images: Tensor,
    labels: Tensor,
    *,
    stop: threading.Event,
) -> dict[str, Any]:
    """Train one epoch and return its history row; to avoid synchronisation, losses stay on the device until the end.

    step: what make_step returns, or a function that calls it.
    """
    spec = settings["training"]
    epoch = len(state.history) + 1
    lr = learning_rate(spec, epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    order, generator = epoch_randomness(settings["seed"], epoch, len(images), images.device)
    losses: list[Tensor] = []
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    batches = split_batches(order, spec["batch_size"], joins_last=state.joins_last)
    for index in batches:
        if stop.is_set():
            raise StoppedError(
                f"SIGTERM in epoch {epoch}: resume.pt holds the state after epoch {epoch - 1}; "
                "start again to resume from there"
            )
        x, noise = prepare_batch(images[index], settings, generator)
        loss, logits = step(x, labels[index], noise)
        losses.append(loss)
        correct += (logits.argmax(1) == labels[index]).sum()
    means = torch.stack(losses).cpu()  # (batches,)
    _raise_if_diverged(state.model, means, epoch, lr)
    sizes = torch.tensor([len(index) for index in batches], dtype=torch.float64)
    mean = float((means.double() * sizes).sum() / len(images))
    bound = settings["spectral_norm"]
    norms = None if bound is None else project(state.layers, bound, settings["clip_rounds"])
    return {"epoch": epoch, "lr": lr, "loss": mean, "acc": 100 * int(correct) / len(images), "sigma_max": norms}


def split_batches(order: Tensor, size: int, *, joins_last: bool) -> tuple[Tensor, ...]:
    """Split an epoch's order of examples into batches; joins_last: the last example, if alone, joins the one before."""
    batches = order.split(size)
    if joins_last and len(batches) > 1 and len(batches[-1]) == 1:
        return (*batches[:-2], torch.cat(batches[-2:]))
    return batches


def prepare_batch(
    images: Tensor, settings: Mapping[str, Any], generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Augment a batch of uint8 images, and draw the noise that its attack starts with.

    Returns floats in [0, 1], (B, C, H, W), and noise of that shape in [-1, 1], or None without a random start.
    The pixels are not checked here, because the data were checked when they were prepared.
    """
    spec, attack = settings["training"], settings["train_attack"]
    if spec["augmentation"] == "crop-flip":
        images = random_crop_flip(images, pad=spec["pad"], generator=generator)
    elif spec["augmentation"] == "resized-crop-flip":
        images = random_resized_crop_flip(images, size=settings["data"]["crop"], generator=generator)
    x = to_float(images)  # (B, C, H, W)
    random = attack is not None and attack["start"] == "random"
    return x, draw_noise(x, generator) if random else None


def epoch_randomness(seed: int, epoch: int, n: int, device: torch.device) -> tuple[Tensor, torch.Generator]:
    """Return an epoch's order of examples and its generator; both follow from seed and epoch, so neither is saved."""
    state = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7])
    torch.manual_seed(state + 2)  # for user-defined networks with dropout or other random layers
    order = torch.randperm(n, generator=torch.Generator().manual_seed(state))
    return order.to(device), torch.Generator(device).manual_seed(state + 1)


def _raise_if_diverged(model: nn.Module, losses: Tensor, epoch: int, lr: float) -> None:
    """Raise DivergedError for the first batch with a bad loss, or for bad weights, before the epoch is saved."""
    bad = (~losses.isfinite()).nonzero()
    hint = "lower training.lr, or the strength of the attack"
    if len(bad):
        batch = int(bad[0])
        raise DivergedError(f"epoch {epoch}, batch {batch + 1}: loss {float(losses[batch])} at lr {lr:g}; {hint}")
    if not bool(torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all()):
        raise DivergedError(
            f"epoch {epoch}, batch {len(losses)}: weights not finite at lr {lr:g}, loss {losses[-1]}; {hint}"
        )

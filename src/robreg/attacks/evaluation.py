"""Count the examples that a network classifies correctly, and those that stay correct under attack."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robreg.attacks.pgd import pgd, pixel_radius, uniform_noise
from robreg.data.dataset import to_float
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]  # (examples' positions in their split, x, y) -> adversarial x


def evaluate(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    spec: Mapping[str, Any],
    *,
    batch: int,
    correct: Tensor | None = None,
) -> dict[str, float | None]:
    """Count the examples that are classified correctly, and those that stay correct under every restart of PGD.

    images: (N, C, H, W) uint8; labels: (N,); spec: eps and step in 1/255, steps, restarts, start, space and seed;
    batch: the number of images at a time; correct: the result of correctly_classified, if it is already known.
    Everything is computed in fp32. Returns n, n_correct, n_robust and, in percent, acc_conditional, which is n_robust /
    n_correct (the paper's accuracy; None if no example is correct), and acc_robust, which is n_robust / n.
    """
    if correct is None:
        correct = correctly_classified(model, images, labels, batch=batch)
    return count_robust(correct, survivors(model, images, labels, restarts(model, spec), correct=correct, batch=batch))


def restarts(model: Classifier, spec: Mapping[str, Any]) -> list[Attack]:
    """Return the restarts of PGD, each as an attack of its own. spec: as in evaluate."""
    eps, step = (pixel_radius(spec[key], spec["space"], model.normalise.std) for key in ("eps", "step"))

    def attack(index: Tensor, x: Tensor, y: Tensor, *, restart: int) -> Tensor:
        random = spec["start"] == "random"
        noise = uniform_noise(index, tuple(x.shape[1:]), seed=spec["seed"], restart=restart) if random else None
        return pgd(model, x, y, eps=eps, step=step, steps=spec["steps"], noise=noise)

    return [partial(attack, restart=restart) for restart in range(spec["restarts"])]


def correctly_classified(model: nn.Module, images: Tensor, labels: Tensor, *, batch: int) -> Tensor:
    """Return which images (N, C, H, W) uint8 are classified as their labels (N,): (N,) bool on the CPU."""
    device = next(model.parameters()).device
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    return torch.cat([_is_correct(model, to_float(x.to(device)), y.to(device)).cpu() for x, y in parts])


def survivors(
    model: nn.Module, images: Tensor, labels: Tensor, attacks: Sequence[Attack], *, correct: Tensor, batch: int
) -> Tensor:
    """Return which of the correct examples stay correct under every attack: (N,) bool on the CPU.

    images: (N, C, H, W) uint8; labels: (N,); correct: (N,) bool. Each attack runs on the examples that the previous
    ones did not fool, in full batches, of which only the last may be smaller.
    """
    device = next(model.parameters()).device
    robust = correct.clone()
    for attack in attacks:
        standing = robust.nonzero()[:, 0]
        for index in standing.split(batch) if len(standing) else ():
            x, y = to_float(images[index].to(device)), labels[index].to(device)
            robust[index] = _is_correct(model, attack(index, x, y), y).cpu()
    return robust


def count_robust(correct: Tensor, robust: Tensor) -> dict[str, float | None]:
    """Count the examples in two masks (N,) bool, and give the robust ones in percent.

    acc_conditional refers to the correct examples (None if there are none), acc_robust to all examples.
    """
    n, n_correct, n_robust = len(correct), int(correct.sum()), int(robust.sum())
    return {
        "n": n,
        "n_correct": n_correct,
        "n_robust": n_robust,
        "acc_conditional": 100 * n_robust / n_correct if n_correct else None,
        "acc_robust": 100 * n_robust / n,
    }


@torch.no_grad()
def _is_correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with frozen(model):
        logits = model(x)  # (B, classes)
    if bad := int((~logits.isfinite()).any(1).sum()):  # without this check they would count as misclassified
        raise ValueError(
            f"the network's outputs are not finite on {bad} of {len(x)} images, so accuracy cannot be measured: "
            "its weights are too large or damaged; delete checkpoint.pt and train it again"
        )
    return logits.argmax(1) == y

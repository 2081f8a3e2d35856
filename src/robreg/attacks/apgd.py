"""APGD, AutoAttack's PGD with an adaptive step size (Croce and Hein 2020), in an l_inf ball in pixel space."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.evaluation import Attack, correctly_classified, count_robust, survivors
from robreg.attacks.pgd import Radius, check_inputs, pixel_radius, refuse_nonfinite_gradient, uniform_noise
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen

MOMENTUM = 0.75  # alpha: weight of the new gradient step in an update; the rest is the previous update
RISES = 0.75  # rho: the step is halved if at most this fraction of a window's steps raised the loss

Loss = Callable[[Tensor, Tensor], Tensor]

log = logging.getLogger(__name__)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of y (B,) given logits (B, classes), in nats: (B,)."""
    return functional.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio, -(z_y - largest other) / (z_1st - z_3rd), for each example: (B,).

    y: (B,); logits: (B, classes). Unlike the cross entropy, it does not depend on the scale of the logits, so its
    gradient does not vanish for confident networks. Raises ValueError if there are fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"apgd: the loss dlr needs at least 3 classes, not {logits.shape[1]}: use cross_entropy")
    ordered, classes = logits.sort(dim=1)
    other = torch.where(classes[:, -1] == y, ordered[:, -2], ordered[:, -1])
    own = logits.gather(1, y[:, None])[:, 0]
    return (other - own) / (ordered[:, -1] - ordered[:, -3] + 1e-12)  # 1e-12, as the authors': the three may be equal


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "dlr": dlr}


def apgd(  # noqa: PLR0913 - an attack is its settings
    model: nn.Module, x: Tensor, y: Tensor, *, eps: Radius, steps: int, loss: str, noise: Tensor | None = None
) -> Tensor:
    """Increase a loss by steps that begin at 2 eps and are halved, from the best point so far, when progress stalls.

    loss: "cross_entropy" or "dlr". The other arguments, the start and the errors are those of robreg.attacks.pgd.pgd,
    and the model is left unchanged as there. Returns images of the shape and type of x: each example's first iterate
    that is misclassified or, if there is none, its iterate of highest loss.

    >>> import robreg, torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> adversarial = robreg.apgd(model, x, y, eps=8 / 255, steps=20, loss="dlr")
    >>> bool(((adversarial - x).abs() <= 8 / 255 + 1e-6).all())
    True
    """
    check_inputs(x, y, eps=eps, step=0, steps=steps, noise=noise)
    if loss not in LOSSES:
        raise ValueError(f"apgd: loss must be {' or '.join(LOSSES)}, not {loss!r}")
    x = x.detach()
    adversarial, remaining = x.clone(), torch.arange(len(x), device=x.device)
    with frozen(model):
        for state in apgd_iterates(model, x, y, eps=eps, steps=steps, loss=LOSSES[loss], noise=noise):
            adversarial[remaining] = _choose(state.correct, state.best, state.point)
            remaining = remaining[state.correct]
            if not len(remaining):
                break
            state.keep(state.correct)  # an example that is misclassified needs no more steps
    return adversarial


def evaluate(  # noqa: PLR0913 - an attack is its settings
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    spec: Mapping[str, Any],
    *,
    losses: Sequence[str],
    batch: int,
    correct: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return a table row for each loss, and a row "worst" for the examples that stay correct under all losses.

    images: (N, C, H, W) uint8; labels: (N,); spec: eps in 1/255, steps, restarts, space and seed; batch: the number of
    images at a time; correct: the result of correctly_classified, if it is already known. Each loss attacks all correct
    examples from its own random starts; each restart attacks those that the previous ones did not fool. Everything is
    computed in fp32.
    """
    setting = {**spec, "attack": "apgd", "start": "random", "step": 2 * spec["eps"], "split": "test"}
    if correct is None:
        correct = correctly_classified(model, images, labels, batch=batch)
    rows, survived = [], []
    for loss in losses:
        robust = survivors(model, images, labels, _attacks(model, spec, loss), correct=correct, batch=batch)
        rows.append({**setting, "loss": loss, **count_robust(correct, robust)})
        survived.append(robust)
        log.info(
            "%s: %d of %d correctly classified examples remain correct", loss, int(robust.sum()), int(correct.sum())
        )
    return [*rows, {**setting, "loss": "worst", **count_robust(correct, torch.stack(survived).all(0))}]


def _attacks(model: Classifier, spec: Mapping[str, Any], loss: str) -> list[Attack]:
    """Return one attack per restart."""
    eps = pixel_radius(spec["eps"], spec["space"], model.normalise.std)
    first = (1 + list(LOSSES).index(loss)) << 32  # the losses and PGD (which uses 0) have different starts

    def attack(index: Tensor, x: Tensor, y: Tensor, *, restart: int) -> Tensor:
        noise = uniform_noise(index, tuple(x.shape[1:]), seed=spec["seed"], restart=first + restart)
        return apgd(model, x, y, eps=eps, steps=spec["steps"], loss=loss, noise=noise)

    return [partial(attack, restart=restart) for restart in range(spec["restarts"])]


@dataclass
class State:
    """The state of APGD; every tensor has one entry per example: images are (B, C, H, W), numbers (B,)."""

    y: Tensor
    low: Tensor
    high: Tensor
    step: Tensor  # (B, C or 1, 1, 1)
    point: Tensor
    before: Tensor  # the previous point
    gradient: Tensor
    correct: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    rises: Tensor  # number of steps since the last check that raised the loss
    checked: Tensor  # best_loss at the last check of the step size
    halved: Tensor  # whether the last check halved the step

    def keep(self, chosen: Tensor) -> None:
        """Keep only the chosen examples, (B,) bool."""
        if not bool(chosen.all()):
            for field in fields(self):
                setattr(self, field.name, getattr(self, field.name)[chosen])

    def move(self, momentum: float) -> None:
        """Step along the gradient's sign, with weight momentum, plus the previous update, with weight 1 - momentum."""
        ascent = (self.point + self.step * self.gradient.sign()).clamp(self.low, self.high)
        mixed = self.point + momentum * (ascent - self.point) + (1 - momentum) * (self.point - self.before)
        self.before, self.point = self.point, mixed.clamp(self.low, self.high)

    def look(self, loss: Tensor, gradient: Tensor, correct: Tensor) -> None:
        """Record what was measured at the current point, which becomes the best point if its loss is the highest."""
        better = loss > self.best_loss
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient, self.correct = loss, gradient, correct
        self.best = _choose(better, self.point, self.best)
        self.best_gradient = _choose(better, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def halve(self, window: int) -> None:
        """Halve the step and return to the best point for examples that make too little progress.

        These are examples whose loss rose in too few of the last window steps, and those whose best loss has not
        improved since the last check, if that check did not halve the step.
        """
        stalled = ~self.halved & (self.checked >= self.best_loss)
        self.halved = stalled | (self.rises <= RISES * window)
        self.step = _choose(self.halved, self.step / 2, self.step)
        self.point = _choose(self.halved, self.best, self.point)
        self.gradient = _choose(self.halved, self.best_gradient, self.gradient)
        self.rises, self.checked = torch.zeros_like(self.rises), self.best_loss


def apgd_iterates(  # noqa: PLR0913 - an attack is its settings
    model: nn.Module, x: Tensor, y: Tensor, *, eps: Radius, steps: int, loss: Loss, noise: Tensor | None
) -> Iterator[State]:
    """Yield the state of APGD at the start and after every step.

    It is always the same object, and the caller may reduce it to fewer examples in between (see State.keep). The
    arguments are not checked: x must be in [0, 1], and the caller must have frozen the model.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)  # (B, C, H, W)
    point = x if noise is None else (x + eps * noise.to(x)).clamp(low, high)
    step = (2 * torch.as_tensor(eps).to(x)).view(1, -1, 1, 1).repeat(len(x), 1, 1, 1)
    value, gradient, correct = _loss_gradient_correct(model, point, y, loss)
    zero = torch.zeros_like(value)
    state = State(
        y=y,
        low=low,
        high=high,
        step=step,
        point=point,
        before=point,
        gradient=gradient,
        correct=correct,
        loss=zero,  # as in the authors' code, the first step is compared with 0 and not with the loss at the start
        best=point,
        best_gradient=gradient,
        best_loss=value,
        rises=zero,
        checked=value,
        halved=torch.ones_like(correct),
    )
    yield state
    windows = _windows(steps)
    for number in range(1, steps + 1):
        state.move(MOMENTUM if number > 1 else 1)
        state.look(*_loss_gradient_correct(model, state.point, state.y, loss))
        yield state
        if number in windows:
            state.halve(windows[number])


def _windows(steps: int) -> dict[int, int]:
    """Return the steps after which the step size is checked, each with the length of the window that the check covers.

    The first window is 22 % of all steps, and each further one is shorter by 3 % of all steps, down to 6 % (section 3.1
    of Croce and Hein 2020).
    """
    window, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    windows, number = {}, window
    while number <= steps:
        windows[number] = window
        window = max(window - shorter, least)
        number += window
    return windows


def _loss_gradient_correct(model: nn.Module, point: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss (B,), its gradient with respect to the input, and whether the prediction is correct (B,)."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        logits = model(point)
        value = loss(logits, y)
        (gradient,) = torch.autograd.grad(value.sum(), point)
    refuse_nonfinite_gradient(gradient)
    return value.detach(), gradient, logits.argmax(1) == y


def _choose(where: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Take each example's entry from one if where (B,) is true, else from other; both are (B, C, H, W)."""
    return torch.where(where.view(-1, 1, 1, 1), one, other)

"""Attacks within an l_inf ball: pure functions of (model, x, y) in pixel space [0, 1] (Madry et al. 2018)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.networks.frozen import frozen

Radius = float | Tensor  # one number, or one per channel, (C, 1, 1)


def pgd(  # noqa: PLR0913 - an attack is its settings
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    step: Radius,
    steps: int,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ascend the cross entropy of y by signed gradient steps, projected on the ball of radius eps and on [0, 1].

    x: (B, C, H, W) in [0, 1]; y: (B,) int64; eps, step: in pixel units of [0, 1], >= 0, per image or per channel.
    The start is x + eps * noise for noise in [-1, 1] (see uniform_noise), or drawn uniformly from generator, or x.
    Returns adversarial images like x, detached. The model is run in eval mode; its mode and its parameters' .grad are
    left as found. Raises ValueError for x outside [0, 1] or not finite and for settings out of range.

    >>> import robreg, torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> adversarial = robreg.pgd(model, x, y, eps=8 / 255, step=2 / 255, steps=10)
    >>> bool(((adversarial - x).abs() <= 8 / 255 + 1e-6).all())
    True
    """
    check_inputs(x, y, eps=eps, step=step, steps=steps, noise=noise)
    if noise is None and generator is not None:
        noise = draw_noise(x, generator)
    if steps == 0:
        return x.detach().clone()
    adversarial = x = x.detach()
    with frozen(model):
        total = x.new_zeros(())
        for adversarial, _ in pgd_iterates(model, x, y, eps=eps, step=step, steps=steps, noise=noise, total=total):  # noqa: B007
            pass
    refuse_nonfinite_gradient(total)
    return adversarial


def fgsm(  # noqa: PLR0913 - an attack is its settings
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    step: Radius | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Take one signed gradient step (Goodfellow et al. 2015): plainly from x by eps unless told otherwise.

    Arguments, result and errors as for pgd; noise or generator with step 1.25 eps is Wong et al. 2020's variant.
    """
    return pgd(model, x, y, eps=eps, step=eps if step is None else step, steps=1, noise=noise, generator=generator)


def pixel_radius(strength: float, space: str, std: Tensor) -> Radius:
    """Turn 1/255 units into pixel units: the one place where this is done.

    space "pixel": a number; "normalised": the radius after division by the channel std (C, 1, 1), seen in pixels.
    """
    if space not in ("pixel", "normalised"):
        raise ValueError(f"attack: space must be pixel or normalised, not {space!r}")
    return strength / 255 if space == "pixel" else strength / 255 * std


def uniform_noise(index: Tensor, shape: tuple[int, ...], *, seed: int, restart: int = 0) -> Tensor:
    """Draw one start per example in [-1, 1) that depends on (seed, example index, restart) alone, not on the batch.

    index: (B,) int64, the examples' places in their split; shape: (C, H, W). Returns (B, C, H, W) float64 on the CPU.
    """
    streams = [np.random.Philox(key=[seed, restart], counter=[0, 0, 0, int(i)]) for i in index]
    noise = np.stack([np.random.Generator(stream).random(shape) for stream in streams])
    return torch.from_numpy(2 * noise - 1)


def draw_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a start in [-1, 1) for a batch from a generator on x's device: fast, for training."""
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device).mul_(2).sub_(1)


def pgd_iterates(  # noqa: PLR0913 - an attack is its settings
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    step: Radius,
    steps: int,
    noise: Tensor | None,
    total: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the start and every iterate of PGD with its loss (B,); the last one's loss is not needed: None.

    Unchecked: x is in [0, 1] and the model is frozen by the caller. total: (), to which all gradients are added, for
    refuse_lost; training does without, for nothing may wait for the device there.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)  # (B, C, H, W)
    point = x if noise is None else (x + eps * noise.to(x)).clamp(low, high)
    for _ in range(steps):
        loss, gradient = _loss_and_gradient(model, point, y)
        if total is not None:
            total += gradient.sum()
        yield point, loss
        point = (point + step * gradient.sign()).clamp(low, high)
    yield point, None


def refuse_nonfinite_gradient(gradient: Tensor) -> None:
    """Raise ValueError if a gradient is not finite: its sign is 0, and the attack would seem to be withstood."""
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            "attack: the network's gradient is not finite, so the attack leads nowhere: its weights are too large or "
            "damaged; delete checkpoint.pt and train it again"
        )


def check_inputs(x: Tensor, y: Tensor, *, eps: Radius, step: Radius, steps: int, noise: Tensor | None) -> None:
    """Raise ValueError for what no attack accepts: see pgd."""
    if x.ndim != 4 or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"attack: x must be (B, C, H, W) and y (B,) int64, not {tuple(x.shape)} and {tuple(y.shape)} {y.dtype}"
        )
    if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):  # false for NaN too
        raise ValueError("attack: x must be finite pixels in [0, 1]; normalisation belongs in the model's first layer")
    for name, radius in (("eps", eps), ("step", step)):
        value = torch.as_tensor(radius)
        if value.ndim and value.shape not in ((1, 1, 1), (x.shape[1], 1, 1)):
            raise ValueError(f"attack: {name} must be one number or (C, 1, 1), not {tuple(value.shape)}")
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(
                f"attack: {name} must be in [0, 1], in pixel units, not {radius}; divide 1/255 units by 255"
            )
    if steps < 0:
        raise ValueError(f"attack: steps must be at least 0, not {steps}")
    if noise is not None and (noise.shape != x.shape or not bool((noise.abs() <= 1).all())):
        raise ValueError("attack: noise must have x's shape and lie in [-1, 1]")


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each example's cross entropy with respect to its pixels, like x; the model is frozen."""
    return _loss_and_gradient(model, x, y)[1]


def _loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # With respect to the input only: no gradient reaches the weights, and a third of the work is saved.
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = functional.cross_entropy(model(x), y, reduction="none")  # (B,)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient

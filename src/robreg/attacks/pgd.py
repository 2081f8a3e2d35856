"""PGD and FGSM: attacks within an l_inf ball, as functions of (model, x, y) in pixel space [0, 1]."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.networks.frozen import frozen

Radius = float | Tensor  # in pixel units: one number, or one per channel, (C, 1, 1)


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
    """Attack with PGD (Madry et al. 2018): take signed gradient steps that increase the cross entropy of y.

    Every step is projected onto the l_inf ball of radius eps around x and onto [0, 1].
    x: (B, C, H, W) in [0, 1]; y: (B,) int64; eps, step: in pixel units, from 0 to 1, one number or one per channel,
    (C, 1, 1). The start is x + eps * noise if noise in [-1, 1] is given (see uniform_noise), uniformly random in the
    ball if a generator is given, and x otherwise.
    Returns detached adversarial images of the shape and type of x. The model runs in eval mode; afterwards its mode and
    the .grad of its parameters are as before. Raises ValueError if x is not finite or not in [0, 1], if a setting is
    out of range, or if the gradient is not finite.

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
    """Take one signed gradient step (Goodfellow et al. 2015), by default from x and of size eps.

    Arguments, result and errors are those of pgd. A random start (noise or generator) with a step of 1.25 eps is the
    variant of Wong et al. 2020.
    """
    return pgd(model, x, y, eps=eps, step=eps if step is None else step, steps=1, noise=noise, generator=generator)


def pixel_radius(strength: float, space: str, std: Tensor) -> Radius:
    """Convert a radius or step from units of 1/255 into pixel units; all attacks convert them here.

    space: "pixel", which gives one number; "symmetric", for pixels that were scaled to [-1, 1], which halves the
    strength; or "normalised", for pixels that were divided by the channels' std (C, 1, 1), which gives one number per
    channel. Raises ValueError for any other space.
    """
    scales: dict[str, Radius] = {"pixel": 1.0, "symmetric": 0.5, "normalised": std}
    if space not in scales:
        raise ValueError(f"attack: space must be one of {', '.join(scales)}, not {space!r}")
    return strength / 255 * scales[space]


def uniform_noise(index: Tensor, shape: tuple[int, ...], *, seed: int, restart: int = 0) -> Tensor:
    """Draw uniform noise in [-1, 1) for each example, which depends only on seed, index and restart, not on the batch.

    index: (B,) int64, the examples' positions in their split; shape: (C, H, W) of an example. Returns (B, C, H, W)
    float64 on the CPU.
    """
    streams = [np.random.Philox(key=[seed, restart], counter=[0, 0, 0, int(i)]) for i in index]
    noise = np.stack([np.random.Generator(stream).random(shape) for stream in streams])
    return torch.from_numpy(2 * noise - 1)


def draw_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw uniform noise in [-1, 1) of the shape of x from a generator on x's device.

    This is fast, for training; the noise of an example depends on its batch.
    """
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
    """Yield the start and every further iterate of PGD, each with its loss (B,), which is None for the last iterate.

    The arguments are not checked: x must be in [0, 1], and the caller must have frozen the model. total: a scalar
    tensor to which all gradients are added, so that the caller can check afterwards that they are finite. Training
    passes None, because the check would make it wait for the device.
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
    """Raise ValueError if a gradient is not finite.

    Its sign would not move the image, so the network would seem to resist the attack.
    """
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            "attack: the network's gradient is not finite, so the attack cannot work: its weights are too large or "
            "damaged; delete checkpoint.pt and train it again"
        )


def check_inputs(x: Tensor, y: Tensor, *, eps: Radius, step: Radius, steps: int, noise: Tensor | None) -> None:
    """Raise ValueError if an argument does not meet the requirements that pgd describes."""
    if x.ndim != 4 or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"attack: x must be (B, C, H, W) and y (B,) int64, not {tuple(x.shape)} and {tuple(y.shape)} {y.dtype}"
        )
    if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):  # the comparison is also false for NaN
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
    """Return the gradient of each example's cross entropy with respect to its pixels, in the shape of x.

    The caller must have frozen the model.
    """
    return _loss_and_gradient(model, x, y)[1]


def _loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # Only the gradient with respect to the input is computed: that saves a third of the work and leaves the weights'
    # .grad alone.
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = functional.cross_entropy(model(x), y, reduction="none")  # (B,)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient

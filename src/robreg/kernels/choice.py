"""Decide whether the attack's kernels are used: where Triton is, and where they give the right gradients."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robreg.attacks.pgd import Radius, input_gradient

Attack = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, y, noise) -> adversarial examples
_MOST = 1.5  # the largest error of a gradient, in errors of the plain network in the same precision
_ROUNDING = 1e-3  # relative, added to it
_FLOAT32 = 1e-6  # of pixels

log = logging.getLogger(__name__)


def fused_attack(  # noqa: PLR0913 - an attack is its settings
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    step: Radius,
    steps: int,
    dtype: torch.dtype,
    tune: bool = False,
) -> Attack | None:
    """Return PGD in kernels for batches like x, or None where it does not apply or gives other gradients.

    The arguments are those of FixupAttack. Whether gradients are right is tried with random weights, because those of
    an untrained network are 0; a warning says so if they are not.
    """
    given: dict[str, Any] = {"eps": eps, "step": step, "steps": steps, "dtype": dtype}
    try:
        from robreg.kernels.fixup_attack import FixupAttack, refusal  # noqa: PLC0415 - needs Triton
    except ImportError:
        log.info("the attack's kernels are not used: Triton is not installed")
        return None
    if reason := refusal(model):
        log.info("the attack's kernels are not used: %s", reason)
        return None
    try:
        trial, attack = _with_random_weights(model), FixupAttack(model, x, **given, tune=tune)
        error, limit = _errors(trial, FixupAttack(trial, x, **given, tune=tune).gradient(x, y), x, y, dtype)
        moved = attack(x, y, None)
        inside = float((moved - x).abs().sub(torch.as_tensor(eps).to(x)).max()) <= _FLOAT32
        error = error if inside else float("inf")
    except Exception as problem:  # a compiler or a driver may raise anything
        log.warning(
            "the attack's kernels are not possible here (%s: %s); training continues without them",
            *(type(problem).__name__, next(iter(str(problem).splitlines()), "")),
        )
        return None
    if not error <= limit:
        log.warning(
            "the attack's kernels give other gradients here (they differ by %.2g, relative, where %.2g is rounding); "
            "training continues without them",
            *(error, limit),
        )
        return None
    return attack


def _with_random_weights(model: nn.Module) -> nn.Module:
    """Copy a model with weights for which every part of the network matters to the gradient, and rounding little."""
    trial = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trial.named_parameters():
        std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
        std *= 0.1 if name.endswith("conv2.weight") else 4 if "linear" in name else 1
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        if name.endswith("scale"):
            parameter.add_(1)
    return trial


def _errors(model: nn.Module, found: Tensor, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return by how much a gradient differs from the one in float32, and by how much it may; both relative."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = input_gradient(model, x, y)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = input_gradient(model, x, y)
    size = expected.norm()
    return float((found - expected).norm() / size), _MOST * float((plain - expected).norm() / size) + _ROUNDING

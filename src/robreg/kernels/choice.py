"""Decide whether kernels are used: where Triton is, where they give the right gradients, and where they are faster."""

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.pgd import Radius, input_gradient
from robreg.data.errors import describe_error
from robreg.kernels.blocks import UnsuitableError, describe

Attack = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, y, noise) -> adversarial examples
Found = TypeVar("Found")
# The largest error of a gradient, in errors of the plain network in the same precision: of the whole gradient, and of
# that of one tensor of weights, which varies more.
_MOST, _MOST_OF_A_TENSOR = 1.5, 3.0
_ROUNDING = 1e-3  # added to both
_MOST_OF_A_LAYER = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative error of one convolution
_FLOAT32 = 1e-6  # of pixels
_PART = 32  # images at a time for the plain network, in float32, so that it needs no more memory than training
_TINY = 1e-20  # instead of a norm of 0
_ROUNDS = 5  # of which the median counts
_NARROW = 64  # channels, up to which a prototype of the kernels was faster than cuDNN on an H200

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

    The arguments are those of ResidualAttack. Whether every convolution and the gradient are right is tried with random
    weights, because gradients of an untrained network are 0; a warning says so if they are not.
    """
    given: dict[str, Any] = {"eps": eps, "step": step, "steps": steps, "dtype": dtype, "tune": tune}

    def build() -> tuple[Attack, float, float]:
        from robreg.kernels.residual_attack import ResidualAttack  # noqa: PLC0415 - needs Triton

        attack, trial = ResidualAttack(model, x, **given), _with_random_weights(model)
        tried = ResidualAttack(trial, x, **given)
        errors: list[float] = []
        tried.convolve = _checked(tried.convolve, errors)
        found = tried.gradient(x, y)
        limit = _MOST_OF_A_LAYER[dtype]
        if wrong := [error for error in errors if not error <= limit]:
            return attack, wrong[0], limit
        parts = list(zip(x.split(_PART), y.split(_PART), strict=True))
        plain = lambda: torch.cat([input_gradient(trial, *part) for part in parts])  # noqa: E731
        error, limit = _errors(found, plain, x.device, dtype)
        moved = attack(x, y, None)
        if not bool(((moved - x).abs() <= torch.as_tensor(eps).to(x) + _FLOAT32).all()):
            raise RuntimeError("an adversarial example is outside the ball")
        return attack, error, limit

    return _tried("the attack's kernels", build)


def fused_network(
    model: nn.Module, x: Tensor, y: Tensor, *, dtype: torch.dtype, tune: bool = False
) -> nn.Module | None:
    """Return a network of kernels that shares a model's weights, for training, or None as fused_attack does.

    x, y: a batch that the gradient of every weight is tried with; dtype: of the activations; tune: as in fused_attack.
    """

    def build() -> tuple[nn.Module, float, float]:
        from robreg.kernels.operators import FusedNetwork  # noqa: PLC0415 - needs Triton

        network, trial = FusedNetwork(model, tune=tune), _with_random_weights(model).requires_grad_()
        with _rounded(x.device, dtype):
            found = _weight_gradients(FusedNetwork(trial, tune=tune), x, y, part=len(x))
            plain = _weight_gradients(trial, x, y)
        with _no_tf32():
            expected = _weight_gradients(trial, x, y)
        return network, *_worst(found, expected, plain)

    return _tried("the kernels of the training pass", build)


def is_narrow(model: nn.Module) -> bool:
    """Return whether the attack on a network is taken to be faster in kernels where nothing is measured."""
    try:
        return max(conv.out_channels for conv in describe(model).convolutions) <= _NARROW
    except UnsuitableError:
        return False


def fastest(runs: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """Return the name of the run that takes the least time, which is replayed from a CUDA graph on a GPU."""
    medians = {name: _median_seconds(run, device) for name, run in runs.items()}
    log.info("%s", ", ".join(f"{name}: {1e3 * seconds:.2f} ms" for name, seconds in medians.items()))
    return min(medians, key=lambda name: medians[name])


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    call, seconds = _replayed(run) if device.type == "cuda" else run, []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _replayed(run: Callable[[], object]) -> Callable[[], object]:
    """Capture a run, which has been called before, in a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()  # the first one takes longer
    torch.cuda.synchronize()
    return graph.replay


def _tried(what: str, build: Callable[[], tuple[Found, float, float]]) -> Found | None:
    """Return what is built, unless that is impossible, or its error is larger than its limit.

    what: in the plural, for the log. build: returns something, its relative error, and the largest error that it may
    have.
    """
    try:
        found, error, limit = build()
    except ImportError as problem:
        missing = (problem.name or "").partition(".")[0] == "triton"
        log.info("%s are not used: %s", what, "Triton is not installed" if missing else describe_error(problem))
        return None
    except UnsuitableError as reason:
        log.info("%s are not used: %s", what, reason)
        return None
    except Exception as problem:  # a compiler or a driver may raise anything
        log.warning("%s are not possible here (%s); training continues without them", what, describe_error(problem))
        return None
    if not error <= limit:
        log.warning(
            "%s give other gradients here (they differ by %.2g, relative, where %.2g is rounding); training continues "
            "without them",
            *(what, error, limit),
        )
        return None
    return found


def _with_random_weights(model: nn.Module) -> nn.Module:
    """Copy a model in float32, with weights for which every part matters to the gradient, and rounding little."""
    trial = copy.deepcopy(model).float().eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trial.named_parameters():
        std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
        std *= 0.1 if name.endswith("conv2.weight") else 4 if parameter.ndim == 2 else 1
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        if name.endswith("scale"):
            parameter.add_(1)
    return trial


def _weight_gradients(model: nn.Module, x: Tensor, y: Tensor, *, part: int = _PART) -> list[Tensor]:
    """Return the gradients of the mean cross entropy: of every kernel and matrix, and of all smaller tensors as one.

    part: the number of images at a time.
    """
    weights = list(model.parameters())
    gradients = [torch.zeros_like(weight) for weight in weights]
    for images, labels in zip(x.split(part), y.split(part), strict=True):
        with torch.enable_grad():
            loss = functional.cross_entropy(model(images), labels, reduction="sum") / len(x)
            found = torch.autograd.grad(loss, weights)
        gradients = [total + new for total, new in zip(gradients, found, strict=True)]
    small = [gradient.flatten() for gradient in gradients if gradient.ndim < 2]
    return [*(gradient for gradient in gradients if gradient.ndim > 1), torch.cat(small)]


def _worst(found: list[Tensor], expected: list[Tensor], plain: list[Tensor]) -> tuple[float, float]:
    """Return the relative error and the limit of a gradient that exceeds it, or else of the one of largest error."""
    pairs = [_error_and_limit(*one, _MOST_OF_A_TENSOR) for one in zip(found, expected, plain, strict=True)]
    return next((pair for pair in pairs if not pair[0] <= pair[1]), max(pairs))


def _checked(convolve: Callable[..., None], errors: list[float]) -> Callable[..., None]:
    """Return a function that convolves, and appends the relative error of the result."""
    from robreg.kernels.convolution import plain_convolution  # noqa: PLC0415 - needs Triton

    def checked(x: Tensor, w: Tensor, out: Tensor, *, tune: bool, **options: Any) -> None:  # noqa: ANN401
        with _no_tf32():
            expected = plain_convolution(x, w, out, **options)
        convolve(x, w, out, tune=tune, **options)
        errors.append(float((out - expected).norm() / expected.norm().clamp_min(_TINY)))

    return checked


def _errors(
    found: Tensor, compute: Callable[[], Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Return by how much a gradient differs from the one in float32, and by how much it may; both relative.

    compute: computes it with the plain network.
    """
    with _no_tf32():
        expected = compute()
    with _rounded(device, dtype):
        plain = compute()
    return _error_and_limit(found, expected, plain, _MOST)


def _error_and_limit(found: Tensor, expected: Tensor, plain: Tensor, most: float) -> tuple[float, float]:
    """Return the relative error of what was found, and `most` times that of the plain network in the same precision."""
    size = expected.norm()
    return float((found - expected).norm() / size), most * float((plain - expected).norm() / size) + _ROUNDING


def _rounded(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Let a network compute in bfloat16 if that is the type of the activations."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Let cuDNN compute float32 in float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield

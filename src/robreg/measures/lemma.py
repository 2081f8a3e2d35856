"""Check Lemma 3.1 on a trained network: split the line between two inputs at the edges of its linear regions."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robreg.networks.frozen import frozen

_RELUS = (functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_NUDGE = 1e-10  # share of the segment behind an edge where the linear map is evaluated; shorter pieces are skipped
_FIRST_SHARE = 1 / 1024  # share of the segment that is traced first, at most; each further part doubles what is traced
_SMALLEST_SHARE = 1e-6  # if even a first part shorter than this share has too many pieces, tracing is given up
_MAX_PARALLEL = 64  # largest number of subsegments that are traced in parallel
_AFFINE_TOLERANCE = 1e-9  # largest relative error of a function that counts as affine


class NotPiecewiseLinear(ValueError):
    """Raised if a network has a nonlinearity other than ReLU, so that its linear regions are not known."""


@dataclass(frozen=True)
class Pieces:
    """The linear pieces [start, end] of a segment x + t (x' - x), 0 <= t <= share, in order.

    start, end: (n,); image: (n, classes), the Jacobian on each piece times x' - x; all float64 on the CPU. A piece may
    be listed as several consecutive entries; count counts it once. share < 1: the rest of the segment has too many
    pieces and was not traced.
    """

    start: Tensor
    end: Tensor
    image: Tensor
    count: int
    share: float

    def difference(self) -> Tensor:
        """Return the sum over the pieces, sum_j (e_j - s_j) J_j (x' - x), (classes,)."""
        return ((self.end - self.start)[:, None] * self.image).sum(0)

    def length(self) -> float:
        """Return the sum of the pieces' norms, as the lemma prints it: the length of the segment's image."""
        return float(((self.end - self.start) * self.image.norm(dim=1)).sum())


def check_lemma(model: nn.Module, x: Tensor, target: Tensor, *, pieces: int) -> dict[str, float] | None:
    """Check Lemma 3.1 for the logits (Corollary C.1) of x and of x' = x + share (target - x), in float64.

    x, target: (C, H, W) in [0, 1]; model: in eval mode, on their device; pieces: the largest number of linear pieces to
    trace. If the segment from x to target has more, x' is only 1/2, 1/4, 1/8, ... of the way to target.
    Returns count and share of Pieces; residual, the relative error of the vector identity
    I(x') - I(x) = sum_j (e_j - s_j) J_j (x' - x); and slack, by how much the printed sum of norms, an upper bound,
    exceeds the norm of the difference, relative to that norm. Returns None if even a millionth of the segment has too
    many pieces, or if the logits do not differ.
    Raises NotPiecewiseLinear if the model has a nonlinearity other than ReLU.
    """
    exact = deepcopy(model).double()
    x, target = x.double(), target.double()
    traced = trace(exact, x, target, pieces=pieces)
    if traced is None:
        return None
    ends = torch.stack([x, x + traced.share * (target - x)])
    with torch.no_grad(), frozen(exact):
        before, after = exact(ends).cpu()
    norm = float((after - before).norm())
    if norm == 0:
        return None
    residual = float((after - before - traced.difference()).norm()) / norm
    return {
        "count": traced.count,
        "share": traced.share,
        "residual": residual,
        "slack": traced.length() / norm - 1,
    }


def trace(model: nn.Module, x: Tensor, target: Tensor, *, pieces: int) -> Pieces | None:
    """Split the segment from x to target at the edges of the network's linear regions, into at most `pieces` pieces.

    model, x and target are float64. From a point just behind an edge, one forward pass with forward-mode
    differentiation gives every ReLU's input z, its derivative dz/dt, and J (x' - x); the next edge is where the first
    z reaches 0.
    Returns None if even a millionth of the segment has too many pieces.
    Raises NotPiecewiseLinear if the model has a nonlinearity other than ReLU.
    """
    direction = target - x
    with frozen(model):
        _refuse_nonlinear(model, x, direction)
        parts: list[tuple[Tensor, ...]] = []
        edges, share, width = 0, 0.0, _FIRST_SHARE
        while share < 1 and 2 * edges < pieces:  # the next part has about as many edges as all parts before it
            part = _trace_span(model, x, direction, (share, share + width), most=pieces - edges - 1)
            if part is None and (parts or width < _SMALLEST_SHARE):
                break
            if part is None:
                width /= 8
                continue
            parts += part[0]
            edges, share, width = edges + part[1], share + width, share + width
    if not parts:
        return None
    start, end, image = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    order = start.argsort()
    return Pieces(start[order], end[order], image[order], edges + 1, share)


def _trace_span(
    model: nn.Module, x: Tensor, direction: Tensor, span: tuple[float, float], *, most: int
) -> tuple[list[tuple[Tensor, ...]], int] | None:
    """Trace the part `span` of the segment, split into subsegments that are traced in parallel.

    Returns a list of (start, end, image) and the number of edges that were met, or None if there are more than `most`.
    """
    cuts = torch.linspace(*span, min(_MAX_PARALLEL, most + 1) + 1, dtype=x.dtype, device=x.device)
    start, stop = cuts[:-1], cuts[1:]
    parts: list[tuple[Tensor, ...]] = []
    edges = 0
    while len(start):
        ahead, image = _find_next_edge(model, x, direction, start + _NUDGE)
        end = torch.minimum(start + _NUDGE + ahead, stop)
        parts.append((start, end, image))
        unfinished = end < stop
        start, stop = end[unfinished], stop[unfinished]
        edges += len(start)
        if edges > most:
            return None
    return parts, edges


def _find_next_edge(model: nn.Module, x: Tensor, direction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far ahead of each x + t direction the next ReLU switches, (B,), and the Jacobian times direction."""
    switches = _NextSwitch(t)
    with forward_ad.dual_level():
        points = _points_with_tangents(x, direction, t)
        with switches:
            logits = model(points)
        return switches.ahead, forward_ad.unpack_dual(logits).tangent.clone()


def _points_with_tangents(x: Tensor, direction: Tensor, t: Tensor) -> Tensor:
    """Return the points x + t direction, (B, C, H, W), with direction as their tangents."""
    points = x + t.view(-1, *[1] * x.ndim) * direction
    return forward_ad.make_dual(points, direction.expand_as(points).clone())


class _NextSwitch(TorchFunctionMode):
    """Record, for every example, how far ahead the first input of a ReLU reaches 0, however the ReLU is called."""

    def __init__(self, t: Tensor) -> None:
        super().__init__()
        self.ahead = torch.full_like(t, torch.inf)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _RELUS:
            z, rate = forward_ad.unpack_dual(args[0] if args else kwargs["input"])
            if rate is not None:
                ahead = (-z / rate).flatten(1)  # NaN where z is 0 and stays 0
                self.ahead = torch.minimum(self.ahead, torch.where(ahead > 0, ahead, torch.inf).amin(1))
        return func(*args, **kwargs)


def _refuse_nonlinear(model: nn.Module, x: Tensor, direction: Tensor) -> None:
    """Raise NotPiecewiseLinear if a function other than ReLU is not affine at a few points of the segment."""
    with forward_ad.dual_level():
        points = _points_with_tangents(x, direction, x.new_tensor([0.0, 0.25, 0.5]))
        with _AffineCheck():
            model(points)


class _AffineCheck(TorchFunctionMode):
    """Raise NotPiecewiseLinear at the first function other than ReLU that is not affine along its inputs' tangents."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _RELUS:
            return func(*args, **kwargs)
        moved = func(
            *_move_along_tangents(args), **_move_along_tangents(kwargs)
        )  # before func(*args), which may change its arguments in place
        out = func(*args, **kwargs)
        for actual, predicted in zip(_float_tensors(moved), _float_tensors(_move_along_tangents(out)), strict=True):
            if float((actual - predicted).abs().max()) > _AFFINE_TOLERANCE * max(1.0, float(actual.abs().max())):
                name = getattr(func, "__name__", str(func))
                raise NotPiecewiseLinear(
                    f"{name} is neither affine nor a ReLU, so the network's linear regions are not known"
                )
        return out


def _move_along_tangents(tree: Any) -> Any:  # noqa: ANN401 - a function's arguments
    """Copy a function's arguments or results, with every tensor moved along its tangent."""
    if isinstance(tree, Tensor):
        value, tangent = forward_ad.unpack_dual(tree)
        return value.clone() if tangent is None else value + tangent
    if isinstance(tree, dict):
        return {key: _move_along_tangents(value) for key, value in tree.items()}
    return type(tree)(map(_move_along_tangents, tree)) if type(tree) in (list, tuple) else tree


def _float_tensors(tree: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Yield the floating-point tensors among a function's results."""
    if isinstance(tree, Tensor) and tree.is_floating_point() and tree.numel():
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _float_tensors(part)

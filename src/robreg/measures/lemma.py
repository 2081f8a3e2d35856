"""Lemma 3.1 on a trained network: the line between two inputs, cut wherever it enters another linear region."""

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
_NUDGE = 1e-10  # behind a region's edge, as a share of the segment, its map is taken: shorter pieces are passed over
_FIRST = 1 / 1024  # share of the segment that is traced first, or less; each further part doubles what is traced
_LEAST = 1e-6  # share below which a first part is given up
_LANES = 64  # parts that are traced side by side, at most
_AFFINE = 1e-9  # relative error up to which a function counts as affine


class NotPiecewiseLinear(ValueError):
    """The network has a nonlinearity other than ReLU, so that its linear regions are not known."""


@dataclass(frozen=True)
class Pieces:
    """The pieces [start, end] of a segment x + t (x' - x), 0 <= t <= share, in order, and what is linear on each.

    start, end: (n,); image: (n, classes), the Jacobian of the piece times x' - x; all float64 on the CPU. A piece may
    be listed in several parts; count counts it once. share < 1: the rest of the segment has too many pieces.
    """

    start: Tensor
    end: Tensor
    image: Tensor
    count: int
    share: float

    def difference(self) -> Tensor:
        """Add up the pieces, sum_j (e_j - s_j) J_j (x' - x): (classes,)."""
        return ((self.end - self.start)[:, None] * self.image).sum(0)

    def length(self) -> float:
        """Add up their norms, as the lemma prints it: the length of the segment's image."""
        return float(((self.end - self.start) * self.image.norm(dim=1)).sum())


def verify(model: nn.Module, x: Tensor, target: Tensor, *, pieces: int) -> dict[str, float] | None:
    """Check Lemma 3.1 for the logits (Corollary C.1) of x and of x' = x + share (target - x), in float64.

    x, target: (C, H, W) in [0, 1]; model: in eval mode, on their device; pieces: how many linear pieces of the segment
    may be traced; where it has more, x' lies on the way to target, at most half as far each time.
    Returns count and share of Pieces; residual, the relative error of I(x') - I(x) = sum_j (e_j - s_j) J_j (x' - x),
    a vector identity; slack, by how much the printed sum of norms, an upper bound, exceeds the norm of the difference,
    relative to it. Returns None where even a millionth of it has too many pieces, or the logits do not differ.
    Raises NotPiecewiseLinear.
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
    """Cut the segment from x to target at the edges of the network's linear regions, as far as `pieces` pieces go.

    model, x and target are float64. From a point just behind an edge, one forward pass in forward mode gives every
    ReLU's input z, its derivative dz/dt and J (x' - x); the next edge is where the first z reaches 0.
    Returns None if even a millionth of it has too many pieces. Raises NotPiecewiseLinear.
    """
    direction = target - x
    with frozen(model):
        _refuse_nonlinear(model, x, direction)
        parts: list[tuple[Tensor, ...]] = []
        edges, share, width = 0, 0.0, _FIRST
        while share < 1 and 2 * edges < pieces:  # the next part has about as many as all before
            part = _sweep(model, x, direction, (share, share + width), most=pieces - edges - 1)
            if part is None and (parts or width < _LEAST):
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


def _sweep(
    model: nn.Module, x: Tensor, direction: Tensor, span: tuple[float, float], *, most: int
) -> tuple[list[tuple[Tensor, ...]], int] | None:
    """Trace span, its lanes side by side: lists of (start, end, image), and how many edges were met; None over most."""
    cuts = torch.linspace(*span, min(_LANES, most + 1) + 1, dtype=x.dtype, device=x.device)
    start, stop = cuts[:-1], cuts[1:]
    parts: list[tuple[Tensor, ...]] = []
    edges = 0
    while len(start):
        ahead, image = _look(model, x, direction, start + _NUDGE)
        end = torch.minimum(start + _NUDGE + ahead, stop)
        parts.append((start, end, image))
        goes_on = end < stop
        start, stop = end[goes_on], stop[goes_on]
        edges += len(start)
        if edges > most:
            return None
    return parts, edges


def _look(model: nn.Module, x: Tensor, direction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far ahead of each x + t direction the next ReLU switches (B,), and the Jacobian times direction."""
    watch = _Switches(t)
    with forward_ad.dual_level():
        points = _line(x, direction, t)
        with watch:
            logits = model(points)
        return watch.ahead, forward_ad.unpack_dual(logits).tangent.clone()


def _line(x: Tensor, direction: Tensor, t: Tensor) -> Tensor:
    """Make the points (B, C, H, W) of a segment, with direction as their tangents."""
    points = x + t.view(-1, *[1] * x.ndim) * direction
    return forward_ad.make_dual(points, direction.expand_as(points).clone())


class _Switches(TorchFunctionMode):
    """Note, for every example, how far ahead the first input of a ReLU reaches 0, however the ReLU is called."""

    def __init__(self, t: Tensor) -> None:
        super().__init__()
        self.ahead = torch.full_like(t, torch.inf)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _RELUS:
            z, rate = forward_ad.unpack_dual(args[0] if args else kwargs["input"])
            if rate is not None:
                ahead = (-z / rate).flatten(1)  # NaN where z stays 0
                self.ahead = torch.minimum(self.ahead, torch.where(ahead > 0, ahead, torch.inf).amin(1))
        return func(*args, **kwargs)


def _refuse_nonlinear(model: nn.Module, x: Tensor, direction: Tensor) -> None:
    with forward_ad.dual_level():
        points = _line(x, direction, x.new_tensor([0.0, 0.25, 0.5]))
        with _Affine():
            model(points)


class _Affine(TorchFunctionMode):
    """Raise NotPiecewiseLinear at the first function, ReLU apart, that is not affine along its inputs' tangents."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _RELUS:
            return func(*args, **kwargs)
        moved = func(*_moved(args), **_moved(kwargs))  # first, for func may work in place
        out = func(*args, **kwargs)
        for found, predicted in zip(_tensors(moved), _tensors(_moved(out)), strict=True):
            if float((found - predicted).abs().max()) > _AFFINE * max(1.0, float(found.abs().max())):
                name = getattr(func, "__name__", str(func))
                raise NotPiecewiseLinear(f"{name} is neither affine nor a ReLU: the linear regions are not known")
        return out


def _moved(tree: Any) -> Any:  # noqa: ANN401 - a function's arguments
    """Copy a function's arguments or results, every tensor moved along its tangent."""
    if isinstance(tree, Tensor):
        value, tangent = forward_ad.unpack_dual(tree)
        return value.clone() if tangent is None else value + tangent
    if isinstance(tree, dict):
        return {key: _moved(value) for key, value in tree.items()}
    return type(tree)(map(_moved, tree)) if type(tree) in (list, tuple) else tree


def _tensors(tree: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """List the tensors of real numbers among a function's results."""
    if isinstance(tree, Tensor) and tree.is_floating_point() and tree.numel():
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)

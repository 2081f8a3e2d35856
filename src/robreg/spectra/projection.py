"""Projection of layers onto a bound on their largest singular value (paper, D.3; Sedghi et al. 2019, section 3).

Two operators belong to a convolution: the one that the network applies, which pads its n x n input with zeros, and the
circular one on n x n, whose spectrum is published. Neither norm bounds the other, and a network that is trained under a
bound on the circular norm alone learns kernels whose applied norm is larger. Therefore "exact" rounds work on a larger
grid: the applied operator embeds its input in a grid with enough zeros, applies the circular operator of that grid, and
leaves outputs out. Embedding and leaving out do not increase a norm, so a bound there is a bound on what is applied.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from robreg.spectra.fourier import output_frequencies, phases
from robreg.spectra.layers import Layer, unmeasured
from robreg.spectra.threads import parallel, single_threaded

TOLERANCE = 0.01  # fraction of the bound by which a norm may exceed it after the rounds; rescaling removes the excess
MAX_ROUNDS = 200
_SMALL_BLOCK = 64  # largest smaller side, in rows or columns, of blocks that are decomposed on the CPU
_RESCALE_MARGIN = 1 - 2.0**-22  # fraction of the bound to rescale to, two float32 rounding errors below the bound


def project(layers: Sequence[Layer], bound: float, rounds: int | str) -> list[float]:
    """Project the weights of layers in place, and return a norm of each layer afterwards.

    bound > 0; rounds: "exact", or a number of rounds of clipping and cropping (the paper uses 1). With "exact", the
    returned norms are at most the bound, and each is an upper bound on the norm of the operator that the network
    applies (that norm itself for linear layers and 1x1 convolutions). With a number of rounds, they are the norms of
    the circular operators at the layers' input sizes, which the rounds work on; they may exceed the bound, and say
    nothing certain about what is applied. Biases are left as they are, because they are not part of the linear map.
    Raises ArithmeticError if weights are not finite, and ValueError as enclosing_grid does.
    """
    for layer in layers:
        if not bool(layer.kernel.isfinite().all()):
            raise ArithmeticError(
                f"layer {layer.name}: weights are not finite; lower training.lr or the attack strength"
            )
    projections: dict[str, tuple[Tensor, float]] = {}
    with single_threaded() as threads:
        for device, group in _group_by_device(layers).items():
            project_one = partial(_project_layer, bound=bound, rounds=rounds, device=device)
            projected = parallel(project_one, group, threads if device.type == "cpu" else 1)
            projections |= zip([layer.name for layer in group], projected, strict=True)
    with torch.no_grad():
        for layer in layers:
            layer.module.weight.copy_(projections[layer.name][0].view_as(layer.module.weight))
    return [projections[layer.name][1] for layer in layers]


def refuse_unbounded(model: nn.Module, layers: Sequence[Layer], rounds: int | str) -> None:
    """Raise ValueError unless the projection can bound all of a network; it names every other layer and the reason.

    layers: the network's (see list_layers); rounds: as for project, where "exact" needs what enclosing_grid needs.
    """
    reasons = [f"layer {name}: {reason}" for name, reason in unmeasured(model).items()]
    reasons += [f"layer {layer.name}: {reason}" for layer in layers if (reason := _unbounded(layer, model))]
    if reasons:
        raise ValueError("; ".join(["a bound (-sn) cannot be put on this network", *reasons]))
    if rounds == "exact":
        for layer in layers:
            enclosing_grid(layer)


def _unbounded(layer: Layer, model: nn.Module) -> str | None:
    """Return why a layer cannot be projected onto a bound, or None if it can."""
    module = layer.module
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"only Conv2d and Linear layers are projected, not {module}"
    if module not in model.modules() or "weight" not in module._parameters:  # a copy, or computed from something else
        return "only weights that are parameters of their layer are projected"
    if layer.calls > 1:
        return "the network calls it more than once; use a separate layer for each call"
    if isinstance(module, nn.Linear):
        return None if layer.height == 1 else f"a linear layer needs one vector per image, not {layer.height}"
    return _unbounded_convolution(layer, module)


def _unbounded_convolution(layer: Layer, module: nn.Conv2d) -> str | None:
    kernel, stride = module.kernel_size, module.stride
    if kernel[0] != kernel[1] or stride[0] != stride[1] or module.groups != 1 or module.dilation != (1, 1):
        return f"a bound needs groups 1, dilation 1, a square kernel and equal strides, not {module}"
    for size in (layer.height, layer.width):
        if size % layer.stride:
            return f"stride {layer.stride} does not divide its input size {size}"
    return None if layer.operator == "circular" else f"a bound needs padding that keeps the size, not {module}"


def enclosing_grid(layer: Layer) -> tuple[int, int]:
    """Return the size of a circular operator whose norm bounds that of the operator which the network applies.

    An input of length n, followed by as many zeros as the kernel reaches beyond one of its edges, can wrap around: what
    lies beyond either edge is then a zero. The length is rounded up to a multiple of the stride, so that the network's
    outputs are among those of the grid. Raises ValueError if the layer pads with something other than zeros or a
    circular continuation, because its operator is then not a part of a circular one.
    """
    module = layer.module
    if not isinstance(module, nn.Conv2d) or module.padding_mode == "circular":
        return _size(layer)
    kernel, stride = module.kernel_size[0], layer.stride
    paddings = ((kernel - 1) // 2,) * 2 if module.padding == "same" else module.padding
    before = (0, 0) if isinstance(paddings, str) else paddings  # "valid" pads nothing
    beyond = [max(pad, kernel - stride - pad) for pad in before]  # before the input's first, after its last element
    if any(beyond) and module.padding_mode != "zeros":
        raise ValueError(
            f"layer {layer.name}: with padding_mode {module.padding_mode!r} no bound is known for what the layer "
            "applies; use zeros, or a number as training.clip_rounds"
        )
    height, width = (-(-(size + more) // stride) * stride for size, more in zip(_size(layer), beyond, strict=True))
    return height, width


def _size(layer: Layer) -> tuple[int, int]:
    return layer.height, layer.width


def _group_by_device(layers: Sequence[Layer]) -> dict[torch.device, list[Layer]]:
    """Group layers by the device to project them on: the CPU for small matrices, the weights' device otherwise.

    The CPU's cores share small matrices, whereas eigenvalue solvers for GPUs treat them one after the other.
    """
    places: dict[torch.device, list[Layer]] = {}
    for layer in layers:
        c_out, c_in = layer.kernel.shape[:2]
        small = min(c_out, c_in * layer.stride**2) <= _SMALL_BLOCK
        places.setdefault(torch.device("cpu") if small else layer.kernel.device, []).append(layer)
    return places


def _project_layer(layer: Layer, *, bound: float, rounds: int | str, device: torch.device) -> tuple[Tensor, float]:
    """Return a layer's projected kernel (c_out, c_in, k, k) and its norm; a kernel within the bound is unchanged."""
    exact = rounds == "exact"
    kernel = layer.kernel.to(device)
    operator = _Operator(kernel, enclosing_grid(layer) if exact else _size(layer), layer.stride)
    taps = kernel.double()
    for done in range(MAX_ROUNDS if exact else int(rounds)):
        if done and operator.norm(taps) <= bound * (1 + TOLERANCE * exact):  # half the work of clipping
            break
        change, norm = operator.clip(taps, bound)
        if norm <= bound:
            break
        taps = taps + operator.crop(change, extrapolate=exact)
    result = taps.to(kernel.dtype)
    norm = operator.norm(result.double())
    while exact and norm > bound:  # repeated only if rounding to float32 raised the norm above the bound
        result = (result.double() * (bound / norm * _RESCALE_MARGIN)).to(kernel.dtype)
        norm = operator.norm(result.double())
    return result, norm


class _Operator:
    """The circular convolution with kernels of one shape, as blocks (c_out, c_in s^2), one per output frequency.

    The blocks of mirrored frequencies are conjugate for a real kernel, so only one of each pair is computed, with
    weight 2. F is the number of computed blocks, s the stride.
    """

    def __init__(self, kernel: Tensor, size: tuple[int, int], stride: int) -> None:
        """Prepare the phases (F, s^2, k k) of kernels (c_out, c_in, k, k) for the grid (H, W)."""
        height, width, side = *size, kernel.shape[2]
        if side == 1:  # one matrix for all positions; a stride only skips inputs
            height = width = stride = 1
        halves = output_frequencies(height // stride, width // stride)
        frequencies = torch.cat([half for half, _ in halves]).to(kernel.device)
        self.phases = phases(frequencies, (side, side), (height, width), (stride, stride))
        weight = torch.cat([torch.full((len(half),), float(count)) for half, count in halves])
        self.weight = weight.to(kernel.device, torch.float64)  # (F,)
        self.stride, self.positions = stride, height * width
        place = (torch.arange(side) % height)[:, None] * width + torch.arange(side) % width
        self.sharing = torch.bincount(place.flatten())[place].to(kernel.device)  # number of taps at each tap's position

    def blocks(self, taps: Tensor) -> Tensor:
        """Return the blocks (F, c_out, c_in s^2) of a kernel (c_out, c_in, k, k)."""
        spectrum = torch.einsum("fat,oit->foia", self.phases, taps.flatten(2).to(self.phases.dtype))
        return spectrum.flatten(2) / self.stride

    def norm(self, taps: Tensor) -> float:
        """Return the operator norm for a kernel (c_out, c_in, k, k)."""
        return float(torch.linalg.eigvalsh(_gram(self.blocks(taps)))[:, -1].max().clamp_min(0).sqrt())

    def clip(self, taps: Tensor, bound: float) -> tuple[Tensor, float]:
        """Return how clipping every singular value at bound changes the blocks, and the norm before clipping."""
        blocks = self.blocks(taps)
        squares, vectors = torch.linalg.eigh(_gram(blocks))  # squaring loses no accuracy in large singular values
        sigma = squares.clamp_min(0).sqrt()
        factor = (bound / sigma.clamp_min(bound) - 1).to(blocks.dtype)  # (F, n): 0 for values within the bound
        if blocks.shape[1] <= blocks.shape[2]:
            change = (vectors * factor[:, None, :]) @ (vectors.mH @ blocks)
        else:
            change = ((blocks @ vectors) * factor[:, None, :]) @ vectors.mH
        return change, float(sigma[:, -1].max())

    def crop(self, change: Tensor, *, extrapolate: bool) -> Tensor:
        """Convert a change of the blocks into a change of the kernel's k x k taps: (c_out, c_in, k, k).

        extrapolate: lengthen the step by the factor that cropping shortened it by, as convex feasibility allows (Pierra
        1984): the next kernel is no farther from any kernel within the bound, which is then met in a few rounds.
        """
        count, c_out, _ = change.shape
        spectrum = self.stride * change.view(count, c_out, -1, self.stride**2)
        weighted = self.weight[:, None, None] * self.phases.conj()
        taps = torch.einsum("fat,foia->oit", weighted, spectrum).real / self.positions
        taps = taps.unflatten(2, self.sharing.shape) / self.sharing
        if extrapolate:
            full = (self.weight * spectrum.abs().square().sum((1, 2, 3))).sum() / self.positions
            kept = (taps.square() * self.sharing).sum()
            taps = taps * (full / kept if kept > 0 else 1)
        return taps


def _gram(blocks: Tensor) -> Tensor:
    """Return B B^H or B^H B, whichever is smaller, for each B of the blocks (F, m, n)."""
    return blocks @ blocks.mH if blocks.shape[1] <= blocks.shape[2] else blocks.mH @ blocks

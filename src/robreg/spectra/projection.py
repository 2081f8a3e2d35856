"""Projection of layers onto a ball of the spectral norm (paper, D.3; Sedghi et al. 2019, section 3)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from robreg.spectra.fourier import output_frequencies, phases
from robreg.spectra.layers import Layer
from robreg.spectra.threads import parallel, single_threaded

TOLERANCE = 0.01  # of the bound: rounds end there, and one rescale does the rest
MAX_ROUNDS = 200
_SMALL = 64  # rows or columns of a block
_SHY = 1 - 2.0**-22  # of a rescale: two roundings of float32 below the bound


def project(layers: Sequence[Layer], bound: float, rounds: int | str) -> list[float]:
    """Project the weights of layers in place; return the spectral norm of each afterwards, in the layers' order.

    bound > 0 is the largest allowed norm of a layer's operator: the circular convolution at its real input size,
    strides folded, as in spectrum.singular_values. rounds: "exact", and the norms returned are at most bound, as a
    fact; or the number of clip-and-crop rounds (1 is the paper's), which leaves norms above the bound, as returned.
    Biases stay: they are no part of the linear map. Raises ArithmeticError where weights are not finite.
    """
    for layer in layers:
        if not bool(layer.kernel.isfinite().all()):
            raise ArithmeticError(f"layer {layer.name}: weights are not finite; lower training.lr, or the strength")
    found: dict[str, tuple[Tensor, float]] = {}
    with single_threaded() as threads:
        for device, some in _by_device(layers).items():
            project_one = partial(_projected, bound=bound, rounds=rounds, device=device)
            projected = parallel(project_one, some, threads if device.type == "cpu" else 1)
            found |= zip([layer.name for layer in some], projected, strict=True)
    with torch.no_grad():
        for layer in layers:
            layer.module.weight.copy_(found[layer.name][0].view_as(layer.module.weight))
    return [found[layer.name][1] for layer in layers]


def _by_device(layers: Sequence[Layer]) -> dict[torch.device, list[Layer]]:
    """Choose where each layer is projected: on the weights' device, but on the CPU if its matrices are small.

    The CPU's cores share them; eigenvalue solvers for GPUs take such matrices one after the other.
    """
    places: dict[torch.device, list[Layer]] = {}
    for layer in layers:
        c_out, c_in = layer.kernel.shape[:2]
        small = min(c_out, c_in * layer.stride**2) <= _SMALL
        places.setdefault(torch.device("cpu") if small else layer.kernel.device, []).append(layer)
    return places


def _projected(layer: Layer, *, bound: float, rounds: int | str, device: torch.device) -> tuple[Tensor, float]:
    """Project a layer's kernel; return it, (c_out, c_in, k, k), and its norm. One within the bound is left as it is."""
    exact = rounds == "exact"
    kernel = layer.kernel.to(device)
    operator = _Operator(kernel, (layer.height, layer.width), layer.stride)
    taps = kernel.double()
    for done in range(MAX_ROUNDS if exact else int(rounds)):
        if done and operator.norm(taps) <= bound * (1 + TOLERANCE * exact):  # half the work of a clip
            break
        change, norm = operator.clip(taps, bound)
        if norm <= bound:
            break
        taps = taps + operator.crop(change, extrapolate=exact)
    result = taps.to(kernel.dtype)
    norm = operator.norm(result.double())
    while exact and norm > bound:  # a second time only if rounding to float32 went up
        result = (result.double() * (bound / norm * _SHY)).to(kernel.dtype)
        norm = operator.norm(result.double())
    return result, norm


class _Operator:
    """The circular convolution with kernels of one shape, seen as blocks (c_out, c_in s^2), one per output frequency.

    A real kernel's mirrored frequencies are conjugate: half of them are computed, and counted twice.
    """

    def __init__(self, kernel: Tensor, size: tuple[int, int], stride: int) -> None:
        """Prepare the phases (F, s^2, k k) for input size (H, W)."""
        height, width, side = *size, kernel.shape[2]
        if side == 1:  # the same matrix at every position, with s^2 - 1 of s^2 inputs skipped
            height = width = stride = 1
        halves = output_frequencies(height // stride, width // stride)
        frequencies = torch.cat([half for half, _ in halves]).to(kernel.device)
        self.phases = phases(frequencies, (side, side), (height, width), stride)
        weight = torch.cat([torch.full((len(half),), float(count)) for half, count in halves])
        self.weight = weight.to(kernel.device, torch.float64)  # (F,)
        self.stride, self.positions = stride, height * width
        place = (torch.arange(side) % height)[:, None] * width + torch.arange(side) % width
        self.sharing = torch.bincount(place.flatten())[place].to(kernel.device)  # taps that meet where a kernel wraps

    def blocks(self, taps: Tensor) -> Tensor:
        """Return the blocks (F, c_out, c_in s^2) of a kernel (c_out, c_in, k, k)."""
        spectrum = torch.einsum("fat,oit->foia", self.phases, taps.flatten(2).to(self.phases.dtype))
        return spectrum.flatten(2) / self.stride

    def norm(self, taps: Tensor) -> float:
        """Return the operator norm."""
        return float(torch.linalg.eigvalsh(_gram(self.blocks(taps)))[:, -1].max().clamp_min(0).sqrt())

    def clip(self, taps: Tensor, bound: float) -> tuple[Tensor, float]:
        """Return what clipping every singular value at bound adds to the blocks, and the norm before it."""
        blocks = self.blocks(taps)
        squares, vectors = torch.linalg.eigh(_gram(blocks))  # a large singular value loses nothing by the square
        sigma = squares.clamp_min(0).sqrt()
        factor = (bound / sigma.clamp_min(bound) - 1).to(blocks.dtype)  # (F, n): 0 where it is within the bound
        if blocks.shape[1] <= blocks.shape[2]:
            change = (vectors * factor[:, None, :]) @ (vectors.mH @ blocks)
        else:
            change = ((blocks @ vectors) * factor[:, None, :]) @ vectors.mH
        return change, float(sigma[:, -1].max())

    def crop(self, change: Tensor, *, extrapolate: bool) -> Tensor:
        """Bring a change of the blocks back to the kernel's k x k taps: (c_out, c_in, k, k).

        extrapolate: lengthen the step by the share that the crop took away, as convex feasibility allows (Pierra 1984):
        the next kernel is no farther from any kernel within the bound, and the bound is met in a few rounds.
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
    """Return B B^H or B^H B, whichever is smaller, of blocks (F, m, n)."""
    return blocks @ blocks.mH if blocks.shape[1] <= blocks.shape[2] else blocks.mH @ blocks

"""The Fourier transform of convolution kernels: output frequencies, and the phases of a kernel's taps."""

import math

import torch
from torch import Tensor


def output_frequencies(rows: int, columns: int) -> list[tuple[Tensor, int]]:
    """Return half of the output frequencies of an operator, as two pairs of frequencies (f, 2) and multiplicity.

    The frequencies that are their own mirror image have multiplicity 1. Of all others, one of each mirrored pair is
    returned, with multiplicity 2. rows, columns: the size of the operator's output.
    """
    u, v = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place, mirror = u * columns + v, -u % rows * columns + -v % columns
    pairs = torch.stack([u, v], 2)
    return [(pairs[place == mirror], 1), (pairs[place < mirror], 2)]


def phases(
    frequencies: Tensor,
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Return exp(-2 pi i <g, tap>) at the input frequencies g that alias to each output frequency (f, 2).

    kernel: (kh, kw), the number of taps; size: (H, W) of the input; stride: (sh, sw); dilation: the distances between
    taps. Returns (f, sh sw, kh kw) complex128, where the input frequencies and the taps are each in row-major order.
    The phases are periodic in the input size, so a kernel that is larger than its input wraps around without special
    treatment.
    """
    down, right = (
        _phases(frequencies[:, axis], kernel[axis], size[axis], stride[axis], dilation[axis]) for axis in (0, 1)
    )  # (f, sh, kh), (f, sw, kw)
    return (down[:, :, None, :, None] * right[:, None, :, None, :]).flatten(3).flatten(1, 2)


def _phases(frequency: Tensor, taps: int, length: int, stride: int, dilation: int) -> Tensor:
    """Return exp(-2 pi i g tap / length) along one axis of the input, of this length: (f, s, taps)."""
    aliased = frequency[:, None] + torch.arange(stride, device=frequency.device) * (length // stride)
    places = torch.arange(taps, device=frequency.device) * dilation
    turns = aliased[:, :, None] * places % length  # integers, so this is exact
    angle = turns.double() * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)

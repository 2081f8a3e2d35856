"""The Fourier transform of a convolution kernel: frequencies, and the phases of its taps."""

import math

import torch
from torch import Tensor


def output_frequencies(rows: int, columns: int) -> list[tuple[Tensor, int]]:
    """Return half of the output frequencies, each (f, 2), with multiplicity: 1 for those that are their own mirror."""
    u, v = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place, mirror = u * columns + v, -u % rows * columns + -v % columns
    pairs = torch.stack([u, v], 2)
    return [(pairs[place == mirror], 1), (pairs[place < mirror], 2)]


def phases(frequencies: Tensor, kernel: tuple[int, int], size: tuple[int, int], stride: int) -> Tensor:
    """Return exp(-2 pi i <g, tap>) at the s^2 input frequencies g that alias to each output frequency (f, 2).

    kernel: (kh, kw) taps; size: (H, W) of the input. Returns (f, s^2, kh kw) complex128, row-major in both. The phases
    repeat with the size: so a kernel that is larger than its input wraps round by itself.
    """
    down, right = (
        _phases(frequencies[:, axis], kernel[axis], size[axis], stride) for axis in (0, 1)
    )  # (f, s, kh), (f, s, kw)
    return (down[:, :, None, :, None] * right[:, None, :, None, :]).flatten(3).flatten(1, 2)


def _phases(frequency: Tensor, taps: int, length: int, stride: int) -> Tensor:
    """Return exp(-2 pi i g tap / length), (f, s, taps), along one axis of length."""
    aliased = frequency[:, None] + torch.arange(stride, device=frequency.device) * (length // stride)
    turns = aliased[:, :, None] * torch.arange(taps, device=frequency.device) % length  # whole: no digit is lost
    angle = turns.double() * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)

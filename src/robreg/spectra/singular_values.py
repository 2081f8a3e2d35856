"""Exact singular values of convolutions, as circular operators, and of linear layers (Sedghi et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robreg.spectra.fourier import output_frequencies, phases
from robreg.spectra.layers import Layer, unsupported_layer
from robreg.spectra.threads import MAX_WORKERS, parallel, single_threaded

_CHUNK = 2**26  # bytes of complex blocks computed at a time; one block of 1024 x 4096 has this size


def singular_values(module: nn.Conv2d | nn.Linear, input_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Return the distinct singular values of a layer and the multiplicity of each.

    input_shape: the shape (C, H, W) or (H, W) of one input of a convolution; a linear layer needs none. Convolutions
    are treated as circular, as in the paper, and biases are ignored. Returns sigma (m,) float64, in descending order,
    and multiplicity (m,) int64, whose sum is min(rows, columns) of the operator, both on the CPU.
    Raises ValueError, with the reason, if the layer's operator is not supported (see robreg.spectra.layers).

    >>> import robreg, torch
    >>> sigma, multiplicity = robreg.singular_values(torch.nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8))
    >>> int(multiplicity.sum())  # the smaller of 3 * 8 * 8 and 4 * 8 * 8
    192
    """
    if isinstance(module, nn.Conv2d) and len(input_shape) not in (2, 3):
        raise ValueError(
            f"input_shape must be (C, H, W) or (H, W) of the convolution's input, not {tuple(input_shape)}"
        )
    height, width = tuple(input_shape)[-2:] if isinstance(module, nn.Conv2d) else (1, 1)
    layer = Layer(type(module).__name__, module, height, width)
    if reason := unsupported_layer(layer):
        raise ValueError(f"the singular values of this layer cannot be computed: {reason}")
    return circular_singular_values(layer.kernel, height, width, layer.stride)


def circular_singular_values(kernel: Tensor, height: int, width: int, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Return the distinct singular values of a circular convolution and the multiplicity of each.

    kernel: (c_out, c_in, kh, kw), real; height, width: the input size, divisible by stride. A kernel larger than the
    input wraps around. The operator maps c_in * height * width to c_out * height * width / stride^2 numbers. With a
    stride s, each output frequency combines s^2 input frequencies (aliasing), so its block is c_out x (c_in s^2),
    divided by s. Mirrored frequencies of a real kernel have the same values, so each pair is computed once and counted
    twice. Returns sigma (m,) float64, in descending order, and multiplicity (m,) int64, whose sum is min(rows, columns)
    of the operator, both on the CPU. Raises ValueError if the stride does not divide the input size.
    """
    if height % stride or width % stride:
        raise ValueError(
            f"stride {stride} does not divide the input size {height} x {width}, so the operator is not circular"
        )
    with single_threaded() as threads:
        workers = min(threads, MAX_WORKERS) if kernel.device.type == "cpu" else 1
        return _singular_values(kernel, (height, width), stride, workers=workers)


def _singular_values(kernel: Tensor, size: tuple[int, int], stride: int, *, workers: int) -> tuple[Tensor, Tensor]:
    rows, columns = size[0] // stride, size[1] // stride
    c_out, c_in, kh, kw = kernel.shape
    if (kh, kw) == (1, 1):  # the singular values of one matrix, once per output position
        sigma = torch.linalg.svdvals(kernel[:, :, 0, 0].double())
        missing = min(c_out, c_in * stride**2) - len(sigma)  # zeros for inputs that the stride skips
        sigma = torch.cat([sigma, sigma.new_zeros(missing)]).cpu()
        return sigma, torch.full((len(sigma),), rows * columns)
    taps = kernel.double().permute(2, 3, 0, 1).reshape(-1, c_out * c_in)  # (kh kw, c_out c_in)

    def blocks(frequencies: Tensor) -> Tensor:
        rotations = phases(frequencies.to(kernel.device), (kh, kw), size, stride) / stride
        rotations = rotations.flatten(0, 1)  # (f s^2, kh kw)
        spectrum = torch.complex(rotations.real @ taps, rotations.imag @ taps)  # half the work of a complex product
        return spectrum.view(-1, stride**2, c_out, c_in).transpose(1, 2).flatten(2)  # (f, c_out, s^2 c_in)

    halves = output_frequencies(rows, columns)
    parts = torch.cat([half for half, _ in halves]).split(max(1, _CHUNK // (16 * c_out * c_in * stride**2)))
    # The last bits of a matrix product depend on its size, those of a decomposition do not: only decompositions are
    # split further, so that the result does not depend on the number of threads.
    if len(parts) < workers:
        pieces = [piece for part in parts for piece in blocks(part).chunk(workers)]
        decomposed = parallel(torch.linalg.svdvals, pieces, workers)
    else:
        decomposed = parallel(lambda part: torch.linalg.svdvals(blocks(part)), parts, workers)
    values = torch.cat(decomposed).cpu()  # (f, values per block)
    counts = torch.cat([torch.full((len(half), values.shape[1]), count) for half, count in halves]).flatten()
    sigma = values.flatten()
    order = (-sigma.numpy()).argsort(kind="stable")  # faster than torch.sort
    return sigma[order], counts[order]


def summarise_spectrum(sigma: Tensor, multiplicity: Tensor) -> dict[str, float | int]:
    """Return n, mean, std (of the population), min and max of singular values that occur with a multiplicity."""
    n = int(multiplicity.sum())
    mean = float((sigma * multiplicity).sum() / n)
    variance = float(((sigma - mean) ** 2 * multiplicity).sum() / n)
    return {"n": n, "mean": mean, "std": variance**0.5, "min": float(sigma.min()), "max": float(sigma.max())}

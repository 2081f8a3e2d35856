"""Exact singular values of linear layers and convolutions, most as circular operators (Sedghi et al. 2019)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robreg.spectra.applied import dense_singular_values
from robreg.spectra.fourier import output_frequencies, phases
from robreg.spectra.layers import Convolution, Layer, LinearMap
from robreg.spectra.threads import MAX_WORKERS, parallel, single_threaded

_CHUNK = 2**26  # bytes of complex blocks computed at a time; one block of 1024 x 4096 has this size


def singular_values(module: LinearMap, input_shape: Sequence[int] = (), *, dense: int = 4096) -> tuple[Tensor, Tensor]:
    """Return the distinct singular values of a layer and the multiplicity of each.

    module: a convolution (Conv1d, Conv2d or transposed, with any groups, dilation, stride and padding) or a linear
    layer; input_shape: the shape (C, H, W) or (H, W) of one input of a convolution, (C, W) or (W,) of sequences; a
    linear layer needs none. Biases are ignored. A convolution whose padding keeps the size of its input, but for a
    stride that divides it, is treated as circular, as in the paper; of any other one, the operator that it applies is
    taken, with its own padding, whose matrix may have up to `dense` rows or columns, and 4 times as many of the other,
    in each group. Returns sigma (m,) float64, in descending order, and multiplicity (m,) int64, whose sum is min(rows,
    columns) of the operator, both on the CPU. Raises ValueError if input_shape does not fit, or if that matrix is
    larger.

    >>> import robreg, torch
    >>> sigma, multiplicity = robreg.singular_values(torch.nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8))
    >>> int(multiplicity.sum())  # the smaller of 3 * 8 * 8 and 4 * 8 * 8
    192
    """
    height, width = (1, 1) if isinstance(module, nn.Linear) else _input_size(module, tuple(input_shape))
    layer = Layer(type(module).__name__, module, height, width)
    if min(layer.output_size) < 1:
        raise ValueError(f"input_shape {tuple(input_shape)} is smaller than the kernel of {module}")
    if (found := exact_singular_values(layer, dense=dense)) is None:
        facts = layer.facts()
        raise ValueError(
            f"the operator that the layer applies has {facts['rows']} rows and {facts['columns']} columns in "
            f"{layer.groups} groups: give a larger value of dense than {dense}, or a smaller input_shape"
        )
    return found


def _input_size(module: Convolution, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of a convolution's input from its shape with or without channels."""
    spatial = len(module.kernel_size)
    if len(shape) not in (spatial, spatial + 1):
        sizes = "(C, H, W) or (H, W)" if spatial == 2 else "(C, W) or (W,)"
        raise ValueError(f"input_shape must be {sizes} of the convolution's input, not {shape}")
    return (1, shape[-1]) if spatial == 1 else (shape[-2], shape[-1])


def exact_singular_values(layer: Layer, *, dense: int) -> tuple[Tensor, Tensor] | None:
    """Return the distinct singular values of a layer's operator (see Layer.operator) and the multiplicity of each.

    dense: as for dense_singular_values, if the operator is not circular. Returns them as singular_values does, or None
    if the operator is too large.
    """
    if layer.operator in ("circular", "matrix"):
        return circular_singular_values(
            layer.kernel, layer.height, layer.width, layer.strides, dilation=layer.dilation, groups=layer.groups
        )
    sigma = dense_singular_values(layer, dense=dense)
    return None if sigma is None else (sigma, torch.ones(len(sigma), dtype=torch.int64))


def circular_singular_values(
    kernel: Tensor,
    height: int,
    width: int,
    stride: int | tuple[int, int] = 1,
    *,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the distinct singular values of a circular convolution and the multiplicity of each.

    kernel: (c_out, c_in / groups, kh, kw), real; height, width: the input size, divisible by stride. A kernel larger
    than the input wraps around. The operator maps c_in * height * width to c_out * height * width / (sh sw) numbers.
    With strides (sh, sw), each output frequency combines sh sw input frequencies (aliasing), so its block is c_out x
    (c_in sh sw), divided by sqrt(sh sw), in each group. Mirrored frequencies of a real kernel have the same values, so
    each pair is computed once and counted twice. Returns sigma (m,) float64, in descending order, and multiplicity (m,)
    int64, whose sum is min(rows, columns) of the operator, both on the CPU. Raises ValueError if the stride does not
    divide the input size.
    """
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    if height % strides[0] or width % strides[1]:
        raise ValueError(
            f"stride {stride} does not divide the input size {height} x {width}, so the operator is not circular"
        )
    with single_threaded() as threads:
        workers = min(threads, MAX_WORKERS) if kernel.device.type == "cpu" else 1
        blocks = kernel.double().unflatten(0, (groups, -1))
        return _singular_values(blocks, (height, width), strides, dilation, workers=workers)


def _singular_values(
    kernels: Tensor, size: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int], *, workers: int
) -> tuple[Tensor, Tensor]:
    rows, columns, aliases = size[0] // strides[0], size[1] // strides[1], strides[0] * strides[1]
    groups, c_out, c_in, kh, kw = kernels.shape
    if (kh, kw) == (1, 1):  # the singular values of one matrix for every group, once per output position
        sigma = torch.linalg.svdvals(kernels[..., 0, 0]).flatten().sort(descending=True).values
        missing = groups * min(c_out, c_in * aliases) - len(sigma)  # zeros for inputs that the stride skips
        sigma = torch.cat([sigma, sigma.new_zeros(missing)]).cpu()
        return sigma, torch.full((len(sigma),), rows * columns)
    taps = kernels.permute(3, 4, 0, 1, 2).reshape(kh * kw, -1)  # (kh kw, c_out c_in)

    def blocks(frequencies: Tensor) -> Tensor:
        rotations = phases(frequencies.to(taps.device), (kh, kw), size, strides, dilation) / math.sqrt(aliases)
        rotations = rotations.flatten(0, 1)  # (f sh sw, kh kw)
        spectrum = torch.complex(rotations.real @ taps, rotations.imag @ taps)  # half the work of a complex product
        grouped = spectrum.view(-1, aliases, groups, c_out, c_in).permute(0, 2, 3, 1, 4)
        return grouped.flatten(0, 1).flatten(2)  # (f g, c_out, sh sw c_in)

    halves = output_frequencies(rows, columns)
    parts = torch.cat([half for half, _ in halves]).split(max(1, _CHUNK // (16 * groups * c_out * c_in * aliases)))
    # The last bits of a matrix product depend on its size, those of a decomposition do not: only decompositions are
    # split further, so that the result does not depend on the number of threads.
    if len(parts) < workers:
        pieces = [piece for part in parts for piece in blocks(part).chunk(workers)]
        decomposed = parallel(torch.linalg.svdvals, pieces, workers)
    else:
        decomposed = parallel(lambda part: torch.linalg.svdvals(blocks(part)), parts, workers)
    values = torch.cat(decomposed).cpu().view(-1, groups * min(c_out, c_in * aliases))  # (f, values per frequency)
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

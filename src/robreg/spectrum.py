"""Exact singular values of convolutions (as circular operators) and linear layers (Sedghi et al. 2019)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg import job, table
from robreg.attack import frozen
from robreg.network import load


@dataclass(frozen=True)
class Layer:
    """A linear map inside a network, with its input size: height = width = 1 for a linear layer."""

    name: str
    module: nn.Conv2d | nn.Linear
    height: int
    width: int

    @property
    def kind(self) -> str:
        """conv or linear."""
        return "conv" if isinstance(self.module, nn.Conv2d) else "linear"

    @property
    def kernel(self) -> Tensor:
        """The weight as (c_out, c_in, k, k)."""
        weight = self.module.weight.detach()
        return weight if weight.ndim == 4 else weight[:, :, None, None]

    @property
    def stride(self) -> int:
        """The stride, 1 for a linear layer."""
        return self.module.stride[0] if isinstance(self.module, nn.Conv2d) else 1

    def facts(self) -> dict[str, str | int]:
        """Return the columns that say which operator this is."""
        c_out, c_in, kernel, _ = self.kernel.shape
        return {
            "name": self.name,
            "kind": self.kind,
            "c_in": c_in,
            "c_out": c_out,
            "kernel": kernel,
            "stride": self.stride,
            "height": self.height,
            "width": self.width,
        }


def record(checkpoint: Path, *, sv: Path, svstd: Path, device: str) -> None:
    """Write sv.parquet (every distinct singular value) and svstd.parquet (one row per layer) of one network."""
    model, meta = load(checkpoint)
    model.to(job.device(device, meta["threads"]))
    values: dict[str, list[Any]] = {name: [] for name in table.SCHEMAS["sv"].names}
    rows: dict[str, list[Any]] = {name: [] for name in table.SCHEMAS["svstd"].names}
    for number, layer in enumerate(layers(model, tuple(meta["shape"])), start=1):
        sigma, multiplicity = singular_values(layer.kernel, layer.height, layer.width, layer.stride)
        values["layer"] += [number] * len(sigma)
        values["name"] += [layer.name] * len(sigma)
        values["sigma"] += sigma.tolist()
        values["multiplicity"] += multiplicity.tolist()
        row = {"layer": number, **layer.facts(), **summary(sigma, multiplicity)}
        for name, column in rows.items():
            column.append(row[name])
    table.write(sv, "sv", values, job.provenance(meta))
    table.write(svstd, "svstd", rows, job.provenance(meta))


def layers(model: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """List the convolutions and linear layers in the order in which one image of shape (C, H, W) passes them.

    Raises ValueError, naming the layer, for one whose operator this module does not treat.
    """
    found: list[Layer] = []

    def note(name: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        height, width = (x.shape[2], x.shape[3]) if isinstance(module, nn.Conv2d) else (1, 1)
        found.append(Layer(name, module, height, width))

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: note(name, module, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), frozen(model):
            model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    for layer in found:
        _refuse_untreated(layer)
    return found


def singular_values(kernel: Tensor, height: int, width: int, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Return the distinct singular values of a circular convolution and how often each occurs in its spectrum.

    kernel: (c_out, c_in, kh, kw), real; height, width: input size, each divisible by stride. Larger kernels wrap round.
    The operator maps c_in * height * width to c_out * height * width / stride^2 numbers. Under a stride s, an output
    frequency sees s^2 input frequencies (aliasing), so its block is c_out x (c_in s^2), divided by s. A real kernel's
    mirrored frequencies have the same values: each pair is computed once and counted twice.
    Returns sigma (m,) float64, falling, and multiplicity (m,) int64, whose sum is min(rows, columns) of the operator.
    Raises ValueError if the stride does not divide the input size.
    """
    if height % stride or width % stride:
        raise ValueError(
            f"stride {stride} does not divide the input size {height} x {width}: the operator is not circular"
        )
    rows, columns = height // stride, width // stride
    if kernel.shape[2:] == (1, 1):  # the matrix itself, once per output position
        sigma = torch.linalg.svdvals(kernel[:, :, 0, 0].double())
        missing = min(kernel.shape[0], kernel.shape[1] * stride**2) - len(sigma)  # inputs that the stride skips
        sigma = torch.cat([sigma, sigma.new_zeros(missing)])
        return sigma.cpu(), torch.full((len(sigma),), rows * columns)
    pieces = []
    for blocks, count in _blocks(kernel.double(), height, width, stride):
        sigma = torch.linalg.svdvals(blocks).flatten()
        pieces.append((sigma.cpu(), torch.full((len(sigma),), count)))
    sigma = torch.cat([piece[0] for piece in pieces])
    multiplicity = torch.cat([piece[1] for piece in pieces])
    order = sigma.argsort(descending=True, stable=True)
    return sigma[order], multiplicity[order]


def summary(sigma: Tensor, multiplicity: Tensor) -> dict[str, float | int]:
    """Summarise a spectrum with its multiplicities: n, mean, std (population), min, max."""
    n = int(multiplicity.sum())
    mean = float((sigma * multiplicity).sum() / n)
    variance = float(((sigma - mean) ** 2 * multiplicity).sum() / n)
    return {"n": n, "mean": mean, "std": variance**0.5, "min": float(sigma.min()), "max": float(sigma.max())}


def _blocks(kernel: Tensor, height: int, width: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (blocks (f, c_out, c_in s^2), multiplicity) over half of the output frequencies, one column at a time."""
    spectrum = torch.fft.fft2(_wrap(kernel, height, width))  # (c_out, c_in, height, width)
    rows, columns = height // stride, width // stride
    for v in range(columns // 2 + 1):
        aliased = spectrum[:, :, :, v::columns].unflatten(2, (stride, rows))  # (c_out, c_in, s, rows, s)
        blocks = aliased.permute(3, 0, 1, 2, 4).flatten(2) / stride  # (rows, c_out, c_in s^2)
        if v not in (0, columns - v):  # its mirror image is another column
            yield blocks, 2
            continue
        own = [u for u in range(rows // 2 + 1) if u in (0, rows - u)]
        twice = [u for u in range(rows // 2 + 1) if u not in own]
        yield blocks[own], 1
        if twice:
            yield blocks[twice], 2


def _wrap(kernel: Tensor, height: int, width: int) -> Tensor:
    """Lay the kernel on the torus: (c_out, c_in, height, width), taps beyond the edge added to those they meet."""
    c_out, c_in, kh, kw = kernel.shape
    torus = kernel.new_zeros(c_out, c_in, height, width)
    for i in range(kh):
        for j in range(kw):
            torus[:, :, i % height, j % width] += kernel[:, :, i, j]
    return torus


def _refuse_untreated(layer: Layer) -> None:
    module = layer.module
    if isinstance(module, nn.Linear):
        return
    height, width = module.kernel_size
    square = height == width and module.stride[0] == module.stride[1]
    if not (square and module.groups == 1 and module.dilation == (1, 1)):
        raise ValueError(
            f"layer {layer.name}: spectra need groups 1, dilation 1, a square kernel and stride, not {module}"
        )
    for size in (layer.height, layer.width):
        if size % layer.stride:
            raise ValueError(f"layer {layer.name}: stride {layer.stride} does not divide its input size {size}")
        padding = module.padding[0] if isinstance(module.padding, tuple) else None
        if padding is not None and (size + 2 * padding - height) // layer.stride + 1 != size // layer.stride:
            raise ValueError(f"layer {layer.name}: a circular operator needs padding that keeps the size, not {module}")

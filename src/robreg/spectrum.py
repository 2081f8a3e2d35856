"""Exact singular values of convolutions (as circular operators) and linear layers (Sedghi et al. 2019)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robreg import job, table
from robreg.attack import frozen
from robreg.network import load
from robreg.padding import measure

Part = TypeVar("Part")
Made = TypeVar("Made")

_CHUNK = 2**26  # bytes of complex blocks at a time; one block of 1024 x 4096 takes as much
_WORKERS = 4  # each holds a chunk several times over


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


def record(checkpoint: Path, *, sv: Path, svstd: Path, padding: Path, dense: int, device: str) -> None:
    """Write sv.parquet, svstd.parquet and padding.parquet of one network.

    sv: every distinct singular value; svstd: one row per layer; padding: beside them the operators as they are padded,
    exact up to dense rows or columns (see robreg.padding).
    """
    model, meta = load(checkpoint)
    model.to(job.device(device, meta["threads"]))
    columns: dict[str, dict[str, list[Any]]] = {
        kind: {name: [] for name in table.SCHEMAS[kind].names} for kind in ("sv", "svstd", "padding")
    }
    for number, layer in enumerate(layers(model, tuple(meta["shape"])), start=1):
        sigma, multiplicity = singular_values(layer.kernel, layer.height, layer.width, layer.stride)
        circular = summary(sigma, multiplicity)
        values = {"sigma": sigma.tolist(), "multiplicity": multiplicity.tolist()}
        rows: dict[str, dict[str, list[Any]]] = {
            "sv": {"layer": [number] * len(sigma), "name": [layer.name] * len(sigma), **values},
            "svstd": {"layer": [number], **_listed({**layer.facts(), **circular})},
            "padding": {"layer": [number], "name": [layer.name], **_listed(measure(layer, circular, dense=dense))},
        }
        for kind, names in columns.items():
            for name, column in names.items():
                column.extend(rows[kind][name])
    for kind, path in (("sv", sv), ("svstd", svstd), ("padding", padding)):
        table.write(path, kind, columns[kind], job.provenance(meta))


def _listed(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [value] for key, value in row.items()}


def layers(model: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """List the convolutions and linear layers in the order in which one image of shape (C, H, W) passes them.

    Raises ValueError that names every layer whose operator this module does not treat, with the reason, and where the
    network cannot take such an image.
    """
    found: list[Layer] = []
    reasons = [f"layer {name}: {reason}" for name, module in model.named_modules() if (reason := _foreign(module))]

    def note(name: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        height, width = (x.shape[2], x.shape[3]) if isinstance(module, nn.Conv2d) else (1, 1)
        if name in (layer.name for layer in found):
            reasons.append(f"layer {name}: the network calls it more than once; give every call a layer of its own")
        elif isinstance(module, nn.Linear) and x.ndim != 2:
            reasons.append(f"layer {name}: a linear layer needs one vector per image, not {tuple(x.shape[1:])}")
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
    except RuntimeError as error:  # of torch: shapes that do not fit
        raise ValueError(
            f"the network cannot take an image of shape {shape} ({error}); use another, or a crop"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    reasons += [f"layer {layer.name}: {reason}" for layer in found if (reason := _untreated(layer))]
    if reasons:
        raise ValueError("; ".join(dict.fromkeys(reasons)))
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
    with single_threaded() as threads:
        workers = min(threads, _WORKERS) if kernel.device.type == "cpu" else 1
        return _singular_values(kernel, (height, width), stride, workers=workers)


def _singular_values(kernel: Tensor, size: tuple[int, int], stride: int, *, workers: int) -> tuple[Tensor, Tensor]:
    rows, columns = size[0] // stride, size[1] // stride
    c_out, c_in, kh, kw = kernel.shape
    if (kh, kw) == (1, 1):  # the matrix itself, once per output position
        sigma = torch.linalg.svdvals(kernel[:, :, 0, 0].double())
        missing = min(c_out, c_in * stride**2) - len(sigma)  # inputs that the stride skips
        sigma = torch.cat([sigma, sigma.new_zeros(missing)]).cpu()
        return sigma, torch.full((len(sigma),), rows * columns)
    taps = kernel.double().permute(2, 3, 0, 1).reshape(-1, c_out * c_in)  # (kh kw, c_out c_in)

    def blocks(frequencies: Tensor) -> Tensor:
        turned = phases(frequencies.to(kernel.device), (kh, kw), size, stride) / stride
        turned = turned.flatten(0, 1)  # (f s^2, kh kw)
        made = torch.complex(turned.real @ taps, turned.imag @ taps)  # half the work of a complex product
        return made.view(-1, stride**2, c_out, c_in).transpose(1, 2).flatten(2)  # (f, c_out, s^2 c_in)

    halves = output_frequencies(rows, columns)
    parts = torch.cat([half for half, _ in halves]).split(max(1, _CHUNK // (16 * c_out * c_in * stride**2)))
    if (
        len(parts) < workers
    ):  # a product's last bits depend on its size, a decomposition's do not: so only that is split
        pieces = [piece for part in parts for piece in blocks(part).chunk(workers)]
        decomposed = parallel(torch.linalg.svdvals, pieces, workers)
    else:
        decomposed = parallel(lambda part: torch.linalg.svdvals(blocks(part)), parts, workers)
    found = torch.cat(decomposed).cpu()  # (f, values)
    counts = torch.cat([torch.full((len(half), found.shape[1]), count) for half, count in halves]).flatten()
    sigma = found.flatten()
    order = (-sigma.numpy()).argsort(kind="stable")  # faster than torch's
    return sigma[order], counts[order]


def summary(sigma: Tensor, multiplicity: Tensor) -> dict[str, float | int]:
    """Summarise a spectrum with its multiplicities: n, mean, std (population), min, max."""
    n = int(multiplicity.sum())
    mean = float((sigma * multiplicity).sum() / n)
    variance = float(((sigma - mean) ** 2 * multiplicity).sum() / n)
    return {"n": n, "mean": mean, "std": variance**0.5, "min": float(sigma.min()), "max": float(sigma.max())}


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


@contextmanager
def single_threaded() -> Iterator[int]:
    """Give torch one CPU thread, and yield how many it had: while others compute, its own would wait busily."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def parallel(function: Callable[[Part], Made], parts: Sequence[Part], workers: int) -> list[Made]:
    """Map in up to `workers` threads, within single_threaded: small matrices leave LAPACK's own threads waiting."""
    if workers == 1:
        return list(map(function, parts))
    return list(_pool(min(workers, _WORKERS)).map(function, parts))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Keep threads: the first decomposition in a new one takes as long as all of a small layer."""
    return ThreadPoolExecutor(workers)


def _phases(frequency: Tensor, taps: int, length: int, stride: int) -> Tensor:
    """Return exp(-2 pi i g tap / length), (f, s, taps), along one axis of length."""
    aliased = frequency[:, None] + torch.arange(stride, device=frequency.device) * (length // stride)
    turns = aliased[:, :, None] * torch.arange(taps, device=frequency.device) % length  # whole: no digit is lost
    angle = turns.double() * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)


def _foreign(module: nn.Module) -> str | None:
    """Say why a module that is neither convolution nor linear layer cannot be treated: it has a matrix of its own."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return None
    sizes = [parameter.shape for parameter in module.parameters(recurse=False)]
    for size in sizes:
        if sum(length > 1 for length in size) > 1:  # otherwise they are factors or offsets
            return f"{type(module).__name__} has weights {tuple(size)}, and only Conv2d and Linear are treated"
    return None


def _untreated(layer: Layer) -> str | None:
    """Say why a layer's operator is not treated; None if it is."""
    module = layer.module
    if isinstance(module, nn.Linear):
        return None
    kernel, stride = module.kernel_size, module.stride
    if kernel[0] != kernel[1] or stride[0] != stride[1] or module.groups != 1 or module.dilation != (1, 1):
        return f"spectra need groups 1, dilation 1, a square kernel and stride, not {module}"
    named = {"valid": (0, 0), "same": (kernel[0] - 1, kernel[1] - 1)}  # before and behind together
    around = named[module.padding] if isinstance(module.padding, str) else [2 * pad for pad in module.padding]
    for size, pad in zip((layer.height, layer.width), around, strict=True):
        if size % layer.stride:
            return f"stride {layer.stride} does not divide its input size {size}"
        if (size + pad - kernel[0]) // layer.stride + 1 != size // layer.stride:
            return f"a circular operator needs padding that keeps the size, not {module}"
    return None

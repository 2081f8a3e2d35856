"""Measure how evenly layers pass perturbations on, the mechanism that the paper infers from singular values."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.attacks.pgd import pgd, pixel_radius, uniform_noise
from robreg.data.dataset import to_float
from robreg.measures.margins import margins
from robreg.measures.open_run import open_run
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen
from robreg.networks.replayed import replayed
from robreg.spectra.layers import first_input, is_linear_map, list_layers
from robreg.tables import parquet, provenance, schemas

PERTURBATIONS = ("random", "pgd")
Ratios = dict[str, list[Tensor]]

log = logging.getLogger(__name__)


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    spread: Path,
    spec: Mapping[str, Any],
    batch: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write spread.parquet of one network: its layers and its margin under both perturbations.

    spec: n (the first n test examples are used) and the settings of measure.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = (part[: spec["n"]] for part in prepared.split("test"))
    names = [layer.name for layer in list_layers(model, tuple(meta["shape"]))]
    model = replayed(model, min(batch, len(labels)))  # not the pass with hooks, which needs no gradient
    columns: dict[str, list[Any]] = {name: [] for name in schemas.SCHEMAS["spread"].names}
    for perturbation, measured in measure(model, images, labels, spec, batch=batch).items():
        for number, name in enumerate(["margin", *names]):
            values = measured.get(name)
            if values is None:  # a matrix of attention, or a layer whose inputs do not have one row per example
                log.warning("layer %s is not measured by example, so spread.parquet has no row for it", name)
                continue
            if not len(values):
                log.warning(
                    "no %s perturbation reaches layer %s, so spread.parquet has no row for it", perturbation, name
                )
                continue
            row = {"layer": number, "name": name, "perturbation": perturbation, "eps": spec["eps"], "n": len(values)}
            row |= {"mean": float(values.mean()), "std": float(values.std(correction=0))}
            for key, column in columns.items():
                column.append(row[key])
    parquet.write(spread, "spread", columns, provenance.run_metadata(meta, spread=dict(spec)))


def measure(
    model: Classifier, images: Tensor, labels: Tensor, spec: Mapping[str, Any], *, batch: int
) -> dict[str, dict[str, Tensor]]:
    """Measure ||output' - output|| / ||input' - input|| of every layer and |margin' - margin|, for each example.

    images: (N, C, H, W) uint8; labels: (N,); spec: eps and step in 1/255, steps, seed, space. There are two
    perturbations: "random" is uniform in the l_inf ball, clipped to [0, 1], and "pgd" ascends the loss from there. The
    network runs in fp32 and norms are in float64; biases cancel. Returns for each perturbation "margin" (N,), in
    logits, and for each layer the ratios of those examples whose perturbation reaches the layer, in every call of a
    layer that is called several times, all float64 on the CPU. Matrices of attention are no layers of their own and are
    left out, and so are layers whose inputs are not sorted by example. No activations are kept.
    """
    device = next(model.parameters()).device
    ratios: dict[str, Ratios] = {perturbation: {"margin": []} for perturbation in PERTURBATIONS}
    for begin in range(0, len(images), batch):
        index = torch.arange(begin, min(begin + batch, len(images)))
        x, y = to_float(images[index].to(device)), labels[index].to(device)
        noise = uniform_noise(index, tuple(x.shape[1:]), seed=spec["seed"])
        for perturbation, moved in perturb(model, x, y, spec, noise).items():
            with frozen(model), _collect_ratios(model, ratios[perturbation]), torch.no_grad():
                clean, other = (margins(logits, y) for logits in model(torch.cat([x, moved])).chunk(2))
            ratios[perturbation]["margin"].append((other.double() - clean.double()).abs().cpu())
    return {
        perturbation: {name: torch.cat(parts) for name, parts in by_name.items()}
        for perturbation, by_name in ratios.items()
    }


def perturb(model: Classifier, x: Tensor, y: Tensor, spec: Mapping[str, Any], noise: Tensor) -> dict[str, Tensor]:
    """Return x (B, C, H, W) under both perturbations: moved by eps times noise in [-1, 1], and by PGD from there."""
    eps, step = (pixel_radius(spec[key], spec["space"], model.normalise.std) for key in ("eps", "step"))
    random = (x + eps * noise.to(x)).clamp(0, 1)
    return {
        "random": random,
        "pgd": pgd(model, x, y, eps=eps, step=step, steps=spec["steps"], noise=noise),
    }


@contextmanager
def _collect_ratios(model: nn.Module, ratios: Ratios) -> Iterator[None]:
    """Add every layer's ratios to `ratios` while the model runs on a batch whose halves are clean and perturbed."""

    examples = 0

    def count(x: Tensor) -> None:
        nonlocal examples
        examples = len(x)

    def append_ratios(name: str, x: Tensor, y: Tensor) -> None:
        if len(x) % examples or len(y) % examples:
            return
        before, after = (_norm_of_change(part.reshape(examples, -1)) for part in (x, y))
        reached = before > 0
        ratios.setdefault(name, []).append((after[reached] / before[reached]).cpu())

    hooks = [model.register_forward_pre_hook(lambda module, args: count(args[0]))]
    hooks += [
        module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: append_ratios(name, first_input(args, kwargs), output),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if is_linear_map(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _norm_of_change(x: Tensor) -> Tensor:
    """Return the norm, (B,), of the difference between the two halves of x (2 B, n)."""
    clean, other = x.chunk(2)
    return torch.linalg.vector_norm(other - clean, dim=1, dtype=torch.float64)

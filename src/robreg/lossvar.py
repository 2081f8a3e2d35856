"""Maximal variation of the loss in an l_inf ball around each example (paper, B.5, Figure 8 and Table 1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg import job, table
from robreg.attack import frozen, iterates, radius, uniform_noise
from robreg.data import to_float
from robreg.network import Classifier


def record(checkpoint: Path, data: Path, out: Path, *, attack: Mapping[str, Any], batch: int, device: str) -> None:
    """Write lossvar.parquet of one network: every test example at each of attack's radii ("eps", a list)."""
    model, meta, prepared = job.opened(checkpoint, data, device)
    images, labels = prepared.split("test")
    columns: dict[str, list[float]] = {name: [] for name in table.SCHEMAS["lossvar"].names}
    for eps in attack["eps"]:
        spec = {**attack, "eps": eps, "step": eps * attack["relative_step"]}
        columns["eps"] += [eps] * len(labels)
        columns["index"] += range(len(labels))
        for name, values in measure(model, images, labels, spec, batch=batch).items():
            columns[name] += values.tolist()
    table.write(out, "lossvar", columns, job.provenance(meta, attack=dict(attack)))


def measure(
    model: Classifier, images: Tensor, labels: Tensor, spec: Mapping[str, Any], *, batch: int
) -> dict[str, Tensor]:
    """Measure loss_clean and loss_adv = max over x and PGD's start and iterates of the cross entropy of the label.

    images: (N, C, H, W) uint8; labels: (N,); spec: eps and step in 1/255, steps, space, seed. The images' device
    is the model's. Returns the two losses and variation = loss_adv - loss_clean >= 0, each (N,), nats, on the CPU.
    """
    pairs = []
    device = next(model.parameters()).device
    with frozen(model):
        for begin in range(0, len(images), batch):
            index = torch.arange(begin, min(begin + batch, len(images)))
            x, y = to_float(images[index].to(device)), labels[index].to(device)
            pairs.append(_batch(model, x, y, spec, uniform_noise(index, tuple(x.shape[1:]), seed=spec["seed"])))
    clean, highest = (torch.cat(column).cpu() for column in zip(*pairs, strict=True))
    return {"loss_clean": clean, "loss_adv": highest, "variation": highest - clean}


def _batch(model: Classifier, x: Tensor, y: Tensor, spec: Mapping[str, Any], noise: Tensor) -> tuple[Tensor, Tensor]:
    clean = _loss(model, x, y)
    highest = clean
    eps, step = (radius(spec[key], spec["space"], model.normalise.std) for key in ("eps", "step"))
    for point, loss in iterates(model, x, y, eps=eps, step=step, steps=spec["steps"], noise=noise):
        highest = torch.maximum(highest, _loss(model, point, y) if loss is None else loss)
    return clean, highest


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y, reduction="none")

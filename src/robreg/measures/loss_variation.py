"""Measure the variation of the loss in an l_inf ball around each example (paper, B.5, Figure 8 and Table 1).

It is measured as cross entropy and as the probability of the label, which is exp(-cross entropy), so that one attack
finds the largest change of both. The numbers in the paper's Table 1 are too small, relative to its accuracies, to be
changes of the cross entropy; they are about as large as those of the probability.

The paper speaks of the maximal variation. An attack finds a lower bound on it: no attack is sure to find the maximum.
On four networks of the demo (AR 0 and 8), 100 steps from 4 starts find means over examples that are 3 to 4 % larger at
the largest radius than those of the settings in config.yaml (10 steps from one start), and below 1 % at the smallest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.pgd import pgd_iterates, pixel_radius, refuse_nonfinite_gradient, uniform_noise
from robreg.data.dataset import to_float
from robreg.measures.margins import read_clean
from robreg.measures.open_run import open_run
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen
from robreg.networks.replayed import replayed
from robreg.tables import parquet, provenance, schemas


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    margins: Path,
    lossvar: Path,
    attack: Mapping[str, Any],
    batch: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write lossvar.parquet of one network: the test examples at each of the attack's radii.

    margins: the run's margins.parquet, which holds the losses of the clean examples; attack: eps, a list of radii in
    1/255; relative_step, the step in radii; steps, space, seed, and n, the number of test examples, None for all.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = prepared.split("test")
    _, losses = read_clean(margins, labels)
    images, labels, losses = (part[: attack["n"]] for part in (images, labels, losses))
    model = replayed(model, min(batch, len(labels)))
    columns: dict[str, list[float]] = {name: [] for name in schemas.SCHEMAS["lossvar"].names}
    for eps in attack["eps"]:
        spec = {**attack, "eps": eps, "step": eps * attack["relative_step"]}
        columns["eps"] += [eps] * len(labels)
        columns["index"] += range(len(labels))
        for name, values in measure(model, images, labels, spec, batch=batch, losses=losses).items():
            columns[name] += values.tolist()
    parquet.write(lossvar, "lossvar", columns, provenance.run_metadata(meta, attack=dict(attack)))


def measure(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    spec: Mapping[str, Any],
    *,
    batch: int,
    losses: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measure the cross entropy of each clean example, and the largest one at x and at PGD's start and iterates.

    images: (N, C, H, W) uint8; labels: (N,); spec: eps and step in 1/255, steps, space, seed; losses: (N,), the losses
    of the clean examples, if they are known. Returns loss_clean, loss_adv (the largest) and variation = loss_adv -
    loss_clean >= 0, each (N,), in nats, and the label's probability at the same points, prob_clean, prob_adv (the
    smallest) and prob_variation = prob_clean - prob_adv >= 0, on the CPU.
    """
    pairs = []
    device = next(model.parameters()).device
    with frozen(model):
        for index in torch.arange(len(images)).split(batch):
            x, y = to_float(images[index].to(device)), labels[index].to(device)
            clean = _loss(model, x, y) if losses is None else losses[index].to(device)
            noise = uniform_noise(index, tuple(x.shape[1:]), seed=spec["seed"])
            pairs.append((clean, _highest_loss(model, x, y, spec, noise=noise, clean=clean)))
    clean, highest = (torch.cat(column).cpu() for column in zip(*pairs, strict=True))
    found = {"loss_clean": clean, "loss_adv": highest, "variation": highest - clean}
    before, after = (-clean).exp(), (-highest).exp()
    return {**found, "prob_clean": before, "prob_adv": after, "prob_variation": before - after}


def _highest_loss(
    model: Classifier, x: Tensor, y: Tensor, spec: Mapping[str, Any], *, noise: Tensor, clean: Tensor
) -> Tensor:
    eps, step = (pixel_radius(spec[key], spec["space"], model.normalise.std) for key in ("eps", "step"))
    highest = clean
    total = x.new_zeros(())
    for point, loss in pgd_iterates(model, x, y, eps=eps, step=step, steps=spec["steps"], noise=noise, total=total):
        highest = torch.maximum(highest, _loss(model, point, y) if loss is None else loss)
    refuse_nonfinite_gradient(total)
    return highest


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y, reduction="none")

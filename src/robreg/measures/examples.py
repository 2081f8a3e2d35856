"""Keep a few attacked test images of one network, so that people can see what a radius does to them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robreg.attacks.evaluation import restarts
from robreg.data.dataset import to_float
from robreg.measures.margins import margins
from robreg.measures.open_run import open_run
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen
from robreg.tables import parquet, provenance, schemas
from robreg.tables.examples import CLASSES, LARGEST


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    examples: Path,
    attack: Mapping[str, Any],
    trained: Mapping[str, Any],
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write examples.parquet of one network: clean and attacked images, with predictions and margins.

    Which images these are follows from the data set alone, so that they are the same for all its networks.
    attack: the settings of the evaluation attack; trained: eps (1/255) and space of the training, whose radius is used
    for a second attack with as many steps, each of the same share of the radius, unless it is 0.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = prepared.split("test")
    channels, height, width = images.shape[1:]
    if channels * height * width > LARGEST:
        raise ValueError(
            f"{examples}: images of {height} x {width} pixels are too large to be kept; remove the figure examples "
            "from the study"
        )
    index = first_of_classes(labels)
    rows = []
    for radius, spec in _attacks(attack, trained):
        found = attacked_images(model, images[index], labels[index], index, spec)
        for number, position in enumerate(index.tolist()):
            own = {name: values[number].tolist() for name, values in found.items()}
            own |= {name: found[name][number].flatten().tolist() for name in ("image", "adversarial")}
            place = {"radius": radius, "index": position, "label": int(labels[position])}
            rows.append({**spec, **own, **place, "channels": channels, "height": height, "width": width})
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["examples"].names}
    parquet.write(examples, "examples", columns, provenance.run_metadata(meta))


def first_of_classes(labels: Tensor) -> Tensor:
    """Return the positions, (CLASSES,) or fewer, of the first example of each of the first classes in labels (N,)."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()[:CLASSES]])


def attacked_images(
    model: Classifier, images: Tensor, labels: Tensor, index: Tensor, spec: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Attack images with every restart of PGD, and keep of each image the result with the smallest margin.

    images: (B, C, H, W) uint8; labels, index: (B,), index being the positions in the split; spec: as in
    attacks.evaluation.evaluate. Returns image (B, C, H, W) uint8; adversarial, of that shape, in [0, 1]; and, each
    (B,), prediction and margin of the clean images, adversarial_prediction and adversarial_margin; all on the CPU.
    """
    device = next(model.parameters()).device
    x, y = to_float(images.to(device)), labels.to(device)
    prediction, margin = _classify(model, x, y)
    attacked = torch.stack([attack(index, x, y) for attack in restarts(model, spec)])  # (restarts, B, C, H, W)
    found = [_classify(model, each, y) for each in attacked]
    worst = torch.stack([margin for _, margin in found]).argmin(0)  # (B,)
    every = torch.arange(len(x), device=device)
    return {
        "image": images.cpu(),
        "adversarial": attacked[worst, every].cpu(),
        "prediction": prediction.cpu(),
        "margin": margin.cpu(),
        "adversarial_prediction": torch.stack([one for one, _ in found])[worst, every].cpu(),
        "adversarial_margin": torch.stack([one for _, one in found])[worst, every].cpu(),
    }


def _attacks(attack: Mapping[str, Any], trained: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield whose radius it is, and the settings, of each attack."""
    yield "evaluation", dict(attack)
    if trained["eps"]:
        share = attack["step"] / attack["eps"] if attack["eps"] else 1 / 4
        yield (
            "training",
            {**attack, "eps": float(trained["eps"]), "step": share * trained["eps"], "space": trained["space"]},
        )


@torch.no_grad()
def _classify(model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted classes and the margins, both (B,), of images x (B, C, H, W) with labels y (B,)."""
    with frozen(model):
        logits = model(x)
    return logits.argmax(1), margins(logits, y)

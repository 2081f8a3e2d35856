"""Measure margins, probabilities and losses of clean examples in one pass (paper, Definition 3 and section 4.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.data.dataset import to_float
from robreg.measures.open_run import open_run
from robreg.tables import parquet, provenance, schemas


def record(
    *, checkpoint: Path, data: Path, margins: Path, batch: int, device: str, network: Mapping[str, Any] | None = None
) -> None:
    """Write margins.parquet of one network, with every example of both splits of its prepared data."""
    model, meta, prepared = open_run(checkpoint, data, device, network)
    columns: dict[str, list[Any]] = {name: [] for name in schemas.SCHEMAS["margins"].names}
    for split in ("train", "test"):
        images, labels = prepared.split(split)
        measured = measure(model, images, labels, batch=batch)
        columns["split"] += [split] * len(labels)
        columns["index"] += range(len(labels))
        columns["label"] += labels.tolist()
        for name, values in measured.items():
            columns[name] += values.tolist()
    parquet.write(margins, "margins", columns, provenance.run_metadata(meta))


def read_clean(path: Path, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Read from margins.parquet which test examples are classified correctly, and their losses.

    This saves another pass over the test split. labels: (n,), of the first n test examples. Returns (n,) bool and
    (n,) float32. Raises ValueError if the table holds other examples.
    """
    table = parquet.read(path, ["split", "index", "label", "prediction", "loss"]).to_pandas()
    table = table[table["split"] == "test"].head(len(labels))
    if table["index"].tolist() != list(range(len(labels))) or table["label"].tolist() != labels.tolist():
        raise ValueError(f"{path}: its test examples are not those of the prepared data; delete it and measure again")
    correct = table["prediction"] == table["label"]
    return torch.from_numpy(correct.to_numpy().copy()), torch.from_numpy(table["loss"].to_numpy().copy())


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logit of the label minus the largest other logit (paper, Definition 3).

    logits: (B, classes); y: (B,) int64, the labels. Returns (B,), positive where the prediction is correct.

    >>> import robreg, torch
    >>> robreg.margins(torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([0]))
    tensor([1.])
    """
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own - others.amax(1)


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, labels: Tensor, *, batch: int) -> dict[str, Tensor]:
    """Measure every example of a split once, without augmentation, in fp32.

    images: (N, C, H, W) uint8; labels: (N,); model: in eval mode. Returns prediction, margin, prob (softmax of
    the label) and loss (cross entropy, nats), each (N,), on the CPU.
    """
    columns: dict[str, list[Tensor]] = {"prediction": [], "margin": [], "prob": [], "loss": []}
    device = next(model.parameters()).device
    for begin in range(0, len(images), batch):
        y = labels[begin : begin + batch].to(device)
        logits = model(to_float(images[begin : begin + batch].to(device)))  # (B, classes)
        columns["prediction"].append(logits.argmax(1))
        columns["margin"].append(margins(logits, y))
        columns["prob"].append(logits.softmax(1).gather(1, y[:, None])[:, 0])
        columns["loss"].append(functional.cross_entropy(logits, y, reduction="none"))
    return {key: torch.cat(parts).cpu() for key, parts in columns.items()}

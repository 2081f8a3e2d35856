"""Load what every measure needs first: a trained network on its device, and the data that it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robreg.data.dataset import Dataset, load_dataset
from robreg.networks.checkpoint import load_network
from robreg.networks.classifier import Classifier
from robreg.networks.device import choose_device


def open_run(
    checkpoint: Path, data: Path, device: str, network: Mapping[str, Any] | None = None
) -> tuple[Classifier, dict[str, Any], Dataset]:
    """Load a trained network onto its device, with its metadata and the data set that it was trained on.

    data: path of the prepared data's meta.json; device: see choose_device; network: the settings "arch",
    "width" and "factory" of the run (see load_network).
    Raises ValueError if the prepared data are not those that the checkpoint was trained on.
    """
    model, meta = load_network(checkpoint, architecture=network)
    prepared = load_dataset(data.parent)
    if prepared.sha256 != meta["data_sha256"]:
        raise ValueError(
            f"{checkpoint} was not trained on the data that {data.parent} now holds; "
            "delete the checkpoint to train again"
        )
    return model.to(choose_device(device, meta["threads"])), meta, prepared

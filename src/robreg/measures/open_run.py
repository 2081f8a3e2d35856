"""Load what every measure needs first: a trained network on its device, and the data that it was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robreg.data.dataset import Dataset, load_dataset
from robreg.networks.checkpoint import load_with_images
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
    model, meta, images = load_with_images(checkpoint, architecture=network)
    prepared = load_dataset(data.parent)
    if prepared.sha256 != meta["data_sha256"]:
        raise ValueError(
            f"{checkpoint} was not trained on the data that {data.parent} now holds; "
            "delete the checkpoint to train again"
        )
    _refuse_other_description(checkpoint, meta, prepared, data)
    _refuse_other_images(checkpoint, images, prepared, data)
    return model.to(choose_device(device, meta["threads"])), meta, prepared


def _refuse_other_description(checkpoint: Path, meta: Mapping[str, Any], prepared: Dataset, data: Path) -> None:
    """Raise ValueError if meta.json describes the data otherwise than the checkpoint does.

    The bytes of the arrays say none of this, and whoever changes meta.json can make its hash anew.
    """
    trained = {key: meta[key] for key in ("shape", "classes", "mean", "std")}
    try:
        trained["crop"] = json.loads(meta["settings"])["data"]["crop"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{checkpoint} does not say how its data were cropped: delete it and train again") from error
    for key, value in trained.items():
        found = getattr(prepared, key)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise ValueError(
                f"{checkpoint} was trained on data with {key} {value}, but {data} states {found}; "
                f"make the data again: snakemake -c1 --force {data}, or delete the checkpoint to train again"
            )


def _refuse_other_images(checkpoint: Path, images: Tensor, prepared: Dataset, data: Path) -> None:
    """Raise ValueError if the first test images are not those that the checkpoint holds, as it holds some.

    Where they are cropped, the checkpoint does not say how large the whole images are: in another shape, the same
    bytes are other images.
    """
    if not torch.equal(prepared.split("test")[0][: len(images)], images):
        raise ValueError(
            f"{checkpoint}: its test images are not the first ones that {data.parent} gives in the shape "
            f"{list(prepared.train_images.shape[1:])} that {data} states; "
            f"make the data again: snakemake -c1 --force {data}"
        )

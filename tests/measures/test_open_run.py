"""A network is measured only on the data that it was trained on, whatever the prepared data say of themselves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_sources import RNG, forge_meta, write_folder

from robreg.data.dataset import load_dataset
from robreg.data.preparation import prepare
from robreg.measures.open_run import open_run
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.probe import make_probe


@pytest.fixture
def prepared(run: Any, tmp_path: Path) -> Path:
    """Copy the run's prepared data."""
    return Path(shutil.copytree(run.folder, tmp_path / "data"))


def refusal_message(checkpoint: Path, folder: Path) -> str:
    with pytest.raises(ValueError, match=r"checkpoint\.pt") as caught:
        open_run(checkpoint, folder / "meta.json", "cpu")
    return str(caught.value)


def test_the_data_of_the_training_are_taken(run: Any, prepared: Path) -> None:
    forge_meta(prepared)  # to the same hashes
    _, meta, data = open_run(run.checkpoint, prepared / "meta.json", "cpu")
    assert data.sha256 == meta["data_sha256"]


@pytest.mark.parametrize(
    ("key", "value"), [("classes", 11), ("mean", [0.25]), ("std", [0.125]), ("crop", 8), ("crop", 7)]
)
def test_another_description_of_the_same_arrays_is_refused(run: Any, prepared: Path, key: str, value: Any) -> None:
    before = getattr(load_dataset(prepared), key)
    forge_meta(prepared, **{key: value})
    if (key, value) == ("crop", 7):  # the shape of what networks see is compared first
        key, before, value = "shape", [1, 8, 8], (1, 7, 7)
    message = refusal_message(run.checkpoint, prepared)
    before, value = (
        list(before) if isinstance(before, tuple) else before,
        tuple(value) if key in ("mean", "std") else value,
    )
    assert f"was trained on data with {key} {before}, but {prepared / 'meta.json'} states {value}" in message
    assert f"make the data again: snakemake -c1 --force {prepared / 'meta.json'}" in message


@pytest.mark.parametrize("settings", ["{}", "[" * 100_000, None])
def test_a_checkpoint_that_does_not_say_how_its_data_were_cropped_is_refused(
    run: Any, tmp_path: Path, settings: str | None
) -> None:
    meta = run.meta | {"settings": settings}
    torch.save({"model": run.model.state_dict(), "meta": meta}, tmp_path / "checkpoint.pt")
    assert "does not say how its data were cropped" in refusal_message(tmp_path / "checkpoint.pt", run.folder)


def test_images_of_another_shape_are_refused(run: Any, prepared: Path) -> None:
    """In another shape, the same bytes have the same SHA-256."""
    for split in ("train", "test"):
        np.save(prepared / f"{split}_images.npy", np.load(prepared / f"{split}_images.npy").reshape(-1, 1, 4, 16))
    forge_meta(prepared, shape=[1, 4, 16])
    assert load_dataset(prepared).sha256 == run.data.sha256
    assert "with shape [1, 8, 8], but" in refusal_message(run.checkpoint, prepared)


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_labels_are_refused(run: Any, prepared: Path, split: str) -> None:
    labels = np.load(prepared / f"{split}_labels.npy")
    np.save(prepared / f"{split}_labels.npy", (labels + 1) % 10)
    forge_meta(prepared)
    assert "was not trained on the data that" in refusal_message(run.checkpoint, prepared)


def test_whole_images_of_another_shape_are_refused_although_their_crops_have_the_right_one(
    run: Any, net: Callable[..., Classifier], tmp_path: Path
) -> None:
    write_folder(tmp_path / "set", RNG.integers(0, 256, (20, 12, 16, 3), np.uint8), np.arange(20) % 4)
    spec = {"kind": "parquet", "source": "set", "max_train": None, "max_test": None, "subset_seed": 0, "crop": 8}
    folder, checkpoint = tmp_path / "data", tmp_path / "checkpoint.pt"
    prepare(spec, data_root=tmp_path, out=folder)
    data, model = load_dataset(folder), net(shape=(3, 8, 8), classes=4)
    model.normalise = Normalise(data.mean, data.std)
    own = {"shape": list(data.shape), "classes": 4, "mean": list(data.mean), "std": list(data.std)}
    own |= {"data_sha256": data.sha256, "probe_images": 8, "settings": json.dumps({"data": {"crop": 8}})}
    content = {"model": model.state_dict(), "meta": run.meta | own}
    torch.save(content | {"probe": make_probe(model, data.split("test")[0])}, checkpoint)
    assert open_run(checkpoint, folder / "meta.json", "cpu")[2].shape == (3, 8, 8)
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", np.load(folder / f"{split}_images.npy").reshape(-1, 3, 16, 12))
    forge_meta(folder, shape=[3, 16, 12])
    assert load_dataset(folder).sha256 == data.sha256
    assert "not the first ones that" in refusal_message(checkpoint, folder)

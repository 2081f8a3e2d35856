"""Data sets: reading every kind of source, and the prepared arrays."""

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import signal
import tarfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from helpers.data_sources import (
    RNG,
    cifar_batch,
    cifar_members,
    declare_official,
    encode,
    forge_meta,
    prepare_and_load_with,
    refusal_message_with,
    set_official_counts,
    write_archive,
    write_folder,
    write_parquet,
)
from helpers.http_server import Server, serving
from sklearn.datasets import load_digits
from torchvision.transforms.functional import center_crop

from robreg.data import parquet_folder, preparation, source
from robreg.data.dataset import ARRAYS, load_dataset, to_float
from robreg.data.errors import DataError
from robreg.data.preparation import prepare
from robreg.data.subset import stratified_subset

C10_JPEG = Path(__file__).parents[3] / "shared/data/c10-jpeg"
SETTINGS = {"name": "d", "source": None, "max_train": None, "max_test": None, "subset_seed": 0}


prepare_and_load = partial(prepare_and_load_with, SETTINGS)
refusal_message = partial(refusal_message_with, SETTINGS)


# Digits and subsets


def test_digits_have_a_fixed_hash(tmp_path: Path) -> None:
    data = prepare_and_load(tmp_path, kind="digits")
    assert data.train_images.shape == (1297, 1, 8, 8)
    assert data.test_images.shape == (500, 1, 8, 8)
    assert data.sha256 == "ae60f4e7320dd8e386bd92d0f11e42617951ff10e580bd0701cd2b6684ec1118"
    assert data.classes == 10


def test_test_digits_are_the_last_ones_and_so_of_other_writers(tmp_path: Path) -> None:
    data, original = prepare_and_load(tmp_path, kind="digits"), load_digits()
    everything = torch.cat([data.train_images, data.test_images]).reshape(-1, 64).numpy()
    assert np.array_equal(everything, np.round(255 * original.data / 16))
    assert torch.cat([data.train_labels, data.test_labels]).tolist() == original.target.tolist()
    # Every writer begins with the digits 0 to 9, three times: the first test images continue the series of a writer
    # of whom the training images have ten.
    assert data.train_labels[-10:].tolist() == data.test_labels[:10].tolist() == list(range(10))
    assert data.train_labels[-20:-10].tolist() != list(range(10))


@pytest.mark.parametrize("change", ["order", "pixel", "label"])
def test_other_digits_than_the_known_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pixels, labels = load_digits(return_X_y=True)
    if change == "order":
        first_zero, second_zero = np.flatnonzero(labels == 0)[:2]
        pixels[[first_zero, second_zero]] = pixels[[second_zero, first_zero]]
    elif change == "pixel":
        pixels[700, 20] = 16 - pixels[700, 20]
    else:
        labels[-1] = (labels[-1] + 1) % 10
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: (pixels, labels))
    message = refusal_message(tmp_path, kind="digits")
    assert message.startswith("datasets.d.source: load_digits of scikit-learn")
    assert "install the version of scikit-learn in envs/run.txt" in message


def test_digits_split_ignores_the_subset_seed(tmp_path: Path) -> None:
    assert (
        prepare_and_load(tmp_path / "a", kind="digits").sha256
        == prepare_and_load(tmp_path / "b", kind="digits", subset_seed=7).sha256
    )


def test_stratified_subset_has_a_fixed_hash() -> None:
    labels = np.arange(1000) % 7
    rows = stratified_subset(labels, 123, 5)
    assert (
        hashlib.sha256(rows.tobytes()).hexdigest() == "d34e34b0fb2dfb4d3d627084decc6421a01bc44cde07d76f5de6221a216b2332"
    )
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()


def test_stratified_subset_allocates_by_largest_remainder() -> None:
    labels = np.repeat([0, 1, 2, 9], [50, 30, 15, 5])
    assert np.bincount(labels[stratified_subset(labels, 10, 0)], minlength=10)[[0, 1, 2, 9]].tolist() == [5, 3, 2, 0]
    assert np.bincount(labels[stratified_subset(labels, 99, 0)], minlength=10)[[0, 1, 2, 9]].tolist() == [49, 30, 15, 5]
    assert stratified_subset(labels, 100, 0).tolist() == list(range(100))
    with pytest.raises(ValueError, match="cannot choose 101 of 100"):
        stratified_subset(labels, 101, 0)


def test_subset_depends_only_on_its_seed(tmp_path: Path) -> None:
    small = {"kind": "digits", "max_train": 200, "max_test": 50}
    first = prepare_and_load(tmp_path / "a", **small)
    np.random.seed(3)  # noqa: NPY002  global state that must have no effect
    assert prepare_and_load(tmp_path / "b", **small, name="other").sha256 == first.sha256
    other = prepare_and_load(tmp_path / "c", **small, subset_seed=1)
    assert other.sha256 != first.sha256
    assert prepare_and_load(tmp_path / "d", **small | {"max_test": 60}).train_images.equal(first.train_images)
    assert torch.bincount(first.train_labels).min() >= 19
    assert len(first.test_labels) == 50


def test_a_maximum_above_the_size_takes_all_and_zero_is_refused(tmp_path: Path) -> None:
    assert len(prepare_and_load(tmp_path / "a", kind="digits", max_train=5000).train_labels) == 1297
    assert "datasets.d.max_test: 0" in refusal_message(tmp_path / "b", kind="digits", max_test=0)


# Prepared arrays


def test_content_of_meta_json(tmp_path: Path) -> None:
    data = prepare_and_load(tmp_path, kind="digits", max_train=300)
    meta = json.loads((tmp_path / "prepared/meta.json").read_text())
    x = data.train_images.numpy() / 255
    np.testing.assert_allclose(data.mean, x.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, x.std(axis=(0, 2, 3)), rtol=1e-12)
    files = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = [np.load(tmp_path / "prepared" / f"{name}.npy") for name in files]
    meta_hash = meta.pop("meta_sha256")
    assert meta_hash == hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    assert meta == {
        "kind": "digits",
        "source": None,
        "max_train": 300,
        "max_test": None,
        "subset_seed": 0,
        "crop": None,
        "classes": 10,
        "class_names": [str(digit) for digit in range(10)],
        "n_train": 300,
        "n_test": 500,
        "shape": [1, 8, 8],
        "mean": list(data.mean),
        "std": list(data.std),
        "sha256": hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest(),
    }


def test_mean_and_std_over_several_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images, labels = RNG.integers(0, 256, (50, 6, 5, 3), np.uint8), np.arange(50) % 5
    images[..., 1] //= 3
    monkeypatch.setattr("robreg.data.source.CHUNK", 7 * 3 * 6 * 5 + 1)
    write_folder(tmp_path / "set", images, labels)
    data = prepare_and_load(tmp_path, kind="parquet", source="set")
    np.testing.assert_allclose(data.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)


def test_loading_maps_files_without_a_copy_or_warning(tmp_path: Path) -> None:
    prepare_and_load(tmp_path, kind="digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(tmp_path / "prepared")
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "prepared/train_images.npy") in maps.read_text()
    data.train_images[0] = 7  # copy-on-write: the file does not change
    assert not (load_dataset(tmp_path / "prepared").train_images[0] == 7).all()


def spoil_shape(folder: Path) -> None:
    np.save(folder / "test_images.npy", np.zeros((499, 1, 8, 8), np.uint8))


def spoil_dtype(folder: Path) -> None:
    np.save(folder / "train_labels.npy", np.zeros(1297, np.int32))


def spoil_labels(folder: Path) -> None:
    np.save(folder / "test_labels.npy", np.full(500, 10))


def spoil_length(folder: Path) -> None:
    file = folder / "train_images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def spoil_order(folder: Path) -> None:
    """State that the same bytes are in the other order: the pixels change, but no hash of the bytes does."""
    file = folder / "train_images.npy"
    file.write_bytes(file.read_bytes().replace(b"'fortran_order': False", b"'fortran_order': True ", 1))
    assert np.load(file).shape == (1297, 1, 8, 8)


def spoil_version(folder: Path) -> None:
    with (folder / "test_labels.npy").open("r+b") as file:
        array = np.load(folder / "test_labels.npy")
        np.lib.format.write_array(file, array, version=(2, 0))
    assert np.load(folder / "test_labels.npy").shape == (500,)


def spoil_format(folder: Path) -> None:
    with (folder / "test_labels.npy").open("wb") as file:
        np.savez(file, np.zeros(500, np.int64))


def spoil_mean(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"mean": [0.5]}))


def spoil_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def spoil_meta_keys(folder: Path) -> None:
    (folder / "meta.json").write_text('{"mean": 0}')


def spoil_crop(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    del meta["crop"]  # as in data prepared by a version without crop
    (folder / "meta.json").write_text(json.dumps(meta))


def spoil_depth(folder: Path) -> None:
    """Nest a value as deeply as json can read it, but too deeply for json to write it."""
    text = (folder / "meta.json").read_text().rstrip().removesuffix("}")
    (folder / "meta.json").write_text(f'{text}, "x": {"[" * 992}{"]" * 992}}}')


def spoil_presence(folder: Path) -> None:
    (folder / "meta.json").unlink()


def spoil_kind(folder: Path) -> None:
    """Put a pipe, from which nothing ever comes, in place of an array."""
    (folder / "test_images.npy").unlink()
    os.mkfifo(folder / "test_images.npy")


def spoil_kind_of_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()
    os.mkfifo(folder / "meta.json")


@pytest.mark.parametrize(
    ("spoil", "file_name"),
    [
        (spoil_shape, "test_images.npy"),
        (spoil_dtype, "train_labels.npy"),
        (spoil_labels, "test_labels.npy"),
        (spoil_length, "train_images.npy"),
        (spoil_depth, "meta.json"),
        (spoil_order, "train_images.npy"),
        (spoil_version, "test_labels.npy"),
        (spoil_format, "test_labels.npy"),
        (spoil_mean, "meta.json"),
        (spoil_meta, "meta.json"),
        (spoil_meta_keys, "meta.json"),
        (spoil_crop, "meta.json"),
        (spoil_presence, "meta.json"),
        (spoil_kind, "test_images.npy"),
        (spoil_kind_of_meta, "meta.json"),
    ],
)
def test_loading_names_the_damaged_file_and_the_fix(
    tmp_path: Path, spoil: Callable[[Path], None], file_name: str
) -> None:
    prepare_and_load(tmp_path, kind="digits")
    folder = tmp_path / "prepared"
    spoil(folder)
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    assert str(caught.value).startswith(f"{folder / file_name}: ")
    assert f"snakemake -c1 --force {folder / 'meta.json'}" in str(caught.value)


def test_training_labels_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    """Whoever sends prepared data can make their hashes anew."""
    prepare_and_load(tmp_path, kind="digits")
    np.save(tmp_path / "prepared/train_labels.npy", np.zeros(1297, np.int64))
    forge_meta(tmp_path / "prepared")
    with pytest.raises(DataError, match=r"train_labels\.npy: gives all training images the label 0.*make it again"):
        load_dataset(tmp_path / "prepared")


def test_data_prepared_with_other_settings_than_those_of_a_training_are_refused(tmp_path: Path) -> None:
    prepare_and_load(tmp_path, kind="digits", crop=7)
    settings = {"kind": "digits", "max_train": None, "max_test": None, "subset_seed": 0, "crop": 7}
    assert load_dataset(tmp_path / "prepared", settings).crop == 7
    for key, value in {"kind": "parquet", "max_train": 9, "max_test": 9, "subset_seed": 1, "crop": None}.items():
        with pytest.raises(DataError) as caught:
            load_dataset(tmp_path / "prepared", settings | {key: value})
        found, wanted = json.dumps(settings[key]), json.dumps(value)
        assert f"was prepared with {key}: {found}, but config.yaml has {wanted}; make it" in str(caught.value)


def test_failure_while_writing_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = prepare_and_load(tmp_path, kind="digits").sha256
    before = sorted(os.listdir(tmp_path / "prepared"))
    save, calls = np.save, []

    def fail(path: Path, array: np.ndarray) -> None:
        calls.append(path)
        save(path, array[:1])
        if len(calls) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", fail)
    for out in ("prepared", "fresh"):
        calls.clear()
        with pytest.raises(OSError, match="No space"):
            prepare(SETTINGS | {"kind": "digits", "max_train": 9}, data_root=tmp_path, out=tmp_path / out)
    assert sorted(os.listdir(tmp_path / "prepared")) == before
    assert load_dataset(tmp_path / "prepared").sha256 == old
    assert os.listdir(tmp_path / "fresh") == []


def test_what_a_killed_preparation_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    out, digits = tmp_path / "prepared", SETTINGS | {"kind": "digits"}
    out.mkdir()
    killed = multiprocessing.get_context("fork").Process(target=_prepare_and_be_killed, args=(digits, tmp_path, out))
    killed.start()
    killed.join()
    (left,) = out.iterdir()
    assert (left / "train_images.npy").stat().st_size > 0
    with preparation._unfinished(out) as other:  # of a process that lives
        prepare(digits, data_root=tmp_path, out=out)
        assert other.is_dir()
    assert sorted(os.listdir(out)) == sorted([*(f"{name}.npy" for name in ARRAYS), "meta.json"])


def _prepare_and_be_killed(settings: dict[str, Any], data_root: Path, out: Path) -> None:
    np.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    prepare(settings, data_root=data_root, out=out)


def test_failure_while_renaming_leaves_no_meta_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_and_load(tmp_path, kind="digits")
    replace, calls = os.replace, []

    def fail(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == 2:
            raise OSError("killed")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        prepare(SETTINGS | {"kind": "digits", "max_train": 9}, data_root=tmp_path, out=tmp_path / "prepared")
    assert not (tmp_path / "prepared/meta.json").exists()


def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, shades = 2**18, [encode(np.full((64, 64, 3), shade, np.uint8)) for shade in range(10)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"set/{split}.parquet", shades * 100, [*range(10)] * 100)
    monkeypatch.setattr("robreg.data.source.CHUNK", chunk)
    prepare_and_load(tmp_path / "first", kind="digits")  # so that imports and caches are not measured
    tracemalloc.start()
    prepare(SETTINGS | {"kind": "parquet", "source": "set"}, data_root=tmp_path, out=tmp_path / "prepared")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "prepared/train_images.npy").stat().st_size > 1000 * 3 * 64 * 64 > 40 * chunk
    assert peak < 12 * chunk  # np.bincount converts a chunk to int64, eight times its size


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set", colours(6), np.arange(6) % 2)
    original = parquet_folder._encoded_images
    monkeypatch.setattr(parquet_folder, "_encoded_images", lambda *args: islice(original(*args), 5))
    assert "datasets.d.source: 5 images for 6 labels" in refusal_message(tmp_path, kind="parquet", source="set")


# Crops


@pytest.mark.parametrize(("full", "crop", "offset"), [(64, 56, 4), (8, 8, 0), (9, 6, 1), (9, 1, 4)])
def test_networks_see_the_centre_of_images(tmp_path: Path, full: int, crop: int, offset: int) -> None:
    write_folder(tmp_path / "set", colours(6, full), np.arange(6) % 2)
    data = prepare_and_load(tmp_path, kind="parquet", source="set", crop=crop)
    assert json.loads((tmp_path / "prepared/meta.json").read_text())["crop"] == crop
    assert data.train_images.shape == (6, 3, full, full)
    assert (data.crop, data.shape) == (crop, (3, crop, crop))
    for split, whole in (("train", data.train_images), ("test", data.test_images)):
        images, _ = data.split(split)
        assert images.shape == (6, *data.shape)
        assert images.equal(whole[:, :, offset : offset + crop, offset : offset + crop])
        assert (
            images.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        )  # a view of the mapped file, not a copy
    if (full - crop) % 2 == 0:
        assert data.split("test")[0].equal(center_crop(data.test_images, [crop, crop]))


@pytest.mark.parametrize("crop", [0, 9])
def test_a_crop_that_does_not_fit_is_refused(tmp_path: Path, crop: int) -> None:
    message = refusal_message(tmp_path, kind="digits", crop=crop)
    assert message.startswith(f"datasets.d.crop: {crop} does not fit into images 1x8x8; give 1 to 8, or null")


def test_a_constant_channel_is_refused(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (20, 4, 4, 3), np.uint8)
    images[..., 1] = 77
    write_folder(tmp_path / "set", images, np.arange(20) % 2)
    assert "channel 1 of the training images is constant" in refusal_message(tmp_path, kind="parquet", source="set")


# The CIFAR archives


class Payload:
    """An object that creates a folder when an unrestricted unpickler loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serve the folder tmp_path/served over HTTP on this machine."""
    with serving(tmp_path / "served") as http:
        yield http


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create an empty data_root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        ("cifar100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    ],
)
def test_addresses_and_sizes_of_the_official_archives(kind: str, url: str) -> None:
    assert getattr(torchvision.datasets, kind.upper()).url == url
    assert source.OFFICIAL[kind][1:] == (50_000, 10_000, (3, 32, 32))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_an_archive_is_downloaded_once(
    kind: str, server: Server, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official, members = getattr(torchvision.datasets, kind.upper()), cifar_members(kind)
    served = tmp_path / "served" / official.filename
    write_archive(served, members)
    declare_official(monkeypatch, kind, served)
    monkeypatch.setattr(official, "url", server.url(official.filename))
    data = prepare_and_load(root, kind=kind, source="download")
    train, test, field = (
        ([f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)], "cifar-10-batches-py/test_batch", "labels")
        if kind == "cifar10"
        else (["cifar-100-python/train"], "cifar-100-python/test", "fine_labels")
    )
    pixels = np.concatenate([members[name]["data"] for name in train]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.train_images, pixels)
    assert data.train_labels.tolist() == [label for name in train for label in members[name][field]]
    np.testing.assert_array_equal(data.test_images, members[test]["data"].reshape(-1, 3, 32, 32))
    assert data.test_labels.tolist() == members[test][field]
    names = json.loads((root / "prepared/meta.json").read_text())["class_names"]
    assert names == [f"class{i}" for i in range(data.classes)]
    requests = server.requests
    assert prepare_and_load(root, kind=kind, source="download").sha256 == data.sha256
    assert server.requests == requests  # the archive is already there
    assert os.listdir(root / "download") == [official.filename]
    assert prepare_and_load(root, kind=kind, source=f"download/{official.filename}").sha256 == data.sha256


def test_cifar100_uses_the_fine_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar_members("cifar100")
    for name in ("train", "test"):
        content = members[f"cifar-100-python/{name}"]
        content["coarse_labels"] = content["fine_labels"][::-1]  # these would also be valid labels
    write_archive(root / "c.tar.gz", members)
    declare_official(monkeypatch, "cifar100", root / "c.tar.gz")
    data = prepare_and_load(root, kind="cifar100", source="c.tar.gz")
    assert data.train_labels.tolist() == [*range(100)] * 2
    assert data.test_labels.tolist() == [*range(100)]


def test_a_wrong_download_gets_no_final_name(
    server: Server, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = torchvision.datasets.CIFAR10
    (tmp_path / "served" / official.filename).write_bytes(b"half")
    monkeypatch.setattr(official, "url", server.url(official.filename))
    message = refusal_message(root, kind="cifar10", source="download")
    assert official.url in message
    assert hashlib.md5(b"half").hexdigest() in message
    assert official.tgz_md5 in message
    assert os.listdir(root / "download") == []
    monkeypatch.setattr(official, "url", server.url("nothing"))
    message = refusal_message(root, kind="cifar10", source="download")
    assert "datasets.d.source: cannot download" in message
    assert str(root / "download" / official.filename) in message


def test_a_wrong_md5_is_refused_before_anything_is_unpacked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(root / "c.tar.gz", cifar_members("cifar10") | {"cifar-10-batches-py/test_batch": b"?"})
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("unpacked"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: pytest.fail("unpickled"))
    message = refusal_message(root, kind="cifar10", source="c.tar.gz")
    actual = hashlib.md5((root / "c.tar.gz").read_bytes()).hexdigest()
    assert message.startswith(f"{root / 'c.tar.gz'} has MD5 {actual}, not c58f30108f718f92721af3b95e74349a; delete it")


@pytest.mark.parametrize("trusted", [False, True])
def test_code_in_an_archive_never_runs(root: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool) -> None:
    evil = pickle.dumps({"data": Payload(root / "pwned"), "labels": []}, protocol=2)
    pickle.loads(evil)  # the payload works with an unrestricted unpickler
    (root / "pwned").rmdir()
    write_archive(root / "c.tar.gz", cifar_members("cifar10") | {"cifar-10-batches-py/data_batch_1": evil})
    if trusted:
        declare_official(monkeypatch, "cifar10", root / "c.tar.gz")
    message = refusal_message(root, kind="cifar10", source="c.tar.gz")
    assert ("posix.mkdir is not allowed" if trusted else "has MD5") in message
    assert not (root / "pwned").exists()


def link(to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("cifar-10-batches-py/data_batch_2")
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


BAD_MEMBERS = {
    "missing": (None, "it does not contain cifar-10-batches-py/data_batch_2"),
    "link": (link("/etc/passwd"), "data_batch_2 is not a plain file"),
    "no pickle": (b"hello", "data_batch_2 cannot be unpickled"),
    "no dictionary": ([1, 2], "data_batch_2 cannot be unpickled"),
    "no data": ({"labels": [1]}, "no uint8 array"),
    "floats": ({"labels": [1], "data": np.zeros((1, 3072))}, "only arrays of bytes are allowed"),
    "other size": ({"labels": [1], "data": np.zeros((1, 3000), np.uint8)}, "no uint8 array"),
    "too few labels": (cifar_batch("cifar10", 8) | {"labels": [1, 2]}, "list of 8 whole numbers named labels"),
    "fractional labels": (cifar_batch("cifar10", 1) | {"labels": [1.5]}, "list of 1 whole numbers named labels"),
    "endless label": (cifar_batch("cifar10", 1) | {"labels": [2**70]}, "list of 1 whole numbers named labels"),
    "label out of range": (cifar_batch("cifar10", 8) | {"labels": [10] * 8}, "label 10 in row 8 of the training split"),
    "negative label": (cifar_batch("cifar10", 8) | {"labels": [-1] * 8}, "label -1 in row 8 of the training split"),
    "too few images": (cifar_batch("cifar10", 7), "(40, 8) training and test images, not (39, 8)"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_an_archive_with_a_bad_member_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    value, expected = BAD_MEMBERS[case]
    members = cifar_members("cifar10") | {"cifar-10-batches-py/data_batch_2": value}
    write_archive(root / "c.tar.gz", {name: value for name, value in members.items() if value is not None})
    declare_official(monkeypatch, "cifar10", root / "c.tar.gz")
    assert expected in refusal_message(root, kind="cifar10", source="c.tar.gz")


def test_class_names_must_be_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = {"label_names": [*(f"class{i}" for i in range(9)), 9]}
    write_archive(root / "c.tar.gz", cifar_members("cifar10") | {"cifar-10-batches-py/batches.meta": meta})
    declare_official(monkeypatch, "cifar10", root / "c.tar.gz")
    assert "batches.meta does not name 10 classes" in refusal_message(root, kind="cifar10", source="c.tar.gz")


def test_a_huge_member_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(root / "c.tar.gz", cifar_members("cifar10"))
    declare_official(monkeypatch, "cifar10", root / "c.tar.gz")
    monkeypatch.setattr("robreg.data.cifar.MAX_UNPACKED", 8 * 3072)
    assert "data_batch_1 is not a plain file of at most" in refusal_message(root, kind="cifar10", source="c.tar.gz")


def test_a_huge_header_is_not_read_to_its_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(root / "c.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
        member.pax_headers = {"comment": "x" * 2**26}
        tar.addfile(member)
    declare_official(monkeypatch, "cifar10", root / "c.tar.gz")
    monkeypatch.setattr("robreg.data.cifar.MAX_UNPACKED", 2**20)
    tracemalloc.start()
    try:
        assert "it has more than 1048576 bytes when unpacked" in refusal_message(
            root, kind="cifar10", source="c.tar.gz"
        )
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_refused_with_the_fix(root: Path, monkeypatch: pytest.MonkeyPatch, keep: float) -> None:
    path = root / "c.tar.gz"
    write_archive(path, cifar_members("cifar10"))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    declare_official(monkeypatch, "cifar10", path)
    message = refusal_message(root, kind="cifar10", source="c.tar.gz")
    assert message.startswith(f"{path}: ")
    assert message.endswith("delete it and download it again")


def test_a_damaged_archive_is_refused_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "c.tar.gz"
    write_archive(path, cifar_members("cifar10"))
    content = path.read_bytes()
    for damaged in (content[:10] + b"\xff" * 99 + content[109:], b"no archive"):
        path.write_bytes(damaged)
        declare_official(monkeypatch, "cifar10", path)
        assert refusal_message(root, kind="cifar10", source="c.tar.gz").startswith(f"{path}: not a readable .tar.gz")


# Folders of Parquet files


def colours(n: int, size: int = 6) -> np.ndarray:
    """Make n random colour images (n, size, size, 3)."""
    return RNG.integers(0, 256, (n, size, size, 3), np.uint8)


def test_pixels_labels_and_order_of_a_folder_of_several_files(tmp_path: Path) -> None:
    train, test, labels = colours(30), colours(10), np.arange(30) % 3
    encoded = [encode(image) for image in train]
    for i, (low, high) in enumerate([(0, 12), (12, 13), (13, 30)]):
        name = f"train-0000{i}-of-00003.parquet"
        write_parquet(tmp_path / "set/data" / name, encoded[low:high], labels[low:high].tolist())
    write_parquet(tmp_path / "set/data/validation-00000-of-00001.parquet", list(map(encode, test)), [2, 1] * 5)
    data = prepare_and_load(tmp_path, kind="parquet", source="set")
    np.testing.assert_array_equal(data.train_images, train.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.train_labels, labels)
    np.testing.assert_array_equal(data.test_images, test.transpose(0, 3, 1, 2))
    assert data.test_labels.tolist() == [2, 1] * 5
    assert data.classes == 3
    write_parquet(tmp_path / "set/test.parquet", [encode(test[0])], [0])
    assert (
        len(prepare_and_load(tmp_path, kind="parquet", source="set").test_labels) == 1
    )  # test*.parquet takes precedence over valid*.parquet


def test_a_subset_decodes_only_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = colours(40), np.arange(40) // 10
    chosen = stratified_subset(labels, 12, 3)
    encoded = [encode(image) if i in chosen else b"corrupt" for i, image in enumerate(images)]
    for low in (0, 25):
        write_parquet(
            tmp_path / f"set/train-{low:02}.parquet",
            encoded[low : low + 25][: 40 - low],
            labels[low : low + 25].tolist(),
        )
    write_parquet(tmp_path / "set/test.parquet", [encode(images[0])], [0])
    monkeypatch.setattr("robreg.data.parquet_folder.BATCH_ROWS", 4)
    data = prepare_and_load(tmp_path, kind="parquet", source="set", max_train=12, subset_seed=3)
    np.testing.assert_array_equal(data.train_images, images[chosen].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.train_labels, labels[chosen])


def test_gray_images_keep_one_channel_unless_others_have_colour(tmp_path: Path) -> None:
    gray = RNG.integers(0, 256, (8, 5, 7), np.uint8)
    write_folder(tmp_path / "set", gray, np.arange(8) % 2)
    data = prepare_and_load(tmp_path, kind="parquet", source="set")
    np.testing.assert_array_equal(data.train_images, gray[:, None])
    assert len(data.mean) == 1
    write_parquet(
        tmp_path / "set/test.parquet", [encode(gray[0]), encode(colours(1, 7)[0][:5]), encode(gray[1])], [0, 1, 1]
    )
    data = prepare_and_load(tmp_path, kind="parquet", source="set")
    np.testing.assert_array_equal(data.train_images, np.repeat(gray[:, None], 3, axis=1))
    assert data.test_images.shape == (3, 3, 5, 7)


@pytest.mark.parametrize("shape", [(40, 40), (5, 9), (64, 48)])
def test_images_of_any_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    images = RNG.integers(0, 256, (12, *shape, 3), np.uint8)
    write_folder(tmp_path / "set", images, np.arange(12) % 4)
    data = prepare_and_load(tmp_path, kind="parquet", source="set", crop=5)
    np.testing.assert_array_equal(data.train_images, images.transpose(0, 3, 1, 2))
    top, left = (shape[0] - 5) // 2, (shape[1] - 5) // 2
    np.testing.assert_array_equal(data.split("test")[0], data.test_images[:, :, top : top + 5, left : left + 5])
    assert data.shape == (3, 5, 5)
    assert prepare_and_load(tmp_path, kind="parquet", source="set").shape == (3, *shape)


def test_cifar100_in_the_layout_of_hugging_face_has_its_fine_labels(tmp_path: Path) -> None:
    images = [encode(image) for image in colours(4)]
    for split in ("train", "test"):
        path = tmp_path / f"set/{split}.parquet"
        write_parquet(path, images, [3, 2, 1, 0], coarse_label=[0, 1, 0, 1])
        pq.write_table(pq.read_table(path).rename_columns({"image": "img", "label": "fine_label"}), path)
    assert prepare_and_load(tmp_path, kind="parquet", source="set").train_labels.tolist() == [3, 2, 1, 0]
    data = prepare_and_load(tmp_path, kind="parquet", source="set", label_column="coarse_label")
    assert data.train_labels.tolist() == [0, 1, 0, 1]


def test_class_names_from_hugging_face_metadata(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", colours(6), np.arange(6) % 2)
    path = tmp_path / "set/train.parquet"
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    prepare_and_load(tmp_path, kind="parquet", source="set")
    assert json.loads((tmp_path / "prepared/meta.json").read_text())["class_names"] == ["cat", "dog"]
    for names in (["cat", 1], ["cat"], "cd", None):
        features["info"]["features"]["label"]["names"] = names
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
        prepare_and_load(tmp_path, kind="parquet", source="set")
        assert json.loads((tmp_path / "prepared/meta.json").read_text())["class_names"] is None


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint64(), pa.int16()])
def test_labels_of_any_integer_type(kind: pa.DataType, tmp_path: Path) -> None:
    write_parquet(tmp_path / "set/train.parquet", [encode(image) for image in colours(4)], [0, 1, 0, 1])
    write_parquet(tmp_path / "set/test.parquet", [encode(image) for image in colours(4)], [1, 1, 0, 0])
    for path in (tmp_path / "set").iterdir():
        content = pq.read_table(path)
        column = content.schema.get_field_index("label")
        pq.write_table(content.set_column(column, "label", content["label"].cast(kind)), path)
    assert prepare_and_load(tmp_path, kind="parquet", source="set").train_labels.tolist() == [0, 1, 0, 1]


def test_cifar_images_with_lossy_compression_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_official_counts(monkeypatch, "cifar10", 20, 20)
    images = [encode(np.full((32, 32, 3), 9 * shade, np.uint8), "JPEG") for shade in range(20)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"set/{split}.parquet", images, [*range(10)] * 2)
    message = refusal_message(tmp_path, kind="cifar10", source="set")
    assert "contains JPEG or WEBP images, whose pixels are not those of cifar10; give kind parquet" in message
    assert prepare_and_load(tmp_path, kind="parquet", source="set").train_images.shape == (20, 3, 32, 32)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"set/{split}.parquet", [encode(image) for image in colours(4)], [0] * 4)
    assert "two classes or more" in refusal_message(tmp_path, kind="parquet", source="set")


def test_a_subset_of_a_single_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", colours(4), np.array([0, 0, 0, 1]))
    message = refusal_message(tmp_path, kind="parquet", source="set", max_train=2)
    assert "datasets.d.max_train: all 2 training images have class 0" in message
    assert "give a larger number, or null" in message


def test_the_column_of_labels_is_inferred_or_given(tmp_path: Path) -> None:
    images = [encode(image) for image in colours(4)]
    for split in ("train", "test"):
        write_parquet(
            tmp_path / f"set/{split}.parquet", images, [0, 1, 0, 1], fine_label=[3, 2, 1, 0], other=[1, 1, 0, 1]
        )
    message = refusal_message(tmp_path, kind="parquet", source="set")
    assert "fine_label (int64), other (int64)" in message
    assert "datasets.d.label_column" in message
    assert prepare_and_load(
        tmp_path, kind="parquet", source="set", label_column="fine_label"
    ).train_labels.tolist() == [3, 2, 1, 0]
    message = refusal_message(tmp_path, kind="parquet", source="set", label_column="image")
    assert "cannot tell which column has the labels" in message
    for split in ("train", "test"):
        path = tmp_path / f"set/{split}.parquet"
        pq.write_table(pq.read_table(path).drop_columns("label"), path)
    assert prepare_and_load(tmp_path, kind="parquet", source="set").train_labels.tolist() == [3, 2, 1, 0]
    for split in ("train", "test"):
        path = tmp_path / f"set/{split}.parquet"
        pq.write_table(pq.read_table(path).drop_columns("fine_label"), path)
    assert prepare_and_load(tmp_path, kind="parquet", source="set").train_labels.tolist() == [1, 1, 0, 1]


GOOD = [encode(image) for image in colours(4)]
BAD_TESTS: dict[str, tuple[list[bytes | None], list[int | None], str]] = {
    "corrupt": ([GOOD[0], b"\x89PNG no"], [0, 1], "test.parquet: the image in row 1 cannot be decoded"),
    "truncated": ([GOOD[0], GOOD[1][:-40]], [0, 1], "test.parquet: the image in row 1 cannot be decoded"),
    "no bytes": ([GOOD[0], None], [0, 1], "test.parquet: no image bytes in row 1"),
    "other size": ([GOOD[0], encode(colours(1, 9)[0, :8])], [0, 1], "row 1 is 9x8, not 6x6"),
    "size of split": ([encode(colours(1, 7)[0])], [0], "training images are 3x6x6, test images 3x7x7"),
    "deep": ([encode(np.full((6, 6), 3000, np.int32), "TIFF")], [0], "row 0 has more than 8 bits per channel"),
    "label out of range": (GOOD[:2], [0, 4], "datasets.d.source: label 4 in row 1 of the test split is outside 0..3"),
    "negative label": (GOOD[:2], [0, -1], "test.parquet: label -1 in row 1"),
    "null label": (GOOD[:2], [0, None], "test.parquet: label None in row 1"),
    "empty": ([], [], "datasets.d.source: the test split is empty"),
}


@pytest.mark.parametrize("case", BAD_TESTS)
def test_a_bad_image_or_label_is_refused_by_name(tmp_path: Path, case: str) -> None:
    images, labels, expected = BAD_TESTS[case]
    write_parquet(tmp_path / "set/train.parquet", GOOD, [0, 1, 2, 3])
    write_parquet(tmp_path / "set/test.parquet", images, pa.array(labels, pa.int64()))
    assert expected in refusal_message(tmp_path, kind="parquet", source="set")


def test_an_empty_training_split_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set/train.parquet", [], pa.array([], pa.int64()))
    write_parquet(tmp_path / "set/test.parquet", GOOD, [0, 1, 2, 3])
    assert "the training split is empty" in refusal_message(tmp_path, kind="parquet", source="set")


def test_the_row_of_a_bad_image_is_counted_in_its_own_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set/train-0.parquet", GOOD, [0, 1, 2, 3])
    write_parquet(tmp_path / "set/train-1.parquet", [GOOD[0], b"no image"], [0, 1])
    write_parquet(tmp_path / "set/test.parquet", GOOD, [0, 1, 2, 3])
    assert "train-1.parquet: the image in row 1 cannot be decoded" in refusal_message(
        tmp_path, kind="parquet", source="set"
    )


def test_a_missing_or_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set/train.parquet", GOOD, [0, 1, 2, 3])
    message = refusal_message(tmp_path, kind="parquet", source="set")
    assert f"datasets.d.source: no test*.parquet or valid*.parquet in {tmp_path / 'set'}" in message
    (tmp_path / "set/test.parquet").write_bytes((tmp_path / "set/train.parquet").read_bytes()[:-9])
    assert "test.parquet: not a readable Parquet file" in refusal_message(tmp_path, kind="parquet", source="set")
    pq.write_table(pa.table({"label": [0], "image": [b"no struct"]}), tmp_path / "set/test.parquet")
    assert "test.parquet: expected one column of images" in refusal_message(tmp_path, kind="parquet", source="set")


def test_cifar_from_a_folder_must_have_its_sizes_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set", colours(20, 32), np.arange(20) % 10)
    cifar = {"kind": "cifar10", "source": "set"}
    assert "(50000, 10000) training and test images, not (20, 20)" in refusal_message(tmp_path, **cifar)
    set_official_counts(monkeypatch, "cifar10", 20, 20)
    write_folder(tmp_path / "set", colours(20, 32), np.arange(20) % 9)
    assert "cifar10 has 10 classes, the training labels have 9" in refusal_message(tmp_path, **cifar)
    write_folder(tmp_path / "set", colours(20, 28), np.arange(20) % 10)
    assert "images of kind cifar10 are 3x32x32, not 3x28x28" in refusal_message(tmp_path, **cifar)
    write_folder(tmp_path / "set", colours(20, 32)[..., 0], np.arange(20) % 10)
    assert "images of kind cifar10 are 3x32x32, not 1x32x32" in refusal_message(tmp_path, **cifar)
    write_folder(tmp_path / "set", colours(20, 32), np.arange(20) % 11)
    assert "label 10 in row 10" in refusal_message(tmp_path, **cifar)
    write_folder(tmp_path / "set", colours(20, 32), np.arange(20) % 10)
    assert prepare_and_load(tmp_path, **cifar).classes == 10


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "tin"}, "datasets.d.kind: unknown kind 'tin'"),
        ({"kind": "digits", "source": "x"}, "datasets.d.source: kind digits is bundled"),
        ({"kind": "cifar10"}, "datasets.d.source: None is not a source for kind cifar10"),
        ({"kind": "parquet", "source": "download"}, "datasets.d.source: 'download' is not a source for kind parquet"),
        ({"kind": "parquet", "source": "here.txt"}, "here.txt is a file; kind parquet needs the folder"),
        ({"kind": "cifar10", "source": "c10-jpeg", "name": None}, "source: no folder or file"),
    ],
)
def test_a_source_that_does_not_fit_its_kind_is_refused(
    tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    (tmp_path / "here.txt").touch()
    assert expected in refusal_message(tmp_path, **settings)


@pytest.mark.parametrize("path", ["../set", "inner/../../set", "inner/../set"])
def test_a_source_cannot_leave_data_root_by_dots(root: Path, path: str) -> None:
    write_folder(root.parent / "set", colours(6), np.arange(6) % 2)
    (root / "inner").mkdir()
    message = refusal_message(root, kind="parquet", source=path)
    assert message.startswith(f"datasets.d.source: {path} may lead out of data_root, {root}, because of its '..'")
    assert "give an absolute path" in message


def test_an_absolute_source_is_read_and_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(root.parent / "set", colours(6), np.arange(6) % 2)
    (root / "link").symlink_to(root.parent / "set")
    caplog.set_level(logging.INFO)
    linked = prepare_and_load(root, kind="parquet", source="link")
    assert "is an absolute path" not in caplog.text
    assert prepare_and_load(root, kind="parquet", source=str(root.parent / "set")).sha256 == linked.sha256
    assert f"datasets.d.source: {root.parent / 'set'} is an absolute path" in caplog.text


def test_only_folders_and_regular_files_are_read(root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert "pipe is neither a folder nor a regular file" in refusal_message(root, kind="cifar10", source="pipe")
    write_folder(root / "set", colours(6), np.arange(6) % 2)
    (root / "set/train.parquet").unlink()
    (root / "set/train.parquet").symlink_to("/dev/zero")
    message = refusal_message(root, kind="parquet", source="set")
    assert message.startswith(f"{root / 'set/train.parquet'}: not a regular file")


def test_the_message_for_a_missing_source_says_where_to_put_it(tmp_path: Path) -> None:
    assert refusal_message(tmp_path, name="c10jpeg", kind="cifar10", source="c10-jpeg") == (
        f"datasets.c10jpeg.source: no folder or file {tmp_path / 'c10-jpeg'}; "
        "put it there or pass --config data_root=<folder that holds c10-jpeg>"
    )


@pytest.mark.skipif(not C10_JPEG.exists(), reason=f"the JPEG copy of CIFAR-10 is not at {C10_JPEG}")
def test_a_subset_of_real_images(tmp_path: Path) -> None:
    settings = {"kind": "parquet", "source": "c10-jpeg", "max_train": 2000, "max_test": 500}
    prepare(SETTINGS | settings, data_root=C10_JPEG.parent, out=tmp_path)
    data = load_dataset(tmp_path)
    assert torch.bincount(data.train_labels).tolist() == [200] * 10
    assert torch.bincount(data.test_labels).tolist() == [50] * 10
    assert data.train_images.shape == (2000, 3, 32, 32)
    np.testing.assert_allclose(data.mean, [0.491, 0.482, 0.447], atol=0.02)  # the known values of CIFAR-10
    np.testing.assert_allclose(data.std, [0.247, 0.243, 0.262], atol=0.02)


def test_to_float_is_exact() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_float(images)
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x.numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(255))

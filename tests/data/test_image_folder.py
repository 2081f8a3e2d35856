"""Folders of image files, a folder for each class, and what is said of images that are converted."""

import io
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sources import RNG, encode, prepare_and_load_with, refusal_message_with, write_parquet
from PIL import Image

from robreg.data import encoded_images, image_folder

SETTINGS = {
    "name": "mine",
    "kind": "imagefolder",
    "source": "set",
    "max_train": None,
    "max_test": None,
    "subset_seed": 0,
}
ANIMALS = ("Zebra", "cat", "dog")  # in the order of Python's text
PIXELS = RNG.integers(0, 256, (3, 4, 6, 5, 3), np.uint8)

prepare_and_load = partial(prepare_and_load_with, SETTINGS)
refusal_message = partial(refusal_message_with, SETTINGS)


def write_images(folder: Path, test: str = "test") -> Path:
    """Write three training images and one test image of each animal, and return their folder."""
    for label, animal in enumerate(ANIMALS):
        for i in range(4):
            path = folder / "set" / ("train" if i < 3 else test) / animal / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(PIXELS[label, i]))
    return folder / "set"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that were logged."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_classes_are_numbered_and_images_ordered_by_name(
    tmp_path: Path, test: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, test)
    data = prepare_and_load(tmp_path)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test_labels.tolist() == [0, 1, 2]
    expected = PIXELS.transpose(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(data.train_images, expected[:, :3].reshape(9, 3, 6, 5))
    np.testing.assert_array_equal(data.test_images, expected[:, 3])
    assert json.loads((tmp_path / "prepared/meta.json").read_text())["class_names"] == [*ANIMALS]
    assert not warnings_of(caplog)


def test_the_order_in_which_files_were_made_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    sha256 = prepare_and_load(tmp_path).sha256
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with scandir(path) as found:
                self.entries = sorted(found, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Any:
            return iter(self.entries)

        __iter__ = __enter__

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(image_folder.os, "scandir", Reversed)
    assert prepare_and_load(tmp_path).sha256 == sha256


def test_a_folder_and_parquet_files_of_the_same_images_have_the_same_bytes(tmp_path: Path) -> None:
    write_images(tmp_path)
    for split, part in (("train", PIXELS[:, :3]), ("test", PIXELS[:, 3:])):
        images = [encode(image) for image in part.reshape(-1, 6, 5, 3)]
        write_parquet(tmp_path / f"table/{split}.parquet", images, np.repeat(ANIMALS, part.shape[1]).tolist())
    folder = prepare_and_load(tmp_path)
    assert prepare_and_load(tmp_path, kind="parquet", source="table").sha256 == folder.sha256


def test_images_are_known_by_their_content_and_other_files_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path)
    sha256 = prepare_and_load(tmp_path).sha256
    (root / "train/cat/0.png").rename(root / "train/cat/0")
    (root / "train/dog/1.png").rename(root / "train/dog/1.jpeg")
    for path in ("train/labels.csv", "train/cat/Thumbs.db", "train/cat/.hidden.png", ".git"):
        (root / path).write_bytes(b"text")
    assert prepare_and_load(tmp_path).sha256 == sha256
    assert warnings_of(caplog) == [
        f"datasets.mine.source: 2 files are no images and are left out, the first is {root / 'train/cat/Thumbs.db'}"
    ]
    (root / "train/cat/9.png").write_bytes(b"text")
    assert refusal_message(tmp_path).startswith(f"{root / 'train/cat/9.png'}: the image cannot be decoded (")


def test_folders_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    root = write_images(tmp_path)
    (root / "test/owl").mkdir()
    prepare_and_load(tmp_path)  # it has no image
    (root / "test/owl/1.png").write_bytes(encode(PIXELS[0, 0]))
    assert refusal_message(tmp_path) == (
        "datasets.mine.source: test images have class 'owl', but no training image has it; add training images of "
        "every class, or leave these test images out"
    )
    (root / "train/owl").mkdir()
    assert refusal_message(tmp_path).startswith("datasets.mine.source: class 'owl' has no training image; add images")
    (root / "train/owl/more").mkdir()
    assert refusal_message(tmp_path).startswith(f"{root / 'train/owl/more'}: a folder inside that of a class; put its")
    (root / "train").rename(root / "training")
    assert refusal_message(tmp_path).startswith(f"datasets.mine.source: no folder train in {root}; put a folder of")
    (root / "training").rename(root / "train")
    (root / "test").rename(root / "other")
    assert f"no folder test or val or valid or validation in {root}" in refusal_message(tmp_path)


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(b"")
    assert refusal_message(tmp_path) == (
        f"datasets.mine.source: {tmp_path / 'set'} is a file; kind imagefolder needs the folder that contains the "
        "folders train and test"
    )
    assert "'download' is not a source for kind imagefolder" in refusal_message(tmp_path, source="download")


@pytest.mark.parametrize("path", ["train", "train/cat", "train/cat/0.png"])
def test_links_cannot_lead_out_of_the_folder(tmp_path: Path, path: str) -> None:
    root = write_images(tmp_path)
    outside = tmp_path / "outside"
    (root / path).rename(outside)
    (root / path).symlink_to(outside)
    assert refusal_message(tmp_path) == (
        f"{root / path}: a link that leads out of {root}; put a copy of what it names in its place"
    )
    (root / path).unlink()
    outside.rename(root / f".{outside.name}")
    (root / path).symlink_to(root / f".{outside.name}")
    prepare_and_load(tmp_path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    root = write_images(tmp_path)
    os.mkfifo(root / "train/cat/8.png")
    assert refusal_message(tmp_path).startswith(f"{root / 'train/cat/8.png'}: neither a folder nor a regular file")


def test_images_and_files_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path)
    for module, name, limit, message in (
        (encoded_images, "MAX_PIXELS", 29, "0.png: the image has more than 29 pixels; make the images smaller"),
        (image_folder, "MAX_FILE", 99, "0.png: more than 99 bytes; make the image smaller"),
        (image_folder, "MAX_ROWS", 8, f"{root / 'train'}: more than 8 files; leave some of them out"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, limit)
            assert refusal_message(tmp_path).endswith(message)
    (root / "train/dog/0.png").write_bytes(encode(np.zeros((7, 7, 3), np.uint8)))
    assert refusal_message(tmp_path) == (
        f"{root / 'train/dog/0.png'}: the image is 7x7, not 5x6; make all images the same size"
    )
    (root / "train/dog/0.png").write_bytes(encode(np.zeros((6, 5), np.uint16)))
    assert "has more than 8 bits per channel (mode I;16); convert it to 8 bits" in refusal_message(tmp_path)


def in_mode(pixels: np.ndarray, mode: str) -> bytes:
    """Encode an image (H, W, 3) after its conversion to a mode of Pillow."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    return file.getvalue()


def test_converted_images_get_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path)
    for path, mode in (("train/cat/0", "RGBA"), ("train/dog/0", "CMYK"), ("test/dog/3", "RGBA"), ("train/cat/1", "L")):
        (root / f"{path}.png").write_bytes(in_mode(PIXELS[0, 0], mode))
    palette = Image.fromarray(PIXELS[0, 0]).convert("P")
    palette.save(root / "train/dog/1.png")
    palette.save(root / "train/dog/2.png", transparency=0)
    data = prepare_and_load(tmp_path)
    assert warnings_of(caplog) == [
        "datasets.mine.source: 5 images were converted to 8 bits of red, green and blue, or of gray: 1 of mode CMYK, "
        "1 of mode P, 1 of mode P (alpha was dropped), 2 of mode RGBA (alpha was dropped)"
    ]
    np.testing.assert_array_equal(data.test_images[2], PIXELS[0, 0].transpose(2, 0, 1))
    caplog.clear()
    for split in ("train", "test"):
        images = [in_mode(PIXELS[0, i], "LA") for i in range(4)]
        write_parquet(tmp_path / f"table/{split}.parquet", images, [0, 1, 0, 1])
    assert prepare_and_load(tmp_path, kind="parquet", source="table").shape == (1, 6, 5)
    assert warnings_of(caplog)[0].endswith("or of gray: 8 of mode LA (alpha was dropped)")


def test_a_key_for_columns_is_of_no_use_in_a_folder_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path)
    prepare_and_load(tmp_path, label_offset=1)
    assert warnings_of(caplog) == ["datasets.mine.label_offset: only Parquet files have columns; remove this key"]

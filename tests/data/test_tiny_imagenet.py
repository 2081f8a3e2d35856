"""Tiny-ImageNet: a small data set in the official layout, as zip and as folder, and the real subset if present."""

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.data_sources import prepare_and_load_with, refusal_message_with
from helpers.http_server import Server, serving
from helpers.tiny_imagenet_source import BASE, NUMBERS, WNIDS, Files, jpeg, layout, write_zip
from PIL import Image

from robreg.data import source, tiny_imagenet
from robreg.data.dataset import Dataset, load_dataset
from robreg.data.preparation import prepare

SUBSET = Path(__file__).parents[3] / "shared/data/tiny-imagenet-200-subset.zip"
SETTINGS = {
    "name": "tin",
    "kind": "tiny-imagenet",
    "source": "tin",
    "max_train": None,
    "max_test": None,
    "subset_seed": 0,
    "crop": 56,
}


def write_folder(folder: Path, files: Files) -> Path:
    """Write files below a folder, and return the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def small_official_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the official data set is as small as that of the tests."""
    monkeypatch.setitem(source.OFFICIAL, "tiny-imagenet", source.OfficialSize(3, 12, 6, (3, 64, 64)))


@pytest.fixture
def declare_official(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes a zip count as the official one."""

    def make_official(path: Path, url: str = tiny_imagenet.ARCHIVE.url) -> Path:
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setattr(tiny_imagenet, "ARCHIVE", tiny_imagenet.ARCHIVE._replace(md5=md5, url=url))
        return path

    return make_official


prepare_and_load = partial(prepare_and_load_with, SETTINGS)
refusal_message = partial(refusal_message_with, SETTINGS)


def decoded(content: bytes) -> torch.Tensor:
    """Decode an image to RGB (3, H, W)."""
    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def check_content(data: Dataset, files: Files) -> None:
    """Compare a prepared data set with the files that it was made from."""
    names = [f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in WNIDS for n in sorted(NUMBERS)]
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
    expected = torch.stack([decoded(files[name]) for name in names])
    assert data.train_images.equal(expected)
    expected = torch.stack([decoded(files[f"val/images/val_{n}.JPEG"]) for n in (0, 1, 2, 3, 10, 11)])
    assert data.test_images.equal(expected)


# Valid sources


def test_address_and_size_of_the_official_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert tiny_imagenet.ARCHIVE == (
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        248_100_043,
    )
    assert source.OFFICIAL["tiny-imagenet"] == (200, 100_000, 10_000, (3, 64, 64))


def test_zip_and_folder_give_the_same_data_and_nothing_is_unpacked(
    tmp_path: Path, declare_official: Callable[..., Path]
) -> None:
    files = layout()
    declare_official(write_zip(tmp_path / "t.zip", files))
    data = prepare_and_load(tmp_path, source="t.zip")
    assert sorted(os.listdir(tmp_path)) == ["prepared", "t.zip"]
    check_content(data, files)
    assert data.shape == (3, 56, 56)
    meta = json.loads((tmp_path / "prepared/meta.json").read_text())
    assert meta["class_names"] == ["thing n30, a thing", "thing n10, a thing", "thing n20, a thing"]
    assert (meta["crop"], meta["kind"], meta["classes"]) == (56, "tiny-imagenet", 3)
    write_folder(tmp_path / "tin", files)
    write_folder(tmp_path / "parent" / BASE, files)
    declare_official(write_zip(tmp_path / "flat.zip", dict(reversed(files.items())), base=""))
    for path in ("tin", "parent", "flat.zip"):
        assert prepare_and_load(tmp_path, source=path).sha256 == data.sha256


def test_gray_images_become_rgb_even_if_all_images_are_gray(tmp_path: Path) -> None:
    files = {name: jpeg("L") if name.endswith(".JPEG") else content for name, content in layout().items()}
    data = prepare_and_load(write_folder(tmp_path / "tin", files).parent)
    check_content(data, files)
    assert data.train_images[:, 0].equal(data.train_images[:, 2])


def test_stray_files_are_ignored(tmp_path: Path, declare_official: Callable[..., Path]) -> None:
    files = layout()
    declare_official(write_zip(tmp_path / "t.zip", files))
    clean = prepare_and_load(tmp_path, source="t.zip").sha256
    strays = [
        *("train/.DS_Store", "train/n30/images/.DS_Store", "train/n30/images/._n30_0.JPEG", "val/images/Thumbs.db"),
        *(
            "train/n99/images/n99_0.JPEG",
            "train/n30/n30_0.JPEG",
            "val/n30/val_0.JPEG",
            "__MACOSX/train/n30/images/x.JPEG",
        ),
        *("train/n30/images/deeper/x.JPEG", "notes.txt", "val/images/.val_7.JPEG"),
    ]
    strewn = files | dict.fromkeys(strays, b"?")
    declare_official(write_zip(tmp_path / "t.zip", strewn))
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as archive:
        archive.writestr(f"__MACOSX/{BASE}train/n30/images/n30_77.JPEG", b"?")
        archive.writestr("../../escaped.JPEG", b"?")
    declare_official(tmp_path / "t.zip")
    assert prepare_and_load(tmp_path, source="t.zip").sha256 == clean
    write_folder(tmp_path / "tin", strewn)
    assert prepare_and_load(tmp_path).sha256 == clean


def test_a_subset_reads_only_its_own_images(tmp_path: Path) -> None:
    files = layout()
    data = prepare_and_load(write_folder(tmp_path / "tin", files).parent, max_train=6, max_test=3, subset_seed=1)
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    kept = {bytes(image) for image in data.train_images.numpy()}
    spoilt = 0
    for wnid in WNIDS:
        for n in NUMBERS:
            name = f"train/{wnid}/images/{wnid}_{n}.JPEG"
            with Image.open(io.BytesIO(files[name])) as image:
                if np.asarray(image).transpose(2, 0, 1).tobytes() not in kept:
                    (tmp_path / "tin" / name).write_bytes(b"?")
                    spoilt += 1
    assert spoilt == 6
    assert prepare_and_load(tmp_path, max_train=6, max_test=3, subset_seed=1).sha256 == data.sha256


# Refused sources


def without(name: str) -> Callable[[Files], None]:
    """Return a function that removes the files whose names begin with `name`."""
    return lambda files: [files.pop(file) for file in list(files) if file.startswith(name)] and None


def instead(name: str, content: bytes) -> Callable[[Files], None]:
    """Return a function that gives the file `name` another content."""
    return lambda files: files.update({name: content})


def annotated(old: str, new: str) -> Callable[[Files], None]:
    """Return a function that replaces text in the annotations of the validation images."""
    name = "val/val_annotations.txt"
    return lambda files: files.update({name: files[name].replace(old.encode(), new.encode())})


IMAGE = "train/n10/images/n10_9.JPEG"
SMALLER = "datasets.tin.incomplete: true for a subset"
ALWAYS_BAD: dict[str, tuple[Callable[[Files], None], list[str]]] = {
    "no class folder": (without("train/n10/"), ["train/n10/images is missing"]),
    "empty class folder": (without("train/n10/images/"), ["train/n10/images is missing or contains no .JPEG file"]),
    "too many": (instead("train/n10/images/n10_4.JPEG", jpeg()), ["train/n10/images contains 5 images, not 4; copy"]),
    "no file": (
        without("val/images/val_2.JPEG"),
        ["val/images/val_2.JPEG is listed in val/val_annotations.txt but missing"],
    ),
    "no annotation": (
        annotated("val_2.JPEG\tn20\t0\t32\t44\t62\n", ""),
        ["val/images/val_2.JPEG is not listed in val/val_an"],
    ),
    "two annotations": (
        annotated("val_1.JPEG", "val_2.JPEG"),
        ["val_2.JPEG has no class that is in wnids.txt, or several"],
    ),
    "other class": (annotated("val_2.JPEG\tn20", "val_2.JPEG\tn99"), ["val_2.JPEG has no class that is in wnids.txt"]),
    "half a line": (
        annotated("val_2.JPEG\tn20\t0", "val_2.JPEG n20 0"),
        ["val_2.JPEG n20 0 has no class that is in wnids"],
    ),
    "validation too many": (annotated("val_2.JPEG\tn20", "val_2.JPEG\tn10"), ["gives class n10 3 images, not 2"]),
    "no annotations": (without("val/val_annotations.txt"), ["val/val_annotations.txt cannot be read"]),
    "no words": (without("words.txt"), ["words.txt cannot be read"]),
    "a word missing": (instead("words.txt", b"n10\ta\nn20\tb\n"), ["words.txt does not describe class n30"]),
    "no text": (instead("words.txt", b"\xff\xfe"), ["words.txt is not text"]),
    "a class missing": (instead("wnids.txt", b"n10\nn20\n"), ["wnids.txt names 2 classes on 2 lines, not 3"]),
    "a class twice": (instead("wnids.txt", b"n10\nn20\nn20\n"), ["wnids.txt names 2 classes on 3 lines, not 3"]),
    "no classes": (
        without("wnids.txt"),
        ["datasets.tin.source: no wnids.txt in", "official layout, or a folder of .par"],
    ),
    "no image": (instead(IMAGE, b"hello"), [f"{IMAGE} cannot be decoded"]),
    "PNG": (instead(IMAGE, b"\x89PNG\r\n\x1a\n" + bytes(99)), [f"{IMAGE} cannot be decoded"]),
    "empty": (instead(IMAGE, b""), [f"{IMAGE} cannot be decoded"]),
    "other size": (instead(IMAGE, jpeg(size=(64, 48))), [f"{IMAGE} is 64x48, not 64x64"]),
}
BAD_IF_COMPLETE: dict[str, tuple[Callable[[Files], None], list[str]]] = {
    "too few": (without(IMAGE), ["train/n10/images contains 3 images, not 4", SMALLER]),
    "validation too few": (
        lambda files: [annotated("val_2.JPEG\tn20\t0\t32\t44\t62\n", "")(files), without("val/images/val_2")(files)],
        ["val/val_annotations.txt gives class n20 1 images, not 2", SMALLER],
    ),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("case", [*ALWAYS_BAD, *BAD_IF_COMPLETE])
def test_a_bad_file_is_refused_by_name(
    tmp_path: Path, declare_official: Callable[..., Path], case: str, form: str
) -> None:
    spoil, expected = (ALWAYS_BAD | BAD_IF_COMPLETE)[case]
    spoil(files := layout())
    path = (
        declare_official(write_zip(tmp_path / "tin", files)) if form == "zip" else write_folder(tmp_path / "tin", files)
    )
    message = refusal_message(tmp_path)
    assert all(part in message for part in expected)
    assert str(path) in message
    if case in ALWAYS_BAD:
        assert expected[0] in refusal_message(tmp_path, incomplete=True)
    else:
        assert prepare_and_load(tmp_path, incomplete=True).classes == 3


def test_a_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    files = layout()
    whole = files[IMAGE]
    write_folder(tmp_path / "tin", files)
    for length in (1, 2, 20, len(whole) // 2, len(whole) - 40, len(whole) - 10, len(whole) - 3):
        (tmp_path / "tin" / IMAGE).write_bytes(whole[:length])
        assert f"{IMAGE} cannot be decoded" in refusal_message(tmp_path), length


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = layout() | {IMAGE: bytes(20_000)}
    write_zip(tmp_path / "t.zip", files)
    write_folder(tmp_path / "tin", files)
    monkeypatch.setattr(tiny_imagenet, "MAX_FILE", 19_999)
    for path in ("tin", "t.zip"):
        assert f"{IMAGE} has more than 19999 bytes" in refusal_message(tmp_path, source=path, incomplete=True)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_zip_is_refused_by_name(tmp_path: Path, keep: float) -> None:
    path = write_zip(tmp_path / "tin", layout())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert refusal_message(tmp_path, incomplete=True).startswith(f"{path}: not a readable zip")


@pytest.mark.parametrize(
    "spoil", [lambda entry: entry[:6] + b"\xff\x00" + entry[8:], lambda entry: entry[:46] + b"\xff"]
)
def test_a_zip_with_a_damaged_directory_is_refused_by_name(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """The damage is a version that cannot be read, or a name that is marked as UTF-8 but is not."""
    path = write_zip(tmp_path / "tin", layout())
    content = path.read_bytes()
    start = content.index(b"PK\1\2")
    entry = spoil(content[start : start + 47])
    flagged = entry[:8] + (int.from_bytes(entry[8:10], "little") | 0x800).to_bytes(2, "little") + entry[10:]
    path.write_bytes(content[:start] + flagged + content[start + 47 :])
    assert refusal_message(tmp_path, incomplete=True).startswith(f"{path}: not a readable zip")


def test_a_damaged_member_is_refused_by_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "tin", layout())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(BASE + IMAGE).header_offset + 30 + len(BASE + IMAGE) + 300
    content = bytearray(path.read_bytes())
    content[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    assert f"{path}: {BASE}{IMAGE} cannot be read" in refusal_message(tmp_path, incomplete=True)


# Complete and incomplete data sets


def test_a_zip_is_the_official_one_or_marked_as_incomplete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_zip(tmp_path / "tin", layout())
    actual = hashlib.md5(path.read_bytes()).hexdigest()
    message = refusal_message(tmp_path)
    assert message.startswith(f"{path} has MD5 {actual}, not 90528d7ca1a48142e341f4ef8d21d0de; delete it and")
    assert SMALLER.replace("subset", "subset of it") in message
    with caplog.at_level(logging.INFO):
        assert prepare_and_load(tmp_path, incomplete=True).classes == 3
    assert f"{path} is marked as incomplete: its MD5 is not checked" in caplog.text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "served") as http:
        yield http


def test_the_zip_is_downloaded_once(server: Server, tmp_path: Path, declare_official: Callable[..., Path]) -> None:
    files, name = layout(), "tiny-imagenet-200.zip"
    declare_official(write_zip(tmp_path / "served" / name, files), server.url(name))
    root = tmp_path / "root"
    data = prepare_and_load(root, source="download")
    check_content(data, files)
    requests = server.requests
    assert requests > 0
    assert prepare_and_load(root, source="download", incomplete=True).sha256 == data.sha256
    assert server.requests == requests  # the zip is already there
    assert os.listdir(root / "download") == [name]
    assert prepare_and_load(root, source=f"download/{name}").sha256 == data.sha256
    write_zip(root / "download" / name, layout())
    assert "has MD5" in refusal_message(
        root, source="download", incomplete=True
    )  # `incomplete` does not apply to downloads


def test_a_wrong_download_gets_no_final_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served/half.zip").write_bytes(b"half")
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", tiny_imagenet.ARCHIVE._replace(url=server.url("half.zip")))
    message = refusal_message(tmp_path, source="download")
    assert message.startswith(f"datasets.tin.source: the file from {tiny_imagenet.ARCHIVE.url} has MD5")
    assert os.listdir(tmp_path / "download") == []
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", tiny_imagenet.ARCHIVE._replace(url=server.url("nothing")))
    message = refusal_message(tmp_path, source="download")
    assert "datasets.tin.source: cannot download" in message
    assert f"put the archive at {tmp_path / 'download/tiny-imagenet-200.zip'} yourself" in message


def test_a_folder_of_parquet_files_must_have_the_official_counts(tmp_path: Path) -> None:
    def write(split: str, n: int, mode: str = "L") -> None:
        images = [{"bytes": jpeg(mode), "path": None} for _ in range(n)]
        (tmp_path / "tin").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": images, "label": [*range(3)] * (n // 3)}), tmp_path / f"tin/{split}.parquet")

    write("train", 12)
    write("valid", 6)
    assert prepare_and_load(tmp_path).train_images.shape == (12, 3, 64, 64)
    write("train", 9)
    assert "tiny-imagenet has (12, 6) training and test images, not (9, 6)" in refusal_message(tmp_path)
    assert len(prepare_and_load(tmp_path, incomplete=True).train_labels) == 9
    write("train", 15)
    assert "not (15, 6)" in refusal_message(tmp_path, incomplete=True)


# The real images


@pytest.mark.skipif(not SUBSET.exists(), reason=f"the subset of Tiny-ImageNet is not at {SUBSET}")
def test_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source.OFFICIAL, "tiny-imagenet", source.OfficialSize(200, 100_000, 10_000, (3, 64, 64)))
    settings = SETTINGS | {"source": SUBSET.name, "incomplete": True, "max_train": 1000, "max_test": 400}
    prepare(settings, data_root=SUBSET.parent, out=tmp_path)
    data = load_dataset(tmp_path)
    assert data.train_images.shape == (1000, 3, 64, 64)
    assert torch.bincount(data.train_labels).tolist() == [5] * 200
    assert torch.bincount(data.test_labels).tolist() == [2] * 200
    np.testing.assert_allclose(data.mean, [0.480, 0.448, 0.398], atol=0.02)  # the known values of Tiny-ImageNet
    np.testing.assert_allclose(data.std, [0.277, 0.269, 0.282], atol=0.02)
    with zipfile.ZipFile(SUBSET) as archive:
        wnids = archive.read(f"{BASE}wnids.txt").decode().split()
        label = int(data.train_labels[500])
        folder = f"{BASE}train/{wnids[label]}/images/"
        images = [
            decoded(archive.read(name)) for name in archive.namelist() if name.startswith(folder) and name.endswith("G")
        ]
        assert sum(image.equal(data.train_images[500]) for image in images) == 1
        lines = archive.read(f"{BASE}val/val_annotations.txt").decode().split("\n")
        of_class = [line.split("\t")[0] for line in lines if wnids[int(data.test_labels[7])] in line]
        images = [decoded(archive.read(f"{BASE}val/images/{name}")) for name in of_class]
        assert sum(image.equal(data.test_images[7]) for image in images) == 1

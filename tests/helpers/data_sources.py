"""Make small archives and folders in the formats of data sets, for the tests."""

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from robreg.data import source
from robreg.data.dataset import ARRAYS, META_FILE, Dataset, hash_meta, load_dataset
from robreg.data.errors import DataError
from robreg.data.preparation import prepare

RNG = np.random.default_rng(0)


class Python2Pickler(pickle._Pickler):
    """Pickles text and bytes as Python 2 did for the official archives, as byte strings."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_string(self, obj: str | bytes) -> None:
        encoded = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + len(encoded).to_bytes(4, "little") + encoded)
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value: object) -> bytes:
    """Pickle a value as Python 2 would, with numpy's module name of that time."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_batch(kind: str, n: int, offset: int = 0) -> dict[str, Any]:
    """Make the content of an archive member: n random images, with labels that count up from `offset`."""
    labels = [(i + offset) % source.OFFICIAL[kind].classes for i in range(n)]
    data = RNG.integers(0, 256, (n, 3072), np.uint8)
    if kind == "cifar10":
        return {"batch_label": "b", "labels": labels, "data": data, "filenames": ["x.png"] * n}
    coarse = [7 * label % 20 for label in labels]  # 20 groups of 5 classes
    names = ["x_s_000001.png"] * n
    return {"filenames": names, "batch_label": "b", "fine_labels": labels, "coarse_labels": coarse, "data": data}


def cifar_members(kind: str) -> dict[str, Any]:
    """Make the contents of a small archive: a dict from the name of a member to the value that it pickles."""
    if kind == "cifar10":
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        members: dict[str, Any] = {
            f"cifar-10-batches-py/{name}": cifar_batch(kind, 8, 3 * i) for i, name in enumerate(names)
        }
        members["cifar-10-batches-py/batches.meta"] = {"label_names": [f"class{i}" for i in range(10)]}
    else:
        members = {"cifar-100-python/train": cifar_batch(kind, 200), "cifar-100-python/test": cifar_batch(kind, 100)}
        names = {"coarse_label_names": [f"group{i}" for i in range(20)]}
        members["cifar-100-python/meta"] = {"fine_label_names": [f"class{i}" for i in range(100)]} | names
    return members


def write_archive(path: Path, members: dict[str, Any]) -> None:
    """Write a .tar.gz; a member is written as it is if it is bytes or TarInfo, and pickled otherwise."""
    with tarfile.open(path, "w:gz") as tar:
        for name, value in {**members, "cifar/readme.html": "hello"}.items():
            content = value if isinstance(value, bytes) else python2_pickle(value)
            info = value if isinstance(value, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if isinstance(value, tarfile.TarInfo) else len(content)
            tar.addfile(info, io.BytesIO(content))


def set_official_counts(monkeypatch: pytest.MonkeyPatch, kind: str, train: int, test: int) -> None:
    """Pretend that the official data set has only these numbers of training and test images."""
    monkeypatch.setitem(source.OFFICIAL, kind, source.OFFICIAL[kind]._replace(train=train, test=test))


def declare_official(monkeypatch: pytest.MonkeyPatch, kind: str, path: Path) -> None:
    """Make the archive at `path` count as the official one, with the small numbers of images of `cifar_members`."""
    official = getattr(torchvision.datasets, kind.upper())
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    set_official_counts(monkeypatch, kind, *{"cifar10": (40, 8), "cifar100": (200, 100)}[kind])


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Encode an image (H, W[, C]) in a format of Pillow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[int | None], **columns: list[int]) -> None:
    """Write encoded images and labels as a Parquet file in Hugging Face's layout, with row groups of 7 rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(encoded, kind), "label": labels, **columns}), path, row_group_size=7)


def understate_sizes(path: Path) -> None:
    """Let the footer of a Parquet file state that columns of a megabyte or more have none when unpacked."""
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - size], content[-8 - size : -8]
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    sizes = {group.column(index).total_uncompressed_size for group in groups for index in range(group.num_columns)}
    for total in filter(lambda size: size >= 2**20, sizes):  # the bytes of a smaller one might stand for something else
        code = b"".join(bytes([2 * total >> shift & 127 | 128]) for shift in range(0, (2 * total).bit_length(), 7))
        written = code[:-1] + bytes([code[-1] & 127])  # a whole number in Thrift's compact protocol
        assert written in footer
        footer = footer.replace(written, b"\x80" * (len(written) - 1) + b"\0")
    path.write_bytes(body + footer + content[-8:])


def forge_meta(folder: Path, **changes: Any) -> None:
    """Change entries of the meta.json of prepared data, and make the hashes anew, as whoever sent them can."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        digest.update(np.load(folder / f"{name}.npy").tobytes())
    meta = json.loads((folder / META_FILE).read_text()) | changes | {"sha256": digest.hexdigest()}
    (folder / META_FILE).write_text(json.dumps(meta | {"meta_sha256": hash_meta(meta)}))


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images (N, H, W[, C]), encoded as PNG, as both splits of a folder."""
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", [encode(image) for image in images], labels.tolist())


def prepare_and_load_with(defaults: Mapping[str, Any], folder: Path, **settings: object) -> Dataset:
    """Prepare a data set in `folder`, which is also its data_root, and load it; settings: other than the defaults."""
    prepare({**defaults, **settings}, data_root=folder, out=folder / "prepared")
    return load_dataset(folder / "prepared")


def refusal_message_with(defaults: Mapping[str, Any], folder: Path, **settings: object) -> str:
    """Return the message of the DataError that preparing a data set raises, and check that no file is left behind."""
    with pytest.raises(DataError) as caught:
        prepare({**defaults, **settings}, data_root=folder, out=folder / "refused")
    assert not list((folder / "refused").glob("*"))
    return str(caught.value)

"""Data that were damaged anywhere are refused in one sentence that names the file, or are the same data still."""

import io
import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.data_sources import bless, cifar_members, python2_pickle, write_archive, write_folder, write_parquet
from helpers.tiny_imagenet_source import layout, write_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from robreg.data import source, tiny_imagenet
from robreg.data.cifar import _Array, _Dtype, _load_pickle
from robreg.data.dataset import ARRAYS, Dataset, hash_meta, load_dataset
from robreg.data.preparation import prepare
from robreg.data.source import DataError

CASES = int(os.environ.get("ROBREG_CASES", "150"))  # of each kind
SETTINGS = settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
ALL = {"max_train": None, "max_test": None, "subset_seed": 0, "name": "d"}
CIFAR = ALL | {"kind": "cifar10"}
TINY = ALL | {"kind": "tiny-imagenet", "incomplete": True, "crop": 56}
PARQUET = ALL | {"kind": "parquet"}
tried: Counter[str] = Counter()
Tensors = list[torch.Tensor]


@st.composite
def damage(draw: Callable[..., Any], content: bytes) -> bytes:
    """Flip a bit, cut the end or a piece, repeat a piece, or overwrite one by noise."""
    start = draw(st.integers(0, len(content) - 1))
    stop = min(len(content), start + draw(st.sampled_from([1, 4, 64, 1024])))
    piece, noise = content[start:stop], draw(st.randoms(use_true_random=False)).randbytes(stop - start)
    flipped = bytes([piece[0] ^ 1 << draw(st.integers(0, 7))]) + piece[1:]
    rest = draw(st.sampled_from([flipped, flipped, b"", 2 * piece, noise])) + content[stop:]
    return content[:start] + draw(st.sampled_from([rest, rest, rest, b""]))


def tensors(folder: Path) -> Tensors:
    found = load_dataset(folder)
    return [getattr(found, name).clone() for name in ARRAYS]


def facts(data: Dataset) -> list[Any]:
    return [getattr(data, field.name) for field in fields(data) if field.name not in ARRAYS]


def are_equal(some: Tensors, others: Tensors) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def try_it(chosen: dict[str, Any], root: Path, whole: Tensors) -> None:
    """Prepare from a damaged source: the arrays of the whole one, or a refusal, and nothing half-written."""
    out, said = root / "out", ""
    shutil.rmtree(out, ignore_errors=True)
    try:
        prepare(chosen, data_root=root, out=out)
    except DataError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert str(root) in said or "datasets.d." in said
        assert not list(out.glob("*"))
        found = "refused"
    else:
        found = "the same" if are_equal(tensors(out), whole) else "other pixels"  # the checksum is what sees them
    tried[f"{chosen['kind']}: {found}"] += 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


# Archives whose checksum is right: the last line of defence


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    return {name: python2_pickle(value) for name, value in cifar_members("cifar10").items()}


@pytest.fixture(scope="module")
def cifar(root: Path, members: dict[str, bytes]) -> Tensors:
    write_archive(root / "whole.tar.gz", members)
    with pytest.MonkeyPatch.context() as patch:
        bless(patch, "cifar10", root / "whole.tar.gz")
        prepare(CIFAR | {"source": "whole.tar.gz"}, data_root=root, out=root / "cifar")
    return tensors(root / "cifar")


@SETTINGS
@given(data=st.data())
def test_a_damaged_archive(data: st.DataObject, root: Path, cifar: Tensors) -> None:
    (root / "c.tar.gz").write_bytes(data.draw(damage((root / "whole.tar.gz").read_bytes())))
    with pytest.MonkeyPatch.context() as patch:
        bless(patch, "cifar10", root / "c.tar.gz")
        try_it(CIFAR | {"source": "c.tar.gz"}, root, cifar)


@SETTINGS
@given(data=st.data())
def test_a_damaged_pickle_holds_plain_values_or_is_refused(data: st.DataObject, members: dict[str, bytes]) -> None:
    whole = st.sampled_from(sorted(members.values(), key=len))
    content = data.draw(whole.flatmap(damage) | st.binary(max_size=200))
    try:
        found = _load_pickle(io.BytesIO(content))
    except Exception:  # whichever it is, open_archive turns it into a sentence
        tried["pickle: refused"] += 1
    else:
        plain = (str, bytes, int, float, list, tuple, dict, type(None), bool, _Array, _Dtype, set)
        assert all(isinstance(value, plain) for value in found.values())
        tried["pickle: plain"] += 1


def calls(function: Callable[..., Any], *arguments: Any) -> Any:
    """An object that an unrestricted unpickler calls a function for."""
    return type("Calls", (), {"__reduce__": lambda _: (function, arguments)})()


PAYLOADS = {
    "eval": calls(eval, "1"),
    "exec": calls(exec, ""),
    "getattr": calls(getattr, "a", "upper"),
    "import": calls(__import__, "os"),
    "open": calls(open, "/dev/null"),
    "numpy load": calls(np.load, "x.npy"),
    "numpy frombuffer": calls(np.frombuffer, b"12345678"),
    "torch load": calls(torch.load, "x.pt"),
    "class": Counter,
    "path": Path("/etc/passwd"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_but_arrays_is_made_from_a_pickle(payload: str, protocol: int) -> None:
    content = pickle.dumps({"data": PAYLOADS[payload]}, protocol)
    with pytest.raises(pickle.UnpicklingError, match="is not admitted"):
        _load_pickle(io.BytesIO(content))
    tried["payload: refused"] += 1


def reduced(dtype: Any, content: Any) -> Any:
    """Something that is pickled like an array, of what one never is made."""
    make = np.zeros(0).__reduce__()[0]
    return type(
        "Forged", (), {"__reduce__": lambda _: (make, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, content))}
    )()


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a"], object),
        np.zeros(3),
        np.zeros(2, [("a", "u1")]),
        np.zeros(3, "i1"),
        np.zeros(3, "M8[s]"),
        "forged",
    ],
    ids=repr,
)
def test_no_array_but_of_bytes_is_made_from_a_pickle(array: Any) -> None:
    """One of objects, made of bytes that are no pointers, ends the process once it is used."""
    if isinstance(array, str):
        array = reduced(np.dtype(object), bytes(range(8)))
    for protocol in range(3):
        with pytest.raises(pickle.UnpicklingError, match="anything but bytes is not admitted"):
            _load_pickle(io.BytesIO(pickle.dumps({"data": array}, protocol)))
    tried["payload: refused"] += 1


def test_a_pickle_takes_no_more_memory_than_it_has_bytes() -> None:
    content = b"\x80\x02Nr\xff\xff\xff\x07."  # to remember a value at place 2^27
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError, match="not a dictionary"):
            _load_pickle(io.BytesIO(content))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", range(3))
def test_arrays_of_bytes_are_those_that_numpy_unpickles(order: Any, protocol: int) -> None:
    array = np.asarray(np.arange(200, dtype=np.uint8).reshape(8, 25), order=order)
    content = pickle.dumps({"data": array}, protocol)
    assert np.array_equal(_load_pickle(io.BytesIO(content))["data"].array, pickle.loads(content)["data"])


# A zip that is said to be incomplete: nothing has its checksum


@contextmanager
def official_of_three() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(source.OFFICIAL, "tiny-imagenet", source.Official(3, 12, 6, (3, 64, 64)))
        yield


@pytest.fixture(scope="module")
def zipped(root: Path) -> Tensors:
    write_zip(root / "whole.zip", layout())
    with official_of_three():
        prepare(TINY | {"source": "whole.zip"}, data_root=root, out=root / "tiny")
    return tensors(root / "tiny")


@SETTINGS
@given(data=st.data())
def test_a_damaged_zip(data: st.DataObject, root: Path, zipped: Tensors) -> None:
    (root / "t.zip").write_bytes(data.draw(damage((root / "whole.zip").read_bytes())))
    with official_of_three():
        try_it(TINY | {"source": "t.zip"}, root, zipped)


def test_a_zip_s_names_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked; members that would lie elsewhere are no part of the layout."""
    with zipfile.ZipFile(write_zip(tmp_path / "t.zip", layout()), "a") as file:
        for name in ("../../evil.JPEG", "/tmp/evil.JPEG", "..\\evil.JPEG"):
            file.writestr(name, b"x")
    before = sorted(tmp_path.iterdir())
    with official_of_three():
        prepare(TINY | {"source": "t.zip"}, data_root=tmp_path, out=tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"meta.json", *(f"{one}.npy" for one in ARRAYS)}


def test_a_zip_bomb_is_refused_unread(tmp_path: Path) -> None:
    files = layout()
    name = next(name for name in files if name.startswith("train") and name.endswith(".JPEG"))
    write_zip(tmp_path / "t.zip", files | {name: bytes(tiny_imagenet.MAX_FILE + 1)})
    assert (tmp_path / "t.zip").stat().st_size < tiny_imagenet.MAX_FILE / 10
    with official_of_three(), pytest.raises(DataError, match=f"{name} has more than"):
        prepare(TINY | {"source": "t.zip"}, data_root=tmp_path, out=tmp_path / "out")


# Folders of Parquet files


@pytest.fixture(scope="module")
def folder(root: Path) -> Tensors:
    rng = np.random.default_rng(0)
    write_folder(root / "whole", rng.integers(0, 256, (20, 6, 6, 3), np.uint8), np.arange(20) % 4)
    prepare(PARQUET | {"source": "whole"}, data_root=root, out=root / "prepared")
    return tensors(root / "prepared")


@SETTINGS
@given(data=st.data())
def test_a_damaged_parquet_file(data: st.DataObject, root: Path, folder: Tensors) -> None:
    shutil.copytree(root / "whole", root / "set", dirs_exist_ok=True)
    path = data.draw(st.sampled_from(sorted((root / "set").glob("*.parquet"))))
    path.write_bytes(data.draw(damage(path.read_bytes())))
    try_it(PARQUET | {"source": "set"}, root, folder)


def claiming(side: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    file = io.BytesIO()
    Image.new("RGB", (6, 6), (1, 2, 3)).save(file, "PNG")
    content = file.getvalue()
    header = b"IHDR" + 2 * side.to_bytes(4, "big") + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "place", "said"),
    [
        (13_000, 0, "row 0 has more than 4194304 pixels"),  # Pillow only warns of it
        (13_000, 1, "row 1 is 13000x13000, not 6x6"),
        (60_000, 1, "row 1 cannot be decoded"),
    ],
)
def test_an_image_that_claims_to_be_huge_is_refused_undecoded(
    side: int, place: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[bytes | None] = [claiming(6), claiming(6)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"set/{split}.parquet", images, [0, 1])
    images[place] = claiming(side)
    write_parquet(tmp_path / "set/train.parquet", images, [0, 1])
    decode = Image.Image.convert

    def convert(image: Image.Image, mode: str) -> Image.Image:
        assert image.size == (6, 6)
        return decode(image, mode)

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match=said):
        prepare(PARQUET | {"source": "set"}, data_root=tmp_path, out=tmp_path / "out")


def test_an_image_that_a_file_repeats_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 2 kB can hold the same long image any number of times."""
    monkeypatch.setattr("robreg.data.parquet_folder.BATCH_BYTES", 2**22)
    image = claiming(6) + bytes(2**20)  # what follows a PNG's end is not looked at
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array(200 * [{"bytes": image, "path": None}], kind)
    for split in ("train", "test"):
        path, labels = tmp_path / f"set/{split}.parquet", pa.array([0, 1] * 100)
        path.parent.mkdir(exist_ok=True)
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**22)
        assert path.stat().st_size < 2**16
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match="channel 0 of the training images is constant"):
            prepare(PARQUET | {"source": "set"}, data_root=tmp_path, out=tmp_path / "out")
    finally:
        pa.set_memory_pool(before)
    assert 2**20 < pool.max_memory() < 2**24


def test_more_rows_than_any_set_has_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set", np.zeros((20, 6, 6, 3), np.uint8), np.arange(20) % 4)
    monkeypatch.setattr("robreg.data.parquet_folder.MAX_ROWS", 9)
    with pytest.raises(DataError, match=r"train\S*\.parquet: more than 9 rows; cut it into several files"):
        prepare(PARQUET | {"source": "set"}, data_root=tmp_path, out=tmp_path / "out")


# What was prepared


@SETTINGS
@given(data=st.data())
def test_damaged_prepared_data(data: st.DataObject, root: Path, folder: Tensors) -> None:
    shutil.copytree(root / "prepared", root / "damaged", dirs_exist_ok=True)
    path, said = data.draw(st.sampled_from(sorted((root / "damaged").iterdir()))), ""
    path.write_bytes(data.draw(damage(path.read_bytes())))
    try:
        found = load_dataset(root / "damaged")
    except DataError as error:
        said = str(error)
    if said:
        assert said.startswith(f"{root / 'damaged'}/")
        assert "\n" not in said
    else:
        assert are_equal([getattr(found, name) for name in ARRAYS], folder)
        assert facts(found) == facts(load_dataset(root / "prepared"))
    tried[f"prepared: {'refused' if said else 'the same'}"] += 1


IMPOSSIBLE = [None, "x", -1, 0, [], [1], {}, True, 1e999, [float("nan")] * 3, ["a"] * 3, [[1]] * 3, 10**30]


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("name", ["n_train", "n_test", "classes", "shape", "mean", "std", "sha256", "crop"])
def test_a_description_that_cannot_be_is_refused(
    name: str, value: Any, root: Path, folder: Tensors, tmp_path: Path
) -> None:
    if name == "crop" and value is None:
        value = 7  # none can be; more than the images' side cannot
    shutil.copytree(root / "prepared", tmp_path / "d")
    meta = json.loads((tmp_path / "d/meta.json").read_text())
    meta[name] = value
    (tmp_path / "d/meta.json").write_text(json.dumps(meta | {"meta_sha256": hash_meta(meta)}))
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path / "d")
    assert str(error.value).startswith(f"{tmp_path / 'd'}/")
    tried["description: refused"] += 1


def test_enough_was_tried() -> None:
    if len({name.partition(":")[0] for name in tried}) < 7:
        pytest.skip("only a part of this file was run")
    print("\n" + "\n".join(f"{name} {count}" for name, count in sorted(tried.items())))
    assert sum(tried.values()) >= 900
    assert sum(count for name, count in tried.items() if name.endswith("refused")) >= 500

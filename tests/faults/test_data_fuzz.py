"""Data with random damage are refused in one sentence that names the file, or still give the same arrays."""

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
from helpers.data_sources import (
    cifar_members,
    declare_official,
    python2_pickle,
    write_archive,
    write_folder,
    write_parquet,
)
from helpers.tiny_imagenet_source import layout, write_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from robreg.data import source, tiny_imagenet
from robreg.data.cifar import _ArrayStub, _DtypeStub, _load_pickle
from robreg.data.dataset import ARRAYS, Dataset, hash_meta, load_dataset
from robreg.data.errors import DataError
from robreg.data.preparation import prepare

CASES = int(os.environ.get("ROBREG_CASES", "150"))  # random cases of each kind
SETTINGS = settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
ALL = {"max_train": None, "max_test": None, "subset_seed": 0, "name": "d"}
CIFAR = ALL | {"kind": "cifar10"}
TINY = ALL | {"kind": "tiny-imagenet", "incomplete": True, "crop": 56}
PARQUET = ALL | {"kind": "parquet"}
outcomes: Counter[str] = Counter()  # how many cases of each kind had each outcome
Tensors = list[torch.Tensor]


@st.composite
def damage(draw: Callable[..., Any], content: bytes) -> bytes:
    """Flip a bit, remove the end or a piece, repeat a piece, or overwrite one with noise."""
    start = draw(st.integers(0, len(content) - 1))
    stop = min(len(content), start + draw(st.sampled_from([1, 4, 64, 1024])))
    piece, noise = content[start:stop], draw(st.randoms(use_true_random=False)).randbytes(stop - start)
    flipped = bytes([piece[0] ^ 1 << draw(st.integers(0, 7))]) + piece[1:]
    rest = draw(st.sampled_from([flipped, flipped, b"", 2 * piece, noise])) + content[stop:]
    return content[:start] + draw(st.sampled_from([rest, rest, rest, b""]))


def tensors(folder: Path) -> Tensors:
    """Load copies of the arrays of a prepared data set."""
    data = load_dataset(folder)
    return [getattr(data, name).clone() for name in ARRAYS]


def other_fields(data: Dataset) -> list[Any]:
    """List the values of a data set's fields that are not arrays."""
    return [getattr(data, field.name) for field in fields(data) if field.name not in ARRAYS]


def are_equal(some: Tensors, others: Tensors) -> bool:
    """Return whether two lists of arrays are equal."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def try_damaged_source(chosen: dict[str, Any], root: Path, intact: Tensors) -> None:
    """Prepare a damaged source, check that a refusal is clear and leaves no files, and count the outcome.

    chosen: settings; intact: the arrays from the undamaged source.
    """
    out, message = root / "out", ""
    shutil.rmtree(out, ignore_errors=True)
    try:
        prepare(chosen, data_root=root, out=out)
    except DataError as error:
        message = str(error)
    if message:
        assert "\n" not in message
        assert str(root) in message or "datasets.d." in message
        assert not list(out.glob("*"))
        outcome = "refused"
    else:
        outcome = "the same" if are_equal(tensors(out), intact) else "other pixels"  # only a checksum can detect these
    outcomes[f"{chosen['kind']}: {outcome}"] += 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


# Damaged archives that the checksum does not detect


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    return {name: python2_pickle(value) for name, value in cifar_members("cifar10").items()}


@pytest.fixture(scope="module")
def cifar(root: Path, members: dict[str, bytes]) -> Tensors:
    write_archive(root / "whole.tar.gz", members)
    with pytest.MonkeyPatch.context() as patch:
        declare_official(patch, "cifar10", root / "whole.tar.gz")
        prepare(CIFAR | {"source": "whole.tar.gz"}, data_root=root, out=root / "cifar")
    return tensors(root / "cifar")


@SETTINGS
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_read(data: st.DataObject, root: Path, cifar: Tensors) -> None:
    (root / "c.tar.gz").write_bytes(data.draw(damage((root / "whole.tar.gz").read_bytes())))
    with pytest.MonkeyPatch.context() as patch:
        declare_official(patch, "cifar10", root / "c.tar.gz")
        try_damaged_source(CIFAR | {"source": "c.tar.gz"}, root, cifar)


@SETTINGS
@given(data=st.data())
def test_a_damaged_pickle_holds_plain_values_or_is_refused(data: st.DataObject, members: dict[str, bytes]) -> None:
    intact = st.sampled_from(sorted(members.values(), key=len))
    content = data.draw(intact.flatmap(damage) | st.binary(max_size=200))
    try:
        loaded = _load_pickle(io.BytesIO(content))
    except Exception:  # open_archive converts any error to a DataError
        outcomes["pickle: refused"] += 1
    else:
        plain = (str, bytes, int, float, list, tuple, dict, type(None), bool, _ArrayStub, _DtypeStub, set)
        assert all(isinstance(value, plain) for value in loaded.values())
        outcomes["pickle: plain"] += 1


def calls(function: Callable[..., Any], *arguments: Any) -> Any:
    """Make an object for which an unrestricted unpickler calls a function."""
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
def test_a_pickle_cannot_call_functions_or_make_other_objects(payload: str, protocol: int) -> None:
    content = pickle.dumps({"data": PAYLOADS[payload]}, protocol)
    with pytest.raises(pickle.UnpicklingError, match="is not allowed"):
        _load_pickle(io.BytesIO(content))
    outcomes["payload: refused"] += 1


def reduced(dtype: Any, content: Any) -> Any:
    """Make an object that is pickled like an array, but with contents that no array has."""
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
def test_only_arrays_of_bytes_are_made_from_a_pickle(array: Any) -> None:
    """An array of objects whose bytes are not pointers would crash the process when it is used."""
    if isinstance(array, str):
        array = reduced(np.dtype(object), bytes(range(8)))
    for protocol in range(3):
        with pytest.raises(pickle.UnpicklingError, match="only arrays of bytes are allowed"):
            _load_pickle(io.BytesIO(pickle.dumps({"data": array}, protocol)))
    outcomes["payload: refused"] += 1


def test_a_small_pickle_needs_little_memory() -> None:
    content = b"\x80\x02Nr\xff\xff\xff\x07."  # stores a value at index 2^27 of the memo
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError, match="not a dictionary"):
            _load_pickle(io.BytesIO(content))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", range(3))
def test_arrays_of_bytes_equal_those_that_numpy_unpickles(order: Any, protocol: int) -> None:
    array = np.asarray(np.arange(200, dtype=np.uint8).reshape(8, 25), order=order)
    content = pickle.dumps({"data": array}, protocol)
    assert np.array_equal(_load_pickle(io.BytesIO(content))["data"].array, pickle.loads(content)["data"])


# Zips that are marked as incomplete and therefore have no checksum


@contextmanager
def small_official_set() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(source.OFFICIAL, "tiny-imagenet", source.OfficialSize(3, 12, 6, (3, 64, 64)))
        yield


@pytest.fixture(scope="module")
def zipped(root: Path) -> Tensors:
    write_zip(root / "whole.zip", layout())
    with small_official_set():
        prepare(TINY | {"source": "whole.zip"}, data_root=root, out=root / "tiny")
    return tensors(root / "tiny")


@SETTINGS
@given(data=st.data())
def test_a_damaged_zip_is_refused_or_read(data: st.DataObject, root: Path, zipped: Tensors) -> None:
    (root / "t.zip").write_bytes(data.draw(damage((root / "whole.zip").read_bytes())))
    with small_official_set():
        try_damaged_source(TINY | {"source": "t.zip"}, root, zipped)


def test_names_in_a_zip_cannot_write_elsewhere(tmp_path: Path) -> None:
    """Nothing is unpacked, and members with paths outside the folder do not belong to the layout."""
    with zipfile.ZipFile(write_zip(tmp_path / "t.zip", layout()), "a") as file:
        for name in ("../../evil.JPEG", "/tmp/evil.JPEG", "..\\evil.JPEG"):
            file.writestr(name, b"x")
    before = sorted(tmp_path.iterdir())
    with small_official_set():
        prepare(TINY | {"source": "t.zip"}, data_root=tmp_path, out=tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"meta.json", *(f"{name}.npy" for name in ARRAYS)}


def test_a_zip_bomb_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    files = layout()
    name = next(name for name in files if name.startswith("train") and name.endswith(".JPEG"))
    write_zip(tmp_path / "t.zip", files | {name: bytes(tiny_imagenet.MAX_FILE + 1)})
    assert (tmp_path / "t.zip").stat().st_size < tiny_imagenet.MAX_FILE / 10
    with small_official_set(), pytest.raises(DataError, match=f"{name} has more than"):
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
def test_a_damaged_parquet_file_is_refused_or_read(data: st.DataObject, root: Path, folder: Tensors) -> None:
    shutil.copytree(root / "whole", root / "set", dirs_exist_ok=True)
    path = data.draw(st.sampled_from(sorted((root / "set").glob("*.parquet"))))
    path.write_bytes(data.draw(damage(path.read_bytes())))
    try_damaged_source(PARQUET | {"source": "set"}, root, folder)


def png_of_stated_size(side: int) -> bytes:
    """Make a PNG of a few bytes whose header states a width and height of `side`."""
    file = io.BytesIO()
    Image.new("RGB", (6, 6), (1, 2, 3)).save(file, "PNG")
    content = file.getvalue()
    header = b"IHDR" + 2 * side.to_bytes(4, "big") + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "row", "message"),
    [
        (13_000, 0, "row 0 has more than 4194304 pixels"),  # Pillow only warns about this size
        (13_000, 1, "row 1 is 13000x13000, not 6x6"),
        (60_000, 1, "row 1 cannot be decoded"),
    ],
)
def test_an_image_with_a_huge_stated_size_is_refused_without_decoding(
    side: int, row: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[bytes | None] = [png_of_stated_size(6), png_of_stated_size(6)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"set/{split}.parquet", images, [0, 1])
    images[row] = png_of_stated_size(side)
    write_parquet(tmp_path / "set/train.parquet", images, [0, 1])
    decode = Image.Image.convert

    def convert(image: Image.Image, mode: str) -> Image.Image:
        assert image.size == (6, 6)
        return decode(image, mode)

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match=message):
        prepare(PARQUET | {"source": "set"}, data_root=tmp_path, out=tmp_path / "out")


def test_a_repeated_long_image_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 2 kB can contain the same long image any number of times."""
    monkeypatch.setattr("robreg.data.parquet_folder.BATCH_BYTES", 2**22)
    image = png_of_stated_size(6) + bytes(2**20)  # bytes after the end of a PNG are ignored
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


def test_a_file_with_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set", np.zeros((20, 6, 6, 3), np.uint8), np.arange(20) % 4)
    shutil.copy(tmp_path / "set/train.parquet", tmp_path / "set/train-2.parquet")
    for limit, last in ((9, "train-2"), (39, "train")):
        monkeypatch.setattr("robreg.data.parquet_folder.MAX_ROWS", limit)
        with pytest.raises(DataError, match=rf"/{last}\.parquet: with it, its split has more than {limit} rows; leave"):
            prepare(PARQUET | {"source": "set"}, data_root=tmp_path, out=tmp_path / "out")
    monkeypatch.setattr("robreg.data.parquet_folder.MAX_ROWS", 40)
    with pytest.raises(DataError, match="is constant"):
        prepare(PARQUET | {"source": "set"}, data_root=tmp_path, out=tmp_path / "out")


# Prepared arrays


@SETTINGS
@given(data=st.data())
def test_damaged_prepared_data_are_refused_or_unchanged(data: st.DataObject, root: Path, folder: Tensors) -> None:
    shutil.copytree(root / "prepared", root / "damaged", dirs_exist_ok=True)
    path, message = data.draw(st.sampled_from(sorted((root / "damaged").iterdir()))), ""
    path.write_bytes(data.draw(damage(path.read_bytes())))
    try:
        loaded = load_dataset(root / "damaged")
    except DataError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{root / 'damaged'}/")
        assert "\n" not in message
    else:
        assert are_equal([getattr(loaded, name) for name in ARRAYS], folder)
        assert other_fields(loaded) == other_fields(load_dataset(root / "prepared"))
    outcomes[f"prepared: {'refused' if message else 'the same'}"] += 1


IMPOSSIBLE = [None, "x", -1, 0, [], [1], {}, True, 1e999, [float("nan")] * 3, ["a"] * 3, [[1]] * 3, 10**30]


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("name", ["n_train", "n_test", "classes", "shape", "mean", "std", "sha256", "crop"])
def test_an_impossible_value_in_meta_json_is_refused(
    name: str, value: Any, root: Path, folder: Tensors, tmp_path: Path
) -> None:
    if name == "crop" and value is None:
        value = 7  # null is possible, but a crop larger than the images is not
    shutil.copytree(root / "prepared", tmp_path / "d")
    meta = json.loads((tmp_path / "d/meta.json").read_text())
    meta[name] = value
    (tmp_path / "d/meta.json").write_text(json.dumps(meta | {"meta_sha256": hash_meta(meta)}))
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path / "d")
    assert str(error.value).startswith(f"{tmp_path / 'd'}/")
    outcomes["description: refused"] += 1


def test_enough_cases_were_tried() -> None:
    if len({name.partition(":")[0] for name in outcomes}) < 7:
        pytest.skip("only a part of this file was run")
    print("\n" + "\n".join(f"{name} {count}" for name, count in sorted(outcomes.items())))
    assert sum(outcomes.values()) >= 900
    assert sum(count for name, count in outcomes.items() if name.endswith("refused")) >= 500

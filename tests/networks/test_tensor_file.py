"""A file of tensors is read as it was written, and a file that was made to do anything else takes nothing."""

import io
import os
import pickle
import struct
import zipfile
from collections import Counter

import pytest
import torch
from helpers.peak_memory import peak_memory
from torch import nn

from robreg.networks import tensor_file
from robreg.networks.tensor_file import MAX_PICKLE, load_file, save_file

CONTENT = {
    "model": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)},
    "meta": {"text": "é", "list": [1, [2.5]]},
}


def with_description(path, description):
    """Write an archive as torch does, with a description (a pickle) of one's own."""
    file = io.BytesIO()
    torch.save(CONTENT, file)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(path, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, description if name.endswith("data.pkl") else whole.read(name))


class Call:
    """An object that is described by a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_file_is_read_as_it_was_written(tmp_path):
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    content = CONTENT | {str(kind): torch.ones(2, 2).to(kind).T for kind in kinds}
    content |= {"parameter": nn.Parameter(torch.ones(2)), "part": torch.arange(10)[2:4], "none": None, "pair": (1, "x")}
    save_file(tmp_path / "file.pt", content)
    (tmp_path / "link.pt").symlink_to("file.pt")
    for name in ("file.pt", "link.pt"):
        found = load_file(tmp_path / name, "cpu")
        assert found.keys() == content.keys()
        assert found["meta"] == CONTENT["meta"]
        for key in ("part", "parameter", *map(str, kinds)):
            assert found[key].dtype == content[key].dtype
            assert torch.equal(found[key], content[key])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Call(bytearray, 2 * 10**9), "builtins bytearray|__builtin__ bytearray"),
        (Counter("text"), "collections Counter"),
        ({1, 2}, "builtins set|__builtin__ set"),
        (Call(torch.UntypedStorage, 2 * 10**9), "torch.storage UntypedStorage"),
        (torch.device("cpu"), "torch device"),
        (torch.zeros(3).to_sparse(), "torch._utils _rebuild_sparse_tensor"),
        (torch.zeros(3, dtype=torch.uint16), "torch._utils _rebuild_tensor_v3"),
    ],
)
def test_other_values_than_tensors_and_plain_ones_are_refused_without_making_them(value, kind, tmp_path):
    if isinstance(value, Call):
        with_description(tmp_path / "file.pt", pickle.dumps({"model": value}, protocol=2))
    else:
        torch.save({"model": value}, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").stat().st_size < 5000
    taken, message = peak_memory(load_file, tmp_path / "file.pt", "cpu")
    assert any(f"it holds a value of {one}, not only" in message for one in kind.split("|")), message
    assert taken < 100  # MB


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    save_file(tmp_path / "file.pt", CONTENT)
    before = (tmp_path / "file.pt").read_bytes()
    with pytest.raises(
        ValueError, match=r"file\.pt: its state cannot be saved \(.* value of __builtin__ set, .*state_dict"
    ):
        save_file(tmp_path / "file.pt", CONTENT | {"state": {1, 2}})
    with pytest.raises(ValueError, match=r"file\.pt: its state cannot be saved, because one of its tensors repeats"):
        save_file(tmp_path / "file.pt", CONTENT | {"state": torch.zeros(1).expand(3)})
    assert (tmp_path / "file.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["file.pt"]


def test_values_that_a_few_bytes_stand_for_many_times_are_refused(tmp_path):
    nested, text = [0], "x" * 10**6
    for _ in range(40):
        nested = [nested] * 10
    itself = []
    itself.append(itself)
    for value in (nested, [text] * 1000, itself, {"key": nested}):
        torch.save({"model": value}, tmp_path / "file.pt")
        with pytest.raises(ValueError, match="its values, written out, are more than"):
            load_file(tmp_path / "file.pt", "cpu")


@pytest.mark.parametrize("place", ["model", "optimizer"])
def test_a_tensor_that_repeats_its_values_is_refused_wherever_it_is(place, tmp_path):
    torch.save(CONTENT | {place: {"state": [torch.zeros(1).expand(10**5, 10**5)]}}, tmp_path / "file.pt")
    taken, message = peak_memory(load_file, tmp_path / "file.pt", "cpu")
    assert "repeats its values" in message
    assert taken < 100  # MB


@pytest.mark.parametrize("followed", [False, True])
def test_torch_s_old_format_is_refused_even_with_an_archive_behind_it(followed, tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"model": [[0] * 10] * 10}, path, _use_new_zipfile_serialization=False)
    if followed:
        archive = io.BytesIO()
        torch.save(CONTENT, archive)
        path.write_bytes(path.read_bytes() + archive.getvalue())
        assert zipfile.is_zipfile(path)
    with pytest.raises(zipfile.BadZipFile, match="it is not an archive that torch writes"):
        load_file(path, "cpu")


def test_two_descriptions_and_a_long_one_are_refused(tmp_path, monkeypatch):
    save_file(tmp_path / "file.pt", CONTENT)
    with zipfile.ZipFile(tmp_path / "file.pt", "a") as file:
        file.writestr("other/data.pkl", pickle.dumps({}, protocol=2))
    with pytest.raises(zipfile.BadZipFile, match=r"it has not one part data\.pkl"):
        load_file(tmp_path / "file.pt", "cpu")
    monkeypatch.setattr(tensor_file, "MAX_PICKLE", 100)
    with pytest.raises(ValueError, match=r"it has not one part data\.pkl of at most 100 bytes"):
        save_file(tmp_path / "long.pt", CONTENT)


def archive(description):
    """Return an archive as torch writes it, with a description of 100 bytes, and the place of its list of parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("archive/data.pkl", description.ljust(100, b"."))
        parts.writestr("archive/version", b"3\n")
    return file.getvalue(), parts.start_dir


def test_an_archive_in_which_torch_finds_other_parts_than_zipfile_is_refused(tmp_path):
    harmless, _ = archive(pickle.dumps({}, protocol=2))
    evil, place = archive(pickle.dumps({"model": Call(bytearray, 3 * 10**8)}, protocol=2))
    whole = evil[:-22] + harmless  # the last list of parts is the harmless one
    stated = whole[:-6] + struct.pack("<I", place) + whole[-2:]  # but this is where the other one is
    path = tmp_path / "file.pt"
    path.write_bytes(stated)
    with zipfile.ZipFile(path) as parts:
        assert pickle.loads(parts.read("archive/data.pkl")) == {}
    assert len(torch.load(path, weights_only=True)["model"]) == 3 * 10**8  # torch reads the other one
    for content in (stated, whole, harmless + b"x", harmless[:-2] + b"\1\0x"):
        path.write_bytes(content)
        with pytest.raises(zipfile.BadZipFile, match=r"its list of parts is ambiguous|not a zip"):
            load_file(path, "cpu")


def test_a_long_end_record_must_be_where_its_locator_says(tmp_path):
    save_file(tmp_path / "file.pt", CONTENT)
    content = (tmp_path / "file.pt").read_bytes()
    assert content[-42:-38] == b"PK\6\7", "torch writes no long record, so the test shows nothing"
    for change in (-34, -56 - 42 + 48, -56 - 42 + 40, -6):  # the locator's place; start and length of the list, twice
        changed = bytearray(content)
        changed[change] ^= 1
        (tmp_path / "file.pt").write_bytes(changed)
        with pytest.raises(zipfile.BadZipFile):
            load_file(tmp_path / "file.pt", "cpu")
    (tmp_path / "file.pt").write_bytes(content)
    assert load_file(tmp_path / "file.pt", "cpu")["meta"] == CONTENT["meta"]


@pytest.mark.parametrize("other", ["archive/DATA.pkl", "archive/data.pkl\0x", "ARCHIVE/data.pkl", "archive/VERSION"])
def test_names_that_only_one_of_the_readers_takes_for_the_same_are_refused(other, tmp_path):
    save_file(tmp_path / "file.pt", CONTENT)
    with zipfile.ZipFile(tmp_path / "file.pt") as whole, zipfile.ZipFile(tmp_path / "changed.pt", "w") as changed:
        for name in whole.namelist():
            changed.writestr(f"archive/{name.partition('/')[2]}", whole.read(name))
        info = zipfile.ZipInfo("x")
        info.filename = other
        changed.writestr(info, pickle.dumps({}, protocol=2))
    with pytest.raises(zipfile.BadZipFile):
        load_file(tmp_path / "changed.pt", "cpu")


def test_a_description_that_needs_much_more_memory_than_its_size_is_refused(tmp_path):
    with_description(tmp_path / "file.pt", b"\x80\x02" + b"}" * (MAX_PICKLE - 10) + b".")
    taken, _ = peak_memory(load_file, tmp_path / "file.pt", "cpu")
    assert taken < 700  # MB
    with_description(tmp_path / "file.pt", b"\x80\x02" + b"}" * MAX_PICKLE + b".")
    with pytest.raises(zipfile.BadZipFile, match="it has not one part data"):
        load_file(tmp_path / "file.pt", "cpu")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_a_regular_file_is_opened(make, tmp_path):
    make(tmp_path / "file.pt")
    with pytest.raises(ValueError, match="is a link, or no file"):
        load_file(tmp_path / "file.pt", "cpu")

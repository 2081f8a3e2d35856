"""Weights of networks that were trained elsewhere: they are loaded exactly, or refused by what is wrong with them."""

import base64
import hashlib
import json
import logging

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from robreg.networks.pretrained import MAX_HEADER, load_pretrained, read_weights
from robreg.networks.user_defined import ArchitectureError

# Written by safetensors 0.8.0: {"a": [[0, 1], [2, 3]] in float32, "b": [-1] in int64, "c": 1.5 in bfloat16} and the
# metadata {"format": "pt"}.
WRITTEN_BY_SAFETENSORS = (
    "yAAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJwdCJ9LCJiIjp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOlsxXSwiZGF0"
    "YV9vZmZzZXRzIjpbMCw4XX0sImEiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzIsMl0sImRhdGFfb2Zmc2V0cyI6WzgsMjRdfSwi"
    "YyI6eyJkdHlwZSI6IkJGMTYiLCJzaGFwZSI6W10sImRhdGFfb2Zmc2V0cyI6WzI0LDI2XX19ICAgIP//////////AAAAAAAAgD8A"
    "AABAAABAQMA/"
)


def load(network, path):
    load_pretrained(network, path, hashlib.sha256(path.read_bytes()).hexdigest())
    return network


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(value, found) for (name, value), (other_name, found) in pairs)


def save_safetensors(weights, path, change=lambda header: None):
    """Write weights as https://huggingface.co/docs/safetensors describes; change: what is done to the header."""
    types = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in weights.items():
        content = value.contiguous().numpy().tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": types[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        data += content
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_network_of_torchvision_gets_exactly_the_weights_of_its_file(suffix, tmp_path):
    given, path = resnet18(num_classes=10).eval(), tmp_path / f"weights{suffix}"
    save = save_safetensors if suffix == ".safetensors" else torch.save
    save(given.state_dict(), path)
    loaded = load(resnet18(num_classes=10).eval(), path)
    assert same(loaded, given)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), given(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"epoch": 3, "best": 0.5, "state_dict": weights},
        lambda weights: {"model": weights, "args": {"lr": 0.1}},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    ],
)
def test_weights_are_found_below_the_keys_and_prefixes_of_training_scripts(wrap, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    given, path = small(), tmp_path / "weights.pt"
    torch.save(wrap(given.state_dict()), path)
    assert same(load(small(), path), given)
    removed = "the prefix module. of all names, which DataParallel adds, is removed" in caplog.text
    assert removed == (b"module." in path.read_bytes())


def test_a_network_with_weights_called_model_is_not_unwrapped(tmp_path):
    given, path = nn.ModuleDict({"model": nn.Linear(2, 2), "module": nn.Linear(2, 2)}), tmp_path / "weights.pt"
    torch.save(given.state_dict(), path)
    assert set(read_weights(path)) == set(given.state_dict())


def test_a_file_that_safetensors_wrote_is_read_exactly(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(base64.b64decode(WRITTEN_BY_SAFETENSORS))
    found = read_weights(path)
    assert found.keys() == {"a", "b", "c"}
    assert torch.equal(found["a"], torch.arange(4.0).view(2, 2))
    assert torch.equal(found["b"], torch.tensor([-1]))
    assert torch.equal(found["c"], torch.tensor(1.5, dtype=torch.bfloat16))
    assert found["c"].dtype == torch.bfloat16


def without(*names):
    return lambda weights: [weights.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("3.bias"), "does not fit its network: it lacks 3.bias; correct the callable"),
        (
            without("0.weight", "0.bias", "1.weight", "1.bias", "3.bias"),
            "it lacks 0.weight, 0.bias, 1.weight and 2 more",
        ),
        (lambda weights: weights.update(more=torch.zeros(1)), "it has no place for more; correct the callable"),
        (
            lambda weights: weights.update({"3.weight": torch.zeros(10, 16), "fc": torch.zeros(1)}),
            "it has no place for fc; it has other shapes 3.weight (10, 16) instead of (5, 16)",
        ),
        (
            lambda weights: weights.update({"3.bias": torch.zeros(5, dtype=torch.float16)}),
            "3.bias has type torch.float16, but the architecture defines it as torch.float32); convert the weights",
        ),
        (
            lambda weights: weights["3.bias"].fill_(torch.nan),
            "3.bias holds values that are not finite; give other weights",
        ),
    ],
)
@pytest.mark.parametrize("save", [torch.save, save_safetensors])
def test_weights_that_are_not_exactly_those_of_the_network_are_refused_by_name(save, change, message, tmp_path):
    path, network = tmp_path / ("weights.pt" if save is torch.save else "weights.safetensors"), small()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    change(weights)
    save(weights, path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ArchitectureError) as caught:
        load(network, path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (small(), "it holds a value of"),  # a whole network, which only its code can read
        ({"state_dict": None, "epoch": 3}, "'state_dict' in it is no tensor"),
        ({"layer": {"weight": torch.zeros(2)}}, "'layer' in it is no tensor"),
        ({"a": torch.zeros(1).expand(10**6)}, "repeats its values"),
        (torch.zeros(3), ""),
    ],
)
def test_a_file_that_holds_more_than_weights_by_name_is_refused(content, reason, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pt is damaged, or holds more than weights by name") as caught:
        read_weights(path)
    assert reason in str(caught.value)


def set_one(key, value):
    return lambda header: header["3.bias"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        set_one("shape", [6]),
        set_one("shape", [2**40]),
        set_one("shape", [-5]),
        set_one("shape", 5),
        set_one("dtype", "F64"),
        set_one("dtype", "F8_E4M3"),
        set_one("data_offsets", [0, 20]),
        set_one("data_offsets", [10**12, 10**12 + 20]),
        set_one("data_offsets", [0]),
        lambda header: header.pop("3.bias"),
        lambda header: header.pop("0.weight"),
        lambda header: header.update({"3.bias": "text"}),
    ],
)
def test_a_safetensors_file_whose_header_lies_is_refused(change, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(small().state_dict(), path, change)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 50, -1])
def test_a_safetensors_file_that_is_cut_is_refused(keep, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        read_weights(path)


def test_a_safetensors_file_with_a_header_of_any_length_takes_no_memory(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((MAX_HEADER + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="at most 16777216 are read"):
        read_weights(path)


def test_a_safetensors_file_with_bytes_that_belong_to_no_tensor_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(small().state_dict(), path)
    path.write_bytes(path.read_bytes() + b"\0" * 4)
    with pytest.raises(ValueError, match="it has bytes that belong to no tensor"):
        read_weights(path)


def test_another_file_than_the_planned_one_and_another_kind_of_file_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(small().state_dict(), path)
    with pytest.raises(ValueError, match=r"weights\.pt changed after this job was planned; start Snakemake again"):
        load_pretrained(small(), path, "0" * 64)
    with pytest.raises(ValueError, match=r"weights\.bin: weights are read from files that end in \.pt"):
        read_weights(path.rename(tmp_path / "weights.bin"))
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "missing.pt")

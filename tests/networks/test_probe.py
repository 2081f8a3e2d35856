"""A checkpoint shows whether the network that is built around its weights is still the one that was trained."""

import copy
import logging
import math

import pytest
import torch
from torch import nn

from robreg.networks import checkpoint
from robreg.networks.build import build_network
from robreg.networks.checkpoint import load_network, load_with_images
from robreg.networks.probe import IMAGES, MAX_PIXELS, TOLERANCE, make_probe, probe_difference
from robreg.networks.tensor_file import save_file
from robreg.runs.source_code import callable_code
from robreg.tables.provenance import code_hash

TARGET = f"{__name__}:Small"


class Small(nn.Module):
    """A network whose behaviour can be changed without a change of its weights."""

    pool, eps, random = staticmethod(torch.mean), 1e-5, 0.0

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=self.eps)
        self.linear = nn.Linear(8, num_classes)
        self.scale = 1.0

    def forward(self, x):
        features = self.norm(self.conv(x)).relu() * self.scale
        features = features + self.random * torch.randn_like(features)
        return self.linear(type(self).pool(features, dim=(2, 3)))


@pytest.fixture
def images():
    return torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path, images):
    """A checkpoint of a network with weights and statistics that are not the initial ones; and its content."""
    torch.manual_seed(1)
    factory = {"callable": TARGET, "arguments": {}, "code": callable_code(TARGET)}
    facts = {"width": 1, "shape": [3, 8, 8], "classes": 10, "mean": [0.5] * 3, "std": [0.2] * 3, "factory": factory}
    model = build_network("small", **facts)
    for _ in range(3):
        model(torch.rand(16, 3, 8, 8))
    meta = {"arch": "small", **facts, "dataset": "digits", "variant": "ar8-small", "seed": 0, "threads": 1}
    meta |= {"data_sha256": "0" * 64, "settings_hash": "abc", "version": "0", "torch": str(torch.__version__)}
    meta |= {"code_hash": code_hash(factory), "probe_images": IMAGES}
    content = {"model": model.state_dict(), "meta": meta, "probe": make_probe(model, images)}
    path = tmp_path / "checkpoint.pt"
    save_file(path, content)
    return path, content


def test_the_same_network_is_loaded_and_its_logits_are_those_recorded(saved, images, caplog):
    path, content = saved
    with caplog.at_level(logging.WARNING):
        model, _ = load_network(path, architecture=content["meta"])
    assert caplog.records == []
    assert content["probe"]["logits"].shape == (IMAGES, 10)
    assert torch.equal(content["probe"]["images"], images[:IMAGES])
    # v/255 - mean, over std, by hand
    x = (images[:IMAGES].float() / 255 - 0.5) / 0.2
    assert torch.allclose(model.network(x), content["probe"]["logits"], atol=1e-6)


@pytest.mark.parametrize(
    ("attribute", "value", "differs"),
    [("pool", staticmethod(torch.amax), True), ("eps", 1e-2, True), ("eps", 1e-5 * (1 + 1e-6), False)],
)
def test_a_network_whose_code_behaves_differently_is_refused(attribute, value, differs, saved, monkeypatch):
    monkeypatch.setattr(Small, attribute, value)
    if not differs:
        load_network(saved[0], architecture=saved[1]["meta"])
        return
    with pytest.raises(ValueError, match=r"is not the network that was trained: its logits differ by \S+ %") as caught:
        load_network(saved[0], architecture=saved[1]["meta"])
    assert "Nothing that is recorded has changed since, so its weights have, or code or files that are not" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"torch": "2.0"}, "torch was 2.0, is 2."),
        ({"code_hash": "other"}, "the code of robreg was edited"),
        (
            {"factory": {"code": {__name__: "0123", "helper": "4567"}}},
            f"helper was removed from .*{__name__} was edited",
        ),
    ],
)
def test_the_message_says_what_has_changed(change, reason, saved, monkeypatch):
    path, content = saved
    if "factory" in change:
        change["factory"] = content["meta"]["factory"] | change["factory"]
    save_file(path, {**content, "meta": content["meta"] | change})
    load_network(path, architecture=content["meta"])  # alone, none of these changes is a reason to refuse
    monkeypatch.setattr(Small, "pool", staticmethod(torch.amax))
    with pytest.raises(ValueError, match=f"Since then {reason}.*: undo that, or train again"):
        load_network(path, architecture=content["meta"])


@pytest.mark.parametrize("name", ["network.linear.weight", "network.norm.running_var"])
def test_a_changed_weight_or_buffer_is_refused(name, saved):
    path, content = saved
    weights = copy.deepcopy(content["model"])
    weights[name] *= 1.01
    save_file(path, {**content, "model": weights})
    with pytest.raises(ValueError, match="so its weights have"):
        load_network(path, architecture=content["meta"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logits", torch.full((IMAGES, 10), torch.nan)),
        ("logits", torch.zeros(IMAGES, 3)),
        ("images", torch.rand(8, 3)),
    ],
)
def test_a_damaged_probe_is_refused(key, value, saved):
    path, content = saved
    save_file(path, {**content, "probe": content["probe"] | {key: value}})
    with pytest.raises(ValueError, match=r"not the network that was trained|is damaged"):
        load_network(path, architecture=content["meta"])


def test_weights_that_no_longer_fit_are_explained_by_the_edited_code(saved, monkeypatch):
    path, content = saved
    factory = content["meta"]["factory"] | {"code": {__name__: "0123"}}
    save_file(path, {**content, "meta": content["meta"] | {"factory": factory}})
    monkeypatch.setattr(Small, "__init__", lambda self, num_classes: nn.Module.__init__(self))
    with pytest.raises(ValueError, match=f"not fit its architecture, whose code has changed .* {__name__} was edited"):
        load_network(path, architecture=content["meta"])


def test_an_older_checkpoint_is_read_with_a_warning(saved, caplog):
    path, content = saved
    meta = {key: value for key, value in content["meta"].items() if key != "probe_images"}
    save_file(path, {"model": content["model"], "meta": meta})
    with caplog.at_level(logging.WARNING):
        load_network(path, architecture=content["meta"])
    assert "holds no logits to compare with, so it cannot be verified" in caplog.text


@pytest.mark.parametrize("left", [None, 0, 3])
def test_a_checkpoint_that_lost_its_logits_is_refused(left, saved):
    path, content = saved
    probe = {name: value[:left] for name, value in content["probe"].items()}
    save_file(path, {**content, "probe": probe} if left is not None else {**content, "probe": None})
    with pytest.raises(ValueError, match="is damaged"):
        load_network(path, architecture=content["meta"])
    save_file(path, {key: value for key, value in content.items() if key != "probe"})
    with pytest.raises(ValueError, match="it has not the logits that its metadata announce"):
        load_network(path, architecture=content["meta"])


def test_recorded_images_of_another_shape_are_refused_before_they_are_evaluated(saved):
    path, content = saved
    images = torch.zeros(IMAGES, 3, 16, 16, dtype=torch.uint8)
    save_file(path, {**content, "probe": content["probe"] | {"images": images}})
    with pytest.raises(ValueError, match="its recorded images have another shape than its metadata state"):
        load_network(path, architecture=content["meta"])


@pytest.mark.parametrize("n", [1, IMAGES])
def test_recorded_images_that_are_too_large_are_refused_before_they_are_evaluated(n, saved):
    path, content = saved
    side = math.isqrt(MAX_PIXELS // n) + 1
    probe = {"images": torch.zeros(n, 3, side, side, dtype=torch.uint8), "logits": torch.zeros(n, 10)}
    meta = content["meta"] | {"shape": [3, side, side], "probe_images": n}
    save_file(path, {**content, "meta": meta, "probe": probe})
    with pytest.raises(ValueError, match="its recorded images are too many or too large"):
        load_network(path, architecture=content["meta"])


@pytest.mark.parametrize(("side", "n"), [(8, IMAGES), (200, 6), (512, 1), (513, 0)])
def test_fewer_images_are_recorded_if_they_are_large(side, n, saved, caplog):
    path, content = saved
    model, _ = load_network(path, architecture=content["meta"])
    probe = make_probe(model, torch.randint(0, 256, (9, 3, side, side), dtype=torch.uint8))
    assert (probe["images"].shape, probe["logits"].shape) == ((n, 3, side, side), (n, 10))
    meta = content["meta"] | {"shape": [3, side, side], "probe_images": n}
    save_file(path, {**content, "meta": meta, "probe": probe})
    with caplog.at_level(logging.WARNING):
        _, _, images = load_with_images(path, architecture=content["meta"])
    assert torch.equal(images, probe["images"])
    assert ("holds no logits to compare with" in caplog.text) == (n == 0)


class Caching(Small):
    """A network that keeps tensors: a mask from its first evaluation, and the features of its last one."""

    mask = None

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(8, device=x.device)
        self.features = self.norm(self.conv(x)).relu() * self.mask[:, None, None]
        return self.linear(self.features.mean((2, 3)))


def test_a_network_that_keeps_tensors_can_be_attacked_after_it_was_loaded(saved, images):
    path, content = saved
    facts = {key: content["meta"][key] for key in ("width", "shape", "classes", "mean", "std")}
    target = f"{__name__}:Caching"
    factory = {"callable": target, "arguments": {}, "code": callable_code(target)}
    model = build_network("caching", **facts, factory=factory)
    model(torch.rand(16, 3, 8, 8)).sum().backward()
    probe = make_probe(model.eval(), images)
    meta = content["meta"] | {"arch": "caching", "factory": factory}
    save_file(path, {"model": model.state_dict(), "meta": meta, "probe": probe})
    loaded, _ = load_network(path, architecture=meta)
    assert loaded.network.mask is None  # it would stay on the CPU if the network moved to another device
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    loaded(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("returned", "found"), [(lambda y: (y, y), "a tuple"), (lambda y: y[0], r"\(10,\)")])
def test_a_network_that_returns_no_logits_is_refused(returned, found, saved, images, monkeypatch):
    model, _ = load_network(saved[0], architecture=saved[1]["meta"])
    forward = Small.forward
    monkeypatch.setattr(Small, "forward", lambda self, x: returned(forward(self, x)))
    with pytest.raises(ValueError, match=rf"the network returned {found} for 8 images; it must return logits"):
        make_probe(model, images)


def test_a_network_that_is_random_in_eval_mode_is_recognised(saved, images, monkeypatch):
    monkeypatch.setattr(Small, "random", 1.0)
    content = saved[1]
    facts = {key: content["meta"][key] for key in ("width", "shape", "classes", "mean", "std", "factory")}
    model = build_network("small", **facts)
    model.load_state_dict(content["model"])
    state = torch.random.get_rng_state()
    probe = make_probe(model, images)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    assert probe_difference(model, probe) == 0


@pytest.mark.parametrize("arch", ["resnet8", "resnet56", "wrn50"])
def test_the_tolerance_is_above_rounding_and_below_half_precision(arch):
    torch.manual_seed(0)
    model = build_network(arch, width=16, shape=(3, 32, 32), classes=10, mean=[0.5] * 3, std=[0.25] * 3).eval()
    for weight in model.parameters():
        if weight.abs().max() == 0 and weight.ndim > 1:  # those that Fixup starts with: 0 would hide all rounding
            nn.init.normal_(weight, std=0.05)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    exact = make_probe(model, images)
    with torch.backends.mkldnn.flags(enabled=False):
        assert probe_difference(model, exact) < TOLERANCE / 10
    one_by_one = torch.cat([make_probe(model, image[None])["logits"] for image in images])
    assert probe_difference(model, {"images": images, "logits": one_by_one}) < TOLERANCE / 10
    with torch.autocast("cpu", torch.bfloat16):
        assert probe_difference(model, exact) > 10 * TOLERANCE


def test_what_is_loaded_is_compared(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "probe_difference", lambda *_: 2 * TOLERANCE)
    with pytest.raises(ValueError, match=r"its logits differ by 0\.02 %"):
        load_network(saved[0], architecture=saved[1]["meta"])

"""Tests of the networks: the paper's numbers, initialisation, blocks against another implementation, checkpoints."""

import copy
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.peak_memory import peak_memory
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import wide_resnet50_2
from torchvision.transforms.functional import normalize

from robreg.networks.build import build_network
from robreg.networks.checkpoint import load_network
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.fixup_resnet import FixupResNet, ResidualBlock
from robreg.networks.user_defined import build_user_network
from robreg.networks.wide_resnet import wide_resnet50
from robreg.training import loop

H200 = Path(__file__).parents[3] / "shared/h200"


def make(arch: str, *, classes: int = 10, width: int = 16, shape: tuple[int, ...] = (3, 32, 32)) -> Classifier:
    channels = shape[0]
    return build_network(arch, width=width, shape=shape, classes=classes, mean=[0.5] * channels, std=[0.25] * channels)


@pytest.mark.parametrize(
    ("arch", "classes", "convolutions", "conv_weights", "linear"),
    [
        ("resnet56nobias", 10, 55, 848_304, 650),
        ("resnet56nobias", 100, 55, 848_304, 6_500),
        ("resnet110nobias", 10, 109, 1_719_216, 650),
        ("resnet56", 10, 55, 848_304, 650),
        ("resnet8", 10, 7, 74_160, 650),
        ("fixup56", 10, 55, 848_304, 650),
    ],
)
def test_the_numbers_of_layers_and_weights_are_the_papers(
    arch: str, classes: int, convolutions: int, conv_weights: int, linear: int
) -> None:
    model = make(arch, classes=classes)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(convs) == convolutions
    assert sum(conv.weight.numel() for conv in convs) == conv_weights
    assert len(linears) == 1
    assert sum(parameter.numel() for parameter in linears[0].parameters()) == linear
    blocks = (convolutions - 1) // 2
    scalars = 0 if "nobias" in arch else 4 * blocks + 2 if "resnet" in arch else 5 * blocks + 2
    assert sum(parameter.numel() for parameter in model.parameters()) == conv_weights + linear + scalars


def test_there_is_no_batch_normalisation_no_dropout_and_only_the_last_layer_has_a_bias() -> None:
    model = make("resnet56nobias")
    found = {type(module) for module in model.modules()}
    assert found == {Classifier, Normalise, FixupResNet, ResidualBlock, nn.Sequential, nn.Conv2d, nn.Linear}
    biases = [name for name, _ in model.named_parameters() if not name.endswith("weight")]
    assert biases == ["network.linear.bias"]
    assert {name for name, _ in model.named_buffers()} == {"normalise.mean", "normalise.std"}


@pytest.mark.parametrize("arch", ["resnet8", "resnet56nobias", "fixup8"])
def test_all_logits_are_exactly_0_at_initialisation(arch: str) -> None:
    model = make(arch)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), torch.zeros(2, 10))
    nn.init.ones_(model.network.linear.weight)
    assert model(x).abs().max() > 0  # the features are not 0


@pytest.mark.parametrize("depth", [2, 7, 9, 55, 57, 0, -4])
def test_a_depth_other_than_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"must be 6n.2 with n >= 1, not {depth}"):
        FixupResNet(depth, 3, 10)


@pytest.mark.parametrize("arch", ["wrn51", "ResNet56", "resnet", "resnet-8", "resnet8x", "fixup8nobias", "nobias8", ""])
def test_an_unknown_architecture_is_refused_by_name(arch: str) -> None:
    with pytest.raises(ValueError, match=repr(arch)):
        make(arch)


@pytest.mark.parametrize("width", [3, 16])
def test_the_stages_have_width_2_width_and_4_width_channels(width: int) -> None:
    model = make("resnet20", width=width).network
    assert model.stem.out_channels == width
    for number, stage in enumerate(model.stages):
        assert len(stage) == 3
        assert {block.conv2.out_channels for block in stage} == {width * 2**number}
        assert [block.conv1.stride[0] for block in stage] == [1 if number == 0 else 2, 1, 1]
    assert model.linear.in_features == 4 * width


@pytest.mark.parametrize("arch", ["resnet56", "resnet56nobias", "fixup56"])
def test_the_initialisation_is_that_of_fixup(arch: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(arch).network
    for name, scalar in model.named_parameters():
        assert scalar.ndim or scalar == name.endswith("scale")
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 27
    for block in blocks:
        weight = block.conv1.weight.detach()
        std = math.sqrt(2 / (weight.shape[0] * 9)) * 27**-0.5  # L^(-1/(2m-2)) with m = 2
        assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * weight.numel())
        assert abs(weight.mean() / std) < 5 / math.sqrt(weight.numel())
        assert not block.conv2.weight.any()
    assert not model.linear.weight.any()
    assert not model.linear.bias.any()


@pytest.mark.parametrize(
    ("arch", "zeros", "unread"),
    [("resnet8nobias", [0, 4, 12], 12), ("resnet8", [0, 0, 0], 0), ("fixup8", [0, 0, 0], 0)],
)
def test_only_without_fixups_biases_the_channels_that_a_stage_adds_stay_zero(
    arch: str, zeros: list[int], unread: int
) -> None:
    torch.manual_seed(0)
    model = make(arch, width=4, shape=(3, 8, 8))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.rand(64, 3, 8, 8), torch.arange(64) % 10
    for _ in range(20):
        sgd.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        sgd.step()
    dead = [int((stage[0].conv2.weight.flatten(1) == 0).all(1).sum()) for stage in model.network.stages]
    assert dead == zeros  # of 4, 8 and 16 channels, because a ReLU's gradient at exactly 0 is 0
    assert int((model.network.linear.weight == 0).all(0).sum()) == unread


def test_the_stem_keeps_pytorchs_initialisation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = make("resnet8", width=64).network.stem.weight
        torch.manual_seed(0)
        expected = nn.Conv2d(3, 64, 3, padding=1, bias=False).weight
    assert torch.equal(stem, expected)
    assert 0.99 / math.sqrt(27) < stem.abs().max() <= 1 / math.sqrt(27)  # uniform in +-1 / sqrt(fan-in)


SCALARS = {"resnet": "biases", "nobias": "none", "fixup": "all"}


class AuthorsBlock(nn.Module):
    """The block of Fixup's code for CIFAR, with all scalars."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.downsample = nn.AvgPool2d(1, stride=stride) if stride != 1 or c_in != c_out else None
        for name, value in (("bias1a", 0.0), ("bias1b", 0.0), ("bias2a", 0.0), ("scale", 1.0), ("bias2b", 0.0)):
            self.register_parameter(name, nn.Parameter(torch.tensor([value])))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x + self.bias1a)
        out = functional.relu(out + self.bias1b)
        out = self.conv2(out + self.bias2a)
        out = out * self.scale + self.bias2b
        if self.downsample is not None:
            identity = self.downsample(x + self.bias1a)
            missing = out.shape[1] - identity.shape[1]
            identity = torch.cat((identity, torch.zeros_like(identity[:, :1]).expand(-1, missing, -1, -1)), 1)
        return functional.relu(out + identity)


class AuthorsNet(nn.Module):
    """The network of Fixup's code for CIFAR, of three stages of one block each, with all scalars."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        blocks = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.stages = nn.Sequential(*[nn.Sequential(AuthorsBlock(*sizes)) for sizes in blocks])
        self.linear = nn.Linear(4 * width, 10)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x) + self.bias1)
        x = self.stages(x).mean((2, 3))
        return self.linear(x + self.bias2)


def copy_into(theirs: nn.Module, ours: nn.Module) -> None:
    """Give the authors' module our weights; the scalars that we have not keep 0 or 1, and are not trained."""
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in own:
                parameter.copy_(own[name].view_as(parameter))
            else:
                parameter.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("scalars", SCALARS.values())
@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(4, 4, 1), (4, 8, 2), (3, 4, 1), (4, 4, 2)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5)])
def test_a_block_equals_that_of_the_fixup_authors(
    scalars: str, c_in: int, c_out: int, stride: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    block, theirs = ResidualBlock(c_in, c_out, stride, scalars).double(), AuthorsBlock(c_in, c_out, stride).double()
    own = {name: parameter for name, parameter in block.named_parameters() if parameter.ndim == 0}
    assert (
        own.keys()
        == {
            "none": set(),
            "biases": {"bias1a", "bias1b", "bias2a", "bias2b"},
            "all": {"bias1a", "bias1b", "bias2a", "bias2b", "scale"},
        }[scalars]
    )
    for parameter in own.values():
        nn.init.uniform_(parameter, -1, 1)
    copy_into(theirs, block)
    x = torch.randn(2, c_in, *size, dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs(x))
    nn.init.zeros_(block.conv2.weight)
    if scalars == "none":
        shortcut = block(x)
        assert torch.equal(shortcut[:, :c_in], x[:, :, ::stride, ::stride].relu())
        assert not shortcut[:, c_in:].any()


@pytest.mark.parametrize("arch", ["resnet8", "resnet8nobias", "fixup8"])
def test_a_network_and_its_training_equal_those_of_the_fixup_authors(arch: str) -> None:
    torch.manual_seed(0)
    model, theirs = make(arch, width=4, shape=(3, 16, 16)).double(), AuthorsNet(4).double()
    copy_into(theirs, model.network)
    scalars = {"resnet8": {"scalars": "biases"}, "resnet8nobias": {}, "fixup8": {"scalars": "all"}}[arch]
    ours = [group | {"lr": 0.1 * group.get("lr_factor", 1)} for group in loop._parameter_groups(model, scalars)]
    named = {name: one for name, one in theirs.named_parameters() if one.requires_grad}
    small = [one for name, one in named.items() if scalars and ("bias" in name or "scale" in name)]  # as in their code
    rest = [one for name, one in named.items() if not any(one is other for other in small)]
    theirs_in_groups = [{"params": rest}, *([{"params": small, "lr": 0.01}] if small else [])]
    optimisers = [
        torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4) for groups in (ours, theirs_in_groups)
    ]
    x, y = torch.rand(20, 3, 16, 16, dtype=torch.float64), torch.arange(20) % 10
    for _ in range(4):
        outputs = [model(x), theirs(model.normalise(x))]
        torch.testing.assert_close(*outputs)
        for optimiser, logits in zip(optimisers, outputs, strict=True):
            optimiser.zero_grad()
            functional.cross_entropy(logits, y).backward()
            optimiser.step()
    own = dict(model.network.named_parameters())
    assert len(own) == {"resnet8": 23, "resnet8nobias": 9, "fixup8": 26}[arch]
    for name, parameter in theirs.named_parameters():
        if name in own:
            torch.testing.assert_close(own[name].view_as(parameter), parameter)
            assert own[name].grad.abs().max() > 0 or name.endswith("conv1.weight")


def test_normalise_equals_torchvisions() -> None:
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.25, 0.3]
    x = torch.rand(2, 3, 5, 4)
    torch.testing.assert_close(Normalise(mean, std)(x), normalize(x, mean, std))


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5, 0.5], [0.2]), ([0.5], [math.nan])])
def test_normalise_refuses_what_it_cannot_divide_by(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="std"):
        Normalise(mean, std)


def test_training_and_eval_mode_give_the_same_outputs(net: Callable[..., Classifier]) -> None:
    model, x = net(), torch.rand(3, 1, 8, 8)
    evaluated = model.eval()(x)
    assert torch.equal(model.train()(x), evaluated)


# Checkpoints

META = {
    "arch": "resnet8nobias",
    "width": 4,
    "shape": [1, 8, 8],
    "classes": 10,
    "mean": [0.3],
    "std": [0.2],
    "factory": None,
}
META |= {"dataset": "digits", "variant": "ar8", "seed": 0, "threads": 1, "data_sha256": "0" * 64}
META |= {"settings_hash": "abc", "version": "0.1.0", "note": "kept"}


COLOURED = {"shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3}
NORMALISE = {"normalise.mean": torch.full((3, 1, 1), 0.5), "normalise.std": torch.full((3, 1, 1), 0.2)}


@pytest.fixture
def content(net: Callable[..., Classifier]) -> dict[str, Any]:
    return {"model": net().train().state_dict(), "meta": dict(META)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_a_loaded_checkpoint_is_in_eval_mode_and_complete(
    content: dict[str, Any], path: Path, net: Callable[..., Any]
) -> None:
    torch.save(content, path)
    model, meta = load_network(path)
    assert meta == META
    assert not any(module.training for module in model.modules())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x), net()(x))
    assert model.state_dict().keys() == content["model"].keys()


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_a_truncated_checkpoint_is_refused_by_name(content: dict[str, Any], path: Path, share: float) -> None:
    torch.save(content, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@pytest.mark.parametrize(
    "garbage", [b"hello\n", b"{}", b"\x00" * 100, b"\x80\x02.", b"X\x01\x00\x00\x00\x86.", b"0", b"PK\x03\x04"]
)
def test_garbage_is_refused_by_name(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 8},
        {"classes": 3},
        {"shape": [3, 8, 8]},
        {"arch": "resnet14"},
        {"arch": "resnet9"},
        {"arch": "wrn50"},
        {"arch": None},
        {"mean": [0.3, 0.4]},
        {"std": [0.0]},
        {"mean": [0.31]},
        {"std": [0.21]},
        {"threads": None},
        {"threads": True},
        {"seed": "0"},
        {"data_sha256": 0},
        {"variant": ["ar8"]},
    ],
)
def test_weights_that_do_not_match_the_metadata_are_refused_by_the_files_name(
    content: dict[str, Any], path: Path, change: dict[str, Any]
) -> None:
    content["meta"] |= change
    torch.save(content, path)
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "x" * 10**4},
        {"width": True},
        {"width": 0},
        {"classes": 1.0},
        {"classes": [10]},
        {"shape": [1, 8]},
        {"shape": [1, 8.0, 8]},
        {"shape": "188"},
        {"mean": [[0.3]]},
        {"mean": ["0.3"]},
        {"std": {"0": 0.2}},
        {"factory": "os:mkdir"},
        {"factory": {"callable": "os:mkdir", "arguments": [1]}},
    ],
)
def test_a_description_of_another_form_is_refused_before_anything_is_made_of_it(change, content, path):
    torch.save({**content, "meta": META | change}, path)
    with pytest.raises(ValueError, match=rf"{next(iter(change))} is not what a checkpoint of this project has"):
        load_network(path)


@pytest.mark.parametrize("lost", ["arch", "width", "std", "threads", "data_sha256", "settings_hash", "dataset"])
def test_metadata_without_a_key_are_refused(content: dict[str, Any], path: Path, lost: str) -> None:
    del content["meta"][lost]
    torch.save(content, path)
    refused(path)


@pytest.mark.parametrize("wrong", [[1, 2], 3, "text", {}, {"meta": {}}, {"meta": META}, {"meta": META, "model": []}])
def test_other_content_is_refused(path: Path, wrong: object) -> None:
    torch.save(wrong, path)
    refused(path)


def test_a_bare_state_dict_is_refused(content: dict[str, Any], path: Path) -> None:
    torch.save(content["model"], path)
    refused(path)


@pytest.mark.parametrize("lost", ["network.stem.weight", "normalise.mean", "network.linear.bias"])
def test_a_missing_or_an_unknown_weight_is_refused(content: dict[str, Any], path: Path, lost: str) -> None:
    content["model"][lost + "_old"] = content["model"].pop(lost)
    torch.save(content, path)
    refused(path)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.complex64, torch.int32])
def test_weights_of_another_type_are_refused_not_converted(content: dict[str, Any], path: Path, kind: Any) -> None:
    content["model"]["network.stem.weight"] = content["model"]["network.stem.weight"].to(kind)
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt .*network\.stem\.weight has type {kind}, but"):
        load_network(path)


class Payload:
    """Create a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(content: dict[str, Any], path: Path, tmp_path: Path, how: str) -> None:
    content["meta"]["payload"] = Payload(tmp_path / "pwned")
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["meta"], protocol=2))
    refused(path)
    assert not (tmp_path / "pwned").exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert (tmp_path / "pwned").exists(), "the payload does nothing, so the test shows nothing"


def test_a_missing_checkpoint_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt"):
        load_network(path)


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        load_network(path)


def test_the_wide_resnet_is_torchvisions_except_for_its_stem_and_initialisation() -> None:
    with torch.device("meta"):
        ours, theirs = wide_resnet50(3, 200, 64), wide_resnet50_2(num_classes=200)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert shapes.pop("conv1.weight") == (64, 3, 7, 7)
    found = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert found.pop("conv1.weight") == (64, 3, 3, 3)
    assert found == shapes
    assert (ours.conv1.stride, ours.conv1.padding) == ((1, 1), (1, 1))
    wide = [module.out_channels for module in ours.modules() if isinstance(module, nn.Conv2d) and module.padding[0]]
    assert wide[1:] == [128] * 3 + [256] * 4 + [512] * 6 + [1024] * 3
    assert sum(isinstance(module, nn.BatchNorm2d) for module in ours.modules()) == 53


def test_the_wide_resnet_keeps_the_image_size_up_to_its_second_stage() -> None:
    model = make("wrn50", classes=5, width=4, shape=(3, 24, 24)).eval()
    sizes = []
    for stage in (model.network.layer1, model.network.layer4):
        stage.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 5)
    assert sizes == [(24, 24), (3, 3)]


def test_the_wide_resnets_convolutions_are_xavier_uniform() -> None:
    torch.manual_seed(0)
    for module in wide_resnet50(3, 10, 32).modules():
        if isinstance(module, nn.Conv2d):
            fan_in, fan_out = (channels * math.prod(module.kernel_size) for channels in module.weight.shape[1::-1])
            limit = math.sqrt(6 / (fan_in + fan_out))
            assert 0.95 * limit < module.weight.abs().max() <= limit
            assert float(module.weight.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.1)


def test_a_user_defined_network_is_built_by_name_and_loaded_from_its_checkpoint(tmp_path: Path) -> None:
    factory = {"callable": "torchvision.models:squeezenet1_1", "arguments": {"dropout": 0.0}}
    facts = {"width": 1, "shape": [3, 32, 32], "classes": 7, "mean": [0.5] * 3, "std": [0.2] * 3, "factory": factory}
    model = build_network("squeeze", **facts).eval()
    torch.save({"model": model.state_dict(), "meta": META | {"arch": "squeeze", **facts}}, tmp_path / "checkpoint.pt")
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    network = torchvision.models.squeezenet1_1(num_classes=7, dropout=0.0)
    for architecture in ({"arch": "squeeze", "width": 1, "factory": factory}, network):
        back, _ = load_network(tmp_path / "checkpoint.pt", architecture=architecture)
        assert torch.equal(back(x), model(x))


def wrongly_annotated(num_classes: int) -> nn.Module:
    return {"classes": num_classes}  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("no.such:thing", {}, "'no.such:thing' cannot be imported .*install it"),
        ("torch.nn:NoSuch", {}, "'torch.nn:NoSuch' cannot be imported"),
        ("torch.nn:Linear", {}, "'torch.nn:Linear' cannot be called .*must take num_classes"),
        ("torchvision.models:vgg11", {"depth": 3}, "'torchvision.models:vgg11' cannot be called .*depth"),
        (
            "builtins:dict",
            {},
            "'builtins:dict' is not declared to return an nn.Module; name a subclass of nn.Module, or annotate",
        ),
        (
            f"{__name__}:wrongly_annotated",
            {},
            f"'{__name__}:wrongly_annotated' returned a dict, not an nn.Module; use a callable that does",
        ),
    ],
)
def test_a_callable_that_gives_no_network_is_refused_by_name(
    path: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"architectures: callable {message}"):
        build_user_network({"callable": path, "arguments": arguments}, 10)


def test_a_checkpoint_whose_architecture_is_not_installed_is_not_reported_as_damaged(tmp_path: Path) -> None:
    facts = {"width": 1, "shape": [3, 32, 32], "classes": 7, "mean": [0.5] * 3, "std": [0.2] * 3}
    meta = META | {"arch": "far", **facts, "factory": {"callable": "no.such:thing", "arguments": {}}}
    torch.save({"model": NORMALISE, "meta": meta}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"'no\.such:thing' cannot be imported .*install it") as caught:
        load_network(tmp_path / "checkpoint.pt", architecture=meta)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("os:mkdir", {"path": "CALLED"}),
        ("pathlib:Path.touch", {"self": "CALLED"}),
        ("subprocess:Popen", {"args": ["touch", "CALLED"]}),
        ("builtins:open", {"file": "CALLED", "mode": "w"}),
        ("snakemake.shell:shell", {"cmd": "touch CALLED"}),
    ],
)
def test_a_checkpoint_cannot_make_anything_but_networks_be_called(path, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = {key: value for key, value in META.items() if key not in ("arch", "factory")}
    meta = {"arch": "evil", **facts, "factory": {"callable": path, "arguments": arguments}}
    torch.save({"model": NORMALISE, "meta": meta | COLOURED}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="user-defined architecture 'evil', and what a file names is not imported"):
        load_network(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"is not declared to return an nn\.Module"):
        load_network(tmp_path / "checkpoint.pt", architecture=meta)
    assert not (tmp_path / "CALLED").exists()


def test_code_beside_a_checkpoint_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "from pathlib import Path\nPath('RAN').touch()\nfrom torch.nn import Identity as Net\n"
    (tmp_path / "results/evil").mkdir(parents=True)
    (tmp_path / "results/evil/net.py").write_text(code)
    factory = {"callable": "results.evil.net:Net", "arguments": {}, "code": {"results.evil.net": "0"}}
    meta = META | COLOURED | {"factory": factory}
    torch.save({"model": NORMALISE, "meta": meta}, tmp_path / "checkpoint.pt")
    own = {"arch": "resnet8", "width": 4, "factory": None}
    reasons = {
        "what a file names is not imported": None,
        "but by config.yaml": own,
        "its architecture": nn.Linear(2, 2),
    }
    for reason, architecture in reasons.items():
        with pytest.raises(ValueError, match=re.escape(reason)):
            load_network(tmp_path / "checkpoint.pt", architecture=architecture)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    "own",
    [
        {"arch": "resnet14"},
        {"width": 8},
        {"arch": "mynet", "factory": {"callable": "mynet:Net", "arguments": {}}},
    ],
)
def test_a_checkpoint_of_another_architecture_than_the_run_s_is_refused_with_both(own, content, path):
    torch.save(content, path)
    architecture = {key: META[key] for key in ("arch", "width", "factory")}
    assert load_network(path, architecture=architecture)[1] == META
    both = (
        r"is resnet8nobias of width 4, but by config\.yaml that of its run is (resnet14|\S+ of width 8|.* by mynet:Net)"
    )
    with pytest.raises(ValueError, match=both):
        load_network(path, architecture=architecture | own)


def test_the_order_of_an_architecture_s_arguments_does_not_matter(content, path):
    arguments = {"num_layers": 2, "nested": {"a": 1, "b": 2}}
    factory = {"callable": "mynet:Net", "arguments": arguments, "code": {"mynet": "0"}}
    torch.save({**content, "meta": META | {"arch": "mynet", "factory": factory}}, path)
    other = {"nested": {"b": 2, "a": 1}, "num_layers": 2}
    own = {"arch": "mynet", "width": 4, "factory": {"callable": "mynet:Net", "arguments": other}}
    with pytest.raises(ValueError, match="No module named 'mynet'"):  # it is built: what is stated agrees
        load_network(path, architecture=own)
    own["factory"]["arguments"] = other | {"num_layers": 3}
    with pytest.raises(ValueError, match=r"but by config\.yaml that of its run is mynet"):
        load_network(path, architecture=own)


def test_text_of_a_checkpoint_is_printed_shortened_and_without_what_a_terminal_obeys(content, path):
    meta = META | {"factory": {"callable": "mynet:Net\x1b[2J", "arguments": {"a": "x" * 10**5}}}
    torch.save({**content, "meta": meta}, path)
    with pytest.raises(ValueError, match=r"mynet:Net\\x1b") as caught:
        load_network(path, architecture={key: META[key] for key in ("arch", "width", "factory")})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("change", [{"arch": "resnet6000002"}, {"width": 3000}, {"classes": 10**9}, {"width": 10**9}])
def test_a_checkpoint_that_states_a_huge_network_is_refused_without_building_it(change, content, path):
    torch.save({**content, "meta": content["meta"] | change}, path)
    refused(path)
    assert peak_memory(load_network, path)[0] < 200  # MB


@pytest.mark.parametrize("arch", ["resnet8", "resnet14"])
def test_a_checkpoint_of_before_there_were_biases_is_read_as_the_network_without_them(arch, path):
    torch.manual_seed(0)
    model = make(f"{arch}nobias", width=4, shape=(1, 8, 8))
    nn.init.normal_(model.network.linear.weight)
    meta = META | {"arch": arch, "mean": [0.5], "std": [0.25]}
    torch.save({"model": model.state_dict(), "meta": meta}, path)
    own = {"width": 4, "factory": None}
    loaded, found = load_network(path, architecture={"arch": f"{arch}nobias", **own})
    assert found == meta | {"arch": f"{arch}nobias"}
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(ValueError, match=f"states that its network is {arch}nobias .* that of its run is {arch} of"):
        load_network(path, architecture={"arch": arch, **own})


@pytest.mark.skipif(not H200.exists(), reason="needs the networks that were trained on an H200")
def test_the_networks_of_the_h200_are_read_as_those_without_biases():
    for ar in (0, 4, 8, 16):
        model, meta = load_network(H200 / f"ar{ar}/checkpoint.pt")
        assert (meta["arch"], meta["variant"]) == ("resnet56nobias", f"ar{ar}")
        assert len(list(model.network.parameters())) == 57


def test_weights_that_a_small_file_repeats_are_refused(content, path):
    content["model"]["network.stem.weight"] = torch.zeros(1).expand(4, 1, 3, 3)
    torch.save(content, path)
    refused(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(method, content, path):
    torch.save(content, path)
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, data in parts.items():
            packed.writestr(name, data)
        packed.writestr("archive/data/bomb", bytes(10**8))
    assert path.stat().st_size < 10**6
    taken, message = peak_memory(load_network, path)
    assert "it holds compressed data, which no checkpoint does" in message
    assert taken < 50  # MB


def test_a_checkpoint_whose_parts_overlap_is_refused(content, path):
    torch.save(content, path)
    with zipfile.ZipFile(path, "a") as whole:
        largest = max(whole.infolist(), key=lambda one: one.file_size)
        for number in range(200):
            again = copy.copy(largest)
            again.filename = f"archive/data/{1000 + number}"
            whole.filelist.append(again)
            whole.NameToInfo[again.filename] = again
        whole._didModify = True
    with pytest.raises(ValueError, match=r"its parts are larger than the file|is damaged"):
        load_network(path)

"""Spectra of every kind of convolution and network: against matrices that torch's own functions build."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import robreg
from robreg.measures import spectra
from robreg.measures.spectra import describe_live_part
from robreg.networks.build import build_network
from robreg.networks.classifier import Classifier, Normalise
from robreg.spectra.lanczos import estimate_spectrum
from robreg.spectra.layers import Layer, list_layers, unmeasured
from robreg.spectra.live import reachable_inputs
from robreg.spectra.projection import refuse_unbounded
from robreg.spectra.singular_values import exact_singular_values, summarise_spectrum
from robreg.tables import parquet

Matrix = npt.NDArray[np.float64]
SHAPE = (4, 6, 9)


def torch_matrix(module: nn.Module, shape: tuple[int, ...], **changed: Any) -> Matrix:
    """Return the matrix that torch's own layer applies to a flattened image; changed: attributes of a copy of it."""
    copied = type(module)(**settings_of(module) | changed).double()
    with torch.no_grad():
        copied.weight.copy_(module.weight)
        units = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
        return copied(units).flatten(1).T.numpy()


def settings_of(module: Any) -> dict[str, Any]:
    keys = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        keys.append("output_padding")
    return {"bias": False} | {key: getattr(module, key) for key in keys}


def repeated(found: tuple[Tensor, Tensor]) -> Matrix:
    return np.repeat(found[0].numpy(), found[1].numpy())


def conv(kind: type = nn.Conv2d, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3} | options)


CIRCULAR = {
    "grouped": conv(groups=2, padding=1),
    "depthwise": conv(out_channels=8, groups=4, padding=1, stride=3),
    "depthwise 1x1": conv(out_channels=8, kernel_size=1, groups=4, stride=3),
    "dilated": conv(dilation=2, padding=2),
    "dilated, wraps around": conv(dilation=(3, 4), padding=(3, 4)),
    "rectangular": conv(kernel_size=(3, 5), padding=(1, 2), stride=(2, 1)),
    "named padding": conv(kernel_size=(1, 5), dilation=(1, 2), groups=2, padding="same"),
}
APPLIED = {
    "valid": conv(padding="valid"),
    "valid, grouped": conv(groups=2, stride=2),
    "depthwise": conv(out_channels=4, groups=4, stride=2, padding=1),
    "one side": conv(padding=(1, 0)),
    "more padding": conv(padding=3),
    "uneven stride": conv(stride=4, padding=1),
    "stride of one axis": conv(stride=(1, 2), padding=1),
    "rectangular, dilated": conv(kernel_size=(1, 3), dilation=(1, 2)),
    "reflect": conv(padding=2, padding_mode="reflect"),
    "replicate": conv(padding=2, padding_mode="replicate", groups=2),
    "circular": conv(padding=(2, 3), padding_mode="circular"),
    "transposed": conv(nn.ConvTranspose2d, stride=2, padding=1, output_padding=1),
    "transposed, grouped": conv(nn.ConvTranspose2d, kernel_size=(2, 3), groups=2, dilation=(1, 2)),
}


@pytest.mark.parametrize("module", CIRCULAR.values(), ids=CIRCULAR)
def test_a_circular_spectrum_is_that_of_torchs_circular_padding(module: nn.Conv2d) -> None:
    expected = np.linalg.svd(torch_matrix(module, SHAPE, padding_mode="circular"), compute_uv=False)
    found = robreg.singular_values(module, SHAPE, dense=0)
    assert Layer("one", module, *SHAPE[1:]).operator == "circular"
    np.testing.assert_allclose(repeated(found), expected, atol=1e-10)


@pytest.mark.parametrize("module", APPLIED.values(), ids=APPLIED)
def test_without_a_circular_operator_the_spectrum_is_of_what_torch_applies(module: Any) -> None:
    expected = np.linalg.svd(torch_matrix(module, SHAPE), compute_uv=False)
    layer = Layer("one", module, *SHAPE[1:])
    mode = "zero" if module.padding_mode == "zeros" else module.padding_mode
    assert layer.operator == f"{mode}-padded"
    assert (layer.facts()["rows"], layer.facts()["columns"]) == torch_matrix(module, SHAPE).shape
    np.testing.assert_allclose(repeated(robreg.singular_values(module, SHAPE)), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("module", "padding_mode"),
    [
        (conv(nn.Conv1d, padding=1, groups=2), "circular"),
        (conv(nn.Conv1d, stride=2), "zeros"),
        (conv(nn.ConvTranspose1d, stride=2, dilation=2), "zeros"),
    ],
)
def test_convolutions_of_sequences_are_measured(module: Any, padding_mode: str) -> None:
    expected = np.linalg.svd(torch_matrix(module, (4, 9), padding_mode=padding_mode), compute_uv=False)
    np.testing.assert_allclose(repeated(robreg.singular_values(module, (4, 9))), expected, atol=1e-10)
    with pytest.raises(ValueError, match=r"input_shape must be \(C, W\) or \(W,\)"):
        robreg.singular_values(module, (1, 4, 9))


def test_one_group_decides_whether_a_matrix_is_too_large() -> None:
    depthwise = conv(out_channels=4, groups=4, stride=2)  # 8 x 54 in each group
    assert robreg.singular_values(depthwise, SHAPE, dense=14)[0].shape == (32,)
    for dense in (7, 13):
        with pytest.raises(ValueError, match=r"has 32 rows and 216 columns in 4 groups: give a larger value of dense"):
            robreg.singular_values(depthwise, SHAPE, dense=dense)
    with pytest.raises(ValueError, match="is smaller than the kernel of Conv2d"):
        robreg.singular_values(conv(), (4, 2, 2))


@pytest.mark.parametrize("module", APPLIED.values(), ids=APPLIED)
def test_estimates_are_within_their_errors(module: Any) -> None:
    sigma = np.linalg.svd(torch_matrix(module, SHAPE), compute_uv=False)
    found = estimate_spectrum(Layer("one", module, *SHAPE[1:]))
    assert found["n"] == len(sigma)
    assert abs(found["mean"] - sigma.mean()) <= 3 * found["error_mean"]
    assert abs(found["std"] - sigma.std()) <= 3 * found["error_std"]
    assert found["error_mean"] <= 0.04 * sigma.mean()
    assert found["max"] == pytest.approx(sigma.max(), rel=1e-6)
    assert sigma.min() * (1 - 1e-9) <= found["min"] <= sigma.mean()


def test_the_errors_of_estimates_are_standard_errors() -> None:
    scores = []
    for seed in range(8):
        torch.manual_seed(seed)
        module = nn.Conv2d(4, 5, 3, stride=(1, 2))
        sigma = np.linalg.svd(torch_matrix(module, (4, 9, 9)), compute_uv=False)
        found = estimate_spectrum(Layer("one", module, 9, 9))
        scores.append((found["mean"] - sigma.mean()) / found["error_mean"])
    assert 0.3 < np.sqrt(np.mean(np.square(scores))) < 1.5


def test_estimates_of_special_matrices_are_exact() -> None:
    zeros, copies = conv(), conv(nn.ConvTranspose2d, in_channels=2, out_channels=2, kernel_size=2, stride=2, groups=2)
    nn.init.zeros_(zeros.weight)
    nn.init.ones_(copies.weight)
    found = estimate_spectrum(Layer("zeros", zeros, 5, 5))
    assert [found[key] for key in ("mean", "std", "min", "max", "error_mean", "error_std")] == [0] * 6
    assert estimate_spectrum(Layer("zeros", zeros, 5, 5)) == found
    single = conv(out_channels=1)
    found = estimate_spectrum(Layer("single", single, 3, 3))  # a single row
    assert [found[key] for key in ("mean", "min", "max")] == pytest.approx(
        [float(single.weight.double().norm())] * 3, rel=1e-6
    )
    found = estimate_spectrum(Layer("copies", copies, 5, 5))  # every pixel is copied into four
    assert [found[key] for key in ("mean", "min", "max")] == pytest.approx([2, 2, 2], rel=1e-9)
    assert (found["std"], found["error_mean"]) == pytest.approx((0, 0), abs=1e-6)


# Networks


class Blocks(nn.Module):
    """Attention, tokens, a layer that is called twice, a gate, and a parametrised, an unused and an own layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.weighted = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.place = nn.Parameter(torch.zeros(1, 16, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tokens = nn.Linear(8, 8)
        self.gate = nn.GLU()
        self.own = OwnLinear(4, 8)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.stem(x)).relu()
        x = self.weighted(self.twice(input=nn.functional.pad(x, (0, 0, 0, 4))[:, :, :4]))
        x = x.flatten(2).mT + self.place  # (B, tokens, C)
        x = self.tokens(self.attention(x, key=x, value=x)[0])
        return self.head(self.own(self.gate(x)).mean(1))


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.square(), self.bias)


def test_every_linear_map_is_listed_and_everything_else_is_named_with_its_reason() -> None:
    torch.manual_seed(0)
    model = Blocks()
    found = {layer.name: layer for layer in list_layers(model, (3, 8, 8))}
    names = ["stem", "twice", "weighted", "attention.query", "attention.key", "attention.value", "attention.out_proj"]
    assert list(found) == [*names, "tokens", "head"]
    assert [layer.calls for layer in found.values()] == [1, 2, *[1] * 7]
    assert [(layer.height, layer.width) for layer in found.values()] == [(8, 8), (4, 4), (4, 4), *[(16, 1)] * 5, (1, 1)]
    reasons = unmeasured(model)
    assert list(reasons) == ["", "attention", "gate", "own"]
    assert reasons[""].startswith("Blocks has place (1, 16, 8)")
    state = model.state_dict()
    for part, weight in zip(("query", "key", "value"), state["attention.in_proj_weight"].chunk(3), strict=True):
        sigma, count = exact_singular_values(found[f"attention.{part}"], dense=0)
        np.testing.assert_allclose(sigma, torch.linalg.svdvals(weight.double()), atol=1e-12)
        assert set(count.tolist()) == {16}
    weighted = found["weighted"]
    assert torch.equal(weighted.kernel, model.weighted.weight.detach())
    assert not any(module._forward_hooks for module in model.modules())


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(self.conv(x)[:, :, ::2, ::2])[:, :, :2])
        return self.up(x, output_size=(6, 10)).flatten(1)


def test_sizes_of_other_calls_and_of_outputs_are_kept() -> None:
    conv, up = list_layers(Sizes(), (3, 8, 8))
    assert (conv.calls, conv.height, conv.width, conv.other_sizes) == (3, 8, 8, ((4, 4), (2, 4)))
    assert (up.height, up.width, up.facts()["rows"]) == (2, 4, 3 * 6 * 10)
    assert exact_singular_values(up, dense=100)[0].shape == (24,)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 3, 3), "layer 0: a bound needs padding that keeps the size"),
        (nn.Conv2d(3, 3, 3, stride=3, padding=1), "layer 0: stride 3 does not divide its input size 8"),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), "layer 0: a bound needs groups 1"),
        (nn.Conv2d(3, 3, (3, 1), padding=(1, 0)), "layer 0: a bound needs groups 1, dilation 1, a square kernel"),
        (nn.Conv2d(3, 3, 3, padding=2, dilation=2), "layer 0: a bound needs groups 1, dilation 1"),
        (nn.Conv2d(3, 3, 3, padding=1, stride=(1, 2)), "layer 0: a bound needs .* equal strides"),
        (nn.ConvTranspose2d(3, 3, 1), "layer 0: only Conv2d and Linear layers are projected"),
        (parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), "layer 0: only weights that are parameters"),
        (nn.Linear(8, 8), "layer 0: a linear layer needs one vector per image, not 24"),
        (OwnLinear(8, 8), "layer 0: OwnLinear has a forward of its own"),
    ],
)
def test_a_bound_is_refused_by_the_name_of_a_layer_that_cannot_be_projected(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=f"a bound .* cannot be put on this network; {reason}"):
        refuse_unbounded(model, list_layers(model, (3, 8, 8)), 1)


def test_all_that_cannot_be_projected_is_named_in_one_message() -> None:
    model = Blocks()
    with pytest.raises(ValueError, match="a bound") as caught:
        refuse_unbounded(model, list_layers(model, (3, 8, 8)), 1)
    found = [reason.partition(":")[0] for reason in str(caught.value).split("; layer ")][1:]
    inner = [f"attention.{part}" for part in ("query", "key", "value", "out_proj")]
    assert found == ["", "attention", "gate", "own", "twice", "weighted", *inner, "tokens"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))
    refuse_unbounded(plain, list_layers(plain, (3, 8, 8)), "exact")


def test_the_live_part_of_a_layer_with_groups_or_without_circular_operator() -> None:
    frozen = torch.tensor([True, False, False, False])
    for module in (conv(groups=2, padding=1, padding_mode="circular"), conv(groups=2), conv(nn.ConvTranspose2d)):
        with torch.no_grad():
            (module.weight[:, 4] if isinstance(module, nn.ConvTranspose2d) else module.weight[4]).zero_()
        layer = Layer("one", module, 5, 5)
        matrix = torch_matrix(module, (4, 5, 5))
        if layer.groups == 2:
            parts = [matrix[: len(matrix) // 2, 25:50], matrix[len(matrix) // 2 :, 50:]]
            parts[1] = np.delete(parts[1].reshape(3, -1, 50), 1, 0).reshape(-1, 50)
        else:
            parts = [np.delete(matrix.reshape(6, -1, 100), 4, 0).reshape(-1, 100)[:, 25:]]
        sigma = np.concatenate([np.linalg.svd(part, compute_uv=False) for part in parts])
        whole = summarise_spectrum(*exact_singular_values(layer, dense=200))
        row = describe_live_part(layer, frozen, whole, dense=200)
        assert (row["std_live"], row["max_live"]) == pytest.approx((sigma.std(), sigma.max()), rel=1e-10)
        assert (row["rows"], row["columns"], row["dead_rows"], row["frozen_columns"]) == (6, 4, 1, 1)


def test_channels_of_tokens_and_of_a_network_that_cannot_compute_in_float64_are_reachable(caplog: Any) -> None:
    tokens = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 4), nn.Flatten())
    nn.init.zeros_(tokens[0].weight[1])
    found = reachable_inputs(tokens, list_layers(tokens, (3, 8, 8)), (3, 8, 8))
    assert found["1"].tolist() == [True, False, True, True]
    assert not caplog.text
    single = SingleOnly()
    assert reachable_inputs(single, list_layers(single, (3, 8, 8)), (3, 8, 8))["conv"].tolist() == [True] * 3
    assert "all input channels count as live: a copy of the network in float64 fails" in caplog.text


class SingleOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x).flatten(1) @ torch.ones(72, 2)).relu()


class Valid(nn.Module):
    """A network with a convolution that pads nothing."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 5), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().mean((2, 3)))


SAME = {"method": "same", "std_zero": 1.0, "max_zero": 1.0, "std_circular": 1.0, "max_circular": 1.0}


def make_network(name: str) -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    if name == "vit":
        sizes = {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        return models.VisionTransformer(**sizes, num_classes=10)
    if name == "resnet8":
        return build_network(name, width=4, shape=(3, 15, 15), classes=10, mean=[0.5] * 3, std=[0.2] * 3).network
    kinds = {"blocks": Blocks, "valid": Valid}
    return kinds[name](num_classes=10) if name in kinds else getattr(models, name)(num_classes=10)


@pytest.mark.parametrize(
    ("name", "size", "applied", "measured"),
    [
        ("resnet18", 16, 2, 21),
        ("mobilenet_v2", 16, 1, 53),
        ("vit", 16, 0, 14),
        ("resnet8", 15, 1, 8),
        ("blocks", 8, 0, 9),
        ("valid", 8, 1, 2),
    ],
)
def test_record_measures_every_network(name: str, size: int, applied: int, measured: int, tmp_path: Path) -> None:
    model = Classifier(Normalise([0.5] * 3, [0.2] * 3), make_network(name)).eval()
    meta = {"arch": name, "seed": 0, "width": 0, "shape": [3, size, size], "classes": 10, "mean": [0.5] * 3}
    meta |= {"std": [0.2] * 3, "factory": None, "threads": 1, "dataset": "d", "variant": "v", "version": "1"}
    paths = {kind: tmp_path / f"{kind}.parquet" for kind in ("sv", "svstd", "live", "padding")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "load_network", lambda *_, **__: (model, meta | {"settings_hash": "abc"}))
        patch.setattr(spectra, "build_initial_network", lambda **_: model)
        patch.setattr(spectra, "compare_with_circular", lambda *_, **__: SAME)  # it would take minutes
        spectra.record(checkpoint=tmp_path, **paths, dense=40, device="cpu")
    sv, svstd, live, padding = (parquet.read(path).to_pandas() for path in paths.values())
    own = parquet.read_metadata(paths["svstd"])["unmeasured"]
    assert len(svstd) == len(live) == len(padding) == measured
    assert (~svstd["operator"].isin(["circular", "matrix"])).sum() == applied == padding["max_circular"].isna().sum()
    assert set(sv["layer"]) == set(svstd.loc[svstd["error_mean"].isna(), "layer"])
    assert (svstd["n"] == svstd[["rows", "columns"]].min(axis=1)).all()
    expected = {"vit": 3, "blocks": 4}.get(name, 0)  # the positions, and every attention; see unmeasured
    assert len(own) == expected

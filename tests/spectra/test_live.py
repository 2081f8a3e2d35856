"""Tests of the live part of layers: dead output channels, and input channels that training never used."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robreg.measures import spectra
from robreg.measures.spectra import describe_live_part
from robreg.networks.build import build_initial_network, build_network
from robreg.networks.checkpoint import load_network
from robreg.spectra.layers import Layer, list_layers
from robreg.spectra.live import dead_rows, frozen_columns, live_part, reachable_inputs
from robreg.spectra.singular_values import circular_singular_values, summarise_spectrum
from robreg.tables import parquet

H200 = Path(__file__).parents[3] / "shared/h200"
SHAPE = (1, 8, 8)
OPTIONS = {"width": 4, "shape": SHAPE, "classes": 10, "mean": [0.3], "std": [0.2], "factory": None}
DEAD = {  # input channels of a ResNet-8 of width 4 that no image reaches
    "network.stages.2.0.conv1": [4, 5, 6, 7],
    "network.linear": list(range(4, 16)),
}


def trained(**options: Any) -> nn.Module:
    """Train a ResNet-8 without biases for a few steps with torch alone, from the initial weights of seed 3."""
    model = build_initial_network("resnet8nobias", seed=3, **OPTIONS)
    sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.rand(32, *SHAPE, generator=generator)
        y = torch.randint(10, (32,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return model


def found_frozen(model: nn.Module, *, seed: int = 3) -> dict[str, list[int]]:
    layers = list_layers(model, SHAPE)
    first = list_layers(build_initial_network("resnet8nobias", seed=seed, **OPTIONS), SHAPE)
    reachable = reachable_inputs(model.network, layers, SHAPE)
    columns = {
        one.name: frozen_columns(one.kernel, other.kernel, reachable[one.name])
        for one, other in zip(layers, first, strict=True)
    }
    return {name: found.nonzero().flatten().tolist() for name, found in columns.items() if found.any()}


def test_the_initial_network_is_that_of_the_training_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one = build_initial_network("resnet8nobias", seed=3, **OPTIONS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    other = build_network("resnet8nobias", **OPTIONS)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_columns_that_get_no_gradient_are_found_by_their_initial_values() -> None:
    model = trained()
    layers = list_layers(model, SHAPE)
    assert found_frozen(model) == DEAD
    (conv1,) = [one for one in layers if one.name == "network.stages.2.0.conv1"]
    first = build_initial_network("resnet8nobias", seed=3, **OPTIONS).get_submodule("network.stages.2.0.conv1").weight
    everything = torch.ones(8, dtype=torch.bool)  # reachable: only the initial values can tell
    assert frozen_columns(conv1.kernel, first.detach(), everything).nonzero().flatten().tolist() == [4, 5, 6, 7]
    rows = {one.name: int(dead_rows(one.kernel).sum()) for one in layers if dead_rows(one.kernel).any()}
    assert rows == {"network.stages.1.0.conv2": 4, "network.stages.2.0.conv2": 12}


@pytest.mark.parametrize("how", ["weight decay", "another version of torch"])
def test_they_are_found_without_their_initial_values_because_no_image_reaches_them(how: str) -> None:
    model = trained(weight_decay=0.01) if how == "weight decay" else trained()
    assert found_frozen(model, seed=3 if how == "weight decay" else 4) == DEAD


class Head(nn.Module):
    """Convolutions and a linear layer, with or without batch normalisation between them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1, bias=False), norm
        self.second = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        nn.init.zeros_(self.first.weight[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)).relu())


def test_biases_and_layers_that_subtract_means_make_channels_reachable() -> None:
    def reachable(network: nn.Module) -> list[bool]:
        return reachable_inputs(network, list_layers(network, SHAPE), SHAPE)["second"].tolist()

    assert reachable(Head(nn.Identity())) == [True, False, True]
    assert reachable(Head(nn.BatchNorm2d(3))) == [True, False, True]
    norm = nn.BatchNorm2d(3)
    nn.init.constant_(norm.bias, -1.0)
    nn.init.constant_(norm.running_mean, 5.0)
    assert reachable(Head(norm)) == [True, True, True]
    assert reachable(Head(nn.GroupNorm(1, 3))) == [True, True, True]
    assert reachable(Head(nn.BatchNorm2d(3, track_running_stats=False))) == [True, True, True]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.constant_(linear[2].running_mean, 5.0)  # what training measured says nothing of other images
    assert reachable_inputs(linear, list_layers(linear, SHAPE), SHAPE)["4"].all()


def test_the_live_spectrum_is_that_of_the_dense_operator_without_the_rows_and_columns() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        module.weight[3] = 0
    frozen = torch.tensor([False, True, False, True])
    one = Layer("one", module, 4, 4)
    circular = summarise_spectrum(*circular_singular_values(one.kernel, 4, 4))
    row = describe_live_part(one, frozen, circular, dense=1)
    units = torch.eye(4 * 16, dtype=torch.float64).view(-1, 4, 4, 4)
    matrix = module(units).detach().view(4, 16, 5, 16)[~frozen][:, :, [0, 1, 2, 4]].reshape(32, 64)
    sigma = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert (row["std_live"], row["max_live"]) == pytest.approx((sigma.std(), sigma.max()), rel=1e-10)
    assert (row["std"], row["max"]) == (circular["std"], circular["max"])
    assert (row["rows"], row["columns"], row["dead_rows"], row["frozen_columns"]) == (5, 4, 1, 2)
    squares = one.kernel.square().sum((0, 2, 3))
    assert row["frozen_share"] == pytest.approx(float((squares[1] + squares[3]) / squares.sum()))
    assert live_part(one.kernel, frozen).shape == (4, 2, 3, 3)
    gone = describe_live_part(one, torch.ones(4, dtype=torch.bool), circular, dense=1)
    assert (gone["std_live"], gone["max_live"], gone["frozen_share"]) == (None, None, 1.0)
    everything = Layer("all", nn.Conv2d(4, 5, 1), 4, 4)
    whole = describe_live_part(everything, torch.zeros(4, dtype=torch.bool), circular, dense=1)
    assert (whole["std_live"], whole["max_live"]) == (circular["std"], circular["max"])


@pytest.mark.skipif(not H200.exists(), reason="needs ../shared/h200, networks that were trained on a GPU")
def test_networks_trained_on_a_gpu_have_the_frozen_columns_that_a_reviewer_found(tmp_path: Path) -> None:
    """Both ways of finding frozen columns agree there: by initial values, drawn again on this machine, and by paths."""
    medians, std = {}, {}
    for ar in (0, 4, 8, 16):
        model, meta = load_network(H200 / f"ar{ar}/checkpoint.pt")
        shape = tuple(meta["shape"])
        layers = list_layers(model, shape)
        keys = ("arch", "seed", "width", "shape", "classes", "mean", "std", "factory")
        first = list_layers(build_initial_network(**{key: meta[key] for key in keys}), shape)
        reachable = reachable_inputs(model.network, layers, shape)
        shares = []
        for one, other in zip(layers, first, strict=True):
            by_value = (one.kernel == other.kernel).all(3).all(2).all(0)
            assert torch.equal(by_value, ~reachable[one.name])
            if by_value.any():
                squares = one.kernel.double().square()
                shares.append(float(squares[:, by_value].sum() / squares.sum()))
        assert len(shares) == 18
        medians[ar] = float(np.median(shares))
        if ar in (4, 16):
            paths = {kind: tmp_path / f"{kind}{ar}.parquet" for kind in ("sv", "svstd", "live", "padding")}
            std[ar] = _measure_without_padding(H200 / f"ar{ar}/checkpoint.pt", paths)
    assert [round(100 * medians[ar]) for ar in (0, 8, 16)] == [14, 36, 45]
    for column, expected in (("std", 6.04), ("std_live", 7.57)):
        change = (std[16][column] - std[4][column])[:-1]  # without the linear layer
        assert -change[change < 0].sum() == pytest.approx(expected, abs=0.005)


def _measure_without_padding(checkpoint: Path, paths: dict[str, Path]) -> Any:
    """Return live.parquet of a network, without the largest zero-padded singular values, which would take minutes."""
    same = {"method": "same", "std_zero": 1.0, "max_zero": 1.0, "std_circular": 1.0, "max_circular": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "compare_with_circular", lambda *_, **__: same)
        spectra.record(checkpoint=checkpoint, **paths, dense=1, device="cpu")
    return parquet.read(paths["live"]).to_pandas()

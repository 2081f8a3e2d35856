"""Tests of the projection onto a bound: on its own grid it holds, the change is small, single rounds.

test_applied_bound.py tests that the bound holds for what a network applies.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robreg.networks.build import build_network
from robreg.networks.classifier import Classifier
from robreg.spectra import projection
from robreg.spectra.layers import Layer, list_layers
from robreg.spectra.singular_values import circular_singular_values

SHAPES = [  # c_out, c_in, k, input size, stride: every kind of layer in the networks, with fewer channels
    (16, 3, 3, 32, 1),
    (16, 16, 3, 32, 1),
    (32, 16, 3, 32, 2),
    (32, 32, 3, 16, 1),
    (16, 1, 3, 8, 1),
    (64, 32, 3, 4, 2),
    (64, 64, 3, 2, 1),  # the kernel wraps around
    (8, 3, 3, 56, 1),
    (16, 8, 1, 14, 1),
    (16, 8, 1, 14, 2),
    (8, 8, 3, 7, 1),
    (8, 4, 3, 14, 2),
    (4, 4, 3, 1, 1),
    (4, 2, 5, 6, 3),
    (10, 64, 1, 1, 1),
]


def layer(weight: torch.Tensor, size: int, stride: int) -> Layer:
    c_out, c_in, k, _ = weight.shape
    module = nn.Conv2d(c_in, c_out, k, stride, padding=k // 2, bias=False)
    module.weight.data = weight.clone()
    return Layer("one", module, size, size)


def norm(weight: torch.Tensor, size: int, stride: int) -> float:
    return float(circular_singular_values(weight, size, size, stride)[0].max())


def grid(size: int, k: int, stride: int) -> int:
    """Return the length of the grid on which exact rounds work: with zeros for one edge, a multiple of the stride."""
    return math.ceil((size + k // 2) / stride) * stride if k > 1 else size


def dense(weight: torch.Tensor, size: int, stride: int) -> np.ndarray:
    """Return the matrix of the circular operator, built tap by tap with index arithmetic only."""
    c_out, c_in, k, _ = weight.shape
    out = size // stride
    matrix = np.zeros((c_out, out, out, c_in, size, size))
    for i, j in np.ndindex(k, k):
        for y, x in np.ndindex(out, out):
            matrix[:, y, x, :, (stride * y + i) % size, (stride * x + j) % size] += weight[:, :, i, j].double().numpy()
    return matrix.reshape(c_out * out**2, -1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 2**31), st.floats(0.05, 1.5), st.floats(-3, 3))
def test_the_norm_is_at_most_the_bound_for_every_shape(shape, seed, share, magnitude):
    c_out, c_in, k, size, stride = shape
    weight = 10**magnitude * torch.randn(c_out, c_in, k, k, generator=torch.Generator().manual_seed(seed))
    before = norm(weight, grid(size, k, stride), stride)
    one = layer(weight, size, stride)
    (reported,) = projection.project([one], share * before, "exact")
    after = norm(one.kernel, grid(size, k, stride), stride)
    assert after <= share * before * (1 + 1e-12)
    assert reported == pytest.approx(after, rel=1e-9)
    if share > 1:  # at exactly 1, the last digit of the norm would decide
        assert torch.equal(one.kernel, weight)
    else:
        assert after >= 0.97 * share * before  # the kernel is not simply scaled down


@pytest.mark.parametrize("shape", [(3, 2, 3, 4, 2), (2, 3, 3, 5, 1), (4, 4, 3, 2, 1), (3, 2, 1, 4, 2)])
def test_the_bound_holds_for_the_dense_operator(shape):
    c_out, c_in, k, size, stride = shape
    weight = torch.randn(c_out, c_in, k, k, generator=torch.Generator().manual_seed(1))
    one = layer(weight, size, stride)
    around = grid(size, k, stride)
    bound = 0.6 * np.linalg.norm(dense(weight, around, stride), 2)
    (reported,) = projection.project([one], bound, "exact")
    assert np.linalg.norm(dense(one.kernel, around, stride), 2) == pytest.approx(reported, rel=1e-9)
    assert reported <= bound


@pytest.mark.parametrize("size", [8, 2])
def test_one_round_is_clip_and_crop_of_the_dense_operator(size):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    bound = 0.6 * norm(weight, size, 1)
    u, sigma, v = np.linalg.svd(dense(weight, size, 1), full_matrices=False)
    clipped = ((u * np.minimum(sigma, bound)) @ v).reshape(4, size, size, 3, size, size)
    torus = torch.from_numpy(clipped[:, 0, 0])  # (c_out, c_in, size, size): the weights of the first output position
    expected = weight.double().clone()
    whole = torch.from_numpy(dense(weight, size, 1).reshape(clipped.shape)[:, 0, 0])
    taps = [(i % size, j % size) for i in range(3) for j in range(3)]
    for i, j in np.ndindex(3, 3):  # taps at the same position, where the kernel wraps, share the change
        place = (i % size, j % size)
        expected[:, :, i, j] += (torus - whole)[:, :, place[0], place[1]] / taps.count(place)
    one = layer(weight, size, 1)
    (reported,) = projection.project([one], bound, 1)
    assert torch.allclose(one.kernel.double(), expected, atol=1e-6)
    assert reported == pytest.approx(norm(one.kernel, size, 1), rel=1e-9)


def test_a_single_round_leaves_an_excess_of_the_size_that_the_literature_reports():
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    bound = 0.6 * norm(weight, 32, 1)
    one = layer(weight, 32, 1)
    (after,) = projection.project([one], bound, 1)
    assert 1.15 < after / bound < 1.4
    many = layer(weight, 32, 1)
    (later,) = projection.project([many], bound, 20)
    assert 1 < later / bound < 1.04


def test_the_projection_moves_the_kernel_little_more_than_the_nearest_one_within_the_bound():
    """Dykstra's algorithm on the same two convex sets converges to the nearest kernel within the bound."""
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    bound = 0.7 * norm(weight, 6, 1)
    operator = projection._Operator(weight, (6, 6), 1)
    point, carried = dense(weight, 6, 1), 0.0
    for _ in range(400):
        u, sigma, v = np.linalg.svd(point + carried, full_matrices=False)
        inside = (u * np.minimum(sigma, bound)) @ v
        carried = point + carried - inside
        row = torch.from_numpy(inside.reshape(4, 6, 6, 4, 6, 6)[:, 0, 0])
        point = dense(row[:, :, :3, :3], 6, 1)
    nearest = np.linalg.norm(point - dense(weight, 6, 1))
    one = layer(weight, 5, 1)  # exact rounds work on 6 x 6
    projection.project([one], bound, "exact")
    ours = np.linalg.norm(dense(one.kernel, 6, 1) - dense(weight, 6, 1))
    assert nearest * 0.999 <= ours <= 1.25 * nearest
    assert ours < 0.75 * 0.3 * np.linalg.norm(
        dense(weight, 6, 1)
    )  # and less than by rescaling, which changes 0.3 of it
    assert operator.norm(one.kernel.double()) <= bound


@pytest.mark.parametrize("arch", ["resnet8", "wrn50"])
def test_every_layer_of_a_network_meets_the_bound_and_nothing_else_changes(arch):
    torch.manual_seed(0)
    shape = (3, 16, 16)
    model: Classifier = build_network(arch, width=8, shape=shape, classes=10, mean=[0.5] * 3, std=[0.2] * 3)
    if arch == "wrn50":  # its wide layers would take minutes
        model.network.layer2 = model.network.layer3 = model.network.layer4 = nn.Identity()
        model.network.fc = nn.Linear(256, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    found = list_layers(model, shape)
    weights = {f"{one.name}.weight" for one in found}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    norms = projection.project(found, 1.0, "exact")
    assert len(norms) == len(found)
    for one, reported in zip(found, norms, strict=True):
        height, width = (grid(size, one.kernel.shape[2], one.stride) for size in (one.height, one.width))
        measured = float(circular_singular_values(one.kernel, height, width, one.stride)[0].max())
        assert measured == pytest.approx(reported, rel=1e-9)
        assert measured <= 1
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == weights


def test_weights_that_are_not_finite_are_refused_by_the_layers_name():
    weight = torch.ones(2, 2, 3, 3)
    weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ArithmeticError, match="layer one: weights are not finite"):
        projection.project([layer(weight, 8, 1)], 1.0, "exact")

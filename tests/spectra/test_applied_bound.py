"""Tests that a bound with exact rounds bounds the operator that a network applies, with zeros around its input.

The operators are built here from torch's own convolution of unit images, and share no code with the projection.
"""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn
from torch.nn import functional

from robreg.spectra import projection
from robreg.spectra.layers import Layer

TOLERANCE = 1e-6


def layer(c_out: int, c_in: int, size: int, *, seed: int = 0, **conv) -> Layer:
    conv = {"kernel_size": 3, "padding": 1, "bias": False} | conv
    torch.manual_seed(seed)
    return Layer("one", nn.Conv2d(c_in, c_out, **conv), size, size)


def sharpen(one: Layer) -> Layer:
    """Change the kernel as training under a bound on the circular operator does: taps that wrap around cancel."""
    size, weight = one.height, one.module.weight.data
    for i, j in np.ndindex(*weight.shape[2:]):
        if i + size < weight.shape[2]:
            weight[:, :, i + size, j] = -weight[:, :, i, j]
        if j + size < weight.shape[3]:
            weight[:, :, i, j + size] = -weight[:, :, i, j]
    return one


def apply(one: Layer, x: Tensor) -> Tensor:
    module = one.module
    return functional.conv2d(x, module.weight.detach().double(), stride=module.stride, padding=module.padding)


def dense(one: Layer) -> np.ndarray:
    """Return the matrix of the operator that the network applies, one column per unit image."""
    c_in = one.kernel.shape[1]
    units = torch.eye(c_in * one.height * one.width, dtype=torch.float64).view(-1, c_in, one.height, one.width)
    return apply(one, units).flatten(1).T.numpy()


def applied_norm(one: Layer) -> float:
    return float(np.linalg.norm(dense(one), 2))


SMALL = [
    (c_out, c_in, size, kernel, stride)
    for c_out, c_in in ((3, 3), (4, 2), (2, 5))
    for size in (1, 2, 4, 5)
    for kernel in (1, 3, 5)
    for stride in (1, 2)
    if size % stride == 0
]


@pytest.mark.parametrize(("c_out", "c_in", "size", "kernel", "stride"), SMALL)
def test_the_bound_holds_for_what_is_applied(c_out: int, c_in: int, size: int, kernel: int, stride: int) -> None:
    for seed in range(3):
        for change in (lambda one: one, sharpen):
            one = change(layer(c_out, c_in, size, kernel_size=kernel, stride=stride, padding=kernel // 2, seed=seed))
            bound = 0.6 * applied_norm(one)
            (reported,) = projection.project([one], bound, "exact")
            assert applied_norm(one) <= bound * (1 + TOLERANCE)
            assert applied_norm(one) <= reported * (1 + TOLERANCE)
            assert reported <= bound
            if kernel == 1:
                assert reported == pytest.approx(applied_norm(one), rel=1e-9)


@pytest.mark.parametrize("size", [2, 4])
def test_these_kernels_show_a_bound_that_is_only_circular(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: bounded on the circular operator of the input's size, they exceed the bound."""
    monkeypatch.setattr(projection, "enclosing_grid", lambda one: (one.height, one.width))
    one = sharpen(layer(3, 3, size, kernel_size=5, padding=2) if size == 4 else layer(3, 3, size))
    bound = 0.6 * applied_norm(one)
    (reported,) = projection.project([one], bound, "exact")
    assert reported <= bound
    assert applied_norm(one) > 1.1 * bound


@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_size": 2, "padding": 0, "stride": 2},
        {"kernel_size": 4, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 0, "stride": 3},
        {"kernel_size": 5, "padding": 1, "stride": 3},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "same"},
    ],
)
def test_the_bound_holds_for_other_paddings(conv: dict) -> None:
    for seed in range(3):
        one = layer(3, 2, 6, seed=seed, **conv)
        bound = 0.6 * applied_norm(one)
        (reported,) = projection.project([one], bound, "exact")
        assert applied_norm(one) <= reported * (1 + TOLERANCE) <= bound * (1 + TOLERANCE)


@pytest.mark.parametrize(("c_out", "c_in", "size", "stride"), [(16, 12, 32, 1), (24, 12, 32, 2), (48, 48, 8, 1)])
def test_the_bound_holds_for_larger_layers(c_out: int, c_in: int, size: int, stride: int) -> None:
    """The largest singular value is that of scipy's Lanczos method, which has no dense matrix."""
    one = layer(c_out, c_in, size, stride=stride)
    bound = 0.7
    projection.project([one], bound, "exact")
    shape, point = (1, c_in, size, size), torch.zeros(1, c_in, size, size, dtype=torch.float64, requires_grad=True)
    image = apply(one, point)

    def forward(x: np.ndarray) -> np.ndarray:
        return apply(one, torch.from_numpy(x.reshape(shape))).flatten().numpy()

    def backward(y: np.ndarray) -> np.ndarray:
        (found,) = torch.autograd.grad(image, point, torch.from_numpy(y.reshape(image.shape)), retain_graph=True)
        return found.flatten().numpy()

    operator = LinearOperator((image.numel(), point.numel()), matvec=forward, rmatvec=backward, dtype=float)
    (largest,) = svds(operator, k=1, tol=1e-9, return_singular_vectors=False, random_state=0)
    assert 0.9 * bound < largest <= bound * (1 + TOLERANCE)


def test_circular_padding_is_bounded_at_the_input_s_size_and_other_padding_is_refused() -> None:
    assert projection.enclosing_grid(layer(2, 2, 6, padding_mode="circular")) == (6, 6)
    assert projection.enclosing_grid(layer(2, 2, 6)) == (7, 7)
    assert projection.enclosing_grid(layer(2, 2, 6, stride=2)) == (8, 8)
    assert projection.enclosing_grid(layer(2, 2, 6, kernel_size=1, padding=0, padding_mode="reflect")) == (6, 6)
    with pytest.raises(ValueError, match=r"layer one: with padding_mode 'reflect' no bound is known"):
        projection.project([layer(2, 2, 6, padding_mode="reflect")], 1.0, "exact")
    projection.project([layer(2, 2, 6, padding_mode="reflect")], 1.0, 1)


def test_a_number_of_rounds_works_on_the_circular_operator_as_the_paper_does() -> None:
    one = sharpen(layer(3, 3, 2))
    before = one.kernel.clone()
    (reported,) = projection.project([one], 0.6 * applied_norm(one), 1)
    assert reported < 0.6 * applied_norm(one)  # its taps cancel on the torus, so the clip sees nothing to do
    assert torch.equal(one.kernel, before)

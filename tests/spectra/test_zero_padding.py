"""Tests of zero-padded operators: against matrices built tap by tap, and against known properties."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from robreg.spectra import applied
from robreg.spectra.applied import AppliedOperator
from robreg.spectra.layers import Layer
from robreg.spectra.singular_values import circular_singular_values, summarise_spectrum
from robreg.spectra.zero_padding import compare_with_circular

Matrix = npt.NDArray[np.float64]
EXACT, LANCZOS = 10**6, 1  # values of dense that select the two methods


def layer(c_in: int, c_out: int, size: tuple[int, int], *, seed: int = 0, **conv: Any) -> Layer:
    torch.manual_seed(seed)
    return Layer("conv", nn.Conv2d(c_in, c_out, **({"kernel_size": 3, "padding": 1} | conv)), *size)


def circular(layer: Layer) -> dict[str, float]:
    return summarise_spectrum(*circular_singular_values(layer.kernel, layer.height, layer.width, layer.stride))


def build_matrix(weight: Tensor, size: tuple[int, int], stride: int) -> Matrix:
    """Return the matrix of the zero-padded operator, by the definition of a convolution."""
    c_out, c_in, k, _ = weight.shape
    rows, columns = size[0] // stride, size[1] // stride
    matrix = np.zeros((c_out, rows, columns, c_in, *size))
    for u in range(rows):
        for v in range(columns):
            for i in range(k):
                for j in range(k):
                    y, x = stride * u + i - k // 2, stride * v + j - k // 2
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        matrix[:, u, v, :, y, x] = weight[:, :, i, j].double()
    return matrix.reshape(c_out * rows * columns, -1)


CASES = [
    (layer(1, 4, (8, 8)), "more rows than columns"),
    (layer(4, 2, (6, 8), stride=2), "more columns than rows, oblong"),
    (layer(3, 3, (5, 5), kernel_size=5, padding=2), "5x5"),
    (layer(3, 4, (2, 2)), "larger than its input"),
    (layer(3, 4, (4, 4), bias=False), "no bias"),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for case, name in CASES])
def test_the_singular_values_are_those_of_the_matrix(case: Layer) -> None:
    matrix = build_matrix(case.kernel, (case.height, case.width), case.stride)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    around = circular(case)
    found = compare_with_circular(case, around, dense=EXACT)
    assert found == {
        "method": "dense",
        "std_circular": around["std"],
        "max_circular": around["max"],
        "std_zero": pytest.approx(sigma.std(), abs=1e-12),
        "max_zero": pytest.approx(sigma.max(), rel=1e-12),
    }
    assert abs(found["std_zero"] - found["std_circular"]) > 1e-3  # so that confusing the two would be noticed
    single = compare_with_circular(case, around, dense=LANCZOS)
    assert single["method"] == "lanczos"
    assert single["std_zero"] is None
    assert single["max_zero"] == pytest.approx(sigma.max(), rel=1e-6)
    assert compare_with_circular(case, around, dense=LANCZOS) == single


@pytest.mark.parametrize("case", [case for case, _ in CASES])
def test_the_operator_and_its_transpose_are_those_of_the_matrix(case: Layer) -> None:
    matrix = build_matrix(case.kernel, (case.height, case.width), case.stride)
    operator = AppliedOperator(case)
    assert operator.shape == matrix.shape
    np.testing.assert_array_equal(operator.matrices()[0].numpy(), matrix)
    x, y = (torch.randn(length, dtype=torch.float64) for length in reversed(matrix.shape))
    for _ in range(2):  # the graph of the gradient can be used repeatedly
        np.testing.assert_allclose(operator.forward(x).numpy(), matrix @ x.numpy(), atol=1e-12)
        np.testing.assert_allclose(operator.transposed(y).numpy(), matrix.T @ y.numpy(), atol=1e-12)


def test_a_blur_has_the_eigenvalues_of_the_path_graph() -> None:
    # 1-2-1 in each direction is a symmetric Toeplitz matrix with eigenvalues 2 + 2 cos(pi j / (n + 1)).
    blur = layer(1, 1, (6, 6), bias=False)
    with torch.no_grad():
        blur.module.weight.copy_(torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]))
    values = 2 + 2 * np.cos(np.pi * np.arange(1, 7) / 7)
    found = compare_with_circular(blur, circular(blur), dense=36)
    assert found["std_zero"] == pytest.approx(np.outer(values, values).std(), rel=1e-12)
    assert found["max_zero"] == pytest.approx(values[0] ** 2, rel=1e-12)
    assert found["max_circular"] == pytest.approx(16, rel=1e-12)

    large = Layer("conv", blur.module, 40, 30)  # its largest values are close to each other
    largest = (2 + 2 * np.cos(np.pi / 41)) * (2 + 2 * np.cos(np.pi / 31))
    assert compare_with_circular(large, {"std": 0.0, "max": 16.0}, dense=8)["max_zero"] == pytest.approx(
        largest, rel=1e-7
    )


@pytest.mark.parametrize("dense", [EXACT, LANCZOS])
def test_a_layer_with_circular_padding_has_the_circular_spectrum(dense: int) -> None:
    torus = layer(3, 4, (8, 8), padding_mode="circular")
    around = circular(torus)
    found = compare_with_circular(torus, around, dense=dense)
    assert found["max_zero"] == pytest.approx(around["max"], rel=1e-6)
    if found["std_zero"] is not None:
        assert found["std_zero"] == pytest.approx(around["std"], rel=1e-12)


def test_zero_padding_lowers_the_std_by_about_as_much_as_observed_before() -> None:
    case = layer(8, 8, (8, 8))
    nn.init.kaiming_normal_(case.module.weight)
    found = compare_with_circular(case, circular(case), dense=EXACT)
    assert found["std_circular"] == pytest.approx(0.716, rel=0.1)
    assert found["std_zero"] == pytest.approx(0.669, rel=0.1)
    assert found["std_zero"] / found["std_circular"] == pytest.approx(0.669 / 0.716, rel=0.03)


@pytest.mark.parametrize("dense", [EXACT, LANCZOS])
def test_the_largest_value_is_at_most_that_of_a_circular_operator_with_room_for_the_padding(dense: int) -> None:
    for seed in range(5):
        case = layer(4, 5, (6, 6), seed=seed)  # this operator is a part of the circular one on 8 x 8
        assert compare_with_circular(case, circular(case), dense=dense)["max_zero"] <= float(
            circular_singular_values(case.kernel, 8, 8)[0][0]
        )


@pytest.mark.parametrize(
    "case",
    [Layer("linear", nn.Linear(5, 3), 1, 1), layer(3, 4, (8, 8), kernel_size=1, padding=0, stride=2)],
    ids=["linear", "1x1"],
)
def test_padding_changes_nothing_in_linear_layers_and_1x1_convolutions(case: Layer) -> None:
    found = compare_with_circular(case, {"std": 0.5, "max": 2.0}, dense=1)
    assert found == dict(method="same", std_circular=0.5, max_circular=2.0, std_zero=0.5, max_zero=2.0)


@pytest.mark.parametrize(("dense", "method"), [(63, "lanczos"), (64, "dense"), (10**4, "dense")])
def test_the_smaller_side_decides_whether_the_spectrum_is_exact(dense: int, method: str) -> None:
    case = layer(1, 2, (8, 8))  # a matrix of 128 x 64
    assert compare_with_circular(case, circular(case), dense=dense)["method"] == method


def test_a_very_oblong_operator_does_not_get_the_dense_method() -> None:
    case = layer(1, 5, (8, 8))  # a matrix of 320 x 64, and 320 is more than 4 x 64
    assert compare_with_circular(case, circular(case), dense=64)["method"] == "lanczos"
    assert compare_with_circular(case, circular(case), dense=80)["method"] == "dense"


@pytest.mark.parametrize("dense", [EXACT, LANCZOS])
def test_the_largest_value_of_a_layer_of_zeros_is_0(dense: int) -> None:
    case = layer(2, 2, (4, 4))
    nn.init.zeros_(case.module.weight)
    assert compare_with_circular(case, {"std": 0.0, "max": 0.0}, dense=dense)["max_zero"] == 0


def test_the_matrix_does_not_depend_on_the_number_of_unit_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = layer(2, 3, (4, 4))
    whole = AppliedOperator(case).matrices()[0]
    monkeypatch.setattr(applied, "_CHUNK", 8 * 48 * 5)  # bytes of five images
    assert torch.equal(AppliedOperator(case).matrices()[0], whole)


def test_the_layer_is_left_unchanged() -> None:
    case = layer(2, 3, (4, 4))
    compare_with_circular(case, circular(case), dense=EXACT)
    assert case.module.bias is not None
    assert case.module.weight.dtype == torch.float32
    assert case.module.weight.requires_grad

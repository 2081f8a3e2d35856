"""Tests of singular values: against the dense operator, and against known properties of any operator."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from robreg.measures import spectra
from robreg.spectra import layers, singular_values
from robreg.spectra.layers import list_layers
from robreg.spectra.singular_values import circular_singular_values, summarise_spectrum
from robreg.tables import parquet, schemas

Matrix = npt.NDArray[np.float64]


def kernel(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve circularly: repeat the image until the kernel never reaches an edge, and keep one period."""
    height, width = x.shape[2:]
    kh, kw = weight.shape[2:]
    tiled = x.repeat(1, 1, kh // height + 3, kw // width + 3)
    top, left = height - (kh // 2) % height, width - (kw // 2) % width
    window = tiled[:, :, top : top + height - 1 + kh, left : left + width - 1 + kw]
    return functional.conv2d(window, weight, stride=stride)


def dense(weight: Tensor, height: int, width: int, stride: int) -> Matrix:
    """Return the operator's matrix, with one column per convolved unit vector."""
    c_in = weight.shape[1]
    units = torch.eye(c_in * height * width, dtype=torch.float64).view(-1, c_in, height, width)
    return convolve(units, weight, stride).flatten(1).T.numpy()


def repeated(found: tuple[Tensor, Tensor]) -> Matrix:
    sigma, multiplicity = found
    return np.sort(np.repeat(sigma.numpy(), multiplicity.numpy()))[::-1]


CHANNELS = [(1, 1), (2, 3), (3, 2), (2, 2), (2, 5)]  # c_out, c_in
SIZES = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (8, 8), (2, 6), (6, 4), (9, 3), (3, 6), (1, 4), (12, 2)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("k", [(1, 1), (3, 3), (5, 5), (2, 2), (3, 1)])
def test_the_spectrum_is_that_of_the_dense_operator(k: tuple[int, int], stride: int) -> None:
    sizes = [size for size in SIZES if size[0] % stride == size[1] % stride == 0]
    assert len(sizes) >= 4
    for (c_out, c_in), (height, width) in product(CHANNELS, sizes):
        weight = kernel(c_out, c_in, *k)
        expected = np.linalg.svd(dense(weight, height, width, stride), compute_uv=False)
        found = circular_singular_values(weight, height, width, stride)
        assert int(found[1].sum()) == len(expected) == min(c_out * height * width // stride**2, c_in * height * width)
        np.testing.assert_allclose(repeated(found), expected, atol=1e-10, err_msg=f"{c_out, c_in, height, width}")


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (2, 2), (1, 1)])
def test_a_3x3_kernel_on_a_2x2_or_1x1_input_wraps_around(size: int, stride: int) -> None:
    weight = kernel(3, 4, 3, 3)
    expected = np.linalg.svd(dense(weight, size, size, stride), compute_uv=False)
    np.testing.assert_allclose(repeated(circular_singular_values(weight, size, size, stride)), expected, atol=1e-10)
    cropped = weight[:, :, :size, :size]  # the part that an FFT of that size would use
    assert abs(np.linalg.svd(dense(cropped, size, size, stride), compute_uv=False) - expected).max() > 0.1


def test_on_an_input_of_one_pixel_the_operator_is_the_sum_of_the_taps() -> None:
    weight = kernel(3, 3, 3, 3)
    expected = np.linalg.svd(weight.sum((2, 3)).numpy(), compute_uv=False)
    np.testing.assert_allclose(circular_singular_values(weight, 1, 1)[0], expected, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 1000, 2**14])
@pytest.mark.parametrize(("weight", "size", "stride"), [((3, 5, 3, 3), (8, 6), 2), ((4, 3, 7, 7), (5, 4), 1)])
def test_the_values_do_not_depend_on_the_number_of_frequencies_at_a_time(
    monkeypatch: pytest.MonkeyPatch, weight: tuple[int, ...], size: tuple[int, int], stride: int, budget: int
) -> None:
    monkeypatch.setattr(singular_values, "_CHUNK", budget)
    expected = np.linalg.svd(dense(kernel(*weight), *size, stride), compute_uv=False)
    np.testing.assert_allclose(repeated(circular_singular_values(kernel(*weight), *size, stride)), expected, atol=1e-10)


def test_the_number_of_blocks_in_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    svdvals = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda blocks: seen.append(blocks) or svdvals(blocks))
    monkeypatch.setattr(singular_values, "_CHUNK", 3 * 16 * 4 * 5)  # bytes of three blocks of 4 x 5 complex numbers
    sigma, _ = circular_singular_values(kernel(4, 5, 3, 3), 8, 8)
    assert max(len(blocks) for blocks in seen) == 3
    assert sum(len(blocks) for blocks in seen) == len(sigma) / 4 == 4 + 30


@pytest.mark.parametrize("stride", [1, 2])
def test_a_1x1_convolution_needs_a_single_decomposition(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    seen: list[tuple[int, ...]] = []
    svdvals = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda blocks: seen.append(tuple(blocks.shape)) or svdvals(blocks))
    circular_singular_values(kernel(6, 4, 1, 1), 56, 56, stride)
    assert seen == [(1, 6, 4)]  # a batch of one


@pytest.mark.parametrize("k", [1, 3])
def test_every_decomposition_uses_one_thread_and_torchs_number_of_threads_is_restored(
    monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    seen: list[int] = []
    svdvals = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda blocks: seen.append(torch.get_num_threads()) or svdvals(blocks))
    torch.set_num_threads(3)
    circular_singular_values(kernel(9, 8, k, k), 8, 8)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("budget", [singular_values._CHUNK, 2 * 16 * 7 * 5])
@pytest.mark.parametrize("shape", [(16, 16, 3, 3), (7, 5, 3, 3), (6, 4, 1, 1)])
def test_results_are_bit_identical_for_every_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], budget: int
) -> None:
    monkeypatch.setattr(singular_values, "_CHUNK", budget)
    found = {}
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found[threads] = circular_singular_values(kernel(*shape), 2, 2)
    assert all(torch.equal(*pair) for threads in (2, 4) for pair in zip(found[1], found[threads], strict=True))


def test_inputs_that_a_strided_1x1_kernel_skips_count_as_zeros() -> None:
    sigma, multiplicity = circular_singular_values(kernel(6, 2, 1, 1), 4, 4, 2)
    assert int(multiplicity.sum()) == 6 * 4  # rows: 6 channels on 2 x 2; columns: 2 channels on 4 x 4
    assert int(multiplicity[sigma == 0].sum()) == 16
    sigma, _ = circular_singular_values(kernel(2, 6, 1, 1), 4, 4, 2)
    assert (sigma > 0).all()


def test_padding_shifts_the_output_but_does_not_change_the_spectrum() -> None:
    weight = kernel(2, 2, 3, 3)
    shifted = functional.pad(weight, (2, 0, 1, 0))
    np.testing.assert_allclose(
        repeated(circular_singular_values(shifted, 6, 6, 2)),
        repeated(circular_singular_values(weight, 6, 6, 2)),
        atol=1e-12,
    )


def test_the_values_are_descending_and_mirrored_frequencies_are_counted_twice() -> None:
    sigma, multiplicity = circular_singular_values(kernel(1, 1, 3, 3), 8, 8)
    assert (sigma.diff() <= 0).all()
    assert multiplicity.dtype == torch.int64
    assert multiplicity.unique().tolist() == [1, 2]
    assert int((multiplicity == 1).sum()) == 4  # the frequencies that are their own mirror image


@given(
    weight=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stride=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_squares_sum_to_the_frobenius_norm_and_multiplicities_to_the_rank(weight, size, stride, seed) -> None:
    taps = kernel(*weight, seed=seed)
    height, width = size[0] * stride, size[1] * stride
    sigma, multiplicity = circular_singular_values(taps, height, width, stride)
    c_out, c_in = weight[:2]
    assert int(multiplicity.sum()) == min(c_out * size[0] * size[1], c_in * height * width)
    torus = torch.zeros(
        c_out, c_in, height, width, dtype=torch.float64
    )  # one row of the operator for each output channel
    rows, columns = torch.arange(weight[2]) % height, torch.arange(weight[3]) % width
    torus.index_put_(
        (torch.arange(c_out)[:, None, None, None], torch.arange(c_in)[:, None, None], rows[:, None], columns),
        taps,
        accumulate=True,
    )
    frobenius = float(torus.square().sum()) * size[0] * size[1]
    np.testing.assert_allclose(float((multiplicity * sigma.square()).sum()), frobenius, rtol=1e-10)


def test_the_spectrum_of_a_linear_layer_is_that_of_its_matrix() -> None:
    linear = nn.Linear(7, 4).double()
    layer = layers.Layer("head", linear, 1, 1)
    sigma, multiplicity = circular_singular_values(layer.kernel, layer.height, layer.width, layer.stride)
    np.testing.assert_allclose(sigma, np.linalg.svd(linear.weight.detach().numpy(), compute_uv=False), atol=1e-12)
    assert multiplicity.tolist() == [1] * 4
    facts = dict(name="head", kind="linear", c_in=7, c_out=4, kernel=1, stride=1, height=1, width=1)
    more = dict(kernel_width=1, stride_width=1, groups=1, calls=1, rows=4, columns=7, operator="matrix")
    assert layer.facts() == facts | more


def test_a_float32_kernel_is_computed_in_float64() -> None:
    weight = kernel(3, 2, 3, 3).float()
    for size, stride in ((4, 1), (4, 2)):
        sigma, _ = circular_singular_values(weight, size, size, stride)
        assert sigma.dtype == torch.float64
        assert torch.equal(sigma, circular_singular_values(weight.double(), size, size, stride)[0])
    sigma, _ = circular_singular_values(weight[:, :, :1, :1], 4, 4)
    assert sigma.dtype == torch.float64


@pytest.mark.parametrize(("height", "width", "stride"), [(5, 4, 2), (4, 5, 2), (8, 8, 3), (1, 1, 2)])
@pytest.mark.parametrize("k", [1, 3])
def test_a_stride_that_does_not_divide_the_input_is_refused(height: int, width: int, stride: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"stride {stride}.*{height} x {width}"):
        circular_singular_values(kernel(2, 2, k, k), height, width, stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_power_iteration_with_the_layer_itself_gives_the_largest_value(stride: int) -> None:
    conv = nn.Conv2d(3, 4, 3, stride, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(kernel(4, 3, 3, 3))
    x = kernel(1, 3, 8, 8, seed=1).requires_grad_()
    for _ in range(500):
        y = conv(x)
        (back,) = torch.autograd.grad(y, x, y.detach())
        x = (back / back.norm()).detach().requires_grad_()
    largest = float(circular_singular_values(conv.weight.detach(), 8, 8, stride)[0][0])
    assert float(conv(x).detach().norm()) == pytest.approx(largest, rel=1e-8)


@pytest.mark.parametrize(
    ("weight", "size", "stride"),
    [((3, 2, 3, 3), 6, 1), ((2, 3, 3, 3), 4, 2), ((4, 2, 1, 1), 3, 1), ((6, 2, 1, 1), 4, 2)],
)
def test_the_summary_equals_numpys_for_the_repeated_values(weight: tuple[int, ...], size: int, stride: int) -> None:
    found = circular_singular_values(kernel(*weight), size, size, stride)
    values = repeated(found)
    expected = {
        "n": len(values),
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
    }
    assert summarise_spectrum(*found) == pytest.approx(expected, rel=1e-12)


def test_the_summary_weights_by_multiplicity() -> None:
    found = summarise_spectrum(torch.tensor([3.0, 1.0], dtype=torch.float64), torch.tensor([1, 3]))
    assert found == {"n": 4, "mean": 1.5, "std": pytest.approx(0.75**0.5), "min": 1.0, "max": 3.0}


# The layers of a network


def test_layers_are_listed_in_forward_order_with_their_input_sizes(net: Callable[..., nn.Module]) -> None:
    model = net()
    found = list_layers(model, (1, 8, 8))
    assert [layer.name for layer in found] == [
        "network.stem",
        "network.stages.0.0.conv1",
        "network.stages.0.0.conv2",
        "network.stages.1.0.conv1",
        "network.stages.1.0.conv2",
        "network.stages.2.0.conv1",
        "network.stages.2.0.conv2",
        "network.linear",
    ]
    assert [layer.height for layer in found] == [8, 8, 8, 8, 4, 4, 2, 1]
    assert [layer.width for layer in found] == [8, 8, 8, 8, 4, 4, 2, 1]
    assert [layer.stride for layer in found] == [1, 1, 1, 2, 1, 2, 1, 1]
    assert [layer.kind for layer in found] == ["conv"] * 7 + ["linear"]
    assert [layer.kernel.shape[:2] for layer in found] == [
        (4, 1),
        (4, 4),
        (4, 4),
        (8, 4),
        (8, 8),
        (16, 8),
        (16, 16),
        (10, 16),
    ]
    for layer in found:
        assert torch.equal(layer.kernel.flatten(1), model.state_dict()[f"{layer.name}.weight"].flatten(1))
    assert not any(module._forward_pre_hooks for module in model.modules())


class Backwards(nn.Module):
    """A network that uses its layers in another order than it defines them, on an oblong image."""

    def __init__(self, **second: Any) -> None:
        super().__init__()
        self.last = nn.Linear(2, 3)
        self.second = nn.Conv2d(4, 2, **({"kernel_size": 3, "padding": 1} | second))
        self.first = nn.Conv2d(1, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).mean((2, 3)))


def test_layers_are_not_listed_in_the_order_of_definition() -> None:
    found = list_layers(Backwards(), (1, 8, 12))
    assert [(layer.name, layer.height, layer.width) for layer in found] == [
        ("first", 8, 12),
        ("second", 4, 6),
        ("last", 1, 1),
    ]


def test_record_writes_every_value_and_one_row_per_layer(run, identity, tmp_path) -> None:
    paths = {kind: tmp_path / f"{kind}.parquet" for kind in ("sv", "svstd", "live", "padding")}
    spectra.record(checkpoint=run.checkpoint, **paths, dense=128, device="cpu")
    sv, svstd, live, padding = paths.values()
    values, rows, alive, padded = (parquet.read(path).to_pandas() for path in paths.values())
    assert parquet.read_metadata(live) == identity
    assert alive[["layer", "name", "std", "max"]].equals(rows[["layer", "name", "std", "max"]])
    assert list(padded) == schemas.SCHEMAS["padding"].names
    assert parquet.read_metadata(padding) == identity
    assert padded[["layer", "name"]].equals(rows[["layer", "name"]])
    assert padded["std_circular"].equals(rows["std"])
    assert padded["max_circular"].equals(rows["max"])
    assert padded["method"].tolist() == ["dense", "lanczos", "lanczos", "dense", "dense", "dense", "dense", "same"]
    assert padded["std_zero"].isna().tolist() == [method == "lanczos" for method in padded["method"]]
    assert list(values) == schemas.SCHEMAS["sv"].names
    assert list(rows) == schemas.SCHEMAS["svstd"].names
    assert rows["layer"].tolist() == list(range(1, 9))
    assert parquet.read_metadata(sv) == identity
    assert parquet.read_metadata(svstd) == identity | {"unmeasured": {}}
    assert rows["method"].tolist() == ["fft"] * 7 + ["dense"]
    assert rows["operator"].tolist() == ["circular"] * 7 + ["matrix"]
    assert rows[["error_mean", "error_std"]].isna().all(axis=None)
    for row in rows.to_dict("records"):
        own = values[values["layer"] == row["layer"]]
        weight = run.model.state_dict()[f"{row['name']}.weight"].double()
        shape = (row["c_out"], row["c_in"], row["kernel"], row["kernel"])
        operator = dense(weight.view(shape), row["height"], row["width"], row["stride"])
        expected = np.linalg.svd(operator, compute_uv=False)
        found = np.sort(np.repeat(own["sigma"], own["multiplicity"]))[::-1]
        np.testing.assert_allclose(found, expected, atol=1e-10)
        assert set(own["name"]) == {row["name"]}
        assert row["n"] == len(expected)
        assert [row[key] for key in ("mean", "std", "min", "max")] == pytest.approx(
            [expected.mean(), expected.std(), expected.min(), expected.max()], abs=1e-10
        )


def test_listing_the_layers_does_not_change_batch_statistics() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2)).train()
    layers.list_layers(net, (1, 8, 8))
    assert net.training
    assert int(net[1].num_batches_tracked) == 0


def test_padding_same_is_accepted() -> None:
    assert len(list_layers(Backwards(kernel_size=5, padding="same"), (1, 8, 12))) == 3

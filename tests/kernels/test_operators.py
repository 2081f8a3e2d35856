"""The operators of the training pass, in Triton's interpreter or on a GPU, against torch's own and their gradients."""

import shutil

import pytest
import torch
from test_residual_attack import DEVICE, GPU, batch, exact, network, of_torchvision, relative
from torch.nn import functional

pytest.importorskip("triton", reason="Triton comes with torch for Linux")
from robreg.kernels.blocks import UnsuitableError
from robreg.kernels.convolution import convolve as launch
from robreg.kernels.operators import FusedNetwork, convolution_input_gradient, residual_convolution

assert exact  # a fixture of both files


def drawn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE).requires_grad_()


def plain(*given):
    """Do as the operator does, with torch's."""
    x, weight, before, after, shortcut, shortcut_bias, stride, shortcut_stride = given
    out = functional.conv2d(x if before is None else x + before, weight, None, stride, weight.shape[2] // 2)
    if after is not None:
        out = out + (after if after.ndim == 0 else after.view(-1, 1, 1))
    if shortcut is not None:
        read = shortcut if shortcut_bias is None else shortcut + shortcut_bias
        read = read[:, :, ::shortcut_stride, ::shortcut_stride]
        out = out + functional.pad(read, (0, 0, 0, 0, 0, out.shape[1] - read.shape[1]))
    return functional.relu(out)


def case(name):
    """Return the arguments of the operator."""
    x, weight = drawn(2, 16, 7, 6, seed=1), drawn(32, 16, 3, 3, seed=2)
    before, after, bias = (drawn(seed=seed) for seed in (3, 4, 5))
    return {
        "nothing else": (x, weight, None, None, None, None, 1, 1),
        "subsampled": (x, weight, None, None, None, None, 2, 1),
        "scalars": (x, weight, before, after, None, None, 1, 1),
        "numbers per channel": (x, weight, None, drawn(32, seed=6), None, None, 2, 1),
        "shortcut": (x, weight, before, after, drawn(2, 32, 7, 6, seed=7), None, 1, 1),
        "shortcut of fewer channels": (x, weight, before, after, drawn(2, 16, 7, 6, seed=7), bias, 1, 1),
        "subsampled shortcut": (x, weight, None, after, drawn(2, 16, 7, 6, seed=7), bias, 2, 2),
        "1x1": (x, drawn(32, 16, 1, 1, seed=8), None, None, None, None, 2, 1),
    }[name]


CASES = (
    "nothing else",
    "subsampled",
    "scalars",
    "numbers per channel",
    "shortcut",
    "shortcut of fewer channels",
    "subsampled shortcut",
    "1x1",
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_result_and_all_gradients_are_those_of_torch(name, layout):
    given = case(name)
    given = (given[0].detach().to(memory_format=layout).requires_grad_(), *given[1:])
    wanted = [one for one in given if isinstance(one, torch.Tensor)]
    found, expected = residual_convolution(*given), plain(*given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = drawn(*expected.shape, seed=9).detach()
    pairs = zip(*(torch.autograd.grad(one, wanted, direction) for one in (found, expected)), strict=True)
    for number, (mine, theirs) in enumerate(pairs):
        assert mine.shape == theirs.shape
        assert relative(mine, theirs) < 1e-5, number


@pytest.mark.parametrize("name", ["subsampled shortcut", "scalars"])
def test_torch_accepts_the_operators(name):
    torch.library.opcheck(residual_convolution, case(name), atol=1e-4, rtol=1e-4)
    gradient, weight = drawn(2, 32, 4, 3, seed=1).detach(), drawn(32, 16, 3, 3, seed=2).detach()
    torch.library.opcheck(convolution_input_gradient, (gradient, weight, 7, 6, 2))


@pytest.mark.parametrize("arch", ["resnet8", "resnet8nobias"])
def test_a_fused_network_is_the_network_and_has_its_gradients(arch):
    model, (x, y, _) = network(arch).requires_grad_(), batch(3)
    fused = FusedNetwork(model)
    assert {id(one) for one in fused.parameters()} == {id(one) for one in model.parameters()}
    compare(model, fused, x, y)


def compare(model, fused, x, y):
    logits = [one(x) for one in (model, fused)]
    assert relative(logits[1].detach(), logits[0].detach()) < 1e-5
    losses = [functional.cross_entropy(one, y) for one in logits]
    expected, found = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    for name, one, other in zip(dict(model.named_parameters()), found, expected, strict=True):
        assert relative(one, other) < 1e-4, name


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_fused_network_can_be_compiled():
    model, (x, y, _) = network(shape=(3, 4, 4)).requires_grad_(), batch(2, (3, 4, 4))
    torch._dynamo.reset()
    compare(model, torch.compile(FusedNetwork(model), dynamic=False, fullgraph=True), x, y)


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        (0, (2, 32, 7, 6)),
        (1, (24, 16, 3, 3)),
        (1, (32, 16, 3, 1)),
        (1, (32, 16, 5, 5)),
        (3, (16,)),
        (4, (2, 32, 4, 6)),
        (4, (1, 32, 7, 6)),
        (4, (2, 48, 7, 6)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed, value):
    given = [*case("shortcut")]
    given[changed] = drawn(*value, seed=1)
    with pytest.raises(ValueError, match="these shapes do not fit"):
        residual_convolution(*given)


def test_gradients_that_do_not_fit_are_refused():
    for shape, weight in (((1, 16, 4, 4), (32, 16, 3, 3)), ((1, 32, 4, 4), (32, 24, 3, 3))):
        with pytest.raises(ValueError, match="these shapes do not fit"):
            convolution_input_gradient(drawn(*shape, seed=1).detach(), drawn(*weight, seed=2).detach(), 4, 4, 1)


def test_networks_that_the_operators_do_not_fit_are_refused():
    for model, reason in ((network("fixup8"), "multipliers or projections"), (of_torchvision()[0], "projections")):
        with pytest.raises(UnsuitableError, match=reason):
            FusedNetwork(model)
    with pytest.raises(UnsuitableError, match="batch normalisation"):
        FusedNetwork(of_torchvision(fold=False)[1])


@GPU
def test_on_a_gpu_bf16_gradients_are_as_near_to_fp32_as_those_of_the_plain_network():
    model, (x, y, _) = network("resnet56", shape=(3, 32, 32)).requires_grad_(), batch(33, (3, 32, 32))
    weights = list(model.parameters())

    def gradient(one, *, low):
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            loss = functional.cross_entropy(one(x), y)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])

    expected, rounded = (gradient(model, low=low) for low in (False, True))
    found = gradient(FusedNetwork(model, tune=True), low=True)
    assert relative(found, expected) < 1.5 * relative(rounded, expected) + 1e-3


def test_images_with_more_values_than_the_kernels_count_are_refused():
    x = torch.empty(2**14, 128, 64, 16, device="meta")
    with pytest.raises(ValueError, match="at most 2\\^31 - 1 values, not 2147483648"):
        launch(x, torch.empty(3, 3, 16, 16), x)

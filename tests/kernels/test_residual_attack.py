"""The attack's kernels, in Triton's interpreter or on a GPU, against autograd and against the plain attack."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from robreg.attacks.pgd import input_gradient, pgd, pgd_iterates, pixel_radius
from robreg.kernels.blocks import UnsuitableError, describe
from robreg.networks.build import build_network
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.fixup_resnet import ResidualBlock
from robreg.training.folding import fold_batch_norms

pytest.importorskip("triton", reason="Triton comes with torch for Linux")
from robreg.kernels.residual_attack import ResidualAttack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
BALL = {"eps": 8 / 255, "step": 2 / 255, "steps": 3}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Let a GPU compute float32 in float32, as every job does."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(arch="resnet8", *, width=16, shape=(3, 8, 8), classes=10):
    """Return a network with random weights and scalars; Fixup's initialisation gives gradients of 0."""
    torch.manual_seed(0)
    channels = shape[0]
    mean, std = [0.4, 0.5, 0.6, 0.3][:channels], [0.2, 0.25, 0.3, 0.35][:channels]
    model = build_network(arch, width=width, shape=shape, classes=classes, mean=mean, std=std).eval()
    for parameter in model.parameters():
        std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
        nn.init.normal_(parameter, std=std)
    return model.requires_grad_(requires_grad=False).to(DEVICE)


def of_torchvision(block="Bottleneck", *, classes=10, fold=True):
    """Return a network as wrn50 is, with two stages and random weights and statistics: folded, and as it was."""
    from torchvision.models import resnet

    torch.manual_seed(0)
    options = {"width_per_group": 16} if block == "Bottleneck" else {}
    net = resnet.ResNet(getattr(resnet, block), [1, 2, 1, 1], num_classes=classes, **options)
    net.layer3, net.layer4 = nn.Sequential(), nn.Sequential()
    net.fc = nn.Linear(net.layer2[0].bn2.num_features if block == "BasicBlock" else 512, classes)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.3)
    model = Classifier(Normalise([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), net).eval().requires_grad_(requires_grad=False)
    folded = copy.deepcopy(model).to(DEVICE)
    for update in fold_batch_norms(folded, torch.float32) if fold else []:
        update()
    return folded, model.to(DEVICE)


def batch(n=3, shape=(3, 8, 8), classes=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.rand(n, *shape, generator=generator) for _ in range(2))
    y = torch.randint(classes, (n,), generator=generator)
    return x.to(DEVICE), y.to(DEVICE), (2 * noise - 1).to(DEVICE)


def attack_of(model, x, dtype=torch.float32, **ball):
    return ResidualAttack(model, x, **{**BALL, **ball}, dtype=dtype)


def same_attack(found, expected):
    """Check that no pixel differs by more than rounding, or on a GPU one, whose gradient is below it."""
    assert int(((found - expected).abs() > 1e-6).sum()) <= (DEVICE == "cuda")


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("arch", ["resnet8", "resnet8nobias", "fixup8"])
@pytest.mark.parametrize(("n", "shape"), [(1, (3, 8, 8)), (3, (1, 9, 7)), (2, (4, 6, 11))])
def test_the_gradient_is_that_of_autograd(arch, n, shape):
    model, (x, y, _) = network(arch, shape=shape), batch(n, shape)
    found, expected = attack_of(model, x).gradient(x, y), input_gradient(model, x, y)
    assert found.shape == x.shape
    assert relative(found, expected) < 1e-5
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-5


@pytest.mark.parametrize(("arch", "width", "classes"), [("resnet8", 32, 3), ("fixup8", 16, 17), ("resnet14", 16, 2)])
def test_other_depths_widths_and_numbers_of_classes(arch, width, classes):
    depth = int(arch.removeprefix("resnet").removeprefix("fixup"))
    model, (x, y, _) = network(arch, width=width, classes=classes), batch(2, classes=classes)
    assert depth == 2 + 2 * sum(1 for module in model.modules() if hasattr(module, "conv2"))
    assert relative(attack_of(model, x).gradient(x, y), input_gradient(model, x, y)) < 1e-5


@pytest.mark.parametrize("arch", ["resnet8", "resnet8nobias", "fixup8"])
def test_every_activation_is_that_of_the_network(arch):
    model, (x, _, _) = network(arch), batch()
    found = attack_of(model, x).activations(x)
    network_ = model.network
    first = network_.stem(model.normalise(x))
    expected = functional.relu(first + network_.bias1 if network_.has_biases else first)
    torch.testing.assert_close(found.after[0].permute(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-5)
    blocks = [block for stage in network_.stages for block in stage]
    for after, block in zip(found.after[1:], blocks, strict=True):
        expected = block(expected)
        torch.testing.assert_close(after.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", ["Bottleneck", "BasicBlock"])
@pytest.mark.parametrize(("n", "size", "classes"), [(3, 8, 10), (1, 9, 100)])
def test_networks_with_batch_normalisation_are_attacked_with_it_folded(block, n, size, classes):
    (folded, model), (x, y, noise) = of_torchvision(block, classes=classes), batch(n, (3, size, size), classes)
    attack = attack_of(folded, x)
    assert relative(attack.gradient(x, y), input_gradient(model, x, y)) < 1e-5
    same_attack(attack(x, y, noise), pgd(model, x, y, **BALL, noise=noise))


def test_the_papers_bottleneck_network_is_suitable():
    model = build_network("wrn50", width=8, shape=(3, 16, 16), classes=200, mean=[0.5] * 3, std=[0.25] * 3).eval()
    model.requires_grad_(requires_grad=False)
    fold_batch_norms(model, torch.float32)
    described = describe(model)
    assert [len(block.layers) for block in described.blocks] == [3] * 16
    assert [block.projection is not None for block in described.blocks].count(True) == 4
    assert len(described.convolutions) == 52


@pytest.mark.parametrize("space", ["pixel", "normalised"])
@pytest.mark.parametrize("random", [True, False])
def test_every_iterate_is_that_of_the_plain_attack(space, random):
    model, (x, y, noise) = network(), batch(4)
    x[0, :, :2] = 0.0  # where the ball is cut at both ends of the range of pixels
    x[1, :, :2] = 1.0
    eps, step = (pixel_radius(radius, space, model.normalise.std) for radius in (8, 2))
    noise = noise if random else None
    iterates = pgd_iterates(model, x, y, eps=eps, step=step, steps=3, noise=noise)
    for steps, (expected, _) in enumerate(iterates):
        found = attack_of(model, x, eps=eps, step=step, steps=steps)(x, y, noise)
        same_attack(found, expected)
    assert not torch.equal(found, x)


def test_the_weights_are_read_anew_at_every_call():
    model, (x, y, _) = network(), batch()
    attack = attack_of(model, x)
    before = attack.gradient(x, y)
    for parameter in model.parameters():
        parameter.mul_(0.9)
    after = attack.gradient(x, y)
    assert relative(after, before) > 1e-2
    assert relative(after, input_gradient(model, x, y)) < 1e-5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_may_have_any_layout_and_stay_as_they_are(layout):
    model, (x, y, noise) = network(), batch()
    given = x.to(memory_format=layout)
    found = attack_of(model, given)(given, y, noise)
    assert torch.equal(given, x)
    assert found.stride() == given.stride()
    same_attack(found, pgd(model, x, y, **BALL, noise=noise))


def test_pixels_that_share_memory_are_attacked_as_others():
    model, (x, y, noise) = network(), batch()
    given = x[:, :1].expand(-1, 3, -1, -1)
    found = attack_of(model, given)(given, y, noise)
    same_attack(found, pgd(model, given.clone(), y, **BALL, noise=noise))
    assert relative(attack_of(model, given).gradient(given, y), input_gradient(model, given.clone(), y)) < 1e-5


class Dropping(ResidualBlock):
    """A block that does something else in training."""


class Stage(nn.Sequential):
    """A stage that may do something else."""


class Subclass(Classifier):
    """A classifier that may do something else."""


def replaced(model):
    model.network.stages[0].forward = lambda x: x
    return model


def changed(name, layer, *others, model=None):
    model = of_torchvision()[0] if model is None else model
    for one in (name, *others):
        model.network.set_submodule(one, layer)
    return model


def hooked(model):
    model.network.stem.register_forward_hook(lambda *_: None)
    return model


class Own(Normalise):
    """A normalising layer of somebody's own."""


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(1, 1), "does not begin with the normalising layer"),
        (lambda: Classifier(Own([0.5], [0.5]), network().network), "does not begin with the normalising layer"),
        (lambda: Classifier(Normalise([0.5], [0.5]), nn.Flatten()), "no ResNet of this package"),
        (lambda: network(width=8), "width 8 is no power of 2"),
        (lambda: network(width=48), "width 48 is no power of 2"),
        (lambda: of_torchvision(fold=False)[0], "batch normalisation that is not folded"),
        (lambda: changed("maxpool", nn.MaxPool2d(2)), "maxpool is MaxPool2d where the kernels compute Identity"),
        (lambda: changed("avgpool", nn.AdaptiveAvgPool2d(2)), "reads more than the mean over positions"),
        (lambda: changed("conv1", nn.Conv2d(3, 64, 3, 2, padding=1)), "its stem is no 3x3 convolution of stride 1"),
        (lambda: changed("conv1", nn.Conv2d(3, 64, 7, padding=3)), "its stem is no 3x3 convolution of stride 1"),
        (lambda: changed("conv1", nn.Sequential(nn.Conv2d(3, 64, 3, padding=1))), "conv1 is Sequential"),
        (lambda: changed("layer4", nn.Identity()), "layer4 is Identity"),
        (lambda: changed("layer1.0.conv1", nn.Sequential(nn.Conv2d(64, 16, 1))), "conv1 is Sequential"),
        (lambda: changed("layer1.0.relu", nn.SiLU()), "relu is SiLU where the kernels compute ReLU"),
        (lambda: changed("layer1.0.bn1", nn.GroupNorm(1, 16)), "bn1 is GroupNorm"),
        (lambda: changed("layer1.0.downsample", nn.Identity()), "downsample is Identity"),
        (lambda: changed("layer1.0.downsample.0", nn.AvgPool2d(1)), "0 is AvgPool2d"),
        (lambda: changed("layer1.0.downsample.1", nn.ReLU()), "the shortcut of a block is more than a convolution"),
        (lambda: changed("layer1", nn.Sequential(), "layer2"), "it has no residual blocks"),
        (lambda: changed("stages.0.0", Dropping(16, 16, 1), model=network()), "a block of its own, Dropping"),
        (lambda: changed("stages", nn.Sequential(nn.Dropout(0.5)), model=network()), "0 is Dropout"),
        (lambda: changed("stages.0", Stage(), model=network()), "0 is Stage"),
        (lambda: changed("stem", nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)), model=network()), "stem is Sequential"),
        (lambda: changed("stages.0.0.conv1", nn.Sequential(), model=network()), "conv1 is Sequential"),
        (lambda: changed("linear", nn.Identity(), model=network()), "linear is Identity"),
        (lambda: Subclass(*network().children()), "does not begin with the normalising layer"),
        (lambda: hooked(network()), "it has a hook or a function of its own, of network.stem"),
        (lambda: replaced(network()), "it has a hook or a function of its own, of network.stages.0"),
        (lambda: changed("fc", nn.Linear(512, 10, bias=False)), "its last layer has no bias"),
        (lambda: changed("layer1", nn.Sequential(nn.ReLU())), "it has a block of its own, ReLU"),
        (lambda: changed("layer1.0.conv2", nn.Conv2d(16, 16, 3, padding=2, dilation=2)), "do not compute Conv2d"),
        (lambda: changed("layer1.0.conv2", nn.Conv2d(16, 16, 3, padding=1, groups=2)), "do not compute Conv2d"),
        (lambda: changed("layer1.0.conv2", nn.Conv2d(24, 16, 3, padding=1)), "its channels are no multiples of 16"),
    ],
)
def test_a_network_that_the_kernels_do_not_fit_is_refused(model, reason):
    model = model if isinstance(model, nn.Module) else model()
    with pytest.raises(UnsuitableError, match=reason):
        ResidualAttack(model, batch()[0], **BALL, dtype=torch.float32)


@pytest.mark.parametrize("arch", ["resnet8", "fixup8"])
def test_more_classes_than_one_program_of_the_head_holds(arch):
    model, (x, y, _) = network(arch, classes=1000), batch(3, classes=1000)
    assert relative(attack_of(model, x).gradient(x, y), input_gradient(model, x, y)) < 1e-5


@GPU
@pytest.mark.parametrize(("arch", "n"), [("resnet8", 7), ("fixup8", 64), ("resnet56", 33)])
def test_on_a_gpu_bf16_is_as_near_to_fp32_as_the_plain_network_is(arch, n):
    model, (x, y, _) = network(arch, shape=(3, 32, 32)), batch(n, (3, 32, 32))
    expected = input_gradient(model, x, y)
    low = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        plain = input_gradient(low, x, y)
    found = attack_of(model, x, torch.bfloat16).gradient(x, y)
    assert relative(found, expected) < 1.5 * relative(plain, expected) + 1e-3


@GPU
def test_on_a_gpu_an_attack_is_the_same_in_a_graph_and_twice():
    model, (x, y, noise) = network(shape=(3, 32, 32)), batch(16, (3, 32, 32))
    attack = attack_of(model, x, torch.bfloat16)
    expected = attack(x, y, noise)
    assert torch.equal(attack(x, y, noise), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attack(x, y, noise)
    graph.replay()
    assert torch.equal(found, expected)

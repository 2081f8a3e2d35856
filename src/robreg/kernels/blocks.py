"""Residual networks as lists of what the kernels compute: convolutions, what is added to them, and shortcuts."""

from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor, nn

from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.fixup_resnet import FixupResNet, ResidualBlock

Part = TypeVar("Part", bound=nn.Module)
MULTIPLE = 16  # of which all numbers of channels but those of an image must be multiples


class UnsuitableError(ValueError):
    """The kernels cannot compute this network."""


@dataclass(frozen=True)
class Layer:
    """A convolution: scale * conv(x + before) + after; each of these may be missing."""

    conv: nn.Conv2d
    before: Tensor | None = None  # a scalar
    scale: Tensor | None = None  # a scalar
    after: Tensor | None = None  # a scalar, or a number per channel

    @property
    def stride(self) -> int:
        """The stride, which is the same for rows and columns."""
        return self.conv.stride[0]


@dataclass(frozen=True)
class Block:
    """Layers with ReLU after each, of which the last one's is after the shortcut is added.

    The shortcut is projection if there is one. Otherwise it is what the block reads plus shortcut_bias, subsampled by
    the block's stride, and channels that it lacks are 0.
    """

    layers: tuple[Layer, ...]
    projection: Layer | None = None
    shortcut_bias: Tensor | None = None

    @property
    def shortcut_stride(self) -> int:
        """The stride of the shortcut."""
        strides = [layer.stride for layer in self.layers] if self.projection is None else [self.projection.stride]
        return max(strides)


@dataclass(frozen=True)
class ResidualNetwork:
    """A normalising layer, a 3x3 stem with ReLU, blocks, the mean over positions, and a linear layer."""

    normalise: Normalise
    stem: Layer
    blocks: tuple[Block, ...]
    linear: nn.Linear
    before_linear: Tensor | None = None  # a scalar

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions of all blocks."""
        layers = [layer for block in self.blocks for layer in (*block.layers, block.projection) if layer is not None]
        return [layer.conv for layer in layers]


def describe(model: nn.Module) -> ResidualNetwork:
    """Describe a classifier of this package, or one with a ResNet of torchvision, for the kernels.

    A ResNet of torchvision must have a 3x3 stem and no pooling after it, and its batch normalisation must be folded
    into its convolutions. Raises UnsuitableError for a network that the kernels do not fit.
    """
    if not (type(model) is Classifier and type(model.normalise) is Normalise):
        raise UnsuitableError("the network does not begin with the normalising layer")
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks) or "forward" in vars(module):
            raise UnsuitableError(f"it has a hook or a function of its own, of {name}")
    if type(model.network) is FixupResNet:
        found = _describe_fixup(model.normalise, model.network)
    elif _is_of_torchvision(model.network, "ResNet"):
        found = _describe_torchvision(model.normalise, model.network)
    else:
        raise UnsuitableError("the network is no ResNet of this package or of torchvision")
    _check_layers(found)
    return found


def _describe_fixup(normalise: Normalise, network: FixupResNet) -> ResidualNetwork:
    blocks = []
    stages = _part(network, "stages", nn.Sequential)
    for block in (block for number in range(len(stages)) for block in _part(stages, str(number), nn.Sequential)):
        if type(block) is not ResidualBlock:
            raise UnsuitableError(f"it has a block of its own, {type(block).__name__}")
        conv1, conv2 = (_part(block, name, nn.Conv2d) for name in ("conv1", "conv2"))
        first = Layer(conv1, before=_scalar(block, "bias1a"), after=_scalar(block, "bias1b"))
        last = Layer(conv2, _scalar(block, "bias2a"), block.scale, _scalar(block, "bias2b"))
        changes = block.stride > 1 or block.new_channels > 0
        blocks.append(Block((first, last), shortcut_bias=_scalar(block, "bias1a") if changes else None))
    stem = Layer(_part(network, "stem", nn.Conv2d), after=_scalar(network, "bias1"))
    linear = _part(network, "linear", nn.Linear)
    return ResidualNetwork(normalise, stem, tuple(blocks), linear, _scalar(network, "bias2"))


def _describe_torchvision(normalise: Normalise, network: nn.Module) -> ResidualNetwork:
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise UnsuitableError("it has batch normalisation that is not folded into convolutions")
    stem = _part(network, "conv1", nn.Conv2d)
    for name, kind in (("bn1", nn.Identity), ("relu", nn.ReLU), ("maxpool", nn.Identity)):
        _part(network, name, kind)
    if _part(network, "avgpool", nn.AdaptiveAvgPool2d).output_size not in (1, (1, 1)):
        raise UnsuitableError("its last layer reads more than the mean over positions")
    stages = [_part(network, name, nn.Sequential) for name in ("layer1", "layer2", "layer3", "layer4")]
    blocks = tuple(_describe_block(block) for stage in stages for block in stage)
    return ResidualNetwork(normalise, Layer(stem, after=stem.bias), blocks, _part(network, "fc", nn.Linear))


def _describe_block(block: nn.Module) -> Block:
    counts = {"BasicBlock": 2, "Bottleneck": 3}
    found = [count for kind, count in counts.items() if _is_of_torchvision(block, kind)]
    if not found:
        raise UnsuitableError(f"it has a block of its own, {type(block).__name__}")
    _part(block, "relu", nn.ReLU)
    layers = []
    for number in range(1, found[0] + 1):
        conv = _part(block, f"conv{number}", nn.Conv2d)
        _part(block, f"bn{number}", nn.Identity)
        layers.append(Layer(conv, after=conv.bias))
    if block._modules.get("downsample") is None:
        return Block(tuple(layers))
    shortcut = _part(block, "downsample", nn.Sequential)
    first = _part(shortcut, "0", nn.Conv2d)
    if any(type(module) is not nn.Identity for module in shortcut[1:]):
        raise UnsuitableError("the shortcut of a block is more than a convolution")
    return Block(tuple(layers), Layer(first, after=first.bias))


def _part(module: nn.Module, name: str, kind: type[Part]) -> Part:
    """Return the part of a module that has this name. Raises UnsuitableError if it is not of this very class."""
    found = module._modules.get(name)
    if type(found) is not kind:
        raise UnsuitableError(f"{name} is {type(found).__name__} where the kernels compute {kind.__name__}")
    return found


def _check_layers(found: ResidualNetwork) -> None:
    """Raise UnsuitableError for a layer that the kernels cannot compute."""
    if not found.blocks:
        raise UnsuitableError("it has no residual blocks")
    width = found.stem.conv.out_channels
    if found.stem.conv.kernel_size != (3, 3) or found.stem.stride != 1:
        raise UnsuitableError("its stem is no 3x3 convolution of stride 1")
    if width % MULTIPLE or width & (width - 1):
        raise UnsuitableError(f"its width {width} is no power of 2 from {MULTIPLE} on")
    projections = [id(block.projection.conv) for block in found.blocks if block.projection is not None]
    for conv in [found.stem.conv, *found.convolutions]:
        size, stride = conv.kernel_size[0], conv.stride[0]
        plain = size in (1, 3) and conv.kernel_size == (size, size) and conv.stride == (stride, stride)
        plain = plain and conv.padding == (size // 2, size // 2) and conv.padding_mode == "zeros"
        plain = plain and conv.groups == 1 and conv.dilation == (1, 1)
        if not plain or (size > 1 and id(conv) in projections):
            raise UnsuitableError(f"the kernels do not compute {conv}")
        if conv is not found.stem.conv and (conv.in_channels % MULTIPLE or conv.out_channels % MULTIPLE):
            raise UnsuitableError(f"its channels are no multiples of {MULTIPLE}: {conv}")
    if found.linear.bias is None:
        raise UnsuitableError("its last layer has no bias")


def _is_of_torchvision(module: nn.Module, name: str) -> bool:
    """Return whether a module is of this class; torchvision is not imported for that, which takes seconds."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__ == "torchvision.models.resnet"


def _scalar(module: nn.Module, name: str) -> Tensor | None:
    return cast(Tensor | None, getattr(module, name, None))

"""Residual networks as lists of what the kernels compute: convolutions, what is added to them, and shortcuts."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.fixup_resnet import FixupResNet, ResidualBlock

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

    A ResNet of torchvision must have a 3x3 stem and no pooling, and its batch normalisation must be folded into its
    convolutions. Raises UnsuitableError for a network that the kernels do not fit.
    """
    if not (isinstance(model, Classifier) and type(model.normalise) is Normalise):
        raise UnsuitableError("the network does not begin with the normalising layer")
    if type(model.network) is FixupResNet:
        found = _describe_fixup(model.normalise, model.network)
    elif _is_of_torchvision(model.network, "ResNet"):
        found = _describe_torchvision(model.normalise, model.network)
    else:
        raise UnsuitableError("the network is no ResNet of this package")
    _check_layers(found)
    return found


def _describe_fixup(normalise: Normalise, network: FixupResNet) -> ResidualNetwork:
    blocks = []
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            first = Layer(block.conv1, before=_scalar(block, "bias1a"), after=_scalar(block, "bias1b"))
            last = Layer(block.conv2, _scalar(block, "bias2a"), block.scale, _scalar(block, "bias2b"))
            changes = block.stride > 1 or block.new_channels > 0
            blocks.append(Block((first, last), shortcut_bias=_scalar(block, "bias1a") if changes else None))
    stem = Layer(network.stem, after=_scalar(network, "bias1"))
    return ResidualNetwork(normalise, stem, tuple(blocks), network.linear, _scalar(network, "bias2"))


def _describe_torchvision(normalise: Normalise, network: nn.Module) -> ResidualNetwork:
    parts = dict(network.named_children())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise UnsuitableError("it has batch normalisation that is not folded into convolutions")
    if type(parts["maxpool"]) is not nn.Identity or cast(nn.Conv2d, parts["conv1"]).stride != (1, 1):
        raise UnsuitableError("its stem makes images smaller")
    blocks = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block in cast(nn.Sequential, parts[stage]):
            if not (_is_of_torchvision(block, "BasicBlock") or _is_of_torchvision(block, "Bottleneck")):
                raise UnsuitableError(f"it has a block of its own, {type(block).__name__}")
            inside = dict(block.named_children())
            convolutions = [inside[name] for name in ("conv1", "conv2", "conv3") if name in inside]
            shortcut = inside.get("downsample")
            projection = None if shortcut is None else _layer(cast(nn.Sequential, shortcut)[0])
            blocks.append(Block(tuple(_layer(conv) for conv in convolutions), projection))
    return ResidualNetwork(normalise, _layer(parts["conv1"]), tuple(blocks), cast(nn.Linear, parts["fc"]))


def _check_layers(found: ResidualNetwork) -> None:
    """Raise UnsuitableError for a layer that the kernels cannot compute."""
    width = found.stem.conv.out_channels
    if found.stem.conv.kernel_size != (3, 3) or width % MULTIPLE or width & (width - 1):
        raise UnsuitableError(f"its width {width} is no power of 2 from {MULTIPLE} on, or its stem is not 3x3")
    projections = [block.projection.conv for block in found.blocks if block.projection is not None]
    for conv in [found.stem.conv, *found.convolutions]:
        size, stride = conv.kernel_size[0], conv.stride[0]
        plain = size in (1, 3) and conv.kernel_size == (size, size) and conv.stride == (stride, stride)
        plain = plain and conv.padding == (size // 2, size // 2) and conv.padding_mode == "zeros"
        plain = plain and conv.groups == 1 and conv.dilation == (1, 1) and type(conv) is nn.Conv2d
        if not plain or (size > 1 and conv in projections):
            raise UnsuitableError(f"the kernels do not compute {conv}")
        if conv is not found.stem.conv and (conv.in_channels % MULTIPLE or conv.out_channels % MULTIPLE):
            raise UnsuitableError(f"its channels are no multiples of {MULTIPLE}: {conv}")
    if type(found.linear) is not nn.Linear or found.linear.bias is None:
        raise UnsuitableError("its last layer is not linear with a bias")


def _layer(module: nn.Module) -> Layer:
    conv = cast(nn.Conv2d, module)
    return Layer(conv, after=conv.bias)


def _is_of_torchvision(module: nn.Module, name: str) -> bool:
    """Return whether a module is of this class; torchvision is not imported for that, which takes seconds."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__ == "torchvision.models.resnet"


def _scalar(module: nn.Module, name: str) -> Tensor | None:
    return cast(Tensor | None, getattr(module, name, None))

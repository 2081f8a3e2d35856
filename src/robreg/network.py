"""Networks: a Normalise layer, then a residual net: Fixup (Zhang et al. 2019), wide bottleneck, or a user's own."""

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.saved import fill, unpack

_SAID = {  # by a checkpoint, beside what its network is built from
    "dataset": str,
    "variant": str,
    "seed": int,
    "threads": int,
    "data_sha256": str,
    "settings_hash": str,
    "version": str,
}


class FactoryError(ValueError):
    """A user's architecture that cannot be imported, called or used."""


class Normalise(nn.Module):
    """Subtract a channel's mean and divide by its std, so that attacks in front of it see pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep mean and std, one positive value per channel, as (C, 1, 1) buffers."""
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean {mean} and std {std} must have one value per channel, std positive")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise pixels."""
        return (x - self.mean) / self.std  # (B, C, H, W)


class Block(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut: subsampled, and padded with zero channels where it grows."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        """Map (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.stride = stride
        self.new_channels = c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the branch, then ReLU."""
        branch = self.conv2(functional.relu(self.conv1(x)))  # (B, C, H, W)
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(branch + shortcut)


class FixupResNet(nn.Module):
    """ResNet of depth 6n+2 with Fixup initialisation and without Fixup's scalar layers (paper, appendix D)."""

    def __init__(self, depth: int, channels: int, classes: int, width: int = 16) -> None:
        """Build stem, three stages of n blocks with width, 2 width, 4 width channels, and the linear layer."""
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a ResNet of this family has depth 6n+2 with n >= 1, not {depth}")
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        widths = [width, 2 * width, 4 * width]
        self.stages = nn.Sequential(*[_stage(width, c_out, blocks) for c_out in widths])
        self.linear = nn.Linear(4 * width, classes)
        self.reset(3 * blocks)

    def reset(self, blocks: int) -> None:
        """Initialise as Fixup does: branch's first convolution He (fan out) times L^(-1/2), its last and linear zero.

        The stem keeps PyTorch's default. So all logits are exactly 0 at the start.
        """
        for module in self.modules():
            if isinstance(module, Block):
                fan_out = module.conv1.out_channels * math.prod(module.conv1.kernel_size)
                nn.init.normal_(module.conv1.weight, std=math.sqrt(2 / fan_out / blocks))
                nn.init.zeros_(module.conv2.weight)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        features = self.stages(functional.relu(self.stem(x)))  # (B, 4 width, H / 4, W / 4)
        return self.linear(features.mean((2, 3)))  # (B, classes)


def _stage(width: int, c_out: int, blocks: int) -> nn.Sequential:
    first = Block(c_out if c_out == width else c_out // 2, c_out, stride=1 if c_out == width else 2)
    return nn.Sequential(first, *[Block(c_out, c_out, stride=1) for _ in range(blocks - 1)])


class Classifier(nn.Module):
    """Normalise layer and network: maps pixels in [0, 1] to logits."""

    def __init__(self, normalise: Normalise, network: nn.Module) -> None:
        """Put normalise in front of network."""
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) of pixels (B, C, H, W) in [0, 1]."""
        return self.network(self.normalise(x))


def wide_bottleneck(channels: int, classes: int, width: int) -> nn.Module:
    """Build the 50-layer wide bottleneck ResNet for small images (paper, D.2): torchvision's, with another entrance.

    3x3 stem of stride 1, no max pool, convolutions Xavier-uniform (Glorot and Bengio 2010), batch normalisation kept.
    width: 64 makes 3x3 convolutions of 2 x 64, 2 x 128, 2 x 256 and 2 x 512 channels. Images (B, channels, H, W).
    """
    from torchvision.models.resnet import Bottleneck, ResNet  # noqa: PLC0415 - three seconds that others should not pay

    network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=classes, width_per_group=2 * width)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return network


def own(factory: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a user's network: factory["callable"], "module:name", called with num_classes and factory["arguments"].

    Nothing is called but a class of nn.Module or a function that says that it returns one: a checkpoint names its
    callable, too, and anything else that can be imported could be made to run a command. Raises FactoryError, naming
    the callable and the mend, where it cannot be imported or called, or is neither.
    """
    path = factory["callable"]
    module, _, name = path.partition(":")
    where = f"config.yaml: architectures: callable {path!r}"
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise FactoryError(f"{where} cannot be imported ({error}); install it, or correct the path") from error
    if not _makes_networks(found):
        mend = "name a class of nn.Module, or annotate the function: -> nn.Module"
        raise FactoryError(f"{where} does not say that it makes an nn.Module; {mend}")
    try:
        network = found(num_classes=classes, **factory["arguments"])
    except TypeError as error:
        raise FactoryError(f"{where} cannot be called ({error}); it must take num_classes and the arguments") from error
    if not isinstance(network, nn.Module):
        raise FactoryError(f"{where} returned a {type(network).__name__}, not an nn.Module; name one that does")
    return network


def _makes_networks(found: object) -> bool:
    try:
        made = found if isinstance(found, type) else get_type_hints(found)["return"]
    except (AttributeError, KeyError, NameError, TypeError):
        return False
    return isinstance(made, type) and issubclass(made, nn.Module)


def build(  # noqa: PLR0913 - what a checkpoint must say to be rebuilt
    arch: str,
    *,
    width: int,
    shape: Sequence[int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    factory: Mapping[str, Any] | None = None,
) -> Classifier:
    """Build Normalise + network from an architecture's name ("resnet56") for images of shape (C, H, W) in [0, 1].

    factory: of a user's architecture (see own), None for one of the package's. Raises ValueError for an unknown name.
    """
    depth = re.fullmatch(r"resnet(\d+)", arch)
    if factory is not None:
        network = own(factory, classes)
    elif arch == "wrn50":
        network = wide_bottleneck(shape[0], classes, width)
    elif depth is not None:
        network = FixupResNet(int(depth[1]), shape[0], classes, width)
    else:
        raise ValueError(
            f"architecture {arch!r} is unknown: use resnet8, resnet56, resnet110, wrn50, or one of your own"
        )
    return Classifier(Normalise(mean, std), network)


def _refuse_odd(weights: Mapping[str, Tensor], model: Classifier, meta: Mapping[str, Any]) -> None:
    """Raise ValueError for a normalisation that is not the meta data's, and for meta data that a measure would miss."""
    for name, value in model.normalise.state_dict().items():
        if not torch.equal(weights[f"normalise.{name}"], value):
            raise ValueError(f"normalise.{name} is not that of the meta data")
    for key, kind in _SAID.items():
        if type(meta[key]) is not kind:
            raise ValueError(f"{key} is not of type {kind.__name__}")


def load(checkpoint: Path) -> tuple[Classifier, dict[str, Any]]:
    """Load a checkpoint's network on the CPU in eval mode, and its meta data; nothing else is called (see own).

    Raises ValueError, naming the file, where it is damaged, does not fit its own meta data or holds a value that is
    not finite; FactoryError where the user's architecture cannot be imported here.
    """
    try:
        content = unpack(checkpoint, "cpu")
        meta = content["meta"]
        keys = ("width", "shape", "classes", "mean", "std", "factory")
        model = build(meta["arch"], **{key: meta[key] for key in keys})
        _refuse_odd(content["model"], model, meta)
        fill(model, content["model"])
    except (FileNotFoundError, FactoryError):
        raise
    except Exception as error:  # damaged bytes can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{checkpoint} is damaged, or not a checkpoint of this version: delete it and train again ({why})"
        ) from error
    if bad := [name for name, value in content["model"].items() if not bool(value.isfinite().all())]:
        raise ValueError(f"{checkpoint}: {bad[0]} holds values that are not finite: delete it and train again")
    return model.eval(), meta

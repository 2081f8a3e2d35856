"""Build a classifier from the name of its architecture."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robreg.networks.classifier import Classifier, Normalise, Unchanged
from robreg.networks.fixup_resnet import SCALARS, FixupResNet
from robreg.networks.user_defined import build_user_network
from robreg.networks.wide_resnet import wide_resnet50
from robreg.runs.variant import ARCHITECTURES

MAX_DEPTH = 1202  # the deepest of He et al. (2016); a checkpoint could state any depth, and take hours to build


def build_network(  # noqa: PLR0913 - all that is needed to rebuild a network from its checkpoint
    arch: str,
    *,
    width: int,
    shape: Sequence[int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    factory: Mapping[str, Any] | None = None,
) -> Classifier:
    """Build a Normalise layer and a network from an architecture's name, such as "resnet56".

    shape: (C, H, W) of the images, whose pixels are in [0, 1]; mean, std: one value per channel; factory: for a
    user-defined architecture, what build_user_network needs, and "normalises" if the network normalises its input
    itself, so that the first layer must not; or None for one of the package's architectures.
    Raises ValueError if the name is unknown.
    """
    residual = re.fullmatch(r"(resnet|fixup)(\d+)|resnet(\d+)(nobias)", arch)
    if factory is not None:
        network = build_user_network(factory, classes)
    elif arch == "wrn50":
        network = wide_resnet50(shape[0], classes, width)
    elif residual is None:
        raise ValueError(f"architecture {arch!r} is unknown: use {', '.join(ARCHITECTURES)}, or a user-defined one")
    else:
        depth, scalars = int(residual[2] or residual[3]), SCALARS[residual[1] or residual[4]]
        if depth > MAX_DEPTH:
            raise ValueError(f"architecture {arch!r} is deeper than resnet{MAX_DEPTH}")
        network = FixupResNet(depth, shape[0], classes, width, scalars)
    return Classifier(first_layer(mean, std, factory), network)


def first_layer(mean: Sequence[float], std: Sequence[float], factory: Mapping[str, Any] | None) -> Normalise:
    """Make the layer that normalises, or, for a network that does so itself, the one that does not."""
    return (Unchanged if factory and factory.get("normalises") else Normalise)(mean, std)


def build_initial_network(arch: str, *, seed: int, **options: Any) -> Classifier:  # noqa: ANN401 - as in build_network
    """Build a network with the weights that its training starts from, drawn from the run's seed on the CPU.

    options: as for build_network. The same version of torch draws the same weights again, on every machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(arch, **options)

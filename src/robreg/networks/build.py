"""Build a classifier from the name of its architecture."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.fixup_resnet import FixupResNet
from robreg.networks.user_defined import build_user_network
from robreg.networks.wide_resnet import wide_resnet50


def build_network(  # noqa: PLR0913 - what a checkpoint must say to be rebuilt
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
        network = build_user_network(factory, classes)
    elif arch == "wrn50":
        network = wide_resnet50(shape[0], classes, width)
    elif depth is not None:
        network = FixupResNet(int(depth[1]), shape[0], classes, width)
    else:
        raise ValueError(
            f"architecture {arch!r} is unknown: use resnet8, resnet56, resnet110, wrn50, or one of your own"
        )
    return Classifier(Normalise(mean, std), network)

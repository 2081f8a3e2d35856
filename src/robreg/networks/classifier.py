"""A classifier of pixels in [0, 1]: a layer that normalises, then a network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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

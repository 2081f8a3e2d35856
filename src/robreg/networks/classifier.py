"""A classifier for pixels in [0, 1]: a normalising layer, followed by a network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Subtract each channel's mean and divide by its std, so that attacks on the whole model see pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store mean and std, one value per channel, as (C, 1, 1) buffers.

        Raises ValueError if their lengths differ or if a std is not positive.
        """
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean {mean} and std {std} must have one value per channel, and std must be positive")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    @property
    def smallest_scale(self) -> float | None:
        """The smallest singular value of the layer as a linear map, 1 / max std; None if it is unknown."""
        return 1 / float(self.std.max())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise pixels (B, C, H, W)."""
        return (x - self.mean) / self.std


class Unchanged(Normalise):
    """Leave pixels as they are, for a network that normalises them itself; mean and std are those of the data."""

    @property
    def smallest_scale(self) -> float | None:
        """None: how the network itself scales pixels is unknown."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Return pixels (B, C, H, W)."""
        return x


class Classifier(nn.Module):
    """A Normalise layer and a network, which together map pixels in [0, 1] to logits."""

    def __init__(self, normalise: Normalise, network: nn.Module) -> None:
        """Store the two parts; normalise is applied first."""
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) for pixels (B, C, H, W) in [0, 1]."""
        return self.network(self.normalise(x))

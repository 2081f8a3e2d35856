"""Random images for tests of attacks."""

import torch
from torch import Tensor


def images(n: int, shape: tuple[int, ...] = (1, 8, 8), *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return pixels of which about a third are exactly 0 or 1, where the box cuts into the ball."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (1.5 * x - 0.25).clamp(0, 1)

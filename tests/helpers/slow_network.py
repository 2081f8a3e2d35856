"""A small network whose passes take as long as ROBREG_TEST_PAUSE says, to be interrupted at leisure, or that fails.

A file `hurry` in the working folder ends the pauses.
"""

import os
import time
from pathlib import Path

from torch import Tensor, nn


class Slow(nn.Module):
    """One convolution and one linear layer for 8x8 images; the pause changes no bit."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        if "ROBREG_TEST_FAIL" in os.environ and len(x) > 1:  # not the look at its layers
            raise RuntimeError(os.environ["ROBREG_TEST_FAIL"])
        if not Path("hurry").exists():
            time.sleep(float(os.environ.get("ROBREG_TEST_PAUSE", "0")))
        return self.layers(x)

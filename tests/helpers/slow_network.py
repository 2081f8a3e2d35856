"""A small network with slow forward passes, so that tests have time to interrupt it, or with passes that fail.

ROBREG_TEST_PAUSE holds the seconds of a pass, and ROBREG_TEST_FAIL the message of an error. A file `hurry` in the
working folder ends the pauses.
"""

import os
import time
from pathlib import Path

from torch import Tensor, nn


class Slow(nn.Module):
    """One convolution and one linear layer for 8x8 images; the pauses do not change the results."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        if (
            "ROBREG_TEST_FAIL" in os.environ and len(x) > 8
        ):  # training, not the search for layers or the recorded logits
            raise RuntimeError(os.environ["ROBREG_TEST_FAIL"])
        if not Path("hurry").exists():
            time.sleep(float(os.environ.get("ROBREG_TEST_PAUSE", "0")))
        return self.layers(x)

"""Estimate how long a training takes, from its first steps."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 20  # that are timed, at most
SECONDS = 5.0  # after which no further step is timed
DAY = 86400.0  # seconds

log = logging.getLogger(__name__)


class TimedSteps:
    """A training step that, in its first calls, logs how long the training will take; then it only calls the step.

    The first call is not timed, because it compiles, or chooses algorithms. Each timed call waits for the device.
    """

    def __init__(self, step: Callable[..., tuple[Tensor, Tensor]], *, images: int, batches: int, epochs: int) -> None:
        """Time a step. images, batches: of an epoch; epochs: that are left."""
        self.step, self.images, self.epochs = step, images, epochs
        self.left = 1 + min(STEPS, max(1, batches - 1))  # calls until the estimate, so that it comes in the first epoch
        self.begin: float | None = None  # when the first call ended
        self.timed = 0  # images since then

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Do as the step does."""
        result = self.step(x, y, noise)
        if self.left:
            self._time(x)
        return result

    def _time(self, x: Tensor) -> None:
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        self.left -= 1
        now = time.perf_counter()
        if self.begin is None:
            self.begin = now
            return
        self.timed += len(x)
        if not self.left or now - self.begin > SECONDS:
            self.left = 0
            self._report((now - self.begin) / self.timed * self.images * self.epochs, x.device)

    def _report(self, seconds: float, device: torch.device) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        text = "training takes about %s on %s, by its first steps (epochs left: %d)"
        log.info(text, describe_duration(seconds), name, self.epochs)
        if seconds > DAY:
            log.warning(
                "this training takes about %s, more than a day: it may be stopped, and resumes after its last epoch; "
                "another device, training.compile or fewer training.epochs make it shorter",
                describe_duration(seconds),
            )


def describe_duration(seconds: float) -> str:
    """Write a duration with two digits in its largest suitable unit, such as "3.5 h"."""
    for unit, size in (("days", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"

"""The uncertainty of an effect: what another training and what other test images would have changed.

Trainings (seeds) and images are crossed, because all trainings are measured on the same images. The mean over S seeds
of an estimate on n images therefore has three sources of variance: the seeds, the images, and what a training does to
single images. With s^2 the variance between the seeds' values, v the variance over images of the mean influence, and e
the variance of what is left of the influences,

    seeds:  s^2 / S        (this includes e / (n S)),
    images: v / n - e / (n S), but at least 0.

The two margins of error, each with Student's t, are combined as the root of the sum of their squares (Howe 1974;
Burdick and Graybill 1992). This is exact if one source alone varies. One t for the sum of both, with the degrees of
freedom of Satterthwaite, is too sure of itself with few seeds: its 95 % intervals cover 92 % with three seeds, and 87 %
with two, where the images add a tenth to the variance of the seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import false_discovery_control

from robreg.claims.estimates import TEST, TRAINING, Estimate, check_same_length

LEVEL = 0.95  # confidence level of the intervals
SEEDS = "seeds"
_SMALLEST_P, _LARGEST_P = 1e-100, 0.999  # of what p_value returns, but for 1; SciPy's t is inexact near p = 1


@dataclass(frozen=True)
class Part:
    """An independent part of the variance, and the degrees of freedom that it was estimated with.

    over: what it is over: SEEDS or, for images, a name that ends in TRAINING or TEST. in_these: for images, the
    variance of the mean of these networks alone, which includes what each training does to single images.
    """

    variance: float
    freedom: float
    over: str
    in_these: float = math.nan


@dataclass(frozen=True)
class Effect:
    """A mean over seeds, and the parts of its variance.

    seeds: what another training would change, () if a single training shows nothing of it; images: what other images
    would change, () if the value does not depend on a sample of images; n_seeds: the number of trainings (for a
    difference of two settings, the smaller one).
    """

    value: float
    seeds: tuple[Part, ...]
    images: tuple[Part, ...]
    n_seeds: int

    def __sub__(self, other: "Effect") -> "Effect":
        """Subtract the effect in a setting that shares neither trainings nor images with this one."""
        n_seeds = min(self.n_seeds, other.n_seeds)
        one, two = self.limited_to(n_seeds), other.limited_to(n_seeds)
        return Effect(one.value - two.value, one.seeds + two.seeds, one.images + two.images, n_seeds)

    def __neg__(self) -> "Effect":
        """Reverse the sign."""
        return Effect(-self.value, self.seeds, self.images, self.n_seeds)

    def limited_to(self, n_seeds: int) -> "Effect":
        """Return the effect as one of n_seeds trainings; with one, it is an effect in these networks alone."""
        if n_seeds > 1 or self.n_seeds == 1:
            return replace(self, n_seeds=n_seeds)
        images = tuple(replace(part, variance=part.in_these) for part in self.images)
        return Effect(self.value, (), images, n_seeds)

    @property
    def se_seeds(self) -> float:
        """The standard error due to the seeds; NaN if it is unknown, as with a single seed."""
        return math.sqrt(sum(part.variance for part in self.seeds)) if self.seeds else math.nan

    @property
    def se_images(self) -> float:
        """The standard error due to the images; NaN if the value does not depend on a sample of images."""
        return math.sqrt(sum(part.variance for part in self.images)) if self.images else math.nan

    @property
    def over(self) -> str | None:
        """What the interval is taken over; None if there is no interval."""
        names = [part.over for part in self.seeds + self.images]
        found = [kind for kind in (SEEDS, TRAINING, TEST) if any(name.endswith(kind) for name in names)]
        return None if math.isnan(self.margin()) else ", ".join(found)

    def margin(self, p: float = 1 - LEVEL) -> float:
        """Return half the width of the interval with confidence 1 - p; NaN if nothing varies or a value is unknown."""
        margin = math.hypot(_margin(self.seeds, p), _margin(self.images, p))
        return margin if margin > 0 and math.isfinite(self.value) else math.nan

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval; NaN if there is none."""
        return self.value - self.margin(), self.value + self.margin()

    def p_value(self) -> float:
        """Return the two-sided p: 1 minus the confidence of the widest interval that excludes 0; NaN without one."""
        if math.isnan(self.margin()):
            return math.nan
        if self.margin(_LARGEST_P) >= abs(self.value):
            return 1.0
        if self.margin(_SMALLEST_P) <= abs(self.value):
            return _SMALLEST_P

        def excess(log_p: float) -> float:
            return self.margin(math.exp(log_p)) - abs(self.value)

        return math.exp(brentq(excess, math.log(_SMALLEST_P), math.log(_LARGEST_P)))


def over_seeds(estimates: Sequence[Estimate]) -> Effect:
    """Return the mean of the estimates of several trainings, one per seed, all on the same images.

    Raises ValueError if they were measured on different numbers of images.
    """
    n_seeds = len(estimates)
    values = np.array([estimate.value for estimate in estimates])
    names = dict.fromkeys(chain.from_iterable(estimate.samples for estimate in estimates))
    images = [_images_part(name, estimates) for name in names]
    unpaired = float(np.mean([estimate.unpaired for estimate in estimates]))  # not less for more seeds: same images
    if unpaired > 0:
        images.append(Part(unpaired, math.inf, TEST, unpaired))
    seeds: tuple[Part, ...] = ()
    if n_seeds > 1:
        seeds = (Part(float(np.var(values, ddof=1)) / n_seeds, n_seeds - 1.0, SEEDS),)
    mean = float(values[0] if (values == values[0]).all() else values.mean())  # equal values keep their last bit
    return Effect(mean, seeds, tuple(images), n_seeds)


def q_values(p_values: Sequence[float]) -> list[float]:
    """Return Benjamini and Hochberg's q of every p; a p that is NaN keeps NaN and does not count."""
    p = np.array(p_values, dtype=np.float64)
    known = np.isfinite(p)
    q = np.full(len(p), np.nan)
    q[known] = false_discovery_control(p[known]) if known.any() else []
    return q.tolist()


def _images_part(name: str, estimates: Sequence[Estimate]) -> Part:
    """Return the variance of the mean over seeds that other images would cause, for one sample of images."""
    every = [estimate.samples[name] for estimate in estimates if name in estimate.samples]
    for influences in every:
        check_same_length(name, influences, every[0])
    influences = np.stack(every)
    influences -= influences.mean(1, keepdims=True)
    n_seeds, n = influences.shape
    mean = influences.mean(0)
    in_these = float(mean @ mean) / (n - 1) / n
    of_trainings = 0.0
    if n_seeds > 1:
        of_trainings = float(((influences - mean) ** 2).sum()) / ((n - 1) * (n_seeds - 1)) / (n * n_seeds)
    return Part(max(0.0, in_these - of_trainings), n - 1.0, name, in_these)


def _margin(parts: Sequence[Part], p: float) -> float:
    """Return the margin of error of a source of variance, with the degrees of freedom of Welch and Satterthwaite."""
    variance = sum(part.variance for part in parts)
    if variance == 0 or math.isnan(variance):
        return variance
    shares = [(part.variance / variance, part.freedom) for part in parts]
    freedom = 1 / max(sum(share**2 / freedom for share, freedom in shares), 1e-300)
    return -float(stdtrit(freedom, p / 2)) * math.sqrt(variance)

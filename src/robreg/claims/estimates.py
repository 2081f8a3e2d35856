"""Estimates with 95 % intervals of means, spreads, skewness, modes and shares, over examples, layers or seeds.

An estimate stores the influence of every example (or layer): how much the value changes with that example's weight, to
first order (the infinitesimal jackknife). Estimates on the same examples are subtracted example by example, so that
what the examples have in common cancels; the variances of estimates on different examples add up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
LEVEL = 0.95  # confidence level of the intervals
SEEDS, EXAMPLES, LAYERS = "seeds", "test examples", "layers"  # what an interval is computed over


@dataclass(frozen=True)
class Estimate:
    """A value and the numbers that its interval is computed from.

    over: SEEDS, EXAMPLES or LAYERS. samples: the influences, by the name of the sample; equal names stand for the same
    examples. parts: (variance, degrees of freedom) of each component that is independent of everything else. bounds: an
    interval that was computed in another way.
    """

    value: float
    over: str
    samples: Mapping[str, Array] = field(default_factory=dict)
    parts: tuple[tuple[float, float], ...] = ()
    bounds: tuple[float, float] | None = None

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Subtract two estimates, paired on the samples they share. Raises ValueError if these differ in length."""
        names = dict.fromkeys([*self.samples, *other.samples])
        samples = {name: _subtract_influences(name, self.samples.get(name), other.samples.get(name)) for name in names}
        over = self.over if self.over != SEEDS else other.over
        return Estimate(self.value - other.value, over, samples, self.parts + other.parts)

    def scaled(self, factor: float, offset: float = 0.0) -> "Estimate":
        """Return factor times the estimate, plus offset."""
        bounds = None if self.bounds is None else sorted(factor * bound + offset for bound in self.bounds)
        return Estimate(
            factor * self.value + offset,
            self.over,
            {name: factor * values for name, values in self.samples.items()},
            tuple((factor**2 * variance, freedom) for variance, freedom in self.parts),
            None if bounds is None else (bounds[0], bounds[1]),
        )

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval: Student's t with the degrees of freedom of Welch and Satterthwaite."""
        if self.bounds is not None:
            return self.bounds
        parts = [(float(np.var(each, ddof=1)) / len(each), len(each) - 1.0) for each in self.samples.values()]
        parts += self.parts
        variance = sum(part for part, _ in parts)
        if not variance > 0:  # either nothing varies, or the variance is not known (NaN)
            return (self.value, self.value) if variance == 0 else (math.nan, math.nan)
        freedom = variance**2 / max(sum(part**2 / df for part, df in parts), 1e-300)
        half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
        return self.value - half, self.value + half


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over at least two seeds; the difference of two such estimates has Welch's interval."""
    if len(set(values)) == 1:  # avoids the rounding error of a mean
        return Estimate(float(values[0]), SEEDS, parts=((0.0, len(values) - 1),))
    return Estimate(
        float(np.mean(values)), SEEDS, parts=((float(np.var(values, ddof=1)) / len(values), len(values) - 1),)
    )


def combine_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates of one quantity, one per seed, with the interval over seeds.

    A share of few layers takes few values, so seeds may agree on it by chance. A share therefore keeps the interval of
    its networks, with averaged ends, if that is wider than the interval over seeds. Any other estimate that is the same
    for all seeds keeps the interval of the first network.
    """
    values = [estimate.value for estimate in estimates]
    seeds = over_seeds(values)
    own = [estimate.bounds for estimate in estimates if estimate.bounds is not None]
    if len(own) == len(estimates):
        low, high = (float(end) for end in np.mean(own, axis=0))
        ends = seeds.interval()
        wider = high - low > ends[1] - ends[0]
        return Estimate(seeds.value, estimates[0].over, bounds=(low, high)) if wider else seeds
    return estimates[0] if len(set(values)) == 1 else seeds


def mean(values: NDArray[Any], name: str, over: str = EXAMPLES) -> Estimate:
    """Return the mean of values (n,); name identifies the sample."""
    values = np.asarray(values, dtype=np.float64)
    return Estimate(float(values.mean()), over, {name: values - values.mean()})


def std(values: Array, name: str) -> Estimate:
    """Return the standard deviation (ddof 0) of values (n,)."""
    away = values - values.mean()
    value = math.sqrt(float(np.mean(away**2)))
    return Estimate(value, EXAMPLES, {name: (away**2 - value**2) / (2 * value) if value else 0 * away})


def skewness(values: Array, name: str) -> Estimate:
    """Return the third standardised moment of values (n,): positive for a long tail to the right."""
    spread = values.std()
    scaled = (values - values.mean()) / (spread or 1.0)
    value = float(np.mean(scaled**3))
    influence = scaled**3 - value - 3 * scaled - 1.5 * value * (scaled**2 - 1)
    return Estimate(value, EXAMPLES, {name: influence})


def mode(values: Array, name: str) -> Estimate:
    """Return the mode of a Gaussian kernel density estimate of values (n,); the influence is for a fixed bandwidth.

    The mode is a zero of the density's slope, so the bandwidth has the order that suits the slope (n to the -1/7). It
    is a little wider than optimal for a normal distribution (1.2 instead of 0.97); otherwise the interval would be too
    narrow.
    """
    quartiles = np.percentile(values, [25, 75])
    spread = min(values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.349) or values.std(ddof=1)
    if not spread > 0:
        return Estimate(float(values[0]), EXAMPLES, {name: 0 * values})
    width = 1.2 * spread * len(values) ** (-1 / 7)
    at = _climb(values, width, _peak(values, width))
    scaled = (at - values) / width
    kernel = np.exp(-(scaled**2) / 2)
    slope, curvature = -scaled * kernel, (scaled**2 - 1) * kernel
    return Estimate(at, EXAMPLES, {name: -width * (slope - slope.mean()) / curvature.mean()})


def log10_ratio(above: Estimate, below: Estimate) -> Estimate:
    """Return log10 of the ratio of two positive estimates on the same samples; NaN if one is not positive."""
    if not (above.value > 0 and below.value > 0):
        return Estimate(math.nan, above.over, parts=((math.nan, math.inf),))
    logs = [part.scaled(1 / (part.value * math.log(10))) for part in (above, below)]
    difference = logs[0] - logs[1]
    return Estimate(
        math.log10(above.value / below.value), difference.over, difference.samples, difference.parts, difference.bounds
    )


def share(chosen: NDArray[np.bool_], over: str, weights: Array | None = None) -> Estimate:
    """Return the share of chosen (n,), by weight if weights (n,) are given; NaN if the weights sum to 0.

    The interval is Wilson's, which is correct for few layers and for shares of 1. Weights enter it through Kish's
    effective number, (sum w)^2 / sum w^2.
    """
    weights = np.ones(len(chosen)) if weights is None else weights
    if not weights.sum() > 0:
        return Estimate(math.nan, over, bounds=(math.nan, math.nan))
    value, n = float(weights @ chosen / weights.sum()), float(weights.sum() ** 2 / (weights @ weights))
    z = float(stdtrit(math.inf, (1 + LEVEL) / 2))
    center = (n * value + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(n * value * (1 - value) + z**2 / 4)
    return Estimate(value, over, bounds=(center - half, center + half))


def proportion(hits: float, n: int) -> Estimate:
    """Return 100 hits / n (percent), for examples that are not the same in two networks.

    The variance is computed with one more hit and one more miss (Agresti and Caffo 2000), so that a share of 0 or 1 is
    not certain.
    """
    rate = (hits + 1) / (n + 2)
    return Estimate(100.0 * hits / n, EXAMPLES, parts=((100.0**2 * rate * (1 - rate) / (n + 2), math.inf),))


def _subtract_influences(name: str, first: Array | None, second: Array | None) -> Array:
    if first is None or second is None:
        return first if first is not None else -np.asarray(second)
    if len(first) != len(second):
        raise ValueError(
            f"{name}: one network has {len(first)} of them and the other {len(second)}, so they cannot be "
            "compared one by one; measure both networks on the same ones"
        )
    return first - second


def _peak(values: Array, width: float) -> float:
    """Return the highest point of the density on a grid that is finer than the bandwidth."""
    low, high = values.min(), values.max()
    edges = np.linspace(low, high, min(4000, max(3, math.ceil((high - low) / width * 8))))
    counts, _ = np.histogram(values, edges)
    centers = (edges[1:] + edges[:-1]) / 2
    step = centers[1] - centers[0]
    offsets = np.arange(-math.ceil(4 * width / step), math.ceil(4 * width / step) + 1) * step
    density = np.convolve(counts, np.exp(-((offsets / width) ** 2) / 2))[len(offsets) // 2 :][: len(counts)]
    return float(centers[density.argmax()])


def _climb(values: Array, width: float, at: float) -> float:
    """Return the maximum of the density near `at`, by repeated moves to the weighted mean of nearby values."""
    for _ in range(200):
        weights = np.exp(-(((at - values) / width) ** 2) / 2)
        moved = float(weights @ values / weights.sum())
        if abs(moved - at) < 1e-9 * width:
            break
        at = moved
    return at

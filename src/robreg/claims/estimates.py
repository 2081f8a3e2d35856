"""Estimates from one network: means, spreads, skewness and modes, with what is known of their uncertainty.

An estimate stores the influence of every image: how much the value changes with that image's weight, to first order
(the infinitesimal jackknife). Estimates on the same images are combined image by image, so that what the images have in
common cancels. What another training would have given cannot be seen in one network: robreg.claims.uncertainty combines
the estimates of several seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TRAINING, TEST = "training examples", "test examples"  # how the names of samples of images end


@dataclass(frozen=True)
class Estimate:
    """A value and the numbers that its uncertainty is computed from.

    samples: the influences, by the name of the sample; equal names stand for the same images. unpaired: the variance
    over images of a value that is known only as a summary, so that its images cannot be compared one by one.
    """

    value: float
    samples: Mapping[str, Array] = field(default_factory=dict)
    unpaired: float = 0.0

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Subtract two estimates, paired on the samples they share. Raises ValueError if these differ in length."""
        return weighted_sum([self, other], [1.0, -1.0])

    def scaled(self, factor: float, offset: float = 0.0) -> "Estimate":
        """Return factor times the estimate, plus offset."""
        scaled = weighted_sum([self], [factor])
        return Estimate(scaled.value + offset, scaled.samples, scaled.unpaired)


def weighted_sum(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Return the sum of weight times estimate, paired on the samples that the estimates share.

    The unpaired variances add up, as for different images. If the weights sum to 0, the sum of equal values is exactly
    0. Raises ValueError if samples of one name differ in length.
    """
    first = estimates[0].value
    value = sum(weight * (each.value - first) for each, weight in zip(estimates, weights, strict=True))
    samples: dict[str, Array] = {}
    for estimate, weight in zip(estimates, weights, strict=True):
        for name, influences in estimate.samples.items():
            check_same_length(name, influences, samples.get(name, influences))
            samples[name] = samples.get(name, 0.0) + weight * influences
    return Estimate(
        float(value + sum(weights) * first),
        samples,
        sum(weight**2 * each.unpaired for each, weight in zip(estimates, weights, strict=True)),
    )


def check_same_length(name: str, first: Array, second: Array) -> None:
    """Raise ValueError if two networks were measured on different numbers of images."""
    if len(first) != len(second):
        raise ValueError(
            f"{name}: one network has {len(first)} of them and the other {len(second)}, so they cannot be "
            "compared one by one; measure both networks on the same ones"
        )


def mean(values: NDArray[Any], name: str) -> Estimate:
    """Return the mean of values (n,); name identifies the sample."""
    values = np.asarray(values, dtype=np.float64)
    return Estimate(float(values.mean()), {name: values - values.mean()})


def std(values: Array, name: str) -> Estimate:
    """Return the standard deviation (ddof 0) of values (n,)."""
    away = values - values.mean()
    value = math.sqrt(float(np.mean(away**2)))
    return Estimate(value, {name: (away**2 - value**2) / (2 * value) if value else 0 * away})


def skewness(values: Array, name: str) -> Estimate:
    """Return the third standardised moment of values (n,): positive for a long tail to the right."""
    spread = values.std()
    scaled = (values - values.mean()) / (spread or 1.0)
    value = float(np.mean(scaled**3))
    influence = scaled**3 - value - 3 * scaled - 1.5 * value * (scaled**2 - 1)
    return Estimate(value, {name: influence})


def mode(values: Array, name: str) -> Estimate:
    """Return the mode of a Gaussian kernel density estimate of values (n,); the influence is for a fixed bandwidth.

    The mode is a zero of the density's slope, so the bandwidth has the order that suits the slope (n to the -1/7). It
    is a little wider than optimal for a normal distribution (1.2 instead of 0.97); otherwise the interval would be too
    narrow.
    """
    quartiles = np.percentile(values, [25, 75])
    spread = min(values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.349) or values.std(ddof=1)
    if not spread > 0:
        return Estimate(float(values[0]), {name: 0 * values})
    width = 1.2 * spread * len(values) ** (-1 / 7)
    at = _climb(values, width, _peak(values, width))
    scaled = (at - values) / width
    kernel = np.exp(-(scaled**2) / 2)
    slope, curvature = -scaled * kernel, (scaled**2 - 1) * kernel
    return Estimate(at, {name: -width * (slope - slope.mean()) / curvature.mean()})


def log10_ratio(above: Estimate, below: Estimate) -> Estimate:
    """Return log10 of the ratio of two positive estimates on the same samples; NaN if one is not positive."""
    if not (above.value > 0 and below.value > 0):
        return Estimate(math.nan)
    difference = weighted_sum([above, below], [1 / (above.value * math.log(10)), -1 / (below.value * math.log(10))])
    return Estimate(math.log10(above.value / below.value), difference.samples, difference.unpaired)


def proportion(hits: float, n: int) -> Estimate:
    """Return 100 hits / n (percent), of images of which only the number of hits is known.

    The variance is computed with one more hit and one more miss (Agresti and Caffo 2000), so that a share of 0 or 1 is
    not certain.
    """
    rate = (hits + 1) / (n + 2)
    return Estimate(100.0 * hits / n, unpaired=100.0**2 * rate * (1 - rate) / (n + 2))


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

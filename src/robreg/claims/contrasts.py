"""The statistics that claims are judged by.

A statistic is how a quantity changes with the strength, or a quantity at one strength. Networks of equal seeds share
their initialisation and the order of their batches, so a change is computed within each seed, and then averaged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import pandas as pd

from robreg.claims.estimates import Array, Estimate, weighted_sum
from robreg.claims.quantities import Network
from robreg.claims.uncertainty import Effect, over_seeds

Networks = Mapping[int, Mapping[int, Network]]  # networks of one setting, by strength and seed
Quantity = Callable[[Network], Estimate]


@dataclass(frozen=True)
class Step:
    """The change between two neighbouring strengths."""

    low: int
    high: int
    effect: Effect


@dataclass(frozen=True)
class Outcome:
    """An effect and what is shown beside it.

    strengths: those that the effect is computed from, in ascending order. For a change, ends: the change between the
    lowest and the highest strength alone; steps: the changes between neighbouring strengths; at_low, at_high: the
    quantity's means at the two ends, NaN if it has no value at a single strength.
    """

    effect: Effect
    strengths: tuple[int, ...]
    ends: Effect | None = None
    steps: tuple[Step, ...] = ()
    at_low: float = math.nan
    at_high: float = math.nan

    def __sub__(self, other: "Outcome") -> "Outcome":
        """Subtract the outcome in a setting that shares neither trainings nor images with this one.

        Steps are subtracted only if both settings have the same strengths.
        """
        ends = None if self.ends is None or other.ends is None else self.ends - other.ends
        steps = tuple(
            Step(one.low, one.high, one.effect - two.effect)
            for one, two in zip(self.steps, other.steps, strict=False)
            if self.strengths == other.strengths
        )
        return Outcome(self.effect - other.effect, self.strengths, ends, steps)

    def __neg__(self) -> "Outcome":
        """Reverse the sign of the effects, so that a fall counts as a rise; the values at the two ends stay."""
        ends = None if self.ends is None else -self.ends
        steps = tuple(Step(step.low, step.high, -step.effect) for step in self.steps)
        return replace(self, effect=-self.effect, ends=ends, steps=steps)

    def limited_to(self, n_seeds: int) -> "Outcome":
        """Return the outcome as one of n_seeds trainings."""
        ends = None if self.ends is None else self.ends.limited_to(n_seeds)
        steps = tuple(Step(step.low, step.high, step.effect.limited_to(n_seeds)) for step in self.steps)
        return replace(self, effect=self.effect.limited_to(n_seeds), ends=ends, steps=steps)

    @property
    def reversed_steps(self) -> list[Step]:
        """The steps that go the other way than the effect."""
        return [step for step in self.steps if step.effect.value * self.effect.value < 0]


class Contrast(Protocol):
    """A statistic of one setting."""

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words, given the two strengths that a study compares."""

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if the setting lacks a strength that it needs."""


@dataclass(frozen=True)
class Change:
    """How a quantity changes from the lower to the higher strength, along the line through all strengths between."""

    words: str
    quantity: Quantity

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words."""
        return f"{self.words}: change from AR {low} to AR {high}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if a strength is missing."""
        columns = select_seeds(networks, low, high)
        values = {strength: [self.quantity(network) for network in column] for strength, column in columns.items()}

        def change(weights: Mapping[int, float]) -> Effect:
            seeds = zip(*(values[strength] for strength in weights), strict=True)
            return over_seeds([weighted_sum(seed, list(weights.values())) for seed in seeds])

        ends = [float(np.mean([each.value for each in values[end]])) for end in (low, high) if columns]
        return _judge_change(change, list(columns), *ends) if columns else None


@dataclass(frozen=True)
class LayerChange:
    """A quantity of how a property of the layers changes with the strength.

    layers: returns the property of every layer, by name; quantity: computes the estimate from the changes (layers,)
    along the line through all strengths. The interval is not over layers, which are not a sample of anything.
    zero_if_equal: whether networks of equal strength differ by 0 on average.
    """

    words: str
    layers: Callable[[Network], pd.Series]
    quantity: Callable[[Array], Estimate]
    zero_if_equal: bool = True

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words."""
        return f"{self.words}: AR {low} to AR {high}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if a strength is missing. Raises ValueError if the layers differ."""
        columns = select_seeds(networks, low, high)
        values = {strength: [self.layers(network) for network in column] for strength, column in columns.items()}
        if len({tuple(each.index) for column in values.values() for each in column}) > 1:
            folders = ", ".join(str(network.folder) for column in columns.values() for network in column)
            raise ValueError(f"{folders}: the svstd.parquet files list different layers; measure them again")

        def change(weights: Mapping[int, float]) -> Effect:
            seeds = zip(*(values[strength] for strength in weights), strict=True)
            factors = np.array(list(weights.values()))
            return over_seeds([self.quantity(factors @ (np.stack(seed) - seed[0].to_numpy())) for seed in seeds])

        return _judge_change(change, list(columns)) if columns else None


@dataclass(frozen=True)
class AtStrength:
    """A quantity of the networks at one of the two strengths."""

    words: str
    quantity: Quantity
    end: Literal["low", "high"]

    def strength(self, low: int, high: int) -> int:
        """Return the one of the two strengths whose networks are measured."""
        return low if self.end == "low" else high

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words."""
        return f"{self.words}: AR {self.strength(low, high)}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if the strength is missing."""
        strength = self.strength(low, high)
        chosen = networks.get(strength, {})
        if not chosen:
            return None
        return Outcome(over_seeds([self.quantity(chosen[seed]) for seed in sorted(chosen)]), (strength,))


def select_seeds(networks: Networks, low: int, high: int) -> dict[int, list[Network]]:
    """Choose the networks that a change from low to high is computed from: by strength, one per seed.

    Networks of equal seeds are compared with each other. Those that are left over at both ends are independent, so that
    any pairs of them are valid: they are paired in the order of their seeds. A strength between the ends counts if it
    has every seed that is compared, and the ends have no other pairs. Returns {} if an end has no network.
    """
    if not {low, high} <= networks.keys():
        return {}
    common = sorted(networks[low].keys() & networks[high].keys())
    rest = [sorted(networks[end].keys() - set(common)) for end in (low, high)]
    pairs = [(seed, seed) for seed in common] + list(zip(*rest, strict=False))
    chosen = {end: [networks[end][pair[side]] for pair in pairs] for side, end in enumerate((low, high))}
    if len(common) == len(pairs):
        between = [
            strength for strength in networks if low < strength < high and set(common) <= networks[strength].keys()
        ]
        chosen |= {strength: [networks[strength][seed] for seed in common] for strength in between}
    return dict(sorted(chosen.items()))


def line_weights(strengths: Sequence[int]) -> dict[int, float]:
    """Return the weight of every strength in the change from the first to the last along the least-squares line.

    With two strengths this is their difference. The line is straight in the strength (1/255), not in its rank: among
    three strengths, a line in their rank gives the middle one no weight at all.
    """
    away = np.array(strengths) - np.mean(strengths)
    weights = away * (strengths[-1] - strengths[0]) / (away @ away)
    first = weights[:-1].tolist()
    return dict(zip(strengths, [*first, -sum(first)], strict=True))  # their sum is exactly 0


def weaker_outcome(first: Outcome, second: Outcome) -> Outcome:
    """Return the outcome that decides whether both are positive.

    An outcome whose interval lies below 0 takes precedence; otherwise, the one whose interval starts lower decides.
    """

    def rank(outcome: Outcome) -> tuple[bool, float]:
        low, high = outcome.effect.interval()
        return not high < 0, -math.inf if math.isnan(low) else low

    n_seeds = min(first.effect.n_seeds, second.effect.n_seeds)
    return min((each.limited_to(n_seeds) for each in (first, second)), key=rank)


def _judge_change(
    change: Callable[[Mapping[int, float]], Effect],
    strengths: Sequence[int],
    at_low: float = math.nan,
    at_high: float = math.nan,
) -> Outcome:
    low, high = strengths[0], strengths[-1]
    steps = tuple(Step(*pair, change(dict(zip(pair, (-1.0, 1.0), strict=True)))) for pair in pairwise(strengths))
    return Outcome(
        change(line_weights(strengths)), tuple(strengths), change({low: -1.0, high: 1.0}), steps, at_low, at_high
    )

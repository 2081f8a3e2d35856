"""The statistics that claims are judged by.

A statistic is the change of a quantity between two strengths, or a quantity of one network or of a pair of networks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from robreg.claims.estimates import Estimate, combine_seeds, over_seeds
from robreg.claims.quantities import Network

Networks = Mapping[int, Mapping[int, Network]]  # networks of one setting, by strength and seed
Quantity = Callable[[Network], Estimate]


@dataclass(frozen=True)
class Outcome:
    """An estimate, the number of seeds behind it and, for a change, the quantity's values at the two strengths."""

    estimate: Estimate
    n_seeds: int
    at_low: float = math.nan
    at_high: float = math.nan

    def __sub__(self, other: "Outcome") -> "Outcome":
        """Return the difference between the estimates of two settings."""
        return Outcome(self.estimate - other.estimate, min(self.n_seeds, other.n_seeds))

    def __neg__(self) -> "Outcome":
        """Reverse the sign of the estimate, so that a fall counts as a rise; the values at the two strengths stay."""
        return replace(self, estimate=self.estimate.scaled(-1))


class Contrast(Protocol):
    """A statistic of one setting."""

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words, given the two strengths that a study compares."""

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if the setting lacks a strength that it needs."""


@dataclass(frozen=True)
class Change:
    """A quantity at the higher strength minus the same quantity at the lower strength.

    With two or more seeds at both strengths, this is the difference of the means over seeds. Otherwise, or if the seeds
    do not vary, it compares one network of each strength, example by example or layer by layer.
    """

    words: str
    quantity: Quantity

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words."""
        return f"{self.words}: AR {high} minus AR {low}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if a strength is missing."""
        if not {low, high} <= networks.keys():
            return None
        ends = [networks[low], networks[high]]
        n_seeds = min(map(len, ends))
        values = [[self.quantity(net).value for net in end.values()] for end in ends]
        if n_seeds >= 2 and any(len(set(each)) > 1 for each in values):
            first, second = map(over_seeds, values)
        else:
            first, second = (self.quantity(net) for net in _pair_of_equal_seeds(*ends))
        return Outcome(second - first, n_seeds, first.value, second.value)


@dataclass(frozen=True)
class Pair:
    """A quantity of two networks, the one of lower strength first; with several seeds, of each pair of equal seeds."""

    words: str
    quantity: Callable[[Network, Network], Estimate]

    def text(self, low: int, high: int) -> str:
        """Describe the statistic in words."""
        return f"{self.words}: AR {low} to AR {high}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Compute the statistic; return None if a strength is missing."""
        if not {low, high} <= networks.keys():
            return None
        common = sorted(networks[low].keys() & networks[high].keys())
        pairs = [(networks[low][seed], networks[high][seed]) for seed in common]
        return _combine_seeds(
            [self.quantity(*pair) for pair in pairs or [_pair_of_equal_seeds(networks[low], networks[high])]]
        )


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
        chosen = networks.get(self.strength(low, high), {})
        return _combine_seeds([self.quantity(chosen[seed]) for seed in sorted(chosen)]) if chosen else None


def weaker_outcome(first: Outcome, second: Outcome) -> Outcome:
    """Return the outcome that decides whether both are positive.

    An outcome whose interval lies below 0 takes precedence; otherwise, the one whose interval starts lower decides.
    """

    def rank(outcome: Outcome) -> tuple[bool, float]:
        low, high = outcome.estimate.interval()
        return not high < 0, -math.inf if math.isnan(low) else low

    chosen = min(first, second, key=rank)
    return replace(chosen, n_seeds=min(first.n_seeds, second.n_seeds))


def _combine_seeds(estimates: Sequence[Estimate]) -> Outcome:
    several = len(estimates) > 1
    return Outcome(combine_seeds(estimates) if several else estimates[0], len(estimates))


def _pair_of_equal_seeds(low: Mapping[int, Network], high: Mapping[int, Network]) -> tuple[Network, Network]:
    """Return one network of each strength, with the same seed if there is a common one."""
    common = low.keys() & high.keys()
    return (low[min(common)], high[min(common)]) if common else (low[min(low)], high[min(high)])

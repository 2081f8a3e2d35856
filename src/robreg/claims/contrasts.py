"""What a claim of the paper is, and the statistic that it is judged by.

A statistic is a quantity's change between two strengths, or what one network or a pair of them shows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from robreg.claims.estimates import Estimate, combined, over_seeds
from robreg.claims.quantities import Network

Networks = Mapping[int, Mapping[int, Network]]  # of one setting, by strength and seed
Quantity = Callable[[Network], Estimate]


@dataclass(frozen=True)
class Outcome:
    """An estimate, the number of seeds behind it, and a changing quantity's values at the two strengths."""

    estimate: Estimate
    n_seeds: int
    at_low: float = math.nan
    at_high: float = math.nan

    def __sub__(self, other: "Outcome") -> "Outcome":
        """Compare two settings."""
        return Outcome(self.estimate - other.estimate, min(self.n_seeds, other.n_seeds))

    def __neg__(self) -> "Outcome":
        """Turn what falls into what rises; the values at the two strengths stay."""
        return replace(self, estimate=self.estimate.scaled(-1))


class Contrast(Protocol):
    """A statistic of one setting."""

    def text(self, low: int, high: int) -> str:
        """Describe it in words, given the two strengths that a study compares."""

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Measure it; None if the setting lacks a strength that it needs."""


@dataclass(frozen=True)
class Change:
    """A quantity at the higher strength minus the same at the lower.

    Two seeds or more at both: the difference of their means. Otherwise, or where the seeds do not vary, one network of
    each, compared example by example, or layer by layer.
    """

    words: str
    quantity: Quantity

    def text(self, low: int, high: int) -> str:
        """Describe it in words."""
        return f"{self.words}: AR {high} minus AR {low}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Measure it; None if a strength is missing."""
        if not {low, high} <= networks.keys():
            return None
        ends = [networks[low], networks[high]]
        n_seeds = min(map(len, ends))
        values = [[self.quantity(net).value for net in end.values()] for end in ends]
        if n_seeds >= 2 and any(len(set(each)) > 1 for each in values):
            first, second = map(over_seeds, values)
        else:
            first, second = (self.quantity(net) for net in _equal_seeds(*ends))
        return Outcome(second - first, n_seeds, first.value, second.value)


@dataclass(frozen=True)
class Pair:
    """What two networks show together, the one of the lower strength first; over seeds, of the pairs of equal seed."""

    words: str
    quantity: Callable[[Network, Network], Estimate]

    def text(self, low: int, high: int) -> str:
        """Describe it in words."""
        return f"{self.words}: AR {low} to AR {high}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Measure it; None if a strength is missing."""
        if not {low, high} <= networks.keys():
            return None
        common = sorted(networks[low].keys() & networks[high].keys())
        pairs = [(networks[low][seed], networks[high][seed]) for seed in common]
        return _over([self.quantity(*pair) for pair in pairs or [_equal_seeds(networks[low], networks[high])]])


@dataclass(frozen=True)
class AtStrength:
    """A quantity of the networks of one of the two strengths."""

    words: str
    quantity: Quantity
    end: Literal["low", "high"]

    def strength(self, low: int, high: int) -> int:
        """Return the one of two strengths whose networks it speaks of."""
        return low if self.end == "low" else high

    def text(self, low: int, high: int) -> str:
        """Describe it in words."""
        return f"{self.words}: AR {self.strength(low, high)}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Measure it; None if the strength is missing."""
        chosen = networks.get(self.strength(low, high), {})
        return _over([self.quantity(chosen[seed]) for seed in sorted(chosen)]) if chosen else None


def weaker(first: Outcome, second: Outcome) -> Outcome:
    """Choose the one that decides whether both are positive: one that is surely negative, or the one nearer to that."""

    def strength(outcome: Outcome) -> tuple[bool, float]:
        low, high = outcome.estimate.interval()
        return not high < 0, -math.inf if math.isnan(low) else low

    chosen = min(first, second, key=strength)
    return replace(chosen, n_seeds=min(first.n_seeds, second.n_seeds))


def _over(estimates: Sequence[Estimate]) -> Outcome:
    several = len(estimates) > 1
    return Outcome(combined(estimates) if several else estimates[0], len(estimates))


def _equal_seeds(low: Mapping[int, Network], high: Mapping[int, Network]) -> tuple[Network, Network]:
    """One network of each strength, of the same seed if there is one."""
    common = low.keys() & high.keys()
    return (low[min(common)], high[min(common)]) if common else (low[min(low)], high[min(high)])

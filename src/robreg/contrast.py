"""The statistic of a claim: a quantity's change between two strengths, or what one network or a pair of them shows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from robreg import statistic
from robreg.measured import Network
from robreg.statistic import Estimate

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


class Contrast(Protocol):
    """A statistic of one setting."""

    def text(self, low: int, high: int) -> str:
        """Describe it in words, given the two strengths that a study compares."""

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Measure it; None if the setting lacks a strength that it needs."""


@dataclass(frozen=True)
class Change:
    """A quantity at the higher strength minus the same at the lower.

    Two seeds or more at both: the difference of their means. Otherwise one network of each, compared example by
    example, or layer by layer.
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
        if n_seeds >= 2:
            first, second = (statistic.over_seeds([self.quantity(net).value for net in end.values()]) for end in ends)
        else:
            first, second = (self.quantity(net) for net in _alike(*ends))
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
        return _over([self.quantity(*pair) for pair in pairs or [_alike(networks[low], networks[high])]])


@dataclass(frozen=True)
class At:
    """A quantity of the networks of one of the two strengths."""

    words: str
    quantity: Quantity
    end: Literal["low", "high"]

    def text(self, low: int, high: int) -> str:
        """Describe it in words."""
        return f"{self.words}: AR {low if self.end == 'low' else high}"

    def __call__(self, networks: Networks, low: int, high: int) -> Outcome | None:
        """Measure it; None if the strength is missing."""
        chosen = networks.get(low if self.end == "low" else high, {})
        return _over([self.quantity(chosen[seed]) for seed in sorted(chosen)]) if chosen else None


def _over(estimates: Sequence[Estimate]) -> Outcome:
    if len(estimates) == 1:
        return Outcome(estimates[0], 1)
    values = [estimate.value for estimate in estimates]
    return Outcome(statistic.over_seeds(values), len(values))


def _alike(low: Mapping[int, Network], high: Mapping[int, Network]) -> tuple[Network, Network]:
    """One network of each strength, of the same seed if there is one."""
    common = low.keys() & high.keys()
    return (low[min(common)], high[min(common)]) if common else (low[min(low)], high[min(high)])

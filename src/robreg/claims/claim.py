"""Define a claim of the paper and the places where the paper makes it."""

from dataclasses import dataclass
from typing import Literal

from robreg.claims.contrasts import Change, Contrast, LayerChange

NOT_RUN = "not run"  # verdict of a claim, and status of a number of the paper, for which the study has no networks

# Verdicts: the claimed effect, the opposite effect, and neither.
SEVERAL_SEEDS = ("holds", "fails", "undecided")  # about networks trained in this way
ONE_SEED = ("seen", "not seen", "not clear")  # about these networks alone

EXTENSION = "extension"  # source of a claim that the paper does not make

# plain: the default network, trained with PGD; deeper: ResNet-110; FGSM: trained with FGSM; bounded: trained with a
# bound on the spectral norm.
Kind = Literal["plain", "deeper", "FGSM", "bounded"]

RISES = HOLDS = 1  # signs of the effect that is claimed

FALLS = -1


@dataclass(frozen=True)
class Place:
    """A place where the paper makes a claim.

    source: the sections, figures and tables; kind: the kind of networks; datasets: the data sets; bound: the bound on
    the spectral norm of the networks, or None for networks with any bound or none.
    """

    source: str
    kind: Kind
    datasets: tuple[str, ...] = ("c10", "c100")
    bound: float | None = None


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, or an extension of the paper's claims.

    id, text: the claim's name and words; sign: the sign of the claimed effect; contrast: the statistic that it is
    judged by; places: where the paper makes it, () for an extension. general: the claim is about every data set, so it
    is also judged on data sets and kinds of networks that the paper does not show. against: "c100" for a claim that
    compares a setting with the same setting on CIFAR-100; "no bound" for a claim that also states the opposite effect
    for the same setting without a bound, so that its effect is the weaker of the two, each in the claimed direction.
    """

    id: str
    text: str
    sign: int
    contrast: Contrast
    places: tuple[Place, ...] = ()
    general: bool = True
    against: Literal["c100", "no bound"] | None = None

    @property
    def zero_if_equal(self) -> bool:
        """Whether the statistic is 0 on average if networks do not depend on their strength."""
        changes = isinstance(self.contrast, Change) or (
            isinstance(self.contrast, LayerChange) and self.contrast.zero_if_equal
        )
        return changes and self.against != "no bound"

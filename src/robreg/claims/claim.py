"""What a claim of the paper is, and where the paper makes it."""

from dataclasses import dataclass
from typing import Literal

from robreg.claims.contrasts import Contrast

NOT_RUN = "not run"  # verdict of a claim, and status of a number of the paper: the study has no networks for it

EXTENSION = "extension"  # source of a claim where the paper does not make it

Kind = Literal["plain", "deeper", "FGSM", "bounded"]  # PGD and the default network; ResNet-110; FGSM; a spectral norm

RISES = HOLDS = 1  # the sign of the effect that is claimed

FALLS = -1


@dataclass(frozen=True)
class Place:
    """Where the paper makes a claim: source (its sections, figures, tables), the kind of networks, its data sets.

    bound: only the networks with this bound on the spectral norm; None for every one.
    """

    source: str
    kind: Kind
    datasets: tuple[str, ...] = ("c10", "c100")
    bound: float | None = None


@dataclass(frozen=True)
class Claim:
    """One claim. sign: of the effect that is claimed; places: () for an extension.

    general: said of every data set, so that it is also judged on data sets, and on kinds of networks, that the paper
    does not show. against: the claim compares a setting with the like of another data set; or says its contrary of
    the like without a bound, too, so that the weaker of the two, each as claimed, is its effect.
    """

    id: str
    text: str
    sign: int
    contrast: Contrast
    places: tuple[Place, ...] = ()
    general: bool = True
    against: Literal["c100", "no bound"] | None = None

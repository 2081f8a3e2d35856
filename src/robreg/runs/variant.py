"""The grammar of run names: "ar16-resnet110-sn3" <-> Variant. No other module takes such a name apart."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

ARCHITECTURES = ("resnet8", "resnet56", "resnet110", "wrn50")  # those of the package; config.yaml may add its own
GRAMMAR = "ar{strength}[-{architecture}][-fgsm][-sn{bound}][-normspace][-s{seed}]"
MAX_STRENGTH = 255
MAX_SEED = 2**32 - 1
MIN_BOUND, MAX_BOUND = 1e-6, 1e6

# Reads more than the grammar allows (any order, leading zeros), so that a refusal can name the right spelling.
_PARTS = {
    "arch": re.compile(r"(?:resnet|wrn)\d+"),
    "fgsm": re.compile(r"fgsm"),
    "bound": re.compile(r"sn(\d{0,30}\.?\d{1,30}|\d{1,30}\.)"),
    "normspace": re.compile(r"normspace"),
    "seed": re.compile(r"s(\d{1,30})"),
}


class VariantError(ValueError):
    """A run name that is not the one right spelling of a run."""


@dataclass(frozen=True)
class Variant:
    """What distinguishes one run of a data set from another.

    ar: radius of the training attack in 1/255; bound: on every layer's spectral norm, None for no bound;
    normspace: perturbations live in the normalised space instead of pixel space.
    """

    ar: int
    arch: str
    fgsm: bool = False
    bound: float | None = None
    normspace: bool = False
    seed: int = 0

    def name(self, default_arch: str) -> str:
        """Spell the variant as the contract does: fixed order, defaults left out."""
        parts = [f"ar{self.ar}"]
        parts += [self.arch] if self.arch != default_arch else []
        parts += ["fgsm"] if self.fgsm and self.ar else []
        parts += [f"sn{_short(self.bound)}"] if self.bound else []
        parts += ["normspace"] if self.normspace else []
        parts += [f"s{self.seed}"] if self.seed else []
        return "-".join(parts)

    @property
    def train_attack(self) -> str:
        """Name of the training attack, pgd or fgsm; standard training counts as PGD of radius 0, as in the paper."""
        return "fgsm" if self.fgsm else "pgd"

    @property
    def space(self) -> str:
        """Space of the perturbation's radius: pixel or normalised."""
        return "normalised" if self.normspace else "pixel"


def is_free(name: str) -> bool:
    """Tell whether an architecture of the user's may bear a name: it is no part of the grammar and no shipped one."""
    taken = any(pattern.fullmatch(name) for key, pattern in _PARTS.items() if key != "arch")
    taken = taken or re.fullmatch(r"sn?\d+", name) is not None  # longer than any seed or bound can be
    return not taken and name not in ARCHITECTURES and re.fullmatch(r"[a-z][a-z0-9]*", name) is not None


def parse(text: str, default_arch: str, own: Collection[str] = ()) -> Variant:
    """Read a run's name; raise VariantError, with the right spelling, for anything but the one right spelling.

    default_arch: the data set's, which a name leaves out; own: names of architectures that config.yaml adds.
    """
    head, *parts = text.split("-")
    strength = re.fullmatch(r"ar(\d{1,30})", head)
    if strength is None:
        raise VariantError(f"{text!r} is not the name of a run: write {GRAMMAR}, for example ar16 or ar8-s1")
    found: dict[str, str] = {}
    for part in parts:
        key, value = ("arch", part) if part in own else _read_part(part, text)
        if key in found:
            raise VariantError(f"{text!r} says {key} twice: write {GRAMMAR}")
        found[key] = value
    bound = float(found.get("bound", 0))
    variant = Variant(
        ar=int(strength[1]),
        arch=found.get("arch", default_arch),
        fgsm="fgsm" in found,
        bound=bound if bound else None,
        normspace="normspace" in found,
        seed=int(found.get("seed", 0)),
    )
    _refuse_unknown(variant, text, [*ARCHITECTURES, *own])
    right = variant.name(default_arch)
    if text != right:
        raise VariantError(f"{text!r} is spelt {right!r}: a run has exactly one name, without defaults, in fixed order")
    return variant


def _read_part(part: str, text: str) -> tuple[str, str]:
    for key, pattern in _PARTS.items():
        match = pattern.fullmatch(part)
        if match:
            return key, match[match.lastindex or 0]
    raise VariantError(f"{text!r} is not the name of a run: {part!r} is not part of {GRAMMAR}")


def _refuse_unknown(variant: Variant, text: str, known: list[str]) -> None:
    if variant.arch not in known:
        raise VariantError(f"{text!r} names an unknown architecture {variant.arch!r}: use one of {known}")
    if variant.seed > MAX_SEED:
        raise VariantError(f"{text!r} has seed {variant.seed}: use at most {MAX_SEED}")
    if variant.ar > MAX_STRENGTH:
        raise VariantError(f"{text!r} has a strength of {variant.ar}/255: use at most {MAX_STRENGTH}")
    if variant.bound is not None and not MIN_BOUND <= variant.bound <= MAX_BOUND:
        raise VariantError(f"{text!r} has a bound of {variant.bound!r}: use {_short(MIN_BOUND)} to {_short(MAX_BOUND)}")


def _short(bound: float) -> str:
    """Write all digits that tell a bound from another, and no exponent."""
    return f"{Decimal(repr(float(bound))):f}".rstrip("0").rstrip(".")

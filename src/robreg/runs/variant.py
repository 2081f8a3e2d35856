"""Write and parse the names of runs, such as "ar16-resnet110-sn3". No other module takes such a name apart."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

from robreg.runs.radii import MAX_RADIUS, describe_mistaken_radius

ARCHITECTURES = ("resnet8", "resnet56", "resnet110", "wrn50")  # those in the package; config.yaml may define more
GRAMMAR = "ar{strength}[-{architecture}][-fgsm][-sn{bound}][-normspace][-s{seed}]"
MAX_SEED = 2**32 - 1
MIN_BOUND, MAX_BOUND = 1e-6, 1e6  # on the largest singular value of every layer

# These accept more than the grammar allows (any order, leading zeros), so that an error can state the correct name.
_PARTS = {
    "arch": re.compile(r"(?:resnet|wrn)\d+"),
    "fgsm": re.compile(r"fgsm"),
    "bound": re.compile(r"sn(\d{0,30}\.?\d{1,30}|\d{1,30}\.)"),
    "normspace": re.compile(r"normspace"),
    "seed": re.compile(r"s(\d{1,30})"),
}


class VariantError(ValueError):
    """Raised for a text that is not the name of a run, or not the one correct way to write it."""


@dataclass(frozen=True)
class Variant:
    """The properties that distinguish one run of a data set from another.

    ar: radius of the training attack in 1/255, 0 for standard training; arch: name of the architecture; fgsm: train
    with FGSM instead of PGD; bound: on every layer's largest singular value, None for no bound; normspace: whether
    perturbations are in the normalised space instead of pixel space; seed: of its random numbers.
    """

    ar: int
    arch: str
    fgsm: bool = False
    bound: float | None = None
    normspace: bool = False
    seed: int = 0

    def name(self, default_arch: str) -> str:
        """Write the name of the run: parts in fixed order, with default values left out."""
        parts = [f"ar{self.ar}"]
        parts += [self.arch] if self.arch != default_arch else []
        parts += ["fgsm"] if self.fgsm and self.ar else []
        parts += [f"sn{_format_bound(self.bound)}"] if self.bound else []
        parts += ["normspace"] if self.normspace else []
        parts += [f"s{self.seed}"] if self.seed else []
        return "-".join(parts)

    @property
    def train_attack(self) -> str:
        """The training attack, pgd or fgsm; standard training counts as PGD of radius 0, as in the paper."""
        return "fgsm" if self.fgsm else "pgd"

    @property
    def space(self) -> str:
        """The space in which the radius of a perturbation is measured, pixel or normalised."""
        return "normalised" if self.normspace else "pixel"


def is_available_name(name: str) -> bool:
    """Return whether a user-defined architecture may have a name: no part of the grammar and not one of the package."""
    taken = any(pattern.fullmatch(name) for key, pattern in _PARTS.items() if key != "arch")
    taken = taken or re.fullmatch(r"sn?\d+", name) is not None  # longer than the patterns of seed and bound accept
    return not taken and name not in ARCHITECTURES and re.fullmatch(r"[a-z][a-z0-9]*", name) is not None


def parse(text: str, default_arch: str, own: Collection[str] = ()) -> Variant:
    """Parse the name of a run.

    default_arch: the default architecture of the data set, which a name leaves out; own: names of user-defined
    architectures. Raises VariantError, which states the correct name if there is one, unless text is exactly that name.
    """
    head, *parts = text.split("-")
    strength = re.fullmatch(r"ar(\d{1,30})", head)
    if strength is None and (mistake := describe_mistaken_radius("ar", head.removeprefix("ar"))):
        raise VariantError(f"{text!r} is not the name of a run: {mistake}")
    if strength is None:
        raise VariantError(f"{text!r} is not the name of a run: write {GRAMMAR}, for example ar16 or ar8-s1")
    values: dict[str, str] = {}
    for part in parts:
        key, value = ("arch", part) if part in own else _parse_part(part, text, [*ARCHITECTURES, *own])
        if key in values:
            raise VariantError(f"{text!r} gives {key} twice: write {GRAMMAR}")
        values[key] = value
    bound = float(values.get("bound", 0))
    variant = Variant(
        ar=int(strength[1]),
        arch=values.get("arch", default_arch),
        fgsm="fgsm" in values,
        bound=bound if bound else None,
        normspace="normspace" in values,
        seed=int(values.get("seed", 0)),
    )
    _refuse_unsupported(variant, text, [*ARCHITECTURES, *own])
    correct = variant.name(default_arch)
    if text != correct:
        raise VariantError(
            f"{text!r} must be written {correct!r}: a run has exactly one name, without defaults, in fixed order"
        )
    return variant


def _parse_part(part: str, text: str, known: list[str]) -> tuple[str, str]:
    """Parse one part of the name `text` into its key and value.

    Raises VariantError, which lists the `known` architectures, if it is not in the grammar.
    """
    for key, pattern in _PARTS.items():
        match = pattern.fullmatch(part)
        if match:
            return key, match[match.lastindex or 0]
    raise VariantError(
        f"{text!r} is not the name of a run: {part!r} is not part of {GRAMMAR}; "
        f"as an architecture, use one of {known}, or define it in config.yaml"
    )


def _refuse_unsupported(variant: Variant, text: str, known: list[str]) -> None:
    """Raise VariantError for an architecture that is not in `known`, and for numbers out of range."""
    if variant.arch not in known:
        raise VariantError(f"{text!r} names an unknown architecture {variant.arch!r}: use one of {known}")
    if variant.seed > MAX_SEED:
        raise VariantError(f"{text!r} has seed {variant.seed}: use at most {MAX_SEED}")
    if variant.ar > MAX_RADIUS:
        raise VariantError(f"{text!r} has a strength of {variant.ar}/255: use at most {MAX_RADIUS}")
    if variant.bound is not None and not MIN_BOUND <= variant.bound <= MAX_BOUND:
        raise VariantError(
            f"{text!r} has a bound of {variant.bound!r}: use {_format_bound(MIN_BOUND)} to {_format_bound(MAX_BOUND)}"
        )


def _format_bound(bound: float) -> str:
    """Write a bound without an exponent, with all the digits that distinguish it from other floats."""
    return f"{Decimal(repr(float(bound))):f}".rstrip("0").rstrip(".")

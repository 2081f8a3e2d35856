"""Write and parse the names of runs, such as "ar16-resnet110-sn3". No other module takes such a name apart."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

from robreg.runs.radii import MAX_RADIUS, describe_mistaken_radius

_DEPTHS = (8, 56, 110)  # of the residual networks for small images, in each of their three families
# Those in the package; config.yaml may define more. See robreg.networks.fixup_resnet for the families.
ARCHITECTURES = (
    *(f"resnet{depth}" for depth in _DEPTHS),
    *(f"resnet{depth}nobias" for depth in _DEPTHS),
    *(f"fixup{depth}" for depth in _DEPTHS),
    "wrn50",
)
GRAMMAR = "ar{strength}[-{architecture}][-fgsm][-clean{share}][-sn{bound}][-{space}][-eval{space}][-s{seed}]"
MAX_SEED = 2**32 - 1
MIN_BOUND, MAX_BOUND = 1e-6, 1e6  # on the largest singular value of every layer
MIN_CLEAN, MAX_CLEAN = 0.01, 0.99  # share of clean examples in the training loss
# The spaces in which radii are measured, with their words in names: [0, 1], divided by the channels' standard
# deviations, and [-1, 1].
SPACES = {"pixel": "pixel", "normalised": "normspace", "symmetric": "symmetric"}
_EVALUATED = ", evaluated in "
_SPACE_OF = {word: space for space, word in SPACES.items()}

# These accept more than the grammar allows (any order, leading zeros), so that an error can state the correct name.
_PARTS = {
    "arch": re.compile(r"(?:resnet|fixup|wrn)\d+(?:nobias)?"),
    "fgsm": re.compile(r"fgsm"),
    "clean": re.compile(r"clean(\d{0,30}\.?\d{1,30}|\d{1,30}\.)"),
    "bound": re.compile(r"sn(\d{0,30}\.?\d{1,30}|\d{1,30}\.)"),
    "space": re.compile("|".join(_SPACE_OF)),
    "evaluation_space": re.compile(f"eval({'|'.join(_SPACE_OF)})"),
    "seed": re.compile(r"s(\d{1,30})"),
}


class VariantError(ValueError):
    """Raised for a text that is not the name of a run, or not the one correct way to write it."""


@dataclass(frozen=True)
class Defaults:
    """What a data set's runs have unless their names say otherwise, and what their names therefore leave out.

    clean: the share of clean examples in the training loss; evaluation_space: None for the space of the run.
    """

    arch: str
    clean: float = 0.0
    space: str = "pixel"
    evaluation_space: str | None = None


@dataclass(frozen=True)
class Variant:
    """The properties that distinguish one run of a data set from another.

    ar: radius of the training attack in 1/255, 0 for standard training; arch: name of the architecture; fgsm: train
    with FGSM instead of PGD; clean: the weight of the clean examples in the training loss, 0 to train on adversarial
    examples alone; bound: on every layer's largest singular value, None for no bound; space: in which radii are
    measured, a key of SPACES; evaluation_space: the same for all attacks after the training, None for `space`; seed: of
    its random numbers.
    """

    ar: int
    arch: str
    fgsm: bool = False
    clean: float = 0.0
    bound: float | None = None
    space: str = "pixel"
    evaluation_space: str | None = None
    seed: int = 0

    def name(self, defaults: Defaults) -> str:
        """Write the name of the run: parts in fixed order, with default values left out."""
        parts = [f"ar{self.ar}"]
        parts += [self.arch] if self.arch != defaults.arch else []
        parts += ["fgsm"] if self.fgsm and self.ar else []
        parts += [f"clean{_format_number(self.clean)}"] if self.ar and self.clean != defaults.clean else []
        parts += [f"sn{_format_number(self.bound)}"] if self.bound else []
        parts += [SPACES[self.space]] if self.space != defaults.space else []
        evaluated = self.evaluation_space or self.space
        parts += [f"eval{SPACES[evaluated]}"] if evaluated != (defaults.evaluation_space or self.space) else []
        parts += [f"s{self.seed}"] if self.seed else []
        return "-".join(parts)

    @property
    def train_attack(self) -> str:
        """The training attack, pgd or fgsm, with the share of clean examples if there is one, as in pgd+clean0.5.

        Standard training counts as PGD of radius 0, as in the paper.
        """
        attack = "fgsm" if self.fgsm else "pgd"
        return f"{attack}+clean{_format_number(self.clean)}" if self.clean and self.ar else attack

    @property
    def spaces(self) -> str:
        """The space of training and evaluation, or both if they differ, as in "normalised, evaluated in pixel"."""
        return f"{self.space}{_EVALUATED}{self.evaluation_space}" if self.evaluation_space else self.space


def split_spaces(spaces: str) -> tuple[str, str]:
    """Return the spaces of training and evaluation from what Variant.spaces returns."""
    trained, _, evaluated = spaces.partition(_EVALUATED)
    return trained, evaluated or trained


def base_attack(train_attack: str) -> str:
    """Return "pgd" or "fgsm" from what Variant.train_attack returns, without the share of clean examples."""
    return train_attack.partition("+")[0]


def clean_share(train_attack: str) -> float:
    """Return the share of clean examples from what Variant.train_attack returns."""
    return float(train_attack.partition("+clean")[2] or 0)


def describe_setting(train_attack: str | None, spectral_norm: float | None, spaces: str | None) -> list[str]:
    """Describe training attack, bound and space in words; what is missing or the default is left out."""
    attack, share = base_attack(train_attack or "pgd"), clean_share(train_attack or "pgd")
    trained, evaluated = split_spaces(spaces or "pixel")
    words = ["FGSM"] if attack == "fgsm" else []
    words += [f"{100 * share:g} % clean examples"] if share else []
    words += [] if spectral_norm is None else [f"bound {spectral_norm:g} on every layer"]
    words += [f"{trained} space"] if spaces and trained != "pixel" else []
    return words + ([f"evaluated in {evaluated} space"] if evaluated != trained else [])


def paper_name(arch: str) -> str:
    """Return the name of the paper's architecture that one of ours stands for, whichever of Fixup's scalars it has.

    The paper omits Fixup's "scalar layers", which can mean all three families.
    """
    return re.sub(r"^(?:fixup|resnet)(\d+)(?:nobias)?$", r"resnet\1", arch)


def is_available_name(name: str) -> bool:
    """Return whether a user-defined architecture may have a name: no part of the grammar and not one of the package."""
    taken = any(pattern.fullmatch(name) for key, pattern in _PARTS.items() if key != "arch")
    taken = taken or re.fullmatch(r"sn?\d+", name) is not None  # longer than the patterns of seed and bound accept
    return not taken and name not in ARCHITECTURES and re.fullmatch(r"[a-z][a-z0-9]*", name) is not None


def parse(text: str, defaults: Defaults, own: Collection[str] = ()) -> Variant:
    """Parse the name of a run.

    defaults: those of its data set; own: names of user-defined architectures. Raises VariantError, which states the
    correct name if there is one, unless text is exactly that name.
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
    bound, ar = float(values.get("bound", 0)), int(strength[1])
    space = _SPACE_OF[values["space"]] if "space" in values else defaults.space
    evaluated = defaults.evaluation_space
    if "evaluation_space" in values:
        evaluated = _SPACE_OF[values["evaluation_space"]]
    variant = Variant(
        ar=ar,
        arch=values.get("arch", defaults.arch),
        fgsm="fgsm" in values,
        clean=(float(values["clean"]) if "clean" in values else defaults.clean) if ar else 0.0,
        bound=bound if bound else None,
        space=space,
        evaluation_space=None if evaluated == space else evaluated,
        seed=int(values.get("seed", 0)),
    )
    _refuse_unsupported(variant, text, [*ARCHITECTURES, *own])
    correct = variant.name(defaults)
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
    close = difflib.get_close_matches(part, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise VariantError(
        f"{text!r} names an unknown architecture {part!r}{hint}: use one of {known}, or define it in config.yaml; if "
        f"it is to be another part of the name, write {GRAMMAR}"
    )


def _refuse_unsupported(variant: Variant, text: str, known: list[str]) -> None:
    """Raise VariantError for an architecture that is not in `known`, and for numbers out of range."""
    if variant.arch not in known:
        raise VariantError(f"{text!r} names an unknown architecture {variant.arch!r}: use one of {known}")
    if variant.seed > MAX_SEED:
        raise VariantError(f"{text!r} has seed {variant.seed}: use at most {MAX_SEED}")
    if variant.ar > MAX_RADIUS:
        raise VariantError(f"{text!r} has a strength of {variant.ar}/255: use at most {MAX_RADIUS}")
    if variant.clean and not MIN_CLEAN <= variant.clean <= MAX_CLEAN:
        raise VariantError(
            f"{text!r} has a share of clean examples of {variant.clean!r}: use {MIN_CLEAN} to {MAX_CLEAN}"
        )
    if variant.bound is not None and not MIN_BOUND <= variant.bound <= MAX_BOUND:
        raise VariantError(
            f"{text!r} has a bound of {variant.bound!r}: use {_format_number(MIN_BOUND)} to {_format_number(MAX_BOUND)}"
        )


def _format_number(number: float) -> str:
    """Write a number without an exponent, with all the digits that distinguish it from other floats."""
    return f"{Decimal(repr(float(number))):f}".rstrip("0").rstrip(".")

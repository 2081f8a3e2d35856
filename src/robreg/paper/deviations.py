"""Where the paper is silent or contradicts itself: what is known, and what this project does, by kind of run."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from robreg.runs.settings import Settings


@dataclass(frozen=True)
class Deviation:
    """One decision. matters: whether it touches a run of these settings.

    shown: a table that shows more, which the sentence more says; alone: the decision is only about that table.
    """

    point: str
    known: str
    decision: str
    matters: Callable[[Settings], bool]
    shown: str = ""
    more: str = ""
    alone: bool = False


def deviations(settings: Sequence[Settings], tables: Collection[str]) -> list[Deviation]:
    """Choose the decisions that matter for a study's runs and the tables that it lists."""
    chosen = [one for one in _ALL if any(map(one.matters, settings)) and (not one.alone or one.shown in tables)]
    return [replace(one, decision=one.decision + one.more) if one.shown in tables else one for one in chosen]


def _always(_: Settings) -> bool:
    return True


def _attacked(one: Settings) -> bool:
    return one["train_attack"] is not None


def _fgsm(one: Settings) -> bool:
    return _attacked(one) and one["train_attack"]["attack"] == "fgsm"


def _bounded(one: Settings) -> bool:
    return one["spectral_norm"] is not None


def _cifar100(one: Settings) -> bool:
    return one["paper"] == "c100" and one["arch"] == "resnet56"


def _cifar10(one: Settings) -> bool:
    return one["paper"] == "c10" and one["arch"] == "resnet56"


def _rounded(one: Settings) -> bool:
    """Whether it is of a setting in which a printed gap is not the difference of its losses."""
    deep = one["paper"] == "c100" and one["arch"] == "resnet110"
    return deep or (one["paper"] == "c10" and one["spectral_norm"] in (1, 5))


def _fixup(one: Settings) -> bool:
    return one["arch"].startswith("resnet") and one["factory"] is None


def _deep(one: Settings) -> bool:
    return one["arch"] in ("resnet56", "resnet110")


def _batch_norm(one: Settings) -> bool:
    return one["arch"] == "wrn50"


_ALL = (
    Deviation(
        "Perturbation space",
        "The text measures eps on the scale 0 to 255. The printed accuracies and loss changes would fit better a "
        "perturbation after division by the channels' standard deviation, about a quarter of that strength.",
        "Pixels in [0, 1] unless a run says normalised space: there the radius of each channel is eps times its "
        "standard deviation, still clipped to valid pixels, in training and in every attack. Where both ran, "
        "the comparison says which is nearer.",
        _always,
    ),
    Deviation(
        "Training loss and accuracy",
        "Not said whether clean or adversarial; the printed values can only be clean.",
        "Clean examples, without augmentation, in all tables; the adversarial running loss is in the history.",
        _always,
    ),
    Deviation(
        "Which checkpoint", "Not said.", "The last epoch; none is ever chosen by its results on the test set.", _always
    ),
    Deviation(
        "Weight decay",
        "Not said; the paper's small training losses speak for little or none, related code uses 1e-4.",
        "0 unless a data set's settings say otherwise.",
        _always,
    ),
    Deviation(
        "Input normalisation",
        "Not said.",
        "The training set's mean and standard deviation per channel, in the network's first layer, "
        "so that attacks see pixels.",
        _always,
    ),
    Deviation(
        "Channels that a stage adds",
        "Fixup starts the last convolution of every block at 0, shortcuts fill new channels with 0, and the paper "
        "omits Fixup's biases. So these channels are exactly 0 behind a ReLU, whose gradient at 0 is 0: they stay 0 "
        "for ever (three quarters of the last stage), with zero rows in weights, singular values of 0, and no part in "
        "the logits.",
        "Kept, for this is the network that the paper describes; the capacity is that of the first stage's width, and "
        "every spectrum counts the zeros.",
        _fixup,
    ),
    Deviation(
        "Adversarial accuracy",
        "The share of correctly classified examples that stay correct: conditional, so networks are compared on "
        "different examples. The reference point of Madry et al. is over all examples.",
        "The conditional one as in the paper, and robust accuracy over all examples beside it.",
        _always,
    ),
    Deviation(
        "Padding and spectra",
        "The Fourier method gives the spectrum of a circular convolution; the networks pad with zeros.",
        "Circular, as in the paper.",
        _always,
        shown="padding",
        more=" The table of zero-padded spectra shows what the convention changes.",
    ),
    Deviation(
        "1x1 convolutions and the linear layer",
        "A 1x1 convolution applies one matrix at every position, so its spectrum is the matrix's, repeated.",
        "Every singular value counts as often as the operator has it, so that a std is the operator's; the linear "
        "layer is applied once.",
        _always,
    ),
    Deviation(
        "Strided convolutions",
        "The method that the paper cites assumes stride 1.",
        "The aliased frequencies of a stride are folded into the columns, which is exact; checked against the "
        "dense operator.",
        _always,
    ),
    Deviation(
        "Steps of the loss variation",
        "The radii are given, the attack's steps are not.",
        "The maximum over the start and all iterates of a PGD attack, the clean example included.",
        _always,
    ),
    Deviation(
        "Lemma 3.1",
        "As printed, the norm stands inside the sum; that equality holds only where all pieces are parallel.",
        "The identity of vectors is checked; the printed sum is reported as an upper bound, with its slack.",
        _always,
        shown="theory",
        alone=True,
    ),
    Deviation(
        "Theorem 3.1",
        "The proof carries factors that the theorem does not print; several constants cannot be measured; residual "
        "networks are not of the form of its equation (2).",
        "The constants are settings, chosen benign; every estimate states its direction. For residual networks the "
        "quantities are reported, not a bound.",
        _always,
        shown="theory",
        alone=True,
    ),
    Deviation(
        "Number of layers",
        'The text says "56 layers"; the sums and means of B.2 give 55.',
        "All layers in figures.",
        _deep,
        shown="b2",
        more=" B.2 over the convolutions, and over all layers beside it.",
    ),
    Deviation(
        "B.2, CIFAR-100",
        "The second sum (0.4372) repeats CIFAR-10's and contradicts its own mean (0.1103 x 16 = 1.76).",
        "Kept as printed, marked as a probable misprint.",
        _cifar100,
    ),
    Deviation(
        "Table 3, adversarial accuracy",
        "Not monotone (65.92, 65.24, 72.16); neighbouring settings at AR 4 have 55 to 58.",
        "Kept as printed; 65.92 is marked as a probable misprint.",
        _cifar10,
    ),
    Deviation(
        "Three loss gaps",
        "Table 4, ResNet-110 at AR 8, and Table 6, bound 1 at AR 16 and bound 5 at AR 4, differ by 0.001 from the "
        "losses beside them.",
        "Taken for rounding; kept as printed.",
        _rounded,
    ),
    Deviation(
        "Bound on the spectral norm",
        "One round of clipping and cropping to the kernel's support leaves norms of 1.2 to 1.4 times the bound.",
        "Rounds to a tolerance and a final rescaling, so that the bound holds; clip_rounds: 1 is the paper's. "
        "The norms after every epoch are in the history.",
        _bounded,
    ),
    Deviation(
        "Start of FGSM",
        "Not said.",
        "The plain one: from the example itself, by eps. A random start is a setting.",
        _fgsm,
    ),
    Deviation(
        "Batch normalisation under attack",
        "Not said.",
        "Attacks use the running statistics and never change them; the pass on the adversarial batch that updates "
        "the weights updates them too.",
        _batch_norm,
    ),
)

"""Points on which the paper is silent or contradicts itself, and what this project does, by kind of run."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from robreg.runs.settings import Settings
from robreg.runs.variant import paper_name


@dataclass(frozen=True)
class Deviation:
    """A point on which the paper is silent or contradicts itself, and the decision for it.

    known: what is known about the point; matters: whether it affects a run with the given settings; shown: the table
    that shows more about it; more: the sentence to add to decision if a study lists that table; alone: whether the
    decision concerns only that table.
    """

    point: str
    known: str
    decision: str
    matters: Callable[[Settings], bool]
    shown: str = ""
    more: str = ""
    alone: bool = False


def deviations(settings: Sequence[Settings], tables: Collection[str]) -> list[Deviation]:
    """Select the decisions that matter for the settings of a study's runs and the tables that it lists."""
    chosen = [one for one in DEVIATIONS if any(map(one.matters, settings)) and (not one.alone or one.shown in tables)]
    return [replace(one, decision=one.decision + one.more) if one.shown in tables else one for one in chosen]


def _always(_: Settings) -> bool:
    return True


def _varied(one: Settings) -> bool:
    """Return whether the loss variation is measured; the settings of measures that are not made are left out."""
    return "loss_variation" in one


def _attacked(one: Settings) -> bool:
    return one["train_attack"] is not None


def _fgsm(one: Settings) -> bool:
    return _attacked(one) and one["train_attack"]["attack"] == "fgsm"


def _bounded(one: Settings) -> bool:
    return one["spectral_norm"] is not None


def _cifar100(one: Settings) -> bool:
    return one["paper"] == "c100" and paper_name(one["arch"]) == "resnet56"


def _cifar10(one: Settings) -> bool:
    return one["paper"] == "c10" and paper_name(one["arch"]) == "resnet56"


def _rounded(one: Settings) -> bool:
    """Return whether a gap that the paper prints for this setting is not the difference of the printed losses."""
    deep = one["paper"] == "c100" and paper_name(one["arch"]) == "resnet110"
    return deep or (one["paper"] == "c10" and one["spectral_norm"] in (1, 5))


def _fixup(one: Settings) -> bool:
    return one["arch"].startswith(("resnet", "fixup")) and one["factory"] is None


def _without_biases(one: Settings) -> bool:
    return _fixup(one) and one["arch"].endswith("nobias")


def _paper_data(one: Settings) -> bool:
    return one["paper"] is not None


def _deep(one: Settings) -> bool:
    return paper_name(one["arch"]) in ("resnet56", "resnet110")


def _batch_norm(one: Settings) -> bool:
    return one["arch"] == "wrn50"


DEVIATIONS = (
    Deviation(
        "Perturbation space",
        "The text measures eps on the scale from 0 to 255, which read literally is pixel space. There, the printed "
        "accuracies seem out of reach of the paper's networks: at AR 16 they have 96 % on CIFAR-10's training images, "
        "and published networks of this size have less on test images at AR 8 (79 %, not 87.5 %). They fit if pixels "
        "were perturbed after division by the channels' standard deviation, which is about a quarter of that strength.",
        "Each run states its space. In normalised space, which c10, c100 and tin have unless a run is named otherwise, "
        "the radius of each channel is eps times its standard deviation, still clipped to valid pixels, in training "
        "and in every attack; pixel space is the text read literally. All networks are also attacked at several radii "
        "in pixels. If one architecture ran in several spaces, the comparison says which is closest to the paper.",
        _paper_data,
    ),
    Deviation(
        "Training loss and accuracy",
        "The paper does not say whether examples are clean or adversarial; only clean ones agree with the printed "
        "values.",
        "All tables use clean examples, without augmentation; the running loss on adversarial examples is in the "
        "history.",
        _always,
    ),
    Deviation(
        "Which checkpoint",
        "The paper does not say which one is evaluated.",
        "The last epoch's; a checkpoint is never chosen by its results on the test set.",
        _always,
    ),
    Deviation(
        "Weight decay",
        "The paper does not state it; its small training losses suggest little or none, and related code uses 1e-4.",
        "0, unless a data set's settings state another value.",
        _always,
    ),
    Deviation(
        "Input normalisation",
        "The paper does not describe it.",
        "The training set's mean and standard deviation per channel, applied in the network's first layer, so that "
        "attacks work on pixels.",
        _always,
    ),
    Deviation(
        "Channels that a stage adds",
        "Fixup initialises the last convolution of every block with 0, shortcuts fill new channels with 0, and in "
        "these runs (nobias in their architecture's name) Fixup's biases are omitted, as the text can be read. These "
        "channels are therefore exactly 0 after a ReLU, whose gradient at 0 is 0, so they stay 0 throughout training "
        "(three quarters of the last stage) and do not contribute to the logits. The weights that would fill them are "
        "rows of zeros. The weights that read them get no gradient and keep their random initial values.",
        "Every published spectrum counts the zeros and the random values, whose share of a layer grows as training "
        "makes the other weights smaller; live.parquet of every run has each layer's spectrum without both.",
        _without_biases,
        shown="b2",
        more=" The table of B.2 gives both.",
    ),
    Deviation(
        "Fixup's scalars",
        'The paper omits Fixup\'s "scalar layers, since it changes spectral norms of layers", which is true of the '
        "multipliers only. Without the biases, the channels that a stage adds stay 0, only a third of the weights are "
        "of use, and in short trainings the training accuracy stays lower.",
        "Biases kept, multipliers omitted. Architectures named nobias have neither, those named fixup have both. "
        "As in Fixup's code, scalars and the last layer's bias are trained at a tenth of the learning rate. "
        "Multipliers are part of no spectrum and of no bound.",
        _fixup,
    ),
    Deviation(
        "Adversarial accuracy",
        "The paper reports the share of correctly classified examples that stay correct. It is conditional, so "
        "networks are compared on different examples. The reference point of Madry et al. is over all examples.",
        "We report the conditional accuracy, as in the paper, and the robust accuracy over all examples next to it.",
        _always,
    ),
    Deviation(
        "Padding and spectra",
        "The Fourier method gives the spectrum of a circular convolution, but the networks pad with zeros.",
        "Circular convolutions, as in the paper, in all spectra, their largest values and the spectral complexity; "
        "only a bound on the layers is one on what the networks apply.",
        _always,
        shown="padding",
        more=" The table of zero-padded spectra shows what the convention changes.",
    ),
    Deviation(
        "1x1 convolutions and the linear layer",
        "A 1x1 convolution applies one matrix at every position, so its spectrum is the matrix's, repeated.",
        "Every singular value counts as often as it occurs in the operator, so that a standard deviation is the "
        "operator's; the linear layer is applied once.",
        _always,
    ),
    Deviation(
        "Strided convolutions",
        "The method that the paper cites assumes stride 1.",
        "The frequencies that a stride aliases are folded into the columns, which is exact; this is checked against "
        "the dense operator.",
        _always,
    ),
    Deviation(
        "Unit of the loss variation",
        "Table 1 does not say what varies. At the largest radius, its numbers are 0.33 to 0.44 of the accuracy that an "
        "attack of twice the radius takes. In four of our networks, changes of the label's probability are 0.2 to 0.8 "
        "of it, and changes of the cross entropy 0.9 to 7.4.",
        "Tables, figures and claims use the label's probability; the cross entropy is in the same files.",
        _varied,
    ),
    Deviation(
        "Steps of the loss variation",
        "The paper gives the radii, but not the attack's steps.",
        "The largest loss at the start and all iterates of a PGD attack, and at the clean example: a lower bound on "
        "the maximum.",
        _varied,
    ),
    Deviation(
        "Lemma 3.1",
        "As printed, the norm is inside the sum; that equality holds only if all pieces are parallel.",
        "The identity of vectors is checked; the printed sum is reported as an upper bound, with its slack.",
        _always,
        shown="theory",
        alone=True,
    ),
    Deviation(
        "Theorem 3.1",
        "The proof contains factors that the theorem does not print; several constants cannot be measured; residual "
        "networks do not have the form of its equation (2).",
        "The constants are settings, with benign values; every estimate states whether it is an upper or a lower one. "
        "For residual networks the quantities are reported, but they are not a bound.",
        _always,
        shown="theory",
        alone=True,
    ),
    Deviation(
        "Number of layers",
        'The text says "56 layers"; the sums and means of B.2 give 55.',
        "Figures show all layers.",
        _deep,
        shown="b2",
        more=" We report B.2 over the convolutions, and over all layers next to it.",
    ),
    Deviation(
        "B.2, CIFAR-100",
        "The second sum (0.4372) repeats CIFAR-10's and contradicts its own mean (0.1103 x 16 = 1.76).",
        "Kept as printed, and marked as a probable misprint.",
        _cifar100,
    ),
    Deviation(
        "Table 3, adversarial accuracy",
        "The values are not monotone (65.92, 65.24, 72.16); similar settings at AR 4 have 55 to 58.",
        "Kept as printed; 65.92, which Table 6 repeats, is marked as a probable misprint and does not count in the "
        "agreement.",
        _cifar10,
    ),
    Deviation(
        "Three loss gaps",
        "Those of ResNet-110 at AR 8 (Table 4), of bound 1 at AR 16 and of bound 5 at AR 4 (both Table 6) differ by "
        "0.001 from the difference of the losses next to them.",
        "Regarded as rounding; kept as printed.",
        _rounded,
    ),
    Deviation(
        "Bound on the spectral norm",
        "The paper clips the singular values of circular convolutions once and crops the result to the kernel's "
        "support. This leaves largest singular values of 1.2 to 1.4 times the bound. Also, networks pad with zeros, "
        "and training under a bound on the circular convolution alone finds kernels whose largest singular value, as "
        "the network applies them, is several times the bound where images are small.",
        "Rounds are repeated, and then the kernel is rescaled, on a circular convolution with room for the padding, "
        "which contains what the network applies, so that the bound holds for what the network applies. The circular "
        "convolution of the published spectra may exceed the bound, most where images are small. clip_rounds: 1 is the "
        "paper's method. The largest singular values after every epoch (with exact rounds, upper bounds on them) are "
        "in the history.",
        _bounded,
    ),
    Deviation(
        "Start of FGSM",
        "The paper does not describe it.",
        "Plain FGSM: one step of eps from the example itself. A random start is a setting.",
        _fgsm,
    ),
    Deviation(
        "Batch normalisation under attack",
        "The paper does not describe it.",
        "Attacks use the running statistics and never change them; the pass on the adversarial batch that updates "
        "the weights also updates the statistics.",
        _batch_norm,
    ),
)

"""The paper's claims about how confident the networks are: the margins, probabilities and losses of examples."""

from functools import partial

from robreg.claims import quantities
from robreg.claims.claim import FALLS, HOLDS, RISES, Claim, Place
from robreg.claims.contrasts import AtStrength, Change

_C10 = ("c10",)
_MARGIN_STD = Change("std of test margins (logits)", partial(quantities.margin_std, split="test"))
_TRAIN_SKEWNESS = AtStrength("skewness of training margins", partial(quantities.margin_skewness, split="train"), "high")

CONFIDENCE = (
    Claim(
        "margin-std-falls",
        "Test margins concentrate as AR grows: their standard deviation falls.",
        FALLS,
        _MARGIN_STD,
        (
            Place("sections 1.1 and 4.2.1, Figures 1b, 4a and 4b", "plain"),
            Place("B.6, Figure 10", "FGSM"),
        ),
    ),
    Claim(
        "margin-std-train-falls",
        "Training margins concentrate as AR grows: their standard deviation falls.",
        FALLS,
        Change("std of training margins (logits)", partial(quantities.margin_std, split="train")),
        (Place("section 4.2.1, B.3, Figures 4c and 4d", "plain"), Place("B.6, Figure 10", "FGSM")),
    ),
    Claim(
        "margin-mode-to-zero",
        "The mode of the test margins moves to 0 as AR grows.",
        FALLS,
        Change("distance of the mode of test margins from 0 (logits)", quantities.margin_mode),
        (Place("section 4.2.1, Figures 4a and 4b", "plain"), Place("B.6, Figure 10", "FGSM")),
    ),
    Claim(
        "margin-less-on-c100",
        "The concentration of the test margins is less on CIFAR-100 than on CIFAR-10.",
        FALLS,
        Change("std of test margins (logits) on CIFAR-10, less the same on CIFAR-100", _MARGIN_STD.quantity),
        (Place("section 4.2.2, Figures 4a and 4b", "plain", _C10),),
        general=False,
        against="c100",
    ),
    Claim(
        "margin-skewed-c10",
        "Training margins on CIFAR-10 are skewed to 0, with a long tail away from it.",
        HOLDS,
        _TRAIN_SKEWNESS,
        (Place("B.3, Figure 4c", "plain", _C10),),
        general=False,
    ),
    Claim(
        "margin-skewed-train",
        "On CIFAR-10 training margins are more skewed than test margins.",
        HOLDS,
        AtStrength("skewness of training minus test margins", quantities.skewness_excess, "high"),
        (Place("B.3, Figures 4a and 4c", "plain", _C10),),
        general=False,
    ),
    Claim(
        "margin-skewed-less-c100",
        "Training margins are less skewed on CIFAR-100 than on CIFAR-10.",
        HOLDS,
        AtStrength(
            "skewness of training margins on CIFAR-10, less the same on CIFAR-100", _TRAIN_SKEWNESS.quantity, "high"
        ),
        (Place("B.3, Figures 4c and 4d", "plain", _C10),),
        general=False,
        against="c100",
    ),
    Claim(
        "prob-middle-rises",
        "Probability mass moves to the middle as AR grows.",
        RISES,
        Change("share of test examples whose label has a probability from 0.1 to 0.9", quantities.middle_probabilities),
        (Place("section 4.2.1, Figure 5a", "plain"), Place("B.6, Figure 11a", "FGSM")),
    ),
    Claim(
        "prob-mostly-at-ends",
        "The majority of the probabilities is still at the ends.",
        HOLDS,
        AtStrength(
            "share of test examples with a probability below 0.1 or above 0.9, minus 1/2",
            quantities.extreme_probabilities,
            "high",
        ),
        (Place("section 4.2.1, Figure 5a", "plain"),),
    ),
    Claim(
        "prob-large-losses-fewer",
        "Large test losses become fewer as AR grows.",
        FALLS,
        Change("share of test examples with a loss above 4.6 nats (probability below 0.01)", quantities.large_losses),
        (Place("section 4.2.1, Figure 5b", "plain"), Place("B.6, Figure 11b", "FGSM")),
    ),
    Claim(
        "margin-confident-errors-fewer",
        "Confident wrong predictions become fewer as AR grows.",
        FALLS,
        Change("share of test examples wrong by a margin below -2.2 logits (0.9 to 0.1)", quantities.confident_errors),
        (Place("sections 4.1 and 4.2.1, Figures 4 and 5", "plain"), Place("B.6, Figures 10 and 11", "FGSM")),
    ),
    Claim(
        "margin-indecisive-errors-more",
        "Indecisive wrong predictions, slightly across the decision boundary, become more as AR grows.",
        RISES,
        Change("share of test examples wrong by a margin of at least -2.2 logits", quantities.indecisive_errors),
        (Place("sections 1.1 and 4.2.1, Figures 1b and 4", "plain"), Place("B.6, Figure 10", "FGSM")),
    ),
)

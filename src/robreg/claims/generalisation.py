"""The paper's claims about generalisation: losses, accuracies and their gaps."""

from functools import partial

from robreg.claims import quantities
from robreg.claims.claim import FALLS, HOLDS, RISES, Claim, Place
from robreg.claims.contrasts import Change

_ALL = ("c10", "c100", "tin")
_C10, _C100 = ("c10",), ("c100",)
_LOSS_GAP = Change("loss gap (nats)", quantities.loss_gap)
_ERROR_GAP = Change("error gap (percentage points)", quantities.error_gap)
_TEST_LOSS = Change("mean test loss (nats)", partial(quantities.loss, split="test"))

GENERALISATION = (
    Claim(
        "ge-gap-falls",
        "The generalisation (loss) gap falls as AR grows.",
        FALLS,
        _LOSS_GAP,
        (
            Place("section 4.1, Figure 3a, Tables 3 to 5", "plain", _ALL),
            Place("B.4.1, Figure 7a, Tables 3 and 4", "deeper"),
            Place("B.4.2, Figure 6, Table 6", "bounded", _C10),
            Place("B.6, Figure 9a, Table 2", "FGSM"),
        ),
    ),
    Claim(
        "train-loss-rises",
        "The training loss rises as AR grows.",
        RISES,
        Change("mean training loss (nats)", partial(quantities.loss, split="train")),
        (
            Place("section 4.1, Figure 3b, Tables 3 to 5", "plain", _ALL),
            Place("B.4.1, Figure 7b, Tables 3 and 4", "deeper"),
        ),
    ),
    Claim(
        "test-loss-falls",
        "The test loss falls as AR grows on CIFAR-10 and CIFAR-100.",
        FALLS,
        _TEST_LOSS,
        (
            Place("section 4.1, Figure 3b, Tables 3 and 4", "plain"),
            Place("B.4.1, Figure 7b, Tables 3 and 4", "deeper"),
        ),
        general=False,
    ),
    Claim(
        "test-loss-rises-tin",
        "On Tiny-ImageNet the test loss does not fall as AR grows, but rises.",
        RISES,
        _TEST_LOSS,
        (Place("section 4.1, Figure 3b, Table 5", "plain", ("tin",)),),
        general=False,
    ),
    Claim(
        "test-acc-falls",
        "The test accuracy falls as AR grows.",
        FALLS,
        Change("test accuracy (percentage points)", partial(quantities.accuracy, split="test")),
        (
            Place("sections 1.1 and 4.1, Figures 1c and 3b, Tables 3 to 5", "plain", _ALL),
            Place("B.4.1, Figure 7b, Tables 3 and 4", "deeper"),
            Place("B.6, Figure 9b, Table 2", "FGSM"),
        ),
    ),
    Claim(
        "adv-acc-rises",
        "The adversarial accuracy, of examples that are correct when clean, rises as AR grows.",
        RISES,
        Change("adversarial accuracy (percentage points)", quantities.adversarial_accuracy),
        (
            Place("section 1.1, D.2, Figures 1c and 12, Tables 3 to 5", "plain", _ALL),
            Place("D.2, Figure 12, Tables 3 and 4", "deeper"),
        ),
    ),
    Claim(
        "error-gap-rises",
        "On CIFAR-10, with uncontrolled capacity, the error gap rises as AR grows.",
        RISES,
        _ERROR_GAP,
        (
            Place("section 4.1, B.3, Figure 3a, Table 3", "plain", _C10),
            Place("B.4.1, Figure 7a, Table 3", "deeper", _C10),
        ),
        general=False,
    ),
    Claim(
        "error-gap-falls",
        "On CIFAR-100 and Tiny-ImageNet the error gap falls as AR grows.",
        FALLS,
        _ERROR_GAP,
        (
            Place("section 4.1, B.3, Figure 3a, Tables 4 and 5", "plain", ("c100", "tin")),
            Place("B.4.1, Figure 7a, Table 4", "deeper", _C100),
        ),
        general=False,
    ),
    Claim(
        "error-gap-falls-bound-1",
        "On CIFAR-10, with a bound of 1 on the spectral norm of every layer, the error gap falls as AR grows.",
        FALLS,
        _ERROR_GAP,
        (Place("B.4.2, Figure 6, Table 6", "bounded", _C10, bound=1),),
        general=False,
    ),
    Claim(
        "error-gap-turns",
        "The error gap turns from rising with AR without a bound on the spectral norm to falling with the smallest, 1.",
        HOLDS,
        Change(
            "change of the error gap (percentage points) without a bound, or minus its change with the bound 1, "
            "whichever is the weaker",
            quantities.error_gap,
        ),
        (Place("B.4.2, Figure 6, Table 6", "bounded", _C10, bound=1),),
        general=False,
        against="no bound",
    ),
)

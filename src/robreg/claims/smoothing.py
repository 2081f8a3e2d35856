"""The paper's claims about singular values and the loss variation, and extensions about perturbations in layers."""

from functools import partial

from robreg.claims import quantities
from robreg.claims.claim import FALLS, HOLDS, Claim, Place
from robreg.claims.contrasts import AtStrength, Change, LayerChange

_CONVOLUTIONS = partial(quantities.svstd_of_layers, kind="conv")
TENFOLD = 10**0.5  # the smallest ratio that is nearer to 10 than to 1, on a logarithmic scale

_SINGULAR_VALUES = (
    Claim(
        "svstd-falls-in-most-layers",
        "The standard deviation of the singular values falls in most layers as AR grows.",
        FALLS,
        LayerChange(
            "change of the std of singular values, median over layers",
            quantities.svstd_of_layers,
            quantities.median_change,
        ),
        (
            Place("sections 1.1 and 4.2.2, Figures 1a, 5c and 5d", "plain"),
            Place("B.6, Figures 11c and 11d", "FGSM"),
        ),
    ),
    Claim(
        "svstd-falls-overall",
        "Overall the standard deviation of the singular values falls as AR grows.",
        FALLS,
        Change("std of singular values, mean over layers", quantities.svstd),
        (
            Place("sections 1.1 and 4.2.2, Figures 1a, 5c and 5d", "plain"),
            Place("B.6, Figures 11c and 11d", "FGSM"),
        ),
    ),
    Claim(
        "svstd-decrease-exceeds",
        "The accumulated decrease of the standard deviation of singular values exceeds the accumulated increase.",
        HOLDS,
        LayerChange(
            "accumulated decrease minus accumulated increase of the std of singular values over convolutions",
            _CONVOLUTIONS,
            partial(quantities.decrease_over_increase, ratio=1),
        ),
        (Place("B.2", "plain"),),
    ),
    Claim(
        "svstd-decrease-tenfold",
        "The accumulated decrease is at least about ten times the accumulated increase, nearer to 10 than to 1 on a "
        "logarithmic scale.",
        HOLDS,
        LayerChange(
            "accumulated decrease minus \N{SQUARE ROOT}10 times the accumulated increase of the std of singular values "
            "over convolutions (the paper has 10.9 times on CIFAR-10; 2.1 times on CIFAR-100, if the sum there is the "
            "misprint)",
            _CONVOLUTIONS,
            partial(quantities.decrease_over_increase, ratio=TENFOLD),
            zero_if_equal=False,  # an increase counts more than a decrease
        ),
        (Place("B.2", "plain"),),
    ),
    Claim(
        "svstd-around-1",
        "The standard deviations of the singular values of most layers are around 1.",
        HOLDS,
        AtStrength(
            "log10(2) minus |log10(std of singular values)|, median over layers (positive if most are from 1/2 to 2)",
            quantities.svstd_near_one,
            "low",
        ),
        (Place("B.2", "plain"),),
    ),
    Claim(
        "svstd-less-on-c100",
        "The reduction of the standard deviation of the singular values is smaller on CIFAR-100 than on CIFAR-10.",
        FALLS,
        Change("std of singular values, mean over layers, on CIFAR-10, less the same on CIFAR-100", quantities.svstd),
        (Place("section 4.2.2, Figures 5c and 5d", "plain", ("c10",)),),
        general=False,
        against="c100",
    ),
)

_LIKE_MEAN: tuple[tuple[str, quantities.Extreme, str], ...] = (  # id, eps, remark
    ("loss-variation-std-like-mean", "largest", ""),
    (
        "loss-variation-std-like-mean-small",
        "smallest",
        " (the paper's own Table 1 has 3.6 times the mean on CIFAR-10 at AR 4 and eps 1, which is more)",
    ),
)
_LOSS_VARIATION = (
    Claim(
        "loss-variation-mean-falls",
        "The mean loss variation under a perturbation of the largest eps falls as AR grows.",
        FALLS,
        Change("mean loss variation (probability) at the largest eps", quantities.variation_mean),
        (Place("B.5, Figure 8, Table 1", "plain"),),
    ),
    Claim(
        "loss-variation-std-falls",
        "The standard deviation of the loss variation at the largest eps falls as AR grows.",
        FALLS,
        Change("std of the loss variation (probability) at the largest eps", quantities.variation_std),
        (Place("B.5, Figure 8, Table 1", "plain"),),
    ),
    *(
        Claim(
            id_,
            f"The standard deviation of the loss variation at the {eps} eps is of the size of its mean{remark}.",
            HOLDS,
            AtStrength(
                f"1/2 minus |log10(std / mean)| of the loss variation at the {eps} eps",
                partial(quantities.variation_std_like_mean, eps=eps),
                "high",
            ),
            (Place("B.5, Figure 8, Table 1", "plain"),),
        )
        for id_, eps, remark in _LIKE_MEAN
    ),
)

_PERTURBATIONS = tuple(
    Claim(f"{stem}-{perturbation}", text.format(name), FALLS, Change(words.format(name), quantity))
    for perturbation, name in (("random", "random"), ("pgd", "PGD"))
    for stem, text, words, quantity in (
        (
            "layers-even-out",
            "Layers pass {} perturbations on more evenly as AR grows: the std of the ratio of norms falls.",
            "std of the ratio of norms under {} perturbations, mean over layers",
            partial(quantities.spread_of_layers, perturbation=perturbation, column="std"),
        ),
        (
            "layers-stretch-less",
            "Layers stretch {} perturbations less as AR grows: the mean ratio of norms falls.",
            "mean ratio of norms under {} perturbations, mean over layers",
            partial(quantities.spread_of_layers, perturbation=perturbation, column="mean"),
        ),
        (
            "logits-move-less",
            "Under {} perturbations the margin changes less as AR grows.",
            "mean change of the margin (logits) under {} perturbations",
            partial(quantities.margin_change, perturbation=perturbation),
        ),
    )
)

SMOOTHING = _SINGULAR_VALUES + _LOSS_VARIATION + _PERTURBATIONS

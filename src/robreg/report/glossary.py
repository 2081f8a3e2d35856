"""Explain the special words of a report at the end of its page, and link each from where it is used first."""

import re
from collections.abc import Mapping

from markupsafe import Markup, escape

WORDS: Mapping[str, tuple[str, str]] = {  # id: words in the text, separated by "|", and the explanation
    "ar": (
        "AR",
        "Adversarial robustness: training on images that an attack has changed. AR 8 means that the attack could "
        "change every pixel by up to 8/255 of its range. AR 0 is standard training, on unchanged images.",
    ),
    "pgd": ("PGD", "Projected gradient descent: an attack that takes several small steps towards a larger loss."),
    "fgsm": ("FGSM", "Fast gradient sign method: an attack that takes a single large step."),
    "apgd": ("APGD", "Auto-PGD: a stronger form of PGD that chooses its steps itself."),
    "dlr": (
        "DLR",
        "Difference of logits ratio: a loss for attacks that does not change if all logits are multiplied by a number.",
    ),
    "logit": (
        "logit|logits",
        "What a network puts out for each class; the largest one gives its answer.",
    ),
    "margin": (
        "margin|margins",
        "The logit of the right class minus the largest other one. It is negative if the answer is wrong, and large if "
        "the network is sure of a right answer.",
    ),
    "loss-gap": (
        "loss gap",
        "The mean loss on test images minus that on training images: how much worse a network does on images that it "
        "has not seen. A smaller gap is what regularisation should bring.",
    ),
    "error-gap": ("error gap", "The share of wrong answers on test images minus that on training images."),
    "nats": (
        "nats",
        "The unit of the loss (cross entropy): a loss of 1 nat is a probability of 37 % for the right class.",
    ),
    "adversarial-accuracy": (
        "adversarial accuracy|adversarial accuracies",
        "Of the test images that are classified correctly when clean, the share that still is under attack.",
    ),
    "robust-accuracy": ("robust accuracy", "Of all test images, the share that is classified correctly under attack."),
    "singular-values": (
        "singular values|singular value",
        "By how much a layer stretches its input, along each of its own directions. If all are alike, the layer "
        "stretches every input by the same factor.",
    ),
    "circular": (
        "circular convolutions|circular convolution|circular",
        "A convolution whose image continues on the opposite side at each edge. Its singular values can be computed "
        "exactly; the networks themselves continue images with zeros.",
    ),
    "zero-padded": ("zero-padded", "A convolution as the networks apply it: outside of the image are zeros."),
    "spectral-norm": ("spectral norm", "The largest singular value of a layer."),
    "spectral-complexity": ("spectral complexity", "The product of the largest singular values of all layers."),
    "live-part": ("live part", "A layer without the channels that are 0 for every image or were never trained."),
    "loss-variation": (
        "loss variation",
        "By how much a small change of an image can change its loss; here, the probability of the right class.",
    ),
    "normalised-space": (
        "normalised space",
        "Pixels divided by the standard deviation of their colour channel. A radius there is a smaller one in pixels.",
    ),
    "hidden-gradients": (
        "hidden gradients|hides its gradients",
        "A network whose gradients do not lead an attack to the images that it gets wrong. It looks robust and is not.",
    ),
    "seed": ("seed|seeds", "The number that decides the random start of a training. Other seeds give other networks."),
    "ddof": (
        "ddof 0|ddof 1",
        "The standard deviation of n numbers divides by n (ddof 0) if they are all that there is, such as the singular "
        "values of a layer, and by n minus 1 (ddof 1) if they are a sample, such as seeds.",
    ),
    "interval": (
        "95 % confidence interval|95 % interval",
        "The range in which an effect lies for all that other seeds and other images could have changed.",
    ),
    "q": (
        "false discovery rate",
        "The share of findings that are due to chance alone. q is the smallest rate at which an effect still counts as "
        "found (Benjamini and Hochberg).",
    ),
    "ramp": (
        "ramp loss|ramp risk|ramp gap",
        "A loss that is 1 for a margin below 0, 0 for one above gamma, and falls evenly in between. The ramp risk is "
        "its mean over a data set, and the ramp gap is the risk on test images minus that on training images.",
    ),
    "w-min": ("w_min", "The smallest distance between the last layer's weights for two classes."),
    "v-min": ("v_min", "The smallest distance from an image to the decision boundary, in pixels."),
    "u-min": ("u_min", "The product of w_min, v_min and the smallest singular values of the layers, for Theorem 3.1."),
    "slack": (
        "excess of the printed sum|slack",
        "How much too large the sum is that the paper prints in Lemma 3.1, relative to the change that it stands for.",
    ),
    "fixup": (
        "Fixup",
        "A way to start the training of residual networks without batch normalisation; its scalars are single numbers "
        "that are added to or multiplied with whole layers.",
    ),
}
_IDS = {form: key for key, (forms, _) in WORDS.items() for form in forms.split("|")}
_FORMS = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(_IDS, key=len, reverse=True)))})(?![\w-])")


class Glossary:
    """The words that a page has used so far. Make a new one for each page, and call it in the order of the page."""

    def __init__(self) -> None:
        """Start with no word used."""
        self._used = set[str]()

    def link(self, text: str) -> Markup:
        """Escape a text, and link each word that the page uses for the first time to its explanation."""
        parts = _FORMS.split(text)  # text and words in turn
        return Markup("").join(self._link(part) if index % 2 else escape(part) for index, part in enumerate(parts))

    def _link(self, form: str) -> Markup:
        key = _IDS[form]
        if key in self._used:
            return escape(form)
        self._used.add(key)
        return Markup('<a class="word" href="#word-{}">{}</a>').format(key, form)

    def entries(self) -> list[tuple[str, str, str]]:
        """Return id, word and explanation of the words used so far, by alphabet."""
        found = [(key, WORDS[key][0].partition("|")[0], WORDS[key][1]) for key in self._used]
        return sorted(found, key=lambda one: one[1].lower())

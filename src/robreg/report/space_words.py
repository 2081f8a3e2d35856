"""Describe in words the spaces in which radii are measured, and what else the paper leaves open."""

from collections.abc import Mapping, Sequence
from typing import Any

from robreg.report.phrases import join_distinct, mean
from robreg.runs.settings import Settings
from robreg.runs.variant import split_spaces

_SPACES = {
    "pixel": "pixels of [0, 1]",
    "normalised": "pixels divided by the channels' standard deviations: every radius and step is multiplied by the "
    "channel's standard deviation (by {:.3g}, averaged over the channels)",
    "symmetric": "pixels scaled to [-1, 1]: every radius and step is halved",
}
_NETWORKS_IN_SHORT = {
    "biases": "keep Fixup's biases and omit its multipliers",
    "all": "have all of Fixup's scalars",
    "none": "have none of Fixup's scalars",
}


def describe_conventions(settings: Sequence[Settings]) -> str:
    """Say in three sentences what a study of the paper's data assumes where the paper is silent; "" for other data."""
    own = [one for one in settings if one["paper"] is not None]
    if not own:
        return ""
    both = [(one["space"], one["evaluation"]["space"]) for one in own]
    spaces = join_distinct(one if one == other else f"{one} (evaluated in {other})" for one, other in both)
    scalars = dict.fromkeys(_NETWORKS_IN_SHORT[one.get("scalars", "none")] for one in own if _has_scalars(one))
    networks = (
        f"its residual networks {next(iter(scalars))}"
        if len(scalars) == 1
        else ("of its residual networks, some " + ", some ".join(scalars))
    )
    return (
        "The paper does not say clearly in which space its radii are measured, nor which of Fixup's scalars its "
        "networks have, and in pixels its accuracies seem out of reach of its networks: at AR 8 it prints 98.4 % on "
        "the training and 87.5 % on the test images of CIFAR-10, whereas published networks of this size that are "
        "trained at 8/255 in pixels have about 79 % on the test images. "
        f"This study measures radii in these spaces: {spaces}{f', and {networks}' if scalars else ''}. "
        "Other choices may give other numbers; the study conventions compares them."
    )


def describe_spaces(settings: Sequence[Settings], std: float) -> str:
    """Describe the spaces in which the runs measure radii; std: mean over the channels."""
    both = dict.fromkeys((one["space"], one["evaluation"]["space"]) for one in settings)
    texts = {space: _SPACES[space].format(std) for space in dict.fromkeys(space for pair in both for space in pair)}
    sentences = [text if len(texts) == 1 else f"{space}: {text}" for space, text in texts.items()]
    sentences += [
        f"some runs train in {trained} and are attacked in {attacked} space"
        for trained, attacked in both
        if trained != attacked
    ]
    return "; ".join(sentences) + ". Elsewhere, pixels are those of [0, 1]."


def describe_radii(runs: Sequence[Mapping[str, Any]], stds: Mapping[str, Sequence[float]]) -> list[str]:
    """Return sentences that convert the radii of runs in other spaces into pixels; [] if all are in pixels.

    runs: with dataset, space (of training and of the attacks after it) and ar; stds: of the channels, by data set.
    """
    strongest: dict[str, int] = {}  # the largest strength that is measured in normalised space
    for run in runs:
        trained, attacked = split_spaces(run["space"])
        if "normalised" in (trained, attacked):
            own = run["ar"] if trained == "normalised" else 0
            strongest[run["dataset"]] = max(own, strongest.get(run["dataset"], 0))
    factors = []
    for name, ar in strongest.items():
        std = mean(stds[name])
        factors.append(f"{std:.3g} on {name}" + (f" (AR {ar} is {ar * std:.2g}/255 in pixels)" if ar else ""))
    halved = any("symmetric" in split_spaces(run["space"]) for run in runs)
    sentences = ["A radius in symmetric space is half as large in pixels."] * halved
    if not factors:
        return sentences
    return [
        *sentences,
        "A radius in normalised space is one of pixels divided by the standard deviation of their channel. To get it "
        f"in pixels, multiply by the standard deviation. Its mean over the channels is {', '.join(factors)}.",
    ]


def _has_scalars(one: Settings) -> bool:
    return one["factory"] is None and one["arch"].startswith(("resnet", "fixup"))

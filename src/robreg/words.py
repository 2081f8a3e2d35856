"""Settings and data sets in words, for readers who have not seen config.yaml."""

from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]  # of a run: config.settings

_PAPER_DATA = ("cifar10", "cifar100", "tiny-imagenet")
_PAPER_NETWORKS = ("resnet56", "resnet110", "wrn50")
_ALWAYS = (
    "Adversarial accuracy is an upper estimate: a stronger attack than this one may find more adversarial examples.",
    "It is conditional on being correct when clean, as in the paper, so networks are compared on different examples.",
    "Spectra are of circular convolutions, as in the paper; the networks pad with zeros.",
)


def data_words(meta: Mapping[str, Any], settings: Sequence[Settings]) -> dict[str, str]:
    """Say what was run on one data set: meta is its meta.json, settings are its runs' (at least one)."""
    first = next((one for one in settings if one["train_attack"]), settings[0])
    channels, height, width = meta["shape"]
    listed = {key: ", ".join(map(str, sorted({one[key] for one in settings}))) for key in ("ar", "seed")}
    return {
        "Data": f"{meta['n_train']} training and {meta['n_test']} test images, {height} x {width} pixels, "
        f"{channels} channel{'s' if channels > 1 else ''}, {meta['classes']} classes",
        "Networks": f"{', '.join(dict.fromkeys(one['arch'] for one in settings))}, width {first['width']}",
        "AR strengths": f"{listed['ar']} (1/255); seeds {listed['seed']}",
        "Training": training_words(first["training"]),
        "Training attack": train_attack_words(settings),
        "Evaluation attack": attack_words(first["evaluation"]),
        "Loss variation": variation_words(first["loss_variation"]),
    }


def training_words(spec: Mapping[str, Any]) -> str:
    """Put an optimiser's schedule into words."""
    drops = " and ".join(map(str, spec["lr_drops"]))
    falls = f" (divided by {spec['lr_factor']:g} after epoch {drops})" if drops else ""
    return (
        f"{spec['epochs']} epochs, batches of {spec['batch_size']}, SGD with momentum {spec['momentum']:g}, "
        f"learning rate {spec['lr']:g}{falls}, weight decay {spec['weight_decay']:g}, "
        f"augmentation: {spec['augmentation']}"
    )


def train_attack_words(settings: Sequence[Settings]) -> str:
    """Put the attack that makes training examples into words; its step is absolute or in parts of the strength."""
    attacks = [one["train_attack"] for one in settings if one["train_attack"]]
    if not attacks:
        return "none: standard training"
    said = []
    for kind in dict.fromkeys(attack["attack"] for attack in attacks):
        same = [attack for attack in attacks if attack["attack"] == kind]
        steps = {attack["step"] for attack in same}
        step = (
            f"{steps.pop():g}/255" if len(steps) == 1 else f"{_part(same[0]['step'] / same[0]['eps'])} of the strength"
        )
        said.append(f"{kind.upper()}, {same[0]['start']} start, {_steps(same[0]['steps'])} of {step}")
    return "; ".join(said) + (" (none at AR 0)" if len(attacks) < len(settings) else "")


def attack_words(spec: Mapping[str, Any]) -> str:
    """Put an evaluation attack into words."""
    restarts = f", {spec['restarts']} restarts" if spec["restarts"] > 1 else ""
    return (
        f"{spec['attack'].upper()}, radius {spec['eps']:g}/255, {_steps(spec['steps'])} of {spec['step']:g}/255, "
        f"{spec['start']} start{restarts}{_space(spec)}"
    )


def variation_words(spec: Mapping[str, Any]) -> str:
    """Put the attack of the loss variation into words."""
    radii = ", ".join(f"{eps:g}" for eps in spec["eps"])
    steps = f"{_steps(spec['steps'])} of {_part(spec['relative_step'])} of the radius"
    return f"PGD within {radii} (1/255), {steps}, on all test images{_space(spec)}"


def limits(settings: Sequence[Settings], titles: Mapping[str, str], counts: Sequence[int]) -> list[str]:
    """Say what a study cannot show. titles: of its data sets; counts: the numbers of seeds behind its means."""
    said = [
        f"{titles[name]} is not data of the paper, which uses CIFAR-10, CIFAR-100 and Tiny-ImageNet."
        for name in _foreign(settings)
    ]
    small = dict.fromkeys(one["arch"] for one in settings if one["arch"] not in _PAPER_NETWORKS)
    said += [
        f"{name} is far smaller than the paper's networks (ResNet-56, ResNet-110, wide ResNet-50)." for name in small
    ]
    if said:
        said.append("So the numbers are not to be compared with the paper's; only directions are.")
    few = span(counts)
    if few == "1":
        said.append("There is one seed per setting, so nothing here shows how much seeds differ.")
    else:
        said.append(f"Means are over {few} seeds per setting, so a standard deviation is itself uncertain.")
    return said + list(_ALWAYS)


def span(counts: Sequence[int]) -> str:
    """Write the numbers of seeds behind a study's means: "3", or "1 to 3"."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _foreign(settings: Sequence[Settings]) -> list[str]:
    """Data sets that are not the paper's, or only a part of them."""
    data = {one["dataset"]: one["data"] for one in settings}
    return [name for name, one in data.items() if one["kind"] not in _PAPER_DATA or one["max_train"] or one["max_test"]]


def _space(spec: Mapping[str, Any]) -> str:
    return ", radius in normalised space" if spec["space"] == "normalised" else ""


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _part(share: float) -> str:
    """Write 0.25 as 1/4, and a share that is no unit fraction as it is."""
    return f"1/{round(1 / share)}" if share and 1 / share == round(1 / share) else f"{share:g}"

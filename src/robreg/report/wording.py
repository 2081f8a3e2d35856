"""Settings and data sets in words, for readers who have not seen config.yaml."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from robreg.runs.settings import Settings

_PAPER_DATA = {
    "c10": ("cifar10", "CIFAR-10"),
    "c100": ("cifar100", "CIFAR-100"),
    "tin": ("tiny-imagenet", "Tiny-ImageNet"),
}
_PAPER_NETWORKS = ("resnet56", "resnet110", "wrn50")
_ALWAYS = (  # a limit, the table of a study that bears on it, and what the table adds
    (
        "Adversarial accuracy is an upper estimate: a stronger attack than this one may find more adversarial "
        "examples.",
        "attacks",
        " APGD, in the table of attacks, is such a stronger attack, on fewer examples.",
    ),
    (
        "It is conditional on being correct when clean, as in the paper, so networks are compared on different "
        "examples.",
        "attacks",
        " Robust accuracy, in the table of attacks, counts them all.",
    ),
    (
        "Spectra are of circular convolutions, as in the paper; the networks pad with zeros.",
        "padding",
        " The table of zero-padded spectra shows how much the two differ.",
    ),
)
_PRECISION = {"fp32": "float32", "bf16": "bfloat16, with weights and their updates in float32"}
_NORMALISED = (
    "runs named normspace: every radius and step is multiplied by the channel's standard deviation, "
    "in training and in every attack"
)
_BATCH_NORM = (
    " (with batch normalisation: attacks use its running statistics, which only the training pass on adversarial "
    "batches updates)"
)
_AUGMENTATION = {
    "none": "none",
    "crop-flip": "random crop after padding by {pad}, horizontal flip",
    "resized-crop-flip": "random resized crop, horizontal flip; one centre crop in testing",
}
_MIN_ROBUST, _BARELY = 5.0, 2.0  # percent; times the accuracy of guessing


def data_words(meta: Mapping[str, Any], settings: Sequence[Settings]) -> dict[str, str]:
    """Say what was run on one data set: meta is its meta.json, settings are its runs' (at least one)."""
    first = next((one for one in settings if one["train_attack"]), settings[0])
    channels, height, width = meta["shape"]
    given = {key: ", ".join(map(str, sorted({one[key] for one in settings}))) for key in ("ar", "seed")}
    return {
        "Data": f"{meta['n_train']} training and {meta['n_test']} test images, {height} x {width} pixels, "
        f"{channels} channel{'s' if channels > 1 else ''}, {meta['classes']} classes"
        + (f", of which {crop} x {crop} are seen" if (crop := first["data"]["crop"]) not in (None, height) else ""),
        "Networks": network_words(settings),
        "AR strengths": f"{given['ar']} (1/255); seeds {given['seed']}",
        "Training": "; or ".join(dict.fromkeys(training_words(one["training"]) for one in settings)),
        "Training attack": train_attack_words(settings),
        **({"Spectral norm": bound_words(settings)} if any(one["spectral_norm"] for one in settings) else {}),
        **({"Space": _NORMALISED} if any(one["space"] == "normalised" for one in settings) else {}),
        "Evaluation attack": attack_words(first["evaluation"]),
        "Stronger attack": strong_words(first["strong_attack"]),
        "Loss variation": variation_words(first["loss_variation"]),
        "Spread in the layers": spread_words(first["spread"]),
        "Theory": theory_words(first["theory"]),
        "Spectra": "circular convolutions, exact; zero-padded operators of at most "
        f"{first['dense_spectrum']} rows or columns exactly too",
    }


def network_words(settings: Sequence[Settings]) -> str:
    """Name the networks, with what is particular to them."""
    said = []
    for name in dict.fromkeys(one["arch"] for one in settings):
        factory = next(one["factory"] for one in settings if one["arch"] == name)
        width = next(one["width"] for one in settings if one["arch"] == name)
        said.append(f"{name}, made by {factory['callable']}" if factory else f"{name}, width {width}")
        said[-1] += _BATCH_NORM if name == "wrn50" else ""
    return "; ".join(said)


def training_words(spec: Mapping[str, Any]) -> str:
    """Put an optimiser's schedule into words."""
    drops = " and ".join(map(str, spec["lr_drops"]))
    falls = f" (divided by {spec['lr_factor']:g} after epoch {drops})" if drops else ""
    return (
        f"{spec['epochs']} epochs, batches of {spec['batch_size']}, SGD with momentum {spec['momentum']:g}, "
        f"learning rate {spec['lr']:g}{falls}, weight decay {spec['weight_decay']:g}, "
        f"augmentation: {_AUGMENTATION.get(spec['augmentation'], spec['augmentation']).format(**spec)}, "
        f"computed in {_PRECISION[spec.get('precision', 'fp32')]}"
        + (", by algorithms that give the same bits each time" if spec.get("deterministic") else "")
    )


def bound_words(settings: Sequence[Settings]) -> str:
    """Put the bounds on the layers' spectral norm into words, and how they are kept."""
    bounds = ", ".join(f"{bound:g}" for bound in sorted({one["spectral_norm"] for one in settings} - {None}))
    rounds = dict.fromkeys(one["clip_rounds"] for one in settings if one["spectral_norm"])
    how = {
        "exact": "rounds of clipping and cropping, then a rescaling, so that the bound holds",
        1: "one round, as in the paper: the norm stays above the bound",
    }
    said = " or ".join(how.get(count, f"{count} rounds of clipping and cropping") for count in rounds)
    return f"at most {bounds} in every layer, projected after every epoch: {said}"


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
        said.append(f"{kind.upper()}, {_start(same[0]['start'])}, {_steps(same[0]['steps'])} of {step}")
    return "; ".join(said) + (" (none at AR 0)" if len(attacks) < len(settings) else "")


def attack_words(spec: Mapping[str, Any]) -> str:
    """Put an evaluation attack into words."""
    restarts = f", {spec['restarts']} restarts" if spec["restarts"] > 1 else ""
    return (
        f"{spec['attack'].upper()}, radius {spec['eps']:g}/255, {_steps(spec['steps'])} of {spec['step']:g}/255, "
        f"{_start(spec['start'])}{restarts}"
    )


def strong_words(spec: Mapping[str, Any]) -> str:
    """Put the stronger evaluation attack into words."""
    restarts = f"{spec['restarts']} restart{'s' if spec['restarts'] > 1 else ''} each"
    return (
        f"APGD with cross entropy and with the difference of logits ratio, radius {spec['eps']:g}/255, "
        f"{_steps(spec['steps'])}, {restarts}, the worst case of every example, on up to {spec['n']} test images"
    )


def variation_words(spec: Mapping[str, Any]) -> str:
    """Put the attack of the loss variation into words."""
    radii = ", ".join(f"{eps:g}" for eps in spec["eps"])
    steps = f"{_steps(spec['steps'])} of {_part(spec['relative_step'])} of the radius"
    return f"PGD within {radii} (1/255), {steps}, on all test images"


def spread_words(spec: Mapping[str, Any]) -> str:
    """Put the measurement of how layers pass perturbations on into words."""
    attack = f"of PGD ({_steps(spec['steps'])} of {spec['step']:g}/255)"
    return f"random perturbations and those {attack}, radius {spec['eps']:g}/255, on up to {spec['n']} test images"


def theory_words(spec: Mapping[str, Any]) -> str:
    """Put the constants of Theorem 3.1 into words: those that cannot be measured are settings."""
    return (
        f"ramp of width {spec['gamma']:g} logits, failure probability {spec['eta']:g}, covering number with "
        f"C_X = {spec['c_x']:g} and k = {spec['k']:g} (not measurable, chosen benign), radius {spec['eps']:g}/255; "
        f"smallest perturbations of {spec['n']} images by an L2 attack of {_steps(spec['steps'])}; "
        f"Lemma 3.1 on {spec['pairs']} segments"
    )


def limits(
    settings: Sequence[Settings], titles: Mapping[str, str], *, counts: Sequence[int], tables: Collection[str]
) -> list[str]:
    """Say what a study cannot show.

    titles: of its data sets; counts: the numbers of seeds behind its means; tables: those that it lists.
    """
    data = {one["dataset"]: one for one in settings}
    said = [limit for name, one in data.items() if (limit := _foreign(one, titles[name]))]
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
    said += [limit for name, one in data.items() if (limit := _other_files(one, titles[name]))]
    return said + [limit + (more if name in tables else "") for limit, name, more in _ALWAYS]


def cautions(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, int]) -> list[str]:
    """Name the networks whose numbers say that their training failed, or that their gradients lead attacks nowhere.

    rows: of runs: dataset, variant, train_attack, train_acc and pgd_acc (percent, or None), and masked, the checks for
    hidden gradients that failed; classes: of data sets.
    """
    said = []
    for row in rows:
        guess = 100 / classes[row["dataset"]]
        name = f"{row['dataset']}/{row['variant']}"
        if row["train_acc"] < _BARELY * guess:
            said.append(
                f"{name} hardly learnt: {row['train_acc']:.1f} % of its training images, guessing {guess:.1f} %."
            )
        elif row["train_attack"] == "fgsm" and row["ar"] and (row["pgd_acc"] or 0.0) < _MIN_ROBUST:
            said.append(
                f"{name} has collapsed: trained with FGSM, it withstands no PGD ({row['pgd_acc'] or 0.0:.1f} %)."
            )
        if row["masked"]:
            said.append(
                f"{name} hides its gradients from attacks, so its adversarial accuracies say little: "
                f"{', '.join(row['masked'])} failed (masking.parquet)."
            )
    return said


def listed(values: Iterable[str]) -> str:
    """List what differs, once, in its order."""
    return ", ".join(dict.fromkeys(values))


def span(counts: Sequence[int]) -> str:
    """Write the numbers of seeds behind a study's means: "3", or "1 to 3"."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _foreign(one: Settings, title: str) -> str:
    """Say so if a data set does not stand for one of the paper's, or holds only a part of it."""
    if one["paper"] is None:
        return f"{title} is not data of the paper, which uses CIFAR-10, CIFAR-100 and Tiny-ImageNet."
    part = one["data"]["max_train"] or one["data"]["max_test"]
    return f"{title} is only a part of the paper's {_PAPER_DATA[one['paper']][1]}." if part else ""


def _other_files(one: Settings, title: str) -> str:
    """Say so if a data set stands for one of the paper's, but does not come from the official files."""
    kind, name = _PAPER_DATA.get(one["paper"], ("", ""))
    if not kind or one["data"]["kind"] == kind:
        return ""
    return (
        f"{title} stands for the paper's {name}: the same images from other files; where those compress with loss, "
        "as JPEG does, the values of the pixels are other ones."
    )


def _start(start: str) -> str:
    return "from the clean image" if start == "clean" else f"{start} start"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _part(share: float) -> str:
    """Write 0.25 as 1/4, and a share that is no unit fraction as it is."""
    return f"1/{round(1 / share)}" if share and 1 / share == round(1 / share) else f"{share:g}"

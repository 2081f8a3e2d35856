"""Describe settings and data sets in words, for readers who have not seen config.yaml."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from robreg.checks.run_checks import MIN_TRAINED
from robreg.data.errors import safe_names
from robreg.runs.settings import Settings
from robreg.runs.variant import base_attack, paper_name, split_spaces

_PAPER_DATA = {  # the setting `paper`: kind of the official files, name
    "c10": ("cifar10", "CIFAR-10"),
    "c100": ("cifar100", "CIFAR-100"),
    "tin": ("tiny-imagenet", "Tiny-ImageNet"),
}
_PAPER_NETWORKS = ("resnet56", "resnet110", "wrn50")
_SCALARS = {
    "biases": " (Fixup's biases kept, its multipliers omitted)",
    "all": " (with all of Fixup's scalars)",
    "none": " (without any of Fixup's scalars: the channels that its stages add stay 0)",
}
_ALWAYS = (  # a limit, a table with more about it, and the sentence that is added if the study lists that table
    (
        "Adversarial accuracy is an upper estimate: an attack stronger than the evaluation attack may find more "
        "adversarial examples.",
        "attacks",
        " APGD, in the table of attacks, is a stronger attack, run on fewer examples.",
    ),
    (
        "As in the paper, adversarial accuracy counts only examples that are classified correctly when clean, so "
        "networks are compared on different examples.",
        "attacks",
        " Robust accuracy, in the table of attacks, counts all examples.",
    ),
    (
        "As in the paper, spectra are those of circular convolutions, whose input wraps around at the edges; the "
        "networks pad with zeros.",
        "padding",
        " The table of zero-padded spectra shows how much the two differ.",
    ),
)
_PRECISION = {"fp32": "float32", "bf16": "bfloat16, with weights and their updates in float32"}
_SPACES = {
    "pixel": "pixels of [0, 1]",
    "normalised": "pixels divided by the channels' standard deviations: every radius and step is multiplied by the "
    "channel's standard deviation (by {:.3g}, averaged over the channels)",
    "symmetric": "pixels scaled to [-1, 1]: every radius and step is halved",
}
_BATCH_NORM = (
    " (with batch normalisation: attacks use its running statistics, which only the training pass on adversarial "
    "batches updates)"
)
_AUGMENTATION = {
    "none": "none",
    "crop-flip": "random crop after padding by {pad} pixels, random horizontal flip",
    "resized-crop-flip": "random resized crop, random horizontal flip; one centre crop in testing",
}
_WRITERS = (
    "; the test images are the last ones of the source, and by other writers than the training images, except for ten "
    "of those"
)
_LISTED = 10  # names of classes
_MIN_ROBUST = 5.0  # percent; below this adversarial accuracy, FGSM training has collapsed


def describe_data(meta: Mapping[str, Any], settings: Sequence[Settings]) -> dict[str, str]:
    """Describe what was run on one data set, as terms and their descriptions.

    meta: the content of its meta.json; settings: the settings of its runs, at least one.
    """
    first = next((one for one in settings if one["train_attack"]), settings[0])
    channels, height, width = meta["shape"]
    values = {key: ", ".join(map(str, sorted({one[key] for one in settings}))) for key in ("ar", "seed")}
    return {
        "Data": f"{meta['n_train']} training and {meta['n_test']} test images, {height} x {width} pixels, "
        f"{channels} channel{'s' if channels > 1 else ''}, {meta['classes']} classes{_class_names(meta)}"
        + (
            f"; the networks see {crop} x {crop} pixels"
            if (crop := first["data"]["crop"]) not in (None, height)
            else ""
        )
        + (_WRITERS if first["data"]["kind"] == "digits" else ""),
        "Networks": describe_networks(settings),
        "AR strengths": f"{values['ar']} (in 1/255); seed{'s' if ',' in values['seed'] else ''} {values['seed']}",
        "Space of radii": describe_spaces(settings, _mean(meta["std"])),
        "Training": _each(settings, "training", describe_training),
        "Training attack": describe_training_attack(settings),
        **({"Bound on every layer": describe_bound(settings)} if any(one["spectral_norm"] for one in settings) else {}),
        "Evaluation attack": _each(settings, "evaluation", describe_attack)
        + (" (in the space of each run)" if len({one["evaluation"]["space"] for one in settings}) > 1 else ""),
        **({"Radii in pixels": describe_pixel_radii(radii)} if (radii := first["pixel_radii"])["eps"] else {}),
        "Stronger attack": _each(settings, "strong_attack", describe_strong_attack),
        "Loss variation": _each(settings, "loss_variation", describe_loss_variation),
        "Spread in the layers": _each(settings, "spread", describe_spread),
        "Theory": describe_theory(first["theory"]),
        "Spectra": "exact for circular convolutions, and for zero-padded operators whose smaller side is at most "
        f"{first['dense_spectrum']} and whose larger side is at most {4 * first['dense_spectrum']}",
    }


def _class_names(meta: Mapping[str, Any]) -> str:
    """List the first names of the classes in brackets; "" if there are none, or if they are only the numbers."""
    names = meta.get("class_names")  # received data may have anything there
    if not isinstance(names, list) or names == [str(label) for label in range(len(names))]:
        return ""
    listed = ", ".join(safe_names(map(str, names[:_LISTED])))
    return f" ({listed}{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''})"


def _each(settings: Sequence[Settings], key: str, describe: Callable[[Mapping[str, Any]], str]) -> str:
    """Describe each distinct value of a setting."""
    return "; or ".join(dict.fromkeys(describe(one[key]) for one in settings))


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
    return "; ".join(sentences) + ". Radii that are said to be in pixels are in pixels of [0, 1]."


def describe_networks(settings: Sequence[Settings]) -> str:
    """Name the networks, with their width or, for user-defined ones, the callable that builds them."""
    names = []
    for name in dict.fromkeys(one["arch"] for one in settings):
        factory = next(one["factory"] for one in settings if one["arch"] == name)
        width = next(one["width"] for one in settings if one["arch"] == name)
        names.append(f"{name}, built by {factory['callable']}" if factory else f"{name}, width {width}")
        names[-1] += ", trained already" if any("pretrained" in one for one in settings if one["arch"] == name) else ""
        scalars = next(one.get("scalars", "none") for one in settings if one["arch"] == name)
        names[-1] += _BATCH_NORM if name == "wrn50" else "" if factory else _SCALARS[scalars]
    return "; ".join(names)


def describe_training(spec: Mapping[str, Any]) -> str:
    """Describe how networks are trained: epochs, optimiser, learning rate, augmentation and precision."""
    if not spec["epochs"]:
        return "none here, of networks that came with their weights"
    drops = " and ".join(map(str, spec["lr_drops"]))
    falls = (
        f" (divided by {spec['lr_factor']:g} after epoch{'s' if len(spec['lr_drops']) > 1 else ''} {drops})"
        if drops
        else ""
    )
    return (
        f"{spec['epochs']} epochs, batches of {spec['batch_size']}, SGD with momentum {spec['momentum']:g}, "
        f"learning rate {spec['lr']:g}{falls}, weight decay {spec['weight_decay']:g}, "
        f"augmentation: {_AUGMENTATION.get(spec['augmentation'], spec['augmentation']).format(**spec)}, "
        f"computed in {_PRECISION[spec.get('precision', 'fp32')]}"
        + (", with deterministic algorithms" if spec.get("deterministic") else "")
    )


def describe_bound(settings: Sequence[Settings]) -> str:
    """Describe the bounds on the largest singular value of every layer: of which operator, and how well they hold."""
    bounds = ", ".join(f"{bound:g}" for bound in sorted({one["spectral_norm"] for one in settings} - {None}))
    rounds = dict.fromkeys(one["clip_rounds"] for one in settings if one["spectral_norm"])
    return f"{bounds}; after every epoch, " + "; or ".join(map(_describe_rounds, rounds))


def _describe_rounds(rounds: int | str) -> str:
    if rounds == "exact":
        return (
            "every layer is projected so that its largest singular value, as the network applies it with zero padding, "
            "is at most the bound (rounds of clipping and cropping, then a rescaling, of a circular convolution with "
            "room for the padding, whose largest singular value is never smaller)"
        )
    count = "one round, as in the paper," if rounds == 1 else f"{rounds} rounds"
    return (
        f"{count} of clipping and cropping of the circular convolutions, after which neither their largest singular "
        "values nor those of the layers as the network applies them are certain to be within the bound"
    )


def describe_training_attack(settings: Sequence[Settings]) -> str:
    """Describe the attack that makes training examples, with its step in 1/255 or as a fraction of the strength."""
    attacks = [one["train_attack"] for one in settings if one["train_attack"]]
    if not attacks:
        return "none: standard training"
    descriptions = []
    for kind in dict.fromkeys(attack["attack"] for attack in attacks):
        same = [attack for attack in attacks if attack["attack"] == kind]
        steps = {attack["step"] for attack in same}
        step = (
            f"{steps.pop():g}/255"
            if len(steps) == 1
            else f"{_fraction(same[0]['step'] / same[0]['eps'])} of the strength"
        )
        descriptions.append(f"{kind.upper()}, {_start(same[0]['start'])}, {_steps(same[0]['steps'])} of {step}")
    shares = sorted({attack["clean_share"] for attack in attacks if "clean_share" in attack})
    mixed = ", ".join(f"{100 * share:g} %" for share in shares)
    descriptions += [f"where clean examples count in the loss, their share is {mixed}"] if shares else []
    return "; ".join(descriptions) + (" (none at AR 0)" if len(attacks) < len(settings) else "")


def describe_attack(spec: Mapping[str, Any]) -> str:
    """Describe an evaluation attack."""
    restarts = f", {spec['restarts']} restarts" if spec["restarts"] > 1 else ""
    return (
        f"{spec['attack'].upper()}, radius {spec['eps']:g}/255, {_steps(spec['steps'])} of {spec['step']:g}/255, "
        f"{_start(spec['start'])}{restarts}"
    )


def describe_pixel_radii(spec: Mapping[str, Any]) -> str:
    """Describe the attacks at several radii in pixels."""
    radii, step = ", ".join(f"{eps:g}" for eps in spec["eps"]), _fraction(spec["relative_step"])
    return (
        f"PGD, radius {radii} (in 1/255 of a pixel), {_steps(spec['steps'])} of {step} of the radius, "
        f"on {_test_images(spec['n'])}"
    )


def _test_images(n: int | None) -> str:
    return "all test images" if n is None else f"the first {n} test images"


def describe_strong_attack(spec: Mapping[str, Any]) -> str:
    """Describe the stronger evaluation attack."""
    restarts = f"{spec['restarts']} restart{'s' if spec['restarts'] > 1 else ''} each"
    return (
        f"APGD with cross entropy and with the difference of logits ratio (DLR), radius {spec['eps']:g}/255, "
        f"{_steps(spec['steps'])}, {restarts}; the worst case of each example, on up to {spec['n']} test images"
    )


def describe_loss_variation(spec: Mapping[str, Any]) -> str:
    """Describe the attack that measures the loss variation."""
    radii = ", ".join(f"{eps:g}" for eps in spec["eps"])
    steps = f"{_steps(spec['steps'])} of {_fraction(spec['relative_step'])} of the radius"
    return (
        f"PGD on the cross entropy, radius {radii} (in 1/255), {steps}, on {_test_images(spec['n'])}; given as the "
        "probability that the label loses, as the paper's numbers suggest, and as the rise of the cross entropy; the "
        "largest that the attack finds is a lower bound on the maximal one"
    )


def describe_spread(spec: Mapping[str, Any]) -> str:
    """Describe the measurement of how evenly layers pass perturbations on."""
    attack = f"PGD ({_steps(spec['steps'])} of {spec['step']:g}/255)"
    return f"random perturbations and those of {attack}, radius {spec['eps']:g}/255, on up to {spec['n']} test images"


def describe_theory(spec: Mapping[str, Any]) -> str:
    """Describe the constants of Theorem 3.1, including those that are settings because they cannot be measured."""
    return (
        f"ramp loss of width {spec['gamma']:g} logits, failure probability {spec['eta']:g}, covering number with "
        f"C_X = {spec['c_x']:g} and k = {spec['k']:g} (not measurable, chosen to favour the bound), "
        f"radius {spec['eps']:g}/255; smallest perturbations of {spec['n']} images, found by L2 attacks of at most "
        f"{_steps(spec['steps'])}; Lemma 3.1 on {spec['pairs']} segment{'s' if spec['pairs'] > 1 else ''}"
    )


def limits(
    settings: Sequence[Settings], titles: Mapping[str, str], *, counts: Sequence[int], tables: Collection[str]
) -> list[str]:
    """List, in sentences, what a study cannot show.

    settings: those of its runs; titles: of its data sets, by name; counts: the numbers of seeds of its settings;
    tables: the tables that it lists.
    """
    data = {one["dataset"]: one for one in settings}
    sentences = [limit for name, one in data.items() if (limit := _other_data(one, titles[name]))]
    others = {one["arch"]: one["factory"] for one in settings if paper_name(one["arch"]) not in _PAPER_NETWORKS}
    sentences += [
        f"The paper does not use {name}; it uses ResNet-56, ResNet-110 and a wide ResNet-50."
        if factory
        else f"{name} is far smaller than the paper's networks (ResNet-56, ResNet-110, wide ResNet-50)."
        for name, factory in others.items()
    ]
    if sentences:
        sentences.append(
            "Therefore, the numbers should not be compared with the paper's; only the directions of changes can be."
        )
    n_seeds = format_range(counts)
    if n_seeds == "1":
        sentences.append(
            "There is only one seed per setting, so nothing here shows how much results vary between seeds."
        )
    else:
        sentences.append(
            f"Means are over {n_seeds} seeds per setting, so standard deviations are uncertain themselves."
        )
    sentences += [limit for name, one in data.items() if (limit := _other_files(one, titles[name]))]
    return sentences + [limit + (more if name in tables else "") for limit, name, more in _ALWAYS]


def cautions(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, int]) -> list[str]:
    """Name the networks whose training seems to have failed, and those that hide their gradients from attacks.

    rows: one per run, with dataset, variant, ar, train_attack, train_acc and pgd_acc (percent, or None), and masked,
    the checks for hidden gradients that it failed; classes: the number of classes, by data set.
    """
    sentences = []
    for row in rows:
        guess = 100 / classes[row["dataset"]]
        name = f"{row['dataset']}/{row['variant']}"
        if row["train_acc"] < MIN_TRAINED * guess:
            sentences.append(
                f"{name} has hardly learned anything: its training accuracy is {row['train_acc']:.1f} %, and guessing "
                f"gives {guess:.1f} %."
            )
        elif base_attack(row["train_attack"]) == "fgsm" and row["ar"] and (row["pgd_acc"] or 0.0) < _MIN_ROBUST:
            sentences.append(
                f"{name} has collapsed: after training with FGSM, it does not withstand PGD (adversarial accuracy "
                f"{row['pgd_acc'] or 0.0:.1f} %)."
            )
        if row["masked"]:
            sentences.append(
                f"{name} hides its gradients, which attacks need to find adversarial examples, so its adversarial "
                f"accuracies say little. Failed checks (masking.parquet): {', '.join(row['masked'])}."
            )
    return sentences


def describe_weak_attacks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence that names unprotected networks that the evaluation attack hardly changes, in a list; or [].

    rows: of the audit, with place (the folder of a run) and found (percent of correct examples that are left correct).
    """
    if not rows:
        return []
    names = ", ".join(f"{row['place'].removeprefix('results/')} ({row['found']:.1f} %)" for row in rows)
    return [
        "The evaluation attack is too weak to compare networks with: it leaves almost all correctly classified test "
        f"examples correct even of networks that nothing protects, {names}. Raise eps or step under evaluation in "
        "config.yaml; both are in 1/255."
    ]


def describe_unmeasured(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Name the parts of networks that have no singular values; found: reasons by architecture and part."""
    sentences = []
    for arch, parts in found.items():
        listed = [f"{name} ({reason})" for name, reason in list(parts.items())[:_LISTED]]
        more = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
        if listed:
            sentences.append(f"These parts of {arch} have no singular values here: {', '.join(listed)}{more}.")
    return sentences


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
        std = _mean(stds[name])
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


def join_distinct(values: Iterable[str]) -> str:
    """Join the distinct values with commas, in their order."""
    return ", ".join(dict.fromkeys(values))


def format_range(counts: Sequence[int]) -> str:
    """Format the range of several numbers of seeds: "3", or "1 to 3"."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _other_data(one: Settings, title: str) -> str:
    """Return a sentence if a data set does not stand for one of the paper's, or is only a part of it; "" otherwise."""
    if one["paper"] is None:
        return f"The paper does not use {title}; it uses CIFAR-10, CIFAR-100 and Tiny-ImageNet."
    part = one["data"]["max_train"] or one["data"]["max_test"]
    return f"{title} is only a part of the paper's {_PAPER_DATA[one['paper']][1]}." if part else ""


def _other_files(one: Settings, title: str) -> str:
    """Return a sentence if a data set stands for one of the paper's but is not read from its official files."""
    kind, name = _PAPER_DATA.get(one["paper"], ("", ""))
    if not kind or one["data"]["kind"] == kind:
        return ""
    return (
        f"{title} stands for the paper's {name}: it has the same images, but from other files. If these use lossy "
        "compression, such as JPEG, the pixel values differ."
    )


_NETWORKS_IN_SHORT = {
    "biases": "keep Fixup's biases and omit its multipliers",
    "all": "have all of Fixup's scalars",
    "none": "have none of Fixup's scalars",
}


def _has_scalars(one: Settings) -> bool:
    return one["factory"] is None and one["arch"].startswith(("resnet", "fixup"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _start(start: str) -> str:
    return "start at the clean image" if start == "clean" else f"{start} start"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _fraction(share: float) -> str:
    """Format 0.25 as "1/4", and a number that is not 1/n as a decimal number."""
    return f"1/{round(1 / share)}" if share and 1 / share == round(1 / share) else f"{share:g}"

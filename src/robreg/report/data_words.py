"""Describe the data, networks and training of a study in words, for readers who have not seen config.yaml."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robreg.data.errors import safe_names
from robreg.report.attack_words import (
    describe_attack,
    describe_loss_variation,
    describe_pixel_radii,
    describe_spread,
    describe_strong_attack,
    describe_training_attack,
)
from robreg.report.phrases import count_steps, mean
from robreg.report.space_words import describe_spaces
from robreg.runs.settings import Settings

_SCALARS = {
    "biases": " (Fixup's biases kept, its multipliers omitted)",
    "all": " (with all of Fixup's scalars)",
    "none": " (without any of Fixup's scalars: the channels that its stages add stay 0)",
}
_PRECISION = {"fp32": "float32", "bf16": "bfloat16, with weights and their updates in float32"}
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
        "Space of radii": describe_spaces(settings, mean(meta["std"])),
        "Training": _each(settings, "training", describe_training),
        "Training attack": describe_training_attack(settings),
        **({"Bound on every layer": describe_bound(settings)} if any(one["spectral_norm"] for one in settings) else {}),
        "Evaluation attack": _each(settings, "evaluation", describe_attack)
        + (" (in the space of each run)" if len({one["evaluation"]["space"] for one in settings}) > 1 else ""),
        **({"Radii in pixels": describe_pixel_radii(radii)} if (radii := first["pixel_radii"])["eps"] else {}),
        "Stronger attack": _each(settings, "strong_attack", describe_strong_attack),
        # The settings of measures that a study does not make are not among these.
        **(
            {"Loss variation": _each(settings, "loss_variation", describe_loss_variation)}
            if "loss_variation" in first
            else {}
        ),
        **({"Spread in the layers": _each(settings, "spread", describe_spread)} if "spread" in first else {}),
        **({"Theory": describe_theory(first["theory"])} if "theory" in first else {}),
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


def _after(epochs: Sequence[int]) -> str:
    return f"after epoch{'s' if len(epochs) > 1 else ''} {' and '.join(map(str, epochs))}"


def describe_training(spec: Mapping[str, Any]) -> str:
    """Describe how networks are trained: epochs, optimiser, learning rate, augmentation and precision."""
    if not spec["epochs"]:
        return "none here, of networks that came with their weights"
    reached = [epoch for epoch in spec["lr_drops"] if epoch < spec["epochs"]]
    falls = f" (divided by {spec['lr_factor']:g} {_after(reached)})" if reached else ""
    if late := [epoch for epoch in spec["lr_drops"] if epoch not in reached]:
        falls += f" (not divided {_after(late)}: training ends before)"
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


def describe_theory(spec: Mapping[str, Any]) -> str:
    """Describe the constants of Theorem 3.1, including those that are settings because they cannot be measured."""
    return (
        f"ramp loss of width {spec['gamma']:g} logits, failure probability {spec['eta']:g}, covering number with "
        f"C_X = {spec['c_x']:g} and k = {spec['k']:g} (not measurable, chosen to favour the bound), "
        f"radius {spec['eps']:g}/255; smallest perturbations of {spec['n']} images, found by L2 attacks of at most "
        f"{count_steps(spec['steps'])}; Lemma 3.1 on {spec['pairs']} segment{'s' if spec['pairs'] > 1 else ''}"
    )

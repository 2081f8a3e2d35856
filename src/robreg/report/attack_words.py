"""Describe the attacks of a study in words, for readers who have not seen config.yaml."""

from collections.abc import Mapping, Sequence
from typing import Any

from robreg.report.phrases import count_steps, format_fraction
from robreg.runs.settings import Settings


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
            else f"{format_fraction(same[0]['step'] / same[0]['eps'])} of the strength"
        )
        descriptions.append(f"{kind.upper()}, {_start(same[0]['start'])}, {count_steps(same[0]['steps'])} of {step}")
    shares = sorted({attack["clean_share"] for attack in attacks if "clean_share" in attack})
    mixed = ", ".join(f"{100 * share:g} %" for share in shares)
    descriptions += [f"where clean examples count in the loss, their share is {mixed}"] if shares else []
    return "; ".join(descriptions) + (" (none at AR 0)" if len(attacks) < len(settings) else "")


def describe_attack(spec: Mapping[str, Any]) -> str:
    """Describe an evaluation attack."""
    restarts = f", {spec['restarts']} restarts" if spec["restarts"] > 1 else ""
    return (
        f"{spec['attack'].upper()}, radius {spec['eps']:g}/255, {count_steps(spec['steps'])} of {spec['step']:g}/255, "
        f"{_start(spec['start'])}{restarts}"
    )


def describe_pixel_radii(spec: Mapping[str, Any]) -> str:
    """Describe the attacks at several radii in pixels."""
    radii, step = ", ".join(f"{eps:g}" for eps in spec["eps"]), format_fraction(spec["relative_step"])
    return (
        f"PGD, radius {radii} (in 1/255 of a pixel), {count_steps(spec['steps'])} of {step} of the radius, "
        f"on {_test_images(spec['n'])}"
    )


def _test_images(n: int | None) -> str:
    return "all test images" if n is None else f"the first {n} test images"


def describe_strong_attack(spec: Mapping[str, Any]) -> str:
    """Describe the stronger evaluation attack."""
    restarts = f"{spec['restarts']} restart{'s' if spec['restarts'] > 1 else ''} each"
    return (
        f"APGD with cross entropy and with the difference of logits ratio (DLR), radius {spec['eps']:g}/255, "
        f"{count_steps(spec['steps'])}, {restarts}; the worst case of each example, on up to {spec['n']} test images"
    )


def describe_loss_variation(spec: Mapping[str, Any]) -> str:
    """Describe the attack that measures the loss variation."""
    radii = ", ".join(f"{eps:g}" for eps in spec["eps"])
    steps = f"{count_steps(spec['steps'])} of {format_fraction(spec['relative_step'])} of the radius"
    return (
        f"PGD on the cross entropy, radius {radii} (in 1/255), {steps}, on {_test_images(spec['n'])}; given as the "
        "fall of the label's probability, as the paper's numbers suggest, and as the rise of the cross entropy; the "
        "largest that the attack finds is a lower bound on the maximal one"
    )


def describe_spread(spec: Mapping[str, Any]) -> str:
    """Describe the measurement of how evenly layers pass perturbations on."""
    attack = f"PGD ({count_steps(spec['steps'])} of {spec['step']:g}/255)"
    return f"random perturbations and those of {attack}, radius {spec['eps']:g}/255, on up to {spec['n']} test images"


def _start(start: str) -> str:
    return "start at the clean image" if start == "clean" else f"{start} start"

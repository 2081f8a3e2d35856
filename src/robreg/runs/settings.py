"""Resolve what one run is made of: its data set's block of config.yaml, its name, and its own overrides."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from robreg.runs.variant import Variant, VariantError, parse

Settings = Mapping[str, Any]  # of a run: config.settings; for limits and deviations also paper (config.study_runs)


DATA_KEYS = ("kind", "max_train", "max_test", "subset_seed", "crop")
# Left out of the settings, which were there before these keys.
DEFAULTS = {"precision": "fp32", "compile": False, "deterministic": False}
MEASURES = ("evaluation", "loss_variation", "strong_attack", "spread", "theory", "masking", "dense_spectrum")


class ConfigError(ValueError):
    """A key of config.yaml, or a name made from it, that must be mended."""


def dataset_block(config: Mapping[str, Any], dataset: str) -> Mapping[str, Any]:
    """Return a data set's block; raise ConfigError, listing the known ones, for an unknown name."""
    if dataset not in config["datasets"]:
        raise ConfigError(unknown_name("data set", dataset, config["datasets"]))
    return config["datasets"][dataset]


def parse_run(config: Mapping[str, Any], dataset: str, variant: str) -> Variant:
    """Read a run's name; raise ConfigError for an unknown data set and for a name that is not spelt right."""
    default = dataset_block(config, dataset)["architecture"]
    try:
        return parse(variant, default, config.get("architectures", {}))
    except VariantError as error:
        raise ConfigError(f"{dataset}/{variant}: {error}") from error


def run_settings(config: Mapping[str, Any], dataset: str, variant: str) -> dict[str, Any]:
    """Resolve everything that a run's results depend on: its data set's block, with the run's own overrides.

    Returns plain values, in canonical order and type, so that equal settings are equal text. Strengths are in 1/255.
    Keys: what defines the trained network, and under MEASURES how it is measured.
    Raises ConfigError for an unknown data set, for a variant that is not spelt right, and for contradictions.
    """
    run = parse_run(config, dataset, variant)
    base = dataset_block(config, dataset)
    override = config.get("runs", {}).get(f"{dataset}/{variant}", {})
    _refuse_unused(f"runs.{dataset}/{variant}", override, run)
    spec = _merge(base, override)
    training = _numbers(spec["training"])
    if (training["augmentation"] == "resized-crop-flip") != (spec.get("crop") is not None):
        raise ConfigError(
            f"{dataset}/{variant}: training.augmentation resized-crop-flip and the data set's crop, its size, "
            "go together: give both or none"
        )
    if training["augmentation"] == "none" and training["pad"]:
        raise ConfigError(f"{dataset}/{variant}: training.pad: augmentation none pads nothing; give 0")
    for key in ("training_attack", "evaluation", "spread"):
        if spec[key]["step"] == 0:
            raise ConfigError(
                f"{dataset}/{variant}: {key}.step: an attack with steps of 0 stays where it is; give more"
            )
    if spec["masking"]["more_steps"] <= spec["masking"]["steps"]:
        raise ConfigError(f"{dataset}/{variant}: masking.more_steps must be more than masking.steps")
    rounds = training.pop("clip_rounds", "exact")
    own = config.get("architectures", {}).get(run.arch)
    return {
        "dataset": dataset,
        "variant": variant,
        "data": {key: spec.get(key) for key in DATA_KEYS},
        "ar": run.ar,
        "arch": run.arch,
        "factory": own and {"callable": own["callable"], "arguments": dict(own.get("arguments", {}))},
        "width": spec["width"],
        "seed": run.seed,
        "space": run.space,
        "spectral_norm": run.bound,
        "clip_rounds": rounds if run.bound else None,
        "threads": spec["threads"],
        "training": training,
        "train_attack": _train_attack(spec["training_attack"], run),
        "evaluation": _evaluation(spec["evaluation"], run),
        "loss_variation": {
            "eps": [float(eps) for eps in spec["loss_variation"]["eps"]],
            "relative_step": _step(spec["loss_variation"]["step"], 1),
            "steps": spec["loss_variation"]["steps"],
            "seed": spec["evaluation"]["seed"],
            "space": run.space,
        },
        "strong_attack": {**spec["strong_attack"], "eps": float(spec["strong_attack"]["eps"]), "space": run.space},
        "spread": _spread(spec["spread"], run),
        "theory": {**spec["theory"], "eps": float(spec["theory"]["eps"])},
        "masking": _masking(spec, run),
        "dense_spectrum": spec["dense_spectrum"],
    }


def training_settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a run's settings how the trained network is measured."""
    return {key: value for key, value in resolved.items() if key not in MEASURES}


def hash_settings(resolved: Mapping[str, Any]) -> str:
    """Hash settings: SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Turn nested settings into one level with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return leaves


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Write that a name is not known, with the nearest that is, and all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}: {hint}known: {', '.join(known)}"


def _refuse_unused(where: str, override: Mapping[str, Any], run: Variant) -> None:
    """Refuse an override that says what its run does not have."""
    keys = set(override.get("training_attack", {}))
    if keys and run.ar == 0:
        raise ConfigError(f"{where}.training_attack: standard training has no attack; remove the key")
    if run.fgsm and keys - {"fgsm"}:
        raise ConfigError(f"{where}.training_attack: FGSM is one step of eps; give fgsm: plain or random-start alone")
    if not run.fgsm and "fgsm" in keys:
        raise ConfigError(f"{where}.training_attack.fgsm: this run trains with PGD; name a run with -fgsm")
    if run.bound is None and "clip_rounds" in override.get("training", {}):
        raise ConfigError(f"{where}.training.clip_rounds: this run has no bound; name a run with -sn")


def _train_attack(spec: Mapping[str, Any], run: Variant) -> dict[str, Any] | None:
    """The attack that makes training examples: radius and step in 1/255; None for standard training."""
    if run.ar == 0:
        return None
    if not run.fgsm:
        step = _step(spec["step"], run.ar)
        return {"attack": "pgd", "eps": float(run.ar), "step": step, "steps": spec["steps"], "start": spec["start"]}
    # Plain, as in the paper: from x by eps. With a random start the step is Wong et al. 2020's 1.25 eps.
    plain = spec.get("fgsm", "plain") == "plain"
    start, step = ("clean", float(run.ar)) if plain else ("random", 1.25 * run.ar)
    return {"attack": "fgsm", "eps": float(run.ar), "step": step, "steps": 1, "start": start}


def _step(step: float | str, eps: float) -> float:
    """Read a step: a number, or "eps/4"."""
    return eps / int(step.removeprefix("eps/")) if isinstance(step, str) else float(step)


def _evaluation(spec: Mapping[str, Any], run: Variant) -> dict[str, Any]:
    return {
        "attack": "pgd",
        "space": run.space,
        "start": spec["start"],
        "loss": "cross_entropy",
        "eps": float(spec["eps"]),
        "step": _step(spec["step"], spec["eps"]),
        "steps": spec["steps"],
        "restarts": spec["restarts"],
        "seed": spec["seed"],
    }


def _spread(spec: Mapping[str, Any], run: Variant) -> dict[str, Any]:
    return {**spec, "eps": float(spec["eps"]), "step": _step(spec["step"], spec["eps"]), "space": run.space}


def _masking(spec: Mapping[str, Any], run: Variant) -> dict[str, Any]:
    """Beside its own keys: the radius of the evaluation attack, and that of training (0: none), in the run's space."""
    own = {**spec["masking"], "eps": sorted(float(eps) for eps in spec["masking"]["eps"])}
    return {**own, "attack_eps": float(spec["evaluation"]["eps"]), "strength": float(run.ar), "space": run.space}


def _numbers(spec: Mapping[str, Any]) -> dict[str, Any]:
    real = ("lr", "lr_factor", "momentum", "weight_decay")
    chosen = [key for key in sorted(spec) if key not in DEFAULTS or spec[key] != DEFAULTS[key]]
    return {key: float(spec[key]) if key in real else spec[key] for key in chosen}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value) if isinstance(value, Mapping) else value
    return merged

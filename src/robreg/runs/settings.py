"""Resolve the settings of a run from its name, its data set's block in config.yaml, and its own overrides."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from robreg.runs.source_code import callable_code
from robreg.runs.variant import Defaults, Variant, VariantError, parse

# The resolved settings of a run (run_settings); limits and deviations also need the key paper (config.study_runs).
Settings = Mapping[str, Any]


DATA_KEYS = ("kind", "max_train", "max_test", "subset_seed", "crop")
# Values that resolved settings leave out, so that runs from before these keys existed keep their settings.
DEFAULTS = {"precision": "fp32", "compile": False, "deterministic": False}
MEASURES = (
    "evaluation",
    "pixel_radii",
    "loss_variation",
    "strong_attack",
    "spread",
    "theory",
    "masking",
    "dense_spectrum",
)

_SHOWN = 60  # characters of a value in a description of differences


class ConfigError(ValueError):
    """Raised for a key of config.yaml, or for a name made from it, that must be corrected."""


def dataset_block(config: Mapping[str, Any], dataset: str) -> Mapping[str, Any]:
    """Return a data set's block of config.yaml. Raises ConfigError, which lists the known names, for an unknown one."""
    if dataset not in config["datasets"]:
        raise ConfigError(describe_unknown_name("data set", dataset, config["datasets"]))
    return config["datasets"][dataset]


def data_settings(config: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return the settings that the preparation of a data set depends on. Raises ConfigError for an unknown data set."""
    keys = ("kind", "source", "incomplete", "crop", "max_train", "max_test", "subset_seed")
    found = dataset_block(config, dataset)
    # The split of the digits was random once. This value has data with that split prepared again.
    split = {"split": "writers"} if found["kind"] == "digits" else {}
    columns = ("image_column", "label_column", "label_offset")
    return {"name": dataset, **{key: found[key] for key in (*keys, *columns) if key in found}, **split}


def name_defaults(config: Mapping[str, Any], dataset: str) -> Defaults:
    """Return what the names of a data set's runs leave out. Raises ConfigError for an unknown data set."""
    block = dataset_block(config, dataset)
    return Defaults(
        arch=block["architecture"],
        clean=float(block["training_attack"].get("clean_share", 0)),
        space=block.get("space", "pixel"),
        evaluation_space=block["evaluation"].get("space"),
    )


def parse_run(config: Mapping[str, Any], dataset: str, variant: str) -> Variant:
    """Parse a run's name.

    Raises ConfigError for an unknown data set, if the name is not written correctly, or if it speaks of a training of a
    network that is trained already.
    """
    defaults, pretrained = name_defaults(config, dataset), config.get("pretrained", {})
    try:
        run = parse(variant, defaults, [*config.get("architectures", {}), *pretrained])
    except VariantError as error:
        raise ConfigError(f"{dataset}/{variant}: {error}") from error
    if run.arch in pretrained:
        _refuse_training(f"{dataset}/{variant}", dataset, run, pretrained[run.arch])
    return run


def run_settings(config: Mapping[str, Any], dataset: str, variant: str) -> dict[str, Any]:
    """Resolve all settings that a run's results depend on: its data set's block, changed by the run's own overrides.

    Returns plain values in canonical order and type, so that equal settings have equal text. Strengths are in 1/255.
    The keys in MEASURES say how the network is measured; all others define the trained network.
    Raises ConfigError for an unknown data set, a variant that is not written correctly, or contradictory settings.
    """
    run = parse_run(config, dataset, variant)
    base = dataset_block(config, dataset)
    override = config.get("runs", {}).get(f"{dataset}/{variant}", {})
    _refuse_unused_overrides(f"runs.{dataset}/{variant}", override, run)
    given = config.get("pretrained", {}).get(run.arch)
    if given is not None and (keys := sorted({"training", "training_attack"} & override.keys())):
        raise ConfigError(
            f"runs.{dataset}/{variant}.{keys[0]}: pretrained.{run.arch} is not trained here; remove the key"
        )
    spec = _merge(base, override)
    training = _canonical_training(spec["training"])
    if (training["augmentation"] == "resized-crop-flip") != (spec.get("crop") is not None):
        raise ConfigError(
            f"{dataset}/{variant}: training.augmentation resized-crop-flip and the data set's crop, which is its size, "
            "must be given together; give both or neither"
        )
    if training["augmentation"] == "none" and training["pad"]:
        raise ConfigError(f"{dataset}/{variant}: training.pad: augmentation none does not pad; give 0")
    for key in ("training_attack", "evaluation", "spread"):
        if spec[key]["step"] == 0:
            raise ConfigError(
                f"{dataset}/{variant}: {key}.step: an attack with steps of 0 does not move; give a larger step"
            )
    if spec["masking"]["more_steps"] <= spec["masking"]["steps"]:
        raise ConfigError(f"{dataset}/{variant}: masking.more_steps must be greater than masking.steps")
    rounds = training.pop("clip_rounds", "exact")
    own = given or config.get("architectures", {}).get(run.arch)
    evaluated = run.evaluation_space or run.space
    resolved = {
        "dataset": dataset,
        "variant": variant,
        "data": {key: spec.get(key) for key in DATA_KEYS},
        "ar": run.ar,
        "arch": run.arch,
        "factory": own and _resolve_factory(own, "architectures" if given is None else "pretrained"),
        **_scalars(run.arch, own),
        "width": spec["width"],
        "seed": run.seed,
        "space": run.space,
        "spectral_norm": run.bound,
        "clip_rounds": rounds if run.bound else None,
        "threads": spec["threads"],
        "training": training,
        "train_attack": _resolve_train_attack(spec["training_attack"], run),
        "evaluation": _resolve_evaluation(spec["evaluation"], evaluated),
        "loss_variation": {
            "eps": [float(eps) for eps in spec["loss_variation"]["eps"]],
            "relative_step": _parse_step(spec["loss_variation"]["step"], 1),
            "steps": spec["loss_variation"]["steps"],
            "n": spec["loss_variation"].get("n"),
            "seed": spec["evaluation"]["seed"],
            "space": evaluated,
        },
        "pixel_radii": _resolve_pixel_radii(spec),
        "strong_attack": {**spec["strong_attack"], "eps": float(spec["strong_attack"]["eps"]), "space": evaluated},
        "spread": _resolve_spread(spec["spread"], evaluated),
        "theory": {**spec["theory"], "eps": float(spec["theory"]["eps"])},
        "masking": _resolve_masking(spec, run, evaluated),
        "dense_spectrum": spec["dense_spectrum"],
    }
    weights = pretrained_weights(config, run.arch)
    return resolved if weights is None else {**resolved, **_resolve_pretrained(weights, run.arch)}


def pretrained_weights(config: Mapping[str, Any], arch: str) -> Path | None:
    """Return the file with the weights of an architecture that is trained already; None for one that is trained here.

    Raises ConfigError for a file that may be outside data_root.
    """
    given = config.get("pretrained", {}).get(arch)
    if given is None:
        return None
    if ".." in Path(given["weights"]).parts:
        raise ConfigError(
            f"weights: {given['weights']} may lead out of data_root because of its '..'; "
            "put the file below data_root, or give an absolute path"
        )
    return Path(config["data_root"]) / given["weights"]


def _refuse_training(where: str, dataset: str, run: Variant, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a run of a network that is trained already, if its name speaks of another training."""
    if dataset != given["dataset"]:
        raise ConfigError(f"{where}: pretrained.{run.arch} is a network for {given['dataset']}; use this data set")
    if run.ar != given.get("ar", 0):
        fix = "use this strength, or correct it in pretrained"
        raise ConfigError(f"{where}: pretrained.{run.arch} was trained at strength {given.get('ar', 0)}; {fix}")
    if run.fgsm or run.seed or run.bound is not None:
        raise ConfigError(f"{where}: pretrained.{run.arch} is not trained here; name its run without -fgsm, -sn and -s")


def _resolve_pretrained(path: Path, name: str) -> dict[str, Any]:
    """Resolve the settings in which a network that is trained already, with weights in a file, differs from others.

    The place of its weights does not count, but their SHA-256 does: another file repeats the run.
    """
    try:
        info = path.stat()
        weights = _hash_file(path, info.st_size, info.st_mtime_ns)
    except OSError as error:
        raise ConfigError(
            f"config.yaml: pretrained.{name}.weights: {path} cannot be read ({error.strerror}); put the file there, or "
            "correct the path"
        ) from error
    return {"training": {"epochs": 0}, "train_attack": None, "pretrained": {"sha256": weights}}


@cache
def _hash_file(path: Path, size: int, modified: int) -> str:
    """Compute the SHA-256 of a file, once for all rules of a run; with another size or time, it is another file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that define the trained network, without those that say how it is measured."""
    return {key: value for key, value in resolved.items() if key not in MEASURES}


def hash_settings(resolved: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of the canonical JSON of settings, in hexadecimal."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested settings into one level with dotted keys; path: what all keys begin with."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return leaves


def describe_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], phrase: str = "{key} was {old}, is {new}"
) -> str:
    """Describe how settings differ, as "training.epochs was 20, is 10; ..."; "" if they are equal.

    phrase: how one difference is described.
    """
    before, after = flatten(old), flatten(new)
    keys = [key for key in [*before, *(key for key in after if key not in before)] if _differ(before, after, key)]
    return "; ".join(phrase.format(key=key, old=_shown(before, key), new=_shown(after, key)) for key in keys)


def _differ(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> bool:
    return key not in before or key not in after or before[key] != after[key]


def _shown(settings: Mapping[str, Any], key: str) -> str:
    """Show a value, which may be missing, in a few characters."""
    value = settings.get(key, "not set")
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def describe_unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Write the message for an unknown name, with the most similar known name and the list of all."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}: {hint}known: {', '.join(known)}"


def _refuse_unused_overrides(where: str, override: Mapping[str, Any], run: Variant) -> None:
    """Raise ConfigError for an override of a setting that the run does not use; where: its key in config.yaml."""
    for place, key, name in (
        ("training_attack", "clean_share", "with -clean"),
        ("evaluation", "space", "with -evalpixel, -evalnormspace or -evalsymmetric"),
    ):
        if key in override.get(place, {}):
            raise ConfigError(f"{where}.{place}.{key}: the name of a run says this; name a run {name} instead")
    keys = set(override.get("training_attack", {}))
    if keys and run.ar == 0:
        raise ConfigError(f"{where}.training_attack: standard training has no attack; remove the key")
    if run.fgsm and keys - {"fgsm"}:
        raise ConfigError(
            f"{where}.training_attack: FGSM is one step that eps determines; give only fgsm: plain or random-start"
        )
    if not run.fgsm and "fgsm" in keys:
        raise ConfigError(f"{where}.training_attack.fgsm: this run trains with PGD; name a run with -fgsm instead")
    if run.bound is None and "clip_rounds" in override.get("training", {}):
        raise ConfigError(f"{where}.training.clip_rounds: this run has no bound; name a run with -sn instead")


def _resolve_factory(own: Mapping[str, Any], block: str) -> dict[str, Any]:
    """Resolve a user-defined architecture in a block of config.yaml: callable, arguments, and the callable's code."""
    target = own["callable"]
    try:
        code = callable_code(target)
    except (ImportError, OSError, RecursionError, SyntaxError, ValueError) as error:
        raise ConfigError(
            f"config.yaml: {block}: callable {target!r} cannot be imported ({error}); install it, put its file "
            "beside the Snakefile, or correct the path"
        ) from error
    normalises = {"normalises": own["normalises"]} if block == "pretrained" else {}
    return {"callable": target, "arguments": dict(own.get("arguments", {})), "code": code, **normalises}


def _scalars(arch: str, own: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the setting "scalars" of a residual network that has some: which of Fixup's scalars these are.

    Before there were any, "resnet56" was the network that is called "resnet56nobias" now.
    """
    family = None if own else re.fullmatch(r"(resnet|fixup)\d+", arch)
    return {"scalars": {"resnet": "biases", "fixup": "all"}[family[1]]} if family else {}


def with_present_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a network was trained with, with the present name of its architecture (see _scalars)."""
    arch = stored.get("arch")
    old = isinstance(arch, str) and re.fullmatch(r"resnet\d+", arch) and "scalars" not in stored
    return {**stored, "arch": f"{arch}nobias"} if old and not stored.get("factory") else dict(stored)


def _resolve_train_attack(spec: Mapping[str, Any], run: Variant) -> dict[str, Any] | None:
    """Resolve the attack that makes training examples, radius and step in 1/255; None for standard training."""
    if run.ar == 0:
        return None
    clean = {"clean_share": run.clean} if run.clean else {}
    if not run.fgsm:
        own = {"step": _parse_step(spec["step"], run.ar), "steps": spec["steps"], "start": spec["start"]}
        return {"attack": "pgd", "eps": float(run.ar), **own, **clean}
    # Plain FGSM, as in the paper, steps from x by eps. From a random start, the step is 1.25 eps (Wong et al. 2020).
    plain = spec.get("fgsm", "plain") == "plain"
    start, step = ("clean", float(run.ar)) if plain else ("random", 1.25 * run.ar)
    return {"attack": "fgsm", "eps": float(run.ar), "step": step, "steps": 1, "start": start, **clean}


def _parse_step(step: float | str, eps: float) -> float:
    """Parse a step size: a number in 1/255, or a fraction of eps such as "eps/4"."""
    return eps / int(step.removeprefix("eps/")) if isinstance(step, str) else float(step)


def _resolve_evaluation(spec: Mapping[str, Any], space: str) -> dict[str, Any]:
    """Resolve the attack that a run is evaluated with, radius and step in 1/255."""
    return {
        "attack": "pgd",
        "space": space,
        "start": spec["start"],
        "loss": "cross_entropy",
        "eps": float(spec["eps"]),
        "step": _parse_step(spec["step"], spec["eps"]),
        "steps": spec["steps"],
        "restarts": spec["restarts"],
        "seed": spec["seed"],
    }


def _resolve_pixel_radii(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the attacks with several radii in pixels, radii in 1/255; no radius by default."""
    own = {"eps": [], "steps": 10, "step": "eps/4", "n": None, **spec.get("pixel_radii", {})}
    relative = _parse_step(own.pop("step"), 1)
    return {
        **own,
        "eps": sorted(float(eps) for eps in own["eps"]),
        "relative_step": relative,
        "seed": spec["evaluation"]["seed"],
    }


def _resolve_spread(spec: Mapping[str, Any], space: str) -> dict[str, Any]:
    """Resolve how the spread of perturbations through the layers is measured, radius and step in 1/255."""
    return {**spec, "eps": float(spec["eps"]), "step": _parse_step(spec["step"], spec["eps"]), "space": space}


def _resolve_masking(spec: Mapping[str, Any], run: Variant, space: str) -> dict[str, Any]:
    """Resolve the checks for masked gradients, with the radii of the evaluation and training attacks (0: none)."""
    own = {**spec["masking"], "eps": sorted(float(eps) for eps in spec["masking"]["eps"])}
    trained = {"strength_space": run.space} if run.evaluation_space else {}
    found = {"attack_eps": float(spec["evaluation"]["eps"]), "strength": float(run.ar), "space": space}
    return {**own, **found, **trained}


def _canonical_training(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the training settings into canonical order and types, without values that equal DEFAULTS."""
    real = ("lr", "lr_factor", "momentum", "weight_decay")
    chosen = [key for key in sorted(spec) if key not in DEFAULTS or spec[key] != DEFAULTS[key]]
    return {key: float(spec[key]) if key in real else spec[key] for key in chosen}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base`, with the values that `over` gives instead, at any depth."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged

"""Read config.yaml: check it against the schema, and resolve what one run, or one study, is made of."""

import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from robreg.variant import Variant, VariantError, parse

_Validator = jsonschema.validators.extend(  # 20.0 is no integer here: it would be another text for equal settings
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)
_DATA_KEYS = ("kind", "max_train", "max_test", "subset_seed")


class ConfigError(ValueError):
    """A key of config.yaml, or a name made from it, that must be mended."""


def check(config: Mapping[str, Any], schema_file: Path, reserved: Iterable[str] = ()) -> None:
    """Raise ConfigError, naming the first bad key and its mend, unless config is valid.

    reserved: names that a study may not bear (the workflow's rules).
    """
    _refuse_odd_values(config)
    schema = yaml.safe_load(schema_file.read_text())
    validator = _Validator(schema)
    errors = sorted(
        validator.iter_errors(config), key=lambda error: (list(map(str, error.absolute_path)), error.message)
    )
    if errors:
        raise ConfigError(f"config.yaml: {_sentence(jsonschema.exceptions.best_match(errors))}")
    if "studies" in config["datasets"]:
        raise ConfigError("config.yaml: datasets.studies: this name is reserved for results/studies; choose another")
    for key in config.get("runs", {}):
        dataset, _, variant = key.partition("/")
        try:
            settings(config, dataset, variant)
        except ConfigError as error:
            raise ConfigError(f"config.yaml: runs: {error}") from error
    for name in config["studies"]:
        if name in reserved:
            raise ConfigError(f"config.yaml: studies.{name}: a rule of the workflow has this name; choose another")
        _check_compare(config, name)


def _check_compare(config: Mapping[str, Any], study: str) -> None:
    low, high = config["studies"][study]["compare"]
    strengths: dict[tuple[str, str], set[int]] = {}
    for run in study_runs(config, study):
        strengths.setdefault((run["dataset"], run["arch"]), set()).add(run["ar"])
    for (dataset, arch), found in strengths.items():
        if low >= high or not {low, high} <= found:
            raise ConfigError(
                f"config.yaml: studies.{study}.compare: {[low, high]} must be two strengths of {dataset}, {arch} "
                f"{sorted(found)}, the lower one first"
            )


def _refuse_odd_values(tree: object, path: str = "") -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ConfigError(f"config.yaml: {path or 'the file'}: key {key!r} is not text; put it in quotes")
            _refuse_odd_values(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for place, value in enumerate(tree):
            _refuse_odd_values(value, f"{path}.{place}")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"config.yaml: {path}: {tree} is not a finite number; write one")


def block(config: Mapping[str, Any], dataset: str) -> Mapping[str, Any]:
    """Return a data set's block; raise ConfigError, listing the known ones, for an unknown name."""
    if dataset not in config["datasets"]:
        raise ConfigError(_unknown("data set", dataset, config["datasets"]))
    return config["datasets"][dataset]


def settings(config: Mapping[str, Any], dataset: str, variant: str) -> dict[str, Any]:
    """Resolve everything that a run's results depend on: its data set's block, with the run's own overrides.

    Returns plain values, in canonical order and type, so that equal settings are equal text. Strengths are in 1/255.
    Keys: what defines the trained network, and under "evaluation" and "loss_variation" how it is measured.
    Raises ConfigError for an unknown data set and for a variant that is not spelt right.
    """
    base = block(config, dataset)
    try:
        run = parse(variant, base["architecture"])
    except VariantError as error:
        raise ConfigError(f"{dataset}/{variant}: {error}") from error
    _refuse_missing(dataset, variant, run)
    override = config.get("runs", {}).get(f"{dataset}/{variant}", {})
    if "training_attack" in override and (run.ar == 0 or run.fgsm):
        why = "standard training has no attack" if run.ar == 0 else "FGSM is one step of eps from the image"
        raise ConfigError(f"runs.{dataset}/{variant}.training_attack: {why}; remove the key")
    spec = _merge(base, override)
    return {
        "dataset": dataset,
        "variant": variant,
        "data": {key: spec.get(key) for key in _DATA_KEYS},
        "ar": run.ar,
        "arch": run.arch,
        "width": spec["width"],
        "seed": run.seed,
        "space": run.space,
        "spectral_norm": run.bound,
        "threads": spec["threads"],
        "training": _numbers(spec["training"]),
        "train_attack": _train_attack(spec["training_attack"], run),
        "evaluation": _evaluation(spec["evaluation"], run),
        "loss_variation": {
            "eps": [float(eps) for eps in spec["loss_variation"]["eps"]],
            "relative_step": _step(spec["loss_variation"]["step"], 1),
            "steps": spec["loss_variation"]["steps"],
            "seed": spec["evaluation"]["seed"],
            "space": run.space,
        },
    }


def training(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a run's settings how the trained network is measured."""
    return {key: value for key, value in resolved.items() if key not in ("evaluation", "loss_variation")}


def fingerprint(resolved: Mapping[str, Any]) -> str:
    """Hash settings: SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def runs(config: Mapping[str, Any], study: str) -> list[tuple[str, str]]:
    """List the runs (data set, variant) of a study, in the order of config.yaml, each once."""
    if study not in config["studies"]:
        known = ", ".join(config["studies"])
        raise ConfigError(
            f"config.yaml: studies: there is no study {study!r}; add its block, or ask for one of: {known}"
        )
    found: dict[tuple[str, str], None] = {}
    for grid in config["studies"][study]["runs"]:
        for run in _expand(config, study, grid):
            found[run] = None
    return list(found)


def study_runs(config: Mapping[str, Any], study: str) -> list[dict[str, Any]]:
    """List a study's runs with what identifies them: folder, variant, and the first columns of every study table."""
    found = []
    for dataset, variant in runs(config, study):
        run = parse(variant, config["datasets"][dataset]["architecture"])
        found.append(
            {
                "folder": f"results/{dataset}/{variant}",
                "dataset": dataset,
                "variant": variant,
                "arch": run.arch,
                "train_attack": run.train_attack,
                "space": run.space,
                "spectral_norm": run.bound,
                "ar": run.ar,
                "seed": run.seed,
            }
        )
    return found


def _expand(config: Mapping[str, Any], study: str, grid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dataset = grid["dataset"]
    try:
        default = block(config, dataset)["architecture"]
    except ConfigError as error:
        raise ConfigError(f"config.yaml: studies.{study}.runs: {error}") from error
    options = (grid.get("arch", [default]), grid.get("attack", ["pgd"]), grid.get("space", ["pixel"]))
    for arch, attack, space in itertools.product(*options):
        for ar, seed in itertools.product(grid["ar"], grid.get("seeds", [0])):
            run = Variant(ar, arch, fgsm=ar > 0 and attack == "fgsm", normspace=space == "normalised", seed=seed)
            yield dataset, run.name(default)


def _refuse_missing(dataset: str, variant: str, run: Variant) -> None:
    """Refuse what the grammar can name and this version cannot compute."""
    if run.arch == "wrn50":
        raise ConfigError(f"{dataset}/{variant}: architecture wrn50 is missing from this version; use a resnet")
    if run.bound is not None:
        raise ConfigError(
            f"{dataset}/{variant}: the projection onto a spectral norm bound (-sn) is missing from this version"
        )


def _train_attack(spec: Mapping[str, Any], run: Variant) -> dict[str, Any] | None:
    """The attack that makes training examples: radius and step in 1/255; None for standard training."""
    if run.ar == 0:
        return None
    if run.fgsm:  # the paper's plain setting: from x, one step of eps
        return {"attack": "fgsm", "eps": float(run.ar), "step": float(run.ar), "steps": 1, "start": "clean"}
    step = _step(spec["step"], run.ar)
    return {"attack": "pgd", "eps": float(run.ar), "step": step, "steps": spec["steps"], "start": spec["start"]}


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


def _numbers(spec: Mapping[str, Any]) -> dict[str, Any]:
    real = ("lr", "lr_factor", "momentum", "weight_decay")
    return {key: float(spec[key]) if key in real else spec[key] for key in sorted(spec)}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value) if isinstance(value, Mapping) else value
    return merged


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}: {hint}known: {', '.join(known)}"


def _sentence(error: jsonschema.ValidationError) -> str:
    """One sentence for a schema error: the key's path, what is wrong, what is right."""
    path = ".".join(map(str, error.absolute_path))
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties":
        known: Mapping[str, Any] = schema.get("properties", {})
        given: Any = error.instance
        extra = next(key for key in given if key not in known)
        return f"{f'{path}.' if path else ''}{extra}: {_unknown('key', extra, known)}"
    description = schema.get("description", "")
    hint = f" ({description})" if description else ""
    return f"{path or 'the file'}: {error.message}{hint}"

"""Check config.yaml against its schema, and list the runs, figures and tables of a study."""

import difflib
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import jsonschema
import yaml

from robreg.runs.catalogue import FIGURES, TABLES, Item, describe_missing, places, select_runs
from robreg.runs.needs import compared
from robreg.runs.radii import describe_mistaken_radius
from robreg.runs.schema_errors import describe_first
from robreg.runs.settings import (
    ConfigError,
    describe_unknown_name,
    name_defaults,
    parse_run,
    pretrained_weights,
    run_settings,
    training_settings,
)
from robreg.runs.variant import Variant, is_available_name
from robreg.runs.yaml_file import RECURSIVE_OR_DEEP, check_yaml_file

_PARTS: dict[str, dict[str, Item]] = {"figures": FIGURES, "tables": TABLES}
_FORBIDDEN_CATEGORIES = ("Cc", "Cs")  # control characters and lone surrogates, which neither XML nor HTML can contain
# Unlike JSON Schema, 20.0 does not count as an integer, because equal settings must have equal text.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def load(file: Path, schema_file: Path) -> dict[str, Any]:
    """Read a configuration without Snakemake. Raises ConfigError if it is not valid, and OSError if it is missing."""
    check_yaml_file(file)
    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    validate(config, schema_file)
    return config


def validate(config: Mapping[str, Any], schema_file: Path, reserved: Iterable[str] = ()) -> None:
    """Check a parsed configuration against the schema and against rules that a schema cannot express.

    reserved: names that a study may not have (those of the workflow's rules).
    Raises ConfigError, which names the first wrong key and how to fix it, if the configuration is not valid.
    """
    try:
        _refuse_unsupported_values(config)
    except RecursionError as error:
        raise ConfigError(f"config.yaml: {RECURSIVE_OR_DEEP}") from error
    _refuse_mistaken_radii({block: config.get(block) for block in ("datasets", "runs", "studies")})
    errors = list(_Validator(yaml.safe_load(schema_file.read_text())).iter_errors(config))
    if errors:
        raise ConfigError(f"config.yaml: {describe_first(config, errors)}")
    if "studies" in config["datasets"]:
        raise ConfigError("config.yaml: datasets.studies: this name is reserved for results/studies; choose another")
    _check_architecture_names(config)
    _check_datasets(config)
    _check_pretrained(config)
    for key in config.get("runs", {}):
        dataset, _, variant = key.partition("/")
        try:
            run_settings(config, dataset, variant)
        except ConfigError as error:
            raise ConfigError(f"config.yaml: runs: {error}") from error
    for name in config["studies"]:
        if name in reserved:
            raise ConfigError(f"config.yaml: studies.{name}: a rule of the workflow has this name; choose another")
        _check_study(config, name)


def _check_architecture_names(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first architecture or trained network whose name cannot stand in the name of a run."""
    for block in ("architectures", "pretrained"):
        for name in config.get(block, {}):
            if not is_available_name(name) or (block == "pretrained" and name in config.get("architectures", {})):
                raise ConfigError(
                    f"config.yaml: {block}.{name}: this name is reserved by the grammar of run names, "
                    "or does not fit it, or is given twice; choose another, of lower-case letters and digits"
                )


def _check_datasets(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first data set whose keys contradict each other."""
    for name, spec in config["datasets"].items():
        where = f"config.yaml: datasets.{name}"
        try:
            run_settings(config, name, "ar0")
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).removeprefix('config.yaml: ')}") from error
        _check_source(where, spec)
        if "incomplete" in spec and spec["kind"] != "tiny-imagenet":
            raise ConfigError(f"{where}.incomplete: only kind tiny-imagenet has this key; remove it")


def _check_pretrained(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first network that is trained already and can have no run; its file is not needed."""
    for name, given in config.get("pretrained", {}).items():
        try:
            name_defaults(config, given["dataset"])
            pretrained_weights(config, name)
        except ConfigError as error:
            raise ConfigError(f"config.yaml: pretrained.{name}: {error}") from error


def _check_source(where: str, spec: Mapping[str, Any]) -> None:
    """Raise ConfigError if a data set's source does not fit its kind."""
    kind, source = spec["kind"], spec["source"]
    if (kind == "digits") != (source is None):
        digits_fix = "the digits come with scikit-learn; give null"
        fix = digits_fix if kind == "digits" else "give download, or a path below data_root"
        raise ConfigError(f"{where}.source: kind {kind} cannot be read from {source!r}: {fix}")
    if kind in ("parquet", "imagefolder") and source == "download":
        raise ConfigError(f"{where}.source: your own images cannot be downloaded; give their folder below data_root")


def _check_study(config: Mapping[str, Any], study: str) -> None:
    """Raise ConfigError if a study lists what is unknown, lists it twice, or cannot make it from its runs."""
    listed = study_runs(config, study)
    for part in _PARTS:
        _check_names(config, study, part, listed)
    _check_compare(config, study, listed)
    if missing := [text for part in _PARTS if (text := _describe_unmade(config, study, part, listed))]:
        raise ConfigError(f"config.yaml: {'; '.join(missing)}; add such runs, or leave these out")


def _check_names(config: Mapping[str, Any], study: str, part: str, listed: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError for the first name under a study's figures or tables that is not known or is given twice."""
    where, known = f"config.yaml: studies.{study}.{part}", _PARTS[part]
    names = [
        name for entry in config["studies"][study][part] for name in ([entry] if isinstance(entry, str) else entry)
    ]
    if repeated := [name for name in known if names.count(name) > 1]:
        raise ConfigError(f"{where}: {repeated[0]} is listed twice; remove one entry")
    available = {place: None for run in listed for place in sorted(places(run))}
    for name, only in study_items(config, study, part).items():
        if name not in known:
            raise ConfigError(f"{where}: {describe_unknown_name(part[:-1], name, known)}")
        if foreign := sorted(set(only or ()) - available.keys()):
            raise ConfigError(
                f"{where}: {name} names {foreign}, which have no run in this study; name data sets of its runs, or "
                f"data set/architecture, of these: {', '.join(available)}"
            )


def _describe_unmade(
    config: Mapping[str, Any], study: str, part: str, listed: Sequence[Mapping[str, Any]]
) -> str | None:
    """List the figures or tables that a study cannot make, with what is missing; None if it can make all.

    One that names what it shows needs runs for each of these.
    """
    unmade: dict[str, list[str]] = {}
    compare = compared(study, config["studies"][study], listed)
    for name, only in study_items(config, study, part).items():
        for place in only or (None,):
            shown = select_runs(name, listed, place and [place])
            if missing := describe_missing(name, shown, compare):
                unmade.setdefault(missing, []).append(f"{name}: [{place}]" if place else name)
    texts = [f"{', '.join(names)} (missing: {missing})" for missing, names in unmade.items()]
    return f"studies.{study}.{part}: the study has no run for {', '.join(texts)}" if texts else None


def _check_compare(config: Mapping[str, Any], study: str, listed: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError unless the two strengths to compare occur together in one data set and architecture.

    One is enough: the others are shown with the strengths that they have.
    """
    compare = compared(study, config["studies"][study], listed)
    if not compare:
        return
    low, high = compare
    strengths: dict[tuple[str, str], set[int]] = {}
    for run in listed:
        strengths.setdefault((run["dataset"], run["arch"]), set()).add(run["ar"])
    if low >= high or not any({low, high} <= present for present in strengths.values()):
        listing = "; ".join(f"{', '.join(key)} {sorted(value)}" for key, value in strengths.items())
        raise ConfigError(
            f"config.yaml: studies.{study}.compare: {[low, high]} must be two strengths, the lower one first, "
            f"that occur together in one of these: {listing}"
        )


def _refuse_unsupported_values(tree: object, path: str = "") -> None:
    """Check that keys are text, and values text, null, finite numbers, or lists and mappings of them.

    path: where `tree` is in config.yaml. Raises ConfigError for the first key or value that is not.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ConfigError(f"config.yaml: {path or 'the file'}: key {key!r} is not text; put it in quotes")
            _refuse_unsupported_values(key, path or "the file")
            _refuse_unsupported_values(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _refuse_unsupported_values(value, f"{path}.{index}")
    elif isinstance(tree, str) and (
        bad := next((char for char in tree if unicodedata.category(char) in _FORBIDDEN_CATEGORIES), None)
    ):
        raise ConfigError(f"config.yaml: {path}: the character {bad!a} is not allowed in text; remove it")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"config.yaml: {path}: {tree} is not a finite number; write a finite one")
    elif isinstance(tree, int) and abs(tree) >= 2**63:
        raise ConfigError(f"config.yaml: {path}: this whole number has 64 bits or more; write a smaller one")
    elif not isinstance(tree, (str, int, float, NoneType)):
        raise ConfigError(
            f"config.yaml: {path}: {tree!r} is a {type(tree).__name__}; write text in quotes, a number or a list"
        )


def _refuse_mistaken_radii(tree: object, path: tuple[str | int, ...] = ()) -> None:
    """Raise ConfigError for the first strength, radius or step that is not in 1/255; path: where `tree` is."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            _refuse_mistaken_radii(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _refuse_mistaken_radii(value, (*path, index))
    else:
        key = next(part for part in reversed(path) if isinstance(part, str))
        mistake = describe_mistaken_radius(key, tree)
        if mistake and path[-2:] == ("loss_variation", "step"):
            mistake = f"{tree!r} is no fraction of eps, which this step always is: write eps/4, for example"
        if mistake:
            raise ConfigError(f"config.yaml: {'.'.join(map(str, path))}: {mistake}")


def compared_strengths(config: Mapping[str, Any], study: str) -> list[int]:
    """Return the lower and the higher strength that a study compares, or [] (see needs.compared)."""
    return compared(study, config["studies"][study], study_runs(config, study))


def listed_items(config: Mapping[str, Any], study: str) -> dict[str, list[str] | None]:
    """List all figures and tables of a study, each with what it is restricted to (see study_items)."""
    return {**study_items(config, study, "figures"), **study_items(config, study, "tables")}


def study_items(config: Mapping[str, Any], study: str, part: str) -> dict[str, list[str] | None]:
    """List the "figures" or "tables" of a study, each with what it is restricted to (see select_runs; None: all)."""
    items: dict[str, list[str] | None] = {}
    for entry in config["studies"][study][part]:
        items |= {entry: None} if isinstance(entry, str) else entry
    return items


def run_names(config: Mapping[str, Any], study: str) -> list[tuple[str, str]]:
    """List the runs of a study as (data set, variant), each once, in the order of config.yaml.

    Raises ConfigError if there is no such study or data set.
    """
    if study not in config["studies"]:
        known = ", ".join(config["studies"])
        close = difflib.get_close_matches(study, config["studies"], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(
            f"config.yaml: studies: there is no study {study!r}; add its block, or ask for one of: {known}{hint}"
        )
    names: dict[tuple[str, str], None] = {}
    for grid in config["studies"][study]["runs"]:
        for run in _expand_grid(config, study, grid):
            names[run] = None
    return list(names)


def study_runs(config: Mapping[str, Any], study: str) -> list[dict[str, Any]]:
    """List a study's runs, each with its folder, its variant, and the first columns of every study table.

    default_arch is the default architecture of the run's data set; paper is the data set of the paper that it is
    compared with (None for none); published are the results of other work on it that Figure 12 shows.
    Raises ConfigError if there is no such study or data set, or if a run's name is not valid.
    """
    runs = []
    for dataset, variant in run_names(config, study):
        try:
            run = parse_run(config, dataset, variant)
        except ConfigError as error:
            raise ConfigError(f"config.yaml: studies.{study}.runs: {error}") from error
        spec = config["datasets"][dataset]
        runs.append(
            {
                "folder": f"results/{dataset}/{variant}",
                "dataset": dataset,
                "variant": variant,
                "arch": run.arch,
                "train_attack": run.train_attack,
                "space": run.spaces,
                "spectral_norm": run.bound,
                "ar": run.ar,
                "seed": run.seed,
                "default_arch": spec["architecture"],
                "paper": spec.get("paper"),
                "published": spec.get("published", []),
            }
        )
    return runs


def chosen_runs(
    config: Mapping[str, Any], study: str, is_trained: Callable[[Path, Mapping[str, Any]], bool]
) -> list[dict[str, Any]]:
    """List a study's runs as study_runs does; with the setting only_finished, only those whose networks are trained.

    is_trained: says of a run's folder and training settings whether its network is there. Raises ConfigError as
    study_runs does, and if none of the runs is trained.
    """
    listed = study_runs(config, study)
    if not config.get("only_finished"):
        return listed
    wanted = [training_settings(run_settings(config, run["dataset"], run["variant"])) for run in listed]
    try:
        trained = [run for run, own in zip(listed, wanted, strict=True) if is_trained(Path(run["folder"]), own)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"only_finished: {error}") from error
    if not trained:
        raise ConfigError(
            f"only_finished: none of the {len(listed)} runs of the study {study} is trained yet with the settings "
            "of config.yaml; leave this key out to train them"
        )
    return trained


def unmakeable_items(config: Mapping[str, Any], study: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the figures and tables of a study that these of its runs cannot make, and the places missing in others."""
    missing = []
    for part in _PARTS:
        made = makeable_items(config, study, part, runs)
        for name, only in study_items(config, study, part).items():
            lost = [place for place in only or () if place not in (made.get(name) or ())]
            if name not in made:
                missing.append(name)
            elif lost:
                missing.append(f"{name} ({', '.join(lost)})")
    return missing


def makeable_items(
    config: Mapping[str, Any], study: str, part: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, list[str] | None]:
    """List the items of a study as study_items does, without what cannot be made from these of its runs."""
    compare, items = compared_strengths(config, study), {}
    for name, only in study_items(config, study, part).items():
        places_left = [place for place in only or (None,) if _can_make(name, runs, place, compare)]
        if places_left:
            items[name] = only and [place for place in places_left if place]
    return items


def _can_make(name: str, runs: Sequence[Mapping[str, Any]], place: str | None, compare: Sequence[int]) -> bool:
    return not describe_missing(name, select_runs(name, runs, place and [place]), compare)


def _expand_grid(config: Mapping[str, Any], study: str, grid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the runs of one entry of a study's `runs`: all combinations of what its keys list."""
    dataset = grid["dataset"]
    try:
        defaults = name_defaults(config, dataset)
    except ConfigError as error:
        raise ConfigError(f"config.yaml: studies.{study}.runs: {error}") from error
    axes = (
        grid.get("arch", [defaults.arch]),
        grid.get("attack", ["pgd"]),
        grid.get("clean_share", [defaults.clean]),
        grid.get("spectral_norm", [None]),
        grid.get("space", [defaults.space]),
        grid.get("evaluation_space", [defaults.evaluation_space]),
    )
    for arch, attack, clean, bound, space, evaluated in itertools.product(*axes):
        for ar, seed in itertools.product(grid["ar"], grid.get("seeds", [0])):
            run = Variant(
                ar,
                arch,
                fgsm=ar > 0 and attack == "fgsm",
                clean=float(clean) if ar else 0.0,
                bound=bound,
                space=space,
                evaluation_space=None if evaluated == space else evaluated,
                seed=seed,
            )
            yield dataset, run.name(defaults)

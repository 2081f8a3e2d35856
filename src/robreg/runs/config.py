"""Read config.yaml: check it against the schema, and say what a study is made of."""

import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import jsonschema
import yaml

from robreg.runs.catalogue import FIGURES, TABLES, select_runs
from robreg.runs.settings import ConfigError, dataset_block, parse_run, run_settings, unknown_name
from robreg.runs.variant import Variant, is_free

_ENDLESS = "something in it contains itself, or is nested too deeply; write it out"
_NO_TEXT = ("Cc", "Cs")  # control characters and halves of pairs, which neither XML nor a page can hold
_Validator = jsonschema.validators.extend(  # 20.0 is no integer here: it would be another text for equal settings
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def validate(config: Mapping[str, Any], schema_file: Path, reserved: Iterable[str] = ()) -> None:
    """Raise ConfigError, naming the first bad key and its mend, unless config is valid.

    reserved: names that a study may not bear (the workflow's rules).
    """
    try:
        _refuse_odd_values(config)
    except RecursionError as error:
        raise ConfigError(f"config.yaml: {_ENDLESS}") from error
    schema = yaml.safe_load(schema_file.read_text())
    validator = _Validator(schema)
    errors = sorted(
        validator.iter_errors(config), key=lambda error: (list(map(str, error.absolute_path)), error.message)
    )
    if errors:
        raise ConfigError(f"config.yaml: {_sentence(jsonschema.exceptions.best_match(errors))}")
    if "studies" in config["datasets"]:
        raise ConfigError("config.yaml: datasets.studies: this name is reserved for results/studies; choose another")
    for name in config.get("architectures", {}):
        if not is_free(name):
            raise ConfigError(f"config.yaml: architectures.{name}: this name is taken by the grammar of runs")
    _check_datasets(config)
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


def refuse_unreadable(file: Path) -> None:
    """Raise ConfigError for a file that is no YAML, or has a key twice in one place: the first would silently be lost.

    Called before Snakemake reads config.yaml, for its errors name neither the file nor the place; what --configfile
    names it has read by then.
    """
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None:
            _refuse_repeated(root, file.name)
            loader.construct_document(root)
    except ConfigError:
        raise
    except Exception as error:  # a date or a number that cannot be, no UTF-8: PyYAML raises many kinds
        why = _ENDLESS if isinstance(error, RecursionError) else f"{' '.join(str(error).split())}; correct it"
        raise ConfigError(f"{file.name} cannot be read as YAML: {why}") from error


def _refuse_repeated(root: yaml.Node, name: str) -> None:
    left: list[tuple[str, Any]] = [("", root)]
    looked_at = set[int]()  # an alias stands for a node that was seen, or is in it
    while left:
        path, node = left.pop()
        if id(node) in looked_at:
            continue
        looked_at.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen = set[str]()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # nothing that can be a key
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"{name}: {path}{key.value} is given twice, again in line {line}; remove one")
                seen.add(key.value)
                left.append((f"{path}{key.value}.", value))
        elif isinstance(node, yaml.SequenceNode):
            left += [(f"{path}{place}.", value) for place, value in enumerate(node.value)]


def _check_datasets(config: Mapping[str, Any]) -> None:
    for name, spec in config["datasets"].items():
        where = f"config.yaml: datasets.{name}"
        try:
            run_settings(config, name, "ar0")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        _check_source(where, spec)
        if "incomplete" in spec and spec["kind"] != "tiny-imagenet":
            raise ConfigError(f"{where}.incomplete: only kind tiny-imagenet has it; remove the key")


def _check_source(where: str, spec: Mapping[str, Any]) -> None:
    kind, source = spec["kind"], spec["source"]
    if (kind == "digits") != (source is None):
        mend = "scikit-learn has them; give null" if kind == "digits" else "give download, or a path below data_root"
        raise ConfigError(f"{where}.source: kind {kind} does not come from {source!r}: {mend}")
    if kind == "parquet" and source == "download":
        raise ConfigError(f"{where}.source: images of your own are not downloaded; give their folder below data_root")


def _check_study(config: Mapping[str, Any], study: str) -> None:
    listed = study_runs(config, study)
    for part, known in (("figures", FIGURES), ("tables", TABLES)):
        names = [
            name for entry in config["studies"][study][part] for name in ([entry] if isinstance(entry, str) else entry)
        ]
        if repeated := [name for name in known if names.count(name) > 1]:
            raise ConfigError(f"config.yaml: studies.{study}.{part}: {repeated[0]} is listed twice; remove one")
        for name, datasets in study_items(config, study, part).items():
            if name not in known:
                raise ConfigError(f"config.yaml: studies.{study}.{part}: {unknown_name(part[:-1], name, known)}")
            foreign = set(datasets or ()) - {run["dataset"] for run in listed}
            if foreign:
                raise ConfigError(
                    f"config.yaml: studies.{study}.{part}: {name} names {sorted(foreign)}, "
                    "of which the study has no run; name data sets of its runs"
                )
            if known[name].needs and not select_runs(name, listed, datasets):
                raise ConfigError(
                    f"config.yaml: studies.{study}.{part}: the study has no run for {name} ({known[name].title}); "
                    "leave it out"
                )
    _check_compare(config, study, listed)


def _check_compare(config: Mapping[str, Any], study: str, listed: Iterable[Mapping[str, Any]]) -> None:
    """The two strengths must be found together in at least one setting; a setting without them shows what it has."""
    low, high = config["studies"][study]["compare"]
    strengths: dict[tuple[str, str], set[int]] = {}
    for run in listed:
        strengths.setdefault((run["dataset"], run["arch"]), set()).add(run["ar"])
    if low >= high or not any({low, high} <= found for found in strengths.values()):
        found = "; ".join(f"{', '.join(key)} {sorted(value)}" for key, value in strengths.items())
        raise ConfigError(
            f"config.yaml: studies.{study}.compare: {[low, high]} must be two strengths of one of {found}, "
            "the lower one first"
        )


def _refuse_odd_values(tree: object, path: str = "") -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ConfigError(f"config.yaml: {path or 'the file'}: key {key!r} is not text; put it in quotes")
            _refuse_odd_values(key, path or "the file")
            _refuse_odd_values(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for place, value in enumerate(tree):
            _refuse_odd_values(value, f"{path}.{place}")
    elif isinstance(tree, str) and (odd := next((one for one in tree if unicodedata.category(one) in _NO_TEXT), None)):
        raise ConfigError(f"config.yaml: {path}: {odd!a} is no character of a text; take it out")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"config.yaml: {path}: {tree} is not a finite number; write one")
    elif isinstance(tree, int) and abs(tree) >= 2**63:
        raise ConfigError(f"config.yaml: {path}: a whole number of 64 bits or more; write a smaller one")
    elif not isinstance(tree, (str, int, float, NoneType)):
        raise ConfigError(
            f"config.yaml: {path}: {tree!r} is a {type(tree).__name__}; write text, in quotes, a number or a list"
        )


def study_items(config: Mapping[str, Any], study: str, part: str) -> dict[str, list[str] | None]:
    """List the "figures" or "tables" of a study, each with the data sets that it is restricted to (None: all)."""
    found: dict[str, list[str] | None] = {}
    for entry in config["studies"][study][part]:
        found |= {entry: None} if isinstance(entry, str) else entry
    return found


def run_names(config: Mapping[str, Any], study: str) -> list[tuple[str, str]]:
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
    """List a study's runs with what identifies them: folder, variant, and the first columns of every study table.

    default_arch is the data set's, paper the data set of the paper that it stands for (None: for none), and published
    what Figure 12 shows of other work on it.
    """
    found = []
    for dataset, variant in run_names(config, study):
        try:
            run = parse_run(config, dataset, variant)
        except ConfigError as error:
            raise ConfigError(f"config.yaml: studies.{study}.runs: {error}") from error
        spec = config["datasets"][dataset]
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
                "default_arch": spec["architecture"],
                "paper": spec.get("paper"),
                "published": spec.get("published", []),
            }
        )
    return found


def _expand(config: Mapping[str, Any], study: str, grid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dataset = grid["dataset"]
    try:
        default = dataset_block(config, dataset)["architecture"]
    except ConfigError as error:
        raise ConfigError(f"config.yaml: studies.{study}.runs: {error}") from error
    axes = (
        grid.get("arch", [default]),
        grid.get("attack", ["pgd"]),
        grid.get("spectral_norm", [None]),
        grid.get("space", ["pixel"]),
    )
    for arch, attack, bound, space in itertools.product(*axes):
        for ar, seed in itertools.product(grid["ar"], grid.get("seeds", [0])):
            fgsm = ar > 0 and attack == "fgsm"
            run = Variant(ar, arch, fgsm=fgsm, bound=bound, normspace=space == "normalised", seed=seed)
            yield dataset, run.name(default)


def _sentence(error: jsonschema.ValidationError) -> str:
    """One sentence for a schema error: the key's path, what is wrong, what is right."""
    path = ".".join(map(str, error.absolute_path))
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties":
        known: Mapping[str, Any] = schema.get("properties", {})
        given: Any = error.instance
        extra = next(key for key in given if key not in known)
        return f"{f'{path}.' if path else ''}{extra}: {unknown_name('key', extra, known)}"
    description = schema.get("description", "")
    hint = f" ({description})" if description else ""
    return f"{path or 'the file'}: {error.message}{hint}"

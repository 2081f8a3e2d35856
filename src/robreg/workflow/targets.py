"""Refuse a target that the workflow does not have, and name the nearest one that it has."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from snakemake.io import strip_wildcard_constraints

from robreg.runs.config import run_names, study_items
from robreg.runs.settings import ConfigError, parse_run

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

Patterns = Mapping[
    str, Sequence[str]
]  # by rule: the files that it makes, such as "results/{dataset}/{variant}/sv.parquet"
_RUN_FILE = re.compile(r"results/(?P<dataset>[^/]+)/(?P<variant>[^/]+)/[^/]+")


def refuse_unknown(workflow: "Workflow") -> None:
    """Raise ConfigError for the first name on the command line that is neither a rule nor a file of one.

    Snakemake itself would only say that no rule produces it.
    """
    asked, scheduling = workflow.dag_settings, workflow.scheduling_settings
    patterns = {rule.name: [strip_wildcard_constraints(str(file)) for file in rule.output] for rule in workflow.rules}
    for target in asked.targets:
        if workflow.is_rule(target) and workflow.get_rule(target).has_wildcards():
            example = next(iter(_expand(patterns[target], workflow.config, _runs(workflow.config))))
            raise ConfigError(f"the rule {target} makes many files; ask for one of them, such as {example}")
    preferred = scheduling.prioritytargets if scheduling is not None else ()
    for target in (*asked.targets, *asked.forcerun, *asked.until, *asked.omit_from, *preferred):
        file = target if os.path.isabs(target) else os.path.relpath(target)
        if not workflow.is_rule(target) and not any(rule.is_producer(file) for rule in workflow.rules):
            raise ConfigError(describe_unknown(target, patterns, workflow.config))


def describe_unknown(target: str, patterns: Patterns, config: Mapping[str, Any]) -> str:
    """Say that there is no such target, and which one was probably meant."""
    given = os.path.relpath(target)
    made = {rule: list(_expand(files, config, _runs(config, given))) for rule, files in patterns.items()}
    known = list(dict.fromkeys(file for files in made.values() for file in files))
    intro = f"there is no target {target!r}"
    if same := _files_named(given, known):
        return f"{intro}: did you mean {same[0]}{_others(same)}?"
    folder, _, name = given.rpartition("/")
    beside = [file.rpartition("/")[2] for file in known if file.rpartition("/")[0] == folder]
    if beside:
        close = _closest(name, beside)
        return f"{intro}: did you mean {folder}/{close}?" if close else f"{intro}: {folder} has {', '.join(beside)}"
    if below := [file for file in known if file.startswith(f"{given}/")]:
        inside = [file for file in below if "/" not in file.removeprefix(f"{given}/")]
        return f"{intro}: it is a folder; ask for a file in it, such as {(inside or below)[-1]}"
    return f"{intro}: {_describe_nearest(given, made, config)}"


def _describe_nearest(given: str, made: Mapping[str, Sequence[str]], config: Mapping[str, Any]) -> str:
    """Name the study, rule or file that is nearest to a misspelt one, or else say what can be asked for."""
    files = [file for each in made.values() for file in reversed(each)]
    studies = ["all", *config["studies"]]
    parts = given.count("/") + 1  # of a file's path, as many are compared
    names = {"/".join(file.split("/")[-parts:]): file for file in files}
    if parts == 1:
        names |= {PurePath(file).stem: file for file in files} | {name: name for name in (*made, *studies)}
    close = _closest(given, names)
    if close is not None:
        return f"did you mean {names[close]}?"
    return f"ask for a study ({', '.join(studies)}), or for a file such as results/studies/{studies[-1]}/report.html"


def _closest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar of the known names, whatever the case of its letters; None if none is similar."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def _files_named(given: str, known: Sequence[str]) -> list[str]:
    """Return the files whose path ends with the given one, which may lack its extension."""
    ends = (f"/{given}", f"/{given}.")
    exact = [file for file in known if f"/{file}".endswith(ends[0])]
    return exact or [file for file in known if ends[1] in f"/{file}" and "/" not in f"/{file}".rpartition(ends[1])[2]]


def _others(same: Sequence[str]) -> str:
    """Say of what else there are files with the same name as the first: other studies, or other runs."""
    parts = [file.split("/") for file in same if PurePath(file).name == PurePath(same[0]).name]
    if len(parts) == 1:
        return ""
    if parts[0][1] != "studies":
        return ", or that of another run"
    return f", or that of {' or '.join(part[2] for part in parts[1:])}"


def _runs(config: Mapping[str, Any], given: str = "") -> list[tuple[str, str]]:
    """List the runs of all studies as (data set, variant), those of the last study first, and the one in a path.

    The last study is the one that a user added, or the demo.
    """
    runs = [run for study in reversed(config["studies"]) for run in run_names(config, study)]
    path = _RUN_FILE.fullmatch(re.sub(r"/(ar\d+)/255", r"/\1", given))
    if path is not None:
        try:
            parse_run(config, path["dataset"], path["variant"])
        except ConfigError:
            return runs  # its name is wrong, too
        runs.append((path["dataset"], path["variant"]))
    return list(dict.fromkeys(runs))


def _expand(patterns: Iterable[str], config: Mapping[str, Any], runs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the files that patterns stand for: those of the given runs, of all data sets, and of all studies."""
    for pattern in patterns:
        if "{variant}" in pattern:
            yield from (pattern.format(dataset=dataset, variant=variant) for dataset, variant in runs)
        elif "{dataset}" in pattern:
            yield from (pattern.format(dataset=dataset) for dataset in reversed(config["datasets"]))
        else:
            for study in reversed(config["studies"]):
                figures, tables = (study_items(config, study, part) for part in ("figures", "tables"))
                items = figures if "{figure}" in pattern else tables if "{table}" in pattern else [""]
                yield from (pattern.format(study=study, figure=item, table=item) for item in items)

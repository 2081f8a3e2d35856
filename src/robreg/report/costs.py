"""Collect what the runs of a study cost and how they were made, from histories, settings and Snakemake's benchmarks."""

import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from robreg.runs.catalogue import Run
from robreg.runs.settings import describe_differences, flatten, training_settings, with_present_names
from robreg.tables import parquet
from robreg.tables.files import open_regular
from robreg.tables.provenance import code_hash

BENCHMARKS = Path("benchmarks")  # written by Snakemake, one file per job; missing for runs that were made elsewhere
PACKAGES = (
    "robreg",
    "snakemake",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "seaborn",
    "jinja2",
    "foolbox",
)
_LARGEST = 2**16  # bytes of a benchmark, which has a line for each attempt, that are read
_IN_NAME = ("dataset", "variant")  # settings that the name of a run already states


@dataclass(frozen=True)
class RuleCost:
    """The jobs of one rule that a study needs: their number, wall and CPU time in seconds, and peak memory in MB."""

    rule: str
    jobs: int
    wall_s: float
    longest_s: float
    cpu_s: float
    memory_mb: float


@dataclass(frozen=True)
class RunAccount:
    """One run: how long its epochs and its jobs took, its peak memory, and how it was made.

    Times are in seconds, memory_mb is in MB. train_s, measures_s and memory_mb are None without benchmarks.
    verified: whether its checkpoint shows, each time it is opened, that its network is still the one that was trained;
    differences: between the settings that it was trained with and those of the configuration, "" for none.
    """

    name: str
    epochs: int
    epochs_s: float
    train_s: float | None
    measures_s: float | None
    memory_mb: float | None
    settings_hash: str
    version: str
    torch: str
    device: str
    code: str
    verified: bool
    differences: str


@dataclass(frozen=True)
class SharedSettings:
    """Settings as text, under dotted keys such as "attack.steps".

    common: the settings that all runs share; differing: the keys of the others; by_run: the values of those keys, by
    the name of the run.
    """

    common: Mapping[str, str]
    differing: tuple[str, ...]
    by_run: Mapping[str, tuple[str, ...]]


def run_accounts(runs: Sequence[Run], settings: Mapping[str, Mapping[str, Any]]) -> list[RunAccount]:
    """Return times, memory and provenance of every run of a study. settings: resolved, by the name of the run."""
    return [_account(run, training_settings(settings[f"{run['dataset']}/{run['variant']}"])) for run in runs]


def rule_costs(study: str, runs: Sequence[Run], order: Sequence[str]) -> list[RuleCost]:
    """Add up the benchmarks of a study by rule: its own jobs, and the jobs of its runs and data sets.

    order: the rules, in the order in which they are returned. Rules without a benchmark are left out, so that no rule
    seems to cost nothing.
    """
    names = [f"{run['dataset']}/{run['variant']}.tsv" for run in runs]
    names += [f"{data}.tsv" for data in dict.fromkeys(run["dataset"] for run in runs)]
    names += [f"{study}.tsv", f"{study}/*.tsv"]
    spent: dict[str, list[dict[str, float]]] = {}
    for name in dict.fromkeys(names):
        for rule, job_costs in _benchmarks(name).items():
            spent.setdefault(rule, []).extend(job_costs)
    return [_cost(rule, spent[rule]) for rule in order if rule in spent]


def shared_settings(settings: Mapping[str, Mapping[str, Any]]) -> SharedSettings:
    """Separate the resolved settings of several runs, given by name, into common and differing ones."""
    leaves = {run: flatten({key: one[key] for key in one if key not in _IN_NAME}) for run, one in settings.items()}
    keys = list(dict.fromkeys(key for one in leaves.values() for key in one))
    keys = [
        key for key in keys if not any(other.startswith(f"{key}.") for other in keys)
    ]  # a key that holds a mapping in another run is listed only by its parts
    texts = {key: [_text(one.get(key)) for one in leaves.values()] for key in keys}
    differing = tuple(key for key in keys if len(set(texts[key])) > 1)
    return SharedSettings(
        common={key: texts[key][0] for key in keys if key not in differing},
        differing=differing,
        by_run={run: tuple(texts[key][index] for key in differing) for index, run in enumerate(leaves)},
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, of PACKAGES and of the platform, without importing the packages."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "platform": platform.platform(terse=True)}


def _account(run: Run, settings: Mapping[str, Any]) -> RunAccount:
    """Collect the account of one run. settings: those of its training in the configuration."""
    history = Path(run["folder"]) / "history.parquet"
    seconds = parquet.read(history, ["seconds"]).to_pandas()["seconds"]
    meta = parquet.read_metadata(history)
    jobs = {rule: spent[0] for rule, spent in _benchmarks(f"{run['dataset']}/{run['variant']}.tsv").items()}
    measures = [spent["s"] for rule, spent in jobs.items() if rule != "train"]
    return RunAccount(
        name=f"{run['dataset']}/{run['variant']}",
        epochs=len(seconds),
        epochs_s=float(seconds.sum()),
        train_s=jobs["train"]["s"] if "train" in jobs else None,
        measures_s=sum(measures) if measures else None,
        memory_mb=max((spent["max_rss"] for spent in jobs.values()), default=None),
        code=_code(meta.get("code_hash"), code_hash(settings["factory"])),
        verified="probe_images" in meta,
        differences=describe_differences(with_present_names(parquet.read_settings(history)), settings)
        if "settings" in meta
        else "",
        **{key: str(meta.get(key, "not recorded")) for key in ("settings_hash", "version", "torch", "device")},
    )


def _code(recorded: str | None, current: str) -> str:
    """Describe the code that trained a run, from the hash recorded then and the current one."""
    if recorded is None:
        return "not recorded"
    return "current code" if recorded == current else "older code"


def _cost(rule: str, jobs: Sequence[Mapping[str, float]]) -> RuleCost:
    """Add up the benchmarks of a rule's jobs."""
    return RuleCost(
        rule=rule,
        jobs=len(jobs),
        wall_s=sum(spent["s"] for spent in jobs),
        longest_s=max(spent["s"] for spent in jobs),
        cpu_s=sum(spent["cpu_time"] for spent in jobs),
        memory_mb=max(spent["max_rss"] for spent in jobs),
    )


def _benchmarks(name: str) -> dict[str, list[dict[str, float]]]:
    """Read the benchmarks with this file name or pattern, by rule: wall and CPU time in seconds, peak memory in MB.

    Snakemake cannot sample the CPU time and memory of very short jobs and writes NA; these values count as 0.
    """
    jobs: dict[str, list[dict[str, float]]] = {}
    for path in sorted(BENCHMARKS.glob(f"*/{name}")):
        with open_regular(path) as file:
            content = io.BytesIO(file.read(_LARGEST))
        row = (
            pd.read_csv(content, sep="\t", na_values="-")
            .reindex(columns=["s", "cpu_time", "max_rss"])
            .astype("float64")
        )
        values = row.max().fillna(0.0)
        jobs.setdefault(path.relative_to(BENCHMARKS).parts[0], []).append(
            {str(key): float(value) for key, value in values.items()}
        )
    return jobs


def _text(value: object) -> str:
    """Format the value of a setting."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)

"""What a study's runs cost, and what they were made with: settings, histories' metadata and Snakemake's benchmarks."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from robreg.runs.catalogue import Run
from robreg.runs.settings import flatten
from robreg.tables import parquet, provenance

BENCHMARKS = Path("benchmarks")  # Snakemake's own files, one per job; a run made elsewhere may lack them
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
_NAMED = ("dataset", "variant")  # what a run's name says


@dataclass(frozen=True)
class RuleCost:
    """All jobs of one rule that a study is made from: their number, seconds (wall, CPU), and peak memory (MB)."""

    rule: str
    jobs: int
    wall_s: float
    longest_s: float
    cpu_s: float
    memory_mb: float


@dataclass(frozen=True)
class RunAccount:
    """One run: seconds of its epochs and of its jobs (None: no benchmark), peak memory (MB), and how it was made."""

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


@dataclass(frozen=True)
class SharedSettings:
    """Settings as text. common: by dotted key; differing: keys; by_run: a run's values of them, by its name."""

    common: Mapping[str, str]
    differing: tuple[str, ...]
    by_run: Mapping[str, tuple[str, ...]]


def run_accounts(runs: Sequence[Run]) -> list[RunAccount]:
    """Account for every run of a study."""
    current = provenance.code_hash()
    return [_account(run, current) for run in runs]


def rule_costs(study: str, runs: Sequence[Run], order: Sequence[str]) -> list[RuleCost]:
    """Add up the benchmarks of a study's own jobs and of its runs' and data sets', by rule.

    order: of the rules; rules without a benchmark are left out, so that nothing is shown as free.
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
    """Compare resolved settings, given by run."""
    leaves = {run: flatten({key: one[key] for key in one if key not in _NAMED}) for run, one in settings.items()}
    keys = list(dict.fromkeys(key for one in leaves.values() for key in one))
    keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]  # none beside its parts
    texts = {key: [_text(one.get(key)) for one in leaves.values()] for key in keys}
    differing = tuple(key for key in keys if len(set(texts[key])) > 1)
    return SharedSettings(
        common={key: texts[key][0] for key in keys if key not in differing},
        differing=differing,
        by_run={run: tuple(texts[key][index] for key in differing) for index, run in enumerate(leaves)},
    )


def versions() -> dict[str, str]:
    """List what the report itself was made with; imports nothing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "platform": platform.platform(terse=True)}


def _account(run: Run, current: str) -> RunAccount:
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
        code=_code(meta.get("code_hash"), current),
        **{key: str(meta.get(key, "not recorded")) for key in ("settings_hash", "version", "torch", "device")},
    )


def _code(found: str | None, current: str) -> str:
    if found is None:
        return "not recorded"
    return "today's code" if found == current else "older code"


def _cost(rule: str, jobs: Sequence[Mapping[str, float]]) -> RuleCost:
    return RuleCost(
        rule=rule,
        jobs=len(jobs),
        wall_s=sum(spent["s"] for spent in jobs),
        longest_s=max(spent["s"] for spent in jobs),
        cpu_s=sum(spent["cpu_time"] for spent in jobs),
        memory_mb=max(spent["max_rss"] for spent in jobs),
    )


def _benchmarks(name: str) -> dict[str, list[dict[str, float]]]:
    """Read seconds (wall, CPU) and peak memory (MB) of every rule that left benchmarks of this name or pattern.

    A job too short to be sampled has no CPU time and no memory (NA): they count as 0.
    """
    jobs: dict[str, list[dict[str, float]]] = {}
    for path in sorted(BENCHMARKS.glob(f"*/{name}")):
        row = pd.read_csv(path, sep="\t", na_values="-").reindex(columns=["s", "cpu_time", "max_rss"]).astype("float64")
        values = row.max().fillna(0.0)
        jobs.setdefault(path.relative_to(BENCHMARKS).parts[0], []).append(
            {str(key): float(value) for key, value in values.items()}
        )
    return jobs


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)

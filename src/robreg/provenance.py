"""What a study's runs cost, and what they were made with: from their histories' metadata and Snakemake's benchmarks."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd

from robreg import job, table
from robreg.study import Run

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
)


@dataclass(frozen=True)
class Account:
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


def account(runs: Sequence[Run]) -> list[Account]:
    """Account for every run of a study."""
    current = job.code_hash()
    return [_account(run, current) for run in runs]


def versions() -> dict[str, str]:
    """List what the report itself was made with; imports nothing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "platform": platform.platform(terse=True)}


def _account(run: Run, current: str) -> Account:
    history = Path(run["folder"]) / "history.parquet"
    seconds = table.read(history, ["seconds"]).to_pandas()["seconds"]
    meta = table.metadata(history)
    jobs = _benchmarks(f"{run['dataset']}/{run['variant']}.tsv")
    measures = [spent["s"] for rule, spent in jobs.items() if rule != "train"]
    return Account(
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


def _benchmarks(name: str) -> dict[str, dict[str, float]]:
    """Read seconds and peak memory (MB) of every rule that left a benchmark of this name."""
    jobs = {}
    for path in sorted(BENCHMARKS.glob(f"*/{name}")):
        row = pd.read_csv(path, sep="\t", na_values="-")[["s", "max_rss"]].astype("float64").max()
        jobs[path.parents[len(Path(name).parts) - 1].name] = {str(key): float(value) for key, value in row.items()}
    return jobs

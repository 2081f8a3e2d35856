"""Describe what was run: the data sets, networks and settings of a study, and what follows from them."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robreg.paper.deviations import deviations
from robreg.report.cautions import cautions, describe_unmeasured, limits
from robreg.report.costs import shared_settings
from robreg.report.data_words import describe_data
from robreg.report.space_words import describe_conventions
from robreg.runs.catalogue import Run
from robreg.runs.needs import measures_of
from robreg.tables import parquet
from robreg.tables.study_tables import SETTING, failed_masking_checks

# The settings of measures that not every study makes, each with the rule that makes it.
_RULES = {"loss_variation": "lossvar", "spread": "spread", "theory": "theory"}


def count_seeds(runs: Sequence[Run]) -> list[int]:
    """Count the seeds of every setting and strength."""
    return pd.DataFrame(runs).groupby(SETTING, dropna=False).size().tolist()


def study_context(study: Mapping[str, Any], data: Sequence[Path], tables: Collection[str]) -> dict[str, Any]:
    """Describe what was run, and the cautions, limits and deviations that follow from it.

    study: as in page.write, with the key judged, whether it judges claims; data: meta.json of every prepared data set;
    tables: the names of the study's tables.
    """
    metas = {path.parent.name: read_meta(path) for path in data}
    counts = count_seeds(study["runs"])
    study = {**study, "settings": _settings_that_matter(study)}
    settings = [study["settings"][_run_name(run)] | {"paper": run["paper"]} for run in study["runs"]]
    return {
        "study": study,
        "datasets": [_dataset(study, name, meta) for name, meta in metas.items()],
        "assumed": describe_conventions(settings),
        "cautions": cautions([_outcome(run) for run in study["runs"]], _classes(metas)),
        "limits": [
            *limits(settings, study["titles"], counts=counts, tables=tables),
            *describe_unmeasured(_unmeasured(study["runs"])),
        ],
        "deviations": deviations(settings, tables),
    }


def _settings_that_matter(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of every run, by its name, without those of measures that no run of its data set gets."""
    measured: dict[str, set[str]] = {}
    for run in study["runs"]:
        rules = measures_of(run, study["runs"], study["shown"], judged=study["judged"])
        measured.setdefault(run["dataset"], set()).update(rules)
    return {
        name: {
            key: one[key] for key in one if _RULES.get(key) is None or _RULES[key] in measured.get(one["dataset"], ())
        }
        for name, one in study["settings"].items()
    }


def read_meta(path: Path) -> dict[str, Any]:
    """Read the description of prepared data. Raises ValueError, which names it, if it cannot be read."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again: snakemake -c1 --force {path}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path} does not describe data; make it again: snakemake -c1 --force {path}")
    return meta


def _classes(metas: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of classes of each data set."""
    return {name: meta["classes"] for name, meta in metas.items()}


def _unmeasured(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return the parts of networks that have no singular values, by architecture, each with the reason."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        own = parquet.read_metadata(Path(run["folder"]) / "svstd.parquet").get("unmeasured", {})
        found.setdefault(run["arch"], {}).update(own)
    return found


def _run_name(run: Mapping[str, Any]) -> str:
    return f"{run['dataset']}/{run['variant']}"


def _outcome(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run with its accuracies and the checks for hidden gradients that it failed, as `cautions` needs them."""
    (row,) = parquet.read(Path(run["folder"]) / "metrics.parquet", ["train_acc", "pgd_acc"]).to_pylist()
    return {**run, **row, "masked": failed_masking_checks(run)}


def _dataset(study: Mapping[str, Any], name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Describe one data set: what was run on it, and the settings of its runs."""
    own = {key: settings for key, settings in study["settings"].items() if settings["dataset"] == name}
    terms = describe_data(meta, list(own.values()))
    return {
        "name": name,
        "title": study["titles"][name],
        "terms": terms,
        "n_runs": len(own),
        "shared": shared_settings(own),
    }

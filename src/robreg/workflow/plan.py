"""Say in one short line why a job is planned, and which networks need not be trained again.

Only robreg.workflow.driver imports this module.
"""

import ast
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.persistence import ParamsChange

from robreg.runs.settings import describe_differences
from robreg.tables.files import open_regular
from robreg.training import kept

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

_MAX_META = 2**24  # bytes of a description of data; the names of thousands of classes have fewer


def describe_params(change: ParamsChange) -> str:
    """Describe which settings of a job have changed; Snakemake itself prints all settings, before and now."""
    old, new = _parse(change.only_old), _parse(change.only_new)
    parts = []
    for now in new:
        before = max(old, key=lambda one: len(set(one) & set(now)), default={})
        if before:
            old.remove(before)
        parts.append(describe_differences(before, now))
    return "; ".join([*parts, *(describe_differences(before, {}) for before in old)])


def _parse(params: Iterable[str]) -> list[dict[str, Any]]:
    """Parse the reprs of parameters; one that is not a mapping gets the key "value"."""
    values: list[Any] = []
    for text in sorted(params):
        value: Any = text
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
        values.append(value if isinstance(value, dict) else {"value": value})
    return values


def mark_forced(workflow: "Workflow") -> None:
    """Leave a mark for the trainings that the user forces, so that they really train, and remove those of others."""
    for job in _trainings(workflow):
        if (folder := _kept_folder(job)) is None:
            continue
        mark = kept.wants_training(folder)
        try:
            kept.refuse_link(mark.parent)
            mark.unlink(missing_ok=True)
            if workflow.dag.reason(job).forced:
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch(exist_ok=False)  # a link that stands there would be followed
        except OSError as error:  # whoever sent the results can have put anything there
            why = os.strerror(error.errno) if error.errno else error
            raise WorkflowError(f"{mark.parent} is not a folder of kept networks ({why}); remove it") from error


def planned_trainings(workflow: "Workflow") -> list[str]:
    """Name the runs whose training is planned."""
    return [f"{job.wildcards.dataset}/{job.wildcards.variant}" for job in _trainings(workflow)]


def describe_trainings(workflow: "Workflow") -> list[str]:
    """Describe the planned trainings whose settings have changed, or for which a network is kept, each in one line."""
    lines = []
    for job in _trainings(workflow):
        reason, folder = workflow.dag.reason(job), _kept_folder(job)
        again = folder is not None and folder.exists() and not reason.forced
        parts = [str(reason.params_changed)] if reason.params_changed else []
        parts += ["its kept network is used again, and nothing is trained"] if again else []
        if parts:
            lines.append(f"{job.wildcards.dataset}/{job.wildcards.variant}: {'; '.join(parts)}")
    return lines


def _trainings(workflow: "Workflow") -> list[Job]:
    return [job for job in workflow.dag.needrun_jobs() if job.rule.name == "train"]


def _kept_folder(job: Job) -> Path | None:
    """Return where the network of a training would be kept, or None if nothing is kept or the data are not prepared."""
    run = Path(job.output[0]).parent
    if not (run / "kept").exists() and not Path(job.output[0]).exists():
        return None
    try:
        with open_regular(Path(job.input.data)) as file:
            sha256 = json.loads(file.read(_MAX_META))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # the training itself reports unusable data
    return kept.kept_folder(run, job.params.settings, sha256) if isinstance(sha256, str) else None

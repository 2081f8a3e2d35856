"""Say at the end of a run which studies are finished and where their reports are.

Only robreg.workflow.driver imports this module.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from robreg.runs.config import chosen_runs
from robreg.training.kept import is_trained

if TYPE_CHECKING:
    from snakemake.workflow import Workflow


def describe_finished(workflow: "Workflow") -> Iterator[str]:
    """Yield three lines for each study that was asked for by its name and has its report."""
    config, asked = workflow.globals["config"], workflow.dag_settings
    if asked.until or asked.omit_from:
        return
    for study in dict.fromkeys("paper" if target == "all" else target for target in asked.targets or ["all"]):
        report = Path("results/studies", study, "report.html")
        if study in config.get("studies", ()) and report.exists():
            runs = chosen_runs(config, study, is_trained)
            folders = dict.fromkeys(f"results/{run['dataset']}" for run in runs)
            networks = f"{len(runs)} network{'s are' if len(runs) > 1 else ' is'}"
            yield f"The study {study} is finished: {networks} trained and measured."
            yield f"Report: {report} (open it in a browser)"
            tables = f"{report.parent}/tables, and " if config["studies"][study]["tables"] else ""
            yield f"Numbers: {tables}of each network, {', '.join(folders)}"


def hide_targets(logger: logging.Logger, studies: frozenset[str]) -> None:
    """Leave out of the terminal, but not of Snakemake's log file, the jobs of targets, which make no file."""
    hidden = set[int]()

    def is_shown(record: logging.LogRecord) -> bool:
        event, extra = str(getattr(getattr(record, "event", None), "value", "")), vars(record)
        if event == "job_info" and extra["rule_name"] in studies and not extra["output"]:
            hidden.add(extra["jobid"])
        return not (event in ("job_info", "job_finished") and extra.get("jobid", extra.get("job_id")) in hidden)

    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_shown)

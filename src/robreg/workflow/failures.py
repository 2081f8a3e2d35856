"""Report why jobs failed, in one sentence each, as the last lines that the driver prints."""

import atexit
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robreg.training.lease import MAX_STALLED_ATTEMPTS, stalled_attempts

_STATES = {  # of SLURM
    "TIMEOUT": "the time limit was reached; raise runtime in slurm/profile.yaml",
    "OUT_OF_MEMORY": "the job needed more memory than it requested; raise mem_mb in slurm/profile.yaml",
    "CANCELLED": "the job was cancelled",
    "PREEMPTED": "the job was preempted",
    "NODE_FAIL": "the node failed",
    "BOOT_FAIL": "the node did not start",
    "DEADLINE": "the job's deadline passed",
}
_ERROR = re.compile(r"^\d{4}-\S+ \S+ ERROR (.+)", re.MULTILINE)  # in the log of a job, written by workflow.job
_OOM = re.compile(r"oom-kill event|Exceeded job memory limit")  # in SLURM's log
_STDERR = re.compile(r"^(?:slurmstepd: error|srun: error|sbatch: error|Error): (.+)", re.MULTILINE)  # in SLURM's log


@dataclass
class Failure:
    """A failed job: its rule, the run that it belongs to, why it failed, and its log files."""

    rule: str
    run: str
    reason: str
    logs: list[str]


class Failures(logging.Handler):
    """Follow Snakemake's log and, when the process ends, print the jobs that failed and did not succeed later."""

    def __init__(self) -> None:
        """Register the report for the end of the process."""
        super().__init__()
        self.failed: dict[tuple[int, ...], Failure] = {}
        self.started: dict[int, float] = {}
        atexit.register(self.print)

    def emit(self, record: logging.LogRecord) -> None:
        """Record that a job started, failed or succeeded; an error here does not stop the workflow."""
        try:
            self._handle_event(record)
        except Exception:  # handled as in the handlers of logging
            self.handleError(record)

    def _handle_event(self, record: logging.LogRecord) -> None:
        event = str(getattr(getattr(record, "event", None), "value", ""))
        extra: dict[str, Any] = vars(record)
        if event == "job_error" and not extra["indent"]:  # an indented one is part of a group, which has been recorded
            self._record([extra])
        elif event == "group_error":
            message = {"rule_msg": extra.get("group_msg")}
            jobs = [{**job, **message, "log": [*job["log"], *extra["aux_logs"]]} for job in extra["job_error_info"]]
            self._record(jobs)
        elif event == "job_info":
            self.started[extra["jobid"]] = record.created
        elif event == "job_finished":
            self.failed = {jobs: failure for jobs, failure in self.failed.items() if extra["job_id"] not in jobs}

    def _record(self, jobs: list[dict[str, Any]]) -> None:
        """Record a failed job; of a failed group, the one that logged an error, or else the last to write a log."""
        written = {job["jobid"]: _last_write(job["log"], self.started.get(job["jobid"], 0)) for job in jobs}
        erred = {number for job in jobs if written[number := job["jobid"]] and _ERROR.search(_read(job["log"][0]))}
        job = max(jobs, key=lambda job: (job["jobid"] in erred, written[job["jobid"]]))
        began = len(jobs) == 1 or written[job["jobid"]] > 0
        self.failed[tuple(job["jobid"] for job in jobs)] = Failure(
            rule=job["rule_name"] if began else "measures",
            run=_run(job["output"]),
            reason=_reason(job, own_log=written[job["jobid"]] > 0),
            logs=[str(log) for log in job["log"]],
        )

    def print(self) -> None:
        """Print the jobs that failed and did not succeed in a later attempt."""
        if not self.failed:
            return
        lines = [f"\n{len(self.failed)} job(s) failed:"]
        for failure in self.failed.values():
            lines += [f"{failure.rule} {failure.run}: {failure.reason}", *(f"  log: {log}" for log in failure.logs)]
        print("\n".join(lines), file=sys.stderr)


def _last_write(logs: list[str], since: float) -> float:
    """Return when a job last wrote to its own log, the first of logs; 0 if it has not written since it started."""
    path = Path(logs[0]) if logs else None
    time = path.stat().st_mtime if path is not None and path.exists() else 0.0
    return time if time >= since - 1 else 0.0  # file systems round times


def _read(path: str) -> str:
    """Return a log file's text; an unreadable file counts as empty."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _run(output: list[str]) -> str:
    """Return the name of the run, data set or study that a job's first output belongs to."""
    folder = str(Path(output[0]).parent) if output else ""
    return folder.removeprefix("results/").removeprefix("data/prepared/")


def _reason(job: dict[str, Any], *, own_log: bool) -> str:
    """Return why a job failed, from SLURM's message and state and from its logs.

    own_log: whether the job wrote to its own log, the first of its logs, since it started.
    """
    message = str(job["rule_msg"] or "")
    refused = re.search(r"The error message was '(?:sbatch: error: )?(.*?)'\.$", message, re.DOTALL | re.MULTILINE)
    if refused:
        return f"sbatch refused it: {' '.join(refused[1].split())}"
    if "submission" in message:
        return message.partition("For further error details")[0]
    texts = [_read(log) for log in job["log"][0 if own_log else 1 :]]
    status = re.search(r"SLURM status is: '(\w+)'", message)
    state = "OUT_OF_MEMORY" if any(_OOM.search(text) for text in texts) else status[1] if status else None
    errors = [found[-1] for text in texts if (found := _ERROR.findall(text))] or [
        found[-1] for text in texts if (found := _STDERR.findall(text))
    ]
    parts = [*([_STATES[state]] if state in _STATES else []), *errors[:1]]
    if not parts:
        parts = ["it ended without an error message" + (f" (SLURM: {state})" if state else "")]
    if (
        job["rule_name"] == "train"
        and stalled_attempts(Path(job["output"][0]).with_name("lease.json")) >= MAX_STALLED_ATTEMPTS
    ):
        parts.append("no epoch was finished in two attempts, so it is not tried again")
    return "; ".join(part.rstrip(".") for part in parts)

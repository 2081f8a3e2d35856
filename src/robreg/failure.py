"""Why jobs failed, in one sentence each, as the last thing that the driver prints."""

import atexit
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robreg.cluster import end_of
from robreg.lease import STALLED, stalls

_ENDS = {
    "TIMEOUT": "the time limit was reached; ask for a longer runtime if it is not to be tried again",
    "OUT_OF_MEMORY": "more memory was needed than was asked for; raise mem_mb",
    "CANCELLED": "the job was cancelled",
    "PREEMPTED": "the job was preempted",
    "NODE_FAIL": "the node failed",
    "BOOT_FAIL": "the node did not start",
    "DEADLINE": "the job's deadline passed",
}
_ERROR = re.compile(r"^\d{4}-\S+ \S+ ERROR (.+)", re.MULTILINE)
_STDERR = re.compile(r"^(?:slurmstepd: error|srun: error|sbatch: error|Error): (.+)", re.MULTILINE)


@dataclass
class Failure:
    """A job that failed: rule, its run, why, and where more is to be read."""

    rule: str
    run: str
    reason: str
    logs: list[str]


class Failures(logging.Handler):
    """Listens to Snakemake's log; prints, at the end of the process, the jobs that failed and did not succeed later."""

    def __init__(self) -> None:
        """Ask to be called when the process ends."""
        super().__init__()
        self.failed: dict[tuple[int, ...], Failure] = {}
        atexit.register(self.print)

    def emit(self, record: logging.LogRecord) -> None:
        """Note a failed job, or that it succeeded after all."""
        event = str(getattr(getattr(record, "event", None), "value", ""))
        extra: dict[str, Any] = vars(record)
        if event == "job_error" and not extra["indent"]:  # indented: a group's, already noted
            self._note([extra], extra["aux"])
        elif event == "group_error":
            said = {"rule_msg": extra.get("group_msg")}
            jobs = [{**job, **said, "log": [*job["log"], *extra["aux_logs"]]} for job in extra["job_error_info"]]
            self._note(jobs, extra)
        elif event == "job_finished":
            self.failed = {jobs: failure for jobs, failure in self.failed.items() if extra["job_id"] not in jobs}

    def _note(self, jobs: list[dict[str, Any]], aux: dict[str, Any]) -> None:
        """Note a failed job or group; of a group, the job that wrote last is the one that it ended in."""
        number = aux.get("external_jobid")
        job = max(jobs, key=lambda job: _age(job["log"]))
        self.failed[tuple(job["jobid"] for job in jobs)] = Failure(
            rule=job["rule_name"],
            run=_run(job["output"]),
            reason=_reason(job, None if number is None else end_of(str(number))),
            logs=[str(log) for log in job["log"]],
        )

    def print(self) -> None:
        """Print what failed for good."""
        if not self.failed:
            return
        lines = [f"\n{len(self.failed)} job(s) failed:"]
        for failure in self.failed.values():
            lines += [f"{failure.rule} {failure.run}: {failure.reason}", *(f"  log: {log}" for log in failure.logs)]
        print("\n".join(lines), file=sys.stderr)


def _age(logs: list[str]) -> float:
    """Return when a job last wrote to its own log, the first; 0 if it never did."""
    path = Path(logs[0]) if logs else None
    return path.stat().st_mtime if path is not None and path.exists() else 0.0


def _run(output: list[str]) -> str:
    """Return the run, data set or study that a job's first output belongs to."""
    folder = str(Path(output[0]).parent) if output else ""
    return folder.removeprefix("results/").removeprefix("data/prepared/")


def _reason(job: dict[str, Any], end: str | None) -> str:
    """Say why a job failed: what its log says, what SLURM says, or where nothing does."""
    texts = [Path(log).read_text(errors="replace") for log in job["log"] if Path(log).exists()]
    said = [found[-1] for text in texts if (found := _ERROR.findall(text))] or [
        found[-1] for text in texts if (found := _STDERR.findall(text))
    ]
    message = str(job["rule_msg"] or "")
    refused = re.search(r"The error message was '(.*?)'\.$", message, re.DOTALL | re.MULTILINE)
    parts = [_ENDS[end]] if end in _ENDS else []
    if refused:
        parts.append(f"sbatch refused it: {' '.join(refused[1].split())}")
    elif "submission" in message:
        parts.append(message.partition("For further error details")[0])
    parts += said[:1]
    if not parts:
        parts.append("it ended without a word" + (f" (SLURM: {end})" if end else ""))
    if job["rule_name"] == "train" and stalls(Path(job["output"][0]).with_name("lease.json")) >= STALLED:
        parts.append("no epoch was finished in two attempts, so it is not tried again")
    return "; ".join(part.rstrip(".") for part in parts)

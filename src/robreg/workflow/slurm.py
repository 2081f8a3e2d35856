"""What the driver of a SLURM run must know: the jobs that an earlier driver left behind."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class ClusterError(RuntimeError):
    """SLURM does not answer."""


class Job(NamedTuple):
    """A job in SLURM's queue; comment: what Snakemake says that it does, "rule_train_wildcards_c10_ar16"."""

    id: str
    state: str
    comment: str


def live(prefix: str, folder: Path) -> list[Job]:
    """Return this user's jobs that were submitted from folder, with names that begin with prefix, and have not ended.

    Raises ClusterError if squeue fails, or without a prefix.
    """
    if not prefix:
        raise ClusterError("slurm/profile.yaml: slurm-jobname-prefix: name one, or jobs are not found again")
    asked = _run("squeue", "--noheader", f"--user={os.geteuid()}", "--format=%i|%T|%j|%Z|%k")
    found = [line.split("|", 4) for line in asked.splitlines() if line.count("|") >= 4]
    return [
        Job(number, state, comment)
        for number, state, name, submitted_from, comment in found
        if name.startswith(f"{prefix}_") and os.path.realpath(submitted_from) == os.path.realpath(folder)
    ]


def wait(prefix: str, folder: Path, *, seconds: float, say: Callable[[str], object]) -> None:
    """Return when no job of an earlier driver is left, and tell the user what is waited for and how to cancel it.

    Raises ClusterError if SLURM does not answer at first; later failures are waited out.
    """
    jobs = live(prefix, folder)
    if not jobs:
        return
    lines = [f"  {job.id} {job.state} {job.comment.replace('_wildcards_', ' ')}" for job in jobs]
    cancel = shlex.join(["scancel", *(job.id for job in jobs)])
    say(
        f"{len(jobs)} job(s) of another Snakemake, killed or running, are still in SLURM's queue:\n"
        + "\n".join(lines)
        + f"\nWaiting for them, for nothing they do is lost. To cancel them instead, in another shell: {cancel}"
    )
    while jobs:
        time.sleep(seconds)
        try:
            jobs = live(prefix, folder)
        except ClusterError as error:
            say(f"{error}; asking again in {seconds:g} s")
    say("The other Snakemake's jobs have ended; going on.")


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        raise ClusterError(f"{command[0]} failed: {text.strip()}") from error

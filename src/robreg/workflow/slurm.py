"""SLURM's queue: find the jobs that an earlier driver left behind, and wait for them."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Names, folders and comments may hold any text, even lines, but hardly these characters, which exist to separate
# records and fields.
_RECORD, _FIELD = "\x1e", "\x1f"
_COLUMNS = ("%i", "%T", "%j", "%Z", "%k")


class ClusterError(RuntimeError):
    """SLURM did not answer, or its jobs cannot be identified."""


class Job(NamedTuple):
    """A job in SLURM's queue; comment: Snakemake's description of it, such as "rule_train_wildcards_c10_ar16"."""

    id: str
    state: str
    comment: str


def unfinished_jobs(prefix: str, folder: Path) -> list[Job]:
    """Return this user's unfinished jobs that were submitted from folder under a name that starts with prefix.

    Raises ClusterError if squeue fails or the prefix is empty.
    """
    if not prefix:
        raise ClusterError("slurm/profile.yaml: slurm-jobname-prefix: set a prefix, or jobs cannot be found again")
    output = _run("squeue", "--noheader", f"--user={os.geteuid()}", f"--format={_RECORD}{_FIELD.join(_COLUMNS)}")
    records = [record.removesuffix("\n").split(_FIELD, len(_COLUMNS) - 1) for record in output.split(_RECORD)[1:]]
    return [
        Job(number, state, "".join(sign if sign.isprintable() else "?" for sign in comment))
        for number, state, name, submitted_from, comment in (one for one in records if len(one) == len(_COLUMNS))
        if name.startswith(f"{prefix}_") and os.path.realpath(submitted_from) == os.path.realpath(folder)
    ]


def wait_for_jobs(prefix: str, folder: Path, *, seconds: float, say: Callable[[str], object]) -> None:
    """Wait until no job of an earlier driver is left; tell the user which jobs these are and how to cancel them.

    seconds: the time between two looks at the queue; say: prints a message.
    Raises ClusterError if SLURM does not answer the first time; later, it is asked again.
    """
    jobs = unfinished_jobs(prefix, folder)
    if not jobs:
        return
    lines = [f"  {job.id} {job.state} {job.comment.replace('_wildcards_', ' ')}" for job in jobs]
    cancel = shlex.join(["scancel", *(job.id for job in jobs)])
    say(
        f"{len(jobs)} job(s) of another Snakemake, killed or running, are still in SLURM's queue:\n"
        + "\n".join(lines)
        + "\nWaiting for them, because none of their work is lost. "
        + f"To cancel them instead, run in another shell: {cancel}"
    )
    while jobs:
        time.sleep(seconds)
        try:
            jobs = unfinished_jobs(prefix, folder)
        except ClusterError as error:
            say(f"{error}; asking again in {seconds:g} s")
    say("The other Snakemake's jobs have ended; continuing.")


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        raise ClusterError(f"{command[0]} failed: {text.strip()}") from error

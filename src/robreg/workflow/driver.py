"""What the workflow needs and Snakemake does not do.

Every change of Snakemake's behaviour is here and in robreg.workflow.fork_server.

Only the Snakefile imports it: the rest of the package runs without Snakemake.
"""

import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from snakemake.exceptions import LockException, WorkflowError
from snakemake.jobs import GroupJob, Job
from snakemake.logging import logger
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.settings.types import RerunTrigger
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
from snakemake_interface_executor_plugins.registry.plugin import Plugin
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

from robreg.training.lease import STALLED, holder_token, stalled_attempts
from robreg.workflow import fork_server, slurm
from robreg.workflow.failures import Failures

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

Check = Callable[[Any, list[SubmittedJobInfo]], AsyncIterator[SubmittedJobInfo]]

_attempts: dict[Path, dict[int, str | None]] = {}  # who held a run's lease when an attempt failed


def install(workflow: "Workflow") -> None:
    """Change what this Snakemake process does; called once, when the Snakefile is read."""
    # The settings are not there yet, and a default profile would override the cluster's: so it is a property.
    type(workflow).rerun_triggers = property(_rerun_triggers)
    Job.restart_times = property(_restart_times)
    GroupJob.log_error = _with_message(GroupJob.log_error)
    workflow.execute = _execute(workflow, workflow.execute)
    fork_server.install(workflow)
    if workflow.remote_exec:  # in a job on a cluster
        JobScheduler.exit_gracefully = _pass_sigterm_on(JobScheduler.exit_gracefully)


def _rerun_triggers(workflow: "Workflow") -> frozenset[RerunTrigger]:
    """Snakemake's triggers but "code" and "software-env": a comment in a script must not retrain a network.

    Modules that decide a measure's numbers are inputs of its rule instead. A choice on the command line stays.
    """
    chosen = workflow.dag_settings.rerun_triggers
    data_only = frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS, RerunTrigger.INPUT})
    return data_only if chosen == RerunTrigger.all() else chosen


def _restart_times(job: Job) -> int:
    """As many restarts as --retries allows while a training gets on; one for all else, which would only fail again.

    An attempt that did not come as far as to take the lease did not get on either.
    """
    allowed = int(job.rule.restart_times)
    if job.rule.name == "train":
        file = Path(job.output[0]).with_name("lease.json")
        taken = _attempts.setdefault(file, {})
        taken[job.attempt] = holder_token(file)
        last = [attempt for attempt in sorted(taken) if taken[attempt] == taken[job.attempt]]
        idle = len(last) - (taken[job.attempt] is not None)
        if stalled_attempts(file) + idle < STALLED:
            return allowed
    return min(allowed, 1)


def _with_message(log_error: Callable[..., None]) -> Callable[..., None]:
    """Snakemake's log_error of a group, which would lose what the executor said, such as sbatch's refusal."""

    def wrapper(group: GroupJob, msg: str | None = None, **others: object) -> None:
        log_error(group, msg=msg, group_msg=msg, **others)

    return wrapper


def _pass_sigterm_on(wind_down: Callable[..., None]) -> Callable[..., None]:
    """The scheduler's answer to SIGTERM, and the signal for its scripts: SLURM sends it to Snakemake alone."""

    def wrapper(scheduler: JobScheduler, *arguments: object) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGTERM)
        wind_down(scheduler, *arguments)

    return wrapper


def _execute(workflow: "Workflow", execute: Callable[..., None]) -> Callable[..., None]:
    """Snakemake's execute, with what comes before it on a cluster, and a last word about failed and locked-out runs."""

    def wrapper(executor_plugin: Plugin, executor_settings: ExecutorSettingsBase | None, **others: object) -> None:
        name = executor_plugin.name
        if workflow.is_main_process and not executor_plugin.common_settings.dryrun_exec:
            logger.addHandler(Failures())
        if name == "slurm":
            executor = executor_plugin.executor
            executor.check_active_jobs = _forget_no_job(executor.check_active_jobs)
            _wait_for_earlier_jobs(workflow, executor_settings)
        if name == "slurm-jobstep" and workflow.group_settings.local_groupid != "local":
            executor_plugin, executor_settings = _in_one_process(workflow), None
        try:
            execute(executor_plugin=executor_plugin, executor_settings=executor_settings, **others)
        except LockException:
            again = shlex.join(["snakemake", *sys.argv[1:]])
            raise WorkflowError(
                "Another Snakemake works on these files, or was killed while it did. If none runs any more, on no "
                f"machine, this takes its lock away and goes on:\n  snakemake --unlock && {again}"
            ) from None

    return wrapper


def _forget_no_job(check: Check) -> Check:
    """The plugin's look at its jobs, which loses them all where SLURM does not answer for a while."""

    async def wrapper(executor: Any, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:  # noqa: ANN401
        seen: list[SubmittedJobInfo] = []
        for name in ("report_job_success", "report_job_error"):
            setattr(executor, name, _noting(getattr(type(executor), name), executor, seen))
        async for job in check(executor, active_jobs):
            seen.append(job)
            yield job
        lost = [job for job in active_jobs if job not in seen]
        if lost:
            logger.warning(f"SLURM does not say how {len(lost)} job(s) are; asking again")
        for job in lost:
            yield job

    return wrapper


def _noting(report: Callable[..., None], executor: object, seen: list[SubmittedJobInfo]) -> Callable[..., None]:
    def wrapper(job: SubmittedJobInfo, *arguments: object, **others: object) -> None:
        seen.append(job)
        report(executor, job, *arguments, **others)

    return wrapper


def _wait_for_earlier_jobs(workflow: "Workflow", settings: ExecutorSettingsBase) -> None:
    """Wait for the jobs of a driver that died: they write files that this one would otherwise plan to make again.

    With a lock in .snakemake another driver lives, or died: Snakemake itself decides whether the two get along.
    """
    if any(Path(".snakemake/locks").glob("*")):
        return
    try:
        slurm.wait(
            settings.jobname_prefix,
            Path(workflow.workdir_init),
            seconds=settings.init_seconds_before_status_checks,
            say=logger.warning,
        )
    except slurm.ClusterError as error:
        raise WorkflowError(str(error)) from None


def _in_one_process(workflow: "Workflow") -> Plugin:
    """Return the executor for a group's job: a run's measures, one at a time on its CPUs and its one GPU.

    The plugin's own executor starts Snakemake once more, and asks that step for the sum of the group's GPUs.
    """
    workflow.global_resources["turn"] = 1  # what every measure takes
    workflow.execution_settings.keep_going = True  # one that fails does not stop the others
    return ExecutorPluginRegistry().get_plugin("local")

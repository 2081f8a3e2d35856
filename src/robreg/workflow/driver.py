"""Changes of Snakemake's behaviour that the workflow needs; the others are in robreg.workflow.fork_server.

Only the Snakefile's rules import this module: the rest of the package runs without Snakemake.
"""

import atexit
import io
import shlex
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from snakemake import benchmark, exceptions
from snakemake.jobs import GroupJob, Job
from snakemake.logging import logger
from snakemake.persistence import ParamsChange
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.settings.types import RerunTrigger
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
from snakemake_interface_executor_plugins.registry.plugin import Plugin
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

from robreg.runs.settings import ConfigError
from robreg.tables.files import atomic_write
from robreg.training import kept
from robreg.training.lease import MAX_STALLED_ATTEMPTS, holder_token, stalled_attempts
from robreg.workflow import architectures, ending, fork_server, plan, slurm, targets
from robreg.workflow.failures import Failures

if TYPE_CHECKING:
    from snakemake.dag import DAG
    from snakemake.workflow import Workflow

Check = Callable[[Any, list[SubmittedJobInfo]], AsyncIterator[SubmittedJobInfo]]

_attempts: dict[Path, dict[int, str | None]] = {}  # by lease file and attempt: the lease's token when it had failed


class LockedError(RuntimeError):
    """Raised when another Snakemake works in this folder, or was killed while it did."""


class NotKeptError(RuntimeError):
    """Raised when a finished network cannot be kept, and would be lost."""


OWN_ERRORS = (ConfigError, slurm.ClusterError, LockedError, NotKeptError)  # each message is a sentence for the user


def install(workflow: "Workflow") -> None:
    """Change the behaviour of this Snakemake process; called once, before anything else in the Snakefile can fail."""
    exceptions.format_exception_to_string = _only_own_sentence(exceptions.format_exception_to_string)
    # A property, because the settings do not exist yet; a default profile instead would override the cluster's.
    type(workflow).rerun_triggers = property(_rerun_triggers)
    from snakemake.dag import DAG  # noqa: PLC0415 - it and snakemake.workflow import each other, which comes first

    DAG.update_needrun = _train_for_own_reasons(DAG.update_needrun)
    Job.restart_times = property(_restart_times)
    Job.prepare = _keep_network(Job.prepare)
    benchmark.write_benchmark_records = _write_benchmark
    ParamsChange.__str__ = plan.describe_params
    GroupJob.log_error = _keep_message(GroupJob.log_error)
    if workflow.is_main_process:
        JobScheduler.__init__ = _explain_trainings(JobScheduler.__init__)
    workflow.execute = _execute(workflow, workflow.execute)
    workflow._build_dag = _checked(workflow, workflow._build_dag)
    fork_server.install(workflow)
    if workflow.remote_exec:  # this process runs in a job on a cluster
        JobScheduler.exit_gracefully = _forward_sigterm(JobScheduler.exit_gracefully)


def _only_own_sentence(format_error: Callable[..., str]) -> Callable[..., str]:
    """Wrap Snakemake's way to format an error: of OWN_ERRORS, which it wraps in its own, only the sentence is left."""

    def wrapper(error: BaseException, linemaps: object = None) -> str:
        found: BaseException | None = error
        while found is not None and not isinstance(found, OWN_ERRORS):
            found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
        return format_error(error, linemaps) if found is None else str(found)

    return wrapper


def _checked(workflow: "Workflow", build_dag: Callable[[], None]) -> Callable[[], None]:
    """Wrap the planning of jobs, to find wrong targets before it and architectures that cannot be built after it."""

    def wrapper() -> None:
        if workflow.is_main_process:
            targets.refuse_unknown(workflow)
        build_dag()
        if workflow.is_main_process:
            architectures.refuse_missing(workflow)

    return wrapper


def _rerun_triggers(workflow: "Workflow") -> frozenset[RerunTrigger]:
    """Return Snakemake's triggers except "code" and "software-env": a comment in a script must not retrain a network.

    Instead, the modules that decide a measure's numbers are inputs of its rule. A choice on the command line is kept.
    """
    chosen = workflow.dag_settings.rerun_triggers
    data_only = frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS, RerunTrigger.INPUT})
    return data_only if chosen == RerunTrigger.all() else chosen


def _train_for_own_reasons(update_needrun: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Wrap the decision which jobs are needed: a training is if its network is missing or its settings have changed.

    To Snakemake, ancient input that is absent is new, so that results which were copied without their prepared data
    would be trained again; and it would not look at the settings of a training whose data must be prepared. Measures
    refuse a network that was trained on other bytes than those that are prepared then.
    """

    async def wrapper(dag: "DAG", *arguments: object, **others: object) -> None:
        full = dag.depending
        without = {
            job: {one: files for one, files in found.items() if one.rule.name != "train"} for job, found in full.items()
        }
        dag.depending = defaultdict(full.default_factory, without)
        try:
            await update_needrun(dag, *arguments, **others)
        finally:
            dag.depending = full

    return wrapper


def _restart_times(job: Job) -> int:
    """Return how often a job may be restarted: as --retries allows if it is a training that makes progress, else once.

    Without progress, further attempts would only fail again. An attempt that did not take the lease made no progress.
    """
    allowed = int(job.rule.restart_times)
    if job.rule.name == "train":
        lease = Path(job.output[0]).with_name("lease.json")
        tokens = _attempts.setdefault(lease, {})
        tokens[job.attempt] = token = holder_token(lease)
        # An attempt that did not take the lease finds the token of the last one that did.
        without_lease = list(tokens.values()).count(token) - (token is not None)
        if stalled_attempts(lease) + without_lease < MAX_STALLED_ATTEMPTS:
            return allowed
    return min(allowed, 1)


def _keep_network(prepare: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Wrap a job's prepare, which deletes its outputs, to keep a finished network before another one is trained."""

    async def wrapper(job: Job) -> None:
        if job.rule.name == "train":
            _keep(Path(job.output[0]).parent)
        await prepare(job)

    return wrapper


def _keep(run: Path) -> None:
    try:
        kept.keep(run)
    except OSError as error:
        raise NotKeptError(str(error)) from error


def _write_benchmark(records: list[benchmark.BenchmarkRecord], path: str, extended: bool) -> None:
    """Write a benchmark file with Snakemake's content; Snakemake would write through a link that stands there."""
    text = io.StringIO()
    benchmark.print_benchmark_tsv(records, text, extended)
    with atomic_write(Path(path)) as file:
        file.write(text.getvalue().encode())


def _explain_trainings(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap the start of the scheduler, at which all jobs are planned and none has started."""

    def wrapper(scheduler: JobScheduler, workflow: "Workflow", *arguments: object) -> None:
        if workflow.globals["config"].get("only_finished") and (names := plan.planned_trainings(workflow)):
            raise ConfigError(
                f"only_finished is for networks that are trained, but {', '.join(names)} would be trained, because a "
                "file that is asked for needs it; leave this key out to train"
            )
        lines = plan.describe_trainings(workflow)
        if lines and workflow.dryrun:
            atexit.register(print, "\n".join(["Networks that were trained before:", *lines]))  # below all planned jobs
        elif lines:
            logger.info("\n".join(["Networks that were trained before:", *lines]))
        if not workflow.dryrun and not workflow.touch:
            plan.mark_forced(workflow)
        init(scheduler, workflow, *arguments)

    return wrapper


def _keep_message(log_error: Callable[..., None]) -> Callable[..., None]:
    """Wrap a group's log_error, which would lose the executor's message, such as sbatch's refusal."""

    def wrapper(group: GroupJob, msg: str | None = None, **others: object) -> None:
        log_error(group, msg=msg, group_msg=msg, **others)

    return wrapper


def _forward_sigterm(exit_gracefully: Callable[..., None]) -> Callable[..., None]:
    """Wrap the scheduler's reaction to SIGTERM to forward it to the scripts, as SLURM only signals Snakemake."""

    def wrapper(scheduler: JobScheduler, *arguments: object) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGTERM)
        exit_gracefully(scheduler, *arguments)

    return wrapper


def _execute(workflow: "Workflow", execute: Callable[..., None]) -> Callable[..., None]:
    """Wrap Snakemake's execute to prepare runs on a cluster, report failed jobs, and explain how to remove a lock."""

    def wrapper(executor_plugin: Plugin, executor_settings: ExecutorSettingsBase | None, **others: object) -> None:
        name = executor_plugin.name
        really = workflow.is_main_process and not executor_plugin.common_settings.dryrun_exec
        if really:
            logger.addHandler(Failures())
            ending.hide_targets(logger, frozenset(["all", *workflow.globals["config"].get("studies", ())]))
        if name == "slurm":
            executor = executor_plugin.executor
            executor.check_active_jobs = _keep_unreported_jobs(executor.check_active_jobs)
            _wait_for_earlier_jobs(workflow, executor_settings)
        if name == "slurm-jobstep" and workflow.group_settings.local_groupid != "local":
            executor_plugin, executor_settings = _in_one_process(workflow), None
        try:
            execute(executor_plugin=executor_plugin, executor_settings=executor_settings, **others)
        except exceptions.LockException:
            again = shlex.join(["snakemake", *sys.argv[1:]])
            raise LockedError(
                "Another Snakemake is working on these files, or was killed while it did. If none is running any more, "
                f"on any machine, this command removes its lock and continues:\n  snakemake --unlock && {again}"
            ) from None
        if really and not workflow.touch and (lines := list(ending.describe_finished(workflow))):
            atexit.register(print, "\n".join(["", *lines]), file=sys.stderr)  # below Snakemake's own last words

    return wrapper


def _keep_unreported_jobs(check: Check) -> Check:
    """Wrap the plugin's check of its jobs, which would lose all of them if SLURM did not answer for a while."""

    async def wrapper(executor: Any, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:  # noqa: ANN401
        seen: list[SubmittedJobInfo] = []
        for name in ("report_job_success", "report_job_error"):
            setattr(executor, name, _recording(getattr(type(executor), name), executor, seen))
        async for job in check(executor, active_jobs):
            seen.append(job)
            yield job
        lost = [job for job in active_jobs if job not in seen]
        if lost:
            logger.warning(f"SLURM did not report the state of {len(lost)} job(s); asking again")
        for job in lost:
            yield job

    return wrapper


def _recording(report: Callable[..., None], executor: object, seen: list[SubmittedJobInfo]) -> Callable[..., None]:
    """Wrap a method that reports how a job ended, to add the job to seen."""

    def wrapper(job: SubmittedJobInfo, *arguments: object, **others: object) -> None:
        seen.append(job)
        report(executor, job, *arguments, **others)

    return wrapper


def _wait_for_earlier_jobs(workflow: "Workflow", settings: ExecutorSettingsBase) -> None:
    """Wait for the jobs of a driver that died, because this driver would plan to make their files again.

    A lock in .snakemake means that another driver is running or was killed: then Snakemake decides what happens.
    """
    if any(Path(".snakemake/locks").glob("*")):
        return
    slurm.wait_for_jobs(
        settings.jobname_prefix,
        Path(workflow.workdir_init),
        seconds=settings.init_seconds_before_status_checks,
        say=logger.warning,
    )


def _in_one_process(workflow: "Workflow") -> Plugin:
    """Return the executor for the job of a group: it runs a run's measures one at a time, on the job's CPUs and GPU.

    The plugin's own executor would start Snakemake again in a job step, which asks for the sum of the group's GPUs.
    """
    workflow.global_resources["turn"] = 1  # every measure takes it, so one runs at a time
    workflow.execution_settings.keep_going = True  # a measure that fails does not stop the others
    return ExecutorPluginRegistry().get_plugin("local")

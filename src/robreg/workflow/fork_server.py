"""Start scripts by forking a process that has already imported their libraries.

For a small network, imports take most of a script's time. Only robreg.workflow.driver imports this module. The server
is multiprocessing's fork server: a Snakemake process starts it with its first measure, and it ends with that process.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import psutil
from snakemake.benchmark import benchmarked
from snakemake.script import PythonScript
from snakemake.shell import shell

if TYPE_CHECKING:
    from snakemake.workflow import Workflow


# What the server imports for all scripts, and for those of single rules. No module that uses a GPU or starts threads:
# neither survives a fork. No other modules of this package: they may be edited while the server runs. A module that is
# not installed is skipped.
_PRELOAD = ("robreg.workflow.one_thread", "robreg.workflow.fork_server", "torch", "pandas", "pyarrow.parquet")
_PRELOAD_FOR_RULE = {
    "train": ("torch._dynamo",),  # every optimiser imports it
    "theory": ("scipy.sparse.linalg", "foolbox", "torch._dynamo"),
    "sv": ("scipy.sparse.linalg",),
    "figure": ("scipy.stats", "matplotlib.figure", "seaborn"),
    "comparison": ("scipy.stats", "matplotlib.figure", "seaborn"),
}
FORKED_RULES = {"margins", "apgd", "attacks", "masking", "lossvar", "sv", "spread", "theory"}
FORKED_RULES |= {"examples", "metrics", "checks", "table", "figure", "claims", "comparison", "audit", "report"}
# Prefixes of the _NUM_THREADS variables that Snakemake sets; they matter to processes that a script starts, because
# robreg.networks.device sets torch's own threads.
_THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")
_process_lock = threading.Lock()  # multiprocessing polls the processes of all threads whenever it starts one


def install(workflow: "Workflow") -> None:
    """Let this Snakemake process start the scripts of FORKED_RULES by fork; all other scripts start as usual."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    context = multiprocessing.get_context("forkserver")
    # Otherwise every script would first import the main module of this process again, and with it all of Snakemake.
    sys.modules["__main__"].__spec__ = ModuleSpec("__main__", None)
    PythonScript.execute_script = _forking(workflow, context, PythonScript.execute_script)


def _forking(workflow: "Workflow", context: Any, execute: Callable[..., None]) -> Callable[..., None]:  # noqa: ANN401
    """Wrap Snakemake's execute_script, which starts a shell that starts Python."""

    @cache
    def preload() -> None:
        """Tell the server, before the first script starts it, what the planned scripts import."""
        planned = dict.fromkeys(job.rule.name for job in workflow.dag.needrun_jobs())
        additional = [name for rule in planned for name in _PRELOAD_FOR_RULE.get(rule, ())]
        context.set_forkserver_preload([*_PRELOAD, *additional])

    def wrapper(script: PythonScript, file: str, *, edit: bool = False) -> None:
        other_python = script.container_img or script.conda_env or script.env_modules
        forked = script.rulename in FORKED_RULES or _is_small_training(workflow, script)
        if not forked or other_python or edit:
            execute(script, file, edit=edit)
            return
        preload()
        if status := _fork(context, script, file):
            raise subprocess.CalledProcessError(status, [sys.executable, file])

    return wrapper


def _is_small_training(workflow: "Workflow", script: PythonScript) -> bool:
    """Return whether a script trains a small network, for which imports take long, and a fork changes nothing else.

    The server's BLAS has one thread, and a compiler starts threads. On a cluster, Snakemake forwards SIGTERM to all its
    processes, and a training whose server has ended could not save its state.
    """
    if script.rulename != "train" or workflow.remote_exec:
        return False
    settings = script.params.get("settings", {})
    return settings.get("threads") == 1 and not settings.get("training", {}).get("compile")


def _fork(context: Any, script: PythonScript, file: str) -> int:  # noqa: ANN401
    """Run a script in a forked process; return its exit status, which is negative if a signal ended it."""
    start, send_start = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(file, _environment(script), start))
    with _process_lock:
        process.start()
    child = psutil.Process(process.pid)
    with shell._lock:
        shell._processes[script.jobid] = process
    try:
        with benchmarked(process.pid, script.bench_record):
            send_start.send(None)  # only now, because the benchmark cannot measure a process that has ended
            wait([process.sentinel])
    finally:
        if child.is_running():  # the server died, so the script's exit status would be lost
            child.kill()
            child.wait()
        with shell._lock:
            shell._processes.pop(script.jobid, None)
        with _process_lock:
            process.join()
    return int(process.exitcode)


def _environment(script: PythonScript) -> dict[str, str]:
    """Return the environment that Snakemake's shell would give the script."""
    folder = script.resources.get("tmpdir")
    temporary = {name: folder for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if folder}
    return {**os.environ, **{f"{name}_NUM_THREADS": str(script.threads) for name in _THREADS}, **temporary}


def _run(file: str, environment: dict[str, str], start: Connection) -> None:
    """Run the script in the forked process, once start receives something."""
    start.recv()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [file]
    runpy.run_path(file, run_name="__main__")

"""Start scripts by fork from a process that has imported what they use: for a small network that is most of their work.

Only robreg.workflow.driver imports it. The server is the standard library's; a Snakemake process starts it with its
first measure, and it ends when that process does.
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


# What scripts import, beyond what all do, and who does. Never what uses a GPU or needs a thread of its own: neither
# outlives a fork. Never the package's modules: they may be edited while the server lives. A missing one is passed over.
_PRELOAD = ("robreg.workflow.one_thread", "robreg.workflow.fork_server", "torch", "pandas", "pyarrow.parquet")
_ALSO = {
    "theory": ("scipy.sparse.linalg", "foolbox", "torch._dynamo"),
    "sv": ("scipy.sparse.linalg",),
    "figure": ("scipy.stats", "matplotlib.figure", "seaborn"),
    "comparison": ("scipy.stats", "matplotlib.figure", "seaborn"),
}
RULES = {*_ALSO, "margins", "apgd", "attacks", "masking", "lossvar", "spread", "metrics", "checks"}
RULES |= {"table", "claims", "audit", "report"}
_THREADS = (
    "OMP",
    "GOTO",
    "OPENBLAS",
    "MKL",
    "NUMEXPR",
)  # for what a script starts; torch's own are set by robreg.networks.device
_one_at_a_time = threading.Lock()  # multiprocessing looks after other threads' processes whenever it starts one


def install(workflow: "Workflow") -> None:
    """Have this Snakemake process start the scripts of RULES by fork; all others start as ever."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    context = multiprocessing.get_context("forkserver")
    # Else every script would begin with the import of what this process was started with, all of Snakemake.
    sys.modules["__main__"].__spec__ = ModuleSpec("__main__", None)
    PythonScript.execute_script = _forking(workflow, context, PythonScript.execute_script)


def _forking(workflow: "Workflow", context: Any, execute: Callable[..., None]) -> Callable[..., None]:  # noqa: ANN401
    """Snakemake's execute_script, which starts a shell that starts Python."""

    @cache
    def preload() -> None:
        """Say, before the server starts with the first script, what the others will need."""
        planned = dict.fromkeys(job.rule.name for job in workflow.dag.needrun_jobs())
        also = [name for rule in planned for name in _ALSO.get(rule, ())]
        context.set_forkserver_preload([*_PRELOAD, *also])

    def wrapper(script: PythonScript, file: str, *, edit: bool = False) -> None:
        elsewhere = script.container_img or script.conda_env or script.env_modules  # has a Python of its own
        if script.rulename not in RULES or elsewhere or edit:
            execute(script, file, edit=edit)
            return
        preload()
        if status := _fork(context, script, file):
            raise subprocess.CalledProcessError(status, [sys.executable, file])

    return wrapper


def _fork(context: Any, script: PythonScript, file: str) -> int:  # noqa: ANN401
    """Run a script to its end; return its exit status, negative for a signal."""
    ready, go = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(file, _environment(script), ready))
    with _one_at_a_time:
        process.start()
    itself = psutil.Process(process.pid)
    with shell._lock:
        shell._processes[script.jobid] = process
    try:
        with benchmarked(process.pid, script.bench_record):
            go.send(None)  # not before: of a process that has ended nothing can be measured
            wait([process.sentinel])
    finally:
        if itself.is_running():  # the server died: nobody would hear how this ends
            itself.kill()
            itself.wait()
        with shell._lock:
            shell._processes.pop(script.jobid, None)
        with _one_at_a_time:
            process.join()
    return int(process.exitcode)


def _environment(script: PythonScript) -> dict[str, str]:
    """Return what Snakemake's shell gives its children."""
    folder = script.resources.get("tmpdir")
    places = {name: folder for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if folder}
    return {**os.environ, **{f"{name}_NUM_THREADS": str(script.threads) for name in _THREADS}, **places}


def _run(file: str, environment: dict[str, str], ready: Connection) -> None:
    """Be the script, in the forked process."""
    ready.recv()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [file]
    runpy.run_path(file, run_name="__main__")

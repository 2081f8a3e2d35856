"""Scripts are forked from a process that has imported their libraries, and behave like scripts that Python starts."""

import json
import os
import signal
import subprocess
import textwrap
import time
from types import SimpleNamespace

import psutil
import pytest
from helpers.snakemake_copy import SNAKEMAKE, snakemake

from robreg.workflow import fork_server

RULE = """
rule {name}:
    output: "{out}"
    benchmark: "{name}.tsv"
    threads: 2
    script: "{name}.py"
"""
PRELOADED = {"robreg", "robreg.workflow", "robreg.workflow.fork_server", "robreg.workflow.one_thread"}
TELL = """
import json, os, sys
with open(snakemake.output[0], "w") as file:
    warm = "torch" in sys.modules
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TMPDIR", "ASKED")
    json.dump({"warm": warm, "argv": len(sys.argv), "name": __name__, **{n: os.environ.get(n) for n in names}}, file)
"""


@pytest.fixture
def workflow(tmp_path):
    """Return a function that writes a workflow with a script for each rule, and returns its folder."""

    def write(**scripts):
        parts = ["from robreg.workflow import fork_server\nfork_server.install(workflow)\n"]
        for name, script in scripts.items():
            parts.append(RULE.format(name=name, out="{n}.out" if name == "margins" else f"{name}.out"))
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(script))
        text = "".join(parts).replace('benchmark: "margins.tsv"', 'benchmark: "margins{n}.tsv"')
        (tmp_path / "Snakefile").write_text(text)
        return tmp_path

    return write


def left(folder):
    """Return the processes that still run in a folder after at most 10 s: a server ends shortly after its driver."""
    for _ in range(100):
        found = [process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
        if not found:
            break
        time.sleep(0.1)
    return found


def test_a_measure_is_forked_with_its_own_environment_and_other_scripts_are_not(workflow, monkeypatch):
    monkeypatch.setenv("ASKED", "yes")
    folder = workflow(sv=TELL, prepare=TELL)
    snakemake(folder, "-c2", "sv.out", "prepare.out")
    sv, prepare = (json.loads((folder / f"{name}.out").read_text()) for name in ("sv", "prepare"))
    assert (sv.pop("warm"), prepare.pop("warm")) == (True, False)
    assert sv == prepare
    assert (sv["OMP_NUM_THREADS"], sv["OPENBLAS_NUM_THREADS"], sv["ASKED"], sv["name"]) == ("2", "2", "yes", "__main__")
    header, values = ((folder / "sv.tsv").read_text().splitlines()[i].split("\t") for i in (0, 1))
    assert float(dict(zip(header, values, strict=True))["s"]) < 30
    assert left(folder) == []


@pytest.mark.parametrize(
    ("settings", "warm"),
    [
        ({"threads": 1, "training": {}}, True),
        ({"threads": 2, "training": {}}, False),
        ({"threads": 1, "training": {"compile": True}}, False),
        ({}, False),
    ],
)
def test_only_a_small_training_is_forked(settings, warm, workflow):
    folder = workflow(train=TELL)
    text = (folder / "Snakefile").read_text().replace("    script:", f"    params: settings={settings!r}\n    script:")
    (folder / "Snakefile").write_text(text)
    snakemake(folder, "-c1", "train.out")
    assert json.loads((folder / "train.out").read_text())["warm"] is warm


def test_no_training_is_forked_in_a_job_on_a_cluster():
    script = SimpleNamespace(rulename="train", params={"settings": {"threads": 1, "training": {}}})
    assert fork_server._is_small_training(SimpleNamespace(remote_exec=False), script)
    assert not fork_server._is_small_training(SimpleNamespace(remote_exec=True), script)


BLAS = """
import sys, threadpoolctl
import scipy.linalg
with open(snakemake.output[0], "w") as file:
    threads = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
    print(threads, "seaborn" in sys.modules, "foolbox" in sys.modules, file=file)
"""


def test_a_module_of_the_package_is_imported_by_the_script_itself(workflow):
    """Edits of the package take effect while the server runs."""
    own = "(name for name in sys.modules if name.startswith('robreg'))"
    tell = f"import sys\nprint(*{own}, file=open(snakemake.output[0], 'w'))"
    folder = workflow(sv=tell, theory=tell, figure=tell)
    snakemake(folder, "-c1", "sv.out", "theory.out", "figure.out")
    for name in ("sv", "theory", "figure"):
        assert set((folder / f"{name}.out").read_text().split()) == PRELOADED


def test_the_plan_decides_what_the_server_imports_and_blas_has_one_thread(workflow, monkeypatch):
    for name in ("OMP", "OPENBLAS"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "2")
    folder = workflow(sv=BLAS, figure=BLAS, theory=BLAS)
    found = []
    for planned in (["sv.out"], ["sv.out", "figure.out"], ["sv.out", "theory.out"]):
        snakemake(folder, "-c2", "--forceall", *planned)
        found.append((folder / "sv.out").read_text().strip())
    assert found == ["{1} False False", "{1} True False", "{1} False True"]


WATCH = """
import sys, threading
def watch(event, arguments):
    if event in ("os.putenv", "os.unsetenv") and threading.current_thread() is not threading.main_thread():
        open("changed", "w").close()
sys.addaudithook(watch)
"""


def test_no_thread_changes_the_environment_while_another_starts_a_process(workflow):
    folder = workflow(sv=TELL)
    (folder / "Snakefile").write_text(WATCH + (folder / "Snakefile").read_text())
    snakemake(folder, "-c1", "sv.out")
    assert json.loads((folder / "sv.out").read_text())["warm"]
    assert not (folder / "changed").exists()


def test_many_measures_can_end_at_once(workflow):
    folder = workflow(margins="open(snakemake.output[0], 'w').close()\n")
    targets = [f"{n}.out" for n in range(40)]
    snakemake(folder, "-c16", *targets)
    assert all((folder / target).exists() for target in targets)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("import sys; sys.exit(3)", "returned non-zero exit status 3"),
        ("raise ValueError('on purpose')", "ValueError: on purpose"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "died with <Signals.SIGKILL: 9>"),
    ],
)
def test_a_failing_measure_fails_its_job(script, status, workflow):
    folder = workflow(sv=f"open(snakemake.output[0], 'w').close()\n{script}\n")
    assert status in snakemake(folder, "-c1", "sv.out", check=False)
    assert not (folder / "sv.out").exists()
    assert left(folder) == []


SLOW = """
import os, time
with open("began.part", "w") as file:
    file.write(str(os.getpid()))
os.rename("began.part", "began")
time.sleep({seconds})
open("late", "w").close()
"""


def start(folder):
    """Start Snakemake and wait until its measure runs; return both processes."""
    driver = subprocess.Popen([SNAKEMAKE, "-c2", "sv.out"], cwd=folder, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while not (folder / "began").exists():
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    return driver, psutil.Process(int((folder / "began").read_text()))


def test_a_measure_is_killed_if_its_server_dies(workflow):
    folder = workflow(sv=SLOW.format(seconds=30))
    driver, script = start(folder)
    server = script.parent()
    assert server.pid != driver.pid
    server.kill()
    assert driver.wait(timeout=60) == 1
    assert left(folder) == []
    assert not (folder / "late").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_with_its_driver(number, workflow):
    folder = workflow(sv=SLOW.format(seconds=4))
    driver, script = start(folder)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert script in family
    os.kill(driver.pid, number)
    assert driver.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []

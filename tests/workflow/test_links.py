"""Links that others planted where a job's log or benchmark will be written are replaced, not followed."""

import logging
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.snakemake_copy import SNAKEMAKE

from robreg.training.kept import wants_training
from robreg.workflow import plan
from robreg.workflow.job import logged

SNAKEFILE = """
from robreg.workflow import driver
driver.install(workflow)

rule one:
    output: "one.txt"
    log: "logs/one.log"
    benchmark: "benchmarks/one.tsv"
    script: "one.py"
"""
SCRIPT = """
from pathlib import Path
from robreg.workflow.job import logged
with logged(snakemake.log[0]):
    Path(snakemake.output[0]).write_text("done")
"""


@pytest.mark.parametrize("plant", [os.symlink, os.link, lambda _, path: os.mkfifo(path)], ids=["soft", "hard", "pipe"])
def test_a_log_is_a_new_file(plant, tmp_path):
    victim, log = tmp_path / "victim", tmp_path / "a.log"
    victim.write_text("precious")
    plant(victim, log)
    with logged(str(log)):
        logging.warning("hello")
    assert log.read_text().endswith("WARNING hello\n")
    assert not log.is_symlink()
    assert victim.read_text() == "precious"


def test_the_mark_of_a_forced_training_is_a_new_file(tmp_path, monkeypatch):
    folder, victim = tmp_path / "kept" / "a", tmp_path / "victim"
    folder.parent.mkdir()
    wants_training(folder).symlink_to(victim)
    monkeypatch.setattr(plan, "_trainings", lambda _: ["a job"])
    monkeypatch.setattr(plan, "_kept_folder", lambda _: folder)
    dag = SimpleNamespace(reason=lambda _: SimpleNamespace(forced=True))
    plan.mark_forced(SimpleNamespace(dag=dag))
    assert wants_training(folder).is_file()
    assert not victim.exists()


def test_snakemake_s_jobs_write_through_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = [tmp_path / name for name in ("logs/one.log", "benchmarks/one.tsv", "one.txt")]
    for path in planted:
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(victim)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "one.py").write_text(SCRIPT)
    command = [SNAKEMAKE, "-c1", "--forceall", "one"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "precious"
    assert not any(path.is_symlink() for path in planted)
    header, values = Path(planted[1]).read_text().splitlines()
    assert header.split("\t")[:2] == ["s", "h:m:s"]
    assert len(header.split("\t")) == len(values.split("\t"))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "1", "null", '{"sha256": [1]}', '{"sha256": {}}', "{}", "{", "\0", None]
)
def test_a_planted_description_of_data_does_not_end_the_driver(content, tmp_path):
    data = tmp_path / "meta.json"
    os.mkfifo(data) if content is None else data.write_text(content)
    (tmp_path / "kept").mkdir()
    job = SimpleNamespace(output=[tmp_path / "checkpoint.pt"], input=SimpleNamespace(data=str(data)))
    job.params = SimpleNamespace(settings={"factory": None})
    assert plan._kept_folder(job) is None
    data.unlink()
    data.write_text('{"sha256": "a"}')
    assert plan._kept_folder(job).parent == tmp_path / "kept"

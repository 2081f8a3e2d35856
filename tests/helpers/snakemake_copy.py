"""Run the workflow in a copy of the repository, and read which jobs it plans."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import yaml

ROOT = Path(__file__).parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
PARTS = ("Snakefile", "config.yaml", "slurm", "workflow", "src", "envs", "pyproject.toml", "Makefile")


def copy_tree(folder, edit=None, *, tests=False):
    """Copy the files of the workflow into folder, and optionally the tests; edit changes the parsed config.yaml."""
    folder.mkdir(exist_ok=True)
    for part in (*PARTS, "tests") if tests else PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder / part)
    if edit is not None:
        config = yaml.safe_load((ROOT / "config.yaml").read_text())
        edit(config)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def snakemake(folder, *arguments, check=True):
    """Run Snakemake in folder; return its stdout and stderr together. It must succeed, or fail if check is false."""
    command = [str(SNAKEMAKE), *arguments]
    environment = {**os.environ, "PATH": f"{SNAKEMAKE.parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}")
    if not check:
        assert done.returncode, f"{' '.join(command)} did not fail:\n{done.stdout[-3000:]}"
    return done.stdout


def planned(folder, *arguments):
    """Return how many jobs of each rule a dry run plans."""
    output = snakemake(folder, "-n", "-c1", *arguments)
    stats = re.search(r"^job +count\n[- ]+\n((?:\S+ +\d+\n)+)", output, re.MULTILINE)
    jobs = dict(line.split() for line in stats[1].splitlines()) if stats else {}
    return {rule: int(count) for rule, count in jobs.items() if rule != "total"}


def started(folder, *arguments):
    """Start a driver, wait until its training of digits/ar8 has finished an epoch, and return the driver."""
    command = [SNAKEMAKE, "-c1", *arguments]
    driver = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    log = folder / "logs/train/digits/ar8.log"
    while not (log.exists() and "epoch 1/4" in log.read_text()):
        assert driver.poll() is None, "training ended before it could be disturbed"
        time.sleep(0.01)
    return driver


def trainer(driver):
    """Return the process of a driver's training of digits/ar8: the one that holds the run's lease."""
    lease = Path(psutil.Process(driver.pid).cwd(), "results/digits/ar8/lease.json")
    found = psutil.Process(json.loads(lease.read_text())["pid"])
    assert found in psutil.Process(driver.pid).children(recursive=True)
    return found


def same_weights(one, other):
    first, second = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)

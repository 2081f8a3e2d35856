"""Set-up: the locks agree with pyproject.toml and with each other, and carry hashes and no address."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

import robreg

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch": "torch", "snakemake-minimal": "snakemake"}


def locked(name, python="3.11"):
    """The versions that a lock gives to a Linux machine."""
    found = {}
    for line in re.findall(r"^[a-z0-9].*?(?= \\$)", (ROOT / "envs" / name).read_text(), re.MULTILINE):
        requirement = Requirement(line)
        environment = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
        if (
            Marker.evaluate(requirement.marker, {**environment, "platform_machine": "x86_64"})
            if requirement.marker
            else True
        ):
            (specifier,) = requirement.specifier
            found[requirement.name] = specifier.version
    return found


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_is_within_the_project_s_ranges(project, python):
    run = locked("run.txt", python)
    for text in project["project"]["dependencies"]:
        requirement = Requirement(text)
        assert run[requirement.name] in requirement.specifier, text
    assert (run["torch"], run["torchvision"]) == ("2.14.0", "0.29.0")


def test_tests_run_on_what_users_get(project):
    run, test = locked("run.txt"), locked("test.txt")
    assert {name: test[name] for name in run} == run
    assert "torchattacks" not in run
    assert tuple(map(int, run["requests"].split(".")[:2])) > (2, 25)
    for text in project["dependency-groups"]["test"]:
        requirement = Requirement(text)
        assert test[requirement.name] in requirement.specifier, text


@pytest.mark.parametrize("name", ["run.txt", "test.txt"])
def test_every_locked_package_has_hashes_and_no_address(name):
    text = (ROOT / "envs" / name).read_text()
    blocks = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text
    assert "index-url" not in text


def test_the_conda_file_carries_the_lock_s_versions(project):
    content = yaml.safe_load((ROOT / "envs/conda.yaml").read_text())
    conda = dict(line.split("=", 1) for line in content["dependencies"])
    assert conda.pop("python") == "3.11"
    run = locked("run.txt")
    names = {CONDA_NAMES.get(name, name): version for name, version in conda.items()}
    assert names == {name: run[name] for name in names}
    assert {Requirement(text).name for text in project["project"]["dependencies"]} <= set(names)


def test_a_second_call_installs_nothing(tmp_path):
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = ["make", "-n", "demo", "test"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert first.count("pip install") == 3
    (tmp_path / ".venv").mkdir()
    for stamp in ("run", "test"):
        (tmp_path / f".venv/{stamp}.done").touch()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "pip install" not in second
    assert "snakemake" in second


def test_a_folder_with_a_space_is_refused_before_anything_is_installed(tmp_path):
    folder = tmp_path / "my folder"
    shutil.copytree(ROOT / "envs", folder / "envs")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    done = subprocess.run(["make", "demo"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Snakemake cannot run in a folder with a space in its path: move" in done.stdout
    assert not (folder / ".venv").exists()


def test_the_package_s_version_is_the_project_s(project):
    assert robreg.__version__ == project["project"]["version"]

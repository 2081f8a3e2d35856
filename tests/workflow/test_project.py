"""Installation: the locks agree with pyproject.toml and each other, and have hashes; later, no network is needed."""

import csv
import pkgutil
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

import robreg

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch": "torch", "snakemake-minimal": "snakemake"}


def locked(name, python="3.11"):
    """Return the versions that a lock file gives to a Linux machine."""
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
def test_locked_versions_are_within_the_ranges_of_the_project(project, python):
    run = locked("run.txt", python)
    for text in project["project"]["dependencies"]:
        requirement = Requirement(text)
        assert run[requirement.name] in requirement.specifier, text
    assert (run["torch"], run["torchvision"]) == ("2.14.0", "0.29.0")


def test_tests_run_on_the_versions_that_users_get(project):
    run, test = locked("run.txt"), locked("test.txt")
    assert {name: test[name] for name in run} == run
    assert "torchattacks" not in run
    assert tuple(map(int, run["requests"].split(".")[:2])) > (2, 25)
    for text in project["dependency-groups"]["test"]:
        requirement = Requirement(text)
        assert test[requirement.name] in requirement.specifier, text


@pytest.mark.parametrize(("name", "least"), [("run.txt", 90), ("test.txt", 90), ("docs.txt", 20)])
def test_every_locked_package_has_hashes_and_no_address(name, least):
    text = (ROOT / "envs" / name).read_text()
    blocks = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert len(blocks) > least
    pinned = re.compile(r"[a-z0-9-]+==\S+( ; [^\\\n]+)? \\(\n +--hash=sha256:[0-9a-f]{64}( \\)?)+")
    assert [block for block in blocks if not pinned.fullmatch(block)] == []
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_documentation_is_built_with_the_versions_that_users_and_tests_have(project, python):
    docs, test = locked("docs.txt", python), locked("test.txt", python)
    assert {name: test[name] for name in docs if name in test} == {name: docs[name] for name in docs if name in test}
    assert {"jinja2", "pyyaml"} <= docs.keys() & test.keys()
    for text in project["dependency-groups"]["docs"]:
        requirement = Requirement(text)
        assert docs[requirement.name] in requirement.specifier, text


def test_the_conda_file_has_the_locked_versions(project):
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
    assert first.count("pip install") == 4
    (tmp_path / ".venv").mkdir()
    for stamp in ("run", "test", "docs"):
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


def test_the_citation_and_the_changelog_have_this_version(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # keys that the format requires
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == robreg.__version__
    assert citation["license"] == project["project"]["license"]
    holder = re.search(r"^Copyright \(c\) \d{4} (.+)$", (ROOT / "LICENSE").read_text(), re.MULTILINE)[1]
    assert citation["authors"] == [{"name": holder}]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [person["family-names"] for person in paper["authors"]] == ["Wen", "Li", "Jia"]
    headings = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [name for name, _ in headings[:2]] == ["Unreleased", robreg.__version__]
    assert all(date for name, date in headings if name != "Unreleased")


def test_the_documented_layout_names_every_top_level_entry():
    page = (ROOT / "docs/reference/layout.md").read_text()
    layout = re.search(r"^## Layout\n\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)[1]
    named = {part for line in layout.splitlines() for part in re.findall(r"[\w.-]+", line)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    there = {path.partition("/")[0] for path in tracked if not path.startswith(".")}
    assert there - {"Makefile", "pyproject.toml"} <= named


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_locked_package_s_licence_is_listed():
    with (ROOT / "envs/licences.csv").open() as file:
        listed = list(csv.DictReader(file))
    versions = [locked("run.txt", python) for python in ("3.11", "3.12", "3.13")]
    fix = "after make lock: make licences"
    assert [row["name"] for row in listed] == list(versions[0]), fix
    assert all(row["version"] in [one[row["name"]] for one in versions] for row in listed), fix
    assert [row["name"] for row in listed if row["licence"] in ("", "not stated")] == ["cuda-toolkit"]  # NVIDIA's
    found = {(name, version): words for name, version, words in runpy.run_path(ROOT / "envs/licences.py")["rows"]()}
    known = {(row["name"], row["version"]): row["licence"] for row in listed}
    assert len(known.keys() & found.keys()) > 90
    assert {key: found[key] for key in known if key in found} == {key: known[key] for key in known if key in found}


@pytest.mark.parametrize("where", ["here", "in a process"])
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 9), timeout=1)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
        "socket.getaddrinfo('example.org', 80)",
    ],
)
def test_a_connection_to_another_machine_is_refused_and_recorded(attempt, where, connections):
    if where == "here":
        with pytest.raises(PermissionError, match="no connection to other machines"):
            eval(attempt, {"socket": socket})
    else:
        command = [sys.executable, "-c", f"import socket; {attempt}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "no connection to other machines" in done.stderr
    assert connections.read_text().startswith("socket.")
    connections.write_text("")


def test_a_connection_whose_error_is_caught_fails_its_test(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import contextlib, socket\n\ndef test_it():\n    with contextlib.suppress(OSError):\n"
        "        socket.create_connection(('192.0.2.1', 9), timeout=1)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", f"--basetemp={tmp_path}/base", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    assert re.search(r"^1 passed(, \d+ warnings?)?, 1 error", done.stdout, re.MULTILINE)


def test_importing_the_package_opens_no_connection():  # the fixture no_connection fails this test if one is tried
    names = [module.name for module in pkgutil.walk_packages(robreg.__path__, "robreg.")]
    assert len(names) > 50
    subprocess.run([sys.executable, "-c", f"import {', '.join(names)}, torchvision, foolbox"], check=True)

"""The files that a rule depends on follow from the imports, and agree with those that grimp finds."""

import re

import grimp
import pytest
from helpers.snakemake_copy import ROOT

from robreg.tables import provenance
from robreg.tables.provenance import COMPUTING, PACKAGE, TRAINING, code_files, code_hash, package_hash

MODULES = [
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    for path in sorted(PACKAGE.glob("*/*.py"))
    if path.stem != "__init__"
]


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("robreg", exclude_type_checking_imports=True, cache_dir=None)


@pytest.mark.parametrize("module", MODULES)
def test_all_imports_of_a_module_are_found(module, graph):
    found = {module}
    to_visit = [module]
    while to_visit:  # the package itself is left out: every module may import it, and it defines only the version
        names = graph.find_modules_directly_imported_by(f"robreg.{to_visit.pop()}")
        new = {name.removeprefix("robreg.") for name in names} - {"robreg"} - found
        found |= new
        to_visit += new
    assert code_files(module, folders=None) == sorted(f"{name.replace('.', '/')}.py" for name in found)


def test_a_measure_depends_only_on_the_computing_folders():
    files = code_files("measures.strong_attack", folders=COMPUTING)
    assert {"measures/strong_attack.py", "attacks/apgd.py", "networks/frozen.py", "data/dataset.py"} <= set(files)
    assert not [file for file in files if file.startswith(("tables/", "runs/", "data/cifar"))]


def test_the_code_hash_covers_what_affects_the_weights(tmp_path, monkeypatch):
    before = code_hash(), package_hash()
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "robreg" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "robreg")
    assert (code_hash(), package_hash()) == before
    files = [("report/page.py", False), ("training/lease.py", False), ("spectra/projection.py", True)]
    for file, affects_weights in files:
        before = code_hash(), package_hash()
        with (tmp_path / "robreg" / file).open("a") as edited:
            edited.write("# a comment\n")
        assert (code_hash(), package_hash()) == before
        with (tmp_path / "robreg" / file).open("a") as edited:
            edited.write("EDITED = True\n")
        assert (code_hash() != before[0]) is affects_weights
        assert package_hash() != before[1]


def test_the_weights_depend_on_training_networks_spectra_attacks_and_data():
    files = code_files(*TRAINING, folders=COMPUTING)
    assert {file.partition("/")[0] for file in files} == {"data", "networks", "attacks", "spectra", "training"}
    assert {f"data/{path.name}" for path in (PACKAGE / "data").glob("*.py")} - {"data/__init__.py"} <= set(files)


def test_a_measure_does_not_depend_on_the_readers_of_sources():
    files = code_files("measures.margins", folders=COMPUTING)
    assert [file for file in files if file.startswith("data/")] == ["data/dataset.py", "data/errors.py"]


@pytest.mark.parametrize("name", ["measure", "study"])
def test_every_rule_has_the_code_of_the_module_that_its_script_calls_as_input(name):
    rules = re.findall(
        r"^rule (\w+):\n(.*?)(?=^rule |\Z)", (ROOT / f"workflow/rules/{name}.smk").read_text(), re.M | re.S
    )
    assert len(rules) > 5
    for rule, text in rules:
        (script,) = re.findall(r'"\.\./scripts/(\w+)\.py"', text)
        assert script == rule
        (module,) = re.findall(r"    from robreg\.(\S+) import", (ROOT / f"workflow/scripts/{rule}.py").read_text())
        folder, _, measure = module.partition(".")
        expected = f'code_of_measure("{measure}")' if folder == "measures" else f'code_of("{module}"'
        assert f"        code={expected}" in text

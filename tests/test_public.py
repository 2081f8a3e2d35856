"""Tests of what `import robreg` offers: its documented examples run, and torch is imported only when needed."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

import robreg
from robreg.measures import margins
from robreg.tables import parquet, schemas

SETTINGS = {
    "dataset": "digits",
    "variant": "ar8",
    "ar": 8,
    "arch": "resnet8",
    "scalars": "biases",
    "train_attack": {"attack": "pgd"},
    "space": "pixel",
    "spectral_norm": None,
    "seed": 0,
}
FIRST_LIGHT = Path(__file__).parents[1] / "reference/first-light"


@pytest.fixture
def results(run, tmp_path, monkeypatch):
    """Write a run's results where the examples look for them, and return their folder."""
    folder = tmp_path / "results/digits/ar8"
    folder.mkdir(parents=True)
    shutil.copy(run.checkpoint, folder / "checkpoint.pt")
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": folder / "margins.parquet"}
    margins.record(**files, batch=16, device="cpu")
    numbers = {name: [1.0] for name in schemas.SCHEMAS["metrics"].names}
    parquet.write(folder / "metrics.parquet", "metrics", numbers, {})
    history = {name: [] for name in schemas.SCHEMAS["history"].names}
    parquet.write(folder / "history.parquet", "history", history, {"settings": json.dumps(SETTINGS)})
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", robreg.__all__)
def test_the_example_of_every_public_function_runs(name, results):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(robreg, name), name, globs={})
    assert example.examples
    found = doctest.DocTestRunner().run(example)
    assert found.attempted == len(example.examples)
    assert not found.failed


def test_importing_the_package_does_not_import_torch():
    code = "import sys, robreg; assert set(robreg.__all__) <= set(dir(robreg)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'attack'; its functions are apgd, load, margins, pgd"):
        robreg.attack  # noqa: B018


def test_a_study_or_a_folder_can_be_read_too(results):
    study = results.parents[1] / "studies/demo"
    (study / "tables").mkdir(parents=True)
    shutil.copy(results / "metrics.parquet", study / "claims.parquet")
    shutil.copy(results / "metrics.parquet", study / "tables/table3.parquet")
    assert sorted(robreg.read("demo")) == ["claims", "table3"]
    assert sorted(robreg.read(results)) == ["history", "margins", "metrics"]


def test_a_table_of_all_runs_of_a_study_is_one_frame_that_says_what_each_run_is():
    frame = robreg.read(FIRST_LIGHT, "svstd")
    assert list(frame)[:8] == ["dataset", "variant", "arch", "train_attack", "space", "spectral_norm", "ar", "seed"]
    assert frame["variant"].unique().tolist() == ["ar0", "ar4", "ar8", "ar16"]
    assert frame["ar"].unique().tolist() == [0, 4, 8, 16]
    assert set(frame["arch"]) == {"resnet56nobias"}  # was called resnet56 when these networks were trained
    assert frame["spectral_norm"].isna().all()
    alone = parquet.read(FIRST_LIGHT / "runs/c10short/ar8/svstd.parquet").to_pandas()
    assert frame.loc[frame["ar"] == 8, "std"].tolist() == alone["std"].tolist()
    attacks = robreg.read(FIRST_LIGHT, "attacks")
    assert set(attacks["space"]) == set(attacks["attacks_space"]) == {"pixel"}


def test_the_runs_of_a_study_are_those_that_its_audit_names(results, monkeypatch):
    other = results.with_name("ar8-normspace-s1")
    shutil.copytree(results, other)
    settings = SETTINGS | {"variant": other.name, "space": "normalised", "spectral_norm": 3, "seed": 1}
    settings["train_attack"] = {"attack": "fgsm", "clean_share": 0.5}
    history = parquet.read(results / "history.parquet")
    parquet.write_frame(other / "history.parquet", history, {"settings": json.dumps(settings)})
    attack = {"attack": ["pgd"], "split": ["test"], "space": ["pixel"], "seed": [7]}
    parquet.write_frame(other / "attacks.parquet", pa.table(attack), {})
    study = results.parents[1] / "studies/demo"
    names = [
        "data/prepared/digits/meta.json",
        *(f"results/digits/{name}/checks.parquet" for name in ("ar8", other.name)),
    ]
    parquet.write_frame(study / "audit.parquet", pa.table({"passed": [True]}), {"sealed": dict.fromkeys(names, "")})
    frame = robreg.read("demo", "metrics")
    assert frame["variant"].tolist() == ["ar8", other.name]  # the audit lists them the other way round
    assert frame["space"].tolist() == ["pixel", "normalised, evaluated in pixel"]
    assert frame["train_attack"].tolist() == ["pgd", "fgsm+clean0.5"]
    assert frame.loc[1, ["spectral_norm", "seed", "ar"]].tolist() == [3, 1, 8]
    monkeypatch.chdir(study.parent)
    assert robreg.read("demo", "metrics")["variant"].tolist() == ["ar8", other.name]
    parquet.write_frame(
        study / "audit.parquet", pa.table({"passed": [True]}), {"sealed": {"../../x/checks.parquet": ""}}
    )
    with pytest.raises(FileNotFoundError, match="demo is no run"):
        robreg.read("demo", "metrics")


def test_a_table_that_runs_do_not_have_and_a_study_without_an_audit_are_refused(results):
    with pytest.raises(ValueError, match="runs have no table 'margin'; they have history, margins"):
        robreg.read("digits/ar8", "margin")
    (results.parents[1] / "studies/demo").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"demo is no run with a history.parquet, and no study with an audit"):
        robreg.read("demo", "metrics")
    history = parquet.read(results / "history.parquet")
    parquet.write_frame(results / "history.parquet", history, {})
    with pytest.raises(ValueError, match="does not state dataset, variant, ar, arch, train_attack"):
        robreg.read("digits/ar8", "metrics")


def test_results_that_are_missing_are_named(results):
    with pytest.raises(FileNotFoundError, match=r"no results of digits/ar9: none of .* run the workflow first"):
        robreg.read("digits/ar9")
    (results.parent / "ar9").mkdir()
    with pytest.raises(FileNotFoundError, match="ar9 holds no Parquet file; run the workflow first"):
        robreg.read("digits/ar9")
    with pytest.raises(
        FileNotFoundError, match="digits holds no Parquet file; give one of the folders in it: ar8, ar9"
    ):
        robreg.read("digits")


def test_the_singular_values_of_a_layer_are_those_of_its_kernel():
    conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular", bias=False).double()
    units = torch.eye(3 * 8 * 8, dtype=torch.float64).view(-1, 3, 8, 8)
    dense = torch.linalg.svdvals(conv(units).flatten(1).detach().T)  # torch's own circular padding
    for shape in ((3, 8, 8), (8, 8)):
        sigma, multiplicity = robreg.singular_values(conv, shape)
        torch.testing.assert_close(sigma.repeat_interleave(multiplicity), dense)
    linear = torch.nn.Linear(5, 3)
    torch.testing.assert_close(robreg.singular_values(linear)[0], torch.linalg.svdvals(linear.weight.detach().double()))


def test_a_matrix_that_is_too_large_and_a_shape_that_does_not_fit_are_refused():
    with pytest.raises(ValueError, match="has 64 rows and 147 columns in 1 groups: give a larger value"):
        robreg.singular_values(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 7), dense=63)
    with pytest.raises(ValueError, match="input_shape must be"):
        robreg.singular_values(torch.nn.Conv2d(3, 4, 3), ())

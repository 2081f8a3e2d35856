"""Tests of what `import robreg` offers: its documented examples run, and torch is imported only when needed."""

import doctest
import shutil
import subprocess
import sys

import pytest
import torch

import robreg
from robreg.measures import margins
from robreg.tables import parquet, schemas


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
    assert sorted(robreg.read(results)) == ["margins", "metrics"]


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

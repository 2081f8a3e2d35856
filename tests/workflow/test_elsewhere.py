"""The workflow used from another working directory, and results that were copied without their prepared data."""

import shutil

import pytest
import yaml
from helpers.snakemake_copy import copy_tree, planned, snakemake

RUN = "results/digits/ar8"
MARGINS = f"{RUN}/margins.parquet"


def small(config, max_train=100):
    config["datasets"]["digits"] |= {"max_train": max_train, "max_test": 50}
    config["datasets"]["digits"]["training"] |= {"epochs": 1, "lr_drops": []}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Make a run in a folder that has only a config.yaml; return the folder and the arguments for it."""
    code = copy_tree(tmp_path_factory.mktemp("code") / "workflow", small)
    folder = tmp_path_factory.mktemp("elsewhere")
    (code / "config.yaml").rename(folder / "config.yaml")
    before = {path.relative_to(code) for path in code.rglob("*") if "__pycache__" not in path.parts}
    arguments = ["-s", str(code / "Snakefile"), "--directory", str(folder)]
    snakemake(folder.parent, *arguments, "-c1", MARGINS)
    assert {path.relative_to(code) for path in code.rglob("*") if "__pycache__" not in path.parts} == before
    return folder, arguments


def test_results_and_configuration_of_another_working_directory_are_used(elsewhere):
    folder, arguments = elsewhere
    assert (folder / MARGINS).exists()
    assert planned(folder.parent, *arguments, MARGINS) == {}
    assert planned(folder.parent, *arguments, "demo")["report"] == 1


def test_results_that_were_copied_without_their_data_are_not_trained_again(elsewhere, tmp_path):
    folder, arguments = elsewhere
    copied, arguments = tmp_path / "copied", [*arguments[:-1], str(tmp_path / "copied")]
    (copied / RUN).mkdir(parents=True)
    for file in ("config.yaml", f"{RUN}/checkpoint.pt", f"{RUN}/history.parquet"):
        shutil.copy(folder / file, copied / file)
    assert planned(tmp_path, *arguments, MARGINS) == {"prepare": 1, "margins": 1}


def test_other_data_train_again_in_the_same_call(elsewhere):
    folder, arguments = elsewhere
    config = yaml.safe_load((folder / "config.yaml").read_text())
    small(config, max_train=90)
    (folder / "other.yaml").write_text(yaml.safe_dump(config))
    asked = planned(folder.parent, *arguments, "--configfile", str(folder / "other.yaml"), "--", MARGINS)
    assert asked == {"prepare": 1, "train": 1, "margins": 1}

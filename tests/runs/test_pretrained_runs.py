"""Networks that are trained already are runs, whose settings have the SHA-256 of their weights and no training."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from robreg.runs.config import study_runs, validate
from robreg.runs.settings import (
    ConfigError,
    hash_settings,
    pretrained_weights,
    run_settings,
    training_settings,
)

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "given.pt").write_bytes(b"weights")
    config = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"data_root": str(tmp_path)}
    theirs = {"dataset": "c10", "callable": "torchvision.models:resnet18", "arguments": {"num_classes": 10}}
    config["pretrained"] = {"theirs": theirs | {"weights": "given.pt", "normalises": True}}
    config["pretrained"]["robust"] = config["pretrained"]["theirs"] | {"ar": 8}
    grids = [{"dataset": "c10", "arch": [name], "ar": [ar]} for name, ar in (("theirs", 0), ("robust", 8))]
    config["studies"]["mine"] = {
        "title": "Mine",
        "runs": [*grids, {"dataset": "c10", "ar": [0, 8]}],
        "compare": [0, 8],
        "figures": ["fig3", "fig7"],
        "tables": ["table3", "attacks"],
    }
    return config


def test_a_network_that_is_trained_already_is_a_run_of_studies_figures_and_tables(config):
    validate(config, SCHEMA)
    runs = {run["variant"]: (run["arch"], run["ar"], run["train_attack"]) for run in study_runs(config, "mine")}
    assert runs == {
        "ar0-theirs": ("theirs", 0, "pgd"),
        "ar8-robust": ("robust", 8, "pgd"),
        "ar0": ("resnet56", 0, "pgd"),
        "ar8": ("resnet56", 8, "pgd"),
    }


def test_its_settings_have_its_weights_and_no_training(config):
    found = training_settings(run_settings(config, "c10", "ar8-robust"))
    assert found["pretrained"] == {"sha256": hashlib.sha256(b"weights").hexdigest()}
    assert (found["training"], found["train_attack"], found["ar"]) == ({"epochs": 0}, None, 8)
    assert found["factory"]["callable"] == "torchvision.models:resnet18"
    assert found["factory"]["normalises"] is True
    trained = run_settings(config, "c10", "ar8")
    assert "pretrained" not in trained
    measures = {key: value for key, value in run_settings(config, "c10", "ar8-robust").items() if key not in found}
    assert measures == {key: trained[key] for key in measures}
    assert pretrained_weights(config, "theirs") == Path(config["data_root"], "given.pt")
    assert pretrained_weights(config, "resnet56") is None


def test_another_file_repeats_the_run_and_another_place_does_not(config, tmp_path):
    before = hash_settings(training_settings(run_settings(config, "c10", "ar0-theirs")))
    (tmp_path / "moved.pt").write_bytes(b"weights")
    config["pretrained"]["theirs"]["weights"] = "moved.pt"
    assert hash_settings(training_settings(run_settings(config, "c10", "ar0-theirs"))) == before
    (tmp_path / "moved.pt").write_bytes(b"others!")
    assert hash_settings(training_settings(run_settings(config, "c10", "ar0-theirs"))) != before


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("ar8-theirs", "c10/ar8-theirs: pretrained.theirs was trained at strength 0; use this strength, or correct it"),
        ("ar0-robust", "c10/ar0-robust: pretrained.robust was trained at strength 8; use this strength, or correct it"),
        ("ar0-theirs-s1", "pretrained.theirs is not trained here; name its run without -fgsm, -sn and -s"),
        ("ar0-theirs-sn3", "pretrained.theirs is not trained here; name its run without -fgsm, -sn and -s"),
        ("ar8-robust-fgsm", "pretrained.robust is not trained here; name its run without -fgsm, -sn and -s"),
    ],
)
def test_a_name_that_speaks_of_another_training_is_refused(variant, message, config):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_settings(config, "c10", variant)
    config["studies"]["mine"]["runs"] = [{"dataset": "c10", "arch": ["theirs"], "ar": [0, 8]}]
    with pytest.raises(ConfigError, match=r"studies\.mine\.runs: c10/ar8-theirs: pretrained\.theirs was trained at"):
        validate(config, SCHEMA)


def test_a_run_of_another_data_set_and_an_override_of_its_training_are_refused(config):
    with pytest.raises(ConfigError, match=r"c100/ar0-theirs: pretrained\.theirs is a network for c10; use this data"):
        run_settings(config, "c100", "ar0-theirs")
    config["runs"] = {"c10/ar0-theirs": {"training": {"epochs": 3}}}
    message = r"runs: runs\.c10/ar0-theirs\.training: pretrained\.theirs is not trained here; remove the key"
    with pytest.raises(ConfigError, match=message):
        validate(config, SCHEMA)
    config["runs"] = {"c10/ar0-theirs": {"evaluation": {"eps": 4}}}
    validate(config, SCHEMA)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset", "c11", r"pretrained\.theirs: unknown data set 'c11': did you mean 'c10'"),
        ("weights", "../given.pt", r"pretrained\.theirs: weights: \.\./given\.pt may lead out of data_root"),
        ("weights", "given.bin", r"pretrained\.theirs\.weights: .*ends in \.pt"),
        ("normalises", None, r"pretrained\.theirs\.normalises: None is not of type 'boolean'"),
        ("arguments", 3, r"pretrained\.theirs\.arguments: 3 is not of type 'object'"),
    ],
)
def test_a_block_that_cannot_be_right_is_refused_by_its_key(key, value, message, config):
    config["pretrained"]["theirs"][key] = value
    with pytest.raises(ConfigError, match=message):
        validate(config, SCHEMA)


def test_names_are_given_once_and_fit_the_names_of_runs(config):
    config["architectures"] |= {"theirs": {"callable": "torchvision.models:vgg11"}}
    with pytest.raises(ConfigError, match=r"pretrained\.theirs: this name .* is given twice"):
        validate(config, SCHEMA)
    del config["architectures"]["theirs"]
    config["pretrained"] = {"s1": config["pretrained"]["theirs"]}
    with pytest.raises(ConfigError, match=r"pretrained\.s1: this name is reserved by the grammar"):
        validate(config, SCHEMA)


def test_a_missing_file_is_named_when_its_run_is_planned_and_not_before(config, tmp_path):
    (tmp_path / "given.pt").unlink()
    validate(config, SCHEMA)
    with pytest.raises(ConfigError, match=r"pretrained\.theirs\.weights: \S+given\.pt cannot be read \(No such file"):
        run_settings(config, "c10", "ar0-theirs")
    config["pretrained"]["theirs"]["callable"] = "nowhere:Net"
    with pytest.raises(ConfigError, match=r"pretrained: callable 'nowhere:Net' cannot be imported"):
        run_settings(config, "c10", "ar0-theirs")

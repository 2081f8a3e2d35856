"""What a study needs of its runs, and the strengths that it compares."""

import copy

import pytest
import yaml
from helpers.snakemake_copy import ROOT

from robreg.checks.seals import BASIC, CHECKED
from robreg.runs.config import compared_strengths, listed_items, study_runs, validate
from robreg.runs.needs import ALWAYS, check_conditions, compared, has_all_checked, judges_claims, measures, measures_of
from robreg.runs.settings import ConfigError, run_settings

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


def with_study(runs, **others):
    config = copy.deepcopy(CONFIG)
    config["studies"] = {"mine": {"title": "Mine", "runs": runs, "figures": ["fig3"], "tables": [], **others}}
    return config


@pytest.mark.parametrize("study", CONFIG["studies"])
def test_the_studies_of_the_project_measure_all_that_claims_need(study):
    block = CONFIG["studies"][study]
    shown = listed_items(CONFIG, study)
    assert judges_claims(block)
    assert measures(shown, judged=True) == [*ALWAYS, "lossvar", "spread", "examples", "theory"]
    assert has_all_checked(block, shown)
    assert compared_strengths(CONFIG, study) == block["compare"]


@pytest.mark.parametrize(
    ("shown", "more"),
    [
        ([], []),
        (["fig1", "fig3", "b2", "padding", "attacks"], []),
        (["fig8"], ["lossvar"]),
        (["table1", "theory"], ["lossvar", "theory"]),
        (["spread"], ["spread"]),
        (["examples"], ["examples"]),
    ],
)
def test_without_claims_only_what_is_shown_is_measured(shown, more):
    assert measures(shown, judged=False) == [*ALWAYS, *more]
    assert has_all_checked({"claims": False}, shown) == ("lossvar" in more)
    assert measures(shown, judged=True)[: len(ALWAYS) + 2] == [*ALWAYS, "lossvar", "spread"]


def test_a_run_gets_the_measures_of_what_shows_it():
    runs, shown = study_runs(CONFIG, "demo"), listed_items(CONFIG, "demo")
    common = [*ALWAYS, "lossvar", "spread"]
    found = {run["variant"]: measures_of(run, runs, shown, judged=True) for run in runs}
    first = ("ar0", "ar8", "ar16", "ar32", "ar16-normspace")
    assert {name for name, rules in found.items() if "examples" in rules} == set(first)
    assert found["ar16-fgsm"] == found["ar8-s1"] == [*common, "theory"]
    fgsm = next(run for run in runs if run["variant"] == "ar16-fgsm")
    assert measures_of(fgsm, runs, {"fig8": None}, judged=False) == list(ALWAYS)


def test_the_tables_of_every_study_are_those_that_are_checked_but_one():
    assert set(CHECKED) - set(BASIC) == {"lossvar"}


@pytest.mark.parametrize(
    ("runs", "strengths"),
    [
        ([{"dataset": "digits", "ar": [0, 8, 16, 32]}], [8, 32]),
        ([{"dataset": "digits", "ar": [32, 0, 16]}], [16, 32]),
        ([{"dataset": "digits", "ar": [16, 8]}], [8, 16]),
        ([{"dataset": "digits", "ar": [0, 8], "seeds": [0, 1]}], [0, 8]),
        ([{"dataset": "digits", "ar": [16]}, {"dataset": "c10", "ar": [0, 4, 8]}], [4, 8]),
        ([{"dataset": "digits", "ar": [0, 8, 16]}, {"dataset": "digits", "ar": [64], "attack": ["fgsm"]}], [8, 16]),
        ([{"dataset": "digits", "ar": [8, 16], "attack": ["fgsm"]}], [8, 16]),
    ],
)
def test_a_study_without_compare_compares_the_ends_of_its_own_strengths(runs, strengths):
    config = with_study(runs)
    assert compared_strengths(config, "mine") == strengths
    if "attack" not in runs[0]:
        validate(config, SCHEMA)


def test_the_key_compare_decides():
    assert compared("mine", {"compare": [0, 16]}, []) == [0, 16]


def test_one_strength_cannot_be_compared():
    with pytest.raises(ConfigError, match=r"studies\.mine\.runs: .* add one to ar, such as ar: \[0, 8\]"):
        validate(with_study([{"dataset": "digits", "ar": [8]}]), SCHEMA)


def test_a_study_of_one_strength_that_judges_no_claims_compares_nothing():
    runs, given = [{"dataset": "digits", "ar": [8]}], {"claims": False, "figures": ["fig1"], "tables": ["table3"]}
    config = with_study(runs, **given)
    validate(config, SCHEMA)
    assert compared_strengths(config, "mine") == []
    with pytest.raises(ConfigError, match=r"b2 \(missing: a second strength, with the same seed\)"):
        validate(with_study(runs, **given | {"tables": ["b2"]}), SCHEMA)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_claims_is_true_or_false(value):
    with pytest.raises(ConfigError, match=r"studies\.mine\.claims"):
        validate(with_study([{"dataset": "digits", "ar": [0, 8]}], claims=value), SCHEMA)


@pytest.mark.parametrize(
    ("variant", "bound", "unprotected"),
    [("ar0", None, True), ("ar8", None, False), ("ar0-sn1", 1.0, False), ("ar8-sn2", 2.0, False)],
)
def test_the_conditions_of_a_run_s_checks_follow_from_its_settings(variant, bound, unprotected):
    settings = run_settings(CONFIG, "digits", variant)
    assert check_conditions(settings) == {"bound": bound, "unprotected": unprotected}


def test_no_bound_holds_for_layers_that_are_only_clipped():
    config = copy.deepcopy(CONFIG)
    config["runs"] = {"digits/ar8-sn1": {"training": {"clip_rounds": 1}}}
    assert check_conditions(run_settings(config, "digits", "ar8-sn1"))["bound"] is None

"""config.yaml: the file in the repository is valid and agrees with the paper, and wrong keys are refused by name."""

import copy
import json
import re
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from helpers.snakemake_copy import copy_tree, snakemake

from robreg.runs import settings
from robreg.runs.catalogue import select_runs
from robreg.runs.config import (
    chosen_runs,
    makeable_items,
    run_names,
    study_items,
    study_runs,
    unmakeable_items,
    validate,
)
from robreg.runs.settings import ConfigError
from robreg.runs.yaml_file import check_yaml_file

ROOT = Path(__file__).parents[2]
SELF_CONTAINING = {}
SELF_CONTAINING["x"] = [SELF_CONTAINING]
BOMB = "a: &a0 [1]\n" + "".join(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30))
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def put(tree, path, value):
    """Set the value at a dotted path of nested dicts and lists."""
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in parents:
        tree = tree[key]
    tree[last] = value


def test_the_config_in_the_repository_is_valid(config):
    validate(config, SCHEMA)


def test_the_schema_describes_every_key():
    def walk(schema, path):
        for key, value in schema.get("properties", {}).items():
            resolved = value.get("$ref", "").startswith("#/$defs/")
            assert resolved or "description" in value or "properties" in value or value.get("type") == "array", (
                f"{path}.{key}"
            )
            walk(value, f"{path}.{key}")

    schema = yaml.safe_load(SCHEMA.read_text())
    walk(schema, "")
    for name, part in schema["$defs"].items():
        walk(part, name)
        assert part.get("type") != "object" or part["additionalProperties"] is False
    assert set(schema["$defs"]["item"]["additionalProperties"]) == {
        "type",
        "minItems",
        "uniqueItems",
        "items",
    }  # the list of data sets that a figure or table shows


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("datasets.digits.training.epoch", 3, r"datasets\.digits\.training\.epoch: .*did you mean 'epochs'"),
        ("datasets.digits.evaluation.eps", -3, r"datasets\.digits\.evaluation\.eps: -3 is less than the minimum of 0"),
        ("datasets.digits.training_attack.step", "4/eps", r"datasets\.digits\.training_attack\.step"),
        (
            "datasets.digits.architecture",
            "resnet9",
            r"datasets\.digits: .*unknown architecture 'resnet9'",
        ),
        ("datasets.digits.kind", "mnist", r"datasets\.digits\.kind: 'mnist' is not one of"),
        ("datasets.digits.training.lr", "fast", r"datasets\.digits\.training\.lr: 'fast' is not of type 'number'"),
        ("datasets.digits.training.lr", float("nan"), r"datasets\.digits\.training\.lr: nan is not a finite number"),
        ("datasets.digits.training.epochs", 0, r"datasets\.digits\.training\.epochs: 0 is less than the minimum of 1"),
        ("datasets.digits.training", None, r"datasets\.digits\.training: None is not of type 'object'"),
        (
            "studies.demo.runs.0.dataset",
            "digit",
            r"studies\.demo\.runs: unknown data set 'digit': did you mean 'digits'",
        ),
        ("studies.demo.runs.0.ar", [-8], r"studies\.demo\.runs\.0\.ar\.0: -8 is less than the minimum of 0"),
        ("studies.demo.figures", ["fig13"], r"studies\.demo\.figures: unknown figure 'fig13': did you mean 'fig3'"),
        ("studies.demo.tables", [3], r"studies\.demo\.tables\.0: 3 is not of type 'string', 'object'"),
        ("studies.demo.figures", ["fig7"], r"studies\.demo\.figures: the study has no run for fig7"),
        (
            "studies.demo.tables",
            [{"table3": ["c10"]}],
            r"studies\.demo\.tables: table3 names \['c10'\], which have no run in this study",
        ),
        ("studies.demo.runs.0.arch", ["resnet9"], r"studies\.demo\.runs: .*unknown architecture 'resnet9'"),
        (
            "studies.demo.runs.0.spectral_norm",
            [0],
            r"runs\.0\.spectral_norm\.0: 0 is less than the minimum of 1e-06",
        ),
        (
            "architectures",
            {"s1": {"callable": "a:b"}},
            r"architectures\.s1: this name is reserved by the grammar of run names",
        ),
        (
            "architectures",
            {"net": {"callable": "torch.nn"}},
            r"net\.callable: 'torch\.nn' does not match",
        ),
        (
            "datasets.digits.crop",
            6,
            r"datasets\.digits: .*resized-crop-flip and the data set's crop, .* be given together",
        ),
        (
            "datasets.tin.crop",
            None,
            r"datasets\.tin: .*resized-crop-flip and the data set's crop, .* be given together",
        ),
        ("datasets.c10jpeg.label_column", "", r"datasets\.c10jpeg\.label_column: .*the column .* that has the labels"),
        ("datasets.c10jpeg.image_column", "", r"datasets\.c10jpeg\.image_column: .*the column .* encoded images"),
        ("datasets.c10jpeg.imagecolumn", "x", r"imagecolumn: unknown key 'imagecolumn': did you mean 'image_column'\?"),
        ("datasets.digits.incomplete", True, r"datasets\.digits\.incomplete: only kind tiny-imagenet"),
        (
            "datasets.digits.training.clip_rounds",
            0,
            r"training\.clip_rounds: 0 is less than the minimum of 1",
        ),
        ("studies.demo.compare", [32, 8], r"studies\.demo\.compare: .*the lower one first"),
        ("studies.demo.compare", [8, 64], r"studies\.demo\.compare: .*together in one of these: digits, resnet8"),
        ("runs", {"digits/ar08": {"training": {"epochs": 2}}}, r"runs: digits/ar08: 'ar08' must be written 'ar8'"),
        ("runs", {"digit/ar8": {"training": {"epochs": 2}}}, r"runs: unknown data set 'digit'"),
        ("runs", {"digits/ar8": {"training": {"epoch": 2}}}, r"runs\.digits/ar8\.training\.epoch: unknown key"),
        ("runs", {"digits/ar8": {"max_train": 2}}, r"runs\.digits/ar8\.max_train: unknown key"),
        (
            "datasets.digits.training.epochs",
            20.0,
            r"datasets\.digits\.training\.epochs: 20\.0 is not of type 'integer'",
        ),
        ("datasets.digits.threads", True, r"datasets\.digits\.threads: True is not of type 'integer'"),
        ("datasets.digits.evaluation.seed", 2**40, r"datasets\.digits\.evaluation\.seed: .* greater than the maximum"),
        ("studies.demo.runs.0.ar", [8.0], r"studies\.demo\.runs\.0\.ar\.0: 8\.0 is not of type 'integer'"),
        ("studies", {1: {}}, r"studies: key 1 is not text"),
        ("runs", {"digits/ar0": {"training_attack": {"steps": 3}}}, r"ar0\.training_attack: standard training has no"),
        ("runs", {"digits/ar8-fgsm": {"training_attack": {"start": "random"}}}, r"fgsm\.training_attack: FGSM is one"),
        ("runs", {"digits/ar8": {"training_attack": {"fgsm": "plain"}}}, r"ar8\.training_attack\.fgsm: .* with PGD"),
        (
            "runs",
            {"tin/ar4": {"training": {"augmentation": "none"}}},
            r"runs: tin/ar4: .* crop, which is its size, must be given together",
        ),
        (
            "runs",
            {"c10/ar8": {"training": {"augmentation": "resized-crop-flip"}}},
            r"runs: c10/ar8: .* be given together",
        ),
        ("runs", {"digits/ar8": {"training": {"clip_rounds": 1}}}, r"ar8\.training\.clip_rounds: .* no bound"),
        ("datasets.c10.source", None, r"datasets\.c10\.source: kind cifar10 cannot be read from None: give download"),
        ("datasets.c10.source", "", r"datasets\.c10\.source: '' should be non-empty"),
        ("datasets.digits.source", "download", r"datasets\.digits\.source: .* come with scikit-learn; give null"),
        (
            "datasets.c10jpeg.source",
            "download",
            r"datasets\.c10jpeg\.source: .* cannot be downloaded; give their folder",
        ),
        ("datasets.c10jpeg.label_offset", -1, r"datasets\.c10jpeg\.label_offset: -1 is less than the minimum of 0"),
        ("datasets.digits.training.pad", 4, r"digits/ar0: training\.pad: augmentation none does not pad; give 0"),
        ("datasets.c10.training.lr_drops", [100, 100], r"training\.lr_drops: .* non-unique"),
        (
            "datasets.digits.evaluation.step",
            0,
            r"evaluation\.step: an attack with steps of 0 does not move; give a larger step",
        ),
        ("datasets.digits.training_attack.step", 0, r"training_attack\.step: an attack with steps of 0 does not move"),
        ("datasets.digits.masking.more_steps", 10, r"masking\.more_steps must be greater than masking\.steps"),
        ("datasets.digits.masking.eps", [8, 64], r"digits\.masking\.eps: .* at least 128, where any image"),
        (
            "studies.demo.title",
            "two\nlines",
            r"studies\.demo\.title: the character '\\n' is not allowed in text; remove it",
        ),
        ("datasets.digits.title", "a\x01", r"datasets\.digits\.title: the character '\\x01' is not allowed"),
        (
            "datasets.c10.published.0.label",
            "\ud800",
            r"c10\.published\.0\.label: the character '\\ud800' is not allowed",
        ),
        (
            "architectures",
            {"net": {"callable": "a:b", "arguments": {"\x00": 1}}},
            r"net\.arguments: the character '\\x00' is not",
        ),
        ("devise", "cpu", r"devise: unknown key 'devise': did you mean 'device'"),
        (
            "datasets.digits.training.lr",
            10**400,
            r"training\.lr: this whole number has 64 bits or more; write a smaller",
        ),
        ("datasets.digits.evaluation.step", f"eps/{'9' * 5000}", r"evaluation\.step: 'eps/9"),
        ("datasets.digits.spread.eps", 0, r"digits\.spread\.eps: 0 is less than or equal to the minimum of 0"),
        ("datasets.digits.spread.step", 0, r"spread\.step: an attack with steps of 0 does not move"),
        (f"datasets.{'d' * 256}", {}, r"datasets: 'd+' does not match .* at most 64"),
        ("architectures", {"n" * 256: {"callable": "a:b"}}, r"architectures: 'n+' is too long \(at most 64"),
        ("studies", {"s" * 256: {}}, r"studies: 's+' does not match .* at most 64"),
        (
            "studies.demo.figures",
            ["fig3", {"fig3": ["digits"]}],
            r"demo\.figures: fig3 is listed twice; remove one entry",
        ),
        ("studies.demo.tables", [{"table1": ["digits", "digits"]}], r"demo\.tables\.0\.table1: .* non-unique"),
        (
            "architectures",
            {"net": {"callable": "a:b", "arguments": {"x": date(2026, 1, 2)}}},
            r"x: datetime\.date\(2026, 1, 2\) is a date",
        ),
        (
            "architectures",
            {"net": {"callable": "a:b", "arguments": {"x": [b"1"]}}},
            r"x\.0: b'1' is a bytes; write text in quotes",
        ),
        (
            "architectures",
            {"net": {"callable": "a:b", "arguments": SELF_CONTAINING}},
            r"config\.yaml: a value contains itself",
        ),
    ],
)
def test_the_message_for_a_wrong_key_names_it(config, path, value, message):
    put(config, path, value)
    with pytest.raises(ConfigError, match=message):
        validate(config, SCHEMA)


def radii(tree, path=""):
    """Yield the paths of all strengths, radii and steps of a configuration."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, (dict, list)):
            yield from radii(value, where)
        elif next(part for part in reversed(where.split(".")) if not part.isdigit()) in (
            "ar",
            "compare",
            "eps",
            "step",
        ):
            yield where


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (0.125, "write 32 for 32/255"),
        (0.03, "write 8 for 8/255"),
        (0.1, "write 26 for 26/255"),
        (1e-4, "write 1 or more"),
        ("8/255", "write 8 for 8/255"),
        (" 2 / 255", "write 2 for 2/255"),
        ("0.0314", "write 8 for 8/255"),
        (255.5, "write at most 255"),
        ("256/255", "write at most 255"),
    ],
)
def test_a_share_of_the_range_of_pixels_is_no_strength_radius_or_step(config, value, fix):
    config["runs"] = {"digits/ar8": {"evaluation": {"eps": 8, "step": 2}}}
    paths = list(radii(config))
    assert len(paths) > 150
    for path in paths:
        wrong = json.loads(json.dumps(config))  # unlike deepcopy, this keeps no two blocks the same object
        put(wrong, path, value)
        said = "no fraction of eps" if path.endswith("loss_variation.step") else fix
        with pytest.raises(ConfigError, match=rf"^config\.yaml: {re.escape(path)}: {re.escape(repr(value))} .*{said}"):
            validate(wrong, SCHEMA)


@pytest.mark.parametrize("step", [1, 2.5, 255, "eps/4", "eps/1000"])
def test_other_steps_are_allowed(config, step):
    config["datasets"]["digits"]["evaluation"]["step"] = step
    validate(config, SCHEMA)


def test_an_architecture_may_have_an_eps_of_its_own(config):
    config["architectures"] |= {"net": {"callable": "a:b", "arguments": {"eps": 1e-5, "step": "1/2"}}}
    validate(config, SCHEMA)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"own\.yaml: a is given twice, in line 1 and in line 3; remove one, or move"),
        ("a:\n  - {b: 1}\n  - {b: 1, c: 2, b: 1}\n", r"own\.yaml: a\.1\.b is given twice, in line 3 and in line 3"),
        (
            "a: [1\n",
            r"own\.yaml cannot be read as YAML: line 2, column 1: expected ',' or '\]', .* which begins in line 1, ",
        ),
        (
            "a: {b: [1, c: 2}\n",
            r"own\.yaml cannot be read as YAML: line 1, column 16: .* begins in line 1, column 8; correct it",
        ),
        ("a: \udcff", r"own\.yaml cannot be read as YAML: .* invalid start byte"),
        ("a: 2020-13-45", r"own\.yaml cannot be read as YAML: month must be in 1\.\.12; correct it"),
        (f"a: {'1' * 5000}", r"own\.yaml cannot be read as YAML: .* 5000 digits"),
        (
            f"a: {'[' * 3000}{']' * 3000}",
            r"own\.yaml cannot be read as YAML: .* nested too deeply; write it without aliases",
        ),
        ("? [a]\n: 1", r"own\.yaml cannot be read as YAML: .* unhashable key .*; correct it"),
        ("a: !!bool foo", r"own\.yaml cannot be read as YAML: 'foo'; correct it"),
        ("a: !!int", r"own\.yaml cannot be read as YAML: .*; correct it"),
        ('a: "\\UFFFFFFFF"', r"own\.yaml cannot be read as YAML: .*; correct it"),
        (
            "__use_yte__: true\n?print(1): 2",
            r"own\.yaml: __use_yte__ would run the expressions in this file; remove it",
        ),
        (BOMB, r"own\.yaml: its aliases stand for more than 100000 values; use fewer of them"),
        ("a: !!python/name:os.system", r"own\.yaml cannot be read as YAML: could not determine a constructor"),
    ],
)
def test_ambiguous_or_unreadable_yaml_is_refused(text, message, tmp_path):
    (tmp_path / "own.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message) as error:
        check_yaml_file(tmp_path / "own.yaml")
    assert "\n" not in str(error.value)


def test_expressions_in_config_yaml_are_not_run(tmp_path):
    folder = copy_tree(tmp_path / "tree")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"__use_yte__: true\n__definitions__:\n- open('RAN', 'w')\n{text}")
    said = snakemake(folder, "-n", "demo", check=False)
    assert "config.yaml: __use_yte__ would run the expressions in this file" in said
    assert not (folder / "RAN").exists()


def test_a_key_repeated_through_an_alias_is_allowed(tmp_path):
    for text in ("a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: *x\n", "a: &x [1, *x]\n", (ROOT / "config.yaml").read_text(), ""):
        (tmp_path / "own.yaml").write_text(text)
        check_yaml_file(tmp_path / "own.yaml")


def test_names_reserved_by_the_workflow_are_refused(config):
    with pytest.raises(ConfigError, match=r"studies\.train: a rule of the workflow has this name"):
        validate({**config, "studies": {"train": config["studies"]["demo"]}}, SCHEMA, reserved=["train"])
    put(config, "datasets.studies", config["datasets"]["digits"])
    with pytest.raises(ConfigError, match=r"datasets\.studies: this name is reserved"):
        validate(config, SCHEMA)


def test_the_schedule_of_the_paper_study_is_that_of_the_paper(config):
    run = settings.run_settings(config, "c10", "ar16")
    assert (run["arch"], run["scalars"], run["space"]) == ("resnet56", "biases", "normalised")
    assert {settings.run_settings(config, name, "ar16")["space"] for name in ("c100", "tin")} == {"normalised"}
    assert {settings.run_settings(config, name, "ar16")["space"] for name in ("digits", "c10jpeg")} == {"pixel"}
    assert run["train_attack"] == {"attack": "pgd", "eps": 16.0, "step": 2.0, "steps": 10, "start": "random"}
    assert run["training"] == {
        "augmentation": "crop-flip",
        "batch_size": 256,
        "compile": True,
        "deterministic": True,
        "epochs": 200,
        "lr": 0.05,
        "lr_drops": [100, 150],
        "lr_factor": 10.0,
        "momentum": 0.9,
        "pad": 4,
        "precision": "bf16",
        "weight_decay": 0.0,
    }
    assert (run["evaluation"]["eps"], run["evaluation"]["step"], run["evaluation"]["steps"]) == (8.0, 2.0, 10)


def test_variants_change_only_what_they_name(config):
    plain = settings.run_settings(config, "digits", "ar16")
    assert settings.run_settings(config, "digits", "ar0")["train_attack"] is None
    assert plain["train_attack"]["step"] == 4.0
    fgsm = settings.run_settings(config, "digits", "ar16-fgsm")["train_attack"]
    assert fgsm == {"attack": "fgsm", "eps": 16.0, "step": 16.0, "steps": 1, "start": "clean"}
    for name, trained, evaluated in (
        ("ar16-normspace", "normalised", "normalised"),
        ("ar16-symmetric-evalpixel", "symmetric", "pixel"),
    ):
        run = settings.run_settings(config, "digits", name)
        measures = ("evaluation", "loss_variation", "strong_attack", "spread", "masking")
        assert run["space"] == trained
        assert {run[measure]["space"] for measure in measures} == {evaluated}
    mixed = settings.run_settings(config, "digits", "ar16-clean0.5")["train_attack"]
    assert mixed == plain["train_attack"] | {"clean_share": 0.5}
    other_seed = settings.run_settings(config, "digits", "ar16-s3")
    assert {key for key in plain if plain[key] != other_seed[key]} == {"variant", "seed"}


def test_default_precision_is_left_out_so_that_older_networks_keep_their_settings(config):
    spec = config["datasets"]["digits"]["training"]
    resolved = settings.run_settings(config, "digits", "ar8")
    assert (spec.pop("precision"), spec.pop("compile")) == ("fp32", False)
    assert settings.run_settings(config, "digits", "ar8") == resolved
    spec["deterministic"] = False
    assert settings.run_settings(config, "digits", "ar8") == resolved
    for key, value in (("precision", "bf16"), ("compile", True), ("deterministic", True)):
        config["runs"] = {"digits/ar8": {"training": {key: value}}}
        assert settings.run_settings(config, "digits", "ar8")["training"] == {**resolved["training"], key: value}


def test_an_override_changes_only_its_run(config):
    before = {variant: settings.run_settings(config, "digits", variant) for variant in ("ar8", "ar16")}
    config["runs"] = {"digits/ar8": {"training": {"epochs": 3}}}
    after = {variant: settings.run_settings(config, "digits", variant) for variant in ("ar8", "ar16")}
    assert after["ar16"] == before["ar16"]
    assert after["ar8"]["training"] == {**before["ar8"]["training"], "epochs": 3}


def test_equal_settings_have_equal_text_and_hash_however_they_are_written(config):
    resolved = settings.run_settings(config, "digits", "ar8")
    other = copy.deepcopy(config)
    training = other["datasets"]["digits"]["training"]
    other["datasets"]["digits"]["training"] = {
        **dict(reversed(training.items())),
        "lr_factor": 10.0,
        "weight_decay": 0.0,
    }
    again = settings.run_settings(other, "digits", "ar8")
    assert repr(again) == repr(resolved)
    assert settings.hash_settings(again) == settings.hash_settings(resolved)
    put(config, "datasets.digits.training.lr", 0.2)
    assert settings.hash_settings(settings.run_settings(config, "digits", "ar8")) != settings.hash_settings(resolved)


def test_training_settings_do_not_depend_on_how_the_network_is_measured(config):
    before = settings.training_settings(settings.run_settings(config, "digits", "ar8"))
    config["datasets"]["digits"]["evaluation"]["eps"] = 16
    config["datasets"]["digits"]["loss_variation"]["eps"] = [1]
    assert settings.training_settings(settings.run_settings(config, "digits", "ar8")) == before


def test_a_study_lists_each_run_once_and_in_order(config):
    config["studies"]["demo"]["runs"] = [
        {"dataset": "digits", "ar": [8, 0], "seeds": [1, 0]},
        {"dataset": "digits", "ar": [0], "arch": ["resnet56"]},
        {"dataset": "digits", "ar": [8]},
    ]
    assert run_names(config, "demo") == [
        ("digits", "ar8-s1"),
        ("digits", "ar8"),
        ("digits", "ar0-s1"),
        ("digits", "ar0"),
        ("digits", "ar0-resnet56"),
    ]


def test_a_study_can_contain_every_kind_of_run(config):
    grid = {"dataset": "digits", "ar": [0, 8], "attack": ["pgd", "fgsm"], "space": ["pixel", "normalised"]}
    config["studies"]["demo"] |= {"runs": [grid], "compare": [0, 8], "figures": ["fig3"], "tables": []}
    validate(config, SCHEMA)
    names = ["ar0", "ar8", "ar0-normspace", "ar8-normspace", "ar8-fgsm", "ar8-fgsm-normspace"]
    assert [variant for _, variant in run_names(config, "demo")] == names
    first = [{key: run[key] for key in ("train_attack", "space")} for run in study_runs(config, "demo")]
    assert first[0] == {"train_attack": "pgd", "space": "pixel"}
    assert first[-1] == {"train_attack": "fgsm", "space": "normalised"}


def test_the_strengths_to_compare_must_occur_together(config):
    config["studies"]["demo"]["runs"].append({"dataset": "c10", "ar": [4, 8]})
    validate(config, SCHEMA)  # the runs on digits have both strengths
    config["studies"]["demo"]["runs"] = [{"dataset": "c10", "ar": [8]}, {"dataset": "digits", "ar": [32]}]
    config["studies"]["demo"] |= {"figures": ["fig3"], "tables": []}
    with pytest.raises(
        ConfigError, match=r"\[8, 32\] must be two strengths, .* one of these: c10, resnet56 \[8\]; dig"
    ):
        validate(config, SCHEMA)


def test_an_unknown_study_is_refused_with_the_known_ones(config):
    with pytest.raises(ConfigError, match="no study 'papre'; add its block, or ask for one of: paper,"):
        run_names(config, "papre")


def test_the_paper_study_has_the_31_runs_of_the_paper_and_9_more_seeds(config):
    def names(dataset, *parts):
        return {(dataset, f"ar{ar}{part}") for part in parts for ar in (4, 8, 16)}

    expected = names("c10", "", "-resnet110", "-sn1", "-sn3", "-sn5", "-fgsm") | names(
        "c100", "", "-resnet110", "-fgsm"
    )
    expected |= names("tin", "") | {("tin", "ar0")}
    assert len(expected) == 31
    expected |= names("c10", "-s1", "-s2") | {("c10", f"ar0{seed}") for seed in ("", "-s1", "-s2")}
    found = run_names(config, "paper")
    assert len(found) == 40
    assert set(found) == expected
    same = [
        (run["dataset"], run["arch"], run["train_attack"], run["spectral_norm"]) for run in study_runs(config, "paper")
    ]
    assert same.count(("c10", "resnet56", "pgd", None)) == 12
    assert {run["arch"] for run in study_runs(config, "paper") if run["dataset"] == "tin"} == {"wrn50"}


def test_the_conventions_study_is_the_six_experiments(config):
    assert run_names(config, "conventions") == [
        ("c10", "ar0-resnet56nobias"),
        ("c10", "ar0"),
        ("c10", "ar0-fixup56"),
        ("c10wd", "ar0"),
        ("c10e40", "ar16"),
        ("c10e40", "ar16-symmetric"),
        ("c10e40", "ar16-clean0.5-symmetric"),
        ("c10", "ar16"),
        ("c10", "ar4"),
        ("c10", "ar16-fgsm"),
        ("tin", "ar0"),
    ]
    paper = settings.run_settings(config, "c10", "ar16")
    for dataset, changed in (("c10wd", {"weight_decay"}), ("c10e40", {"epochs", "lr_drops"})):
        other = settings.run_settings(config, dataset, "ar16")
        assert {key for key in other if other[key] != paper[key]} == {"dataset", "training"}
        assert {key for key, value in other["training"].items() if paper["training"][key] != value} == changed


def test_the_literal_study_differs_from_the_paper_s_in_space_and_scalars_only(config):
    assert run_names(config, "literal") == [("c10", f"ar{ar}-resnet56nobias-pixel") for ar in (0, 4, 8, 16)]
    literal, paper = (settings.run_settings(config, "c10", name) for name in ("ar8-resnet56nobias-pixel", "ar8"))
    measures = {"evaluation", "loss_variation", "strong_attack", "spread", "masking"}
    assert {key for key in paper if paper[key] != literal.get(key)} == {
        "variant",
        "arch",
        "space",
        "scalars",
    } | measures
    for key in measures:
        assert {**literal[key], "space": "normalised"} == paper[key]


@pytest.mark.parametrize(
    ("change", "default", "named"),
    [
        ({"space": "symmetric"}, "ar8", "ar8-symmetric"),
        ({"space": "normalised"}, "ar8", "ar8-normspace"),
        ({"evaluation.space": "normalised"}, "ar8", "ar8-evalnormspace"),
        ({"training_attack.clean_share": 0.5}, "ar8", "ar8-clean0.5"),
        ({"architecture": "fixup8"}, "ar8", "ar8-fixup8"),
    ],
)
def test_what_a_data_set_says_and_what_a_name_says_are_the_same_run(change, default, named, config):
    by_name = settings.run_settings(config, "digits", named)
    plain = settings.run_settings(config, "digits", default)
    for key, value in change.items():
        put(config, f"datasets.digits.{key}", value)
    del config["studies"]["architectures"]  # it compares AR 0, which has no share of clean examples, with AR 8
    validate(config, SCHEMA)
    assert settings.run_settings(config, "digits", default) == by_name | {"variant": default}
    assert by_name != plain | {"variant": named}
    with pytest.raises(ConfigError, match=f"must be written '{default}'"):
        settings.run_settings(config, "digits", named)
    back = {"space": "ar8-pixel", "evaluation.space": "ar8-evalpixel", "training_attack.clean_share": "ar8-clean0"}
    back["architecture"] = "ar8-resnet8"
    (name,) = [back[key] for key in change]
    assert settings.run_settings(config, "digits", name) == plain | {"variant": name}


def test_a_study_lists_runs_of_every_space_share_and_network(config):
    grid = {"dataset": "digits", "ar": [0, 8], "arch": ["resnet8", "fixup8"], "clean_share": [0, 0.5]}
    grid |= {"space": ["symmetric"], "evaluation_space": ["pixel", "symmetric"]}
    config["studies"]["demo"] |= {"runs": [grid], "compare": [0, 8], "figures": ["fig3"], "tables": []}
    validate(config, SCHEMA)
    names = [variant for _, variant in run_names(config, "demo")]
    assert names == [
        f"ar{ar}{arch}{clean}-symmetric{evaluated}"
        for arch in ("", "-fixup8")
        for clean in ("", "-clean0.5")
        for evaluated in ("-evalpixel", "")
        for ar in (0, 8)
        if ar or not clean
    ]
    first = {run["variant"]: (run["train_attack"], run["space"]) for run in study_runs(config, "demo")}
    assert first["ar8-clean0.5-symmetric-evalpixel"] == ("pgd+clean0.5", "symmetric, evaluated in pixel")


@pytest.mark.parametrize(
    ("override", "fix"),
    [({"evaluation": {"space": "pixel"}}, "with -evalpixel"), ({"training_attack": {"clean_share": 0.5}}, "-clean")],
)
def test_an_override_cannot_say_what_the_name_of_a_run_says(override, fix, config):
    config["runs"] = {"c10/ar8": override}
    with pytest.raises(ConfigError, match=rf"the name of a run says this; name a run .*{fix}"):
        validate(config, SCHEMA)


def test_settings_of_before_there_were_biases_name_the_network_without_them():
    old = {"arch": "resnet56", "factory": None, "width": 16}
    assert settings.with_present_names(old) == old | {"arch": "resnet56nobias"}
    for other in (old | {"scalars": "biases"}, old | {"arch": "wrn50"}, old | {"factory": {"callable": "a:b"}}, {}):
        assert settings.with_present_names(other) == other


def test_a_study_can_be_made_of_the_runs_that_are_trained(config):
    finished = set()

    def is_trained(folder, wanted):
        assert (wanted["dataset"], wanted["variant"]) == (folder.parent.name, folder.name)
        assert wanted["training"]["epochs"] == config["datasets"]["digits"]["training"]["epochs"]
        return folder.name in finished

    everything = chosen_runs(config, "demo", is_trained)
    assert everything == study_runs(config, "demo")
    config["only_finished"] = True
    validate(config, SCHEMA)
    with pytest.raises(ConfigError, match="none of the 15 runs of the study demo is trained yet with the settings"):
        chosen_runs(config, "demo", is_trained)
    finished.update({"ar0", "ar16"})
    trained = chosen_runs(config, "demo", is_trained)
    assert [run["variant"] for run in trained] == ["ar0", "ar16"]
    figures = makeable_items(config, "demo", "figures", trained)
    assert list(figures) == ["fig1", "fig2", "fig3", "fig4", "fig5", "fig8", "fig12", "spread", "examples"]
    tables = makeable_items(config, "demo", "tables", trained)
    assert list(tables) == ["table1", "table3", "attacks", "padding", "theory"]
    assert makeable_items(config, "demo", "figures", everything) == study_items(config, "demo", "figures")
    config["studies"]["demo"]["figures"] = [{"fig3": ["digits", "digits/resnet56"]}]
    assert makeable_items(config, "demo", "figures", trained) == {"fig3": ["digits"]}
    assert unmakeable_items(config, "demo", trained) == ["fig3 (digits/resnet56)", "table2", "table6", "b2"]
    assert unmakeable_items(config, "demo", everything) == ["fig3 (digits/resnet56)"]


def test_a_bound_is_projected_exactly_by_default(config):
    assert settings.run_settings(config, "c10", "ar8-sn3")["clip_rounds"] == "exact"
    assert settings.run_settings(config, "c10", "ar8")["clip_rounds"] is None
    config["runs"] = {"c10/ar8-sn3": {"training": {"clip_rounds": 2}}}
    assert settings.run_settings(config, "c10", "ar8-sn3")["clip_rounds"] == 2


def test_fgsm_with_a_random_start_takes_a_larger_step(config):
    config["runs"] = {"c10/ar8-fgsm": {"training_attack": {"fgsm": "random-start"}}}
    found = settings.run_settings(config, "c10", "ar8-fgsm")["train_attack"]
    assert found == {"attack": "fgsm", "eps": 8.0, "step": 10.0, "steps": 1, "start": "random"}


def test_a_user_defined_architecture_is_part_of_the_settings(config):
    config["architectures"] |= {"vgg": {"callable": "torchvision.models:vgg11", "arguments": {"dropout": 0.1}}}
    validate(config, SCHEMA)
    found = settings.run_settings(config, "c10", "ar8-vgg")
    code = {"torchvision": metadata.version("torchvision")}
    assert found["factory"] == {"callable": "torchvision.models:vgg11", "arguments": {"dropout": 0.1}, "code": code}
    assert settings.run_settings(config, "c10", "ar8")["factory"] is None
    grid = {"dataset": "digits", "arch": ["vgg"], "ar": [8, 32]}
    config["studies"]["demo"] |= {"runs": [grid], "figures": ["fig3"], "tables": []}
    validate(config, SCHEMA)
    assert run_names(config, "demo") == [("digits", "ar8-vgg"), ("digits", "ar32-vgg")]


def networks_shown(config, study):
    """Return the networks that each figure and table of a study shows, as the names that it can be restricted to."""
    listed = study_runs(config, study)
    items = study_items(config, study, "figures") | study_items(config, study, "tables")
    shown = {name: select_runs(name, listed, only) for name, only in items.items()}
    return {name: {f"{run['dataset']}/{run['arch']}" for run in runs} for name, runs in shown.items()}


def test_the_paper_study_shows_the_networks_that_the_paper_shows(config):
    shown = networks_shown(config, "paper")
    small, deep = {"c10/resnet56", "c100/resnet56"}, {"c10/resnet110", "c100/resnet110"}
    assert shown["fig1"] == shown["fig6"] == {"c10/resnet56"}
    assert shown["fig3"] == shown["spread"] == shown["examples"] == small | {"tin/wrn50"}
    for name in ("fig4", "fig5", "fig8", "fig9", "fig10", "fig11", "table1", "table2", "b2"):
        assert shown[name] == small
    assert shown["fig7"] == deep
    assert shown["table3"] == {"c10/resnet56", "c10/resnet110"}
    assert shown["fig12"] == shown["attacks"] == small | deep | {"tin/wrn50"}


def own_study(config, **parts):
    """Put a study of one own architecture, with these figures and tables, in place of the demo."""
    config["architectures"] |= {"mynet": {"callable": "mynet:MyNet"}}
    runs = [{"dataset": "digits", "arch": ["mynet"], "ar": [0, 8, 32]}]
    config["studies"]["demo"] |= {"runs": runs, "figures": [], "tables": []} | parts
    return config


def test_a_study_of_one_own_architecture_shows_it_everywhere(config):
    figures = ["fig1", "fig2", "fig3", "fig4", "fig5", "fig8", "fig12", "spread", "examples"]
    tables = ["table1", "table3", "b2", "attacks", "padding", "theory"]
    own_study(config, figures=figures, tables=tables)
    validate(config, SCHEMA)
    shown = networks_shown(config, "demo")
    assert shown.pop("fig2") == set()
    assert all(networks == {"digits/mynet"} for networks in shown.values())


def test_every_architecture_of_a_study_is_shown_unless_a_figure_names_what_it_shows(config):
    both = {"digits/mynet", "digits/resnet8"}
    kinds = [{"ar": [0, 8, 32]}, {"ar": [8], "attack": ["fgsm"]}, {"ar": [8], "spectral_norm": [1]}]
    runs = [{"dataset": "digits", "arch": ["resnet8", "mynet"], **kind} for kind in kinds]
    figures = [f"fig{number}" for number in (1, 3, 4, 5, 6, 7, 9, 10, 11, 12)] + [{"fig8": ["digits/mynet"]}]
    figures += ["spread", "examples"]
    own_study(config, runs=runs, figures=figures, tables=["table1", {"table3": ["digits"]}, {"b2": ["digits/resnet8"]}])
    validate(config, SCHEMA)
    shown = networks_shown(config, "demo")
    assert (shown.pop("fig8"), shown.pop("b2")) == ({"digits/mynet"}, {"digits/resnet8"})
    assert all(networks == both for networks in shown.values())


def test_all_that_a_study_cannot_make_is_named_at_once_with_what_it_lacks(config):
    own_study(
        config, figures=["fig1", "fig7", "fig6", "fig9", "fig11"], tables=["table2", "table3", {"b2": ["digits"]}]
    )
    config["studies"]["demo"]["runs"] = [
        {"dataset": "digits", "arch": ["mynet"], "ar": [0, 8], "seeds": [0]},
        {"dataset": "digits", "arch": ["mynet"], "ar": [32], "seeds": [1]},
    ]
    with pytest.raises(ConfigError) as error:
        validate(config, SCHEMA)
    assert str(error.value) == (
        "config.yaml: studies.demo.figures: the study has no run for "
        "fig7 (missing: a second architecture (arch) on a data set, for it compares architectures), "
        "fig6 (missing: runs with a spectral_norm), "
        "fig9, fig11 (missing: runs with attack: [fgsm] and a strength above 0); "
        "studies.demo.tables: the study has no run for "
        "table2 (missing: runs with attack: [fgsm] and a strength above 0), "
        "b2: [digits] (missing: both strengths of compare, 8 and 32, with the same seed); "
        "add such runs, or leave these out"
    )


def test_a_figure_needs_runs_for_everything_that_it_names(config):
    fgsm = {"dataset": "digits", "attack": ["fgsm"], "ar": [8]}
    own_study(config, figures=[{"fig9": ["digits/resnet8", "digits/mynet"]}])
    config["studies"]["demo"]["runs"].append(fgsm)
    with pytest.raises(ConfigError, match=r"no run for fig9: \[digits/mynet\] \(missing: runs with attack: \[fgsm\]"):
        validate(config, SCHEMA)
    config["studies"]["demo"]["figures"] = [{"fig9": ["digits/resnet56"]}]
    with pytest.raises(
        ConfigError, match=r"fig9 names \['digits/resnet56'\], .*: digits, digits/mynet, digits/resnet8$"
    ):
        validate(config, SCHEMA)

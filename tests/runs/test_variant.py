"""Run names: every run has one name, and any other text is refused with the correct name."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robreg.runs.variant import ARCHITECTURES, SPACES, Defaults, Variant, VariantError, is_available_name, parse

SPACE = st.sampled_from(list(SPACES))
SHARE = st.just(0.0) | st.floats(0.01, 0.99)
VARIANTS = st.builds(
    Variant,
    ar=st.integers(0, 255),
    arch=st.sampled_from(ARCHITECTURES),
    fgsm=st.booleans(),
    clean=SHARE,
    bound=st.none() | st.integers(1, 99).map(float) | st.floats(1e-6, 1e6),
    space=SPACE,
    evaluation_space=st.none() | SPACE,
    seed=st.integers(0, 1000),
).filter(
    lambda run: (run.ar or not (run.fgsm or run.clean)) and run.evaluation_space != run.space
)  # one way to build each
DEFAULTS = st.builds(Defaults, st.sampled_from(ARCHITECTURES), SHARE, SPACE, st.none() | SPACE)
RESNET8, RESNET56 = Defaults("resnet8"), Defaults("resnet56")


@example(Variant(8, "resnet8", bound=3.0000000000000004), RESNET8)
@example(Variant(8, "resnet8"), Defaults("resnet8", 0.5, "normalised", "symmetric"))
@given(VARIANTS, DEFAULTS)
def test_parsing_a_name_returns_its_run(variant, defaults):
    assert parse(variant.name(defaults), defaults) == variant


@given(VARIANTS, VARIANTS, DEFAULTS)
def test_two_runs_never_share_a_name(one, other, defaults):
    assert (one.name(defaults) == other.name(defaults)) == (one == other)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ar0", Variant(0, "resnet56")),
        ("ar16-resnet110-sn3", Variant(16, "resnet110", bound=3.0)),
        ("ar8-fgsm-sn0.5-normspace-s2", Variant(8, "resnet56", fgsm=True, bound=0.5, space="normalised", seed=2)),
        ("ar8-resnet56nobias", Variant(8, "resnet56nobias")),
        ("ar8-fixup110-clean0.5", Variant(8, "fixup110", clean=0.5)),
        ("ar8-symmetric-evalpixel", Variant(8, "resnet56", space="symmetric", evaluation_space="pixel")),
        ("ar8-clean0.25-sn1-evalnormspace", Variant(8, "resnet56", clean=0.25, bound=1, evaluation_space="normalised")),
    ],
)
def test_documented_names(name, variant):
    assert variant.name(RESNET56) == name
    assert parse(name, RESNET56) == variant


@pytest.mark.parametrize(
    ("name", "space", "evaluated", "clean", "called"),
    [
        ("ar8", "normalised", "symmetric", 0.5, "normalised, evaluated in symmetric"),
        ("ar8-pixel", "pixel", "symmetric", 0.5, "pixel, evaluated in symmetric"),
        ("ar8-clean0-evalnormspace", "normalised", None, 0.0, "normalised"),
        ("ar8-symmetric", "symmetric", None, 0.5, "symmetric"),
        ("ar0-evalpixel", "normalised", "pixel", 0.0, "normalised, evaluated in pixel"),
    ],
)
def test_a_name_leaves_out_what_its_data_set_says(name, space, evaluated, clean, called):
    defaults = Defaults("resnet8", clean=0.5, space="normalised", evaluation_space="symmetric")
    run = parse(name, defaults)
    assert (run.space, run.evaluation_space, run.clean, run.spaces) == (space, evaluated, clean, called)
    assert run.train_attack == ("pgd+clean0.5" if clean else "pgd")


@pytest.mark.parametrize(
    ("wrong", "correct"),
    [
        ("ar08", "ar8"),
        ("ar8-s0", "ar8"),
        ("ar8-sn0", "ar8"),
        ("ar8-s01", "ar8-s1"),
        ("ar8-sn3.0", "ar8-sn3"),
        ("ar8-sn.5", "ar8-sn0.5"),
        ("ar8-resnet8", "ar8"),
        ("ar0-fgsm", "ar0"),
        ("ar8-s1-sn3", "ar8-sn3-s1"),
        ("ar8-normspace-fgsm", "ar8-fgsm-normspace"),
        ("ar8-pixel", "ar8"),
        ("ar8-evalpixel", "ar8"),
        ("ar8-normspace-evalnormspace", "ar8-normspace"),
        ("ar8-clean0", "ar8"),
        ("ar8-clean.50", "ar8-clean0.5"),
        ("ar0-clean0.5", "ar0"),
    ],
)
def test_another_spelling_is_refused_with_the_correct_name(wrong, correct):
    with pytest.raises(VariantError, match=f"must be written '{correct}'"):
        parse(wrong, RESNET8)


PIECES = ["ar", "ar8", "ar08", "ar0", "ar256", "-fgsm", "-sn3", "-sn0", "-sn3.0", "-s1", "-s0", "-s01", "-normspace"]
PIECES += ["-clean0.5", "-clean0", "-clean1", "-evalpixel", "-evalsymmetric", "-symmetric", "-pixel", "-fixup8"]
PIECES += [
    "-sn0.0000001",
    "-sn3.00000000000000001",
    "-sn" + "9" * 400,
    "-s" + "9" * 5000,
    "-resnet8",
    "-resnet56",
    "-resnet9",
    "-",
    "--",
    "8",
    ".",
    "é",
    " ",
    "/",
    "\n",
    "-S1",
    "-\u0661",
]


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.text(max_size=12))
def test_a_text_is_either_the_name_of_a_run_or_refused_in_one_sentence(text):
    try:
        name, message = parse(text, RESNET8).name(RESNET8), ""
    except VariantError as error:
        name, message = text, str(error)
    assert name == text
    assert "\n" not in message
    if correct := re.search(r"must be written '(\S+)'", message):
        assert parse(correct[1], RESNET8).name(RESNET8) == correct[1] != text


@pytest.mark.parametrize(
    "text",
    ["", "8", "ar", "ar-8", "ar8-", "ar8-foo", "ar8.5", "ar8-sn-1", "ar8-s-1", "AR8", "ar8 "]
    + [f"{head}{'9' * 5000}" for head in ("ar", "ar8-s", "ar8-sn", "ar8-sn0.")],
)
def test_a_text_that_is_not_a_name_is_refused_with_the_grammar(text):
    with pytest.raises(VariantError, match=r"ar\{strength\}"):
        parse(text, RESNET8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ar8-s1-s2", "seed twice"),
        ("ar8-clean1", r"use 0\.01 to 0\.99"),
        ("ar8-resnet20nobias", "unknown architecture"),
        ("ar8-resnet9", "unknown architecture 'resnet9'"),
        ("ar256", "at most 255"),
    ]
    + [(f"ar8-sn{bound}", r"use 0\.000001 to 1000000") for bound in ("0.0000001", "1000001", "9" * 30)],
)
def test_an_impossible_run_is_refused_with_the_reason(text, reason):
    with pytest.raises(VariantError, match=reason):
        parse(text, RESNET8)


@pytest.mark.parametrize(("text", "fix"), [("ar0.5", "128"), ("ar.03-s1", "8"), ("ar8/255", "8"), ("ar0.031-sn3", "8")])
def test_a_strength_that_is_a_share_of_the_range_of_pixels_is_refused_with_the_right_number(text, fix):
    with pytest.raises(VariantError, match=rf"'{text}' is not the name of a run: .* write {fix} for {fix}/255"):
        parse(text, RESNET8)


@pytest.mark.parametrize("part", ["vgg", "mynet", "resnt8"])
def test_an_unknown_part_of_a_name_is_refused_with_the_known_architectures(part):
    with pytest.raises(VariantError, match=rf"unknown architecture '{part}'.*: use one of .*'own'\], .*write ar"):
        parse(f"ar8-{part}", RESNET8, ["own"])


def test_a_misspelt_architecture_is_answered_with_the_nearest_one():
    with pytest.raises(VariantError, match=r"unknown architecture 'resnt8' \(did you mean 'resnet8'\?\)"):
        parse("ar8-resnt8", RESNET8)


def test_a_user_defined_architecture_is_parsed_if_it_is_known():
    variant = Variant(8, "smallvgg", bound=2.0)
    assert parse(variant.name(RESNET8), RESNET8, ["smallvgg"]) == variant
    assert parse("ar8", Defaults("smallvgg"), ["smallvgg"]).arch == "smallvgg"
    with pytest.raises(VariantError, match="unknown architecture 'smallvgg': use one of"):
        parse("ar8-smallvgg", RESNET8)
    with pytest.raises(VariantError, match=r"unknown architecture 'resnet9': use one of .*'smallvgg'"):
        parse("ar8-resnet9", RESNET8, ["smallvgg"])


@pytest.mark.parametrize(
    "name",
    [
        "fgsm",
        "normspace",
        "pixel",
        "evalsymmetric",
        "clean1",
        "resnet8nobias",
        "fixup8",
        "s1",
        "sn3",
        "resnet8",
        "wrn50",
        "Vgg",
        "my-net",
        "1net",
        "",
        "s" + 40 * "1",
        "sn" + 70 * "1",
    ],
)
def test_names_reserved_by_the_grammar_are_not_free(name):
    assert not is_available_name(name)


@pytest.mark.parametrize("name", ["vgg11", "sn", "snet", "resnet20", "mlp"])
def test_other_names_are_free(name):
    assert is_available_name(name)

"""Run names: every run has one name, and any other text is refused with the correct name."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robreg.runs.variant import ARCHITECTURES, Variant, VariantError, is_available_name, parse

VARIANTS = st.builds(
    Variant,
    ar=st.integers(0, 255),
    arch=st.sampled_from(ARCHITECTURES),
    fgsm=st.booleans(),
    bound=st.none() | st.integers(1, 99).map(float) | st.floats(1e-6, 1e6),
    normspace=st.booleans(),
    seed=st.integers(0, 1000),
).filter(lambda variant: variant.ar or not variant.fgsm)


@example(Variant(8, "resnet8", bound=3.0000000000000004), "resnet8")
@given(VARIANTS, st.sampled_from(ARCHITECTURES))
def test_parsing_a_name_returns_its_run(variant, default):
    assert parse(variant.name(default), default) == variant


@given(VARIANTS, VARIANTS)
def test_two_runs_never_share_a_name(one, other):
    assert (one.name("resnet8") == other.name("resnet8")) == (one == other)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ar0", Variant(0, "resnet56")),
        ("ar16-resnet110-sn3", Variant(16, "resnet110", bound=3.0)),
        ("ar8-fgsm-sn0.5-normspace-s2", Variant(8, "resnet56", fgsm=True, bound=0.5, normspace=True, seed=2)),
    ],
)
def test_documented_names(name, variant):
    assert variant.name("resnet56") == name
    assert parse(name, "resnet56") == variant


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
    ],
)
def test_another_spelling_is_refused_with_the_correct_name(wrong, correct):
    with pytest.raises(VariantError, match=f"must be written '{correct}'"):
        parse(wrong, "resnet8")


PIECES = ["ar", "ar8", "ar08", "ar0", "ar256", "-fgsm", "-sn3", "-sn0", "-sn3.0", "-s1", "-s0", "-s01", "-normspace"]
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
        name, message = parse(text, "resnet8").name("resnet8"), ""
    except VariantError as error:
        name, message = text, str(error)
    assert name == text
    assert "\n" not in message
    if correct := re.search(r"must be written '(\S+)'", message):
        assert parse(correct[1], "resnet8").name("resnet8") == correct[1] != text


@pytest.mark.parametrize(
    "text",
    ["", "8", "ar", "ar-8", "ar8-", "ar8-foo", "ar8.5", "ar8-sn-1", "ar8-s-1", "AR8", "ar8 "]
    + [f"{head}{'9' * 5000}" for head in ("ar", "ar8-s", "ar8-sn", "ar8-sn0.")],
)
def test_a_text_that_is_not_a_name_is_refused_with_the_grammar(text):
    with pytest.raises(VariantError, match=r"ar\{strength\}"):
        parse(text, "resnet8")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("ar8-s1-s2", "seed twice"), ("ar8-resnet9", "unknown architecture 'resnet9'"), ("ar256", "at most 255")]
    + [(f"ar8-sn{bound}", r"use 0\.000001 to 1000000") for bound in ("0.0000001", "1000001", "9" * 30)],
)
def test_an_impossible_run_is_refused_with_the_reason(text, reason):
    with pytest.raises(VariantError, match=reason):
        parse(text, "resnet8")


@pytest.mark.parametrize(("text", "fix"), [("ar0.5", "128"), ("ar.03-s1", "8"), ("ar8/255", "8"), ("ar0.031-sn3", "8")])
def test_a_strength_that_is_a_share_of_the_range_of_pixels_is_refused_with_the_right_number(text, fix):
    with pytest.raises(VariantError, match=rf"'{text}' is not the name of a run: .* write {fix} for {fix}/255"):
        parse(text, "resnet8")


@pytest.mark.parametrize("part", ["vgg", "mynet", "resnt8"])
def test_an_unknown_part_of_a_name_is_refused_with_the_known_architectures(part):
    with pytest.raises(VariantError, match=rf"'{part}' is not part of ar.*; as an architecture, use one of .*'own'\]"):
        parse(f"ar8-{part}", "resnet8", ["own"])


def test_a_user_defined_architecture_is_parsed_if_it_is_known():
    variant = Variant(8, "smallvgg", bound=2.0)
    assert parse(variant.name("resnet8"), "resnet8", ["smallvgg"]) == variant
    assert parse("ar8", "smallvgg", ["smallvgg"]).arch == "smallvgg"
    with pytest.raises(VariantError, match="'smallvgg' is not part of"):
        parse("ar8-smallvgg", "resnet8")
    with pytest.raises(VariantError, match=r"unknown architecture 'resnet9': use one of .*'smallvgg'"):
        parse("ar8-resnet9", "resnet8", ["smallvgg"])


@pytest.mark.parametrize(
    "name",
    [
        "fgsm",
        "normspace",
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

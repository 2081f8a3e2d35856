"""Uncertainty of effects: against SciPy, an analysis of variance, a bootstrap, and simulated studies of known truth."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers.claim_tables import make, run

from robreg.claims import estimates, quantities
from robreg.claims.calibration import decided_by_chance
from robreg.claims.claim import ONE_SEED, RISES, SEVERAL_SEEDS
from robreg.claims.contrasts import AtStrength, Change, LayerChange, line_weights, select_seeds
from robreg.claims.estimates import Estimate
from robreg.claims.uncertainty import Effect, Part, over_seeds, q_values
from robreg.claims.verdicts import verdict

STRENGTHS = (4, 8, 16)
MEAN = Change("mean", lambda values: estimates.mean(values, "test examples"))
MEAN_THERE = Change("mean", lambda values: estimates.mean(values, "other test examples"))
STD = Change("std", lambda values: estimates.std(values, "test examples"))
AT_HIGH = AtStrength("mean", MEAN.quantity, "high")
MOST_FALL = LayerChange("median", pd.Series, quantities.median_change)


def test_without_images_the_interval_is_student_s_over_the_seeds():
    values = [1.0, 1.3, 0.8]
    effect = over_seeds([Estimate(value) for value in values])
    np.testing.assert_allclose(effect.interval(), scipy.stats.ttest_1samp(values, 0).confidence_interval())
    assert effect.p_value() == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    assert (effect.over, effect.n_seeds) == ("seeds", 3)
    assert effect.se_seeds == pytest.approx(scipy.stats.sem(values))
    assert math.isnan(effect.se_images)


def test_one_seed_has_the_interval_over_its_images():
    values = np.random.default_rng(0).gamma(2.0, size=50)
    effect = over_seeds([estimates.mean(values, "digits test examples")])
    expected = scipy.stats.ttest_1samp(values, 0)
    np.testing.assert_allclose(effect.interval(), expected.confidence_interval())
    assert effect.p_value() == pytest.approx(expected.pvalue)
    assert (effect.over, effect.n_seeds) == ("test examples", 1)
    assert math.isnan(effect.se_seeds)


def test_the_two_parts_of_the_variance_are_those_of_a_crossed_analysis_of_variance():
    draw = np.random.default_rng(1)
    values = draw.normal(size=(3, 1)) + draw.normal(size=(1, 40)) + draw.normal(0, 0.5, size=(3, 40))
    effect = over_seeds([estimates.mean(row, "test examples") for row in values])
    n_seeds, n = values.shape
    table = pd.DataFrame(values).stack().rename_axis(["seed", "image"]).rename("y").reset_index()
    of_seed, of_image = (table.groupby(key)["y"].transform("mean") for key in ("seed", "image"))
    rest = table["y"] - of_seed - of_image + table["y"].mean()
    ms_seeds = ((of_seed - table["y"].mean()) ** 2).sum() / (n_seeds - 1)
    ms_images = ((of_image - table["y"].mean()) ** 2).sum() / (n - 1)
    ms_rest = (rest**2).sum() / ((n_seeds - 1) * (n - 1))
    assert effect.se_seeds**2 == pytest.approx(ms_seeds / (n * n_seeds))
    assert effect.se_images**2 == pytest.approx((ms_images - ms_rest) / (n * n_seeds))
    t_seeds, t_images = (scipy.stats.t.ppf(0.975, freedom) for freedom in (n_seeds - 1, n - 1))
    assert effect.margin() == pytest.approx(np.hypot(t_seeds * effect.se_seeds, t_images * effect.se_images))
    (low, high), p = effect.interval(), effect.p_value()
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert effect.margin(p) == pytest.approx(abs(effect.value))


def test_a_crossed_bootstrap_finds_the_same_parts():
    draw = np.random.default_rng(2)
    networks = draw.gamma(2.0, size=300) * draw.uniform(0.9, 1.1, size=(3, 1)) * draw.uniform(0.6, 1.4, size=(3, 300))
    effect = over_seeds([estimates.std(row, "test examples") for row in networks])
    plain = networks.std(axis=1).mean()
    assert effect.value == pytest.approx(plain)
    images = np.var([networks[:, draw.integers(0, 300, 300)].std(axis=1).mean() for _ in range(4000)])
    seeds = np.var([networks.std(axis=1)[draw.integers(0, 3, 3)].mean() for _ in range(4000)])
    assert effect.images[0].in_these == pytest.approx(images, rel=0.1)
    assert effect.se_images**2 < effect.images[0].in_these  # a part of it is what training does to single images
    assert effect.se_seeds**2 == pytest.approx(seeds * 3 / 2, rel=0.1)  # a bootstrap of 3 seeds has 2/3 of the variance


def test_a_value_that_never_varies_has_no_interval_and_decides_nothing():
    zero = over_seeds([estimates.mean(np.zeros(10), "test examples")] * 3)
    assert (zero.value, zero.over) == (0, None)
    assert np.isnan([*zero.interval(), zero.p_value()]).all()
    assert verdict(zero, RISES) == "undecided"
    unknown = over_seeds([Estimate(0.1), Estimate(math.nan)])
    assert np.isnan(unknown.interval()).all()
    assert verdict(unknown, RISES) == "undecided"


def test_one_seed_shows_what_is_there_and_proves_nothing():
    values = np.random.default_rng(0).normal(5.0, 1.0, size=100)
    assert verdict(over_seeds([estimates.mean(values, "test examples")]), RISES) == "seen"
    assert verdict(over_seeds([estimates.mean(-values, "test examples")]), RISES) == "not seen"
    assert verdict(over_seeds([estimates.mean(values - 5, "test examples")]), RISES) == "not clear"
    assert verdict(over_seeds([Estimate(-0.1)]), RISES) == "not seen"  # spectra: known exactly in this network
    assert verdict(over_seeds([Estimate(0.0)]), RISES) == "not clear"
    assert set(ONE_SEED).isdisjoint(SEVERAL_SEEDS)


def test_a_difference_of_settings_has_welch_s_interval_over_seeds_and_that_of_one_seed_if_one_has_no_more():
    first, second = [1.0, 1.3, 0.8], [2.0, 2.9, 2.2, 2.6]
    apart = over_seeds([Estimate(value) for value in second]) - over_seeds([Estimate(value) for value in first])
    expected = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    np.testing.assert_allclose(apart.interval(), expected)
    assert apart.n_seeds == 3
    draw = np.random.default_rng(3)
    three, one = draw.normal(size=(3, 50)), draw.normal(size=60)
    several = over_seeds([estimates.mean(row, "c10 test examples") for row in three])
    mixed = several - over_seeds([estimates.mean(one, "c100 test examples")])
    welch = scipy.stats.ttest_ind(three.mean(0), one, equal_var=False).confidence_interval()
    np.testing.assert_allclose(mixed.interval(), welch)
    assert (mixed.n_seeds, mixed.over) == (1, "test examples")


def test_images_that_differ_between_networks_are_refused():
    with pytest.raises(ValueError, match="digits test examples: one network has 4 of them and the other 5"):
        over_seeds([estimates.mean(np.arange(n), "digits test examples") for n in (5, 4)])


@pytest.mark.parametrize("n_seeds", range(2, 13))
def test_p_values_are_student_s_for_any_number_of_seeds(n_seeds):
    draw = np.random.default_rng(n_seeds)
    for shift in (0.0, 0.1, 1.0, 10.0):
        values = draw.normal(shift, 1.0, size=n_seeds)
        found = over_seeds([Estimate(value) for value in values]).p_value()
        assert found == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-3 * (found == 1))
    first, second = [1.0, 2.0, 3.0], [5.0, 6.0, 7.0]  # 4 degrees of freedom
    apart = over_seeds([Estimate(value) for value in first]) - over_seeds([Estimate(value) for value in second])
    assert apart.p_value() == pytest.approx(scipy.stats.ttest_ind(first, second, equal_var=False).pvalue)


def test_a_change_that_is_0_but_for_rounding_has_p_1():
    changes = [[472, 473], [477, 479], [476, 473]]
    networks = {
        ar: {seed: 100.0 * (np.arange(500) < each[end]) for seed, each in enumerate(changes)}
        for end, ar in enumerate((4, 16))
    }
    effect = MEAN(networks, 4, 16).effect
    assert abs(effect.value) < 1e-12
    assert effect.p_value() == 1


def test_q_values_are_benjamini_and_hochberg_s():
    found = q_values([0.01, math.nan, 0.04, 0.03, 0.9])
    assert found == pytest.approx([0.04, math.nan, 4 / 3 * 0.04, 4 / 3 * 0.04, 0.9], nan_ok=True)
    assert q_values([]) == []


# The change over all strengths.


def test_the_change_is_the_slope_of_the_least_squares_line_times_the_range():
    for strengths, means in ((STRENGTHS, [3.0, 1.0, 2.0]), ((0, 4, 8, 16), [1.0, 5.0, 4.0, 2.0])):
        slope = scipy.stats.linregress(strengths, means).slope
        weights = list(line_weights(strengths).values())
        assert np.dot(weights, means) == pytest.approx(slope * (strengths[-1] - strengths[0]))
    assert line_weights([4, 16]) == {4: -1.0, 16: 1.0}
    assert line_weights(STRENGTHS)[8] < -0.2  # the middle one of three has a say


def test_the_middle_has_a_say_and_a_step_the_other_way_is_named():
    values = {4: 1.0, 8: 4.0, 16: 2.0, 32: 9.0}
    networks = {ar: {seed: at + np.linspace(-1, 1, 50) for seed in (0, 1)} for ar, at in values.items()}
    outcome = MEAN(networks, 4, 16)
    assert outcome.strengths == STRENGTHS
    assert outcome.ends.value == pytest.approx(1.0)
    assert outcome.effect.value == pytest.approx(scipy.stats.linregress(STRENGTHS, [1.0, 4.0, 2.0]).slope * 12)
    assert [(step.low, step.high) for step in outcome.reversed_steps] == [(8, 16)]
    assert (outcome.at_low, outcome.at_high) == (pytest.approx(1.0), pytest.approx(2.0))


def test_networks_are_paired_by_their_seeds():
    def networks(low: list[int], middle: list[int], high: list[int]) -> Any:
        return {4: dict.fromkeys(low, "low"), 8: dict.fromkeys(middle, "mid"), 16: dict.fromkeys(high, "high")}

    def chosen(*seeds: list[int]) -> dict[int, int]:
        return {strength: len(column) for strength, column in select_seeds(networks(*seeds), 4, 16).items()}

    assert chosen([0, 1, 2], [0, 1, 2], [0, 1, 2]) == {4: 3, 8: 3, 16: 3}
    assert chosen([0, 1, 2], [0, 1, 2], [0]) == {4: 1, 8: 1, 16: 1}
    assert chosen([0, 1, 2], [0], [0, 1, 2]) == {4: 3, 16: 3}  # a middle without these seeds is left out
    assert chosen([0, 1, 2], [0, 1, 2], [3, 4]) == {4: 2, 16: 2}  # no common seed: any pairs are valid
    assert chosen([0, 1, 2], [0, 1, 2], [2, 3, 4]) == {4: 3, 16: 3}
    named = {4: {0: "a0", 1: "a1", 2: "a2"}, 16: {2: "b2", 3: "b3", 4: "b4"}}
    assert select_seeds(named, 4, 16) == {4: ["a2", "a0", "a1"], 16: ["b2", "b3", "b4"]}
    assert select_seeds({4: {0: "low"}}, 4, 16) == {}
    draw = np.random.default_rng(4)
    of_seed = draw.normal(0, 5, size=3)
    paired = {ar: {seed: of_seed[seed] + 0.1 * ar + draw.normal(0, 0.1, 50) for seed in (2, 0, 1)} for ar in (4, 16)}
    found = MEAN(paired, 4, 16).effect
    assert found.interval()[0] > 0
    assert found.se_seeds < 0.1


# Simulated studies of known truth: the share of 95 % intervals that cover it.

NOISES: dict[str, dict[str, Any]] = {  # standard deviations of the means that each source causes
    "seeds": {"seeds": 1.0},
    "images": {"images": 1.0},
    "both": {"seeds": 1.0, "images": 1.0},
    "mostly seeds": {"seeds": 1.0, "images": 0.4},
    "mostly images": {"seeds": 0.4, "images": 1.0},
    "single images of a training": {"crossed": 1.0},
    "all": {"seeds": 1.0, "images": 1.0, "crossed": 1.0},
    "skewed images": {"seeds": 0.5, "images": 1.0, "skewed": True},
}
N_IMAGES, CASES = 200, 1000


def simulated(draw: np.random.Generator, n_seeds: int, noise: dict[str, Any]) -> dict[int, dict[int, Any]]:
    """Draw values (images,) of networks of three strengths whose expected means are all 0."""
    shape = (len(STRENGTHS), N_IMAGES)
    of_images = draw.gamma(1.0, size=shape) - 1 if noise.get("skewed") else draw.normal(size=shape)
    wide = math.sqrt(N_IMAGES)
    same = 3 * draw.normal(size=N_IMAGES) + draw.normal(size=(n_seeds, 1))  # what strengths have in common cancels
    networks = {}
    for index, ar in enumerate(STRENGTHS):
        values = noise.get("images", 0) * wide * of_images[index]
        values = values + noise.get("seeds", 0) * math.sqrt(n_seeds) * draw.normal(size=(n_seeds, 1))
        values = values + noise.get("crossed", 0) * math.sqrt(n_seeds) * wide * draw.normal(size=(n_seeds, N_IMAGES))
        networks[ar] = dict(enumerate(values + same))
    return networks


def coverage(one: Callable[[np.random.Generator], tuple[Effect, float]]) -> tuple[float, float]:
    """Return the percentages of cases whose interval covers the truth, and whose verdict is "holds" or "fails"."""
    draw = np.random.default_rng(5)
    found = [one(draw) for _ in range(CASES)]
    covered = [effect.interval()[0] < truth < effect.interval()[1] for effect, truth in found]
    decided = [verdict(effect, RISES) in SEVERAL_SEEDS[:2] for effect, _ in found]
    return 100 * float(np.mean(covered)), 100 * float(np.mean(decided))


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("noise", NOISES)
def test_intervals_of_a_change_cover_the_truth_and_chance_decides_few(noise, n_seeds):
    covered, decided = coverage(lambda draw: (MEAN(simulated(draw, n_seeds, NOISES[noise]), 4, 16).effect, 0.0))
    assert 93 <= covered <= 98
    assert decided <= 7


def test_one_seed_decides_nothing_and_its_interval_is_about_its_images():
    for noise in ("images", "both"):
        covered, decided = coverage(lambda draw: (MEAN(simulated(draw, 1, NOISES[noise]), 4, 16).effect, 0.0))  # noqa: B023
        assert decided == 0
        assert 93 <= covered <= 98 if noise == "images" else covered < 90  # nothing is said of other trainings


def test_intervals_of_a_difference_of_settings_cover_the_truth():
    def one(draw: np.random.Generator) -> tuple[Effect, float]:
        first, second = (simulated(draw, 3, NOISES["both"]) for _ in range(2))
        return (MEAN(first, 4, 16) - MEAN_THERE(second, 4, 16)).effect, 0.0

    covered, decided = coverage(one)
    assert 93 <= covered <= 98
    assert decided <= 7


def test_summaries_over_images_that_networks_share_have_intervals_that_are_rather_too_wide():
    def one(draw: np.random.Generator) -> tuple[Effect, float]:
        hard = draw.normal(size=N_IMAGES)

        def summary(_: Any) -> Estimate:
            return estimates.proportion(
                int((hard + draw.normal(0, 0.3, N_IMAGES) > draw.normal(0, 0.1)).sum()), N_IMAGES
            )

        return Change("accuracy", summary)({ar: dict.fromkeys(range(3)) for ar in STRENGTHS}, 4, 16).effect, 0.0

    covered, decided = coverage(one)
    assert covered >= 93
    assert decided <= 7


def test_three_seeds_less_one_are_about_these_networks_alone():
    def one(draw: np.random.Generator) -> tuple[Effect, float]:
        first, second = simulated(draw, 3, NOISES["images"]), simulated(draw, 1, NOISES["images"])
        return (MEAN(first, 4, 16) - MEAN_THERE(second, 4, 16)).effect, 0.0

    covered, decided = coverage(one)
    assert 93 <= covered <= 98
    assert decided == 0


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_at_one_strength_cover_the_truth(n_seeds):
    def one(draw: np.random.Generator) -> tuple[Effect, float]:
        images = draw.gamma(2.0, size=N_IMAGES) - 2
        networks = {seed: images + draw.normal(0, 0.1) for seed in range(n_seeds)}
        return AT_HIGH({16: networks}, 4, 16).effect, 0.0

    covered, decided = coverage(one)
    assert 93 <= covered <= 98
    assert decided <= 7


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_of_a_change_of_spreads_cover_the_truth(n_seeds):
    def one(draw: np.random.Generator) -> tuple[Effect, float]:
        shape = draw.gamma(4.0, size=N_IMAGES)
        networks = {
            ar: {seed: (shape + draw.gamma(2.0, size=N_IMAGES)) * draw.lognormal(0, 0.05) for seed in range(n_seeds)}
            for ar in STRENGTHS
        }
        return STD(networks, 4, 16).effect, 0.0

    covered, decided = coverage(one)
    assert 93 <= covered <= 98
    assert decided <= 7


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("common", [0.0, 1.0, 20.0])
def test_intervals_over_layers_that_may_move_together_cover_the_truth(n_seeds, common):
    """common: how much the layers of one network rise and fall together."""

    def one(draw: np.random.Generator) -> tuple[Effect, float]:
        networks = {
            ar: {seed: draw.normal(size=20) + common * draw.normal() for seed in range(n_seeds)} for ar in STRENGTHS
        }
        return MOST_FALL(networks, 4, 16).effect, 0.0

    covered, decided = coverage(one)
    assert 93 <= covered <= 98
    assert decided <= 7


def test_the_smallest_effect_that_is_decided_is_half_of_the_interval():
    effect = Effect(0.3, (Part(0.01, 2.0, "seeds"),), (Part(0.02, 99.0, "test examples", 0.02),), 3)
    margin = effect.margin()
    assert verdict(effect, RISES) == "undecided"
    assert verdict(Effect(margin * 1.001, effect.seeds, effect.images, 3), RISES) == "holds"
    assert verdict(Effect(margin * 0.999, effect.seeds, effect.images, 3), RISES) == "undecided"


def test_the_command_prints_a_table_and_refuses_too_few_runs_in_one_sentence(tmp_path: Path):
    folders = [each["folder"] for each in make(tmp_path, [run("digits", 8, seed) for seed in range(2)])]

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "robreg.claims.calibration", *more]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    done = command(*folders, "--seeds", "1", "--splits", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 against 1" in done.stdout
    assert "all together" in done.stdout
    few = command(*folders)
    assert few.returncode == 2
    assert few.stderr.endswith("error: 6 runs are needed for --seeds 3, not 2\n")
    missing = command(str(tmp_path / "nothing"), *folders, "--seeds", "1")
    assert missing.stderr.endswith(f"error: these are not folders of measured runs: {tmp_path / 'nothing'}\n")


def test_networks_of_equal_strength_are_compared_through_their_files(tmp_path: Path):
    folders = [Path(each["folder"]) for each in make(tmp_path, [run("digits", 8, seed) for seed in range(6)])]
    table = decided_by_chance(folders, n_seeds=3, splits=20).set_index("claim")["decided"]
    assert table.index[-1] == "all together"
    assert {"margin-std-falls", "svstd-falls-in-most-layers", "ge-gap-falls"} <= set(table.index)
    assert table["all together"] == pytest.approx(table.iloc[:-1].mean())
    assert table["all together"] <= 7
    assert "svstd-decrease-tenfold" not in table.index  # it fails, and rightly so
    one = decided_by_chance(folders, n_seeds=1, splits=5).set_index("claim")["decided"]
    assert np.isnan(one["svstd-falls-overall"])  # known exactly, so it has no interval
    assert np.isfinite(one.drop([key for key in one.index if key.startswith("svstd")])).all()
    with pytest.raises(ValueError, match="8 runs are needed to compare 4 with 4, not 6"):
        decided_by_chance(folders, n_seeds=4, splits=1)

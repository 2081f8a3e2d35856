"""Compare estimates and their intervals with SciPy, and count how often the intervals cover the truth."""

import numpy as np
import pytest
import scipy.stats

from robreg.claims import estimates, verdicts
from robreg.claims.claim import RISES


def test_the_interval_over_seeds_is_welch_s():
    first, second = [1.0, 1.3, 0.8], [2.0, 2.9, 2.2, 2.6]
    difference = estimates.over_seeds(second) - estimates.over_seeds(first)
    expected = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    np.testing.assert_allclose(difference.interval(), expected)
    alone = scipy.stats.ttest_1samp(first, 0).confidence_interval()
    np.testing.assert_allclose(estimates.over_seeds(first).interval(), alone)


def test_an_estimate_has_the_interval_over_seeds_unless_it_does_not_vary_or_is_a_share():
    draw = np.random.default_rng(5)
    vary = [estimates.mean(draw.normal(size=50), "test") for _ in range(3)]
    seeds = estimates.combine_seeds(vary)
    assert seeds.over == "seeds"
    assert seeds.interval() == estimates.over_seeds([each.value for each in vary]).interval()
    alike = estimates.combine_seeds([vary[0]] * 3)
    assert (alike.over, alike.interval()) == ("test examples", vary[0].interval())
    assert estimates.over_seeds([0.1] * 3).interval() == (0.1, 0.1)  # exact, without the rounding error of a mean
    unknown = estimates.combine_seeds([vary[0], estimates.mean(np.array([np.nan] * 2), "test")])
    assert np.isnan(unknown.interval()).all()


def test_seeds_that_agree_on_a_share_of_few_layers_do_not_narrow_its_interval():
    five, six = (estimates.share(np.arange(8) < n, "layers").scaled(1, -0.5) for n in (5, 6))
    assert verdicts.verdict(five, RISES) == verdicts.verdict(estimates.combine_seeds([five] * 3), RISES) == "undecided"
    nearly = estimates.combine_seeds([five] * 9 + [six])
    low, high = np.mean([five.interval()] * 9 + [six.interval()], axis=0)
    assert nearly.interval() == pytest.approx((low, high))
    assert (nearly.value, nearly.over) == (pytest.approx(0.1375), "layers")
    none, every = (estimates.share(np.arange(8) < n, "layers").scaled(1, -0.5) for n in (0, 8))
    apart = estimates.combine_seeds([none, every])  # the seeds differ by more than the layers do
    assert (apart.over, apart.interval()) == ("seeds", estimates.over_seeds([-0.5, 0.5]).interval())


def test_only_means_over_the_same_examples_are_compared_in_pairs():
    draw = np.random.default_rng(0)
    first = draw.normal(size=50)
    second = first + draw.normal(0.1, 0.1, size=50)
    paired = estimates.mean(second, "test") - estimates.mean(first, "test")
    np.testing.assert_allclose(paired.interval(), scipy.stats.ttest_rel(second, first).confidence_interval())
    apart = estimates.mean(second, "c10") - estimates.mean(first, "c100")
    welch = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    np.testing.assert_allclose(apart.interval(), welch)


def test_a_share_has_wilson_s_interval():
    chosen = np.array([True] * 9 + [False])
    expected = scipy.stats.binomtest(9, 10).proportion_ci(method="wilson")
    np.testing.assert_allclose(estimates.share(chosen, "layers").interval(), expected)
    low, high = estimates.share(chosen, "layers").scaled(-1, 0.5).interval()
    np.testing.assert_allclose((low, high), (0.5 - expected.high, 0.5 - expected.low))


def test_a_share_is_not_certain_even_if_all_layers_agree():
    assert estimates.share(np.array([True] * 2), "layers").interval()[0] < 0.5
    assert estimates.share(np.array([True] * 8), "layers").interval()[0] > 0.5


ESTIMATORS = {
    "std": (estimates.std, lambda x: x.std()),
    "skewness": (estimates.skewness, scipy.stats.skew),
    "mode": (estimates.mode, None),
    "log10_ratio": (
        lambda x, name: estimates.log10_ratio(estimates.std(x, name), estimates.mean(x, name)),
        lambda x: np.log10(x.std() / x.mean()),
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_influence_is_the_derivative_with_respect_to_the_weight_of_an_example(name):
    estimator, plain = ESTIMATORS[name]
    values = np.random.default_rng(1).gamma(2.0, size=400)
    found = estimator(values, "test")
    if plain is not None:
        assert found.value == pytest.approx(plain(values))
        n, drop = len(values), [3, 50, 399]
        left = np.array([estimator(np.delete(values, index), "test").value for index in drop])
        np.testing.assert_allclose(found.samples["test"][drop], (n - 1) * (found.value - left), rtol=0.05, atol=0.02)
    assert np.mean(found.samples["test"]) == pytest.approx(0, abs=1e-6)


def test_the_mode_is_the_maximum_of_scipy_s_density():
    values = np.random.default_rng(1).gamma(3.0, size=500)
    quartiles = np.percentile(values, [25, 75])
    width = 1.2 * min(values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.349) * 500 ** (-1 / 7)
    density = scipy.stats.gaussian_kde(values, bw_method=width / values.std(ddof=1))
    grid = np.linspace(0, 10, 20001)
    assert estimates.mode(values, "test").value == pytest.approx(grid[density(grid).argmax()], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "n", "truth"),
    [("std", 500, np.sqrt(5)), ("skewness", 2000, 2 / np.sqrt(5)), ("log10_ratio", 500, np.log10(5**-0.5))],
)
def test_intervals_cover_the_truth_about_95_times_out_of_100(name, n, truth):
    draw = np.random.default_rng(2)
    intervals = [ESTIMATORS[name][0](draw.gamma(5.0, size=n), "test").interval() for _ in range(400)]
    covered = np.mean([low < truth < high for low, high in intervals])
    assert 0.91 <= covered <= 0.98


def test_the_interval_of_a_paired_difference_of_modes_covers_it():
    draw, hits = np.random.default_rng(3), 0
    for _ in range(200):
        first = draw.normal(1.0, 1.0, size=400)
        second = 0.5 * first + draw.normal(0.0, 0.3, size=400)
        low, high = (estimates.mode(second, "test") - estimates.mode(first, "test")).interval()
        hits += low < -0.5 < high
    assert 0.91 <= hits / 200 <= 0.98


def test_adversarial_accuracies_are_compared_as_two_proportions():
    apart = estimates.proportion(60, 100) - estimates.proportion(45, 90)
    assert apart.value == pytest.approx(10)
    low, high = apart.interval()
    rates = [(61, 102), (46, 92)]
    half = 100 * 1.959964 * np.sqrt(sum(k / n * (1 - k / n) / n for k, n in rates))
    assert (high - low) / 2 == pytest.approx(half, rel=1e-5)
    assert (low + high) / 2 == pytest.approx(10)
    sure = estimates.proportion(0, 50).interval()
    assert sure[1] > 0


@pytest.mark.parametrize("n", [8, 55])
@pytest.mark.parametrize("center", [0.0, -0.1])
def test_the_interval_of_a_share_by_weight_covers_it_for_few_layers_too(n, center):
    draw = np.random.default_rng(4)
    many = draw.normal(center, 0.1, 200_000)
    truth = -many[many < 0].sum() / np.abs(many).sum()
    hits = 0
    for change in draw.normal(center, 0.1, (400, n)):
        low, high = estimates.share(change < 0, "layers", np.abs(change)).interval()
        hits += low < truth < high
    assert 0.92 <= hits / 400 <= 1


def test_a_share_with_equal_weights_is_the_plain_one_and_with_zero_weights_undecided():
    chosen = np.array([True] * 9 + [False])
    plain, weighed = estimates.share(chosen, "layers"), estimates.share(chosen, "layers", np.full(10, 0.3))
    np.testing.assert_allclose(weighed.interval(), plain.interval())
    assert verdicts.verdict(estimates.share(chosen, "layers", np.zeros(10)), RISES) == "undecided"

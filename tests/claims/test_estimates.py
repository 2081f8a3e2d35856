"""Compare estimates from one network and their intervals with SciPy."""

import numpy as np
import pytest
import scipy.stats

from robreg.claims import contrasts, estimates
from robreg.claims.estimates import Estimate
from robreg.claims.uncertainty import over_seeds


def interval(estimate: Estimate) -> tuple[float, float]:
    """Return the interval of one network, which is over its images."""
    return over_seeds([estimate]).interval()


def test_only_means_over_the_same_examples_are_compared_in_pairs():
    draw = np.random.default_rng(0)
    first = draw.normal(size=50)
    second = first + draw.normal(0.1, 0.1, size=50)
    paired = estimates.mean(second, "test") - estimates.mean(first, "test")
    np.testing.assert_allclose(interval(paired), scipy.stats.ttest_rel(second, first).confidence_interval())
    apart = estimates.mean(second, "c10") - estimates.mean(first, "c100")
    welch = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    np.testing.assert_allclose(interval(apart), welch)


def test_a_sum_of_equal_values_with_weights_that_sum_to_0_is_exactly_0():
    weights = contrasts.line_weights([4, 8, 16])
    assert list(weights) == [4, 8, 16]
    assert sum(weights.values()) == 0
    assert estimates.weighted_sum([Estimate(0.1)] * 3, list(weights.values())).value == 0


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
    intervals = [interval(ESTIMATORS[name][0](draw.gamma(5.0, size=n), "test")) for _ in range(400)]
    covered = np.mean([low < truth < high for low, high in intervals])
    assert 0.91 <= covered <= 0.98


def test_the_interval_of_a_paired_difference_of_modes_covers_it():
    draw, hits = np.random.default_rng(3), 0
    for _ in range(200):
        first = draw.normal(1.0, 1.0, size=400)
        second = 0.5 * first + draw.normal(0.0, 0.3, size=400)
        low, high = interval(estimates.mode(second, "test") - estimates.mode(first, "test"))
        hits += low < -0.5 < high
    assert 0.91 <= hits / 200 <= 0.98


def test_adversarial_accuracies_are_compared_as_two_proportions():
    apart = estimates.proportion(60, 100) - estimates.proportion(45, 90)
    assert apart.value == pytest.approx(10)
    low, high = interval(apart)
    rates = [(61, 102), (46, 92)]
    half = 100 * 1.959964 * np.sqrt(sum(k / n * (1 - k / n) / n for k, n in rates))
    assert (high - low) / 2 == pytest.approx(half, rel=1e-5)
    assert (low + high) / 2 == pytest.approx(10)
    assert interval(estimates.proportion(0, 50))[1] > 0

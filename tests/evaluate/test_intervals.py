"""Intervals: by hand, by other routes, and by simulation of their coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from statistics_by_hand import squared_parts

from featx.evaluate.intervals import (
    both_intervals,
    estimate_mean,
    holm,
    interval_of_mean,
    mean_interval,
    share_interval,
)

N_SAMPLES = 1000
# Of all cases together, one in a thousand would be outside by chance alone at these true values.
LEAST_COVERAGE, MOST_REJECTED = 0.93, 0.06
DRAWS, IMAGES = (1, 2, 3, 5, 10), (50, 300)
# Standard deviations, in a latent scale, of draws, and of images that one system finds harder;
# the rest differs from draw to draw. Draws that differ by 0.3 move an accuracy of 0.5 by 0.08.
EFFECTS = ((0, 0.5), (0, 0.01), (0.03, 0.5), (0.1, 0.3), (0.3, 0.01), (0.3, 0.5))


def simulate(rng, n_samples, shape, effects, accuracies):
    """Whether A is right less whether B is, each right where a latent normal is positive."""
    (n_draws, n_images), (sd_draw, sd_image) = shape, effects

    def normal(*shape):
        return rng.standard_normal((n_samples, *shape), dtype=np.float32)

    difficulty = normal(1, n_images)
    size = np.sqrt(1 + sd_draw**2 + sd_image**2 + 0.3**2)
    right = []
    for accuracy in accuracies:
        latent = difficulty + np.float32(stats.norm.ppf(accuracy) * size)
        latent = latent + np.float32(sd_image) * normal(1, n_images)
        latent = latent + np.float32(sd_draw) * normal(n_draws, 1)
        right.append(latent + np.float32(0.3) * normal(n_draws, n_images) > 0)
    return right[0].astype(np.float64) - right[1]


def outside(chance, n_cases):
    """How far a share of simulated samples may be off, one of all cases in a thousand."""
    return stats.norm.isf(0.001 / n_cases) * np.sqrt(chance * (1 - chance) / N_SAMPLES)


def covered(shape, effects, accuracies, n_samples=N_SAMPLES):
    # About one subset alone: draws do not differ, because there is but one.
    effects = (0, effects[1]) if shape[0] == 1 else effects
    rng = np.random.default_rng([*shape, *(int(100 * x) for x in (*effects, *accuracies))])
    n_at_once = max(1, 4_000_000 // (shape[0] * shape[1]))
    parts = [n_at_once] * (n_samples // n_at_once) + [n_samples % n_at_once]
    true, found = accuracies[0] - accuracies[1], []
    for n in parts:
        low, high = interval_of_mean(simulate(rng, n, shape, effects, accuracies))
        found += [(low <= true + 1e-12) & (true - 1e-12 <= high)]
    return np.concatenate(found).mean()


@pytest.mark.slow
@pytest.mark.parametrize("n_draws", DRAWS)
@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.99])
def test_equal_systems_are_rarely_told_apart(n_draws, accuracy):
    margin = outside(MOST_REJECTED, len(DRAWS) * 3 * len(IMAGES) * len(EFFECTS))
    for n_images, effects in itertools.product(IMAGES, EFFECTS):
        rejected = 1 - covered((n_draws, n_images), effects, (accuracy, accuracy))
        assert rejected <= MOST_REJECTED + margin, (n_images, effects)


@pytest.mark.slow
@pytest.mark.parametrize("n_draws", DRAWS)
@pytest.mark.parametrize("accuracies", [(0.52, 0.47), (0.92, 0.87), (0.99, 0.97)])
def test_intervals_cover_the_true_difference(n_draws, accuracies):
    margin = outside(LEAST_COVERAGE, len(DRAWS) * 3 * len(IMAGES) * len(EFFECTS))
    for n_images, effects in itertools.product(IMAGES, EFFECTS):
        share = covered((n_draws, n_images), effects, accuracies)
        assert share >= LEAST_COVERAGE - margin, (n_images, effects)


@pytest.mark.slow
@pytest.mark.parametrize("n_draws", [1, 2, 3])
def test_ten_thousand_images(n_draws):
    for effects, accuracies in itertools.product([(0.03, 0.5), (0.1, 0.01)], [(0.9, 0.9)]):
        share = covered((n_draws, 10_000), effects, accuracies, 400)
        assert share >= LEAST_COVERAGE - 4 * np.sqrt(0.93 * 0.07 / 400)


@pytest.mark.parametrize("n_draws", [1, 2, 3, 5])
def test_few_draws_reject_no_more_than_they_may(n_draws):
    """Where the two parts are alike, one number of degrees of freedom rejects up to 12 %."""
    for effects in ((0.1, 0.3), (0.3, 0.01)):
        rejected = 1 - covered((n_draws, 300), effects, (0.9, 0.9))
        assert rejected <= MOST_REJECTED + outside(MOST_REJECTED, 8)


def differences(seed, shape=(4, 60), effects=(0.4, 0.5), accuracies=(0.8, 0.7)):
    return simulate(np.random.default_rng(seed), 1, shape, effects, accuracies)[0]


def test_a_difference_is_found():
    estimates = [
        estimate_mean(differences(i, (5, 300), (0.05, 0.3), (0.8, 0.72))) for i in range(60)
    ]
    assert np.mean([e.p < 0.05 for e in estimates]) > 0.8
    assert np.mean([e.mean for e in estimates]) == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_draws", [1, 2, 7])
def test_the_interval_is_that_of_the_two_parts(seed, n_draws):
    d = differences(seed, (n_draws, 60))
    e = estimate_mean(d)
    centre, parts = squared_parts(d.tolist())
    assert len(parts) == min(n_draws, 2)
    half = np.sqrt(sum(stats.t.ppf(0.975, df) ** 2 * part for part, df in parts))
    assert e.mean == pytest.approx(d.mean())
    assert (e.low, e.high) == pytest.approx((max(centre - half, -1), min(centre + half, 1)))
    ends = interval_of_mean(np.stack([d, -d]))
    assert np.transpose(ends) == pytest.approx(np.array([[e.low, e.high], [-e.high, -e.low]]))
    assert (e.n_draws, e.n_images) == (n_draws, 60)
    # p is the level at which the interval ends at 0.
    half = np.sqrt(sum(stats.t.isf(e.p / 2, df) ** 2 * part for part, df in parts))
    assert half == pytest.approx(abs(centre))


def test_rejecting_is_to_leave_0_outside():
    for seed in range(200):
        e = estimate_mean(differences(seed, (2 + seed % 3, 50), (0.05, 0.3), (0.8, 0.65)))
        assert (e.p < 0.05) == (not e.low <= 0 <= e.high)
        assert e.low < e.mean < e.high


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (6, 0), (9, 2), (15, 5), (40, 20), (9, 9)])
def test_one_draw_is_bonett_and_price_and_near_mcnemar(better, worse):
    d = np.zeros((1, 200))
    d[0, :better], d[0, better : better + worse] = 1, -1
    e = estimate_mean(d)
    # Their equation, with Student's quantile and variance in place of the normal ones.
    p12, p21 = (better + 1) / 202, (worse + 1) / 202
    error = np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 201)
    z = stats.t.ppf(0.975, 201)
    assert (e.low, e.high) == pytest.approx((p12 - p21 - z * error, p12 - p21 + z * error))
    exact = stats.binomtest(better, better + worse).pvalue
    assert (e.p < 0.05) == (exact < 0.05)
    assert e.p == pytest.approx(exact, abs=0.06)


def test_what_no_image_shows_is_not_taken_for_none():
    e = estimate_mean(np.zeros((3, 50)))
    assert (e.mean, e.p) == (0, 1)
    assert e.high == -e.low > 0.05
    same = estimate_mean(np.ones((3, 50)))
    assert (same.mean, same.high) == (1, 1)
    assert same.low > 0.85
    assert same.p < 1e-20
    one = estimate_mean(np.array([[1.0]]))
    assert (one.n_images, one.low, one.high) == (1, -1, 1)
    huge = estimate_mean(np.ones((1, 20_000)))
    assert 0 < huge.p < 1e-100


def test_two_draws_that_disagree_tell_nothing():
    d = np.zeros((2, 200))
    d[0, :60] = 1
    e = estimate_mean(d)
    assert e.low < -0.9
    assert e.p > 0.3
    assert estimate_mean(d[:1]).p < 0.001  # of this one subset there is much to tell


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@pytest.mark.parametrize(("right", "n"), [(8, 8), (0, 8), (1, 3), (500, 1000), (999, 1000)])
def test_the_interval_of_one_accuracy_is_wilsons_and_bounded(right, n):
    low, high = share_interval(right / n, n)
    ends = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((ends.low, ends.high), abs=1e-12)
    assert 0 <= low <= right / n <= high <= 1


def test_the_interval_of_few_draws_is_cut_off_at_0_and_1():
    assert mean_interval([0.4, 0.8]) == (0.0, 1.0)
    assert mean_interval([0.9]) is None
    assert mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)
    assert both_intervals(0.9, (0.87, 0.98), None) == pytest.approx((0.87, 0.98))
    assert both_intervals(0.6, (0.57, 0.64), (0.56, 0.63)) == pytest.approx((0.55, 0.65))
    assert both_intervals(0.9, (0.8, 1.0), (0.8, 1.0)) == pytest.approx((0.9 - 0.02**0.5, 1.0))

"""The crossed estimate: by hand, by another route, and by simulation of its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statistics_by_hand import crossed_variance, mcnemar_p

from featx.evaluate.crossed import estimate_mean, holm


def simulate(rng, n_draws, n_images, sd_draw, sd_image):
    """Differences of two equally good systems, each right where a latent normal is positive."""
    difficulty = rng.normal(size=n_images) + 0.7
    right = []
    for _ in "ab":
        latent = difficulty + sd_image * rng.normal(size=n_images)
        latent = latent + sd_draw * rng.normal(size=(n_draws, 1))
        right.append(latent + 0.5 * rng.normal(size=(n_draws, n_images)) > 0)
    return right[0].astype(float) - right[1]


@pytest.mark.parametrize(
    ("n_draws", "n_images", "sd_draw", "sd_image", "most"),
    [
        (5, 300, 0.1, 0.5, 0.08),
        (5, 300, 0.3, 0.2, 0.08),
        (10, 100, 0.05, 1.0, 0.08),
        (3, 500, 0.15, 0.6, 0.1),  # three draws are too few for Satterthwaite's approximation
        (1, 300, 0, 0.5, 0.08),
    ],
)
def test_equal_systems_are_told_apart_in_five_percent(n_draws, n_images, sd_draw, sd_image, most):
    rng = np.random.default_rng([n_draws, n_images, int(100 * sd_draw)])
    samples = [simulate(rng, n_draws, n_images, sd_draw, sd_image) for _ in range(1000)]
    rejected = np.mean([estimate_mean(d).p < 0.05 for d in samples])
    assert 0.02 <= rejected <= most
    covered = [e.low <= 0 <= e.high for e in map(estimate_mean, samples)]
    assert np.mean(covered) == pytest.approx(1 - rejected)
    if n_draws > 1:
        naive = np.mean([mcnemar_p(d) < 0.05 for d in samples])
        assert naive > max(0.1, 2 * rejected)


def test_a_difference_is_found():
    rng = np.random.default_rng(1)
    samples = [simulate(rng, 5, 300, 0.05, 0.3) + (rng.random((5, 300)) < 0.08) for _ in range(100)]
    estimates = [estimate_mean(d) for d in samples]
    assert np.mean([e.p < 0.05 for e in estimates]) > 0.8
    assert np.mean([e.mean for e in estimates]) == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_the_variance_is_that_of_the_components(seed):
    d = simulate(np.random.default_rng(seed), 4, 60, 0.4, 0.5)
    e = estimate_mean(d)
    variance, df = crossed_variance(d)
    assert e.mean == pytest.approx(d.mean())
    assert e.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / variance**0.5, df))
    low, high = stats.t.interval(0.95, df, loc=d.mean(), scale=variance**0.5)
    assert (e.low, e.high) == pytest.approx((low, high))
    assert (e.n_draws, e.n_images) == (4, 60)


def test_one_draw_is_a_t_test_over_images():
    d = simulate(np.random.default_rng(0), 1, 80, 0, 0.5)
    e = estimate_mean(d)
    expected = stats.ttest_1samp(d[0], 0)
    assert e.p == pytest.approx(expected.pvalue)
    assert (e.low, e.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_no_variance_and_one_image():
    assert estimate_mean(np.zeros((3, 9))).p == 1
    same = estimate_mean(np.ones((3, 9)))
    assert (same.mean, same.low, same.high, same.p) == (1, 1, 1, 0)
    assert estimate_mean(np.array([[1.0]])).n_images == 1
    one = estimate_mean(np.array([[1.0], [0.0], [0.0]]))
    assert one.p == pytest.approx(stats.ttest_1samp([1, 0, 0], 0).pvalue)


def test_a_negative_component_is_floored_at_the_larger_one_way_term():
    """Draws that differ less than chance: the variance over images, with its freedom."""
    d = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    e = estimate_mean(d)
    assert e.mean == 0.25
    assert (e.low, e.high) == (0.25, 0.25)  # all rows and columns have the same mean
    d[3, 3] = 0
    ms_image = 4 * ((d.mean(axis=0) - d.mean()) ** 2).sum() / 3
    low, high = stats.t.interval(0.95, 3, loc=d.mean(), scale=(ms_image / 16) ** 0.5)
    e = estimate_mean(d)
    assert (e.low, e.high) == pytest.approx((low, high))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []

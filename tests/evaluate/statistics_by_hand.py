"""Formulas of textbooks, written another way than in featx."""

from __future__ import annotations

import math

from scipy import stats


def wilson_half_width(right, n):
    """Half the distance of the roots of (p - right/n)^2 = z^2 p (1 - p) / n."""
    z2 = stats.norm.ppf(0.975) ** 2
    a, b, c = 1 + z2 / n, -(2 * right / n + z2 / n), (right / n) ** 2
    return math.sqrt(b * b - 4 * a * c) / (2 * a)


def calibration_error(is_right, confidence, n_bins=15):
    """Guo et al. 2017, equation 5, bin by bin."""
    total = 0.0
    for m in range(1, n_bins + 1):
        rows = [i for i, p in enumerate(confidence) if (m - 1) / n_bins < p <= m / n_bins]
        if rows:
            accuracy = sum(bool(is_right[i]) for i in rows) / len(rows)
            mean = sum(float(confidence[i]) for i in rows) / len(rows)
            total += len(rows) / len(confidence) * abs(accuracy - mean)
    return total


def crossed_variance(d):
    """Variance components by sums of squares, entry by entry, then put together again."""
    n_draws, n_images = len(d), len(d[0])
    mean = sum(map(sum, d)) / (n_draws * n_images)
    row = [sum(r) / n_images for r in d]
    column = [sum(r[i] for r in d) / n_draws for i in range(n_images)]
    ms_draw = n_images * sum((m - mean) ** 2 for m in row) / (n_draws - 1)
    ms_image = n_draws * sum((m - mean) ** 2 for m in column) / (n_images - 1)
    df_rest = (n_draws - 1) * (n_images - 1)
    rest = [
        (d[r][i] - row[r] - column[i] + mean) ** 2 for r in range(n_draws) for i in range(n_images)
    ]
    ms_rest = sum(rest) / df_rest
    of_draw, of_image = (ms_draw - ms_rest) / n_images, (ms_image - ms_rest) / n_draws
    total = of_draw / n_draws + of_image / n_images + ms_rest / (n_draws * n_images)
    size = n_draws * n_images
    one_way = max((ms_draw / size, n_draws - 1), (ms_image / size, n_images - 1))
    if total <= one_way[0]:
        return one_way
    parts = ((ms_draw, n_draws - 1), (ms_image, n_images - 1), (ms_rest, df_rest))
    return total, (total * size) ** 2 / sum(ms**2 / df for ms, df in parts)


def mcnemar_p(d):
    """McNemar's test of all draws and images as if they were independent; no correction."""
    better, worse = (d > 0).sum(), (d < 0).sum()
    if better + worse == 0:
        return 1.0
    return float(stats.chi2.sf((better - worse) ** 2 / (better + worse), 1))

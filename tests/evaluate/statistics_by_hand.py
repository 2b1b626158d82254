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

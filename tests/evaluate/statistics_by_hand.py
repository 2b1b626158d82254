"""Formulas of textbooks, written another way than in featx."""

from __future__ import annotations

import math

from scipy import stats


def wilson_half_width(right, n):
    """Half the distance of the roots of (p - right/n)^2 = z^2 p (1 - p) / n."""
    z2 = stats.norm.ppf(0.975) ** 2
    a, b, c = 1 + z2 / n, -(2 * right / n + z2 / n), (right / n) ** 2
    return math.sqrt(b * b - 4 * a * c) / (2 * a)

"""Formulas of textbooks, written another way than in featx."""

from __future__ import annotations


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


def squared_parts(d):
    """Middle, and squared errors with degrees of freedom, of images and of draws, by sums.

    Two images are added, one right and one wrong in every draw.
    """
    n_draws, n_images = len(d), len(d[0])
    images = [sum(row[i] for row in d) / n_draws for i in range(n_images)] + [1, -1]
    n = len(images)
    centre = sum(images) / n
    parts = [(sum((image - centre) ** 2 for image in images) / (n - 1) / n, n - 1)]
    if n_draws > 1:
        draws = [sum(row) / n_images for row in d]
        mean = sum(draws) / n_draws
        squares = sum((draw - mean) ** 2 for draw in draws)
        parts.append((squares / (n_draws - 1) / n_draws, n_draws - 1))
    return centre, parts

"""Bounded 95 % intervals of accuracies: over test images, over draws, and of both together."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, sqrt
from statistics import NormalDist, fmean, stdev

from scipy.special import stdtrit

__all__ = ["Ends", "both_intervals", "format_ends", "mean_interval", "share_interval"]

Ends = tuple[float, float]
"""Lower and upper end, between 0 and 1."""

_CONFIDENCE = 0.95


def share_interval(share: float, n: int) -> Ends:
    """Interval of a share of n images that are a sample.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927:
    the p with (p - share)^2 <= z^2 p (1 - p) / n.
    """
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    # The ends are 0 and 1 exactly where all or none are right; rounding must not move them.
    return _bounded(min(centre - half, share), max(centre + half, share))


def mean_interval(values: Sequence[float]) -> Ends | None:
    """Interval of the mean of accuracies over draws of the training subset.

    Student's t, cut off at 0 and 1: the mean lies between them, so that cutting off loses no
    coverage (Mandelkern, "Setting confidence intervals for bounded parameters", Statistical
    Science 17, 2002).
    """
    n = len(values)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, (1 + _CONFIDENCE) / 2)) * stdev(values) / sqrt(n)
    return _bounded(fmean(values) - half, fmean(values) + half)


def both_intervals(mean: float, *intervals: Ends | None) -> Ends:
    """Join intervals of one mean that have independent causes: square and add, side by side.

    Zou and Donner, "Construction of confidence limits about effect measures: a general approach",
    Statistics in Medicine 27, 2008.
    """
    known = [ends for ends in intervals if ends is not None]
    low, high = (hypot(*(mean - ends[side] for ends in known)) for side in (0, 1))
    return _bounded(mean - low, mean + high)


def format_ends(ends: Ends | None) -> str:
    """Write the ends of an interval with a dash between them; ``-`` where there is none."""
    return "-" if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _bounded(low: float, high: float) -> Ends:
    return max(low, 0.0), min(high, 1.0)

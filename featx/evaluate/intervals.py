"""95 % intervals: of accuracies, and of means over draws and images that both are samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist, fmean, stdev

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

__all__ = [
    "Ends",
    "Estimate",
    "both_intervals",
    "estimate_mean",
    "format_ends",
    "holm",
    "interval_of_mean",
    "mean_interval",
    "share_interval",
]

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


_LEAST_LOGARITHM = -300.0  # of a p value
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the two-sided p value of the mean 0."""

    mean: float
    low: float
    high: float
    p: float
    n_draws: int
    n_images: int


def estimate_mean(values: NDArray[np.float64]) -> Estimate:
    r"""Estimate a mean over draws and images.

    d_ri = mu + a_r + b_i + e_ri, with draws r = 1..R and images i = 1..n, each once, all effects
    random. The mean of the draws' means d_r and that of the images' means d_i are both the mean, so
    that its variance has two parts,

        Var(mean) = s_a^2 / R + s_b^2 / n + s_e^2 / (R n) <= Var(d_r) / R + Var(d_i) / n,

    which counts s_e^2 / (R n) once too often (Owen, "The pigeonhole bootstrap", Annals of Applied
    Statistics 1, 2007). Each part has its own degrees of freedom, R - 1 and n - 1, and each is
    multiplied by its own quantile t of Student's distribution:

        half width^2 = t_(R-1)^2 s^2(d_r) / R + t_(n-1)^2 s^2(d_i) / n.

    For normal effects the coverage is at least the nominal one, however the two parts compare
    (Banerjee, "Approximate confidence interval for linear functions of means of k populations when
    the population variances are not equal", Sankhya 22, 1960): with V = V_1 + V_2, the distribution
    function G of chi^2 with one degree of freedom is concave, so that G(sum of t_j^2 s_j^2 / V) >=
    sum of V_j / V G(t_j^2 s_j^2 / V_j), whose expectation is the nominal coverage. Approximations
    that estimate one number of degrees of freedom for the sum (Satterthwaite) reject too often
    where draws are few: a small s^2(d_r), by chance, looks like many degrees of freedom.

    Two images are added, one that is 1 and one that is -1 in all draws, so that a difference that
    no image happens to show is not taken for none (Bonett and Price, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", Journal of Educational
    and Behavioral Statistics 37, 2012). For one draw, that is the whole interval; its test is like
    McNemar's, and about this draw alone: how much draws differ is not in it.

    The draws are a sample of those from one pool of training images. Coverage is held by simulation
    (`tests/evaluate/test_intervals.py`); where accuracies are above 0.98 and draws differ by half
    the errors, the effects of draws are so skewed that it can fall to 92 %.
    """
    n_draws, n_images = values.shape
    low, high = interval_of_mean(values)
    p = _level(*_parts(values))
    return Estimate(float(values.mean()), float(low), float(high), p, n_draws, n_images)


def interval_of_mean(values: Array) -> tuple[Array, Array]:
    """Give the ends of the intervals of `estimate_mean`, for any number of samples at once."""
    centre, parts = _parts(values)
    half = _half_width(parts, 1 - _CONFIDENCE)
    return np.maximum(centre - half, -1.0), np.minimum(centre + half, 1.0)


_Parts = list[tuple[Array, int]]


def _parts(values: Array) -> tuple[Array, _Parts]:
    """Middle of the interval, and the parts of its variance with their degrees of freedom."""
    n_draws, n_images = values.shape[-2:]
    of_draw, of_image = values.mean(axis=-1), values.mean(axis=-2)
    n = n_images + 2
    centre = of_image.sum(axis=-1) / n
    squares = np.square(of_image).sum(axis=-1) + 2 - n * centre**2
    parts = [(squares / (n - 1) / n, n - 1)]
    if n_draws > 1:
        parts.append((of_draw.var(axis=-1, ddof=1) / n_draws, n_draws - 1))
    return centre, parts


def _half_width(parts: _Parts, level: float) -> Array:
    # The lower tail keeps its digits where the level is tiny.
    total = sum(stdtrit(df, level / 2) ** 2 * variance for variance, df in parts)
    half: Array = np.sqrt(np.asarray(total))
    return half


def _level(centre: Array, parts: _Parts) -> float:
    def excess(logarithm: float) -> float:
        return float(_half_width(parts, float(np.exp(logarithm))) - abs(centre))

    if excess(_LEAST_LOGARITHM) <= 0:
        return float(np.exp(_LEAST_LOGARITHM))
    return float(np.exp(brentq(excess, _LEAST_LOGARITHM, 0.0))) if centre else 1.0


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjust p values for their number."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted

"""Pairs of rows that are closer than rows of different images usually are."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.halves import convert
from featx.heads.base import Rows, RowsView, check_finite, row_blocks
from featx.heads.scaling import N_CORES, Scratch

__all__ = [
    "DEFAULT_RATIO",
    "WIDTH",
    "NearPairs",
    "NearRule",
    "Sketch",
    "find_near",
    "mean_row",
    "near_within",
    "sketch_rows",
    "unit_length",
]

WIDTH = 1024
"""Values of a sketch; rows that are not longer are their own sketch."""

_DIGEST_BYTES = 16
_MOST_AVERAGED = 512
_MOST_PARTS = 4


@dataclass(frozen=True)
class Sketch:
    """What is kept of rows that are compared."""

    unit: NDArray[np.float32]
    digests: list[bytes]
    is_exact: bool
    centre: NDArray[np.float32]

    @property
    def error(self) -> float:
        """Standard deviation of a sketched cosine c, over 1 - c^2; see `sketch_rows`."""
        return 0.0 if self.is_exact else 1.0 / np.sqrt(max(self.unit.shape[1], 1))


def mean_row(*parts: Rows) -> NDArray[np.float32]:
    """Average finite rows of all parts, up to 512 of each, which lie evenly: (n_features,)."""
    n_features = int(parts[0].shape[1])
    total, n, scratch = np.zeros(n_features), 0, Scratch()
    for X in parts:
        n_rows = int(X.shape[0])
        chosen = np.unique(np.linspace(0, n_rows - 1, min(n_rows, _MOST_AVERAGED)).astype(np.int64))
        for some in row_blocks(len(chosen), n_features):
            rows = np.asarray(X[chosen[some]])
            block = scratch.take(rows.shape, np.dtype(np.float64))
            convert(rows, block)
            if not np.isfinite(block.sum(axis=0)).all():
                block = block[np.isfinite(block).all(axis=1)]
            total, n = total + block.sum(axis=0), n + len(block)
    mean: NDArray[np.float32] = (total / max(n, 1)).astype(np.float32)
    return mean


def sketch_rows(
    X: Rows,
    dtype: np.dtype[Any],
    centre: NDArray[np.float32],
    *,
    with_sketch: bool = True,
    must_be_finite: bool = False,
) -> Sketch:
    r"""Sketch and hash rows, which are read once, in order.

    The values x_1 ... x_D of a row less the centre are cut into `WIDTH` runs of equal length, and
    each run is summed with random signs: s_i = sum over run i of e_j x_j. So s = R x with a fixed R
    whose expected R^T R is the identity, and sketches keep inner products on average (Weinberger,
    Dasgupta, Langford, Smola and Attenberg, "Feature hashing for large scale multitask
    learning", ICML 2009, lemma 2). The cosine of two sketches of m values is that of the rows
    with a standard deviation of about (1 - c^2) / sqrt(m), like a correlation of m samples: for
    near-duplicates, where c is near 1, that is little.
    """
    n_rows, n_features = (int(n) for n in X.shape)
    is_exact = n_features <= WIDTH
    width = (n_features if is_exact else WIDTH) if with_sketch else 0
    unit = np.zeros((n_rows, width), np.float32)
    signs = _signs(n_features) if width and not is_exact else None

    def one(rows: slice) -> list[bytes]:
        block = np.asarray(X[rows])
        if width:
            sums = _summed(block, centre, signs)
            unit[rows] = unit_length(sums)
            if must_be_finite and not np.isfinite(sums).all():
                check_finite(block, rows.start, X.rows if isinstance(X, RowsView) else None)
        block = np.ascontiguousarray(block, dtype)
        return [hashlib.sha256(row).digest()[:_DIGEST_BYTES] for row in block]

    # Blocks that are small together, one a thread.
    blocks = row_blocks(n_rows, n_features * min(N_CORES, _MOST_PARTS))
    with ThreadPoolExecutor(N_CORES) as pool:
        parts = list(pool.map(one, blocks))
    return Sketch(unit, [digest for part in parts for digest in part], is_exact, centre)


def _signs(n_features: int) -> NDArray[np.float32]:
    """Signs of the values, shape (WIDTH, run); zeros behind the last value."""
    run = -(-n_features // WIDTH)
    generator = np.random.Generator(np.random.PCG64(0))
    signs = np.zeros(WIDTH * run, np.float32)
    signs[:n_features] = 2 * generator.integers(0, 2, n_features) - 1
    return signs.reshape(WIDTH, run)


def _summed(
    block: NDArray[Any], centre: NDArray[np.float32], signs: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    n_features = block.shape[1]
    padded = np.zeros((len(block), n_features if signs is None else signs.size), np.float32)
    convert(block, padded[:, :n_features])
    padded[:, :n_features] -= centre
    if signs is None:
        return padded
    sums: NDArray[np.float32] = np.einsum("nmw,mw->nm", padded.reshape(-1, *signs.shape), signs)
    return sums


def unit_length(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring rows to length 1; rows of zeros, or of values that are not finite, become zeros."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        is_usable = np.isfinite(norms) & (norms > 0)
        return np.where(is_usable, rows / norms, np.float32(0))


DEFAULT_RATIO = 0.7
_NEIGHBOURS = 10
_FALSE_ALARMS = 0.001
_SIGMAS = 4.0
_MOST_VERIFIED = 10_000
_VERIFIED_AT_ONCE = 64
_BLOCK_BYTES = 64 << 20
_LEAST_DISTANCE = 1e-6  # below it, float32 cosines of sketches are noise


@dataclass(frozen=True)
class NearRule:
    """How near is near."""

    ratio: float
    is_default: bool
    spread: float | None = None


@dataclass(frozen=True)
class NearPairs:
    """Pairs that `find_near` found, the closest first."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    cosine: NDArray[np.float64]
    ratio: NDArray[np.float64]
    rule: NearRule
    n_sketched: int = 0


def find_near(
    train: tuple[Rows, Sketch], test: tuple[Rows, Sketch], ratio: float | None = None
) -> NearPairs:
    r"""Find near-duplicates across two parts.

    The distance of two rows is d = 1 - cosine, of rows less the mean row: an offset that all share
    makes no two alike. What is close depends on the network, the layer
    and the images, so d is compared with the usual distance: the mean of that to the 10 nearest
    rows of the other part, averaged over both rows (Jegou, Harzallah and Schmid, "A contextual
    dissimilarity measure for accurate and efficient image search", CVPR 2007; Artetxe and
    Schwenk, "Margin-based parallel corpus mining", ACL 2019). A pair is near if

        d(x, y) < ratio * (r(x) + r(y)) / 2.

    The default is 0.7, or less where even unrelated neighbours differ that much in their
    distances, as in pooled features and in pictures of few kinds. If
    neighbours are a Poisson process in 2 m dimensions (d is half a squared length), the
    distances to the j-th and the k-th obey E[m log(d_k / d_j)] = 1/j + ... + 1/(k - 1) (Levina
    and Bickel, "Maximum likelihood estimation of intrinsic dimension", NIPS 2004), and
    d_1 < q d_k has the probability 1 - (1 - q^m)^(k - 1), about (k - 1) q^m. m is taken from the
    median of log(d_k / d_2), which one near-duplicate of each row does not change, and q so that
    the probability is 0.001.

    What it finds, of 200 images of CIFAR-10 that were changed and sought among 5,000 (maps are
    the last ones, flattened):

    ======================  ==========  ==============  =================  ================
    change                  SqueezeNet  its map pooled  EfficientNet-Lite0  its map pooled
    ======================  ==========  ==============  =================  ================
    JPEG, quality 75            100 %        100 %            100 %             100 %
    JPEG, quality 50             99 %         25 %             86 %              40 %
    moved by 1 pixel            100 %        100 %            100 %             100 %
    moved by 2 and 1             96 %        100 %            100 %             100 %
    brightness 10 % off         100 %        100 %            100 %             100 %
    contrast 20 % off           100 %        100 %            100 %             100 %
    30 of 32 pixels cut out     100 %         26 %            100 %              96 %
    mirrored                      4 %        100 %             38 %             100 %
    unchanged test images       9 of         10 of            8 of              8 of
    that are flagged            1,000        1,000            1,000             1,000
    ======================  ==========  ==============  =================  ================

    (Measured before rows were centred. Of 100 such images among 2,000, SqueezeNet at 96 pixels,
    centred rows find 98 to 100 of all kinds but mirrored in the map, as before, and pooled from 63
    for JPEG of quality 50, where it was 66, to 100; of 500 unchanged ones 4 and 5 are flagged,
    where it was 5 and 4.)

    To the eye, 8 of the 9 are the same photograph, 7 of the 10, and 7 of the first 8. Of
    scikit-learn's digits none is flagged. **Mirrored images are mostly missed in maps**; so are
    other crops, another picture of the same thing, and images with more than about 10
    near-duplicates, which make one another's distances usual. Look at the images before you call
    one a duplicate: Barz and Denzler, "Do we train on test data? Purging CIFAR of
    near-duplicates", J. Imaging 6(6), 2020, so found 3.3 % of CIFAR-10's test images among its
    50,000 training images.
    """
    of_train, of_test = _neighbours(train[1].unit, test[1].unit)
    usual_train, usual_test = (1.0 - sims.mean(axis=1) for _, sims in (of_train, of_test))
    rule = _rule(of_test[1], ratio)
    rows, cosine = _pairs(of_train, of_test)
    usual = np.maximum((usual_train[rows[0]] + usual_test[rows[1]]) / 2, _LEAST_DISTANCE)
    margin = _SIGMAS * test[1].error * (1 - cosine**2)
    order = np.argsort((1 - cosine) / usual, kind="stable")
    order = order[(1 - cosine - margin)[order] < rule.ratio * usual[order]]
    rows, cosine, usual = rows[:, order], cosine[order], usual[order]
    if not test[1].is_exact:
        checked = slice(0, _MOST_VERIFIED)
        cosine[checked] = _exact_cosines((train[0], test[0]), rows[:, checked], test[1].centre)
    found = np.flatnonzero((1 - cosine) < rule.ratio * usual)
    found = found[np.argsort(-cosine[found], kind="stable")]
    n_sketched = 0 if test[1].is_exact else int((found >= _MOST_VERIFIED).sum())
    share = ((1 - cosine) / usual)[found]
    return NearPairs(rows[0, found], rows[1, found], cosine[found], share, rule, n_sketched)


def near_within(neighbours: NDArray[np.int64], cosine: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find near-duplicates within one part, by the rule of `find_near`.

    Takes the nearest other rows of each row, nearest first, and their cosines, both (n, k). Gives
    (n_pairs, 2), nearest first.
    """
    usual = np.maximum(1 - cosine.mean(axis=1), _LEAST_DISTANCE)
    share = (1 - cosine) / ((usual[:, None] + usual[neighbours]) / 2)
    i, j = np.nonzero(share < _rule(cosine, None).ratio)
    pairs = np.sort(np.column_stack([i, neighbours[i, j]]), axis=1)
    order = np.argsort(share[i, j], kind="stable")
    _, first = np.unique(pairs[order], axis=0, return_index=True)
    return pairs[order][np.sort(first)]


_Neighbours = tuple[NDArray[np.int64], NDArray[np.float64]]


def _neighbours(
    train: NDArray[np.float32], test: NDArray[np.float32]
) -> tuple[_Neighbours, _Neighbours]:
    """Nearest rows of the other part, best first: positions and cosines, for either part."""
    k_train, k_test = min(_NEIGHBOURS, len(test)), min(_NEIGHBOURS, len(train))
    of_train = np.empty((len(train), k_train), np.int64), np.empty((len(train), k_train))
    of_test = np.empty((len(test), 0), np.int64), np.empty((len(test), 0))
    height = max(1, _BLOCK_BYTES // (4 * max(len(test), 1)))
    for start in range(0, len(train), height):
        block = slice(start, start + height)
        sims = train[block] @ test.T
        of_train[0][block], of_train[1][block] = _best_by_threads(sims, k_train)
        rows, values = _best_by_threads(sims.T, k_test)
        joined = np.hstack([of_test[0], rows + start]), np.hstack([of_test[1], values])
        best, values = _best(joined[1], k_test)
        of_test = np.take_along_axis(joined[0], best, axis=1), values
    return of_train, of_test


def _best_by_threads(sims: NDArray[Any], k: int) -> _Neighbours:
    """`_best` of some rows in each thread."""
    edges = np.linspace(0, len(sims), N_CORES + 1).astype(int).tolist()
    with ThreadPoolExecutor(N_CORES) as pool:
        parts = pool.map(
            lambda a, b: _best(np.ascontiguousarray(sims[a:b]), k), edges[:-1], edges[1:]
        )
        rows, values = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(values)


def _best(sims: NDArray[Any], k: int) -> _Neighbours:
    """Columns of the k largest values of each row, and the values, largest first."""
    k = min(k, sims.shape[1])
    columns = np.argpartition(sims, sims.shape[1] - k, axis=1)[:, sims.shape[1] - k :]
    values = np.take_along_axis(sims, columns, axis=1).astype(np.float64)
    order = np.argsort(-values, axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=1)
    return columns.astype(np.int64), np.take_along_axis(values, order, axis=1)


def _rule(sims: NDArray[np.float64], ratio: float | None) -> NearRule:
    if ratio is not None:
        return NearRule(ratio, is_default=False)
    n, k = sims.shape
    if k < 3 or n == 0:
        return NearRule(DEFAULT_RATIO, is_default=True)
    distances = np.maximum(1 - sims, _LEAST_DISTANCE)
    spread = float(np.median(np.log(distances[:, -1] / distances[:, 1])))
    harmonic = sum(1 / j for j in range(2, k))  # m times the expected spread
    tightened = float(np.exp(-np.log((k - 1) / _FALSE_ALARMS) * spread / harmonic))
    return NearRule(min(DEFAULT_RATIO, tightened), is_default=True, spread=spread)


def _pairs(
    of_train: _Neighbours, of_test: _Neighbours
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All pairs of neighbours once, shape (2, n_pairs), and their cosines."""
    n_train, n_test = len(of_train[0]), len(of_test[0])
    train = np.concatenate(
        [np.repeat(np.arange(n_train), of_train[0].shape[1]), of_test[0].ravel()]
    )
    test = np.concatenate([of_train[0].ravel(), np.repeat(np.arange(n_test), of_test[0].shape[1])])
    cosine = np.concatenate([of_train[1].ravel(), of_test[1].ravel()])
    _, first = np.unique(train * n_test + test, return_index=True)
    return np.stack([train, test])[:, first], cosine[first]


def _exact_cosines(
    parts: tuple[Rows, Rows], rows: NDArray[np.int64], centre: NDArray[np.float32]
) -> NDArray[np.float64]:
    out = np.empty(rows.shape[1])
    for start in range(0, rows.shape[1], _VERIFIED_AT_ONCE):
        part = rows[:, start : start + _VERIFIED_AT_ONCE]
        a, b = (
            np.asarray(X[i]) - centre.astype(np.float64) for X, i in zip(parts, part, strict=True)
        )
        norms = np.sqrt(np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b))
        products = np.einsum("nd,nd->n", a, b)
        out[start : start + len(a)] = np.divide(
            products, norms, out=np.zeros(len(a)), where=norms > 0
        )
    return out

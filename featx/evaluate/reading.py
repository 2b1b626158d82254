"""Reading features for a fit, and looking for what would make its score dishonest."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.heads.base import Rows, RowsView, check_finite, row_blocks
from featx.heads.rowspace import require_memory

__all__ = ["hash_rows", "load_rows", "require_unseen"]

_DIGEST_BYTES = 16


def load_rows(X: Rows, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read rows into memory as they are stored.

    Parameters
    ----------
    X : Rows
        Features, on the disk.
    rows : ndarray of int64
        Which of them.

    Returns
    -------
    ndarray of float16 or float32, shape (n_rows, n_features)

    Raises
    ------
    ProtocolError
        If they do not fit into memory, or hold NaN or infinity.
    """
    n_features = int(X.shape[1])
    dtype = np.asarray(X[0:1]).dtype
    needed = len(rows) * n_features * dtype.itemsize
    gram = 2 * 8 * len(rows) ** 2 if len(rows) < n_features else 0
    require_memory(needed + gram, f"fitting {len(rows):,} images with {n_features:,} features")
    out = np.empty((len(rows), n_features), dtype)
    for block in row_blocks(len(rows), n_features):
        out[block] = X[rows[block]]
        check_finite(out[block], block.start, rows)
    return out


def hash_rows(X: Rows) -> set[bytes]:
    """Digests of rows, to find equal ones.

    Parameters
    ----------
    X : Rows
        Features; read once, and checked for NaN and infinity.

    Returns
    -------
    set of bytes
        Of the values as float32, so that caches of different types compare.
    """
    return set(_digests(X))


def count_known(X: Rows, known: set[bytes]) -> int:
    """Count the rows whose digest is known."""
    return sum(digest in known for digest in _digests(X))


def _digests(X: Rows) -> list[bytes]:
    names = X.rows if isinstance(X, RowsView) else None
    found = []
    for rows in row_blocks(int(X.shape[0]), int(X.shape[1])):
        block = np.ascontiguousarray(X[rows], dtype=np.float32)
        check_finite(block, rows.start, names)
        found += [hashlib.blake2b(row, digest_size=_DIGEST_BYTES).digest() for row in block]
    return found


def require_unseen(
    fitted: tuple[str, NDArray[np.int64]], scored: tuple[str, NDArray[np.int64]]
) -> None:
    """Refuse to score a head on rows that it was fitted on.

    Parameters
    ----------
    fitted, scored : tuple of str and ndarray of int64
        Fingerprint of a cache, and rows of it.

    Raises
    ------
    ProtocolError
        If a row is in both.
    """
    if fitted[0] != scored[0]:
        return
    shared = np.intersect1d(fitted[1], scored[1])
    if shared.size:
        raise ProtocolError(
            f"{shared.size} rows would be scored that were fitted on (the first is {shared[0]}): "
            "test on other rows"
        )

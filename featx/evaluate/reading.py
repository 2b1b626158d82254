"""Reading features for a fit, and refusing to score what was fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.heads.base import Rows, check_finite, row_blocks
from featx.heads.rowspace import require_memory

__all__ = ["load_rows", "require_unseen"]


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

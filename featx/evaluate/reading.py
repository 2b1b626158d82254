"""Reading features for a fit, and refusing to score what was fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.heads.base import Rows, RowsView, as_stored, check_finite, row_blocks
from featx.memory import available_bytes

__all__ = ["hold_rows", "require_unseen"]


# Of the available memory, for rows; Gram matrices need the rest.
_SHARE = 0.6


def hold_rows(X: Rows, rows: NDArray[np.int64]) -> NDArray[Any] | RowsView:
    """Read rows into memory as they are stored, or, where they do not fit, where they are."""
    X, n_features = as_stored(X), int(X.shape[1])
    dtype = np.asarray(X[0:1]).dtype
    fits = len(rows) * n_features * dtype.itemsize < _SHARE * available_bytes()
    out = np.empty((len(rows), n_features), dtype) if fits else None
    for block in row_blocks(len(rows), n_features):
        part = np.asarray(X[rows[block]])
        check_finite(part, block.start, rows)
        if out is not None:
            out[block] = part
    return RowsView(X, rows) if out is None else out


def require_unseen(
    fitted: tuple[str, NDArray[np.int64]], scored: tuple[str, NDArray[np.int64]]
) -> None:
    """Refuse to score a head on rows that it was fitted on."""
    if fitted[0] != scored[0]:
        return
    shared = np.intersect1d(fitted[1], scored[1])
    if shared.size:
        raise ProtocolError(
            f"{shared.size} rows would be scored that were fitted on (the first is {shared[0]}): "
            "test on other rows"
        )

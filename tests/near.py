"""When features of the same images count as the same."""

from __future__ import annotations

import numpy as np

from featx.reference import TOLERANCES


def assert_near(mine: np.ndarray, wanted: np.ndarray, precision: str = "fp32") -> None:
    """Rows agree within what `featx verify` allows, and each one is nearest to its own.

    For images in batches of another size, or at other places of a batch: the same images in the
    same batches give the same bits.
    """
    assert (mine.shape, mine.dtype) == (wanted.shape, wanted.dtype)
    allowed = TOLERANCES[precision].with_storing(wanted.dtype.name).relative
    mine, wanted = mine.astype(np.float64), wanted.astype(np.float64)
    assert (np.abs(mine - wanted).max(1) <= allowed * np.abs(wanted).max(1)).all()
    distances = np.linalg.norm(mine[:, None] - wanted[None], axis=2)
    own = np.linalg.norm(mine - wanted, axis=1)
    assert (distances.min(1) == own).all()

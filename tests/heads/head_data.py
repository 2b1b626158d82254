"""Features like those of a network: sparse, positive, correlated, far more than rows."""

from __future__ import annotations

import numpy as np


def features(n, d, n_classes, *, seed=0, dtype=np.float32, noise=2.0):
    """Rows with dead columns and, where there is room, two equal rows."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    X = np.maximum(0, centres[y] + noise * rng.normal(size=(n, d)) - 0.5)
    X[:, ::7] = 0
    if n > 2 * n_classes:
        X[n_classes] = X[0]
    return X.astype(dtype), y.astype(np.int64)

"""scikit-learn's handwritten digits: no download, so it is there on every machine."""

from __future__ import annotations

import numpy as np

from featx.sources.base import ArraySource, Source

__all__ = ["open_digits"]


def open_digits() -> dict[str, Source]:
    """Open the 1,797 digits of scikit-learn, 8 x 8 pixels, as grey RGB.

    Values 0 to 16 become 0 to 255, rounded. Of each class, in the order of
    the file, every third image is the test split: no seed is involved. The
    same hands wrote both splits.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., np.newaxis], 3, axis=3)
    targets = np.asarray(data.target, dtype=np.int64)
    is_test = _every_third(targets)
    splits: dict[str, Source] = {}
    for split, rows in (("train", np.flatnonzero(~is_test)), ("test", np.flatnonzero(is_test))):
        splits[split] = ArraySource(
            name="digits",
            split=split,
            class_names=tuple(str(name) for name in data.target_names),
            labels=targets[rows],
            paths=tuple(f"{split}/{i:05d}" for i in range(len(rows))),
            pixels=pixels,
            rows=rows,
        )
    return splits


def _every_third(labels: np.ndarray) -> np.ndarray:
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[2::3]] = True
    return chosen

"""What the splits of a data set are called, and their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

__all__ = ["SPLIT_ORDER", "in_order", "split_of"]

_Value = TypeVar("_Value")

SPLIT_ORDER = ("train", "val", "test", "unlabeled", "all")
"""Names of splits. ``all`` stands alone: the data have no splits."""

_SYNONYMS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
    "unsupervised": "unlabeled",
}


def split_of(word: str) -> str | None:
    """Give the split that a folder, a file or a manifest calls by `word`.

    Parameters
    ----------
    word : str
        In any case.

    Returns
    -------
    str or None
        A name of `SPLIT_ORDER` but ``all``; None where it is none.

    Examples
    --------
    >>> split_of("Validation")
    'val'
    """
    return _SYNONYMS.get(word.lower())


def in_order(splits: Mapping[str, _Value]) -> dict[str, _Value]:
    """Sort splits as `SPLIT_ORDER` has them."""
    return {name: splits[name] for name in SPLIT_ORDER if name in splits}

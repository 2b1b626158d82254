"""Labels as people write them, words or numbers, become names and numbers of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["index_labels", "sorted_names"]


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sort the names of classes: by value if all are whole numbers, by text otherwise.

    Parameters
    ----------
    names : iterable of str
        Names may come more than once; empty ones are left out.

    Returns
    -------
    tuple of str
        Each name once.

    Examples
    --------
    >>> sorted_names(["10", "9", "10"])
    ('9', '10')
    """
    different = {name for name in names if name}
    try:
        return tuple(sorted(different, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(different))


def index_labels(words: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Turn words into numbers of classes.

    Parameters
    ----------
    words : sequence of str, length N
        One label each; ``""`` is unknown.
    class_names : sequence of str
        In the order of the numbers.

    Returns
    -------
    ndarray of int64, shape (N,)
        Index into `class_names`; -1 for ``""``.

    Raises
    ------
    KeyError
        If a word is none of `class_names`.
    """
    index = {"": -1} | {name: i for i, name in enumerate(class_names)}
    return np.array([index[word] for word in words], dtype=np.int64)

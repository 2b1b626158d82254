"""Few labelled images per class: stratified, nested and seeded choices of rows."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.errors import ProtocolError, UsageError
from featx.words import ALL

__all__ = [
    "DRAWS_VERSION",
    "draw_subset",
    "draw_subsets",
    "name_images",
    "split_holdout",
    "subset_hash",
]

DRAWS_VERSION = 2
"""Of the rule by which images are drawn: 1 went by the numbers of classes and rows, 2 by names."""

# A part of each key, so that a holdout and a subset of one seed are different permutations.
_SUBSET, _HOLDOUT, _HOLDOUT_GROUPS = 0, 1, 2
_CLOSE_ENOUGH = 0.002  # error of the held-out shares at which groups are no longer swapped


def draw_subset(
    labels: ArrayLike,
    per_class: int | str | None,
    *,
    seed: int,
    valid: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    images: Sequence[bytes] | None = None,
) -> NDArray[np.int64]:
    """Draw the same number of rows of every class.

    Each class has a random order of its own, and the subset is its first `per_class` rows. So
    subsets of one seed are nested: the 100 lie inside the 500. With `images`, the order is that of
    SHA-256(seed, name of the class, name of the image): a class's draw then depends neither on
    the other classes nor on the order of classes and rows. Without, it is a permutation keyed by
    the seed and the number of the class.

    Parameters
    ----------
    labels : array_like of int, shape (n_rows,)
        Class of each row; negative labels are unknown and never drawn.
    per_class : int, "all" or None
        Rows drawn of every class; ``"all"`` or None takes every valid labelled row.
    seed : int
        Any integer of at least 0.
    valid : array_like of bool, shape (n_rows,), optional
        Rows that may be drawn; all of them by default.
    class_names : sequence of str, optional
        Every class, by label: classes without a row are then errors too, and
        the error text names classes, not numbers.
    images : sequence of bytes, shape (n_rows,), optional
        What each row is, as from `name_images`; equal ones of a class are told apart by counting.

    Returns
    -------
    ndarray of int64, shape (n_drawn,)
        Row numbers, ascending.

    Raises
    ------
    ProtocolError
        If a class has fewer valid rows than asked for.
    UsageError
        If `per_class` or `seed` is no number that can be drawn with.

    Examples
    --------
    >>> draw_subset([0, 0, 0, 1, 1, -1], 1, seed=0).size
    2
    """
    size = None if per_class == ALL else per_class
    if not (size is None or isinstance(size, Integral)):
        raise UsageError(f"per_class is {size!r}: give a whole number above 0, or {ALL!r}")
    sizes = [None if size is None else int(size)]
    [rows] = draw_subsets(
        labels, sizes, seed=seed, valid=valid, class_names=class_names, images=images
    )
    return rows


def draw_subsets(
    labels: ArrayLike,
    sizes: Sequence[int | None],
    *,
    seed: int,
    valid: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    images: Sequence[bytes] | None = None,
) -> list[NDArray[np.int64]]:
    """Draw subsets of several sizes, each as `draw_subset` does; rows are put in order once."""
    groups = dict(_rows_by_class(labels, valid, class_names))
    for size in sizes:
        _check_enough(groups, size, class_names)
    ordered = list(groups.values())
    if any(size is not None for size in sizes):
        order = _Order(_SUBSET, seed, images)
        ordered = [
            order.of(rows, label, _name(label, class_names)) for label, rows in groups.items()
        ]
    return [_sorted([rows[:size] for rows in ordered]) for size in sizes]


def name_images(digests: NDArray[np.uint8], paths: Sequence[str]) -> list[bytes]:
    """Name images by what they are, for draws that depend on nothing else."""
    names: list[bytes] = np.ascontiguousarray(digests).view("V32").ravel().tolist()
    for row in np.flatnonzero(~np.asarray(digests).any(axis=1)).tolist():
        names[row] = paths[row].encode("utf-8", "surrogatepass")
    return names


def split_holdout(
    labels: ArrayLike,
    fraction: float,
    *,
    seed: int,
    valid: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    images: Sequence[bytes] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split labelled rows in two, class by class, for data without a test split.

    Whole groups are taken in a random order, each of them where it brings the held-out shares
    of the classes nearer to `fraction` (least sum of squares). Then every class that has
    nothing held out gets the group that takes the shares the least away, and each group that is
    held out is swapped with the one that brings them nearer, if any does.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the held-out fraction is {fraction}: it must lie between 0 and 1")
    if groups is not None:
        by_class = {
            _said(label, class_names): rows for label, rows in _rows_by_class(labels, valid, None)
        }
        is_named = images is not None
        return _split_groups(by_class, fraction, seed, np.asarray(groups), is_named=is_named)
    order = _Order(_HOLDOUT, seed, images)
    train, test = [], []
    for label, rows in _rows_by_class(labels, valid, None):
        if rows.size < 2:
            raise ProtocolError(
                f"class {_said(label, class_names)} has {'a single' if rows.size else 'no'} usable "
                "image, which cannot be both fitted and tested: add images of this class, or "
                "leave it out"
            )
        n_test = min(max(round(fraction * rows.size), 1), rows.size - 1)
        ordered = order.of(rows, label, _name(label, class_names))
        test.append(ordered[:n_test])
        train.append(ordered[n_test:])
    return _sorted(train), _sorted(test)


def _split_groups(
    by_class: dict[str, NDArray[np.int64]],
    fraction: float,
    seed: int,
    groups: NDArray[Any],
    *,
    is_named: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    classes = sorted(by_class) if is_named else [*by_class]  # so that no order counts
    rows = _sorted([*by_class.values()])
    names, member = np.unique(groups[rows], return_inverse=True)
    counts = np.zeros((len(names), len(classes)), np.int64)  # rows of a group and class
    for column, name in enumerate(classes):
        np.add.at(counts[:, column], member[np.searchsorted(rows, by_class[name])], 1)
        if np.count_nonzero(counts[:, column]) < 2:
            raise ProtocolError(
                f"all usable images of class {name} are in one group, which cannot be both "
                "fitted and tested: add other groups, or leave the class out"
            )
    called = [str(name).encode("utf-8", "surrogatepass") for name in names] if is_named else None
    order = _Order(_HOLDOUT_GROUPS, seed, called).of(np.arange(len(names)), 0, "")
    is_test = _choose_groups(counts, fraction, order)
    for empty in np.flatnonzero(counts[is_test].sum(axis=0) == 0):
        raise ProtocolError(
            f"the groups of class {classes[empty]} cannot be on both sides without taking "
            "another class from one of them: use smaller groups, or leave a class out"
        )
    return rows[~is_test[member]], rows[is_test[member]]


def _choose_groups(
    counts: NDArray[np.int64], fraction: float, order: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Choose groups to hold out, from the rows of every group and class."""
    total = counts.sum(axis=0)
    is_test = np.zeros(len(counts), dtype=bool)

    def losses(held: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of squares for each row of `held`; infinite where no row of a class is left."""
        squares = ((held / total - fraction) ** 2).sum(axis=-1)
        return np.asarray(np.where((held < total).all(axis=-1), squares, np.inf))

    held = np.zeros_like(total)
    for group in order:
        if losses(held + counts[group]) < losses(held):
            is_test[group], held = True, held + counts[group]
    for column in range(len(total)):
        held = counts[is_test].sum(axis=0)
        able = order[(counts[order, column] > 0) & ~is_test[order]]
        loss = losses(held + counts[able])
        if held[column] == 0 and np.isfinite(loss).any():
            is_test[able[loss.argmin()]] = True
    for group in order[is_test[order]]:
        held = counts[is_test].sum(axis=0)
        if losses(held) < len(total) * _CLOSE_ENOUGH**2:
            break
        held, others = held - counts[group], order[~is_test[order]]
        swapped = held + counts[others]
        loss = np.where((swapped > 0).all(axis=-1), losses(swapped), np.inf)
        if len(others) and loss.min() < losses(held + counts[group]):
            is_test[[group, others[loss.argmin()]]] = False, True
    return is_test


def subset_hash(rows: ArrayLike) -> str:
    """SHA-256 of a choice of rows, the name under which a subset is reported."""
    return hashlib.sha256(np.asarray(rows, dtype="<i8").tobytes()).hexdigest()


def _rows_by_class(
    labels: ArrayLike, valid: ArrayLike | None, class_names: Sequence[str] | None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each class and its valid rows, classes and rows ascending."""
    y = np.asarray(labels)
    usable = y >= 0
    if valid is not None:
        usable &= np.asarray(valid, dtype=bool)
    # Without names, a class exists where any row, also an unusable one, has its label.
    named = np.arange(len(class_names) if class_names is not None else 0)
    classes = np.union1d(y[y >= 0], named)
    for label in classes:
        yield int(label), np.flatnonzero(usable & (y == label)).astype(np.int64)


class _Order:
    """Random orders of rows, by the names of class and image where there are any."""

    def __init__(self, purpose: int, seed: int, images: Sequence[bytes] | None) -> None:
        if seed < 0:
            raise UsageError(f"the seed is {seed}: it must be 0 or more")
        self.purpose, self.seed, self.images = purpose, seed, images

    def of(self, rows: NDArray[np.int64], label: int, class_name: str) -> NDArray[np.int64]:
        """Order the rows of one class."""
        if self.images is None:
            # PCG64 and Generator.permutation are the parts of numpy that this rests on; a test
            # pins a literal draw, so that a change there is seen.
            key = np.random.SeedSequence([self.seed, label, self.purpose])
            return np.random.Generator(np.random.PCG64(key)).permutation(rows)
        words = [DRAWS_VERSION, self.purpose, self.seed, unicodedata.normalize("NFC", class_name)]
        start = json.dumps(words).encode("ascii")
        seen: Counter[bytes] = Counter()
        hashes = []
        for row in rows.tolist():
            image = self.images[row]
            seen[image] += 1
            hashes.append(hashlib.sha256(b"%b %d %b" % (start, seen[image], image)).digest())
        # NumPy sorts byte strings without the zeros at their ends: all are of one length here.
        return rows[np.argsort(np.array(hashes, "S32"), kind="stable")]


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return class_names[label] if class_names and label < len(class_names) else str(label)


def _said(label: int, class_names: Sequence[str] | None) -> str:
    return repr(_name(label, class_names)) if class_names else str(label)


def _check_enough(
    groups: dict[int, NDArray[np.int64]], per_class: int | None, class_names: Sequence[str] | None
) -> None:
    if per_class is None:
        return
    if per_class < 1:
        raise UsageError(f"per_class is {per_class}: at least 1 image per class is needed")
    if not groups:
        raise ProtocolError("there is no labelled, usable image to draw from")
    label, rows = min(groups.items(), key=lambda item: item[1].size)
    if rows.size >= per_class:
        return
    mend = (
        f"the largest number that works is {rows.size}"
        if rows.size
        else "add images of this class, or leave it out"
    )
    raise ProtocolError(
        f"class {_said(label, class_names)} has {rows.size} usable images, fewer than the "
        f"{per_class} per class asked for: {mend}"
    )


def _sorted(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)

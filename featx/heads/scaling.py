"""Scaling of features before a head, fitted on nothing but the rows that the head is fitted on."""

from __future__ import annotations

import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import UsageError, unknown_name
from featx.halves import convert

__all__ = [
    "L2",
    "NONE",
    "N_CORES",
    "POWER",
    "SCALES",
    "STANDARD",
    "UNSCALED",
    "WHITEN",
    "Scaling",
    "Scratch",
    "check_scale",
    "copy_rows",
    "n_components_of",
]

Array = NDArray[np.float64]

_MANY = 1 << 20
N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may use."""

NONE, L2, STANDARD, POWER, WHITEN = "none", "l2", "standard", "power", "whiten"
SCALES = {
    NONE: "features as they are",
    L2: "every image's features divided by their Euclidean norm (sklearn.preprocessing.Normalizer)",
    STANDARD: "every feature to mean 0 and variance 1 (sklearn.preprocessing.StandardScaler)",
    POWER: "signed square root, then l2 (Perronnin, Sanchez and Mensink, ECCV 2010)",
    WHITEN: "principal axes, each to variance 1 (sklearn.decomposition.PCA with whiten=True); "
    "whiten=128 keeps the first 128",
}
"""What ``--scale`` takes, with a line on each."""


@dataclass(frozen=True)
class Scaling:
    """A fitted scaling of rows."""

    name: str = NONE
    mean: Array | None = None
    std: Array | None = None
    axes: Array | None = None
    """Of whitening: (m, n_features)."""

    @property
    def is_of_rows(self) -> bool:
        """Whether rows are scaled one by one, so that there is nothing to fit."""
        return self.name in (NONE, L2, POWER)

    @property
    def has_norms(self) -> bool:
        """Whether rows are divided by their norms."""
        return self.name in (L2, POWER)

    @property
    def is_quick(self) -> bool:
        """Whether scaling a block takes little time beside its product with a few vectors."""
        return self.name in (NONE, L2)

    def bend(
        self, block: NDArray[Any], dtype: Any = np.float64, scratch: Scratch | None = None
    ) -> NDArray[Any]:
        """Do what is done to every number by itself, and convert, into `scratch` if it is given."""
        values = _convert(block, np.dtype(dtype), scratch or Scratch())
        return np.sign(values) * np.sqrt(np.abs(values)) if self.name == POWER else values

    def centred(
        self,
        block: NDArray[Any],
        columns: slice = slice(None),
        dtype: Any = np.float64,
        scratch: Scratch | None = None,
    ) -> NDArray[Any]:
        """Do all that needs no other columns of the rows: bend, then centre and divide."""
        values = self.bend(block, dtype, scratch)
        if self.mean is not None and self.std is not None:
            values -= self.mean[columns].astype(dtype)
            values /= self.std[columns].astype(dtype)
        return values

    def apply(
        self,
        block: NDArray[Any],
        columns: slice = slice(None),
        norms: Array | None = None,
        dtype: Any = np.float64,
        scratch: Scratch | None = None,
    ) -> NDArray[Any]:
        """Scale rows, or some columns of them."""
        values = self.centred(block, columns, dtype, scratch)
        if self.axes is not None and self.mean is not None:
            return np.asarray((values - self.mean.astype(dtype)) @ self.axes.T.astype(dtype))
        if self.has_norms:
            if norms is None:
                norms = np.sqrt(np.einsum("ij,ij->i", values, values))
            values /= np.where(norms > 0, norms, 1.0).astype(dtype)[:, None]
        return values


UNSCALED = Scaling()
"""Features as they are."""


class Scratch:
    """Memory for one converted block after the other: new pages cost more than the conversion."""

    def __init__(self) -> None:
        self._flat: NDArray[Any] = np.empty(0)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give an array, in the memory of the one before."""
        size = math.prod(shape)
        if self._flat.dtype != dtype or self._flat.size < size:
            self._flat = np.empty(size, dtype)
        return self._flat[:size].reshape(shape)


def _convert(block: NDArray[Any], dtype: np.dtype[Any], scratch: Scratch) -> NDArray[Any]:
    """Convert on all cores: NumPy takes half as long for it as for the products that follow."""
    out = scratch.take(block.shape, dtype)
    (convert if block.size < _MANY else copy_rows)(block, out)
    return out


def copy_rows(block: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy, and convert, on all cores."""
    edges = np.linspace(0, len(block), N_CORES + 1).astype(int)
    parts = [slice(a, b) for a, b in itertools.pairwise(edges.tolist())]

    def copy(rows: slice) -> None:
        convert(block[rows], out[rows])

    with ThreadPoolExecutor(N_CORES) as threads:
        list(threads.map(copy, parts))


def check_scale(name: str) -> None:
    """Raise a `UsageError` if there is no scaling of this name."""
    if n_components_of(name) is None and name not in SCALES:
        raise unknown_name("scale", name, [*SCALES, f"{WHITEN}=128"])


def n_components_of(name: str) -> int | None:
    """Read how many axes ``whiten=128`` keeps; None for all, and for other scalings."""
    word, equals, number = name.partition("=")
    if word != WHITEN or not equals:
        return None
    # No leading zeros: whiten=9 and whiten=09 would be two names of one thing.
    if not (number.isascii() and number.isdigit() and number[0] != "0"):
        raise UsageError(f"--scale {name}: give a whole number of at least 1, as in whiten=128")
    return int(number)

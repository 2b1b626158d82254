"""Rows of an older cache, taken into a new one where it is certain that they belong there.

A row is taken if the settings of both caches agree in all but the source, if the
SHA-256 of its block stands, and if the SHA-256 of its image is that of a wanted
one. So the old cache may hold more, fewer, renamed or relabelled images in another
order, and it may be damaged: see `featx.store.donor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from featx.progress import Reporter
from featx.store.donor import Donor, open_donor
from featx.store.spec import CacheSpec

__all__ = ["Donor", "copy_rows", "is_same_file", "is_wanted", "open_donor"]

_Write: TypeAlias = Callable[[int, np.ndarray], None]


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths mean one file; also if nothing is there yet."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def copy_rows(
    donor: Donor, spec: CacheSpec, missing: np.ndarray, write: _Write, reporter: Reporter
) -> list[str]:
    """Copy every row that is missing and can be had."""
    if not spec.image_digests.any():
        return [f"not reused: {donor.path}: the digests of the wanted images are not known"]
    missing = missing & spec.image_digests.any(axis=1)
    n_wanted = int(np.count_nonzero(missing))
    with reporter.bar(n_wanted, f"reuse rows of {donor.path.name}", "row") as bar:
        # A round copies a row, or finds that one cannot be had; another may hold the same image.
        while (source := _sources(donor, spec, missing)).max(initial=-1) >= 0:
            for start, rows in _chunks(donor, source):
                write(start, rows)
                missing[start : start + len(rows)] = False
                bar.update(len(rows))
    n_copied = n_wanted - int(np.count_nonzero(missing))
    notices = [f"reused: {n_copied:,} of {spec.n_rows:,} rows from {donor.path}"]
    if donor.n_damaged:
        notices.append(
            f"not reused: {donor.n_damaged:,} rows of {donor.path} lie in blocks that changed "
            "since they were written"
        )
    return notices


def _sources(donor: Donor, spec: CacheSpec, missing: np.ndarray) -> np.ndarray:
    """Row of `donor` for each row; shape (N,), int64, -1 where there is none."""
    source = np.full(spec.n_rows, -1)
    n_both = min(spec.n_rows, donor.n_rows)
    # The same place goes first: the network need not be deterministic among equal images.
    is_same = (spec.image_digests[:n_both] == donor.image_digests[:n_both]).all(axis=1)
    here = np.flatnonzero(is_same & missing[:n_both] & donor.is_usable[:n_both])
    source[here] = here
    wanted, offered = np.flatnonzero(missing & (source < 0)), np.flatnonzero(donor.is_usable)
    if len(wanted) == 0 or len(offered) == 0:
        return source
    names = _as_text(donor.image_digests[offered])
    order = np.argsort(names, kind="stable")
    found = _as_text(spec.image_digests[wanted])
    at = np.minimum(np.searchsorted(names[order], found), len(order) - 1)
    source[wanted] = np.where(names[order][at] == found, offered[order][at], -1)
    return source


def is_wanted(donor: Donor, spec: CacheSpec) -> np.ndarray:
    """Whether each usable row of an older cache is one of the wanted images."""
    offered = _as_text(donor.image_digests[donor.is_usable])
    return np.isin(offered, _as_text(spec.image_digests))


def _as_text(digests: np.ndarray) -> np.ndarray:
    # NumPy can sort byte strings; it ignores zeros at the end, all of equal length here.
    return np.ascontiguousarray(digests).view("S32").reshape(-1)


def _chunks(donor: Donor, source: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Read the donor block by block; give the first row's number, and neighbouring rows."""
    rows = np.flatnonzero(source >= 0)
    rows = rows[np.argsort(source[rows], kind="stable")]
    blocks = source[rows] // donor.block_rows
    for part in np.split(rows, np.flatnonzero(np.diff(blocks)) + 1):
        block = int(source[part[0]]) // donor.block_rows
        values = donor.read_block(block)
        if values is None:
            continue
        here = part[donor.is_usable[source[part]]]
        inside = source[here] - block * donor.block_rows
        breaks = np.flatnonzero((np.diff(here) != 1) | (np.diff(inside) != 1)) + 1
        for run, at in zip(np.split(here, breaks), np.split(inside, breaks), strict=True):
            if len(run):
                yield int(run[0]), values[at[0] : at[0] + len(at)]

"""Which images rows are, whatever cache they lie in."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from featx.evaluate.pairs import CacheLike

__all__ = ["images_sha256"]


def images_sha256(cache: CacheLike, rows: NDArray[np.int64]) -> str:
    """Digest the images of some rows and their classes, in order.

    Two caches of the same images give the same, whatever backbone made them; equal row numbers
    of other images do not.
    """
    digests, labels = np.asarray(cache.image_digests)[rows], np.asarray(cache.y)[rows]
    state = hashlib.sha256()
    for row, digest, label in zip(rows.tolist(), digests, labels.tolist(), strict=True):
        image = digest.tobytes().hex() if digest.any() else f"path {cache.paths[row]}"
        # ASCII, since names of files need not be text.
        state.update(json.dumps([image, cache.class_names[label]]).encode("ascii") + b"\n")
    return state.hexdigest()

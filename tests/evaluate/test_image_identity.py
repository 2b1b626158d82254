"""The same images are recognised in whatever cache they lie, and others are not."""

from __future__ import annotations

import numpy as np
from memory_cache import make_cache

from featx.evaluate.pair import images_sha256

ROWS = np.array([3, 5, 8])


def test_images_are_known_by_digest_else_by_path_and_by_class():
    cache = make_cache()
    by_path = images_sha256(cache, ROWS)
    assert by_path == images_sha256(make_cache(seed=4, backbone="other"), ROWS)
    assert by_path != images_sha256(cache, ROWS[::-1])
    assert by_path != images_sha256(make_cache(split="test"), ROWS)
    digests = np.random.default_rng(0).integers(1, 255, (60, 32), np.uint8)
    cache.image_digests = digests
    by_digest = images_sha256(cache, ROWS)
    assert by_digest != by_path
    moved = make_cache(seed=1)
    moved.paths = [f"elsewhere/{path}" for path in moved.paths]
    moved.image_digests = digests
    assert images_sha256(moved, ROWS) == by_digest
    shifted = make_cache()
    shifted.image_digests, shifted.y = np.roll(digests, 3, axis=0), np.roll(cache.y, 3)
    assert images_sha256(shifted, ROWS) != by_digest
    assert images_sha256(shifted, ROWS + 3) == by_digest
    cache.class_names = ["wasp", "bee", "cow"]
    assert images_sha256(cache, ROWS) != by_digest

"""A pair of caches in memory."""

from __future__ import annotations

import pytest
from memory_cache import make_cache

from featx.evaluate import Pair


@pytest.fixture
def pair():
    return Pair(make_cache(), make_cache(45, split="test"))

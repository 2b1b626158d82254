"""Memory that is used again from batch to batch."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from featx.memory import reused_memory

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library"
)
_BYTES = 64 << 20


@torch.inference_mode()
def pages_of_a_batch() -> int:
    """Count the pages that the system has to fill for a batch that comes after like ones."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU())
    images = torch.ones(16, 3, 128, 128)
    for i in range(15):
        if i == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layers(images)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5


def test_a_batch_takes_the_memory_of_the_last_one() -> None:
    few = _BYTES // resource.getpagesize() // 10
    assert pages_of_a_batch() > few
    with reused_memory():
        assert pages_of_a_batch() < few
        with reused_memory():
            assert pages_of_a_batch() < few
        assert pages_of_a_batch() < few
    assert pages_of_a_batch() > few


def test_memory_goes_back_at_the_end() -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize()

    before = resident()
    with reused_memory():
        torch.empty(4 * _BYTES, dtype=torch.uint8).fill_(1)
        assert resident() - before > 3 * _BYTES
    assert resident() - before < _BYTES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Callable[..., object]] = []
    monkeypatch.setattr("featx.memory.ctypes.CDLL", lambda name: object())
    monkeypatch.setattr("featx.memory._count", lambda *words: called.append(words))
    with reused_memory():
        pass
    assert not called

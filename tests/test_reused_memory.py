"""Memory that is used again from batch to batch."""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from featx.memory import reused_memory

needs_glibc = pytest.mark.skipif(
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


def resident() -> int:
    """Count the bytes that this process holds."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def watch() -> None:
    """Print what is seen before, in, and after blocks; the heap must be a new one."""
    before = pages_of_a_batch()
    start = resident()
    with reused_memory():
        within = [pages_of_a_batch()]
        with reused_memory():
            within.append(pages_of_a_batch())
        within.append(pages_of_a_batch())
        torch.empty(4 * _BYTES, dtype=torch.uint8).fill_(1)
        held = resident() - start
    print(json.dumps([before, within, held, resident() - start]))


@needs_glibc
def test_a_batch_takes_the_memory_of_the_last_one_and_it_goes_back_at_the_end() -> None:
    code = "import test_reused_memory; test_reused_memory.watch()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    before, within, held, kept = json.loads(done.stdout)
    few = _BYTES // resource.getpagesize() // 10
    assert before > few
    assert max(within) < few
    assert held > 3 * _BYTES
    assert kept < _BYTES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Callable[..., object]] = []
    monkeypatch.setattr("featx.memory.ctypes.CDLL", lambda name: object())
    monkeypatch.setattr("featx.memory._count", lambda *words: called.append(words))
    with reused_memory():
        pass
    assert not called

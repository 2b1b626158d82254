"""Steps one after another, each in a process of its own that is ended when its time is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_kit.kit import FORK, Kit, Step, last_lines, received
from gpu_kit.record import Record

__all__ = ["run_steps"]

_LEAST_SECONDS = 8.0
_GRACE_SECONDS = 5.0


def run_steps(steps: Sequence[Step], kit: Kit, record: Record) -> None:
    """Run steps while there is time, and record what each finds as it finds it.

    Parameters
    ----------
    steps : sequence of Step
        In this order.
    kit : Kit
        Its `ends` is that of all steps.
    record : Record
        Is written after each message.
    """
    for step in steps:
        left = kit.left()
        if left < _LEAST_SECONDS:
            record.begin(step, 0.0)
            record.end("skipped: no time", 0.0)
            continue
        # A small run looks for mistakes, on machines of any speed.
        seconds = left if kit.is_small else min(step.seconds, left)
        _run(step, kit, record, seconds)


def _run(step: Step, kit: Kit, record: Record, seconds: float) -> None:
    record.begin(step, seconds)
    try:
        work = step.load()  # before the fork: the other steps have it imported, too
        _require_no_device()
    except Exception as error:
        record.add("text", ("traceback", last_lines()))
        record.end(f"failed: {type(error).__name__}: {error}", 0.0)
        return
    started = time.monotonic()
    ends = started + seconds
    scratch = kit.scratch / step.name
    scratch.mkdir()
    here, there = FORK.Pipe(duplex=False)
    own = replace(kit, scratch=scratch, ends=ends, send=there.send)
    child = FORK.Process(target=_inside, args=(work, own))
    child.start()
    there.close()
    state = ""
    for kind, value in received(here, child, ends + _GRACE_SECONDS):
        if kind == "end":
            state = value
            break
        record.add(kind, value)
    if not state and time.monotonic() < ends:
        child.join(_GRACE_SECONDS)  # its pipe closes a little before it is over
    if not state and child.is_alive():
        state = f"ended after {seconds:.0f} s: it took longer than its time"
    assert child.pid
    with suppress(ProcessLookupError):  # its own end would take seconds; what it left goes, too
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    state = state or f"failed: the process ended with {child.exitcode}"
    record.end(state, time.monotonic() - started)


def _require_no_device() -> None:
    """Refuse to fork where an import has started CUDA, which then fails in every child."""
    found = [link for link in Path("/proc/self/fd").glob("*") if "nvidia" in _target(link)]
    if found:
        raise RuntimeError(
            f"importing this step opened {_target(found[0])}: CUDA cannot be used in processes "
            "that are forked now; import what did it in the step's own function"
        )


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _inside(work: Callable[[Kit], object], kit: Kit) -> None:
    os.setsid()
    os.environ["FEATX_DATA"] = str(kit.scratch / "data")  # no step knows what another hashed
    state: Any = "done"
    try:
        work(kit)
    except BaseException as error:
        kit.text("traceback", last_lines())
        state = f"failed: {type(error).__name__}: {error}"[:300]
    kit.send(("end", state))

"""What a step gets: the device, pictures, a clock, and somewhere to put what it finds."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from featx.backbones import BackboneGroup, open_backbones
from featx.engines import LocalEngine, resolve_device
from gpu_kit.pictures import Pictures

__all__ = ["FORK", "Kit", "Step", "last_lines"]

FORK = multiprocessing.get_context("fork")
"""CUDA is used in forked children alone: each step and trial begins with everything imported."""

_N_LINES = 25


@dataclass(frozen=True)
class Step:
    """One step of the kit.

    Parameters
    ----------
    name : str
        As ``--steps`` takes it.
    work : str
        ``module:function`` of this package; the function takes a `Kit`.
    seconds : float
        After which it is ended, on an H100.
    title : str
        For a person.
    is_in_small : bool, default=True
        Whether it runs in a small run that does not name it.
    """

    name: str
    work: str
    seconds: float
    title: str
    is_in_small: bool = True

    def load(self) -> Callable[[Kit], object]:
        """Import what it needs; a package that is missing fails no other step."""
        module, name = self.work.split(":")
        found: Callable[[Kit], object] = getattr(import_module(module), name)
        return found


@dataclass(frozen=True)
class Kit:
    """The surroundings of one step.

    Parameters
    ----------
    device_name : str
        ``cpu`` or ``cuda``.
    is_small : bool
        Whether everything is as small as a test wants it.
    pictures : Pictures
        Images to work on.
    scratch : Path
        An empty folder of this step.
    ends : float
        When the step should be over, on the clock of `time.monotonic`.
    send : callable
        Takes what was found: a kind and a value.
    """

    device_name: str
    is_small: bool
    pictures: Pictures
    scratch: Path
    ends: float
    send: Callable[[tuple[str, Any]], object]

    @cached_property
    def device(self) -> torch.device:
        """The device; asking for it starts CUDA."""
        return resolve_device(self.device_name)

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device_name.startswith("cuda")

    def left(self) -> float:
        """Seconds that the step has left."""
        return self.ends - time.monotonic()

    def row(self, **columns: Any) -> None:
        """Record a row of the step's table; a column `right` says whether that is as it should."""
        self.send(("row", columns))

    def text(self, title: str, text: str) -> None:
        """Record something long, for whoever looks for the reason."""
        self.send(("text", (title, text)))

    @contextmanager
    def trying(self, **columns: Any) -> Iterator[None]:
        """Record an error as a row that is wrong, and go on behind."""
        try:
            yield
        except Exception as error:
            self.row(**columns, right=False, found=f"{type(error).__name__}: {error}"[:300])
            self.text(f"{columns}", last_lines())

    def group(self, name: str, **options: Any) -> BackboneGroup:
        """Open a network with random weights, at a small input in a small run."""
        if self.is_small:
            options = {"overrides": {"input_size": 64}} | options
        return open_backbones(name, weights="random", **options)

    def group_for_trials(self, name: str) -> BackboneGroup:
        """Open a network by one thread: OpenMP's others would be missed in forked trials."""
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.group(name)
        finally:
            torch.set_num_threads(n_threads)

    def engine(self, precision: str, batch: int | None = None, **options: Any) -> LocalEngine:
        """Give an engine on the device; few workers in a small run."""
        if self.is_small:
            options = {"workers": 1} | options
            batch = min(batch or 8, 8)
        return LocalEngine(self.device, precision, batch, **options)

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Time a call, with what the device does for it."""
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started

    def in_children(self, trials: Mapping[str, Callable[[Kit], object]], seconds: float) -> None:
        """Run trials side by side, each in a process with a CUDA of its own.

        They must not be run where this process has used CUDA, or OpenMP with several threads. What
        they find is sent on.
        """
        ends = time.monotonic() + min(seconds, self.left())
        pairs = []
        for name, trial in trials.items():
            here, there = FORK.Pipe(duplex=False)
            child = FORK.Process(target=_run_trial, args=(name, trial, self, there))
            child.start()
            there.close()
            pairs.append((name, here, child))
        for name, here, child in pairs:
            for message in received(here, child, ends):
                self.send(message)
            child.join(max(0.1, ends - time.monotonic()))
            if child.exitcode is None:
                child.kill()
                child.join()
            if child.exitcode:
                self.row(what=name, right=False, found=f"ended with {child.exitcode}")


def _run_trial(name: str, trial: Callable[[Kit], object], kit: Kit, there: Any) -> None:
    inner = replace(kit, send=there.send)
    with inner.trying(what=name):
        trial(inner)


def received(here: Any, child: Any, ends: float) -> Iterator[tuple[str, Any]]:
    """Give the messages of a child until it is over, or the time is.

    Workers that it leaves hold the other end of its pipe: its own end is looked at, too.
    """
    while wait([here, child.sentinel], max(0.0, ends - time.monotonic())):
        if not here.poll():
            return
        try:
            yield here.recv()
        except EOFError:
            return


def last_lines() -> str:
    """Give the end of the traceback of the error that is being handled."""
    return "\n".join(traceback.format_exc().strip().splitlines()[-_N_LINES:])

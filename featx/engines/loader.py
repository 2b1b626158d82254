"""Decoding and preprocessing in worker processes, which share out the images of a batch."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from featx.engines.loading import Chunk, Loading, PixelBatch, Place
from featx.engines.shared import Ring, page_locked
from featx.errors import FeatxError, SourceError
from featx.store.threads import give_way

__all__ = ["Loading", "PixelBatch", "iter_pixels", "worker_deaths_named"]

_LEAST_CHUNK, _MOST_CHUNK = 16, 32
_MOST_AHEAD = 4
_PLENTY_BYTES = 1 << 30
# Other platforms have no fork, or libraries that do not stand it.
_START = "fork" if sys.platform == "linux" else None
# The network goes first. Beside a GPU its features are written at 5: nothing waits for the disk.
_NICENESS, _NICENESS_BY_GPU = 5, 10
_MOST_SECONDS = 120  # of computing, for one image; the largest take some ten
_starting = threading.Lock()
_workers: WeakKeyDictionary[BaseProcess, _Chunks] = WeakKeyDictionary()
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Shares:
    """How a run is shared out.

    A worker decodes a chunk of a batch, so that a few batches keep many workers busy.
    """

    workers: int
    n_parts: int
    each: int
    ahead: int
    n_places: int

    @classmethod
    def of(
        cls, loading: Loading, n_batches: int, workers: int, n_held: int, max_bytes: int
    ) -> _Shares:
        """Take as many workers and chunks ahead as the bytes allow, at least one of each."""
        size = loading.batch_size
        n_images = min(len(loading.source), n_batches * size)
        aim = min(_MOST_CHUNK, max(_LEAST_CHUNK, -(-n_images // workers)))
        each = -(-size // -(-size // aim))
        n_parts = -(-size // each)
        workers = min(workers, n_batches * n_parts)
        n_bytes = sum(int(np.prod(shape)) for shape in loading.shapes)

        def n_places(workers: int, ahead: int) -> int:
            # Those that are used, the one that is taken, and those that chunks are ahead of it.
            return min(n_batches, n_held + 1 + -(-workers * ahead // n_parts))

        choices = itertools.product(range(workers, 0, -1), range(_MOST_AHEAD, 0, -1))
        fitting = (choice for choice in choices if n_places(*choice) * n_bytes <= max_bytes)
        workers, ahead = next(fitting, (1, 1))
        return cls(workers, n_parts, each, ahead, n_places(workers, ahead))


class _Chunks(Dataset["Chunk | FeatxError"]):
    """Place, batch and part in, what is known of it out, or what ends the run; in the workers."""

    def __init__(self, loading: Loading, shares: _Shares) -> None:
        self._loading, self._shares = loading, shares
        self.rings = [Ring((shares.n_places, *shape)) for shape in loading.shapes]
        self._notes = Ring((shares.workers, 16))  # the process of each worker, and its image

    def images_of(self, process: int | None) -> list[str]:
        """Give the image that a worker, by its process, was at; none where it was at none."""
        notes = self._notes.pixels.view(np.int64).tolist()
        paths = self._loading.source.paths
        return [paths[row] for worker, row in notes if worker == process and row >= 0]

    def _note(self, row: int) -> None:
        """Note the image that is next, -1 for none; SIGPROF ends a worker that takes too long."""
        info = get_worker_info()
        if info is not None:
            self._notes.pixels.view(np.int64)[info.id] = os.getpid(), row
            signal.setitimer(signal.ITIMER_PROF, 0 if row < 0 else _MOST_SECONDS)

    def place(self, position: int) -> Place:
        """Give the place of the batch that is the `position`-th of the run."""
        return Place.of([ring.pixels[position % self._shares.n_places] for ring in self.rings])

    def __getitem__(self, index: tuple[int, int, int]) -> Chunk | FeatxError:
        position, batch, part = index
        low, high = part * self._shares.each, (part + 1) * self._shares.each
        rows = self._loading.rows(batch)[low:high]
        place = self.place(position).part(slice(low, high))
        found = _guarded(partial(self._loading.fill, rows, place, self._note))
        self._note(-1)
        return found


def _guarded(step: Callable[[], _Result]) -> _Result | FeatxError:
    """Give an error as a value: torch would put the worker's traceback into its text."""
    try:
        return step()
    except SourceError as error:
        return error
    except MemoryError:
        return SourceError(
            "there is too little memory to decode the images. No image is marked as failed "
            "because of this. Give the run more memory or fewer --workers, then run the same "
            "again"
        )


def iter_pixels(
    loading: Loading,
    batches: Sequence[int],
    *,
    workers: int,
    n_held: int | None = None,
    max_bytes: int = _PLENTY_BYTES,
    device: torch.device | None = None,
    tell: Callable[[str], object] = warnings.warn,
) -> Generator[PixelBatch, None, None]:
    """Decode and preprocess batches of consecutive images, in order.

    The workers are started by this call, not by the first step of the iterator: whoever
    computes in several threads starts all of them before.
    """
    if not workers or not batches:
        return _decoded_here(loading, batches, device)
    if device is not None:
        # What cannot be locked in place is copied, and torch rounds such copies up.
        most = max(int(np.prod(shape)) for shape in loading.shapes)
        max_bytes -= ((n_held or 0) + 2) * (1 << (most - 1).bit_length())
    shares = _Shares.of(loading, len(batches), workers, n_held or 0, max_bytes)
    tasks = [(i, batch, part) for i, batch in enumerate(batches) for part in range(shares.n_parts)]
    try:
        chunks = _Chunks(loading, shares)
        started = _started(chunks, tasks, shares, _NICENESS if device is None else _NICENESS_BY_GPU)
    except OSError as error:  # /dev/shm is full or not there, or there are too many processes
        tell(f"processes that decode cannot be started ({error}): this one decodes the images")
        return _decoded_here(loading, batches, device)
    found = _in_order(loading, shares, batches, chunks, started, device)
    return found if n_held is not None else _copied(found)


def _started(
    chunks: _Chunks, tasks: Sequence[tuple[int, int, int]], shares: _Shares, niceness: int
) -> Iterator[Chunk | FeatxError]:
    """Start the workers: by one thread at a time, and so that forked ones are safe.

    Objects that they inherit are never collected there: tensors of a GPU would be freed in a
    process that cannot use it.
    """
    is_collecting = gc.isenabled()
    with _starting, warnings.catch_warnings():
        # More workers than cores were asked for: they may wait for a disk or a network.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        # No thread of featx computes now, and the workers use nothing that others may hold.
        warnings.filterwarnings("ignore", ".*is multi-threaded", DeprecationWarning)
        gc.disable()
        others = {*multiprocessing.active_children()}
        try:
            return iter(
                DataLoader(
                    chunks,
                    batch_size=None,
                    sampler=tasks,
                    num_workers=shares.workers,
                    prefetch_factor=shares.ahead,
                    worker_init_fn=partial(_begin, niceness),
                    multiprocessing_context=_START,
                )
            )
        finally:
            new = {*multiprocessing.active_children()} - others
            _workers.update(dict.fromkeys(new, chunks))
            if is_collecting:
                gc.enable()


def _begin(niceness: int, worker: int) -> None:
    del worker
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    gc.freeze()
    gc.enable()
    give_way(niceness)


def _in_order(
    loading: Loading,
    shares: _Shares,
    batches: Sequence[int],
    chunks: _Chunks,
    results: Iterator[Chunk | FeatxError],
    device: torch.device | None,
) -> Generator[PixelBatch, None, None]:
    """Join what the workers give."""
    with worker_deaths_named(), ExitStack() as stack:
        is_locked = [stack.enter_context(page_locked(ring, device)) for ring in chunks.rings[-1:]]
        for position, batch in enumerate(batches):
            found = [_raised(next(results)) for _ in range(shares.n_parts)]
            place = chunks.place(position)
            joined = loading.joined(batch, place, found, shares.each)
            is_in_locked = is_locked[0] and joined.is_raw == (place.raw is not None)
            yield joined if device is None or is_in_locked else joined.pin_memory()


def _decoded_here(
    loading: Loading, batches: Sequence[int], device: torch.device | None
) -> Generator[PixelBatch, None, None]:
    for batch in batches:
        loaded = _raised(_guarded(partial(loading.load, batch)))
        yield loaded if device is None else loaded.pin_memory()


def _copied(batches: Generator[PixelBatch, None, None]) -> Generator[PixelBatch, None, None]:
    with closing(batches):
        for batch in batches:
            yield replace(batch, pixels=batch.pixels.clone())


def _raised(found: _Result | FeatxError) -> _Result:
    if isinstance(found, FeatxError):
        raise found
    return found


@contextmanager
def worker_deaths_named() -> Iterator[None]:
    """Say in words that a worker ended: torch raises that out of a signal, wherever Python is."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SourceError(f"{_death(str(error))}. No image is marked as failed") from error


def _death(text: str) -> str:
    """Say why a worker ended, and with which image, by what torch says of its process."""
    ended = [worker for worker in _workers if str(worker.pid) in re.findall(r"\d+", text)]
    images = [image for worker in ended for image in _workers[worker].images_of(worker.pid)]
    if images and ended[0].exitcode == -signal.SIGPROF:
        return (
            f"{images[0]} takes more than {_MOST_SECONDS} seconds of computing to decode: a "
            "damaged or a malicious file? Take it out of the data, then run the same again"
        )
    while_at = f" while it decoded {images[0]}" if images else ""
    return (
        f"a process that decodes images was ended{while_at}, mostly since memory ran out "
        f"({text.strip(' .')}). Use fewer --workers, since each decodes an image of its own, or "
        "make the image smaller, then run the same again"
    )

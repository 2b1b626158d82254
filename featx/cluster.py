"""Work shared out among the processes of a Ray cluster; what the work is, it must not know.

A worker loads once what all tasks need, and does one task after another. A worker that dies is
replaced, and one that fails is retired; its task goes to another worker either way.
"""

from __future__ import annotations

import re
import socket
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from featx.errors import CacheBusyError, CacheMismatchError, FeatxError, ImageError, UsageError
from featx.progress import Bar, Reporter
from featx.ray_nodes import Expected, Need

__all__ = ["Crew"]

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Any], Any]
"""Does a task."""

_MOST_TRIES = 3
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_TRIES = 5.0  # at what another process works on
_SECONDS_WITHOUT_WORKERS = 60.0
# Another worker would say the same.
_SAME_EVERYWHERE = (UsageError, ImageError, CacheMismatchError)


class _FarBar(Bar):
    """A bar that is shown by the driver."""

    def __init__(self, post: Callable[[int], object], total: int, initial: int) -> None:
        super().__init__(total, "", "image", None, initial)
        self._post, self._posted = post, 0.0

    def update(self, n: int = 1, note: str = "") -> None:
        super().update(n, note)
        if time.monotonic() - self._posted > 2 * _SECONDS_BETWEEN_LOOKS:
            self._posted = time.monotonic()
            self._post(self.done)


@dataclass(frozen=True)
class _FarReporter(Reporter):
    """Sends the driver what a person is to see."""

    post: Callable[[Any], object] = field(default=str)

    def bar(self, total: int, label: str, unit: str = "image", initial: int = 0) -> Bar:
        is_shown = unit == "image" and not label.startswith("hashing")
        return _FarBar(self.post, total, initial) if is_shown else super().bar(total, label, unit)

    def warn(self, text: str) -> None:
        self.post(text)


class _Worker:
    """A process of the cluster, with what it loaded once."""

    def __init__(self, messages: Any) -> None:
        self._messages, self._number = messages, -1
        self._work: Work

    def begin(self, expected: Expected, open_work: Callable[[Reporter], Work]) -> Any:
        """Load what all tasks need; give the name of the node."""

        def begin() -> str:
            expected.require()
            self._work = open_work(_FarReporter(quiet=True, post=self._post))
            return socket.gethostname()

        return _guarded(begin)

    def do(self, number: int, task: Any) -> Any:
        """Do a task; what it raises is given back as a value."""
        self._number = number
        return _guarded(lambda: self._work(task))

    def _post(self, text_or_count: str | int) -> None:
        with suppress(Exception):  # nobody listens: the work is worth more
            self._messages.put_nowait((self._number, text_or_count))


def _guarded(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except Exception as error:
        where = "" if isinstance(error, FeatxError) else f":\n{traceback.format_exc()}"
        error.add_note(f"on the node {socket.gethostname()}{where}")
        return error


class Crew(Generic[Task, Result]):
    """Workers of a cluster, and the tasks that wait for them.

    Parameters
    ----------
    ray : module
        Connected, see `connected`.
    open_work : callable
        Is called once in each worker, which it is sent to, with a reporter that sends the driver
        its bars and warnings; gives what does a task there.
    need : Need
        What each worker takes.
    shared : pathlib.Path, optional
        A folder that each worker must see.
    heard : callable, optional
        Is called again and again with what came from the workers: numbers of tasks with images
        that are done, or with a text for people.
    reporter : Reporter
        Is told of workers that are lost.
    """

    def __init__(
        self,
        ray: Any,
        open_work: Callable[[Reporter], Work],
        need: Need,
        reporter: Reporter,
        *,
        shared: Path | None = None,
        heard: Callable[[list[tuple[int, Any]]], object] = str,
    ) -> None:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._need, self._reporter, self._heard = ray, need, reporter, heard
        self._begin = Expected.here(shared), ray.put(open_work)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._kind = ray.remote(_Worker)
        self._under_way: dict[Any, tuple[Any, int | None]] = {}
        self._idle: list[Any] = []
        self._waiting: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        self._tries: Counter[int | None] = Counter()
        self._alone_since = time.monotonic()
        self._n_wanted = 0

    @property
    def n_workers(self) -> int:
        """Workers that are ready."""
        return len(self._idle) + sum(n is not None for _, n in self._under_way.values())

    def __enter__(self) -> Self:
        return self

    def do(
        self, tasks: Sequence[Task], *, more_follow: bool = False
    ) -> Iterator[tuple[int, Result]]:
        """Do tasks, and give the number and the result of each as it comes.

        Where more tasks follow, all workers that there is room for begin to load at once.
        """
        self._waiting.extend(range(len(tasks)))
        n_left = len(tasks)
        n_places = self._need.n_workers(self._ray)
        self._n_wanted = n_places if more_follow else min(len(tasks), n_places)
        while len(self._under_way) + len(self._idle) < self._n_wanted:
            self._start()
        while n_left:
            self._share_out(tasks)
            for ref in self._finished():
                worker, number = self._under_way.pop(ref)
                value = self._value(ref)
                if isinstance(value, Exception):
                    self._failed(worker, number, value)
                    continue
                self._idle.append(worker)
                self._tries.pop(number, None)
                if number is not None:
                    n_left -= 1
                    yield number, value
            self._listen()

    def _start(self) -> None:
        worker = self._kind.options(num_cpus=self._need.cpus, num_gpus=self._need.gpus)
        worker = worker.remote(self._messages)
        self._under_way[worker.begin.remote(*self._begin)] = worker, None

    def _share_out(self, tasks: Sequence[Task]) -> None:
        now = time.monotonic()
        self._waiting.extend(number for at, number in self._later if at <= now)
        self._later = [(at, number) for at, number in self._later if at > now]
        while self._idle and self._waiting:
            worker, number = self._idle.pop(), self._waiting.popleft()
            self._under_way[worker.do.remote(number, tasks[number])] = worker, number

    def _finished(self) -> list[Any]:
        refs = list(self._under_way)
        if not refs:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            return []
        found, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        if not found:
            found, _ = self._ray.wait(refs, timeout=_SECONDS_BETWEEN_LOOKS)
        return list(found)

    def _value(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return error

    def _failed(self, worker: Any, number: int | None, error: Exception) -> None:
        """Give a task to another worker, unless it was tried too often."""
        if isinstance(error, CacheBusyError) and number is not None:
            self._idle.append(worker)
            self._later.append((time.monotonic() + _SECONDS_BETWEEN_TRIES, number))
            return
        self._ray.kill(worker)
        is_death = isinstance(error, self._ray.exceptions.RayError)
        self._tries[number] += 1
        if number is not None:
            self._waiting.append(number)
            if self._tries[number] == _MOST_TRIES:
                raise _lost(error) if is_death else error
        if isinstance(error, _SAME_EVERYWHERE) or (number is None and not is_death):
            raise error
        if is_death and self._tries[None] < _MOST_TRIES + self._n_wanted:
            self._reporter.warn(f"a worker was lost, another takes its place: {_in_a_line(error)}")
            self._start()
        elif self._under_way or self._idle:
            self._reporter.warn(f"a worker failed and is not used any more: {_in_a_line(error)}")
        else:
            raise _lost(error) if is_death else error

    def _listen(self) -> None:
        messages: list[tuple[int, Any]] = []
        with suppress(Exception):  # lost with its node: only the bar stands still
            n = self._messages.qsize()
            messages = self._messages.get_nowait_batch(n) if n else []
        self._heard(messages)
        if self.n_workers:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > _SECONDS_WITHOUT_WORKERS:
            self._alone_since = time.monotonic()
            self._reporter.warn(
                "no worker is there yet: the cluster has no room now, or workers take long to "
                "begin (see  ray status)"
            )

    def __exit__(self, *error: object) -> None:
        for worker in [*(worker for worker, _ in self._under_way.values()), *self._idle]:
            self._ray.kill(worker)
        self._under_way.clear()
        self._idle.clear()
        with suppress(Exception):
            self._messages.shutdown(force=True)


def _lost(error: Exception) -> FeatxError:
    return FeatxError(
        f"workers were lost again and again: {_in_a_line(error)}. What is finished is kept. Mostly "
        "memory ran out there (a worker takes more of a node with -j), or featx is not installed"
    )


def _in_a_line(error: Exception) -> str:
    """Say what went wrong; of a worker that died, Ray says much more than anybody needs."""
    text = str(error)
    if node := re.search(r"\bip[:=] ?([^\s,]+)", text):
        own = re.findall(r"^\s*(\w+Error: .*)", text, re.MULTILINE)
        why = own[-1] if own else text.partition("class_name: ")[0].strip().rstrip(".")
        return f"{why} (on the node {node[1]})"
    if "is unavailable: " in text:
        return text.partition(": ")[0]
    notes = [note.partition("\n")[0].rstrip(":") for note in getattr(error, "__notes__", ())]
    text = " ".join(text.split()) or type(error).__name__
    return f"{text} ({'; '.join(notes)})" if notes else text

"""Crews of workers on a local Ray cluster, with work that fails, dies and waits."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featx import cluster, ray_nodes
from featx.cluster import Crew
from featx.errors import (
    CacheBusyError,
    CacheMismatchError,
    CodeError,
    FeatxError,
    MissingExtraError,
    SourceError,
    UsageError,
)
from featx.progress import SILENT, Reporter
from featx.ray_nodes import Need, connected

ray = pytest.importorskip("ray", reason="needs featx[ray]")


@pytest.fixture(autouse=True)
def _by_value(local_ray: None) -> None:
    """The workers cannot import a module of tests."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _once(folder: Path, name: str) -> bool:
    """Whether this is the first call with this name, in any process."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _open_work(folder: Path, act: Callable[[int, Path], None] | None, reporter: Reporter) -> Any:
    (folder / f"opened-{os.getpid()}").touch()

    def work(task: int) -> tuple[int, int]:
        if act is not None:
            act(task, folder)
        with reporter.bar(10, "tenths") as bar:
            bar.update(10)
        return task * task, os.getpid()

    return work


def _do(
    open_work: Any, tasks: Any, reporter: Reporter = SILENT, cpus: int = 1, **settings: Any
) -> dict[int, Any]:
    with (
        connected() as connection,
        Crew[Any, Any](connection, open_work, Need(cpus), reporter, **settings) as crew,
    ):
        return dict(crew.do(tasks))


def test_each_task_is_done_once_by_workers_that_load_once(tmp_path: Path) -> None:
    heard: list[Any] = []
    found = _do(partial(_open_work, tmp_path, None), list(range(12)), heard=heard.extend)
    assert {n: square for n, (square, _) in found.items()} == {n: n * n for n in range(12)}
    workers = {int(path.name.removeprefix("opened-")) for path in tmp_path.glob("opened-*")}
    assert {process for _, process in found.values()} <= workers
    assert len(workers) <= 3
    assert {(n, 10) for n in range(12)} & {*heard}


def test_workers_of_tasks_to_come_begin_with_the_first_task(tmp_path: Path) -> None:
    opened = partial(_open_work, tmp_path, None)
    with connected() as ray, Crew[int, Any](ray, opened, Need(), SILENT) as crew:
        assert len([*crew.do([1])]) == 1
        assert len(crew._under_way) + len(crew._idle) == 1
        assert len([*crew.do([1], more_follow=True)]) == 1
        assert len(crew._under_way) + len(crew._idle) == 3


def _kill_itself(task: int, folder: Path) -> None:
    if task == 3 and _once(folder, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    said: list[str] = []
    # There is room for one worker alone.
    found = _do(partial(_open_work, tmp_path, _kill_itself), list(range(6)), _Said(said), cpus=3)
    assert {n: square for n, (square, _) in found.items()} == {n: n * n for n in range(6)}
    assert "a worker was lost, another takes its place" in "".join(said)
    assert len([*tmp_path.glob("opened-*")]) == 2


class _Said(Reporter):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(quiet=True)
        object.__setattr__(self, "lines", lines)

    def _print(self, text: str) -> None:
        self.lines.append(text)  # type: ignore[attr-defined]


def _always_killed(task: int, folder: Path) -> None:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(FeatxError, match="lost again and again.*What is finished is kept") as info:
        _do(partial(_open_work, tmp_path, _always_killed), [0, 1])
    print(info.value)
    assert len([*tmp_path.glob("opened-*")]) >= 3


def test_nodes_without_featx_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_there.py").write_text(
        "class Worker:\n    def __init__(self, queue): ...\n    def begin(self, need, work): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cluster, "_Worker", importlib.import_module("not_there").Worker)
    with pytest.raises(FeatxError, match="No module named 'not_there'.*not installed") as info:
        _do(partial(_open_work, tmp_path, None), [0])
    print(info.value)


def _fails_once(task: int, folder: Path) -> None:
    if task == 2 and _once(folder, "failed"):
        raise SourceError("the disk of this node is full")


def test_a_worker_that_fails_is_retired_and_its_task_done_elsewhere(tmp_path: Path) -> None:
    said: list[str] = []
    found = _do(partial(_open_work, tmp_path, _fails_once), list(range(6)), _Said(said))
    assert sorted(found) == list(range(6))
    [line] = said
    assert "not used any more: the disk of this node is full (on the node" in line
    print(line)


def _first_fails(error: Exception, task: int, folder: Path) -> None:
    if task == 0:
        (folder / f"tried-{os.getpid()}").touch()
        raise error
    time.sleep(0.5)  # so that workers are there for the first task


@pytest.mark.parametrize(
    ("error", "n_tries"),
    [
        (SourceError("the disk is full"), 3),
        (CacheMismatchError("not these settings", ["pool: asked for 'avg', has 'max'"]), 1),
    ],
    ids=["perhaps of one node", "the same everywhere"],
)
def test_what_fails_again_and_again_ends_the_work_with_its_own_error(
    error: FeatxError, n_tries: int, tmp_path: Path
) -> None:
    failing = partial(_open_work, tmp_path, partial(_first_fails, error))
    with pytest.raises(type(error), match=str(error).partition("\n")[0]) as info:
        _do(failing, list(range(20)))
    assert vars(info.value).get("differences") == vars(error).get("differences")
    assert f"on the node {socket.gethostname()}" in info.value.__notes__
    assert len([*tmp_path.glob("tried-*")]) == n_tries


def _busy_twice(task: int, folder: Path) -> None:
    if task == 0 and (_once(folder, "first") or _once(folder, "second")):
        raise CacheBusyError("another process writes it")


def test_what_another_process_works_on_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_TRIES", 0.1)
    said: list[str] = []
    found = _do(partial(_open_work, tmp_path, _busy_twice), [0, 1], _Said(said))
    assert sorted(found) == [0, 1]
    assert said == []


def _one_is_slow(task: int, folder: Path) -> None:
    if task == 0:
        while len([*folder.glob("done-*")]) < 7:
            time.sleep(0.05)
        time.sleep(1)
    (folder / f"done-{task}").touch()


def test_a_straggler_does_not_stall_the_rest(tmp_path: Path) -> None:
    with connected() as connection:
        slow = partial(_open_work, tmp_path, _one_is_slow)
        with Crew[int, Any](connection, slow, Need(), SILENT) as crew:
            order = [n for n, _ in crew.do(list(range(8)))]
    assert order[-1] == 0  # it waits for all others, which the others do


def test_nodes_with_other_versions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_nodes, "_versions", lambda: {"torch": "1.0", "featx": "0.1.0"})
    with pytest.raises(UsageError, match=r"torch \S+ there, 1\.0 here") as info:
        _do(partial(_open_work, tmp_path, None), [0])
    assert "featx" not in str(info.value).partition("packages:")[2].partition(". ")[0]


def test_a_folder_that_a_node_does_not_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _do(partial(_open_work, tmp_path, None), [0], shared=tmp_path)
    monkeypatch.setattr(ray_nodes, "_name_of", lambda folder: "another folder at this path")
    with pytest.raises(UsageError, match=f"does not see the folder {tmp_path}, where"):
        _do(partial(_open_work, tmp_path, None), [0], shared=tmp_path)


def test_more_than_any_node_has_is_refused(tmp_path: Path) -> None:
    with connected() as connection, pytest.raises(UsageError, match="3 CPUs and 0 GPUs on 1 nodes"):
        [*Crew(connection, partial(_open_work, tmp_path, None), Need(gpus=1), SILENT).do([0])]


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("nonsense", "is none of a Ray cluster: give HOST:PORT"),
        ("ray://127.0.0.1:10001", "ray job submit"),
        ("127.0.0.1:1", "no Ray cluster .* at the address '127.0.0.1:1': .*refused"),
    ],
)
def test_addresses_that_do_not_answer(
    address: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UsageError, match=text), connected(address):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"featx\[ray\]"), connected():
        pass


@pytest.mark.parametrize("error", [MissingExtraError("a", "b", "c"), CodeError("x:y")])
def test_errors_reach_other_processes_whole(error: FeatxError) -> None:
    error.add_note("where it was")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)

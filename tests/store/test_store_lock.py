"""One holder at a time, also while the lock's file comes and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import pytest
from store_helpers import fill, make_rows, make_spec, write_missing

from featx.atomic import try_flock
from featx.errors import CacheBusyError
from featx.store import CacheWriter, verify_file
from featx.store.lock import Lock


def test_one_holder(tmp_path: Path) -> None:
    one, two = Lock(tmp_path / "a.h5"), Lock(tmp_path / "a.h5")
    one.acquire()
    with pytest.raises(CacheBusyError, match=f"process {os.getpid()} on .*: wait for it"):
        two.acquire()
    one.release()
    one.release()
    two.acquire()
    two.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="states of processes: /proc")
def test_a_suspended_holder_is_said_to_be_suspended(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from featx.store.lock import Lock; "
        "Lock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        with pytest.raises(CacheBusyError, match=f"suspended .* kill -CONT {holder.pid}"):
            Lock(tmp_path / "a.h5").acquire()
        holder.send_signal(signal.SIGCONT)
        with pytest.raises(CacheBusyError, match="wait for it"):
            Lock(tmp_path / "a.h5").acquire()
        holder.kill()


def test_a_lock_file_left_by_a_dead_process_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "a.h5.lock").write_text('{"pid": 1}')
    lock = Lock(tmp_path / "a.h5")
    lock.acquire()
    other = Lock(tmp_path / "a.h5")
    (tmp_path / "a.h5.lock").write_text("")
    with pytest.raises(CacheBusyError, match="written by another process"):
        other.acquire()
    lock.release()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    (tmp_path / "a.h5.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        Lock(tmp_path / "a.h5").acquire()
    assert (tmp_path / "precious").read_text() == "data"


def test_a_child_that_outlives_a_killed_writer_does_not_keep_it(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys, time
        from pathlib import Path
        from featx.atomic import try_flock
        from featx.store.lock import Lock
        lock = Lock(Path(sys.argv[1]))
        lock.acquire()
        partial = os.open(sys.argv[1] + ".partial", os.O_RDWR | os.O_CREAT)
        assert try_flock(partial)
        closed = os.open(sys.argv[1] + ".other", os.O_RDWR | os.O_CREAT)
        assert try_flock(closed)
        os.close(closed)
        reused = os.open(sys.argv[1] + ".reused", os.O_RDWR | os.O_CREAT)
        assert reused == closed
        child = os.fork()
        if child == 0:
            os.pwrite(reused, b"ours", 0)
            print(os.getpid(), flush=True)
            time.sleep(3600)
            os._exit(0)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    target = tmp_path / "a.h5"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        child = int(writer.stdout.readline())
        try:
            assert writer.wait() == -signal.SIGKILL
            os.kill(child, 0)  # it lives
            Lock(target).acquire()
            with Path(f"{target}.partial").open("rb") as stream:
                assert try_flock(stream.fileno())
            assert Path(f"{target}.reused").read_text() == "ours"
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.h5")
    lock.acquire()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.read(ours, 1)
        os._exit(0)
    lock.release()
    again = Lock(tmp_path / "a.h5")
    again.acquire()
    again.release()
    os.write(theirs, b"x")
    os.waitpid(child, 0)
    os.close(ours)
    os.close(theirs)


def test_a_forked_child_does_not_lock_the_finished_file(tmp_path: Path) -> None:
    spec = make_spec()
    ours, theirs = os.pipe()
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        child = os.fork()
        if child == 0:  # pragma: no cover
            os.read(ours, 1)
            os._exit(0)
        write_missing(writer, make_rows(spec))
        writer.finish()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].shape == (40, 7)
    os.write(theirs, b"x")
    os.waitpid(child, 0)
    os.close(ours)
    os.close(theirs)


RACE = """
    import sys
    from pathlib import Path
    from featx.errors import CacheBusyError
    from featx.atomic import try_flock
    from featx.store.lock import Lock
    folder = Path(sys.argv[1])
    taken = 0
    while taken < 150:
        lock = Lock(folder / "a.h5")
        try:
            lock.acquire()
        except CacheBusyError:
            continue
        (folder / "inside").touch(exist_ok=False)  # fails if two are inside
        (folder / "inside").unlink()
        taken += 1
        lock.release()
"""


def test_never_two_inside(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(tmp_path)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for child in children:
        _, text = child.communicate(timeout=100)
        assert child.returncode == 0, text.decode()
    assert list(tmp_path.iterdir()) == []


CHILD = Path(__file__).with_name("store_child.py")


def test_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    target, spec = tmp_path / "a.h5", make_spec()
    first = subprocess.Popen(
        [sys.executable, "-W", "error", CHILD, target, "40", "7"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    who = f"is being written by process {first.pid} on {os.uname().nodename}, since 2"
    with pytest.raises(CacheBusyError, match=who):
        CacheWriter.open(target, spec)
    first.kill()
    first.communicate()
    fill(target, spec, make_rows(spec))
    assert verify_file(target) == []
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]

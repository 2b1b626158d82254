"""Python processes forked off one that has torch, scikit-learn and featx loaded already.

To import them takes seconds, to fork takes none. This is for tests that need a process, to stop,
to kill or to run beside others, but not its start. Run as a script, this file is that one process:
each connection to its socket brings a line of JSON, and gets the process's number and exit code.

code, words: what would follow ``python -c``
cwd, env: of the new process
out, err: files for its output
is_leader: whether it begins a session of its own
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOADED = [
    *("featx.evaluate", "featx.extract.job", "featx.predict", "featx.train", "skorch"),
    *("safetensors.torch", "sklearn.neural_network", "torchvision.models"),
    "torch._dynamo",  # a network's outline needs it
]


def load() -> None:
    """What takes seconds: a run would import it on its way."""
    for name in LOADED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)  # a fork copies one thread only


class Forked:
    """A process, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, answers: socket.socket, out: Path, err: Path) -> None:
        self._answers, self._out, self._err = answers, out, err
        self.returncode: int | None = None
        self.pid = int(self._line())

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            found = self._answers.recv(1)  # the answers stand apart: a larger read may take two
            assert found, "the process that forks has ended"
            line += found
        return line.decode()

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, negative for a signal."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            self.returncode = int(self._line())
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return what it wrote to both outputs."""
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """Starts processes; those that are still there at the end of a test are killed by `end`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Forked] = []

    def start(self, code: str, *words: str, is_leader: bool = False) -> Forked:
        """As ``python -c code words`` in this folder and environment."""
        n = len(self._started)
        out, err = self._folder / f"{n}.out", self._folder / f"{n}.err"
        order = {"code": code, "words": words, "cwd": str(Path.cwd()), "env": dict(os.environ)}
        order |= {"out": str(out), "err": str(err), "is_leader": is_leader}
        answers = socket.socket(socket.AF_UNIX)
        answers.connect(str(self._folder / "socket"))
        answers.sendall(json.dumps(order).encode() + b"\n")
        self._started.append(Forked(answers, out, err))
        return self._started[-1]

    def run(self, code: str, *words: str) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with both outputs as text."""
        process = self.start(code, *words)
        out, err = process.communicate()
        return subprocess.CompletedProcess(list(words), process.wait(), out, err)

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@contextmanager
def open_forks(folder: Path) -> Iterator[Forks]:
    """The process that forks, and its files in a folder."""
    with subprocess.Popen(
        [sys.executable, __file__, folder / "socket"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield Forks(folder)
        server.communicate()  # closes its input, which ends it


def become(order: dict[str, Any]) -> int:
    """Run the code as the main module of a new process; return the exit code."""
    if order["is_leader"]:
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[0], sys.argv = "", ["-c", *order["words"]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(order["code"], "<string>", "exec"), main.__dict__)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """End as Python does: threads are waited for, and what is to be done at the end is."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def attend(connection: socket.socket) -> None:
    """In a process of its own: fork another, and tell its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        leave(become(order))
    connection.sendall(f"{pid}\n".encode())
    threading.Thread(target=follow, args=(connection, pid), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def follow(connection: socket.socket, pid: int) -> None:
    """Where the tests are no more, the process goes too."""
    connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def serve(path: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    print("ready", flush=True)
    while server in select.select([server, sys.stdin], [], [])[0]:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            attend(connection)
        connection.close()


if __name__ == "__main__":
    load()
    serve(sys.argv[1])

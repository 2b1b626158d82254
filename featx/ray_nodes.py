"""A Ray cluster: connected, asked for room, and its nodes compared with this machine."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featx.errors import CacheError, MissingExtraError, UsageError, reason_of
from featx.stops import NUMBERS

__all__ = ["Expected", "Need", "connected"]

_PACKAGES = ("featx", "torch", "torchvision", "numpy", "h5py", "Pillow", "scikit-learn", "timm")
_SECONDS_TO_ANSWER = 5.0
_LOCAL = "local"
_NAME = ".folder-name"


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Give Ray, connected to a cluster.

    That is the one that this process is connected to already, the one at the address (by default
    that of ``RAY_ADDRESS``), or one of this machine alone, which ends with the block.
    """
    ray = _load_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or _LOCAL
    _require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    own = {"include_dashboard": False} if address == _LOCAL else {}
    try:
        ray.init(address, logging_level="error", log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, str(error)) from error
    finally:
        _give_back(handlers)  # Ray takes SIGTERM
    try:
        with _hushed(ray):
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _hushed(ray: Any) -> Iterator[None]:
    """Keep Ray's long notes on lost processes out of what commands print; no setting does."""
    module, name = getattr(ray._private, "worker", None), "print_to_stdstream"
    if not hasattr(module, name):
        yield
        return
    prints = getattr(module, name)
    setattr(module, name, lambda *data, **settings: None)
    try:
        yield
    finally:
        setattr(module, name, prints)


def _load_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "--engine ray") from error
    return ray


def _give_back(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        with suppress(ValueError, TypeError):  # not the main thread; a handler that is not Python's
            signal.signal(number, handler)


def _require_answer(address: str) -> None:
    """Ask first: Ray waits two minutes, and then ends the process."""
    if address in (_LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise UsageError(
            f"the address {address!r} is none of a Ray cluster: give HOST:PORT of its head node, "
            "auto for the cluster of this machine, or leave it out for this machine alone. From "
            "outside of a cluster, submit the command with  ray job submit"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> UsageError:
    reason = " ".join(why.split()).rstrip(". ")
    return UsageError(
        f"there is no Ray cluster to work on at the address {address!r}: {reason}. Begin one with  "
        "ray start --head,  or leave --address out to use this machine alone"
    )


@dataclass(frozen=True)
class Need:
    """What each worker takes of a node."""

    cpus: int = 1
    gpus: float = 0.0

    def n_workers(self, ray: Any) -> int:
        """Count the workers that the nodes have room for."""
        rooms = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n = sum(self._n_in(room) for room in rooms)
        if not n:
            has = {name: sum(room.get(name, 0) for room in rooms) for name in ("CPU", "GPU")}
            raise UsageError(
                f"no node has room for a worker of {self.cpus} CPUs and {self.gpus:g} GPUs: the "
                f"cluster has {has['CPU']:g} CPUs and {has['GPU']:g} GPUs on {len(rooms)} nodes. "
                "Ask for less with --num-gpus-per-worker or -j"
            )
        return n

    def _n_in(self, room: Mapping[str, float]) -> int:
        by_cpu = room.get("CPU", 0) // self.cpus
        return int(min(by_cpu, room.get("GPU", 0) // self.gpus) if self.gpus else by_cpu)


@dataclass(frozen=True)
class Expected:
    """What the driver has, and each worker must have too."""

    versions: Mapping[str, str]
    environment: Mapping[str, str]
    folder: str
    search: Sequence[str]
    shared: Path | None = None
    name: str = ""

    @classmethod
    def here(cls, shared: Path | None) -> Expected:
        """Ask for what is here, and for a folder that is the same one everywhere."""
        own = {name: value for name, value in os.environ.items() if name.startswith("FEATX_")}
        search = [str(Path(folder).absolute()) for folder in sys.path]
        name = "" if shared is None else _name_of(shared)
        return cls(_versions(), own, str(Path.cwd()), search, shared, name)

    def require(self) -> None:
        """Refuse this machine if it has other versions, or does not see the file."""
        others = _versions()
        lines = [
            f"{name} {others.get(name) or 'is missing'} there, {here} here"
            for name, here in self.versions.items()
            if others.get(name) != here
        ]
        if lines:
            raise UsageError(
                f"the node has other versions of packages: {'; '.join(lines)}. Features depend on "
                "them: install the same ones on all nodes"
            )
        if self.shared is not None and not self._is_shared(self.shared):
            raise UsageError(
                f"the node does not see the folder {self.shared}, where the work is written: "
                "give a folder that all nodes share, by the same path"
            )
        os.environ.update(self.environment)
        with suppress(OSError):  # paths that were typed as they are seen from there
            os.chdir(self.folder)
        # Where the code of the user's is found that the user named.
        sys.path.extend(folder for folder in self.search if folder not in sys.path)

    def _is_shared(self, folder: Path) -> bool:
        try:
            return (folder / _NAME).read_text() == self.name
        except OSError:
            return False


def _name_of(folder: Path) -> str:
    """Give a folder a name of its own, which stays: a node may have another one at the path."""
    path = folder / _NAME
    try:
        with suppress(FileExistsError), path.open("x") as stream:
            stream.write(secrets.token_hex(16))
        return path.read_text()
    except OSError as error:
        raise CacheError(f"cannot write {path}: {reason_of(error)}") from error


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found

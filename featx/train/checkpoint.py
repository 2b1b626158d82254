"""The checkpoint of an unfinished training: written after each epoch, read when it goes on.

The file has the tensors, and everything else as JSON with a digest of itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from featx.atomic import set_aside
from featx.errors import FeatxError, WeightsError
from featx.progress import Reporter
from featx.records import SealedFiles
from featx.stops import check
from featx.train.classifier import Callback, NetworkClassifier
from featx.weights.sealed_state import TENSORS, read_state, write_state

__all__ = ["Checkpoint", "from_json", "read_checkpoint", "to_json", "write_checkpoint"]

_FILES = SealedFiles(
    format="featx checkpoint",
    version=1,
    noun="checkpoint",
    error=WeightsError,
    missing="a training writes it after each epoch",
    unknown="is no checkpoint: it has tensors, and no record of what they are",
    damaged="it is not used",
)
_OLDER = ".pt"  # older versions of featx wrote checkpoints without a digest


class Checkpoint(Callback):
    """Writes everything about a training to one file after each epoch, and continues from it.

    The file is replaced in one step, so that it is whole whenever the process ends. It is written
    while the next epoch is computed; the end of a ``with`` block waits for it.
    """

    def __init__(self, path: Path, key: str, reporter: Reporter) -> None:
        self.path, self.key, self.reporter = path, key, reporter
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    def on_train_begin(self, net: NetworkClassifier) -> None:
        """Continue after the last epoch of the file, if there is one."""
        self._writer = ThreadPoolExecutor(1)
        older = self.path.with_suffix(_OLDER)
        if older.exists():
            kept = f"it is not used; it is kept as {set_aside(older)}"
            self.reporter.warn(f"{older} was written by an older featx and has no digest: {kept}")
        if not self.path.exists():
            return
        try:
            _set_state(net, read_checkpoint(self.path, self.key))
        except Exception as error:  # networks and optimizers may raise any error
            why = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, FeatxError):
                why = f"{self.path} cannot be used ({why[:200]})"
            kept = f"it is kept as {set_aside(self.path)}"
            self.reporter.warn(f"{why}: {kept}, and training starts again from the beginning")
            net.initialize()
            return
        self.reporter.say(f"{len(net.history)} epochs taken up from {self.path}")

    def on_epoch_end(self, net: NetworkClassifier) -> None:
        """Begin to write the file, when the one before is written."""
        check()
        tensors: dict[str, Tensor] = {}
        plain = to_json(_state(net), tensors)
        self.wait()
        self._writing = self._writer.submit(write_checkpoint, self.path, self.key, plain, tensors)

    def on_train_end(self, net: NetworkClassifier) -> None:
        """Wait for the last file."""
        del net
        self.wait()
        self._writer.shutdown()

    def wait(self) -> None:
        """Wait until the file is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def _state(net: NetworkClassifier) -> dict[str, Any]:
    """Return everything that the epochs to come depend on."""
    return {
        "network": net.module_.state_dict(),
        "optimizer": net.optimizer_.state_dict(),
        "scaler": net.scaler_.state_dict(),
        "history": net.history,
        "schedule": {} if net.scheduler_ is None else net.scheduler_.state_dict(),
        "best": net.stopping_.state(),
    }


def _set_state(net: NetworkClassifier, state: dict[str, Any]) -> None:
    net.module_.load_state_dict(state["network"])
    net.optimizer_.load_state_dict(state["optimizer"])
    net.scaler_.load_state_dict(state["scaler"])
    if net.scheduler_ is not None:
        net.scheduler_.load_state_dict(state["schedule"])
    net.stopping_.set_state(state["best"])
    net.history = state["history"]


def write_checkpoint(path: Path, key: str, plain: Any, tensors: dict[str, Tensor]) -> None:
    """Write what `to_json` returned; `key` is the identity of the training."""
    write_state(_FILES, path, {"key": key, "state": plain}, tensors)


def read_checkpoint(path: Path, key: str) -> Any:
    """Read the state of the training with this key; an error if any byte has changed."""
    record, _ = _FILES.read(path)
    if record.get("key") != key:
        raise WeightsError(f"{path} is of another training")
    return from_json(record["state"], read_state(_FILES, path, record[TENSORS]))


def to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Put copies of all tensors into `tensors`, and return the rest as JSON values."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # JSON needs text as keys, and optimizers number their parameters: hence pairs.
        return {"mapping": [[key, to_json(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        items = [to_json(one, tensors) for one in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `to_json`."""
    if isinstance(value, list):
        return [from_json(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "float":
        return float(inside)
    if kind == "tuple":
        return tuple(from_json(inside, tensors))
    return {key: from_json(one, tensors) for key, one in inside}

"""What happens between the epochs of a training: learning rates, best weights, files, lines."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skorch.callbacks import Callback
from torch import Tensor

from featx.atomic import set_aside
from featx.errors import FeatxError
from featx.progress import Bar, Reporter
from featx.stops import check
from featx.train.checkpoint import read_checkpoint, take_apart, write_checkpoint
from featx.train.optimisation import make_scheduler

__all__ = ["BestWeights", "Checkpoint", "Progress", "Schedule"]

_OLDER = ".pt"  # of a featx whose checkpoints had no digest


class Schedule(Callback):  # type: ignore[misc]
    """Changes the learning rates after each epoch, as the estimator's `schedule` says."""

    def on_train_begin(self, net: Any, **_: Any) -> None:
        """Start from the optimiser's learning rates."""
        self.scheduler_ = make_scheduler(
            net.schedule,
            net.optimizer_,
            epochs=net.max_epochs,
            step_size=net.step_size,
            gamma=net.gamma,
        )

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Move on by one epoch."""
        if self.scheduler_ is None:
            return
        if net.schedule == "plateau":
            last = net.history[-1]
            self.scheduler_.step(last.get("valid_loss", last["train_loss"]))
        else:
            self.scheduler_.step()

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        return {} if self.scheduler_ is None else self.scheduler_.state_dict()

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        if self.scheduler_ is not None:
            self.scheduler_.load_state_dict(state)


class BestWeights(Callback):  # type: ignore[misc]
    """Stops when the loss of the watching part gets no better, and gives back the best weights.

    Does nothing where the estimator's `patience` is 0.
    """

    is_over = False

    def on_train_begin(self, net: Any, **_: Any) -> None:
        """Forget an earlier training."""
        self.loss_, self.best_epoch_ = float("inf"), 0
        self.weights_: dict[str, Any] | None = None
        self.is_over = False

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Keep the weights where they are the best, or count."""
        if not net.patience:
            return
        epoch, loss = len(net.history), net.history[-1, "valid_loss"]
        if loss < self.loss_:
            self.loss_, self.best_epoch_ = loss, epoch
            self.weights_ = {k: v.clone() for k, v in net.module_.state_dict().items()}
        self.is_over = epoch - self.best_epoch_ >= net.patience

    def on_train_end(self, net: Any, **_: Any) -> None:
        """Give back the best weights."""
        if self.weights_ is not None:
            net.module_.load_state_dict(self.weights_)
            self.weights_ = None
        else:
            self.best_epoch_ = len(net.history)

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        return {
            "loss": self.loss_,
            "best_epoch": self.best_epoch_,
            "weights": self.weights_,
            "is_over": self.is_over,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.loss_, self.best_epoch_ = state["loss"], state["best_epoch"]
        self.weights_, self.is_over = state["weights"], state["is_over"]


class Checkpoint(Callback):  # type: ignore[misc]
    """Writes everything about a training to one file after each epoch, and takes it up again.

    To be the last callback that changes anything. The file is replaced in one step, so that it
    is whole whenever the process ends. It is written while the next epoch is computed.
    """

    def __init__(self, path: Path, key: str, reporter: Reporter) -> None:
        self.path, self.key, self.reporter = path, key, reporter

    def on_train_begin(self, net: Any, **_: Any) -> None:
        """Go on where the file ends."""
        self.writer_ = ThreadPoolExecutor(1)
        self.writing_: Future[None] | None = None
        older = self.path.with_suffix(_OLDER)
        if older.exists():
            kept = f"it is not used; it is kept as {set_aside(older)}"
            self.reporter.warn(f"{older} is of an older featx and has no digest: {kept}")
        if not self.path.exists():
            return
        try:
            self._restore(net, read_checkpoint(self.path, self.key))
        except Exception as error:  # networks and optimisers have any error
            why = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, FeatxError):
                why = f"{self.path} cannot be taken up ({why[:200]})"
            kept = f"it is kept as {set_aside(self.path)}"
            self.reporter.warn(f"{why}: {kept}, and training starts anew")
            net.initialize()
            for callback in _stateful(net).values():
                callback.on_train_begin(net)
            return
        self.reporter.say(f"{len(net.history)} epochs taken up from {self.path}")

    @staticmethod
    def _restore(net: Any, state: dict[str, Any]) -> None:
        net.module_.load_state_dict(state["network"])
        net.optimizer_.load_state_dict(state["optimizer"])
        net.scaler_.load_state_dict(state["scaler"])
        for name, callback in _stateful(net).items():
            callback.set_state(state[name])
        for line in state["history"]:
            net.history.new_epoch()
            for name, value in line.items():
                net.history.record(name, value)

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Begin to write the file, once the one before is written."""
        check()
        state = {
            "network": net.module_.state_dict(),
            "optimizer": net.optimizer_.state_dict(),
            "scaler": net.scaler_.state_dict(),
            "history": curves_of(net),
            **{name: callback.state() for name, callback in _stateful(net).items()},
        }
        tensors: dict[str, Tensor] = {}
        plain = take_apart(state, tensors)
        self.wait()
        self.writing_ = self.writer_.submit(write_checkpoint, self.path, self.key, plain, tensors)

    def on_train_end(self, net: Any, **_: Any) -> None:
        """End the last writing."""
        self.wait()
        self.writer_.shutdown()

    def wait(self) -> None:
        """Wait until the file is written."""
        if self.writing_ is not None:
            self.writing_.result()
            self.writing_ = None


def _stateful(net: Any) -> dict[str, Any]:
    return {name: call for name, call in net.callbacks_ if isinstance(call, Schedule | BestWeights)}


def curves_of(net: Any) -> list[dict[str, Any]]:
    """Give a training's history as plain values, a line an epoch, without single batches."""
    return [{k: v for k, v in line.items() if k != "batches"} for line in net.history]


class Progress(Callback):  # type: ignore[misc]
    """A bar of epochs, or plain lines."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self.reporter, self.label = reporter, label
        self.bar_: Bar | None = None

    def on_train_begin(self, net: Any, **_: Any) -> None:
        """Show the bar."""
        done = len(net.history)
        self.bar_ = self.reporter.bar(net.max_epochs, self.label, "epoch", initial=done)
        self.bar_.__enter__()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Tell the losses."""
        last = net.history[-1]
        note = f"loss {last['train_loss']:.3f}, accuracy {last['train_acc']:.1%}"
        if "valid_loss" in last:
            note += f"; validation {last['valid_loss']:.3f}, {last['valid_acc']:.1%}"
        if self.bar_ is not None:
            self.bar_.update(1, note)

    def on_train_end(self, net: Any, **_: Any) -> None:
        """End the bar."""
        if self.bar_ is not None:
            self.bar_.__exit__(None, None, None)

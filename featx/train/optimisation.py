"""Optimizers, learning rates over the epochs, losses and early stopping, by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from featx.train.plan import LOSSES, OPTIMIZERS, SCHEDULERS
from featx.words import check_word

__all__ = [
    "BinaryCrossEntropy",
    "EarlyStopping",
    "get_loss",
    "get_optimizer",
    "make_scheduler",
]

_NESTEROV_MOMENTUM = 0.9
_KERAS_EPSILON = 1e-7

Make = Callable[..., optim.Optimizer]


def get_optimizer(name: str, momentum: float | None = None, weight_decay: float = 0.0) -> Make:
    """Choose what makes an optimizer, of parameters or groups of them and ``lr``, by its name."""
    check_word("optimizer", name, OPTIMIZERS)
    settings: dict[str, Any] = {"weight_decay": weight_decay}
    if name == "Nesterov":
        settings |= {"nesterov": True, "momentum": _NESTEROV_MOMENTUM}
    if momentum is not None:
        settings["momentum"] = momentum
    return partial(getattr(optim, "SGD" if name == "Nesterov" else name), **settings)


def make_scheduler(
    name: str, optimizer: optim.Optimizer, *, epochs: int, step_size: int, gamma: float
) -> Any:
    """Make what changes the learning rates after each epoch; None for ``none``."""
    check_word("scheduler", name, SCHEDULERS)
    if name == "step":
        return lr_scheduler.StepLR(optimizer, step_size, gamma)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    if name == "plateau":
        # torch lowers the rate in the epoch after `patience` epochs without a lower loss.
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=gamma, patience=step_size - 1, threshold=0, eps=0
        )
    return None


@dataclass
class EarlyStopping:
    """Keeps the weights of the epoch with the lowest loss, and says when to stop.

    Does nothing where `patience` is 0.
    """

    patience: int
    is_over: bool = False
    loss: float = float("inf")
    best_epoch: int = 0
    weights: dict[str, Tensor] | None = None  # of the best epoch

    def look(self, epoch: int, loss: float, network: nn.Module) -> None:
        """Compare the loss of an epoch with the lowest one so far."""
        if not self.patience:
            return
        if loss < self.loss:
            self.loss, self.best_epoch = loss, epoch
            self.weights = {k: v.clone() for k, v in network.state_dict().items()}
        self.is_over = epoch - self.best_epoch >= self.patience

    def finish(self, network: nn.Module, n_epochs: int) -> int:
        """Give the network its best weights; return the epoch that they are from."""
        if self.weights is None:
            return n_epochs
        network.load_state_dict(self.weights)
        self.weights = None
        return self.best_epoch

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        names = ("loss", "best_epoch", "weights", "is_over")
        return {name: getattr(self, name) for name in names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name, value in state.items():
            setattr(self, name, value)


class BinaryCrossEntropy(nn.Module):
    """Keras's ``binary_crossentropy`` of softmax probabilities and one-hot labels."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss."""
        # Mean over images and classes of -(y log p + (1 - y) log(1 - p)), where Keras limits
        # p to [1e-7, 1 - 1e-7].
        p = logits.softmax(dim=1)
        limited = p.nan_to_num(0.5).clamp(_KERAS_EPSILON, 1 - _KERAS_EPSILON)
        one_hot = nn.functional.one_hot(labels, logits.shape[1]).to(p.dtype)
        loss = nn.functional.binary_cross_entropy(limited, one_hot)
        # torch's function aborts the process on NaN; other losses return NaN.
        return torch.where(p.isnan().any(), torch.nan, loss)


def get_loss(name: str) -> type[nn.Module]:
    """Choose a loss of logits and labels by its name."""
    check_word("loss", name, LOSSES)
    return nn.CrossEntropyLoss if name == "cross-entropy" else BinaryCrossEntropy

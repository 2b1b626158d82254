"""Optimisers, learning rates over the epochs, and losses, by the names that people type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from featx.errors import unknown_name
from featx.train.plan import LOSSES, OPTIMIZERS, SCHEDULERS

__all__ = ["BinaryCrossEntropy", "Optimizer", "get_loss", "get_optimizer", "make_scheduler"]

_CLASSES: dict[str, Any] = {
    "SGD": optim.SGD,
    "Nesterov": optim.SGD,
    "Adam": optim.Adam,
    "Adamax": optim.Adamax,
    "RMSprop": optim.RMSprop,
    "AdamW": optim.AdamW,
}
_NESTEROV_MOMENTUM = 0.9
_KERAS_EPSILON = 1e-7


@dataclass(frozen=True)
class Optimizer:
    """Makes an optimiser of torch."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, parameters: Any, **options: Any) -> optim.Optimizer:
        """Make it, for parameters or groups of them; ``lr`` is among the options."""
        made: optim.Optimizer = _CLASSES[self.name](parameters, **dict(self.settings), **options)
        return made


def get_optimizer(name: str, momentum: float | None = None, weight_decay: float = 0.0) -> Optimizer:
    """Choose an optimiser."""
    if name not in _CLASSES:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    settings: dict[str, Any] = {"weight_decay": weight_decay}
    if name == "Nesterov":
        settings |= {"nesterov": True, "momentum": _NESTEROV_MOMENTUM}
    if momentum is not None:
        settings["momentum"] = momentum
    return Optimizer(name, tuple(settings.items()))


def make_scheduler(
    name: str, optimizer: optim.Optimizer, *, epochs: int, step_size: int, gamma: float
) -> Any:
    """Let the learning rate change from epoch to epoch."""
    from torch.optim import lr_scheduler

    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS)
    if name == "step":
        return lr_scheduler.StepLR(optimizer, step_size, gamma)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    if name == "plateau":
        # torch's patience is the epochs that are borne: the rate falls at the next one.
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=gamma, patience=step_size - 1, threshold=0, eps=0
        )
    return None


class BinaryCrossEntropy(nn.Module):
    """Keras's ``binary_crossentropy`` of softmax probabilities and one-hot labels.

    The mean over images and classes of -(y log p + (1 - y) log(1 - p)), p cut off at 1e-7 from 0
    and from 1.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss."""
        p = logits.softmax(dim=1)
        cut = p.nan_to_num(0.5).clamp(_KERAS_EPSILON, 1 - _KERAS_EPSILON)
        one_hot = nn.functional.one_hot(labels, logits.shape[1]).to(p.dtype)
        loss = nn.functional.binary_cross_entropy(cut, one_hot)
        # torch's stops the process on a number that is none; other losses give one that is none.
        return torch.where(p.isnan().any(), torch.nan, loss)


def get_loss(name: str) -> type[nn.Module]:
    """Choose a loss of logits and labels."""
    losses: dict[str, type[nn.Module]] = {
        "cross-entropy": torch.nn.CrossEntropyLoss,
        "binary-cross-entropy": BinaryCrossEntropy,
    }
    if name not in losses:
        raise unknown_name("loss", name, LOSSES)
    return losses[name]

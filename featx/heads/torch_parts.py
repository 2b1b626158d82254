"""The part of `mlp-torch` that needs torch and skorch, which are imported only when it fits."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import unknown_name
from featx.heads.device import choose_device, device_for

if TYPE_CHECKING:
    from torch import nn

    from featx.heads.torch_mlp import TorchMlpHead

__all__ = ["SCHEDULERS", "Trained", "train"]

SCHEDULERS = ("none", "StepLR", "CosineAnnealingLR", "ReduceLROnPlateau")
_NOT_FOR_DENSE = ("LBFGS", "Muon", "SparseAdam")

Rows32 = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What a training gave."""

    layers: list[dict[str, Any]]
    n_epochs: int
    best_epoch: int
    has_stopped: bool


def train(
    head: TorchMlpHead,
    rows: Rows32,
    codes: NDArray[np.int64],
    split: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    class_weight: str | None,
) -> Trained:
    """Train a network, the same for the same seed on the same CPU."""
    import torch
    from skorch import NeuralNetClassifier
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    from featx.arithmetic import refuse_forced_tf32, true_float32

    device = torch.device(choose_device(device_for(head.device, len(rows))))
    if device.type == "cuda":
        refuse_forced_tf32("choose the device cpu")
    optimizer = _optimizer(head.optimizer)
    fitted, watching = split
    watch = predefined_split(Dataset(rows[watching], codes[watching])) if len(watching) else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = _network(head, rows.shape[1], int(codes.max()) + 1)
        net = NeuralNetClassifier(
            network,
            criterion=torch.nn.CrossEntropyLoss(weight=_weights(codes, class_weight)),
            optimizer=optimizer,
            optimizer__weight_decay=head.weight_decay,
            lr=head.lr,
            max_epochs=head.max_epochs,
            batch_size=head.batch_size,
            iterator_train__shuffle=True,
            # Batch normalisation cannot be trained on a single row.
            iterator_train__drop_last=len(fitted) % head.batch_size == 1 < len(fitted),
            train_split=watch,
            callbacks=_callbacks(head, has_watch=watch is not None),
            device=str(device),
            verbose=0,
        )
        with true_float32():
            net.fit(rows[fitted], codes[fitted])
    n_epochs, best = len(net.history), len(net.history)
    if watch is not None:
        best = dict(net.callbacks_)["stop"].best_epoch_
    has_stopped = n_epochs - best == head.patience
    is_whole = bool(net.history) and "train_loss" in net.history[-1]
    if not is_whole or not (has_stopped or n_epochs == head.max_epochs):
        raise KeyboardInterrupt  # which skorch swallows: this is half a training
    return Trained(_layers(net.module_), n_epochs, best, has_stopped)


def _network(head: TorchMlpHead, n_features: int, n_classes: int) -> nn.Sequential:
    from torch import nn

    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
    drops = head.dropout if len(head.dropout) > 1 else head.dropout * len(head.hidden)
    parts: list[nn.Module] = [nn.BatchNorm1d(n_features)] if head.batch_norm == "input" else []
    width = n_features
    for n_units, drop in zip(head.hidden, drops, strict=True):
        if head.batch_norm == "before":
            parts.append(nn.BatchNorm1d(width))
        parts.append(nn.Linear(width, n_units))
        if head.batch_norm == "after":
            parts.append(nn.BatchNorm1d(n_units))
        parts.append(kinds[head.activation]())
        if drop:
            parts.append(nn.Dropout(drop))
        width = n_units
    return nn.Sequential(*parts, nn.Linear(width, n_classes))


def _layers(network: Any) -> list[dict[str, Any]]:
    from torch import nn

    def array(tensor: Any) -> NDArray[np.float64]:
        return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)

    layers: list[dict[str, Any]] = []
    before: Any = None
    for part in network:
        if isinstance(part, nn.Linear):
            layers.append({"weights": array(part.weight).T, "bias": array(part.bias)})
        elif isinstance(part, nn.BatchNorm1d):
            slope = array(part.weight) / np.sqrt(array(part.running_var) + part.eps)
            shift = array(part.bias) - array(part.running_mean) * slope
            is_after = isinstance(before, nn.Linear)
            layers.append({"slope": slope, "shift": shift, "is_after": is_after})
        before = part
    return layers


def _callbacks(head: TorchMlpHead, *, has_watch: bool) -> list[tuple[str, Any]]:
    from skorch.callbacks import EarlyStopping, LRScheduler

    loss = "valid_loss" if has_watch else "train_loss"
    # torch's patience is the epochs that are borne: the rate falls at the next one.
    plateau = {"patience": head.step_size - 1, "factor": head.gamma, "threshold": 0, "eps": 0}
    options: dict[str, dict[str, Any]] = {
        "StepLR": {"step_size": head.step_size, "gamma": head.gamma},
        "CosineAnnealingLR": {"T_max": head.max_epochs},
        "ReduceLROnPlateau": {"monitor": loss, **plateau},
    }
    callbacks: list[tuple[str, Any]] = []
    if head.scheduler != "none":
        callbacks.append(("lr", LRScheduler(head.scheduler, **options[head.scheduler])))
    if has_watch:
        stop = EarlyStopping(patience=head.patience, threshold=0, load_best=True)
        callbacks.append(("stop", stop))
    return callbacks


def _weights(codes: NDArray[np.int64], class_weight: str | None) -> Any:
    import torch

    if class_weight is None:
        return None
    # scikit-learn's "balanced": n_rows / (n_classes * rows of the class).
    counts = np.bincount(codes)
    return torch.tensor(len(codes) / (len(counts) * counts), dtype=torch.float32)


def _optimizer(name: str) -> Any:
    from torch import optim

    classes = {
        found.__name__: found
        for found in vars(optim).values()
        if inspect.isclass(found)
        and issubclass(found, optim.Optimizer)
        and {"lr", "weight_decay"} <= set(inspect.signature(found).parameters)
        and found.__name__ not in _NOT_FOR_DENSE
    }
    if name not in classes:
        raise unknown_name("optimizer", name, classes)
    return classes[name]

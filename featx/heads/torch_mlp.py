"""`mlp-torch`: dense layers with dropout and batch normalisation, trained by skorch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featx.configurable import setting
from featx.dense import DenseLayers
from featx.errors import FitError, unknown_name
from featx.heads.base import SOFTMAX, Fit, FitOptions
from featx.heads.centroid import second_against_first
from featx.heads.device import choose_device, device_for
from featx.heads.mlp import MlpModel
from featx.heads.rowspace import RowSpace
from featx.heads.select import fold_rows
from featx.heads.training import (
    ToFeatures,
    check_options,
    codes_of,
    rows_in_memory,
    unit_axes,
)

if TYPE_CHECKING:  # torch and skorch are imported only when the head is fitted
    from torch import nn

__all__ = ["MLP_TORCH", "TorchMlpHead"]

_SCHEDULERS = ("none", "StepLR", "CosineAnnealingLR", "ReduceLROnPlateau")
_NOT_FOR_DENSE = ("LBFGS", "Muon", "SparseAdam")


@dataclass(frozen=True)
class TorchMlpHead(DenseLayers):
    """Dense layers, trained with cross-entropy.

    A hidden layer is: batch normalisation where it comes before, the dense layer, batch
    normalisation where it comes after (as Ioffe and Szegedy put it), the activation, dropout.
    The last layer gives the logits of a softmax. Weights start as torch.nn.Linear's do.

    A stratified part of the training rows, no others, watches the training: where its loss has
    not fallen for `patience` epochs, the training stops, and the weights of the best epoch are
    taken. The fitted model is an `MlpModel`: batch normalisation with the statistics of the
    training is affine, and is multiplied into the dense layers, in float64.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, 2014. S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, algorithm 2.
    """

    version: ClassVar[int] = 2  # 2: rows are centred, other defaults

    name: str = "mlp-torch"
    estimator: str = "skorch.NeuralNetClassifier"
    optimizer: str = setting("Adam")
    lr: float = setting(0.001, within="(0, inf)")
    weight_decay: float = setting(0.0, within="[0, inf)")
    scheduler: str = setting("none", choices=_SCHEDULERS)
    step_size: int = setting(5, within="[1, inf)")
    gamma: float = setting(0.1, within="(0, 1)")
    batch_size: int = setting(64, within="[2, inf)")
    max_epochs: int = setting(100, within="[1, inf)")
    early_stopping: bool = setting(True)
    patience: int = setting(10, within="[1, inf)")
    validation: float = setting(0.1, within="(0, 0.5]")
    inputs: str = setting("auto", choices=("auto", "axes", "features"))
    device: str = setting("auto")
    link: str = SOFTMAX

    @property
    def needs_gram(self) -> bool:
        """Whether the first layer sees the axes of the rows."""
        has_norm = self.batch_norm in ("input", "before")
        return self.inputs == "axes" or (self.inputs == "auto" and not has_norm)

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Train on the rows."""
        check_options(self.name, options, has_weights=True)
        classes, codes = codes_of(y)
        space = space.scaled(options.scale)
        rows, to_features = self._inputs(space)
        fitted, watching = self._split(codes, options)
        trained = _train(self, rows, codes, (fitted, watching), options.seed, options.class_weight)
        layers = _without_batch_norm(trained.layers)
        is_finite = all(np.isfinite(array).all() for layer in layers for array in layer)
        if not (is_finite and trained.best_epoch):
            raise FitError(
                f"{self.name} diverged: its weights or its loss are no longer finite; take a "
                f"lower lr (it was {self.lr:g}), or scale the features"
            )
        weights, biases = zip(*layers, strict=True)
        last, bias = second_against_first(weights[-1].T, biases[-1])
        network = MlpModel(
            classes,
            (*weights[:-1], np.ascontiguousarray(last.T)),
            (*biases[:-1], bias),
            activation=self.activation,
        )
        scores = network.decision_function(rows)
        model = network.of_features(space, to_features)
        notes, converged = self._notes(trained, len(watching), len(codes))
        return Fit(model, None, None, trained.n_epochs, converged, notes, scores)

    def _inputs(self, space: RowSpace) -> tuple[NDArray[np.float32], ToFeatures]:
        """Rows as the first layer sees them, and how its weights become those of features."""
        if self.needs_gram:
            return unit_axes(space)
        rows = rows_in_memory(space, np.float32)
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows -= mean
        return rows, lambda weights: (weights, -(mean @ weights))

    def _split(
        self, codes: NDArray[np.int64], options: FitOptions
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.early_stopping:
            folds = fold_rows(codes, round(1 / self.validation), options.seed, options.groups)
            if folds:
                return folds[0]
        return np.arange(len(codes)), np.arange(0)

    def _notes(
        self, trained: _Trained, n_watching: int, n_rows: int
    ) -> tuple[tuple[str, ...], bool]:
        if not self.early_stopping:
            return (), True
        if not n_watching:
            what = "no rows to spare for early stopping"
            return (f"{what}: trained for all {trained.n_epochs} epochs",), True
        # Tables count notes by what stands before "after".
        text = (
            f"stopped early ({n_watching:,} of {n_rows:,} rows watched) after "
            f"{trained.n_epochs} epochs: weights of epoch {trained.best_epoch}"
        )
        return (text if trained.has_stopped else f"not {text}",), trained.has_stopped


def _without_batch_norm(layers: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Dense layers (n_in, n_out) and biases that do what the layers do, statistics fixed.

    Batch normalisation is y = g (x - m) / sqrt(v + eps) + b = a x + c. After a dense layer,
    a (W x + d) + c = (a W) x + (a d + c); before it, W (a x + c) + d = (W a) x + (W c + d).
    """
    out: list[tuple[Any, Any]] = []
    waiting: tuple[Any, Any] | None = None
    for layer in layers:
        if "slope" not in layer:
            weights, bias = layer["weights"], layer["bias"]
            if waiting is not None:
                slope, shift = waiting
                weights, bias = slope[:, None] * weights, bias + shift @ weights
                waiting = None
            out.append((weights, bias))
        elif layer["is_after"]:
            weights, bias = out.pop()
            out.append((weights * layer["slope"], bias * layer["slope"] + layer["shift"]))
        else:
            waiting = layer["slope"], layer["shift"]
    return out


@dataclass(frozen=True)
class _Trained:
    """What a training gave."""

    layers: list[dict[str, Any]]
    n_epochs: int
    best_epoch: int
    has_stopped: bool


def _train(
    head: TorchMlpHead,
    rows: NDArray[np.float32],
    codes: NDArray[np.int64],
    split: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    class_weight: str | None,
) -> _Trained:
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
    return _Trained(_layers(net.module_), n_epochs, best, has_stopped)


def _network(head: TorchMlpHead, n_features: int, n_classes: int) -> nn.Sequential:
    from torch import nn

    return nn.Sequential(*head.stack(n_features, n_classes))


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


MLP_TORCH = TorchMlpHead()

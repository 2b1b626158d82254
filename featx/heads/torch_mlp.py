"""`mlp-torch`: dense layers with dropout and batch normalisation, trained by skorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featx.configurable import Configurable, setting
from featx.errors import FitError, UsageError
from featx.heads import torch_parts
from featx.heads.base import SOFTMAX, Fit, FitOptions
from featx.heads.centroid import second_against_first
from featx.heads.mlp import ACTIVATIONS, MlpModel
from featx.heads.rowspace import RowSpace
from featx.heads.select import fold_rows
from featx.heads.training import (
    ToFeatures,
    check_options,
    codes_of,
    rows_in_memory,
    unit_axes,
)

__all__ = ["MLP_TORCH", "TorchMlpHead"]


@dataclass(frozen=True)
class TorchMlpHead(Configurable):
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
    hidden: tuple[int, ...] = setting((512, 256), within="[1, inf)")
    dropout: tuple[float, ...] = setting((0.2,), within="[0, 1)")
    batch_norm: str = setting("none", choices=("none", "input", "before", "after"))
    activation: str = setting("relu", choices=tuple(ACTIVATIONS))
    optimizer: str = setting("Adam")
    lr: float = setting(0.001, within="(0, inf)")
    weight_decay: float = setting(0.0, within="[0, inf)")
    scheduler: str = setting("none", choices=torch_parts.SCHEDULERS)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dropout) not in (1, len(self.hidden)):
            raise UsageError(
                f"dropout of {self.name} has {len(self.dropout)} numbers for {len(self.hidden)} "
                "hidden layers: give one for all, or one for each"
            )

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
        trained = torch_parts.train(
            self, rows, codes, (fitted, watching), options.seed, options.class_weight
        )
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
        self, trained: torch_parts.Trained, n_watching: int, n_rows: int
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


MLP_TORCH = TorchMlpHead()

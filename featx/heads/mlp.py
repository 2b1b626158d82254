"""`mlp`: MLPClassifier on the principal axes of the training rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit
from sklearn.neural_network import MLPClassifier

from featx.configurable import Configurable, setting
from featx.heads.base import (
    SOFTMAX,
    Fit,
    FitOptions,
    Rows,
    flat,
    labels_of,
    raw_product,
    softmax_of,
)
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import UNSCALED, Array, Scaling
from featx.heads.training import (
    Caught,
    ToFeatures,
    catch_warnings,
    check_options,
    codes_of,
    unit_axes,
)

__all__ = ["ACTIVATIONS", "MLP", "MlpHead", "MlpModel"]

_TOO_FEW, _STOPPED = "Maximum iterations", "Training interrupted by user"

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": expit,
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / np.sqrt(2.0))),
}
"""What may follow a hidden layer; torch.nn.functional has the same names."""


@dataclass(frozen=True)
class MlpModel:
    """A fitted perceptron, its first layer mapped back to raw features."""

    classes_: NDArray[np.int64]
    coefs_: tuple[Array, ...]
    intercepts_: tuple[Array, ...]
    scaling: Scaling = UNSCALED
    activation: str = "relu"
    link: str = SOFTMAX

    def decision_function(self, X: Rows) -> Array:
        """Logits: (n_rows, n_classes), or (n_rows,) for the second of two classes."""
        scores = raw_product(X, self.coefs_[0], self.scaling) + self.intercepts_[0]
        for weights, bias in zip(self.coefs_[1:], self.intercepts_[1:], strict=True):
            scores = ACTIVATIONS[self.activation](scores) @ weights + bias
        return flat(scores)

    def of_features(self, space: RowSpace, to_features: ToFeatures) -> MlpModel:
        """Give the same network for raw features, where this one was fitted on rows of a space."""
        weights, shift = to_features(self.coefs_[0])
        weights, of_scaling = space.to_features(weights)
        return replace(
            self,
            coefs_=(weights, *self.coefs_[1:]),
            intercepts_=(self.intercepts_[0] + shift + of_scaling, *self.intercepts_[1:]),
            scaling=space.scaling,
        )

    def predict(self, X: Rows) -> NDArray[np.int64]:
        """Labels of the largest logits, shape (n_rows,)."""
        return labels_of(self.decision_function(X), self.classes_)

    def probabilities(self, scores: Array) -> Array:
        """Softmax of the logits, (n_rows, n_classes)."""
        return softmax_of(scores)


@dataclass(frozen=True)
class MlpHead(Configurable):
    """A perceptron with relu after its hidden layers.

    It sees the training rows less their mean, in the coordinates of their principal axes, divided
    by one number that makes the mean squared coordinate 1: an isometry of the rows up to that
    scale, in as many dimensions as rows. A common offset and a common scale of all features change
    nothing. Features are not standardised one by one. That is no reformulation of MLPClassifier on
    raw features: Adam and the initial weights depend on the axes. There is no early stopping,
    which would take labelled rows away. Every default is MLPClassifier's own: none was chosen by a
    test accuracy.
    """

    has_class_weight: ClassVar[bool] = False
    version: ClassVar[int] = 2  # 2: rows are centred, other defaults

    name: str = "mlp"
    estimator: str = "sklearn.neural_network.MLPClassifier"
    hidden: tuple[int, ...] = setting((100,), within="[1, inf)")
    alpha: float = setting(0.0001, within="[0, inf)")
    max_iter: int = setting(200, within="[1, inf)")
    link: str = SOFTMAX

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Fit on all rows; the seed initialises the weights and shuffles the rows."""
        check_options(self.name, options)
        classes, codes = codes_of(y)
        space = space.scaled(options.scale)
        rows, to_features = unit_axes(space)
        network = MLPClassifier(
            hidden_layer_sizes=self.hidden,
            alpha=self.alpha,
            max_iter=self.max_iter,
            random_state=options.seed,
        )
        with catch_warnings() as caught:
            network.fit(rows, codes)
        if any(_STOPPED in note for note in caught.notes):
            raise KeyboardInterrupt  # which scikit-learn swallows: this is half a fit
        weights = tuple(np.asarray(layer, dtype=np.float64) for layer in network.coefs_)
        biases = tuple(np.asarray(bias, dtype=np.float64) for bias in network.intercepts_)
        of_axes = MlpModel(classes, weights, biases)
        return Fit(
            of_axes.of_features(space, to_features),
            n_iter=int(network.n_iter_),
            converged=caught.has_converged,
            notes=self._notes(caught),
            train_scores=of_axes.decision_function(rows),
        )

    def _notes(self, caught: Caught) -> tuple[str, ...]:
        if caught.has_converged:
            return caught.notes
        advice = f"max_iter={self.max_iter} epochs are too few (--clf 'mlp(max_iter="
        others = (note for note in caught.notes if _TOO_FEW not in note)
        return (f"not converged: {advice}{5 * self.max_iter})' goes on)", *others)


MLP = MlpHead()

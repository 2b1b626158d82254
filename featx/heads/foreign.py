"""Heads of the user's own: ``module:Class``, any classifier that follows scikit-learn."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self
from uuid import uuid4

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier

from featx.configurable import Configurable
from featx.errors import FeatxError, UsageError
from featx.heads.base import (
    SOFTMAX,
    Fit,
    FitOptions,
    Rows,
    RowsView,
    check_finite,
    labels_of,
    row_blocks,
    softmax_of,
)
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import UNSCALED, Array, Scaling
from featx.heads.training import catch_warnings, check_options, codes_of, rows_in_memory
from featx.plugins import Imported, import_named

__all__ = ["GROUP", "ForeignHead", "ForeignModel", "load"]

GROUP = "featx.heads"

_VIAS = ("decision_function", "predict_proba", "predict")
_SHARES = "shares"
_PROBE = 64
_SHARE_ERROR = 1e-3  # of float16, and of calibrated classifiers


@dataclass(frozen=True)
class ForeignModel:
    """A fitted classifier of somebody else's, on scaled features.

    Unlike other models it holds an object, `estimator`: it is as portable as that.
    """

    classes_: NDArray[np.int64]
    estimator: Any
    dtype: str
    via: str
    link: str
    scaling: Scaling = UNSCALED

    def decision_function(self, X: Rows) -> Array:
        """Scores: (n_rows, n_classes), or (n_rows,) for the second of two classes.

        Those of the estimator's ``decision_function``, else of its ``predict_proba`` (for two
        classes less one half), else 1 for the class that it predicts.
        """
        n_classes = len(self.classes_)
        scores = np.empty((X.shape[0], n_classes) if n_classes > 2 else X.shape[0])
        for rows in row_blocks(*X.shape):
            block = np.asarray(X[rows])
            check_finite(block, rows.start, X.rows if isinstance(X, RowsView) else None)
            scaled = self.scaling.apply(block).astype(self.dtype)
            scores[rows] = _scores(self.estimator, self.via, scaled, n_classes)
        return scores

    def predict(self, X: Rows) -> NDArray[np.int64]:
        """Labels of the largest scores, shape (n_rows,)."""
        return labels_of(self.decision_function(X), self.classes_)

    def probabilities(self, scores: Array) -> Array | None:
        """Probabilities, (n_rows, n_classes), where they follow from the scores."""
        if self.link == _SHARES:
            return np.column_stack([0.5 - scores, 0.5 + scores]) if scores.ndim == 1 else scores
        return softmax_of(scores) if self.link == SOFTMAX else None


@dataclass(frozen=True)
class ForeignHead(Configurable):
    """A scikit-learn classifier, made by a class or function without arguments.

    Its settings are its own parameters. Where it has parameters of these names, it gets `C` and
    `class_weight` of the options, and their seed as `random_state` unless it has one. It is
    fitted on the scaled rows in memory: float32, or float64 where the features are.
    """

    needs_gram: ClassVar[bool] = False

    name: str
    estimator: str
    code: Imported = field(repr=False)
    changed: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters of the estimator that are not estimators themselves."""
        params = self.make().get_params(deep=False)
        return {key: value for key, value in params.items() if not hasattr(value, "get_params")}

    @property
    def link(self) -> str:
        """Whether it may have probabilities; the fitted model knows."""
        return SOFTMAX if hasattr(self.make(), "predict_proba") else ""

    @property
    def code_sha256(self) -> str:
        """Digest of the user's source and of the parameters that it chose.

        Empty for a class of an installed package; unlike any other where there is no telling.
        """
        source = self.code.source_sha256
        try:
            return source and f"{source[:32]}{joblib.hash(self.make().get_params())}"
        except Exception:  # parameters that cannot be pickled
            return uuid4().hex

    def with_settings(self, **values: Any) -> Self:
        """Give the same head with other parameters of the estimator."""
        self._check_names(values)
        changed = tuple((dict(self.changed) | values).items())
        return type(self)(self.name, self.estimator, self.code, changed)

    def read(self, key: str, text: str) -> Any:
        """Read a Python literal (a number, None, a tuple, …), and anything else as a word."""
        self._check_names({key: text})
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return {"true": True, "false": False, "none": None}.get(text.lower(), text)

    def __post_init__(self) -> None:
        self.make()

    def make(self) -> Any:
        """Make the unfitted estimator."""
        try:
            made = self.code.found()
        except FeatxError:
            raise
        except Exception as error:
            raise UsageError(
                f"{self.name} cannot be made without arguments: {type(error).__name__}: {error}; "
                "give a class whose parameters have defaults, or a function that returns one"
            ) from error
        if not (is_classifier(made) and hasattr(made, "fit") and hasattr(made, "predict")):
            raise UsageError(
                f"{self.name} gives a {type(made).__name__}, which is no classifier: it needs fit, "
                "predict and sklearn.base.ClassifierMixin"
            )
        return made.set_params(**dict(self.changed))

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Fit the classifier; its warnings become notes."""
        made = self.make()
        params = made.get_params()
        check_options(self.name, options, has_weights="class_weight" in params)
        classes, codes = codes_of(y)
        made.set_params(**_from_options(params, options))
        space = space.scaled(options.scale)
        dtype = "float64" if space.pool.X.dtype == np.float64 else "float32"
        rows = rows_in_memory(space, dtype)
        with catch_warnings() as caught:
            fitted = made.fit(rows, codes)
            _check_fitted(fitted, len(classes))
            via, link = _way(fitted, rows[:_PROBE], len(classes))
        model = ForeignModel(classes, fitted, dtype, via, link, space.full_scaling)
        n_iter = getattr(fitted, "n_iter_", None)
        steps = 0 if n_iter is None else int(np.max(n_iter))
        C = options.C if "C" in params else None
        return Fit(model, C, None, steps, caught.has_converged, caught.notes)


def load(name: str, allow_code: Collection[str]) -> ForeignHead:
    """Find a classifier by ``module:Class``, or by the name of an entry point.

    Parameters
    ----------
    name : str
        As typed.
    allow_code : collection of str
        What may be imported.

    Raises
    ------
    UsageError
        If there is no such module or class, or it is no classifier.
    """
    code = import_named(name, GROUP, "the head", "class", allow_code)
    module = getattr(code.found, "__module__", "")
    made = f"{module}.{getattr(code.found, '__qualname__', name)}"
    return ForeignHead(name, made, code)


def _from_options(params: Mapping[str, Any], options: FitOptions) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if "random_state" in params and params["random_state"] is None:
        given["random_state"] = options.seed
    if "C" in params and options.C is not None:
        given["C"] = options.C
    if options.class_weight is not None:
        given["class_weight"] = options.class_weight
    return given


def _way(estimator: Any, rows: NDArray[Any], n_classes: int) -> tuple[str, str]:
    """Where scores come from, and how they become the estimator's probabilities."""
    shape = (len(rows),) if n_classes == 2 else (len(rows), n_classes)
    via = next(v for v in _VIAS if _fits(estimator, v, rows, shape))
    if via == "predict_proba":
        return via, _SHARES
    if via == "predict" or not hasattr(estimator, "predict_proba"):
        return via, ""
    # Probabilities are those of predict_proba, or none: it is seen here whether softmax gives them.
    chances = softmax_of(_scores(estimator, via, rows, n_classes))
    given = np.asarray(estimator.predict_proba(rows))
    return via, SOFTMAX if np.allclose(chances, given, rtol=1e-4, atol=1e-6) else ""


def _fits(estimator: Any, via: str, rows: NDArray[Any], shape: tuple[int, ...]) -> bool:
    # The scores of one class against another have another shape, and their own votes.
    if via == "decision_function" and hasattr(estimator, via):
        return bool(np.shape(estimator.decision_function(rows)) == shape)
    return hasattr(estimator, via)


def _scores(estimator: Any, via: str, rows: NDArray[Any], n_classes: int) -> Array:
    found = np.asarray(getattr(estimator, via)(rows))
    is_label = via == "predict"
    is_flat = is_label or (via == "decision_function" and n_classes == 2)
    shape = (len(rows),) if is_flat else (len(rows), n_classes)
    if found.shape != shape or not (is_label or found.dtype.kind in "fiub"):
        raise ValueError(
            f"its {via} gives {found.dtype} of shape "
            f"{found.shape} for {len(rows)} rows and {n_classes} classes: it must be numbers of "
            f"shape {shape}"
        )
    if is_label:
        return _of_labels(estimator, found, n_classes)
    if via == "predict_proba":
        _check_shares(estimator, found)
        found = found[:, 1] - 0.5 if n_classes == 2 else found
    return found.astype(np.float64)


def _of_labels(estimator: Any, found: NDArray[Any], n_classes: int) -> Array:
    """1 for the class that is predicted, 0 for others; of two classes, 1/2 or -1/2."""
    places = np.flatnonzero(~np.isin(found, np.arange(n_classes)))
    if places.size:
        raise ValueError(
            f"its predict gives {found[places[0]]!r}, it was "
            f"fitted on the labels 0 to {n_classes - 1}"
        )
    scores = np.eye(n_classes)[found.astype(np.int64)]
    return np.asarray(scores[:, 1] - 0.5 if n_classes == 2 else scores)


def _check_shares(estimator: Any, found: NDArray[Any]) -> None:
    # NaN is not close to anything.
    is_sum = np.isclose(found.sum(axis=1), 1, atol=_SHARE_ERROR)
    is_odd = ~is_sum | (found < -_SHARE_ERROR).any(axis=1)
    if is_odd.any():
        odd = found[int(np.argmax(is_odd))]
        raise ValueError(
            f"its predict_proba gives "
            f"{np.array2string(odd[:5], precision=3)} for an image: probabilities of the classes "
            "must not be negative, and have the sum 1"
        )


def _check_fitted(estimator: Any, n_classes: int) -> None:
    if not hasattr(estimator, "predict"):
        raise ValueError(f"its fit gives {type(estimator).__name__}: it must give the classifier")
    known = getattr(estimator, "classes_", None)
    if known is not None and not np.array_equal(np.ravel(known), np.arange(n_classes)):
        raise ValueError(
            f"its classes_ are {np.ravel(known)[:8].tolist()}, "
            f"it was fitted on the labels 0 to {n_classes - 1}"
        )

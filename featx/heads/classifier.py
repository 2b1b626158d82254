"""Any head as a scikit-learn classifier of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.errors import FeatxError
from featx.heads import FitOptions, Head, RowSpace, get_head, with_settings
from featx.heads.boundary import fit_errors

__all__ = ["Classifier"]


def _has_probabilities(classifier: Classifier) -> bool:
    # A fitted model knows best; a head knows what its models will have.
    owner = vars(classifier).get("model_") or classifier._head()
    return bool(getattr(owner, "link", ""))


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head of featx as a scikit-learn classifier.

    What ``featx fit`` fits, on arrays, in pipelines and searches: the penalty, or another setting
    that the head searches, is chosen by cross-validation inside the rows of `fit`.

    Parameters
    ----------
    head : str, default="svm"
        Name of the head, see ``featx list heads``, or ``module:Class``.
    C : float, optional
        Penalty of the raw features; chosen by cross-validation by default.
    scale : {"none", "l2", "standard", "power", "whiten", "whiten=N"}, default="none"
        Scaling of the features, fitted inside each fold.
    class_weight : {None, "balanced"}, default=None
        Weights of the classes, for heads that have them.
    cv : int, default=5
        Folds of the cross-validation; fewer where a class has fewer rows.
    random_state : int, RandomState instance or None, default=0
        Shuffles the folds, and initialises what starts at random.
    settings : mapping, optional
        Settings of the head, such as ``{"hidden": (512, 256)}``; see docs/heads.md.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, ascending.
    n_features_in_ : int
        Length of a row.
    model_ : Model
        The fitted head; its labels are positions in `classes_`.
    fit_ : Fit
        How it came about: the curve of the search, notes, whether it converged.
    C_ : float or None
        The penalty; None where the head has none.
    n_iter_ : int
        Iterations of the final fit.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import Classifier
    >>> rows = np.random.default_rng(0).normal(size=(20, 50))
    >>> labels = np.array(["cat", "dog"] * 10)
    >>> rows[labels == "dog", :5] += 4
    >>> Classifier("lda", random_state=1).fit(rows, labels).predict(rows[:3])
    array(['cat', 'dog', 'cat'], dtype='<U3')
    """

    def __init__(
        self,
        head: str = "svm",
        *,
        C: float | None = None,
        scale: str = "none",
        class_weight: str | None = None,
        cv: int = 5,
        random_state: int | np.random.RandomState | None = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.head = head
        self.C = C
        self.scale = scale
        self.class_weight = class_weight
        self.cv = cv
        self.random_state = random_state
        self.settings = settings

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the head.

        Parameters
        ----------
        X : array_like, shape (n_rows, n_features)
            Features.
        y : array_like, shape (n_rows,)
            Labels of any kind.

        Returns
        -------
        Classifier
            Itself.

        Raises
        ------
        UsageError
            If a parameter is wrong.
        ValueError
            If the arrays are, as in scikit-learn, or the head cannot be fitted on them.
        """
        head = self._head()
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("Classifier needs two classes or more, these rows have one class")
        options = self._options()
        fit = self._translated(head.fit, RowSpace.of(X), codes.astype(np.int64), options)
        self.classes_ = classes
        self.fit_ = fit
        self.model_ = fit.model
        self.C_ = fit.C
        self.n_iter_ = fit.n_iter
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores.

        Parameters
        ----------
        X : array_like, shape (n_rows, n_features)
            Features.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_classes), or (n_rows,) for the second of two
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return np.asarray(self._translated(self.model_.decision_function, X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels of the largest scores.

        Parameters
        ----------
        X : array_like, shape (n_rows, n_features)
            Features.

        Returns
        -------
        ndarray of the type of the labels, shape (n_rows,)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return np.asarray(self.classes_[self._translated(self.model_.predict, X)])

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities, where the head has them.

        Parameters
        ----------
        X : array_like, shape (n_rows, n_features)
            Features.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_classes)
        """
        scores = self.decision_function(X)
        return np.asarray(self.model_.probabilities(scores))

    def _head(self) -> Head:
        return with_settings(get_head(self.head), dict(self.settings or {}))

    def _options(self) -> FitOptions:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        return FitOptions(
            C=self.C,
            folds=self.cv,
            seed=int(seed),
            scale=self.scale,
            class_weight=self.class_weight,
        )

    def _translated(self, call: Any, *args: Any) -> Any:
        """Call, with errors about data as the ValueError that scikit-learn expects."""
        try:
            with fit_errors(self.head):
                return call(*args)
        except FeatxError as error:
            raise ValueError(str(error)) from error

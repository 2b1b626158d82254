"""A fitted head with everything that is needed to apply it to new features and new images."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import CacheMismatchError, ModelError, UsageError
from featx.evaluate.intervals import format_ends, share_interval
from featx.fingerprint import differences, fingerprint
from featx.heads.base import Model, Rows, as_stored
from featx.heads.saving import n_features_of, unpack_model
from featx.predict.file import read_arrays, read_record
from featx.store import Cache

if TYPE_CHECKING:
    from featx.predict.run import Prediction

__all__ = ["SavedModel", "check_record", "features_identity", "load_model", "test_text"]

Array = NDArray[np.float64]

_NOT_OF_FEATURES = ("schema", "source")


def features_identity(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that changes features, but for the images that they are of."""
    return {k: v for k, v in meta["identity"].items() if k not in _NOT_OF_FEATURES}


@dataclass(frozen=True, repr=False)
class SavedModel:
    """A model that `load_model` read.

    Labels are positions in `class_names`, as in the cache that it was fitted on.

    Parameters
    ----------
    path : Path
        The file.
    meta : dict
        Everything that the file says: head, features, weights, training data, the accuracy that
        was recorded, version of featx.
    model : Model
        The fitted head.
    """

    path: Path
    meta: dict[str, Any]
    model: Model

    def __repr__(self) -> str:
        return (
            f"<SavedModel {self.path.name}: {self.meta['head']} on {self.n_features:,} features of "
            f"{self.meta['features'].get('backbone')}, {len(self.classes_)} classes>"
        )

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels, ascending, shape (n_classes,)."""
        return self.model.classes_

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return tuple(self.meta["class_names"])

    @property
    def n_features(self) -> int:
        """Length of the rows that it takes."""
        return n_features_of(self.model)

    @property
    def has_probabilities(self) -> bool:
        """Whether the head gives probabilities."""
        return bool(getattr(self.model, "link", ""))

    def decision_function(self, X: Rows | Cache) -> Array:
        """Score raw features.

        Parameters
        ----------
        X : array_like, shape (n_rows, n_features), or Cache
            Features as they came out of the backbone: the scaling is part of the model.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_classes)
            For two classes (n_rows,), of the second.

        Raises
        ------
        CacheMismatchError
            If a cache was made otherwise than the features that the model was fitted on.
        ProtocolError
            If the rows have another length, or hold NaN.
        """
        return self.model.decision_function(self._rows(X))

    def predict(self, X: Rows | Cache) -> NDArray[np.int64]:
        """Give the labels of the largest scores, shape (n_rows,).

        Parameters
        ----------
        X : array_like or Cache
            As for `decision_function`.
        """
        return self.model.predict(self._rows(X))

    def predict_proba(self, X: Rows | Cache) -> Array:
        """Give probabilities, shape (n_rows, n_classes).

        Parameters
        ----------
        X : array_like or Cache
            As for `decision_function`.

        Raises
        ------
        UsageError
            If the head has none.
        """
        chances = self.model.probabilities(self.decision_function(X))
        if chances is None:
            raise UsageError(
                f"{self.meta['head']} gives no probabilities: use decision_function, or fit "
                "logreg, lda, mlp or knn"
            )
        return chances

    def predict_images(  # noqa: PLR0913 - options of a command, all by name
        self,
        images: Any,
        *,
        top: int = 1,
        weights: str | os.PathLike[str] | None = None,
        backbone: str | None = None,
        allow_code: Collection[str] = (),
        device: str = "auto",
        batch_size: int | None = None,
        workers: int | None = 0,
    ) -> list[Prediction]:
        """Classify images with the backbone that the model was fitted behind.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3), or sequence of length n
            Pixels; or a mixture of paths, PIL images, uint8 arrays and encoded files (bytes).
        top : int, default=1
            Classes of each image.
        weights : path-like, optional
            File of the same weights, where they are not where they were.
        backbone : str, optional
            Its name, where it is a function of your own: a model imports nothing by itself.
        allow_code : collection of str, optional
            Functions that may be imported, as for `featx.open_backbone`: where the model was
            fitted behind a trained network that was made from one.
        device : str, default="auto"
            ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size, workers : int, optional
            As for ``featx extract``; 0 workers decode in this process.

        Returns
        -------
        list of Prediction
            One an image, in order; those that cannot be read have the reason as their status.

        Raises
        ------
        WeightsError
            If the weights are gone, or are others.
        FeatxError
            Of other kinds.
        """
        from featx.predict.network import open_network
        from featx.predict.run import iter_predictions
        from featx.sources import from_arrays

        source = from_arrays(images)
        network = open_network(
            self,
            weights=weights,
            backbone=backbone,
            allow_code=allow_code,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
        return list(iter_predictions(self, network, source, top=top))

    def _rows(self, X: Rows | Cache) -> Rows:
        if not isinstance(X, Cache):
            return X if hasattr(X, "shape") else np.asarray(X)
        lines = differences(self.meta["features"], features_identity(X.meta))
        if lines:
            raise CacheMismatchError(
                f"{X.path} was not made as the features that {self.path} was fitted on: extract "
                "the images with the model's settings, or fit a model on this cache",
                lines,
            )
        return as_stored(X.X)


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Load a model that ``featx fit --save-models`` wrote; nothing in the file is run.

    Parameters
    ----------
    path : path-like
        The file, ``reports/models/….safetensors``.

    Returns
    -------
    SavedModel

    Raises
    ------
    ModelError
        If the file is missing, damaged, no model, or of a newer featx.

    Examples
    --------
    >>> model = load_model("reports/models/….safetensors")  # doctest: +SKIP
    >>> [row.classes for row in model.predict_images(["new.jpg"])]  # doctest: +SKIP
    [('cat',)]
    """
    file = Path(path)
    record = read_record(file)
    arrays = read_arrays(file, record)
    try:
        model = unpack_model(record.get("model"), arrays)
        _check(record, model)
    except ModelError as error:
        raise ModelError(
            f"{path} cannot be used: {error} (written by featx {record.get('featx_version')})"
        ) from error
    return SavedModel(file, record, model)


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record whose parts are missing or of another type."""
    for part in ("features", "weights", "train", "test"):
        if not isinstance(record.get(part), dict):
            raise ModelError(f"it says nothing about {part}")
    names = record.get("class_names")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelError("its class names are no texts")
    if not isinstance(record.get("head"), str):
        raise ModelError("it does not name its head")
    if not isinstance(record["features"].get("point", {}), dict):
        raise ModelError("it does not name the layer of its features")
    accuracy, n_test = (record["test"].get(name) for name in ("accuracy", "n_test"))
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1):
        raise ModelError("its test accuracy is no number between 0 and 1")
    if not (isinstance(n_test, int) and n_test > 0):
        raise ModelError("it does not say how many images its test accuracy is of")


def test_text(record: Mapping[str, Any]) -> str:
    """Tell a model's test accuracy, with its 95 % interval over that many test images."""
    accuracy, n_test = record["test"]["accuracy"], record["test"]["n_test"]
    ends = format_ends(share_interval(accuracy, n_test))
    return f"{accuracy:.3f} ({ends}, {n_test:,} test images)"


def _check(record: Mapping[str, Any], model: Model) -> None:
    """Refuse a record that does not fit its model."""
    check_record(record)
    if int(model.classes_[-1]) >= len(record["class_names"]):
        raise ModelError("its class names do not fit its labels")
    if record.get("fingerprint") != fingerprint(record["features"]):
        raise ModelError("what it says about its features does not fit their fingerprint")
    if record.get("n_features") != n_features_of(model):
        raise ModelError(f"its head does not take {record.get('n_features')!r} features")

"""A fitted head with everything that is needed to apply it to new features and new images."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import CacheMismatchError, UsageError
from featx.evaluate.intervals import format_ends, share_interval
from featx.fingerprint import differences
from featx.heads.base import Rows, as_stored
from featx.predict.file import ModelFile, features_identity, read_model
from featx.predict.network import open_network
from featx.predict.predictions import Prediction, iter_predictions
from featx.store import Cache

__all__ = ["SavedModel", "load_model", "test_text"]

Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class SavedModel(ModelFile):
    """A model that `load_model` read.

    Labels are positions in `class_names`, as in the cache that the model was fitted on.

    Parameters
    ----------
    path : Path
        The file.
    meta : dict
        The record in the file: head, features, weights, training data, test accuracy, version of
        featx.
    model : Model
        The fitted head.
    """

    def __repr__(self) -> str:
        return (
            f"<SavedModel {self.path.name}: {self.meta['head']} on {self.n_features:,} features of "
            f"{self.meta['features'].get('backbone')}, {len(self.classes_)} classes>"
        )

    def decision_function(self, X: Rows | Cache) -> Array:
        """Score raw features.

        Parameters
        ----------
        X : array_like, shape (n_rows, n_features), or Cache
            Features as they came out of the backbone: the scaling is part of the model.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_classes)
            For two classes (n_rows,), the score of the second.

        Raises
        ------
        CacheMismatchError
            If a cache was made with other settings than the features that the model was fitted on.
        ProtocolError
            If the rows have another length, or hold NaN.
        """
        return self.model.decision_function(self._rows(X))

    def predict(self, X: Rows | Cache) -> NDArray[np.int64]:
        """Return the labels of the largest scores, shape (n_rows,).

        Parameters
        ----------
        X : array_like or Cache
            As for `decision_function`.
        """
        return self.model.predict(self._rows(X))

    def predict_proba(self, X: Rows | Cache) -> Array:
        """Return probabilities, shape (n_rows, n_classes).

        Parameters
        ----------
        X : array_like or Cache
            As for `decision_function`.

        Raises
        ------
        UsageError
            If the head has no probabilities.
        """
        chances = self.model.probabilities(self.decision_function(X))
        if chances is None:
            raise UsageError(
                f"{self.meta['head']} has no probabilities: use decision_function, or fit "
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
            Number of classes for each image.
        weights : path-like, optional
            File with the same weights, if they are no longer where they were.
        backbone : str, optional
            Name of the backbone, if it is a function of your own: featx imports no code that only
            a file names.
        allow_code : collection of str, optional
            Functions that may be imported, as for `featx.open_backbone`: needed if the backbone
            is a trained network that was made from such a function.
        device : str, default="auto"
            ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size, workers : int, optional
            As for ``featx extract``; 0 workers decode in this process.

        Returns
        -------
        list of Prediction
            One per image, in order; the status of an unreadable image is the reason.

        Raises
        ------
        WeightsError
            If the weights are missing, or are other ones.
        FeatxError
            For other reasons.
        """
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
                f"{X.path} was made with other settings than the features that {self.path} was "
                "fitted on: extract the images with the model's settings, or fit a model on this "
                "cache",
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
        If the file is missing, damaged, not a model, or of a newer featx.

    Examples
    --------
    >>> model = load_model("reports/models/….safetensors")  # doctest: +SKIP
    >>> [row.classes for row in model.predict_images(["new.jpg"])]  # doctest: +SKIP
    [('cat',)]
    """
    file = Path(path)
    return SavedModel(file, *read_model(file))


def test_text(record: Mapping[str, Any]) -> str:
    """Write a model's test accuracy, with its 95 % interval over that many test images."""
    accuracy, n_test = record["test"]["accuracy"], record["test"]["n_test"]
    ends = format_ends(share_interval(accuracy, n_test))
    return f"{accuracy:.3f} ({ends}, {n_test:,} test images)"

"""A saved model: a fitted head with everything that applies it to new features and new images.

Its file has tensors as safetensors, and everything else as JSON in its metadata.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featx.errors import CacheMismatchError, ModelError, UsageError
from featx.evaluate.intervals import format_ends, share_interval
from featx.fingerprint import differences, fingerprint
from featx.heads.base import Model, Rows, as_stored
from featx.heads.saving import n_features_of, unpack_model
from featx.predict.network import open_network
from featx.predict.predictions import Prediction, iter_predictions
from featx.records import SealedFiles
from featx.store import Cache

__all__ = [
    "SavedModel",
    "check_record",
    "features_identity",
    "load_model",
    "read_arrays",
    "read_model",
    "read_record",
    "test_text",
    "write_file",
]

_FILES = SealedFiles(
    format="featx model",
    version=1,
    noun="model",
    error=ModelError,
    missing="make one with  featx fit --save-models",
    unknown="is no model of featx: it has tensors, and no record of what they are",
    damaged="fit it again with  featx fit --save-models",
)
_TENSORS = "tensors"
_NOT_OF_FEATURES = ("schema", "source")


def features_identity(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that changes features, except the images."""
    return {k: v for k, v in meta["identity"].items() if k not in _NOT_OF_FEATURES}


def write_file(path: Path, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a model: the whole file, or nothing."""
    digests = {name: _digest(array) for name, array in arrays.items()}
    _FILES.write(
        path,
        {**record, _TENSORS: digests},
        lambda part, metadata: save_file(dict(arrays), part, metadata),
    )


def _digest(array: NDArray[Any]) -> str:
    state = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def read_model(path: Path) -> tuple[dict[str, Any], Model]:
    """Read a model and check that its parts fit each other; nothing in the file is run."""
    record = read_record(path)
    arrays = read_arrays(path, record)
    try:
        model = unpack_model(record.get("model"), arrays)
        check_record(record)
        _check_model(record, model)
    except ModelError as error:
        raise ModelError(
            f"{path} cannot be used: {error} (written by featx {record.get('featx_version')})"
        ) from error
    return record, model


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a model, and none of its arrays."""
    record, names = _FILES.read(path)
    digests = record.get(_TENSORS)
    if not isinstance(digests, dict) or names != set(digests):
        raise _FILES.damage(path, "its tensors are not those that were written")
    return record


def read_arrays(path: Path, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a model, and compare them with their digests."""
    try:
        with safe_open(path, framework="numpy") as stream:
            arrays = {name: stream.get_tensor(name) for name in record[_TENSORS]}
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise _FILES.damage(path, f"its tensors cannot be read ({error})") from error
    for name, array in arrays.items():
        if _digest(array) != record[_TENSORS][name]:
            raise _FILES.damage(path, f"the tensor {name} does not fit its digest")
    return arrays


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record whose parts are missing or have the wrong type."""
    for part in ("features", "weights", "train", "test"):
        if not isinstance(record.get(part), dict):
            raise ModelError(f"it says nothing about {part}")
    names = record.get("class_names")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelError("its class names are not texts")
    if not isinstance(record.get("head"), str):
        raise ModelError("it does not name its head")
    if not isinstance(record["features"].get("point", {}), dict):
        raise ModelError("it does not name the layer of its features")
    accuracy, n_test = (record["test"].get(name) for name in ("accuracy", "n_test"))
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1):
        raise ModelError("its test accuracy is not a number between 0 and 1")
    if not (isinstance(n_test, int) and n_test > 0):
        raise ModelError("it does not say how many images its test accuracy was measured on")


def _check_model(record: Mapping[str, Any], model: Model) -> None:
    if int(model.classes_[-1]) >= len(record["class_names"]):
        raise ModelError("its class names do not fit its labels")
    if record.get("fingerprint") != fingerprint(record["features"]):
        raise ModelError("the description of its features does not fit their fingerprint")
    if record.get("n_features") != n_features_of(model):
        raise ModelError(f"its head does not take {record.get('n_features')!r} features")


Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class SavedModel:
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

    path: Path
    meta: dict[str, Any]
    model: Model

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

"""`FeatureExtractor`, and the images that it takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featx.backbones import Backbone
from featx.engines import LocalEngine, resolve_device, resolve_precision, resolve_runtime
from featx.errors import ImageError, UsageError, WeightsError
from featx.extractor.open_networks import engine_once, open_once
from featx.extractor.rows import RowMemory, Setup, UnreadableError
from featx.fingerprint import differences
from featx.images import DECODER
from featx.progress import SILENT, Reporter
from featx.sources import Source, from_arrays
from featx.sources.look import common_size
from featx.sources.memory import check_stack
from featx.words import as_only, as_side, as_text

__all__ = ["FeatureExtractor"]

_FORMS = (
    "give a list of paths, PIL images, arrays or encoded files (bytes), or one array "
    "of shape (n, H, W, 3) or (n, H, W)"
)
_ONE_IMAGE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)
NATIVE = "native"
_CHOICES = {"dtype": ("float32", "float16"), "on_error": ("raise", "nan")}


@dataclass(eq=False, repr=False)  # scikit-learn compares and prints estimators itself
class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a frozen, pretrained network, as a scikit-learn transformer.

    Decoder, preprocessing and network are those of ``featx extract``. Rows equal those of a
    cache of type float32, except for the last digits, which depend on the other images in the
    batch. The same images in the same order with the same batch size give the same bits on the
    same machine.

    Nothing is learned from the images, so a pipeline with this transformer has no leak through
    it. `fit` checks the parameters and loads the network. The process keeps the last two networks;
    the estimator keeps none. A pickle therefore has a few hundred bytes; where it is used, the
    weights are loaded again by their name and must have the same digest.

    Parameters
    ----------
    backbone : str, default="resnet50"
        Name of the network, see `featx.open_backbone`.
    weights : str or path-like, optional
        Tag, path of a file, or ``random``; the pinned tag of the backbone by default.
    weights_key : str, optional
        Entry of that file, if it holds several networks, such as ``state_dict`` or ``teacher``;
        averaged weights (EMA) by default, if there are any.
    layer : str, optional
        Layer; the last convolutional feature map (for transformers the class
        token) by default.
    pool : str, default="none"
        Pooling of a feature map: ``none``, ``avg``, ``max``, ``cls`` or ``avg+cls``.
    input_size : int, pair of the same int, or "native", optional
        Side of the input in pixels; that of the weights by default. ``native`` is the size of the
        images that `fit` is given, which must all have it: nothing is resized.
    crop_pct : float, optional
        Ratio of crop to resize, above 0 and at most 1; that of the weights by default.
    interpolation : str, optional
        Filter of the resize, such as ``bicubic``; that of the weights by default.
    mean, std : sequence of 3 floats, optional
        Subtracted from, then divided into, RGB values in [0, 1]; those of the weights by
        default. If these are not known, give `mean`, `std` and `input_size`.
    bits : int, optional
        Number of used bits of pixel values that are stored in 16 bits, such as 12; 16 by default.
    precision : {"fp32", "bf16", "fp16", "auto"}, default="fp32"
        Arithmetic of the network.
    runtime : {"torch", "compile", "openvino", "auto"}, default="torch"
        Library that computes the network.
    device : str or torch.device, default="auto"
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size : int, optional
        Images at once; 16 on a CPU and 128 on a GPU by default.
    workers : int, optional, default=0
        Processes that decode. 0 decodes in this process, which is safe inside joblib's
        processes; None is the default of ``featx extract``.
    dtype : {"float32", "float16"}, default="float32"
        Type of the features, in `memory` as well.
    memory : path-like, optional
        Folder in which rows are kept, under the SHA-256 of their image and everything that
        changes features. No image is then computed twice, also not in other folds or processes.
        One folder serves all backbones; it may be deleted at any time.
    on_error : {"raise", "nan"}, default="raise"
        What to do about an unreadable image: raise an `ImageError` that names it, or warn and
        return a row of NaN.
    verbose : bool, default=False
        Show progress.
    allow_code : sequence of str, default=()
        Functions ``module:function`` that may be imported. Files of trained networks may name
        functions; only these and `backbone` itself are imported.

    Attributes
    ----------
    n_features_out_ : int
        Length of a feature vector.
    layer_ : str
        The layer.
    input_size_ : int
        Side of the input in pixels.
    runtime_ : str
        ``torch``, ``compile`` or ``openvino``: what ``auto`` has chosen.
    precision_ : str
        Arithmetic of the network: what ``auto`` has chosen.
    weights_sha256_ : str
        Digest of the weights, 64 hexadecimal digits.
    identity_ : dict
        Everything that changes the features, and nothing else.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from featx import FeatureExtractor
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    >>> extractor = FeatureExtractor("squeezenet1_1", weights="random", input_size=32, pool="avg")
    >>> extractor.fit_transform(images).shape
    (8, 512)
    >>> pipeline = make_pipeline(extractor, LogisticRegression()).fit(images, [0, 1] * 4)
    >>> pipeline.predict(images[:2]).shape
    (2,)
    """

    backbone: str = "resnet50"
    _: KW_ONLY
    weights: str | os.PathLike[str] | None = None
    weights_key: str | None = None
    layer: str | None = None
    pool: str = "none"
    input_size: int | tuple[int, int] | str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    bits: int | None = None
    precision: str = "fp32"
    runtime: str = "torch"
    device: Any = "auto"
    batch_size: int | None = None
    workers: int | None = 0
    dtype: str = "float32"
    memory: str | os.PathLike[str] | None = None
    on_error: str = "raise"
    verbose: bool = False
    allow_code: Sequence[str] = ()

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and load the network; no image is decoded.

        Parameters
        ----------
        X : sequence of length n, or ndarray of uint8, shape (n, H, W, 3) or (n, H, W)
            Images, see `transform`.
        y : object, optional
            Not used.

        Returns
        -------
        FeatureExtractor
            Itself.

        Raises
        ------
        UsageError, WeightsError, BackboneError
            If a parameter or the type of `X` is wrong.
        """
        del y
        images = check_images(X)
        self._check_choices()
        if self.input_size == NATIVE:
            self.input_size_ = self._native_size(images)
        device = resolve_device(self.device)
        precision, _ = resolve_precision(self.precision, device)
        runtime, _ = resolve_runtime(self.runtime, device, precision)
        self.precision_, self.runtime_ = precision, runtime
        self._engine()
        backbone = self._open(is_anew=True)
        if self.input_size == NATIVE and backbone.preprocessing.crop_mode != "center":
            self._native_size(images, is_square=True)
        self.n_features_out_ = backbone.n_features
        self.layer_ = backbone.layer
        self.input_size_ = backbone.input_size
        self.weights_sha256_ = backbone.weights.sha256
        self.identity_ = self._identity(backbone)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Compute features, or look them up in the memory.

        Parameters
        ----------
        X : sequence of length n, or ndarray of uint8, shape (n, H, W, 3) or (n, H, W)
            Paths, PIL images, uint8 arrays (H, W, 3) or (H, W), or encoded files (bytes), also
            mixed; or a pandas Series or a DataFrame of one column with these.

        Returns
        -------
        ndarray of shape (n, n_features_out_), dtype float32 or float16
            Feature maps are flattened in the order channels, rows, columns.

        Raises
        ------
        ImageError
            If an image cannot be decoded; the message has its number and path.
        ReadError
            If a file cannot be read from the disk, or changes while it is read; also with
            ``on_error="nan"``.
        WeightsError
            If the weights are no longer those of `fit`.
        CacheError
            If the memory is damaged or cannot be written.
        """
        check_is_fitted(self)
        source, rows = as_source(check_images(X))
        backbone = self._open()
        self._check_same(backbone)
        reporter = Reporter() if self.verbose else SILENT
        setup = Setup(backbone, self._engine(), self.dtype, reporter)
        computer = setup if self.memory is None else RowMemory(Path(self.memory), setup)
        try:
            features, failed = computer.features(source, is_strict=self.on_error == "raise")
        except UnreadableError as error:
            raise ImageError(_describe(error.row, str(error), source, rows)) from error
        if failed:
            row = min(failed)
            warnings.warn(
                f"{len(failed)} images cannot be read and have NaN as features, the first is "
                + _describe(row, failed[row], source, rows),
                stacklevel=2,
            )
        is_in_order = len(rows) == len(source)
        return features if is_in_order else features[rows]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return names of the features, made from the name of the backbone.

        Parameters
        ----------
        input_features : object, optional
            Not used.

        Returns
        -------
        ndarray of str objects, shape (n_features_out_,)
            ``resnet50_0``, ``resnet50_1``, and so on.
        """
        del input_features
        check_is_fitted(self)
        return np.array([f"{self.backbone}_{i}" for i in range(self.n_features_out_)], object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is unknown: choose from {', '.join(allowed)}"
                )

    def _engine(self) -> LocalEngine:
        device = resolve_device(self.device)
        return engine_once(device, self.precision_, self.batch_size, self.workers, self.runtime_)

    def _native_size(self, images: np.ndarray | list[Any], *, is_square: bool = False) -> int:
        width, height = common_size([as_source(images)[0]])
        if is_square and width != height:
            raise UsageError(
                f"the weights of {self.backbone} fit images into a square, and these are {width} x "
                f"{height}: give input_size in pixels"
            )
        return min(width, height)

    def _open(self, *, is_anew: bool = False) -> Backbone:
        names = ("input_size", "crop_pct", "interpolation", "mean", "std", "bits")
        values = {name: getattr(self, name) for name in names}
        if self.input_size == NATIVE:
            values |= {"input_size": self.input_size_, "crop_pct": 1.0}
        several = "join extractors with sklearn.pipeline.make_union"
        return open_once(
            as_text(self.backbone),
            values | {"input_size": as_side(values["input_size"])},
            resolve_device(self.device),
            allow_code=self.allow_code,
            is_anew=is_anew,
            weights=as_text(self.weights),
            weights_key=self.weights_key,
            layer=as_only("layer", self.layer, several),
            pool=as_only("pool", self.pool, several),
        )

    def _identity(self, backbone: Backbone) -> dict[str, Any]:
        return {
            "decoder": DECODER,
            **backbone.identity(),
            **self._engine().identity(),
            "dtype": self.dtype,
        }

    def _check_same(self, backbone: Backbone) -> None:
        found = self._identity(backbone)
        if found != self.identity_:
            fields = (line.partition(":")[0] for line in differences(self.identity_, found))
            raise WeightsError(
                f"{self.backbone} has changed since this FeatureExtractor was fitted: "
                f"{', '.join(fields)}. Fit it again, or restore what it was fitted with"
            )


def _describe(row: int, reason: str, source: Source, rows: np.ndarray) -> str:
    path = source.paths[row]
    named = "" if path.startswith(f"{source.split}/") else f" ({path})"
    return f"X[{int(np.flatnonzero(rows == row)[0])}]{named}: {reason}"


def check_images(X: Any) -> np.ndarray | list[Any]:
    """Check ``X`` and return it as an array of pixels or as a list, without reading images."""
    if hasattr(X, "to_numpy"):  # pandas, polars
        X = X.to_numpy()
    if isinstance(X, _ONE_IMAGE):
        raise UsageError(f"X is one {type(X).__name__}: of one image give the list [image]")
    if isinstance(X, np.ndarray):
        X = _from_array(X)
    elif not isinstance(X, Sequence):
        raise UsageError(f"X is a {type(X).__name__}: {_FORMS}")
    if len(X) == 0:
        raise UsageError("X holds no images: at least one is needed")
    return X if isinstance(X, np.ndarray) else list(X)


def _from_array(X: np.ndarray) -> np.ndarray | list[Any]:
    if X.dtype.kind == "S":
        raise UsageError(
            "X is an array of fixed-length bytes, where zeros at the end are lost: give a list"
        )
    if X.dtype.kind not in "OU":
        check_stack(X)
        return X
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    if X.ndim != 1:
        raise UsageError(f"X is a table of shape {X.shape}: give its one column of images")
    return list(X.tolist()) if X.dtype.kind == "U" else list(X)


def as_source(images: np.ndarray | list[Any]) -> tuple[Source, np.ndarray]:
    """Make a source that has every file once; return it, and its row for each image."""
    if isinstance(images, np.ndarray):
        return from_arrays(images), np.arange(len(images))
    first: dict[Any, int] = {}
    kept: list[Any] = []
    rows = np.empty(len(images), np.int64)
    for i, image in enumerate(images):
        is_path = isinstance(image, (str, os.PathLike))
        key = os.path.abspath(image) if is_path else i  # noqa: PTH100 - keeps symbolic links
        rows[i] = first.setdefault(key, len(kept))
        if rows[i] == len(kept):
            kept.append(image)
    return from_arrays(kept), rows

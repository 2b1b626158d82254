"""Features of all images of a source, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.engines import LocalEngine
from featx.engines.loader import worker_deaths_named
from featx.errors import FeatxError, ImageError
from featx.progress import Reporter
from featx.sources import Source

__all__ = ["Setup", "UnreadableError"]


class UnreadableError(ImageError):
    """An image that cannot be read, and its row.

    Parameters
    ----------
    row : int
        In the source.
    reason : str
        Why.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True)
class Setup:
    """What computes features, and how.

    Parameters
    ----------
    backbone : Backbone
        At the feature point.
    engine : LocalEngine
        What runs it.
    dtype : {"float32", "float16"}
        Type of the features.
    reporter : Reporter
        Shows the progress.
    """

    backbone: Backbone
    engine: LocalEngine
    dtype: str
    reporter: Reporter

    def features(
        self, source: Source, *, is_strict: bool, digests: np.ndarray | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Compute the features of every image.

        Parameters
        ----------
        source : Source
            Of n images.
        is_strict : bool
            Whether an image that cannot be decoded is an error.
        digests : ndarray of uint8, shape (n, 32), optional
            What the images must be, where the features are kept under these.

        Returns
        -------
        features : ndarray of shape (n, n_features)
            NaN in the rows of images that cannot be decoded.
        failed : dict of int to str
            Those rows, with reasons.

        Raises
        ------
        UnreadableError
            If `is_strict`.
        ReadError
            If the machine cannot read an image, or it changed since it was hashed.
        FeatxError
            If features of a readable image are not finite in this type.
        """
        n, size = len(source), self.engine.batch_size
        features = np.empty((n, self.backbone.n_features), self.dtype)
        failed: dict[int, str] = {}
        batches = range(-(-n // size))
        with worker_deaths_named(), self.reporter.bar(n, self.backbone.name) as bar:
            for batch in self.engine.run(self.backbone, source, batches, dtype=self.dtype):
                if digests is not None:
                    source.require_unchanged(batch.start, batch.digests, digests)
                if is_strict and batch.failed:
                    row = min(batch.failed)
                    raise UnreadableError(row, batch.failed[row])
                rows = slice(batch.start, batch.start + len(batch.features))
                features[rows] = batch.features
                failed.update(batch.failed)
                features[list(batch.failed)] = np.nan
                self._check_finite(features[rows], len(batch.failed))
                bar.update(len(batch.features))
        return features, failed

    def _check_finite(self, features: np.ndarray, n_failed: int) -> None:
        n_bad = int((~np.isfinite(features).all(1)).sum()) - n_failed
        if n_bad:
            raise FeatxError(
                f"the features of {n_bad} images are not finite in {self.dtype} at precision "
                f"{self.engine.precision}: use dtype='float32' and precision='fp32'"
            )

"""Features of all images of a source, as arrays in memory."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.engines import FeatureBatch, LocalEngine
from featx.engines.loader import worker_deaths_named
from featx.errors import FeatxError, ImageError
from featx.progress import Reporter
from featx.sources import Source

__all__ = ["Setup", "UnreadableError"]


class UnreadableError(ImageError):
    """An image that cannot be read, and its row."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True)
class Setup:
    """Computes features with a backbone and an engine."""

    backbone: Backbone
    engine: LocalEngine
    dtype: str
    reporter: Reporter

    def features(
        self, source: Source, *, is_strict: bool, digests: np.ndarray | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Compute features of every image; return them, and the reason of each failure by row."""
        nothing = np.empty((0, self.backbone.n_features), self.dtype), dict[int, str]()
        n_rows = max(1, len(source))
        [found] = [*self.groups(source, n_rows, is_strict=is_strict, digests=digests)] or [nothing]
        return found

    def groups(
        self,
        source: Source,
        n_rows: int,
        *,
        is_strict: bool = False,
        digests: np.ndarray | None = None,
    ) -> Generator[tuple[np.ndarray[Any, Any], dict[int, str]], None, None]:
        """Compute the same in groups of `n_rows` rows, with workers that are started once."""
        n, size = len(source), self.engine.batch_size
        with ExitStack() as stack:
            stack.enter_context(worker_deaths_named())
            bar = stack.enter_context(self.reporter.bar(n, self.backbone.name))
            run = self.engine.run(self.backbone, source, range(-(-n // size)), dtype=self.dtype)
            for batch in stack.enter_context(closing(run)):
                self._check(batch, source, is_strict, digests)
                start = batch.start % n_rows
                if start == 0:
                    shape = min(n_rows, n - batch.start), self.backbone.n_features
                    features, failed = np.empty(shape, self.dtype), dict[int, str]()
                stop = start + len(batch.features)
                features[start:stop] = batch.features
                new = {row - batch.start + start: why for row, why in batch.failed.items()}
                features[list(new)] = np.nan
                failed |= new
                self._check_finite(features[start:stop], len(batch.failed))
                bar.update(len(batch.features))
                if stop == len(features):
                    yield features, failed

    def _check(
        self, batch: FeatureBatch, source: Source, is_strict: bool, digests: np.ndarray | None
    ) -> None:
        if digests is not None:
            source.require_unchanged(batch.start, batch.digests, digests)
        if is_strict and batch.failed:
            row = min(batch.failed)
            raise UnreadableError(row, batch.failed[row])

    def _check_finite(self, features: np.ndarray, n_failed: int) -> None:
        n_bad = int((~np.isfinite(features).all(1)).sum()) - n_failed
        if n_bad:
            raise FeatxError(
                f"the features of {n_bad} images are not finite in {self.dtype} at precision "
                f"{self.engine.precision}: use dtype='float32' and precision='fp32'"
            )

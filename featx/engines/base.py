"""What every engine does: images of a source in, rows of features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from featx.backbones.base import Backbone, BackboneGroup
from featx.sources import Source

__all__ = ["Engine", "FeatureBatch"]


@dataclass(frozen=True)
class FeatureBatch:
    """Features of consecutive images."""

    start: int
    features: np.ndarray
    failed: Mapping[int, str]
    digests: np.ndarray
    seconds: Mapping[str, float] = field(default_factory=dict)


class Engine(ABC):
    """Runs a backbone over the images of a source."""

    precision: str
    runtime: str
    n_workers: int

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Images in every batch; batch k always holds the rows from ``k * batch_size`` on."""

    def run(
        self, backbone: Backbone, source: Source, batches: Sequence[int], *, dtype: str = "float32"
    ) -> Generator[FeatureBatch, None, None]:
        """Compute the features of some batches, see `run_many`."""
        group = BackboneGroup.of(backbone)
        # Python 3.12 does not end an inner generator where an outer one is only closed.
        with closing(self.run_many(group, source, batches, dtype=dtype)) as parts:
            for (batch,) in parts:
                yield batch

    @abstractmethod
    def run_many(
        self,
        group: BackboneGroup,
        source: Source,
        batches: Sequence[int],
        *,
        dtype: str = "float32",
    ) -> Generator[tuple[FeatureBatch, ...], None, None]:
        """Compute several features of some batches in one pass."""

    @abstractmethod
    def fitted_to(self, group: BackboneGroup) -> Engine:
        """Choose what was left open: the batch size that the memory allows."""

    @abstractmethod
    def going_on_with(self, group: BackboneGroup, batch_size: int) -> Engine:
        """Take the batch size of rows that are there, so that the others are computed alike."""

    @abstractmethod
    def with_runtime(self, runtime: str) -> Engine:
        """Compute with another runtime."""

    @abstractmethod
    def warm_up(self, group: BackboneGroup, dtype: str) -> None:
        """Make a network ready and run it on one batch."""

    def identity(self) -> dict[str, str]:
        """Everything about it that changes the features, for the fingerprint."""
        # PyTorch as it is has been the only one, and is not named in older caches.
        other = {} if self.runtime == "torch" else {"runtime": self.runtime}
        return {"precision": self.precision, **other}

    @abstractmethod
    def describe(self) -> dict[str, str | int]:
        """Say what it runs on, for the record: no part of the fingerprint."""

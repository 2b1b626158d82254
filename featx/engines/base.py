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
    """Features of consecutive images.

    Parameters
    ----------
    start : int
        Row number of the first image in the source.
    features : ndarray of shape (n_images, n_features), dtype float32 or float16
        Rows of images that could not be read hold meaningless values.
    failed : mapping of int to str
        Row number and reason of every image that could not be read.
    digests : ndarray of uint8, shape (n_images, 32)
        SHA-256 of what was decoded, as `Source.image_digests` has it.
    seconds : mapping of str to float
        What it took: ``decode`` in one of the workers, ``forward`` in the network; they overlap.
    """

    start: int
    features: np.ndarray
    failed: Mapping[int, str]
    digests: np.ndarray
    seconds: Mapping[str, float] = field(default_factory=dict)


class Engine(ABC):
    """Runs a backbone over the images of a source.

    Attributes
    ----------
    precision : str
        Arithmetic of the network: ``fp32``, ``bf16`` or ``fp16``.
    runtime : str
        What computes the forward pass: ``torch``, ``compile`` or ``openvino``.
    n_workers : int
        Processes that decode; 0 where that is done between the forward passes.
    """

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
        """Compute the features of some batches, see `run_many`.

        Parameters
        ----------
        backbone : Backbone
            The network and its preprocessing.
        source, batches, dtype
            As in `run_many`.

        Yields
        ------
        FeatureBatch
            One a batch, in that order.
        """
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
        """Compute several features of some batches in one pass.

        Parameters
        ----------
        group : BackboneGroup
            Feature points of one network, and its preprocessing.
        source : Source
            Where the images come from.
        batches : sequence of int
            Numbers of the batches wanted, in the order wanted.
        dtype : {"float32", "float16"}
            Type of the features; what float16 cannot hold becomes infinite.

        Yields
        ------
        tuple of FeatureBatch
            One a member of the group, for each batch, in that order.
        """

    @abstractmethod
    def fitted_to(self, group: BackboneGroup) -> Engine:
        """Choose what was left open: the batch size that the memory allows.

        Parameters
        ----------
        group : BackboneGroup
            What it will run.

        Returns
        -------
        Engine
            The same arithmetic on the same devices.
        """

    @abstractmethod
    def going_on_with(self, group: BackboneGroup, batch_size: int) -> Engine:
        """Take the batch size of rows that are there, so that the others are computed alike.

        Parameters
        ----------
        group : BackboneGroup
            What it will run.
        batch_size : int
            Recorded beside the rows.

        Returns
        -------
        Engine
            `self` where another batch size was asked for, or this one does not fit into memory.
        """

    @abstractmethod
    def with_runtime(self, runtime: str) -> Engine:
        """Compute with another runtime.

        Parameters
        ----------
        runtime : str
            ``torch``, ``compile`` or ``openvino``.

        Returns
        -------
        Engine
            Alike in everything else.
        """

    @abstractmethod
    def warm_up(self, group: BackboneGroup, dtype: str) -> None:
        """Make a network ready and run it on one batch.

        Parameters
        ----------
        group : BackboneGroup
            The network; it stays ready.
        dtype : {"float32", "float16"}
            Type of the features.

        Raises
        ------
        BackboneError
            If it does not go with the runtime.
        """

    def identity(self) -> dict[str, str]:
        """Everything about it that changes the features, for the fingerprint."""
        # PyTorch as it is has been the only one, and is not named in older caches.
        other = {} if self.runtime == "torch" else {"runtime": self.runtime}
        return {"precision": self.precision, **other}

    @abstractmethod
    def describe(self) -> dict[str, str | int]:
        """Say what it runs on, for the record: no part of the fingerprint."""

"""What every network of `featx.networks` is: settings, and a way to build it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import nn

from featx.configurable import Configurable, words_of
from featx.errors import UsageError

__all__ = ["NetworkSpec", "seeded", "text_of"]


@dataclass(frozen=True)
class NetworkSpec(Configurable, ABC):
    """A network that can be built for any number of classes, and for an image size.

    Parameters
    ----------
    name : str
        As typed, without settings.
    origin : str
        Where it is from, for people.
    usual_px : int
        Side of the images that it was made for.
    """

    name: str
    origin: str
    usual_px: int = 32

    last_map: ClassVar[str | None] = None
    """Path of the part that is convolutional throughout, and so runs at other sizes than
    that of the training; None where the whole network does, or nothing does."""

    @property
    def text(self) -> str:
        """Name with the settings that are not the default ones, as `get_network` reads it."""
        return text_of(self)

    def build(self, n_classes: int, input_px: int, seed: int) -> nn.Module:
        """Build the network with random values.

        Parameters
        ----------
        n_classes : int
            Number of logits, 2 or more.
        input_px : int
            Side of the square images.
        seed : int
            Of the values; torch's own generator is left as it was.

        Returns
        -------
        torch.nn.Module
            On the CPU, in training mode. It maps normalised images, float32 of shape
            (n, 3, input_px, input_px), to logits, float32 of shape (n, n_classes).

        Raises
        ------
        UsageError
            If the images are too small for it, or there is one class only.
        """
        if n_classes < 2:
            raise UsageError(f"{self.name} needs 2 classes or more, there is {n_classes}")
        self._check_size(input_px)
        with seeded(seed):
            return self._build(n_classes, input_px)

    def _check_size(self, input_px: int) -> None:
        if input_px < self.least_px:
            raise UsageError(
                f"{self.text} halves its images too often for {input_px} pixels: give "
                f"{self.least_px} or more"
            )

    @property
    def least_px(self) -> int:
        """Side of the smallest images that it can be built for."""
        return 1

    @abstractmethod
    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        """Build it from torch's generator as it is."""


def text_of(spec: Configurable) -> str:
    """Write something configurable as it is typed, without what is the default anyway.

    Parameters
    ----------
    spec : Configurable
        A frozen dataclass with a name.

    Returns
    -------
    str
        ``NAME`` or ``NAME(key=value key=value)``.
    """
    usual = {f.name: f.default for f in fields(spec)}  # type: ignore[arg-type]
    changed = {key: value for key, value in spec.settings.items() if value != usual[key]}
    return f"{spec.name}({words_of(changed)})" if changed else spec.name


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator on the CPU for a while, and put it back as it was.

    Parameters
    ----------
    seed : int
        0 or more.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

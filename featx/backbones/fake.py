"""A forward pass over fake tensors: shapes without computing, and the sizes that work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from featx.errors import BackboneError

__all__ = ["N_FAKE", "least_size", "run_fake"]

T = TypeVar("T")

N_FAKE = 5
"""Images in a fake batch: a number by which nothing else in a network is likely to be long."""

_LARGEST_PX = 1024


def run_fake(function: Callable[[torch.Tensor], T], input_px: int) -> T:
    """Call a network with fake images.

    Parameters
    ----------
    function : callable
        Takes a tensor of shape (N_FAKE, 3, input_px, input_px), dtype float32.
    input_px : int
        Side of the square input.

    Returns
    -------
    object
        What `function` returns.

    Raises
    ------
    BackboneError
        If it fails at that size, with the least size that works.
    """
    try:
        return _call(function, input_px)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        least = least_size(function, input_px)
        mend = (
            f"The least size that works is {least}"
            if least
            else "Leave --input-size out for the size of the weights"
        )
        raise BackboneError(
            f"the network does not run at an input size of {input_px} pixels: {reason}. {mend}"
        ) from error


def least_size(function: Callable[[torch.Tensor], object], failing_px: int) -> int | None:
    """Find the least size at which a network runs, by trying.

    Parameters
    ----------
    function : callable
        As for `run_fake`.
    failing_px : int
        A size at which it is known to fail.

    Returns
    -------
    int or None
        The size N for which N pixels work and N - 1 do not; None where
        nothing works up to 1,024 pixels.
    """
    low, high = failing_px, 2 * failing_px
    while not _works(function, high):
        low, high = high, 2 * high
        if high > _LARGEST_PX:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(function, middle) else (middle, high)
    return high


def _works(function: Callable[[torch.Tensor], object], input_px: int) -> bool:
    try:
        _call(function, input_px)
    except Exception:
        return False
    return True


def _call(function: Callable[[torch.Tensor], T], input_px: int) -> T:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return function(torch.empty(N_FAKE, 3, input_px, input_px))

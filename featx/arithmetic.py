"""Flags of torch that belong to the whole process: changed while featx computes, and put back.

float32 is float32 here. TF32 keeps 10 of its 23 bits and bfloat16 keeps 7; each can be switched on
for float32 products by three generations of settings, which torch keeps side by side and wants to
agree.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from featx.errors import UsageError

__all__ = ["autotuned", "refuse_forced_tf32", "true_float32"]

# From torch 2.9 on. Parents stand before children, which follow them unless they are set.
_PLACES = (
    ("generic", "all"),
    *(("cuda", operation) for operation in ("all", "matmul", "conv", "rnn")),
    *(("mkldnn", operation) for operation in ("all", "matmul", "conv", "rnn")),
)
_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


class _Flags:
    """Flags of the process: the first who needs them changes them, the last one puts them back."""

    def __init__(self, change: Callable[[ExitStack], None]) -> None:
        self._change, self._lock, self._users, self._undo = change, threading.Lock(), 0, ExitStack()

    @contextmanager
    def changed(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._change(self._undo)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._undo.close()


def _to_float32(undo: ExitStack) -> None:
    if hasattr(torch._C, "_set_fp32_precision_setter"):
        _newer_to_float32(undo)
    # The older settings can be asked now, whatever they were: no newer one disagrees.
    matmul = torch.get_float32_matmul_precision()
    if matmul != "highest":
        undo.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
    if _is_tf32_in_cudnn():
        undo.callback(torch._C._set_cudnn_allow_tf32, True)
        torch._C._set_cudnn_allow_tf32(False)


def _newer_to_float32(undo: ExitStack) -> None:
    before = {place: _precision(place) for place in _PLACES}
    own = {}  # of places that do not follow their parents
    for place in _PLACES:
        if (value := _precision(place)) != "ieee":
            own[place] = value
            _set_precision(place, "ieee")

    def put_back() -> None:
        for place, value in own.items():
            _set_precision(place, value)
        # The older settings, and torch.compile, set places that had followed their parents.
        for place, value in before.items():
            for candidate in ("none", value):
                if _precision(place) != value:
                    _set_precision(place, candidate)

    undo.callback(put_back)


def _precision(place: tuple[str, str]) -> str:
    return torch._C._get_fp32_precision_getter(*place)


def _set_precision(place: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*place, value)


def _is_tf32_in_cudnn() -> bool:
    try:
        return torch._C._get_cudnn_allow_tf32()
    except RuntimeError:  # it disagrees with the newer settings, which are float32 now
        return True


def _to_autotuned(undo: ExitStack) -> None:
    undo.callback(torch._C._set_cudnn_benchmark, torch._C._get_cudnn_benchmark())
    torch._C._set_cudnn_benchmark(True)


_FLOAT32, _AUTOTUNED = _Flags(_to_float32), _Flags(_to_autotuned)


@contextmanager
def true_float32() -> Iterator[None]:
    """Multiply float32 numbers as float32, whatever the process allows, on a GPU and on a CPU.

    The settings are the process's: other threads see them changed meanwhile, and what they set
    then is lost. All of them are as before afterwards; one that was never set (convolutions of
    cuDNN) counts as set to what it was, for torch has no way back.
    """
    with _FLOAT32.changed():
        yield


@contextmanager
def autotuned() -> Iterator[None]:
    """Let cuDNN try its kernels on the first batch of a shape: only what repeats repays it."""
    with _AUTOTUNED.changed():
        yield


def refuse_forced_tf32(mend: str) -> None:
    """Refuse to promise float32 on a GPU whose libraries are told to use TF32."""
    if os.environ.get(_OVERRIDE, "0") not in ("", "0"):
        raise UsageError(
            f"{_OVERRIDE}={os.environ[_OVERRIDE]} tells NVIDIA's libraries to multiply float32 "
            f"numbers as TF32, whatever a program says: unset it, or {mend}"
        )

"""OpenVINO: the network converted to Intel's inference engine, which runs on any x86 or ARM CPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import Resize, Result, Runtime, Whole
from featx.errors import BackboneError, MissingExtraError

__all__ = ["HINTS", "OpenVinoRuntime", "has_openvino"]

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Precisions that its CPU kernels compute in, by OpenVINO's own names."""


def has_openvino() -> bool:
    """Whether the package is installed; it is not imported."""
    return find_spec("openvino") is not None


class OpenVinoRuntime(Runtime):
    """Runs a converted network.

    Two batches may be under way: the next one begins as soon as the last is computed,
    whatever Python is doing.
    """

    n_under_way = 1

    def __init__(
        self,
        group: BackboneGroup,
        precision: str,
        dtype: torch.dtype,
        *,
        n_rows: int,
        n_threads: int,
    ) -> None:
        if not has_openvino():
            raise MissingExtraError("openvino", "openvino", "--runtime openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": n_threads,
        }
        self._model = _converted(group, dtype, n_rows, settings)
        self._idle: list[Any] = []
        self._n_outputs = len(group)

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        array = (pixels if resize is None else resize(pixels)).numpy()
        request.start_async([array], share_inputs=True)
        return partial(self._fetch, request, array)

    def _fetch(self, request: Any, array: np.ndarray) -> list[np.ndarray]:
        """Wait for a request; it reads the very bytes of `array`, which is held until then."""
        del array
        request.wait()
        outputs = [np.array(request.get_output_tensor(i).data) for i in range(self._n_outputs)]
        self._idle.append(request)
        return outputs

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the converted network alone, see `Runtime.bare`."""
        request, array = self._model.create_infer_request(), pixels.numpy()
        return lambda: request.infer([array], share_inputs=True, share_outputs=True)


@cache
def _core() -> Any:
    """Give the one core of this process.

    Each sets a stack for signals of the main thread, and puts back the one before when it is
    gone: of two, the first to go leaves the freed stack of the other, and the next signal
    (a worker that ends) kills the process. Seen with OpenVINO 2026.4.
    """
    import openvino

    return openvino.Core()


def _converted(
    group: BackboneGroup, dtype: torch.dtype, n_rows: int, settings: dict[str, Any]
) -> Any:
    import openvino

    side = group.preprocessing.crop_px
    example = torch.zeros((1, side, side, 3), dtype=torch.uint8)
    whole = Whole(group, dtype).eval()
    shape = openvino.PartialShape([n_rows, side, side, 3])
    try:
        with torch.no_grad(), _quiet():
            model = openvino.convert_model(whole, example_input=example, input=[shape])
            return _core().compile_model(model, "CPU", settings)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise BackboneError(
            f"{group[0].name} cannot be converted to OpenVINO: {reason}. Say --runtime torch"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every Python number; the features are compared with others' instead."""
    logger = logging.getLogger("openvino")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""OpenVINO: the network converted to Intel's inference engine, which runs on any x86 or ARM CPU."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import Resize, Result, Runtime, Whole
from featx.engines.runtimes.forms import Form, FormMemory, raced
from featx.errors import BackboneError, MissingExtraError

__all__ = ["HINTS", "OpenVinoRuntime", "core", "has_openvino"]

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Precisions that its CPU kernels compute in, by OpenVINO's own names."""

_LEAST_BATCHES = 64  # runs of fewer end soon after the race


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
            "INFERENCE_NUM_THREADS": n_threads,
        }
        self._network = _Network(group, dtype, n_rows, settings)
        self._forms = Form.choices(n_rows, n_threads)
        self.memory = FormMemory(_circumstances(group, dtype, n_rows, settings))
        known = self.memory.recall()
        self.is_settled = known in self._forms or len(self._forms) == 1
        form = known if known in self._forms else self._forms[0]
        self._program = self._network.compiled(form)
        self._race: Iterator[_Program] | None = None

    @property
    def form(self) -> Form:
        """How batches are computed."""
        return self._program.form

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`."""
        array = (pixels if resize is None else resize(pixels)).numpy()
        if self.n_expected >= _LEAST_BATCHES and not self.is_settled:
            self._race = self._race or self._raced(array)
            self._program = next(self._race, self._program)  # one that an error ended is over
            if self.is_settled:
                self._race = None  # with the programs that lost
        return self._program.start(array)

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the converted network alone, see `Runtime.bare`."""
        array = pixels.numpy()
        waiting = deque(self._program.start(array) for _ in range(self.n_under_way))

        def run() -> None:
            waiting.append(self._program.start(array))
            waiting.popleft()()

        return run

    def _raced(self, array: np.ndarray) -> Iterator[_Program]:
        """Give the program of each batch to come: in turns, until the fastest is known.

        Only those take part whose features of a real batch are the usual ones to the bit.
        """
        usual, *others = self._forms
        programs = {usual: self._program}
        wanted = self._program.start(array)()
        for form in others:
            with suppress(BackboneError):  # some networks come in one size of batch only
                program = self._network.compiled(form)
                if all(map(np.array_equal, program.start(array)(), wanted)):
                    programs[form] = program
        best = yield from raced(list(programs.values()))
        self.is_settled = True
        self.memory.keep(best.form)
        yield best


def _circumstances(
    group: BackboneGroup, dtype: torch.dtype, n_rows: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect everything that the best form, or the bits of features, may depend on."""
    return {
        "version": 1,
        "openvino": version("openvino"),
        "network": [backbone.identity() for backbone in group],
        "dtype": str(dtype),
        "n_rows": n_rows,
        "settings": dict(settings),
        "processor": str(core().get_property("CPU", "FULL_DEVICE_NAME")),
        "can": sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }


class _Batch:
    """A batch under way: the network reads and writes its very arrays, which stay until then."""

    def __init__(self, requests: list[Any], array: np.ndarray, rows: list[np.ndarray]) -> None:
        self.requests, self._array, self.rows = requests, array, rows

    def wait(self) -> None:
        """Wait until it is computed."""
        for request in self.requests:
            request.wait()

    def __del__(self) -> None:
        with suppress(Exception):  # nobody asks for it any more
            self.wait()


class _Program:
    """A network compiled in one form."""

    def __init__(self, model: Any, form: Form) -> None:
        self._model, self.form = model, form
        self._under_way: WeakSet[_Batch] = WeakSet()
        self._idle: list[Any] = [model.create_infer_request()]
        outputs = [self._idle[0].get_output_tensor(i).data for i in range(len(model.outputs))]
        self._rows = [(array.shape[1:], array.dtype) for array in outputs]

    def start(self, array: np.ndarray) -> Result:
        """Begin with a batch, in as many requests as it takes."""
        array, n = np.ascontiguousarray(array), self.form.n_rows
        rows = [np.empty((len(array), *shape), dtype) for shape, dtype in self._rows]
        parts = range(0, len(array), n)
        requests = [self._idle.pop() if self._idle else self._request() for _ in parts]
        batch = _Batch(requests, array, rows)
        self._under_way.add(batch)
        for request, low in zip(requests, parts, strict=True):
            request.set_input_tensor(_shared(array[low : low + n]))
            for i, features in enumerate(rows):
                request.set_output_tensor(i, _shared(features[low : low + n]))
            request.start_async()
        return partial(self._fetch, batch)

    def wait(self) -> None:
        """Wait for all batches that were begun."""
        for batch in self._under_way:
            batch.wait()

    def _request(self) -> Any:
        return self._model.create_infer_request()

    def _fetch(self, batch: _Batch) -> list[np.ndarray]:
        batch.wait()
        self._under_way.discard(batch)
        self._idle += batch.requests
        batch.requests = []
        return batch.rows


def _shared(array: np.ndarray) -> Any:
    return _openvino().Tensor(array, shared_memory=True)


class _Network:
    """A network converted for batches of one size; each form is compiled from it."""

    def __init__(
        self, group: BackboneGroup, dtype: torch.dtype, n_rows: int, settings: Mapping[str, Any]
    ) -> None:
        self._name, self._settings, self._n_rows = group[0].name, settings, n_rows
        self._side = group.preprocessing.crop_px
        with self._errors_named():
            self._model = self._converted(Whole(group, dtype).eval())

    def _converted(self, whole: Whole) -> Any:
        openvino = _openvino()
        side = self._side
        example = torch.zeros((1, side, side, 3), dtype=torch.uint8)
        shape = openvino.PartialShape([self._n_rows, side, side, 3])
        with torch.no_grad(), _quiet():
            return openvino.convert_model(whole, example_input=example, input=[shape])

    def compiled(self, form: Form) -> _Program:
        """Compile for one form."""
        with self._errors_named():
            model = self._model
            if form.n_rows != self._n_rows:
                model = model.clone()
                model.reshape([form.n_rows, self._side, self._side, 3])
            settings = {**self._settings, "PERFORMANCE_HINT": form.hint}
            return _Program(core().compile_model(model, "CPU", settings), form)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            raise BackboneError(
                f"{self._name} cannot be converted to OpenVINO: {reason}. Say --runtime torch"
            ) from error


@cache
def core() -> Any:
    """Give the one core of this process.

    Each sets a stack for signals of the main thread, and puts back the one before when it is
    gone: of two, the first to go leaves the freed stack of the other, and the next signal
    (a worker that ends) kills the process. Seen with OpenVINO 2026.4.
    """
    return _openvino().Core()


@cache
def _openvino() -> Any:
    """Import it without the part that reports each conversion to its makers."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


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

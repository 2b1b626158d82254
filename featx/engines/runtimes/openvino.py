"""OpenVINO: the network converted to Intel's inference engine, which runs on any x86 or ARM CPU."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import torch

from featx.atomic import replace_text
from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import Resize, Result, Runtime, Whole
from featx.errors import BackboneError, MissingExtraError
from featx.fingerprint import fingerprint
from featx.records import parse_json
from featx.sources.places import default_data_dir

__all__ = ["HINTS", "Form", "FormMemory", "OpenVinoRuntime", "has_openvino"]

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Precisions that its CPU kernels compute in, by OpenVINO's own names."""

_LEAST_BATCHES = 256  # runs of fewer do not repay the measuring
_MOST_SECONDS = 5.0  # of measuring
_N_TIMED, _N_TURNS = 2, 3  # batches of a form in a turn, as many as are under way; turns
_WORTH = 0.97  # of the usual form's time: less of a gain is noise


def has_openvino() -> bool:
    """Whether the package is installed; it is not imported."""
    return find_spec("openvino") is not None


@dataclass(frozen=True)
class Form:
    """A way to compute a batch: so many images a request, requests one by one or side by side."""

    hint: str
    n_rows: int

    @classmethod
    def choices(cls, n_rows: int, n_threads: int) -> list[Form]:
        """Give the ways that a machine has, the usual one first.

        One request side by side with others has a share of the cores, and of the memory.
        """
        n_parts = next(
            n for n in range(1, n_rows + 1) if n >= min(n_rows, n_threads) and n_rows % n == 0
        )
        usual = cls("LATENCY", n_rows)
        if n_parts == 1:
            return [usual]
        return [usual, cls("LATENCY", n_rows // n_parts), cls("THROUGHPUT", n_rows // n_parts)]


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
        self._is_settled = known in self._forms or len(self._forms) == 1
        form = known if known in self._forms else self._forms[0]
        self._program = self._network.compiled(form)

    @property
    def form(self) -> Form:
        """How batches are computed."""
        return self._program.form

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`."""
        array = (pixels if resize is None else resize(pixels)).numpy()
        if self.n_expected >= _LEAST_BATCHES and not self._is_settled:
            self._settle(array)
        return self._program.start(array)

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the converted network alone, see `Runtime.bare`."""
        array = pixels.numpy()
        waiting = deque(self._program.start(array) for _ in range(self.n_under_way))

        def run() -> None:
            waiting.append(self._program.start(array))
            waiting.popleft()()

        return run

    def _settle(self, array: np.ndarray) -> None:
        """Take the form that computes a real batch fastest, of those with the same features."""
        self._is_settled = True
        usual, *others = self._forms
        wanted = self._program.start(array)()
        seconds = _seconds(self._program, array)
        if seconds * len(self._forms) * _N_TURNS > _MOST_SECONDS:
            return
        programs = {usual: self._program}
        for form in others:
            with suppress(BackboneError):  # some networks come in one size of batch only
                program = self._network.compiled(form)
                if all(map(np.array_equal, program.start(array)(), wanted)):
                    programs[form] = program
        turns = [
            {form: _seconds(program, array) for form, program in programs.items()}
            for _ in range(_N_TURNS)
        ]
        shares = {form: median(turn[form] / turn[usual] for turn in turns) for form in programs}
        best = min(shares, key=shares.__getitem__)
        self._program = programs[best if shares[best] < _WORTH else usual]
        self.memory.keep(self.form)


def _seconds(program: _Program, array: np.ndarray) -> float:
    """Time two batches, both under way, as in a run."""
    began = time.perf_counter()
    results = [program.start(array) for _ in range(_N_TIMED)]
    for result in results:
        result()
    return time.perf_counter() - began


class FormMemory:
    """Which form was the fastest, in a file for each network, size and machine."""

    def __init__(self, circumstances: Mapping[str, Any]) -> None:
        self._key = fingerprint(circumstances)
        self.path = default_data_dir() / "openvino" / f"{self._key[:32]}.json"

    def recall(self) -> Form | None:
        """Give what was kept; None where nothing is, or the file is damaged or another's."""
        try:
            record = parse_json(self.path.read_bytes())
            form = Form(record["hint"], record["n_rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return form if record == self._sealed(form) else None

    def keep(self, form: Form) -> None:
        """Remember a form; a disk that refuses is no error."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, json.dumps(self._sealed(form)) + "\n")

    def _sealed(self, form: Form) -> dict[str, Any]:
        record = {"key": self._key, **asdict(form)}
        return {**record, "sha256": fingerprint(record)}


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
        "processor": str(_core().get_property("CPU", "FULL_DEVICE_NAME")),
        "can": sorted(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }


class _Program:
    """A network compiled in one form."""

    def __init__(self, model: Any, form: Form) -> None:
        self._model, self.form = model, form
        self._idle: list[Any] = []

    def start(self, array: np.ndarray) -> Result:
        """Begin with a batch, in as many requests as it takes."""
        n = self.form.n_rows
        parts = [array[low : low + n] for low in range(0, len(array), n)]
        requests = [self._idle.pop() if self._idle else self._request() for _ in parts]
        for request, part in zip(requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        return partial(self._fetch, requests, array)

    def _request(self) -> Any:
        return self._model.create_infer_request()

    def _fetch(self, requests: Sequence[Any], array: np.ndarray) -> list[np.ndarray]:
        """Wait for requests; they read the very bytes of `array`, which is held until then."""
        del array
        for request in requests:
            request.wait()
        outputs = [
            np.concatenate([request.get_output_tensor(i).data for request in requests])
            for i in range(len(self._model.outputs))
        ]
        self._idle += requests
        return outputs


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
        import openvino

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
            return _Program(_core().compile_model(model, "CPU", settings), form)

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
def _core() -> Any:
    """Give the one core of this process.

    Each sets a stack for signals of the main thread, and puts back the one before when it is
    gone: of two, the first to go leaves the freed stack of the other, and the next signal
    (a worker that ends) kills the process. Seen with OpenVINO 2026.4.
    """
    import openvino

    return openvino.Core()


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

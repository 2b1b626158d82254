"""Where matrices are computed: by their rows, and by what a device has free."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from head_data import features

from featx.heads import FitOptions, device, get_head, rowspace
from featx.heads.device import CPU, LEAST_ROWS, HostMatrix, TorchMatrix, device_for, on_device
from featx.heads.rowspace import Pool, RowSpace

# torch's CPU, by the path of a GPU.
STAND_IN = "cpu:0"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stand-in be what `auto` finds."""
    monkeypatch.setattr(device, "choose_device", lambda name="auto": STAND_IN)


def only(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_free_bytes", lambda name: free)


def everything(X: np.ndarray, name: str, told: list[str]) -> RowSpace:
    return RowSpace(Pool(X, name, told.append), np.arange(len(X)))


@pytest.mark.usefixtures("gpu")
def test_few_rows_stay_on_the_cpu_unless_a_device_is_named() -> None:
    assert device_for("auto", LEAST_ROWS - 1) == CPU
    assert device_for("auto", LEAST_ROWS) == STAND_IN
    assert device_for(STAND_IN, 2) == STAND_IN
    assert device_for(CPU, 10**6) == CPU


@pytest.mark.parametrize("least", [50, 61])
@pytest.mark.usefixtures("gpu")
def test_auto_decides_for_each_matrix(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LEAST_ROWS", least)
    made: list[tuple[int, ...]] = []
    whole = TorchMatrix.__init__

    def seen(self: TorchMatrix, values: np.ndarray, *others: Any) -> None:
        made.append(values.shape)
        whole(self, values, *others)

    monkeypatch.setattr(TorchMatrix, "__init__", seen)
    X, y = features(60, 300, 3, noise=4.0)
    there = get_head("svm").fit(everything(X, "auto", []), y, FitOptions(folds=3))
    # The whole of it, and not the folds of 40 rows.
    assert set(made) == ({(60, 60)} if least == 50 else set())
    within = get_head("svm").fit(RowSpace.of(X), y, FitOptions(folds=3))
    assert there.cv is not None
    assert within.cv is not None
    assert there.cv.accuracy == within.cv.accuracy


@pytest.mark.parametrize("head", ["svm", "ridge"])
def test_what_does_not_fit_on_the_device_is_computed_here_and_told_once(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = features(60, 300, 3, noise=4.0)
    only(1000, monkeypatch)
    monkeypatch.setattr(TorchMatrix, "__init__", None)
    told: list[str] = []
    there = get_head(head).fit(everything(X, STAND_IN, told), y, FitOptions(scale="standard"))
    (sentence,) = told
    assert f"60 rows needs 0.3 GB of the memory of {STAND_IN}, 0.0 GB are free" in sentence
    assert sentence.endswith("computed on the CPU")
    within = get_head(head).fit(RowSpace.of(X), y, FitOptions(scale="standard"))
    assert np.array_equal(there.model.decision_function(X), within.model.decision_function(X))


def test_the_room_that_is_asked_for_is_that_of_the_matrix_and_of_solving() -> None:
    asked: list[tuple[int, int]] = []

    class Watched(Pool):
        def on_device(self, work: Any, n_rows: int, n_bytes: int) -> Any:
            asked.append((n_rows, n_bytes))
            return super().on_device(work, n_rows, n_bytes)

    X, y = features(60, 300, 3, noise=4.0)
    get_head("svm").fit(RowSpace(Watched(X), np.arange(60)), y, FitOptions(C=1.0))
    gram, *others = asked
    assert gram == (60, 60**2 * 8 + 4 * rowspace._BLOCK_BYTES)
    # Two choices of rows and columns as they are, one in float64, and its factor.
    assert set(others) <= {(60, 60**2 * (3 * size + 16)) for size in (4, 8)}
    assert others


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_others_may_take_the_memory_in_the_meantime(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, _ = features(60, 300, 3)
    only(10**12, monkeypatch)
    told: list[str] = []
    n_sent = []

    def send(self: Any, block: np.ndarray) -> None:
        n_sent.append(len(block))
        raise error

    monkeypatch.setattr(device._Ferry, "send", send)
    found = everything(X, STAND_IN, told).gram
    assert np.array_equal(found, RowSpace.of(X).gram)
    assert n_sent == [60]
    assert told == [
        f"a matrix of 60 rows does not fit into the memory of {STAND_IN}: it is computed on the CPU"
    ]
    monkeypatch.setattr(
        TorchMatrix, "_solve", lambda *given: (_ for _ in ()).throw(error), raising=True
    )
    matrix, rows = found + np.eye(60), np.arange(5, 50)
    args = rows, np.ones(45), np.ones((45, 2))
    assert np.array_equal(
        TorchMatrix(matrix, STAND_IN, told.append).solve(*args), HostMatrix(matrix).solve(*args)
    )
    assert "45 rows" in told[1]


def test_other_errors_are_passed_on() -> None:
    def fail(name: str) -> None:
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    with pytest.raises(RuntimeError, match="same dtype"):
        on_device(STAND_IN, fail, n_rows=5, n_bytes=1)


@pytest.mark.parametrize("scale", ["none", "l2", "standard", "power"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_blocks_are_sent_as_they_are_stored_and_scaled_there(
    dtype: Any, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rowspace, "_BLOCK_BYTES", 8 * 40 * 13)
    sent: list[tuple[Any, tuple[int, ...]]] = []
    send = device._Ferry.send

    def seen(self: Any, block: np.ndarray) -> Any:
        sent.append((block.dtype, block.shape))
        return send(self, block)

    monkeypatch.setattr(device._Ferry, "send", seen)
    X, _ = features(40, 500, 4, dtype=dtype)
    X -= dtype(0.5)  # signs
    X.flags.writeable = False
    some = np.array([i for i in range(40) if i % 3])
    there, within = (RowSpace(Pool(X, name), some).scaled(scale).gram for name in (STAND_IN, CPU))
    assert np.abs(there - within).max() <= 1e-13 * np.abs(within).max()
    n_rows = len(some) if scale == "standard" else 40
    assert {kind for kind, _ in sent} == {np.dtype(dtype)}
    assert {shape[0] for _, shape in sent} == {n_rows}
    assert sum(shape[1] for _, shape in sent) == 500


@pytest.mark.gpu
@pytest.mark.parametrize("scale", ["none", "standard", "power"])
def test_blocks_on_their_way_to_a_gpu_are_not_overwritten(scale: str) -> None:
    X, _ = features(1200, 20_000, 4, dtype=np.float16)
    there, within = (
        RowSpace(Pool(X, name), np.arange(1200)).scaled(scale).gram for name in ("cuda", CPU)
    )
    assert np.abs(there - within).max() <= 1e-12 * np.abs(within).max()

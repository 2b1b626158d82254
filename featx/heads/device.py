"""Where products of matrices are computed: in NumPy, or on a GPU through torch.

All vectors of the solver stay in NumPy; what grows with the square of the rows, or with rows
times features, is on the device, where the device has room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from featx.devices import AUTO, CPU
from featx.devices import find_device as choose_device
from featx.heads.scaling import POWER, UNSCALED, Scaling, Scratch, copy_rows
from featx.memory import available_bytes, is_out_of_memory

__all__ = [
    "AUTO",
    "CPU",
    "LEAST_ROWS",
    "HostMatrix",
    "Matrix",
    "choose_device",
    "device_for",
    "gram_of",
    "matrix_on",
    "on_device",
]

T = TypeVar("T")
Floats = NDArray[Any]

LEAST_ROWS = 1000
"""With fewer rows ``auto`` takes the cores of this machine: starting CUDA, and copying to and fro,
takes longer than the products. An estimate, not measured on a GPU."""

# Of the free memory of a GPU, for one matrix and what is made of it.
_SHARE = 0.9
_TILE = 1024


class Matrix(Protocol):
    """A matrix that is multiplied many times."""

    @property
    def is_on_host(self) -> bool:
        """Whether the cores of this machine do the work."""

    def times(self, v: Floats) -> Floats:
        """Give A v, (n_rows, m)."""

    def pull(self, s: Floats) -> Floats:
        """Give A^T s, (n_columns, m)."""

    def solve(self, rows: NDArray[np.int64], ridge: Floats, right: Floats) -> Floats:
        """Solve (A[rows, rows] + diag(ridge)) x = right in float64; A is symmetric."""


class HostMatrix:
    """A matrix in memory."""

    is_on_host = True

    def __init__(self, values: Floats) -> None:
        self.values = values

    def times(self, v: Floats) -> Floats:
        """Give A v."""
        return np.asarray(self.values @ v)

    def pull(self, s: Floats) -> Floats:
        """Give A^T s."""
        return np.asarray(self.values.T @ s)

    def solve(self, rows: NDArray[np.int64], ridge: Floats, right: Floats) -> Floats:
        """Solve for some rows and columns, by Cholesky's factorisation."""
        matrix = self.values[np.ix_(rows, rows)].astype(np.float64)
        matrix[np.diag_indices_from(matrix)] += ridge
        # Symmetric: the transpose is what LAPACK can overwrite.
        factor = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        return np.asarray(cho_solve(factor, right, check_finite=False))


class TorchMatrix:
    """A matrix on a device of torch."""

    is_on_host = False

    def __init__(
        self, values: Floats, device: str, tell: Callable[[str], object] | None = None
    ) -> None:
        from featx.arithmetic import refuse_forced_tf32

        if device.startswith("cuda"):
            refuse_forced_tf32("choose --device cpu")
        self.values, self.device, self.tell = _tensor(values, device), device, tell

    def times(self, v: Floats) -> Floats:
        """Give A v."""
        with _true_float32():
            return np.asarray((self.values @ _tensor(v, self.device)).cpu().numpy())

    def pull(self, s: Floats) -> Floats:
        """Give A^T s."""
        with _true_float32():
            return np.asarray((self.values.T @ _tensor(s, self.device)).cpu().numpy())

    def solve(self, rows: NDArray[np.int64], ridge: Floats, right: Floats) -> Floats:
        """Solve for some rows and columns, by Cholesky's factorisation."""

        def work(device: str) -> Floats:
            if device != CPU:
                return self._solve(rows, ridge, right)
            return HostMatrix(self.values.cpu().numpy()).solve(rows, ridge, right)

        return _or_on_host(work, self.device, f"a solution for {len(rows):,} rows", self.tell)

    def _solve(self, rows: NDArray[np.int64], ridge: Floats, right: Floats) -> Floats:
        import torch

        index = _tensor(rows, self.device)
        matrix = self.values[index][:, index].double()
        matrix.diagonal().add_(_tensor(ridge, self.device))
        factor = torch.linalg.cholesky(matrix)
        return np.asarray(torch.cholesky_solve(_tensor(right, self.device), factor).cpu().numpy())


def matrix_on(device: str, values: Floats, tell: Callable[[str], object] | None = None) -> Matrix:
    """Put a matrix where it will be multiplied."""
    return HostMatrix(values) if device == CPU else TorchMatrix(values, device, tell)


def gram_of(
    device: str, n_rows: int, blocks: Iterable[NDArray[Any]], scaling: Scaling = UNSCALED
) -> Floats:
    """Gram matrix in float64, from the rows by blocks of columns.

    float64 throughout. float32 products of blocks, summed in float64, take half as long, but are
    wrong by 6e-8 of the largest entry and 7e-9 of the mean squared norm (root mean square; 1,000 x
    86,528 features, blocks of 256 columns or 2,048). No bound on decision values follows: an error
    E of the matrix changes them by E a, where the numbers a grow with the penalty and with 1 over
    the smallest eigenvalues, and directions in which no rows differ, whose eigenvalues are 1e-13 of
    the largest, are no longer told from others (`RowSpace.centred`, whitening).

    Blocks go to a device as they are stored, and are converted and scaled there.
    """
    if device != CPU:
        return _gram_there(device, n_rows, blocks, scaling)
    # In place, one triangle alone: `+=` would need the matrix twice.
    out, start, scratch = np.zeros((n_rows, n_rows), order="F"), 0, Scratch()
    for block in blocks:
        columns = slice(start, start + block.shape[1])
        values = scaling.centred(block, columns, scratch=scratch)
        out = dsyrk(1.0, values.T, beta=1.0, c=out, trans=1, lower=1, overwrite_c=1)
        start += block.shape[1]
    _mirror(out)
    return out.T


def _gram_there(
    device: str, n_rows: int, blocks: Iterable[NDArray[Any]], scaling: Scaling
) -> Floats:
    import torch

    total = torch.zeros((n_rows, n_rows), dtype=torch.float64, device=device)
    moments = [None if m is None else _tensor(m, device) for m in (scaling.mean, scaling.std)]
    ferry, start = _Ferry(device), 0
    for block in blocks:
        values, columns = ferry.send(block).double(), slice(start, start + block.shape[1])
        # As `Scaling.centred` does it.
        if scaling.name == POWER:
            values = values.sign() * values.abs().sqrt()
        mean, std = moments
        if mean is not None and std is not None:
            values.sub_(mean[columns]).div_(std[columns])
        total.addmm_(values, values.T)
        start = columns.stop
    return np.asarray(total.cpu().numpy())


class _Ferry:
    """Copies blocks to a device through two pinned buffers, without waiting for the last copy."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._turn, self._buffers = 0, [torch.empty(0), torch.empty(0)]
        is_cuda = self._device.type == "cuda"
        self._copied = [_event(), _event()] if is_cuda else []

    def send(self, block: NDArray[Any]) -> Any:
        """Give the block on the device, or what will be it when the device comes to it."""
        import torch

        if not self._copied:
            return torch.from_numpy(block.copy())
        self._turn = turn = 1 - self._turn
        self._copied[turn].synchronize()  # the copy before the last
        dtype = torch.from_numpy(np.empty(0, block.dtype)).dtype
        if self._buffers[turn].dtype != dtype or self._buffers[turn].numel() < block.size:
            self._buffers[turn] = torch.empty(block.size, dtype=dtype, pin_memory=True)
        pinned = self._buffers[turn][: block.size].view(block.shape)
        copy_rows(block, pinned.numpy())
        there = pinned.to(self._device, non_blocking=True)
        self._copied[turn].record(torch.cuda.current_stream(self._device))
        return there


def _mirror(matrix: Floats) -> None:
    """Copy the lower triangle to the upper one."""
    for start in range(0, len(matrix), _TILE):
        stop = start + _TILE
        tile = matrix[start:stop, start:stop]
        tile += np.tril(tile, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T


def _true_float32() -> AbstractContextManager[None]:
    from featx.arithmetic import true_float32

    return true_float32()


def _event() -> Any:
    import torch

    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def device_for(name: str, n_rows: int) -> str:
    """Choose a device for work on so many rows."""
    if name != AUTO:
        return name
    return CPU if n_rows < LEAST_ROWS else choose_device(AUTO)


def on_device(
    name: str,
    work: Callable[[str], T],
    *,
    n_rows: int,
    n_bytes: int,
    tell: Callable[[str], object] | None = None,
) -> T:
    """Do work on a device that has room for it, else on the CPU, and say so."""
    device = device_for(name, n_rows)
    if device == CPU:
        return work(CPU)
    free, what = _free_bytes(device), f"a matrix of {n_rows:,} rows"
    if n_bytes <= _SHARE * free:
        return _or_on_host(work, device, what, tell)
    if tell is not None:
        needed = f"{n_bytes / 1e9:.1f} GB of the memory of {device}, {free / 1e9:.1f} GB are free"
        tell(f"{what} needs {needed}: it is computed on the CPU")
    return work(CPU)


def _or_on_host(
    work: Callable[[str], T], device: str, what: str, tell: Callable[[str], object] | None
) -> T:
    try:
        return work(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if tell is not None:
        tell(f"{what} does not fit into the memory of {device}: it is computed on the CPU")
    return work(CPU)


def _free_bytes(device: str) -> int:
    import torch

    if torch.device(device).type != "cuda":
        return available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use is free too.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _tensor(values: Floats, device: str) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)

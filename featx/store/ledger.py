"""Which rows of a run are written, which are durable, which failed."""

from __future__ import annotations

import time
import zlib
from typing import Final

import numpy as np

from featx.store import layout
from featx.store.journal import Range

__all__ = ["Ledger"]

_GROUP_BYTES: Final = 8 << 20
_GROUP_SECONDS: Final = 5.0


class Ledger:
    """The state of each row of a run.

    Parameters
    ----------
    n_rows : int
        Number of images.

    Attributes
    ----------
    status : numpy.ndarray
        Shape (N,), uint8, of all rows written, durable or not.
    is_committed : numpy.ndarray
        Shape (N,), bool: durable and in the journal.
    failed : dict of int to str
        Rows without features, with reasons.
    pending : list of Range
        Rows written since the last commit.
    """

    def __init__(self, n_rows: int) -> None:
        self.status = np.zeros(n_rows, "u1")
        self.is_committed = np.zeros(n_rows, bool)
        self.failed: dict[int, str] = {}
        self.pending: list[Range] = []
        self._pending_bytes = 0
        self._committed_at = time.monotonic()

    @property
    def n_committed(self) -> int:
        """Number of durable rows."""
        return int(np.count_nonzero(self.is_committed))

    @property
    def is_due(self) -> bool:
        """Whether enough was written, or enough time went by, for a commit."""
        is_late = time.monotonic() - self._committed_at >= _GROUP_SECONDS
        return self._pending_bytes >= _GROUP_BYTES or is_late

    def adopt(self, item: Range) -> None:
        """Count rows that an earlier run made durable."""
        self._note(item)
        self.is_committed[item.start : item.stop] = True

    def queue(self, item: Range, data: memoryview) -> None:
        """Count rows that were written just now, whose bytes are `data`."""
        self._note(item)
        self._pending_bytes += len(data)
        last = self.pending[-1] if self.pending else None
        if last is None or last.stop != item.start:
            self.pending.append(item)
            return
        last.crc = zlib.crc32(data, last.crc)
        last.stop = item.stop
        last.failed.update(item.failed)

    def start_commit(self) -> bool:
        """Begin a new group; say whether the old one has rows."""
        self._committed_at = time.monotonic()
        return bool(self.pending)

    def end_commit(self) -> None:
        """Count all pending rows as durable."""
        for item in self.pending:
            self.is_committed[item.start : item.stop] = True
        self.pending, self._pending_bytes = [], 0

    def _note(self, item: Range) -> None:
        self.status[item.start : item.stop] = layout.DONE
        self.status[list(item.failed)] = layout.FAILED
        self.failed.update(item.failed)

"""Which rows of a run are written, which are durable, which failed."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from featx.store import layout
from featx.store.journal import Range

__all__ = ["Ledger"]

_GROUP_BYTES: Final = 128 << 20
_GROUP_SECONDS: Final = 1.0


class Ledger:
    """The state of each row of a run."""

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

    def queue(self, item: Range, n_bytes: int) -> Range:
        """Count rows that were written just now."""
        self._note(item)
        self._pending_bytes += n_bytes
        last = self.pending[-1] if self.pending else None
        if last is None or last.stop != item.start:
            self.pending.append(item)
            return item
        last.stop = item.stop
        last.failed.update(item.failed)
        return last

    def take_group(self) -> list[Range]:
        """Begin a new group; give the ranges of the old one, which may be none."""
        self._committed_at = time.monotonic()
        group, self.pending, self._pending_bytes = self.pending, [], 0
        return group

    def end_commit(self, group: list[Range]) -> None:
        """Count the rows of a group as durable."""
        for item in group:
            self.is_committed[item.start : item.stop] = True

    def _note(self, item: Range) -> None:
        self.status[item.start : item.stop] = layout.DONE
        self.status[list(item.failed)] = layout.FAILED
        self.failed.update(item.failed)

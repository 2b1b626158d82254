"""What an extraction did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featx.extract.times import StageTimes
from featx.text import count_of, size_text

__all__ = ["ExtractReport"]


@dataclass(frozen=True)
class ExtractReport:
    """What one extraction did."""

    path: Path
    n_images: int
    n_features: int
    dtype: str
    n_computed: int
    n_failed: int
    seconds: float
    n_bytes: int
    times: StageTimes | None = None
    n_reused: int = 0

    def __str__(self) -> str:
        done = "was complete already"
        if self.n_computed:
            done = f"{count_of(self.n_computed, 'image')} in {self.seconds:.1f} s"
        elif self.n_reused:
            rows = count_of(self.n_reused, "row")
            done = f"{rows} taken from the file that was there, nothing computed"
        size = f"{self.n_images:,} x {self.n_features:,} {self.dtype}"
        return f"{self.path}: {size}, {size_text(self.n_bytes)}, {done}"

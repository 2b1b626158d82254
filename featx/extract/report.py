"""What an extraction did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featx.extract.times import StageTimes

__all__ = ["ExtractReport"]


@dataclass(frozen=True)
class ExtractReport:
    """What one extraction did.

    Parameters
    ----------
    path : Path
        The cache file.
    n_images : int
        Rows in it.
    n_features : int
        Values in each.
    dtype : str
        Their type.
    n_computed : int
        Rows computed by this run; the others were there before.
    n_failed : int
        Images that could not be read.
    seconds : float
        Wall time of this run.
    n_bytes : int
        Size of the file.
    times : StageTimes, optional
        Where the time went; None where nothing was computed.
    """

    path: Path
    n_images: int
    n_features: int
    dtype: str
    n_computed: int
    n_failed: int
    seconds: float
    n_bytes: int
    times: StageTimes | None = None

    def __str__(self) -> str:
        done = (
            f"{self.n_computed:,} images in {self.seconds:.1f} s"
            if self.n_computed
            else "was complete already"
        )
        size = f"{self.n_images:,} x {self.n_features:,} {self.dtype}"
        return f"{self.path}: {size}, {self.n_bytes / 1e6:,.0f} MB, {done}"

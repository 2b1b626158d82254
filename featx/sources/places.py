"""Where featx keeps what it downloads and what it remembers of data sets."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_data_dir"]


def default_data_dir() -> Path:
    """Give the folder that data sets are downloaded to."""
    chosen = os.environ.get("FEATX_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "featx" / "data"

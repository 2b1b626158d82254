"""A reporter that remembers what it was told."""

from __future__ import annotations

from featx.progress import Reporter


class Log(Reporter):
    """Keeps every line that would be printed."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "lines", [])

    def _print(self, text):
        self.lines.append(text)

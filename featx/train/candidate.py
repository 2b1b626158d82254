"""One training of a search, which an interrupted search need not do again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featx.atomic import replace_text, set_aside
from featx.errors import ProtocolError
from featx.evaluate.records import RecordError, read_record, record_text
from featx.fingerprint import fingerprint
from featx.progress import SILENT, Reporter
from featx.records import ENDING
from featx.stops import check
from featx.train.callbacks import Checkpoint
from featx.train.classifier import NetworkClassifier, Pixels

__all__ = ["Candidate", "read_outcomes"]

_OUTCOMES, _KIND = "outcomes.json", "outcomes of a search"


class Candidate(NetworkClassifier):
    """A classifier that keeps what came of it in a folder, and finds it there."""

    def __init__(
        self, module: Any, *, memory: Path, reporter: Reporter = SILENT, **options: Any
    ) -> None:
        self.memory, self.reporter = memory, reporter
        super().__init__(module, **options)

    @property
    def settings(self) -> dict[str, Any]:
        """What is searched, as plain values, by the names of the options."""
        text = getattr(self, "module__text", None)
        network = {} if text is None else {"network": text}
        return {**network, "optimizer": self.optimizer.name, "lr": float(self.lr)}

    def fit(self, X: Pixels, y: Any = None, **options: Any) -> Self:
        """Train, unless the folder has the outcome; see `NetworkClassifier.fit`."""
        key = fingerprint(self.settings)
        self.outcome_ = _read(self.memory, self.reporter).get(key)
        if self.outcome_ is not None:
            if self.outcome_["accuracy"] is None:
                raise ProtocolError("training diverged, when it was tried before")
            return self
        self.callbacks = [("checkpoint", Checkpoint(self._unfinished, key, self.reporter))]
        try:
            super().fit(X, y, **options)
        except ProtocolError:
            self._remember(None)
            raise
        return self

    def judge(self, X: NDArray[np.uint8], y: NDArray[np.int64]) -> float:
        """Share of right answers on images that were left out."""
        known = self.outcome_ or self._remember(self._accuracy(X, y))
        return float("nan") if known["accuracy"] is None else float(known["accuracy"])

    def _accuracy(self, X: NDArray[np.uint8], y: NDArray[np.int64]) -> float | None:
        try:
            return float((self.predict(X) == y).mean())
        except ProtocolError:
            return None

    def _remember(self, accuracy: float | None) -> dict[str, Any]:
        check()
        seconds = sum(line.get("dur", 0.0) for line in self.history)
        self.outcome_ = {**self.settings, "accuracy": accuracy, "seconds": seconds}
        known = _read(self.memory, self.reporter) | {fingerprint(self.settings): self.outcome_}
        replace_text(self.memory / _OUTCOMES, record_text(_KIND, {"outcomes": known}))
        self._unfinished.unlink(missing_ok=True)
        return self.outcome_

    @property
    def _unfinished(self) -> Path:
        return self.memory / f"candidate{ENDING}"


def read_outcomes(memory: Path) -> list[dict[str, Any]]:
    """Read what came of the candidates of a search."""
    return list(_read(memory, SILENT).values())


def _read(memory: Path, reporter: Reporter) -> dict[str, dict[str, Any]]:
    path = memory / _OUTCOMES
    if not path.exists():
        return {}
    try:
        return dict(read_record(_KIND, path)["outcomes"])
    except RecordError as error:
        kept = f"it is kept as {set_aside(path)} until the search ends"
        reporter.warn(f"{path} is not used: {error}: {kept}, and its settings are tried again")
        return {}

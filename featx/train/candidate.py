"""One training of a search, which an interrupted search need not do again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.fingerprint import fingerprint
from featx.progress import SILENT
from featx.replacing import replace_text
from featx.train.callbacks import Checkpoint
from featx.train.classifier import NetworkClassifier, Pixels

__all__ = ["Candidate", "read_outcomes"]


_OUTCOMES = "outcomes.json"


class Candidate(NetworkClassifier):
    """A classifier that keeps what came of it in a folder, and finds it there.

    Parameters
    ----------
    module : callable or torch.nn.Module
        As `NetworkClassifier` takes it.
    memory : Path
        Folder of one search: of the same images, and the same of everything that is not
        searched. It holds the outcomes of its candidates and the last whole epoch of the one that
        was interrupted.
    **options : object
        As `NetworkClassifier` takes them.

    Attributes
    ----------
    outcome_ : dict or None
        As `read_outcomes` gives it, once it is known.
    """

    def __init__(self, module: Any, *, memory: Path, **options: Any) -> None:
        self.memory = memory
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
        self.outcome_ = _read(self.memory).get(key)
        if self.outcome_ is not None:
            if self.outcome_["accuracy"] is None:
                raise ProtocolError("training diverged, when it was tried before")
            return self
        self.callbacks = [("checkpoint", Checkpoint(self._unfinished, key, SILENT))]
        try:
            super().fit(X, y, **options)
        except ProtocolError:
            self._remember(None)
            raise
        return self

    def judge(self, X: NDArray[np.uint8], y: NDArray[np.int64]) -> float:
        """Share of right answers on images that were left out.

        Parameters
        ----------
        X : ndarray of uint8, shape (n_images, height, width, 3)
            The images.
        y : ndarray of int64, shape (n_images,)
            Their labels.

        Returns
        -------
        float
        """
        known = self.outcome_ or self._remember(float((self.predict(X) == y).mean()))
        return float(known["accuracy"])

    def _remember(self, accuracy: float | None) -> dict[str, Any]:
        seconds = sum(line.get("dur", 0.0) for line in self.history)
        self.outcome_ = {**self.settings, "accuracy": accuracy, "seconds": seconds}
        known = _read(self.memory) | {fingerprint(self.settings): self.outcome_}
        replace_text(self.memory / _OUTCOMES, json.dumps(known, indent=1) + "\n")
        self._unfinished.unlink(missing_ok=True)
        return self.outcome_

    @property
    def _unfinished(self) -> Path:
        return self.memory / "candidate.pt"


def read_outcomes(memory: Path) -> list[dict[str, Any]]:
    """Read what came of the candidates of a search.

    Parameters
    ----------
    memory : Path
        Its folder.

    Returns
    -------
    list of dict
        Settings by the names of the options, ``accuracy`` (None where the training diverged) and
        ``seconds``, as they were tried.
    """
    return list(_read(memory).values())


def _read(memory: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((memory / _OUTCOMES).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # none yet
        return {}

"""Losses and accuracies over the epochs, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featx.atomic import replace_text
from featx.errors import FeatxError

__all__ = ["save_curves", "save_curves_plot"]

_SIZE_INCHES = (10.0, 4.2)
_NAMES = {"train": "training", "valid": "validation"}
_TITLES = {"loss": "loss", "acc": "accuracy"}


def save_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a line an epoch."""
    frame = pd.DataFrame(list(curves)).rename(columns={"dur": "seconds"})
    replace_text(path, frame.to_csv(index=False))


def save_curves_plot(curves: Sequence[Mapping[str, Any]], best_epoch: int, path: Path) -> None:
    """Draw loss and accuracy of the training and the validation part."""
    from matplotlib.figure import Figure

    frame = pd.DataFrame(list(curves))
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2), _TITLES.items(), strict=True):
        for part, name in _NAMES.items():
            if f"{part}_{kind}" in frame:
                axes.plot(frame["epoch"], frame[f"{part}_{kind}"], label=name)
        axes.axvline(best_epoch, color="grey", linestyle=":", label="weights kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise FeatxError(f"cannot write {path}: {error.strerror or error}") from error

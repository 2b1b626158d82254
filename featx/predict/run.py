"""New images through the network and the head, a few hundred at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.progress import SILENT, Reporter

if TYPE_CHECKING:
    from featx.engines import FeatureBatch
    from featx.predict.model import SavedModel
    from featx.predict.network import Network
    from featx.sources import Source

__all__ = ["DONE", "Prediction", "iter_predictions"]

DONE = "done"
_BLOCK_ROWS, _BLOCK_BYTES = 256, 64 << 20


@dataclass(frozen=True)
class Prediction:
    """The classes of one image.

    Parameters
    ----------
    path : str
        Which image.
    status : str
        ``"done"``, or the reason why it could not be read.
    classes : tuple of str
        The likeliest first; empty where it could not be read.
    scores : tuple of float
        Of these classes, from the `decision_function`; of the first of two classes, the
        negative of the second's.
    probabilities : tuple of float or None
        Of these classes; None where the head has none, or the image could not be read.
    """

    path: str
    status: str = DONE
    classes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] | None = None


def iter_predictions(
    saved: SavedModel,
    network: Network,
    source: Source,
    *,
    top: int = 1,
    reporter: Reporter = SILENT,
) -> Iterator[Prediction]:
    """Classify every image of a source."""
    from featx.engines.loader import worker_deaths_named

    engine, backbone = network.engine, network.backbone
    batches = range(-(-len(source) // engine.batch_size))
    row_bytes = backbone.n_features * np.dtype(network.dtype).itemsize
    n_rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))
    waiting: list[FeatureBatch] = []
    label = f"{source.name}, {backbone.name}"
    with worker_deaths_named(), reporter.bar(len(source), label) as bar:
        for batch in engine.run(backbone, source, batches, dtype=network.dtype):
            waiting.append(batch)
            n_waiting = sum(len(part.features) for part in waiting)
            if n_waiting >= n_rows:
                yield from _classify(saved, source, waiting, top)
                waiting = []
            bar.update(len(batch.features))
        if waiting:
            yield from _classify(saved, source, waiting, top)


def _classify(
    saved: SavedModel, source: Source, batches: list[FeatureBatch], top: int
) -> Iterator[Prediction]:
    first = batches[0].start
    features = np.concatenate([batch.features for batch in batches])
    failed = {row: why for batch in batches for row, why in batch.failed.items()}
    is_finite = np.isfinite(features).all(axis=1)
    for row in np.flatnonzero(~is_finite):
        failed.setdefault(first + int(row), f"its features are not finite in {features.dtype}")
    good = np.array([first + i not in failed for i in range(len(features))])
    ranked = iter(_ranked(saved, features[good], top)) if good.any() else iter(())
    for i, is_good in enumerate(good):
        path = source.paths[first + i]
        yield next(ranked)(path) if is_good else Prediction(path, failed[first + i])


@dataclass(frozen=True)
class _Ranked:
    """The classes of one image, whose name is to come."""

    values: Mapping[str, Any]

    def __call__(self, path: str) -> Prediction:
        return Prediction(path, **self.values)


def _ranked(saved: SavedModel, features: NDArray[Any], top: int) -> Iterator[_Ranked]:
    decisions = saved.model.decision_function(features)
    chances = saved.model.probabilities(decisions)
    scores = np.column_stack([-decisions, decisions]) if decisions.ndim == 1 else decisions
    # Stable: the first among equals wins, as in `predict`.
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    names = [saved.class_names[label] for label in saved.classes_]
    for i, places in enumerate(best):
        yield _Ranked(
            {
                "classes": tuple(names[place] for place in places),
                "scores": tuple(scores[i, places].tolist()),
                "probabilities": None if chances is None else tuple(chances[i, places].tolist()),
            }
        )

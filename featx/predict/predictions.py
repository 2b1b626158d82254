"""New images, classified by network and head some hundred at a time, written as a table.

They are files, folders, or what comes through a pipe: one image, or names of images, one a line.
"""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from featx.errors import SourceError, read_error
from featx.progress import SILENT, Reporter
from featx.sources import Source, from_arrays
from featx.sources.archives import is_archive, open_unlabelled
from featx.sources.layout import ENDINGS, ending, is_shown
from featx.sources.manifest import list_paths
from featx.sources.tables import TABLE_ENDINGS

if TYPE_CHECKING:
    from featx.engines import FeatureBatch
    from featx.predict.model import SavedModel
    from featx.predict.network import Network

__all__ = [
    "DONE",
    "FORMATS",
    "Prediction",
    "iter_predictions",
    "open_images",
    "read_pipes",
    "write_table",
]

STANDARD_INPUT = "-"
_MOST_BYTES = 1 << 30
_LOOKED_AT = 1024


def read_pipes(
    words: Sequence[str | os.PathLike[str]],
) -> tuple[list[str | os.PathLike[str]], list[Source]]:
    """Put the names that come through pipes in their place; with a source for each image."""
    plain: list[str | os.PathLike[str]] = []
    images = []
    for word in words:
        came = _read(word) if _is_pipe(word) else [word]
        if isinstance(came, Source):
            images.append(came)
        else:
            plain += came
    return plain, images


def _is_pipe(word: str | os.PathLike[str]) -> bool:
    """Whether a word is standard input, or a pipe that has a name."""
    if os.fspath(word) == STANDARD_INPUT:
        return True
    try:
        mode = Path(word).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _read(word: str | os.PathLike[str]) -> Source | list[str | os.PathLike[str]]:
    """Read a pipe to its end: a source of one image, or the lines."""
    name = os.fspath(word)
    is_input = name == STANDARD_INPUT
    try:
        with nullcontext(sys.stdin.buffer) if is_input else Path(name).open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise read_error(name, error) from error
    if len(content) > _MOST_BYTES:
        raise SourceError(f"{name} gives more than {_MOST_BYTES:,} bytes: save it as files first")
    if not content.strip():
        raise SourceError(f"{name} gives nothing: it takes one image, or names of images")
    # Every format of images has zeros in its first bytes, and no name of a file has any.
    if b"\0" not in content[:_LOOKED_AT]:
        return [os.fsdecode(line) for line in content.splitlines() if line.strip()]
    return replace(from_arrays([content], name="images"), paths=(name,))


DONE = "done"
_BLOCK_ROWS, _BLOCK_BYTES = 256, 64 << 20
FORMATS = ("csv", "json")

_CHANCES = {
    "softmax": "softmax of the scores",
    "shares": "share of the votes of the nearest training images",
}


@dataclass
class _Found:
    """Files in the order in which they were found, without duplicates."""

    files: dict[str, Path] = field(default_factory=dict)
    n_left_out: int = 0

    def add(self, path: Path) -> None:
        # Symbolic links are not resolved: two names are two images.
        self.files.setdefault(os.path.abspath(path), path)  # noqa: PTH100

    def add_folder(self, folder: Path) -> None:
        for path in _walk(folder):
            if ending(path.name) in ENDINGS and is_shown(path.name):
                self.add(path)
            else:
                self.n_left_out += 1


def open_images(
    words: Sequence[str | os.PathLike[str]], *, reporter: Reporter = SILENT
) -> list[tuple[str, Source]]:
    """Find the images of files, folders, archives, tables of paths and pipes."""
    found = _Found()
    plain, piped = read_pipes(words)
    others: list[tuple[str, Source]] = [("", source) for source in piped]
    for word in plain:
        path = Path(word).expanduser()
        if path.is_dir():
            found.add_folder(path)
        elif not path.exists():
            raise SourceError(f"there is no file or folder {str(word)!r}: check its name")
        elif is_archive(path):
            others.append((f"{path}/", open_unlabelled(path, reporter=reporter)))
        elif path.name.lower().endswith(TABLE_ENDINGS):
            for listed in list_paths(path):
                found.add(listed)
        else:
            found.add(path)
    if found.n_left_out:
        reporter.say(f"{found.n_left_out:,} files that are not images are left out")
    if found.files:
        others.insert(0, ("", from_arrays(list(found.files.values()), name="images")))
    if not others:
        raise SourceError(
            f"there are no images in {', '.join(map(str, words))}: in folders, images are files "
            f"that end in {', '.join(sorted(ENDINGS))}"
        )
    return others


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, sorted, without hidden folders and links to folders."""
    for root, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = sorted(name for name in folders if is_shown(name))
        yield from (Path(root, name) for name in sorted(names))


def _fail(error: OSError) -> None:
    raise SourceError(f"cannot list {error.filename!r}: {error.strerror}") from error


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
        The likeliest first; empty if the image could not be read.
    scores : tuple of float
        Scores of these classes, from the `decision_function`. Of two classes, the score of the
        first is the negative of the second's.
    probabilities : tuple of float or None
        Probabilities of these classes; None if the head has none, or the image could not be read.
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
        yield Prediction(path, **next(ranked)) if is_good else Prediction(path, failed[first + i])


def _ranked(saved: SavedModel, features: NDArray[Any], top: int) -> Iterator[dict[str, Any]]:
    """Yield classes, scores and probabilities of each row, the likeliest class first."""
    decisions = saved.model.decision_function(features)
    chances = saved.model.probabilities(decisions)
    scores = np.column_stack([-decisions, decisions]) if decisions.ndim == 1 else decisions
    # A stable sort: the first of equal scores wins, as in `predict`.
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    names = [saved.class_names[label] for label in saved.classes_]
    for i, places in enumerate(best):
        yield {
            "classes": tuple(names[place] for place in places),
            "scores": tuple(scores[i, places].tolist()),
            "probabilities": None if chances is None else tuple(chances[i, places].tolist()),
        }


def write_table(
    stream: TextIO, form: str, saved: SavedModel, predictions: Iterable[Prediction], *, top: int
) -> tuple[int, int]:
    """Write `top` rows for each image; return how many images there were, and how many failed."""
    counts = [0, 0]

    def counted() -> Iterator[Prediction]:
        for prediction in predictions:
            counts[0] += 1
            counts[1] += not prediction.classes
            yield prediction

    write = _write_json if form == "json" else _write_csv
    write(stream, saved, counted(), top)
    return counts[0], counts[1]


def _write_csv(
    stream: TextIO, saved: SavedModel, predictions: Iterator[Prediction], top: int
) -> None:
    names = ["path", "rank", "class", "score", "probability", "status"]
    if not saved.has_probabilities:
        names.remove("probability")
    if top == 1:
        names.remove("rank")
    writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for prediction in predictions:
        common = {"path": prediction.path, "status": prediction.status}
        for row in _classes(prediction) or [{}]:
            writer.writerow(common | row)
        stream.flush()


def _classes(prediction: Prediction) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"rank": i, "class": name, "score": score}
        for i, (name, score) in enumerate(
            zip(prediction.classes, prediction.scores, strict=True), start=1
        )
    ]
    for row, chance in zip(rows, prediction.probabilities or (), strict=False):
        row["probability"] = chance
    return rows


def _write_json(
    stream: TextIO, saved: SavedModel, predictions: Iterator[Prediction], top: int
) -> None:
    del top
    link = getattr(saved.model, "link", "")
    about = {
        "featx": "predictions",
        "model": str(saved.path),
        "fit_id": saved.meta.get("fit_id"),
        "head": saved.meta["head"],
        "class_names": list(saved.class_names),
        "score_is": f"decision score of {saved.meta['head']}; larger is likelier",
        "probability_is": _CHANCES.get(link),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in about.items()]
    stream.write("{\n" + ",\n".join(lines) + ',\n"predictions": [')
    separator = "\n"
    for prediction in predictions:
        row = {"path": prediction.path, "status": prediction.status}
        stream.write(separator + json.dumps(row | {"classes": _classes(prediction)}))
        stream.flush()
        separator = ",\n"
    stream.write("\n]\n}\n")

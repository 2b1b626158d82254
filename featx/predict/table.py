"""Predictions as CSV or JSON, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from featx.predict.run import Prediction

if TYPE_CHECKING:
    from featx.predict.model import SavedModel

__all__ = ["FORMATS", "write_table"]

FORMATS = ("csv", "json")

_CHANCES = {
    "softmax": "softmax of the scores",
    "shares": "share of the votes of the nearest training images",
}


def write_table(
    stream: TextIO, form: str, saved: SavedModel, predictions: Iterable[Prediction], *, top: int
) -> tuple[int, int]:
    """Write one row an image, or `top` of them."""
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

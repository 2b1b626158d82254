"""A cache seen through its neighbours: a map, likely wrong labels, near-duplicates.

As the page of ``featx explore``, and as the table that Embedding Atlas opens.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from featx.atomic import part_of, replace_text
from featx.errors import CacheError, MissingExtraError
from featx.evaluate.near import WIDTH, mean_row, near_within, sketch_rows, unit_length
from featx.heads.base import RowsView, check_finite
from featx.heads.classifier import Classifier
from featx.progress import SILENT, Reporter
from featx.sources.album import Albums, thumbnail_url
from featx.store import Cache
from featx.text import as_utf8

__all__ = ["Neighbourhood", "look_at", "write_atlas", "write_map"]

_NEIGHBOURS = 10
_FOLDS = 5
_HEAD = "lda"
_MAJORITY = 0.5
_MOST_EXACT_BYTES = 1 << 30
_MOST_PREDICTED = 20_000
_UMAP_DIMENSIONS = 50


@dataclass(frozen=True)
class Neighbourhood:
    """Some rows of a cache, each with its place on a map and its nearest neighbours.

    Arrays are of the n rows looked at; neighbours and pairs are positions among them, from 0 to
    n - 1. Classes are numbers, -1 where there is none.
    """

    rows: NDArray[np.int64]  # (n,), rows of the cache
    labels: NDArray[np.int64]  # (n,)
    place: NDArray[np.float64]  # (n, 2)
    neighbours: NDArray[np.int64]  # (n, k), nearest first
    cosines: NDArray[np.float64]  # (n, k), of rows less the mean row
    voted: NDArray[np.int64]  # (n,), class that most neighbours have
    votes: NDArray[np.float64]  # (n,), share of the neighbours that have it
    predicted: NDArray[np.int64]  # (n,), class predicted by a head that was fitted without the row
    margins: NDArray[np.float64]  # (n,), its score less that of the label
    twins: NDArray[np.int64]  # (n_pairs, 2), nearest first
    is_exact: bool  # whether cosines are those of whole features

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Positions of labels that neighbours and prediction contradict, the surest first.

        Most neighbours and the head name the same other class; ordered by the margin of the head.
        """
        is_other = (self.voted != self.labels) & (self.predicted == self.voted)
        is_other &= (self.votes >= _MAJORITY) & (self.labels >= 0)
        found = np.flatnonzero(is_other)
        return found[np.argsort(-self.margins[found], kind="stable")]


def look_at(
    cache: Cache, limit: int | None, drawn: str = "pca", reporter: Reporter = SILENT
) -> Neighbourhood:
    """Find the neighbours of some rows of a cache: of all, or of `limit` that are drawn.

    The features are those rows less their mean, at length 1. Where they take more than 1 GB,
    sketches of 1,024 values stand for them (`featx.evaluate.near`).
    """
    rows = np.flatnonzero(np.asarray(cache.status) == 1)
    if len(rows) < 3:
        raise CacheError(f"{cache.path} has {len(rows)} rows with features: a map needs 3")
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
    with reporter.bar(4, f"explore {cache.path.name}", "step") as bar:
        unit, is_exact = _unit_rows(cache, rows)
        labels = np.asarray(cache.y)[rows]
        bar.update(1, "features")
        k = min(_NEIGHBOURS, len(rows) - 1)
        index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(unit)
        distances, neighbours = index.kneighbors()  # without the row itself
        bar.update(1, "neighbours")
        place = _place(unit, drawn)
        bar.update(1, "map")
        predicted, margins = _predicted(unit, labels)
        bar.update(1, "predictions")
    voted, votes = _votes(labels[neighbours])
    return Neighbourhood(
        rows=rows,
        labels=labels,
        place=place,
        neighbours=neighbours,
        cosines=1 - distances,
        voted=voted,
        votes=votes,
        predicted=predicted,
        margins=margins,
        twins=near_within(neighbours, 1 - distances.astype(np.float64)),
        is_exact=is_exact,
    )


def _unit_rows(cache: Cache, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], bool]:
    """Centre rows and bring them to length 1, or sketch them; tell which."""
    view = RowsView(cache.X, rows)
    centre = mean_row(view)
    n_features = int(cache.X.shape[1])
    if n_features > WIDTH and 4 * len(rows) * n_features <= _MOST_EXACT_BYTES:
        whole = np.asarray(cache.X[rows]).astype(np.float32)
        check_finite(whole, 0, rows)
        return unit_length(whole - centre), True
    sketch = sketch_rows(view, np.dtype(np.float32), centre, must_be_finite=True)
    return sketch.unit, sketch.is_exact


def _place(unit: NDArray[np.float32], drawn: str) -> NDArray[np.float64]:
    if drawn == "pca":
        return np.asarray(PCA(2, random_state=0).fit_transform(unit), np.float64)
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtraError("umap-learn", "umap", "--map umap") from error
    short = min(_UMAP_DIMENSIONS, *unit.shape)
    reduced = PCA(short, random_state=0).fit_transform(unit)
    # One thread, as UMAP wants it where a seed is given.
    found = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(reduced)
    return np.asarray(found, np.float64)


def _votes(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the class that most neighbours have, and its share of all k; the nearer where equal."""
    voted = np.full(len(labels), -1)
    votes = np.zeros(len(labels))
    for i, row in enumerate(labels):
        known = row[row >= 0]
        if known.size:
            names, first, counts = np.unique(known, return_index=True, return_counts=True)
            best = np.lexsort((first, -counts))[0]
            voted[i], votes[i] = names[best], counts[best] / len(row)
    return voted, votes


def _predicted(
    unit: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Predict each row by a head that was fitted without its fold; -1 in classes of few rows."""
    predicted, margins = np.full(len(labels), -1), np.zeros(len(labels))
    counts = np.bincount(labels[labels >= 0], minlength=1)
    chosen = np.flatnonzero((labels >= 0) & (counts[labels] >= _FOLDS))
    classes, truth = np.unique(labels[chosen], return_inverse=True)
    if len(classes) < 2 or len(chosen) > _MOST_PREDICTED:
        return predicted, margins
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(
        Classifier(_HEAD), unit[chosen], truth, cv=folds, method="decision_function"
    )
    if scores.ndim == 1:  # two classes
        scores = np.column_stack([-scores, scores])
    predicted[chosen] = classes[scores.argmax(axis=1)]
    margins[chosen] = scores.max(axis=1) - scores[np.arange(len(truth)), truth]
    return predicted, margins


_MOST_SUSPECTS, _MOST_TWINS = 36, 24
_THUMBNAIL_PX, _ATLAS_PX = 64, 256
_ATLAS_BLOCK = 1_000


class _Described:
    """The rows of a neighbourhood in words and pictures."""

    def __init__(self, cache: Cache, found: Neighbourhood, reporter: Reporter) -> None:
        self.cache, self.found, self.problems = cache, found, list[str]()
        self.album = Albums().of(cache.meta, self.problems.append)
        for problem in self.problems:
            reporter.warn(f"images cannot be shown: {problem}")

    def path(self, i: int) -> str:
        return as_utf8(str(self.cache.paths[int(self.found.rows[i])]))

    def class_name(self, label: int) -> str:
        return as_utf8(str(self.cache.class_names[label])) if label >= 0 else "no label"

    def picture(self, i: int) -> Image.Image | None:
        return self.album.picture(self.cache.paths[int(self.found.rows[i])])

    def suspicion(self, i: int) -> str:
        k = self.found.neighbours.shape[1]
        n = round(float(self.found.votes[i]) * k)
        other = self.class_name(int(self.found.voted[i]))
        return f"{n} of {k} neighbours and the prediction say {other}"


def write_map(
    cache: Cache, found: Neighbourhood, path: Path, drawn: str, reporter: Reporter = SILENT
) -> None:
    """Write the page of a cache: a map, its neighbours, suspects and twins."""
    from featx.report.html import assets, chart_spec, environment, to_json

    told = _Described(cache, found, reporter)
    points, urls = [], []
    with reporter.bar(len(found.rows), "pictures", "image") as bar:
        for i in range(len(found.rows)):
            image = told.picture(i)
            urls.append("" if image is None else thumbnail_url(image, _THUMBNAIL_PX))
            points.append(_point(told, i))
            bar.update()
    title = f"{cache.path.name}: a map of {len(found.rows):,} images"
    chart = chart_spec(_map_chart(drawn), title, 560)
    text = (
        environment()
        .get_template("explore.html")
        .render(
            title=title,
            cache=cache,
            found=found,
            drawn=drawn,
            problems=told.problems,
            suspects=[(i, points[i], urls[i], told.suspicion(i)) for i in _some(found.suspects)],
            twins=[
                [(points[i], urls[i]) for i in pair] for pair in found.twins[:_MOST_TWINS].tolist()
            ],
            payload=to_json({"points": points, "urls": urls, "chart": chart}),
            assets=assets("explore.js"),
        )
    )
    replace_text(path, text)


def _some(suspects: NDArray[np.int64]) -> list[int]:
    return [int(i) for i in suspects[:_MOST_SUSPECTS]]


def _point(told: _Described, i: int) -> dict[str, Any]:
    found = told.found
    x, y = (float(f"{value:.4g}") for value in found.place[i])
    return {
        **{"i": i, "x": x, "y": y, "path": told.path(i)},
        "label": told.class_name(int(found.labels[i])),
        "near": [[int(j), round(float(c), 3)] for j, c in _near(found, i)],
    }


def _near(found: Neighbourhood, i: int) -> Iterator[tuple[int, float]]:
    return zip(found.neighbours[i], found.cosines[i], strict=True)


def _map_chart(drawn: str) -> Any:
    """Draw one mark an image; the page adds the points and their pictures."""
    from featx.report.html import alt

    named = {"pca": "principal component", "umap": "UMAP"}[drawn]
    axes = (alt.Axis(title=f"{named} {n}", labels=False, ticks=False, grid=False) for n in (1, 2))
    picked = alt.selection_point(fields=["label"], bind="legend")
    return (
        alt.Chart(alt.InlineData(values=[]))
        .mark_circle(size=45)
        .encode(
            x=alt.X("x:Q", axis=next(axes)),
            y=alt.Y("y:Q", axis=next(axes)),
            color=alt.Color("label:N", title="class"),
            opacity=alt.condition(picked, alt.value(0.8), alt.value(0.08)),
            tooltip=["path:N", "label:N", "image:N"],
        )
        .add_params(picked)
        .interactive()
    )


def write_atlas(
    cache: Cache, found: Neighbourhood, path: Path, reporter: Reporter = SILENT
) -> None:
    """Write coordinates, neighbours, labels and pictures as Embedding Atlas reads them.

    Columns ``projection_x``, ``projection_y``, ``neighbors`` (``ids`` are row numbers of the
    table, ``distances`` are 1 - cosine) and ``image`` (``bytes`` of a JPEG of at most 256 pixels a
    side), see https://apple.github.io/embedding-atlas/tool.html.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "--format atlas") from error
    told, n = _Described(cache, found, reporter), len(found.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = _schema(pa)
    with (
        part_of(path) as part,
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
        reporter.bar(n, path.name, "image") as bar,
    ):
        for start in range(0, n, _ATLAS_BLOCK):
            rows = [_atlas_row(told, i) for i in range(start, min(n, start + _ATLAS_BLOCK))]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            bar.update(len(rows))


def _schema(pa: Any) -> Any:
    near = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    words = ("path", "label", "neighbours_say", "prediction")
    numbers = ("projection_x", "projection_y", "neighbours_share")
    return pa.schema(
        [
            ("row", pa.int64()),
            *((name, pa.string()) for name in words),
            *((name, pa.float64()) for name in numbers),
            ("neighbors", near),
            ("image", image),
        ]
    )


def _atlas_row(told: _Described, i: int) -> dict[str, Any]:
    found = told.found
    names = {"label": found.labels, "neighbours_say": found.voted, "prediction": found.predicted}
    near = list(_near(found, i))
    return {
        **{"row": int(found.rows[i]), "path": told.path(i)},
        **{name: told.class_name(int(values[i])) for name, values in names.items()},
        "projection_x": float(found.place[i, 0]),
        "projection_y": float(found.place[i, 1]),
        "neighbours_share": float(found.votes[i]),
        "neighbors": {
            "ids": [int(j) for j, _ in near],
            "distances": [1 - float(cosine) for _, cosine in near],
        },
        "image": _image(told, i),
    }


def _image(told: _Described, i: int) -> dict[str, Any] | None:
    image = told.picture(i)
    if image is None:
        return None
    image.thumbnail((_ATLAS_PX, _ATLAS_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=90)
    return {"bytes": stream.getvalue(), "path": told.path(i)}

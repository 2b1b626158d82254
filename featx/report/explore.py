"""The page of ``featx explore``, and the table that Embedding Atlas opens."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.atomic import part_of, replace_text
from featx.errors import MissingExtraError
from featx.progress import SILENT, Reporter
from featx.report.neighbours import Neighbourhood
from featx.sources.album import Albums, thumbnail_url
from featx.store import Cache
from featx.text import as_utf8

__all__ = ["write_atlas", "write_map"]

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

"""The page ``reports/index.html``: one file that opens from disk and needs no network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from featx import plot
from featx.atomic import replace_text
from featx.errors import FeatxError
from featx.evaluate import FitResult, ResultsFolder, compare
from featx.evaluate.intervals import format_ends
from featx.evaluate.table import Lines
from featx.progress import SILENT, Reporter
from featx.report.details import Picture, Pictures, details_of, read_fits, wrong_pictures
from featx.report.html import alt, assets, chart_spec, environment, to_json

__all__ = ["write_page"]

_MOST_DETAIL_BYTES = 1_500_000
_MOST_COMPARED = 5
_MOST_DRAWN = 8
_SCORES = ("per class", "accuracy", "low", "repeats", "test images")
_LAST = ("layer", "weights", "dim", "C", "seconds")
_HIDDEN = (
    *("id", "system", "data", "images", "high", "extraction"),
    *("draws low", "draws high", "test low", "test high"),
)
_TITLES = {"low": "95 % interval", "repeats": "draws"}
_SHOWN_SIGNAL = "shown"


def write_page(
    lines: Lines, path: Path, *, pictures: bool = True, reporter: Reporter = SILENT
) -> None:
    """Write the page of some results; what cannot be shown is said in its place."""
    album = Pictures(reporter)
    fits, details = _read(lines, album if pictures else None, reporter)
    text = (
        environment()
        .get_template("page.html")
        .render(
            title=f"featx report: {', '.join(dict.fromkeys(lines.frame['data']))}",
            version=version("featx"),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            folder=str(lines.folder),
            n_fits=len(lines.fits),
            columns=[_TITLES.get(name, name) for name in _columns(lines.frame)],
            rows=list(_rows(lines.frame)),
            n_drawn=min(_MOST_DRAWN, lines.frame["system"].nunique()),
            n_systems=lines.frame["system"].nunique(),
            filters=list(_filters(lines.frame)),
            charts=list(_charts(lines)),
            comparisons=list(_comparisons(lines, fits)),
            recipes=list(_recipes(lines.folder)),
            wrong=list(_wrong(fits, album)) if pictures else [],
            problems=album.problems,
            payload=to_json(
                {"details": details, "charts": _detail_charts(), "pictures": album.shelf}
            ),
            assets=assets("page.js"),
        )
    )
    replace_text(path, text)


def _read(
    lines: Lines, pictures: Pictures | None, reporter: Reporter
) -> tuple[dict[str, list[FitResult]], dict[str, dict[str, Any]]]:
    """Read the fits of every line, and describe as many as the page has room for."""
    fits: dict[str, list[FitResult]] = {}
    details: dict[str, dict[str, Any]] = {}
    n_bytes, folder = 0, ResultsFolder(lines.folder, reporter)
    best_first = lines.frame.sort_values("accuracy", ascending=False)["id"]
    with reporter.bar(len(best_first), "reading results", unit="line") as bar:
        for line in best_first:
            if read := read_fits(folder, lines.files[line], reporter):
                detail = details_of(read, pictures if n_bytes <= _MOST_DETAIL_BYTES else None)
                detail["curves"] = plot.curve_rows(detail["curves"])
                detail["calibration"] = plot.calibration_rows(detail["calibration"])
                n_bytes += len(to_json(detail))
                if n_bytes <= _MOST_DETAIL_BYTES:
                    details[line] = detail
                fits[line] = read
            bar.update()
    lines.frame["extraction"] = [
        fits[line][0].detail.get("extract_seconds", math.nan) if line in fits else math.nan
        for line in lines.frame["id"]
    ]
    return fits, details


def _columns(frame: pd.DataFrame) -> list[str]:
    """Order the columns: what tells lines apart, the scores, and what follows from the rest."""
    first = ["data"] * (frame["data"].nunique() > 1) + ["backbone", "head"]
    told = [name for name in frame.columns if name not in (*first, *_SCORES, *_LAST, *_HIDDEN)]
    return [*first, *told, *_SCORES, *(name for name in _LAST if name in frame)]


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    names, drawn = _columns(frame), _best_systems(frame)
    for _, line in frame.sort_values("accuracy", ascending=False, kind="stable").iterrows():
        cells = [_cell(name, line) for name in names]
        is_drawn = line["system"] in drawn
        yield {"id": line["id"], "system": line["system"], "cells": cells, "is_drawn": is_drawn}


def _best_systems(frame: pd.DataFrame) -> set[str]:
    """Name the systems that charts show at first: as many as there are colours."""
    best = frame.groupby("system", sort=False)["accuracy"].max()
    return set(best.nlargest(_MOST_DRAWN).index)


_FORMATS = {"accuracy": ".3f", "C": ".3g", "seconds": ".3g", "dim": ",", "test images": ","}


def _cell(name: str, line: pd.Series[Any]) -> dict[str, Any]:
    """Write a cell, and the number that it is sorted by."""
    value = line[name]
    if name == "low":
        is_known = not math.isnan(line["low"])
        text = format_ends((line["low"], line["high"])) if is_known else "-"
        return {"text": text, "order": line["low"] if is_known else -1.0}
    if isinstance(value, float) and math.isnan(value):
        return {"text": "failed" if name == "accuracy" else "-"}
    if name in _FORMATS:
        return {"text": format(value, _FORMATS[name]), "order": float(value)}
    text = str(value)
    return {"text": text, "order": float(text)} if text.isdigit() else {"text": text}


def _filters(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Offer a choice for what differs."""
    shown = _columns(frame)
    for name in ("data", "backbone", "head", "per class"):
        values = list(dict.fromkeys(str(value) for value in frame[name]))
        if name in shown and len(values) > 1:
            yield {"name": name, "column": shown.index(name) + 1, "values": values}


def _charts(lines: Lines) -> Iterator[dict[str, Any]]:
    """Draw what the lines can show; each chart can be narrowed to some of them."""
    if lines.scored.empty:
        return
    wanted = [
        ("learning", "Accuracy against labelled images per class", plot.learning_curve, {}),
        (
            "extraction",
            "Accuracy against the time of the extraction",
            plot.cost,
            {"by": "extraction"},
        ),
        ("seconds", "Accuracy against the time of a fit", plot.cost, {"by": "seconds"}),
        ("dim", "Accuracy against the length of a feature", plot.cost, {"by": "dim"}),
        ("input", "Accuracy against image size", plot.settings_curve, {"by": "input"}),
        ("layer", "Accuracy against the layer", plot.settings_curve, {"by": "layer"}),
    ]
    for name, title, draw, options in wanted:
        if name == "extraction" and lines.scored[name].isna().all():
            continue
        if name in ("input", "layer") and not _varies(lines.scored, name):
            continue
        chart = draw(lines, **options)
        yield {"name": name, "title": title, "spec": chart_spec(_narrowed(chart), title)}


def _varies(frame: pd.DataFrame, column: str) -> bool:
    """Whether a setting differs for one backbone: the layers of two differ anyway."""
    return column in frame and bool((frame.groupby("backbone")[column].nunique() > 1).any())


def _narrowed(chart: Any) -> Any:
    """Show the lines that the page's signal names; all, where it names none."""
    shown = alt.param(name=_SHOWN_SIGNAL, value=[])
    some = f"length({_SHOWN_SIGNAL}) == 0 || indexof({_SHOWN_SIGNAL}, datum.id) >= 0"
    return chart.add_params(shown).transform_filter(some)


def _detail_charts() -> dict[str, Any]:
    """Give the charts of one line, which the page fills with that line's values."""
    values = alt.InlineData(values=[])
    return {
        "confusion": chart_spec(plot.confusion_chart(values), "Confusion matrix", 420),
        "recall": chart_spec(plot.recall_chart(values), "Recall of each class", None),
        "calibration": chart_spec(
            plot.calibration_chart(values), "Accuracy against confidence", 260
        ),
        "training": chart_spec(plot.training_chart(values), "Accuracy over the epochs", 260),
    }


def _comparisons(lines: Lines, fits: Mapping[str, Sequence[FitResult]]) -> Iterator[dict[str, Any]]:
    """Compare the best systems of each data set at its largest number of images per class."""
    frame = lines.scored[lines.scored["id"].isin(fits)]
    for data, of_data in frame.groupby("data", sort=False):
        for size in sorted(of_data["images"].dropna().unique())[::-1]:
            best = of_data[of_data["images"] == size].nlargest(_MOST_COMPARED, "accuracy")
            if len(best) > 1:
                yield _compared(str(data), best, fits)
                break


def _compared(
    data: str, best: pd.DataFrame, fits: Mapping[str, Sequence[FitResult]]
) -> dict[str, Any]:
    name = f"{data}, {best['per class'].iloc[0]} images per class"
    chosen = [fit for line in best["id"] for fit in fits[line]]
    labels = dict(zip(_words(best, fits), best["system"], strict=True))
    try:
        frame = compare(list(labels), chosen)
    except FeatxError as error:
        return {"name": name, "problem": str(error), "rows": [], "spec": None}
    frame = frame.replace({"A": labels, "B": labels})
    rows = frame[["A", "B", "difference_points", "low_points", "high_points", "p_holm"]]
    title = f"Differences in accuracy, {name}"
    return {
        "name": name,
        "problem": "",
        "spec": chart_spec(plot.comparison(frame), title, None),
        "rows": rows.to_dict("records"),
    }


_WORDS = ("backbone", "weights", "layer", "pool", "input_size", "precision", "clf", "scale")


def _words(best: pd.DataFrame, fits: Mapping[str, Sequence[FitResult]]) -> list[str]:
    """Name systems as `featx.evaluate.compare` reads them."""
    firsts = [fits[line][0] for line in best["id"]]
    told = [n for n in _WORDS if len({str(getattr(fit, n)) for fit in firsts}) > 1]
    return [",".join(f"{name}={getattr(fit, name)}" for name in told) for fit in firsts]


def _recipes(folder: Path) -> Iterator[dict[str, Any]]:
    """Set reported beside measured, from the tables that ``featx reproduce`` keeps."""
    for path in sorted(folder.glob("reproduce-*.csv")):
        try:
            frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
            frame = frame[frame["accuracy"].notna() | frame["reported_accuracy"].notna()]
            rows = frame[["system", "variant", "scored", "per_class", "scale"]].astype(object)
            rows = rows.where(rows.notna(), "")
            for name in ("reported_accuracy", "accuracy"):
                rows[name] = ["-" if pd.isna(v) else f"{v:.3f}" for v in frame[name]]
        except (OSError, ValueError, KeyError) as error:
            yield {"source": path.name, "problem": f"it cannot be read: {error}", "rows": []}
        else:
            source = str(frame["source"].iloc[0]) if len(frame) else path.stem
            yield {"source": source, "problem": "", "rows": rows.to_dict("records")}


def _wrong(
    fits: Mapping[str, Sequence[FitResult]], pictures: Pictures
) -> Iterator[tuple[str, list[Picture]]]:
    """Show what most fits got wrong, one test set after the other."""
    every = sorted(itertools.chain(*fits.values()), key=_test_images)
    for _, group in itertools.groupby(every, key=_test_images):
        of_test = list(group)
        if shown := wrong_pictures(of_test, pictures):
            yield of_test[0].data, shown


def _test_images(fit: FitResult) -> str:
    return str(fit.detail.get("test_images_sha256") or fit.test_fingerprint)

"""Pictures of results, as Altair charts: notebooks show them, ``save`` writes PNG, SVG or HTML.

    featx.plot.learning_curve("reports").save("curve.svg")

Each function takes a folder of results, or what `featx.results` or `featx.evaluate` gave. Needs the
extra ``report``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featx.errors import MissingExtraError, UsageError
from featx.evaluate import FitResult
from featx.evaluate.scores import confusion_of, has_confusion
from featx.evaluate.systems import by_size
from featx.evaluate.table import Lines, class_rows, extraction_seconds, lines_of, read_lines

if TYPE_CHECKING:
    from altair import Chart, FacetChart, LayerChart

    Layers = LayerChart | FacetChart

try:
    import altair as alt
except ImportError as error:
    raise MissingExtraError("altair", "report", "featx.plot") from error

__all__ = [
    "calibration",
    "comparison",
    "confusion",
    "cost",
    "learning_curve",
    "recall",
    "settings_curve",
    "training_curve",
]

Results = str | os.PathLike[str] | Lines | pd.DataFrame

# Okabe and Ito, "Color universal design", 2008: told apart with every kind of colour vision.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C00", "#666666"]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_COSTS = {
    "extraction": "seconds of the extraction",
    "seconds": "seconds of one fit",
    "dim": "values of a feature",
}
_SETTINGS = {"input": "image size (px)", "layer": "layer"}
_CURVES = {"loss": "loss", "acc": "accuracy"}
_PARTS = {"train": "training", "valid": "validation"}


def learning_curve(results: Results = "reports") -> Layers:
    """Draw accuracy against labelled images per class, one line a system.

    Parameters
    ----------
    results : path-like, Lines or DataFrame, default="reports"
        A folder of results, or what `featx.results` gave.

    Returns
    -------
    altair.LayerChart
        Mean accuracies (shares between 0 and 1) with bands: 95 % intervals over draws and test
        images together.

    Raises
    ------
    ProtocolError
        If there are no fits.
    """
    frame = _frame(results)
    frame = frame[frame["images"].notna()]
    axis = alt.Axis(values=sorted(frame["images"].unique()), format=",.0f", labelOverlap=True)
    title = "labelled images per class"
    base = alt.Chart(frame).encode(
        x=alt.X("images:Q", title=title, scale=alt.Scale(type="log"), axis=axis),
        color=_colour(frame),
    )
    band = base.mark_area(opacity=0.15).encode(y=_accuracy("low"), y2="high:Q")
    line = base.mark_line().encode(y=_accuracy("accuracy"))
    return alt.layer(band, line, _points(base, frame, 70))


def cost(results: Results = "reports", by: str = "seconds") -> Layers:
    """Draw accuracy against what a system costs.

    Parameters
    ----------
    results : path-like, Lines or DataFrame, default="reports"
        A folder of results, or what `featx.results` gave.
    by : {"seconds", "dim", "extraction"}, default="seconds"
        Seconds of a fit with its cross-validation, the length of a feature, or seconds of the
        extraction of all images that were fitted on and tested.

    Returns
    -------
    altair.LayerChart
        One point a line of the table, with its 95 % interval.

    Raises
    ------
    UsageError
        If `by` is something else, or no fit knows it.
    """
    if by not in _COSTS:
        raise UsageError(f"by={by!r}: choose from {', '.join(_COSTS)}")
    lines = _lines(results)
    if by == "extraction" and by not in lines.frame:
        lines.frame[by] = extraction_seconds(lines)
    frame = lines.scored
    if not (frame[by] > 0).any():
        raise UsageError(f"nothing to draw: no fit knows its {_COSTS[by]}")
    base = alt.Chart(frame[frame[by] > 0]).encode(
        x=alt.X(f"{by}:Q", title=_COSTS[by], scale=alt.Scale(type="log")), color=_colour(frame)
    )
    return _points_with_ends(base, frame)


def settings_curve(results: Results = "reports", by: str = "input") -> Layers:
    """Draw accuracy against the image size or the layer.

    Parameters
    ----------
    results : path-like, Lines or DataFrame, default="reports"
        A folder of results, or what `featx.results` gave.
    by : {"input", "layer"}, default="input"
        Image size in pixels, or the layer.

    Returns
    -------
    altair.LayerChart
        One point a line of the table, with its 95 % interval.

    Raises
    ------
    UsageError
        If `by` is something else, or is the same in all results.
    """
    if by not in _SETTINGS:
        raise UsageError(f"by={by!r}: choose from {', '.join(_SETTINGS)}")
    frame = _frame(results)
    if by not in frame or frame[by].nunique() < 2:
        raise UsageError(f"all results have the same {_SETTINGS[by]}: there is nothing to draw")
    order = by_size(frame[by].unique())
    base = alt.Chart(frame).encode(
        x=alt.X(f"{by}:N", title=_SETTINGS[by], sort=order), color=_colour(frame)
    )
    return _points_with_ends(base, frame)


def confusion(fit: FitResult | Mapping[str, Any]) -> Chart:
    """Draw which classes were taken for which.

    Parameters
    ----------
    fit : FitResult or mapping
        A fit, or one with ``class_names`` and ``confusion_matrix`` (images, rows are true classes)
        or ``confusion_cells`` (true class, predicted class, images).

    Returns
    -------
    altair.Chart
        A cell for each pair of classes that occurred, coloured by its share of the true class.
    """
    return confusion_chart(pd.DataFrame(confusion_cells(_detail(fit))))


def recall(fit: FitResult | Mapping[str, Any]) -> Chart:
    """Draw the share of each class's test images that were found.

    Parameters
    ----------
    fit : FitResult or mapping
        A fit, or one with ``class_names`` and ``per_class``.

    Returns
    -------
    altair.Chart
        One bar a class.
    """
    return recall_chart(pd.DataFrame(class_rows(_detail(fit))))


def calibration(fit: FitResult | Mapping[str, Any]) -> Layers:
    """Draw accuracy against confidence (a reliability diagram).

    Parameters
    ----------
    fit : FitResult or mapping
        A fit of a head that gives probabilities.

    Returns
    -------
    altair.LayerChart
        One point for each of 15 bins of the probability of the predicted class, as in Guo et al.,
        "On calibration of modern neural networks", ICML 2017; the diagonal is what it should be.

    Raises
    ------
    UsageError
        If the head gives no probabilities, or an older featx recorded none.
    """
    detail = _detail(fit)
    if "calibration" not in detail:
        raise UsageError("this fit records no probabilities: its head has none, or featx was older")
    return calibration_chart(pd.DataFrame(calibration_rows([detail["calibration"]])))


def calibration_rows(of_fits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List mean confidence and accuracy of each bin, of several fits together."""
    if not of_fits:
        return []
    images, right, sure = (
        np.sum([one[name] for one in of_fits], axis=0) for name in ("images", "right", "confidence")
    )
    return [
        {"confidence": s / n, "accuracy": r / n, "images": int(n)}
        for n, r, s in zip(images.tolist(), right.tolist(), sure.tolist(), strict=True)
        if n
    ]


def calibration_chart(data: Any) -> Layers:
    """Draw such rows."""
    unit = alt.Scale(domain=[0, 1])
    ends = pd.DataFrame({"x": [0.0, 1.0]})
    diagonal = (
        alt.Chart(ends).mark_line(strokeDash=[4, 4], color="#888888").encode(x="x:Q", y="x:Q")
    )
    points = (
        alt.Chart(data)
        .mark_line(point=True, color=_COLOURS[0])
        .encode(
            x=alt.X("confidence:Q", scale=unit, title="mean confidence"),
            y=alt.Y("accuracy:Q", scale=unit),
            tooltip=[
                alt.Tooltip("confidence:Q", format=".3f"),
                alt.Tooltip("accuracy:Q", format=".3f"),
                alt.Tooltip("images:Q", format=","),
            ],
        )
    )
    return alt.layer(points, diagonal)


def comparison(compared: pd.DataFrame) -> Layers:
    """Draw differences of accuracy with their intervals (a forest plot).

    Parameters
    ----------
    compared : DataFrame
        What `featx.evaluate.compare` gave.

    Returns
    -------
    altair.LayerChart
        One line a comparison: difference in percentage points, its 95 % interval, and p corrected
        for the number of comparisons (Holm) on hovering.
    """
    frame = compared.assign(
        pair=[f"{a} – {b}" for a, b in zip(compared["A"], compared["B"], strict=True)]
    )
    base = alt.Chart(frame).encode(y=alt.Y("pair:N", title=None, sort=None).axis(labelLimit=200))
    told = [
        alt.Tooltip("statement:N", title="what can be said"),
        alt.Tooltip("difference_points:Q", title="difference (points)", format=".2f"),
        alt.Tooltip("p_holm:Q", title="p (Holm)", format=".3g"),
    ]
    title = "difference in accuracy (percentage points)"
    rule = base.mark_rule().encode(x=alt.X("low_points:Q", title=title), x2="high_points:Q")
    point = base.mark_point(filled=True, size=70).encode(x="difference_points:Q", tooltip=told)
    zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(strokeDash=[4, 4]).encode(x="x:Q")
    return alt.layer(zero, rule, point)


def training_curve(curves: Sequence[Mapping[str, Any]], of: str = "acc") -> Chart:
    """Draw loss or accuracy over the epochs of a training.

    Parameters
    ----------
    curves : sequence of mapping
        One an epoch, as in the record of a training.
    of : {"acc", "loss"}, default="acc"
        What to draw.

    Returns
    -------
    altair.Chart
        A line for the training part, and one for the validation part where there is one.
    """
    if of not in _CURVES:
        raise UsageError(f"of={of!r}: choose from {', '.join(_CURVES)}")
    rows = pd.DataFrame(curve_rows(curves, of), columns=["epoch", "part", "value"])
    return training_chart(rows, _CURVES[of])


def curve_rows(curves: Sequence[Mapping[str, Any]], of: str = "acc") -> list[dict[str, Any]]:
    """List loss or accuracy by epoch and part."""
    return [
        {"epoch": line["epoch"], "part": name, "value": line[f"{part}_{of}"]}
        for line in curves
        for part, name in _PARTS.items()
        if line.get(f"{part}_{of}") is not None
    ]


def training_chart(data: Any, title: str = "accuracy") -> Chart:
    """Draw such rows."""
    chart: Chart = (
        alt.Chart(data)
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q").axis(tickMinStep=1, format="d"),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("part:N", title=None, scale=alt.Scale(range=_COLOURS)),
            strokeDash=alt.StrokeDash("part:N", title=None),
            tooltip=["epoch:Q", "part:N", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    return chart


_TOOLTIP = [
    alt.Tooltip("system:N", title="system"),
    alt.Tooltip("data:N", title="data"),
    alt.Tooltip("per class:N", title="images per class"),
    alt.Tooltip("accuracy:Q", format=".3f"),
    alt.Tooltip("low:Q", title="95 % from", format=".3f"),
    alt.Tooltip("high:Q", title="95 % to", format=".3f"),
    alt.Tooltip("repeats:Q", title="draws"),
    alt.Tooltip("test images:Q", format=","),
    alt.Tooltip("seconds:Q", title="seconds of one fit", format=".2f"),
    alt.Tooltip("dim:Q", title="values of a feature", format=","),
]


def confusion_cells(detail: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the cells of a confusion matrix that are not empty."""
    names, matrix = detail["class_names"], confusion_of(detail)
    totals = matrix.sum(axis=1)
    return [
        {"true": names[i], "predicted": names[j], "images": int(n), "share": float(n / totals[i])}
        for i, j, n in zip(matrix.row, matrix.col, matrix.data, strict=True)
    ]


def confusion_chart(data: Any) -> Chart:
    """Draw such cells."""
    axis = alt.Axis(labelLimit=120, labelOverlap=True)
    chart: Chart = (
        alt.Chart(data)
        .mark_rect()
        .encode(
            x=alt.X("predicted:N", sort=None, axis=axis),
            y=alt.Y("true:N", sort=None, axis=axis),
            color=alt.Color(
                "share:Q",
                title="share of the true class",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            ),
            tooltip=["true:N", "predicted:N", "images:Q", alt.Tooltip("share:Q", format=".3f")],
        )
    )
    return chart


def recall_chart(data: Any) -> Chart:
    """Draw such rows."""
    chart: Chart = (
        alt.Chart(data)
        .mark_bar(color=_COLOURS[0])
        .encode(
            x=alt.X("recall:Q", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("class:N", sort=None, title=None).axis(labelLimit=160),
            tooltip=[
                "class:N",
                alt.Tooltip("recall:Q", format=".3f"),
                alt.Tooltip("precision:Q", format=".3f"),
                alt.Tooltip("f1:Q", format=".3f"),
                "images:Q",
            ],
        )
    )
    return chart


def _points_with_ends(base: Chart, frame: pd.DataFrame) -> Layers:
    ends = base.mark_rule(opacity=0.5).encode(y=_accuracy("low"), y2="high:Q")
    return alt.layer(ends, _points(base, frame, 80))


def _points(base: Chart, frame: pd.DataFrame, size: int) -> Chart:
    points: Chart = base.mark_point(filled=True, size=size).encode(
        y=_accuracy("accuracy"), shape=_shape(frame), tooltip=_TOOLTIP
    )
    return points


def _accuracy(field: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title="accuracy", scale=alt.Scale(zero=False))


def _colour(frame: pd.DataFrame) -> Any:
    return _by_system(alt.Color, frame, lambda i: _COLOURS[i % len(_COLOURS)])


def _shape(frame: pd.DataFrame) -> Any:
    """Tell systems apart by the shape where the colours come again."""
    return _by_system(alt.Shape, frame, lambda i: _SHAPES[i // len(_COLOURS) % len(_SHAPES)])


def _by_system(channel: Any, frame: pd.DataFrame, value_of: Callable[[int], str]) -> Any:
    """Give each system a colour or a shape, the same in every layer of a chart."""
    systems = list(dict.fromkeys(frame["system"]))
    scale = alt.Scale(domain=systems, range=[value_of(i) for i in range(len(systems))])
    legend = alt.Legend(
        labelLimit=360, symbolLimit=40, symbolOpacity=1, orient="bottom", columns=2, symbolSize=70
    )
    return channel("system:N", title=None, legend=legend, scale=scale)


def _lines(results: Results) -> Lines:
    if isinstance(results, pd.DataFrame):
        return lines_of(results)
    return results if isinstance(results, Lines) else read_lines(results)


def _frame(results: Results) -> pd.DataFrame:
    return _lines(results).scored


def _detail(fit: FitResult | Mapping[str, Any]) -> Mapping[str, Any]:
    detail = fit.detail if isinstance(fit, FitResult) else fit
    if not has_confusion(detail):
        raise UsageError("this fit has no scores: it failed, or it is not a fit")
    return detail

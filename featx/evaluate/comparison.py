"""Two systems on the same draws and the same test images: the test, the table, the sentence."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featx.errors import ProtocolError, UsageError
from featx.evaluate.intervals import Estimate, estimate_mean, holm
from featx.evaluate.result import FitResult
from featx.evaluate.results_folder import ResultsFolder
from featx.evaluate.systems import (
    OWN_COLUMNS,
    SYSTEM_COLUMNS,
    by_size,
    choose,
    find_words,
    of_today,
    to_systems,
    with_words,
)
from featx.evaluate.table import format_table
from featx.progress import SILENT, Reporter
from featx.text import count_of

__all__ = ["compare", "format_comparison"]


_ALPHA = 0.05
_ENOUGH_DRAWS = 5
_TITLES = {
    "difference_points": "difference",
    "low_points": "low",
    "high_points": "high",
    "p": "p",
    "p_holm": "p (Holm)",
    "n_draws": "draws",
    "n_images": "images",
}


def _statement(line: pd.Series[Any], telling: Sequence[str], n_compared: int) -> str:
    """Say what a comparison shows."""
    first, second, sign = line["A"], line["B"], 1
    if line["difference_points"] < 0:
        first, second, sign = second, first, -1
    ends = sorted((sign * line["low_points"], sign * line["high_points"]))
    interval = f"{sign * line['difference_points']:.1f} points, {ends[0]:.1f} to {ends[1]:.1f}"
    p = _p_text(line["p"])
    if n_compared > 1:
        p += f", corrected {_p_text(line['p_holm'])}"
    where = ", ".join(_named(column, line[column]) for column in telling if line[column])
    start = f"{where}: " if where else ""
    over = f"{count_of(line['n_draws'], 'draw')}, {count_of(line['n_images'], 'test image')}"
    is_told = line["p_holm"] < _ALPHA
    if line["n_draws"] == 1:
        start, over = f"{start}{_one_draw(line)}, ", f"{over}; nothing is said of other subsets"
        over += "" if line.get("per_class") == "all" else f": fit {_ENOUGH_DRAWS} or more draws"
        verb = "does better than"
    else:
        verb = "beats"
        if not is_told and line["n_draws"] < _ENOUGH_DRAWS:
            over += f"; few draws make wide intervals: fit {_ENOUGH_DRAWS} or more"
    if is_told:
        return f"{start}{first} {verb} {second} by {interval}, {p} ({over})"
    return (
        f"{start}no difference between {first} and {second} can be told: {interval}, {p} ({over})"
    )


def _one_draw(line: pd.Series[Any]) -> str:
    what = "training set" if line.get("per_class") == "all" else "training subset"
    return f"on this one {what}"


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _named(column: str, value: str) -> str:
    if column == "per_class":
        return f"{value} per class"
    return value if column in ("data", "backbone", "layer", "clf") else f"{column} {value}"


def format_comparison(frame: pd.DataFrame) -> str:
    """Align comparisons as plain text."""
    telling = [c for c in SYSTEM_COLUMNS if c in frame and frame[c].nunique() > 1]
    table = frame[["A", "B", *telling, *_TITLES]].rename(
        columns={**_TITLES, **{name: name.replace("_", " ") for name in telling}}
    )
    for name, form in (("difference", "+.1f"), ("low", "+.1f"), ("high", "+.1f"), ("images", ",")):
        table[name] = [format(value, form) for value in table[name]]
    for name in ("p", "p (Holm)"):
        table[name] = [_p_text(p).removeprefix("p ").removeprefix("= ") for p in table[name]]
    notes = ["difference, low, high: percentage points, 95 % interval"]
    if (frame["n_draws"] == 1).any():
        notes.append(
            "1 draw: interval and p are about that training subset alone, not about others"
        )
    table.attrs["notes"] = notes
    return "\n".join([format_table(table), "", *frame["statement"]])


# A layer, a size and weights are those of a backbone: they differ where backbones do.
_OF_BACKBONE = ("weights", "layer", "input_size")
# Features of other programs, or side by side, have no pool and precision that others could share.
_OF_OWN_FEATURES = ("pool", "precision")
_OWN_LAYERS = ["imported", "side by side"]
_MENDS = {
    "seed": "fit both with the same --seed",
    "train_images": "fit both on the same images, with the same --seed, --holdout and --on-leak",
    "test_images": "test both on the same images",
}
_MOST_EXPLAINED = 200
_NO_WORDS = {column: "" for column in SYSTEM_COLUMNS if column not in OWN_COLUMNS}


def compare(
    systems: Sequence[str],
    reports: str | os.PathLike[str] | Iterable[FitResult] = "reports",
    *,
    where: Mapping[str, Iterable[str]] | None = None,
    today: Iterable[str] = (),
    reporter: Reporter = SILENT,
) -> pd.DataFrame:
    """Compare systems with each other, pair by pair, on the same draws and test images.

    Every test image of every draw gives the difference of being right, 1, 0 or -1; its mean is
    the difference in accuracy, and its interval accounts for both the draws and the test images
    being samples; see `featx.evaluate.intervals.estimate_mean`. With one draw, interval and p are
    about that training subset alone; two to four draws make wide intervals. Two fits are paired
    if everything agrees but what the two systems name: data, seed, training images, test images,
    head, settings. Weights, layer and input size belong to the backbone and may differ where
    backbones are compared; so may pool and precision of features of another program. Images are
    the same if their bytes are, whatever cache they are in. What the systems leave open makes a
    comparison of its own for each value: two heads on three backbones are three comparisons.

    Parameters
    ----------
    systems : sequence of str
        Two or more; each is one or more words joined by commas: values of a system that are in
        one column only, or ``column=value``: ``"svm"``, ``"resnet50,svm"``, ``"input_size=96"``.
    reports : path-like or iterable of FitResult, default="reports"
        Folder of results, or fits.
    where : mapping, optional
        Values by column that fits must have.
    today : iterable of str, optional
        Fingerprints of the train caches that are there: of a system that was fitted on several
        caches (images were added), the fits on these are compared.
    reporter : Reporter, optional
        Warns of files that are damaged.

    Returns
    -------
    pandas.DataFrame
        One row a comparison: ``A`` and ``B``, as typed; the columns of the system that both
        share (else empty); ``difference_points``, ``low_points``, ``high_points`` (accuracy of A
        minus that of B, in percentage points, and its 95 % interval); ``p`` (two-sided) and
        ``p_holm`` (corrected for the number of rows, Holm 1979); ``n_draws``, ``n_images``; and
        ``statement``, a sentence.

    Raises
    ------
    UsageError
        If a word is unknown or ambiguous, or names several systems.
    ProtocolError
        If there are no fits, or two systems share no draw; says in what they differ.

    Examples
    --------
    >>> compare(["svm", "logreg"], where={"data": ["cifar10"]})  # doctest: +SKIP
    """
    if len(systems) < 2 or len(set(systems)) < len(systems):
        raise UsageError("name two or more different systems to compare, as in  svm logreg")
    rows, read, failed = _rows(reports, reporter)
    known = to_systems(rows)
    # Of a classifier whose code has changed, the last fit of each draw counts.
    newest = known.assign(created=[row["created"] for row in rows])
    newest = newest.sort_values("created", kind="stable")
    known = newest.drop_duplicates([*known], keep="last").sort_index().drop(columns="created")
    kept = choose(known, where or {})
    if kept.empty:
        raise ProtocolError("no fit has all that was asked for: leave a filter out")
    named = {text: _words(text, kept, failed) for text in systems}
    sides = [_Side(text, named[text], tuple(today)) for text in systems]
    found = [
        comparison
        for a, b in itertools.combinations(sides, 2)
        for comparison in _compare_two(a, b, kept, read)
    ]
    return _to_frame(found)


def _words(text: str, kept: pd.DataFrame, failed: list[Row]) -> dict[str, str]:
    """Read a system's words, or say that all its fits failed."""
    try:
        return find_words(text, kept)
    except UsageError:
        if not failed:
            raise
        lost = to_systems(failed)
        with suppress(UsageError):
            lost = with_words(lost, find_words(text, lost))
            reason = failed[lost.index[0]]["error"]
            raise ProtocolError(
                f"all {len(lost)} fits of {text!r} failed ({reason}): the same  featx fit  tries "
                "them again"
            ) from None
        raise


_Read = Callable[[int], FitResult]
Row = Mapping[str, Any]


def _rows(reports: Any, reporter: Reporter) -> tuple[list[Row], _Read, list[Row]]:
    """Give the rows of all fits that have an accuracy, what reads one whole, and failed rows."""
    every: list[tuple[Row, Callable[[], FitResult]]]
    if isinstance(reports, str | os.PathLike):
        folder, where = ResultsFolder(reports, reporter), os.fspath(reports)
        every = [(row.as_dict(), partial(folder.read, n)) for n, row in folder.rows().items()]
    else:
        fits, where = list(reports), "what was given"
        every = [(fit.row(), partial(fits.__getitem__, i)) for i, fit in enumerate(fits)]
    scored = [fit for fit in every if fit[0]["acc1"] is not None]
    if not scored:
        raise ProtocolError(f"{where} holds no fits: run  featx fit  first")
    failed = [row for row, _ in every if row["acc1"] is None]
    return [row for row, _ in scored], lambda i: scored[i][1](), failed


@dataclass(frozen=True)
class _Side:
    """What was typed for one system, and which columns it names."""

    text: str
    words: Mapping[str, str]
    today: Sequence[str] = ()

    def of(self, systems: pd.DataFrame) -> pd.DataFrame:
        kept = with_words(systems, self.words)
        if kept.empty:
            raise UsageError(f"no fit has all of {self.text!r}: its words are of different fits")
        return kept if "cache" in self.words else of_today(kept, self.today)


def _compare_two(
    first: _Side, second: _Side, systems: pd.DataFrame, read: _Read
) -> Iterator[dict[str, Any]]:
    """Yield a line of the table for each value of what both systems share."""
    typed = (first, second)
    sides = (first.of(systems), second.of(systems))
    varied = {*first.words, *second.words}
    shared = [c for c in SYSTEM_COLUMNS if c not in {*varied, *OWN_COLUMNS}]
    if "backbone" in varied:
        is_own = any(side["layer"].isin(_OWN_LAYERS).any() for side in sides)
        own = _OF_OWN_FEATURES if is_own else ()
        shared = [c for c in shared if c not in (*_OF_BACKBONE, *own)]
    # Subsets of two sizes are other images; those of one seed are nested.
    draw = ["seed"] if "per_class" in varied else ["seed", "train_images"]
    strata = [dict(list(side.groupby([*shared, "test_images"], sort=False))) for side in sides]
    is_empty = True
    for stratum in (one for one in strata[0] if one in strata[1]):
        both = [_draws(t, of[stratum], draw, read) for t, of in zip(typed, strata, strict=True)]
        common = [key for key in both[0] if key in both[1]]
        if common:
            is_empty = False
            right = [
                np.array([_is_right(read(side[key])) for key in common], dtype=float)
                for side in both
            ]
            words = {name: str(value) for name, value in zip(shared, stratum, strict=False)}
            estimate = estimate_mean(right[0] - right[1])
            yield {"A": first.text, "B": second.text, **_NO_WORDS, **words, **_points(estimate)}
    if is_empty:
        raise ProtocolError(_why_apart(first, second, sides, [*shared, *draw, "test_images"]))


def _draws(
    side: _Side, rows: pd.DataFrame, draw: list[str], read: _Read
) -> dict[tuple[Any, ...], int]:
    """Fits by their draw; all are of one system."""
    columns = [column for column in SYSTEM_COLUMNS if rows[column].nunique() > 1]
    if columns:
        column = next((c for c in columns if c != "cache"), "cache")
        values = by_size(rows[column].unique())
        choices = ", ".join(values)
        if column == "cache":
            firsts = [rows.index[rows["cache"] == value][0] for value in values]
            choices = "; ".join(
                f"{v} ({_where(read(i))})" for v, i in zip(values, firsts, strict=True)
            )
        raise UsageError(
            f"{side.text!r} names {len(values)} systems, with {column} {choices}: say "
            f"which, as in  {side.text},{column}={values[0]}"
        )
    return {tuple(row): index for index, row in zip(rows.index, rows[draw].values, strict=True)}


def _where(fit: FitResult) -> str:
    """Tell fits of one name apart."""
    file = Path(fit.detail.get("train_cache", "trained on images")).name
    return f"{file}, {fit.n_train} training images, fitted {fit.created[:16].replace('T', ' ')}"


def _is_right(fit: FitResult) -> NDArray[np.bool_]:
    guess, truth = (np.array(fit.detail[name]) for name in ("predictions", "test_labels"))
    return np.asarray(guess == truth)


def _why_apart(
    first: _Side, second: _Side, sides: tuple[pd.DataFrame, pd.DataFrame], fields: list[str]
) -> str:
    """Say in what the two fits that are most alike differ."""
    rows = (side[fields].drop_duplicates().head(_MOST_EXPLAINED) for side in sides)
    couples = itertools.product(*(part.to_dict("records") for part in rows))
    a, b = min(couples, key=lambda two: sum(two[0][name] != two[1][name] for name in fields))
    differing = [name for name in fields if a[name] != b[name]]
    parts = [
        name.replace("_", " ") if name.endswith("images") else f"{name} ({a[name]} and {b[name]})"
        for name in differing
    ]
    mend = _MENDS.get(differing[0], f"fit both with the same {differing[0]}") if differing else ""
    return (
        f"{first.text} and {second.text} share no draw: the fits most alike differ in "
        f"{', '.join(parts)}: {mend}"
    )


def _points(estimate: Estimate) -> dict[str, Any]:
    return {
        "difference_points": 100 * estimate.mean,
        "low_points": 100 * estimate.low,
        "high_points": 100 * estimate.high,
        "p": estimate.p,
        "p_holm": np.nan,  # known when all are compared
        "n_draws": estimate.n_draws,
        "n_images": estimate.n_images,
    }


def _to_frame(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(found)
    frame["p_holm"] = holm(frame["p"])
    telling = [column for column in _NO_WORDS if frame[column].nunique() > 1]
    frame["statement"] = [_statement(line, telling, len(frame)) for _, line in frame.iterrows()]
    return frame

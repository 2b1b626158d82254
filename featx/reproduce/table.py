"""The table of a source: reported beside measured, and in words where the two agree or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from pathlib import Path

import pandas as pd

from featx.atomic import replace_text
from featx.evaluate.intervals import format_ends
from featx.progress import Reporter
from featx.records import RecordError, read_older_too, record_text
from featx.reproduce.outcome import FINE_TUNED, FROZEN, OUTCOME_COLUMNS, SCRATCH, Outcome
from featx.reproduce.recipe import SMALL, Recipe
from featx.text import text_table

__all__ = ["SourceTable", "format_outcomes", "lessons", "order", "save_recipe", "save_source"]


def lessons(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[str]:
    """Say what the lines of one recipe show."""
    said = _problems(outcomes) + _training_split(recipe, outcomes) + _mistakes(recipe, outcomes)
    said += _sizes(recipe, outcomes) + _moves(recipe, outcomes)
    if not said:
        said = [line for outcome in outcomes for line in _against_reported(outcome)]
    if outcomes and outcomes[0].replaced:
        said.append(f"not the source's system: {outcomes[0].replaced}")
    if recipe.scale == SMALL:
        said.append(f"small scale: {recipe.described_scale()}")
    if recipe.differs:
        said.append(f"how this run differs: {recipe.differs}")
    if not said:
        return []
    where = f" ({recipe.reported.where})" if recipe.reported.accuracy is not None else ""
    return [f"{recipe.name}{where}:", *(f"  {line}" for line in said)]


def order(outcomes: Sequence[Outcome]) -> list[str]:
    """Say in which order the systems of a source come, and how far kinds of them are apart."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.kind and outcome.scored == "test" and outcome.accuracy is not None:
            groups.setdefault((outcome.scale, outcome.per_class), []).append(outcome)
    said = []
    for (scale, k), lines in groups.items():
        if len({line.recipe for line in lines}) < 2:
            continue
        lines.sort(key=lambda line: -(line.accuracy or 0.0))
        ranks = ", ".join(f"{line.name} {line.accuracy:.3f}" for line in lines)
        said += [f"{k} per class, {scale} scale, best first: {ranks}", *_as_reported(lines)]
        best = {line.kind: line for line in lines[::-1]}
        said += [_apart(best[FROZEN], best[kind]) for kind in _OTHERS if {FROZEN, kind} <= {*best}]
    return said


_OTHERS = (FINE_TUNED, SCRATCH)


def _as_reported(lines: Sequence[Outcome]) -> list[str]:
    """Say whether systems come in the order of what was reported of them."""
    known = [line for line in lines if line.reported_accuracy is not None]
    if len({line.reported_per_class for line in known}) > 1:
        return []  # of a small scale, which has no order of its own
    reported = sorted(known, key=lambda line: -(line.reported_accuracy or 0.0))
    if len(known) < 2:
        return []
    if known == reported:
        return ["  the order that was reported"]
    names = ", ".join(f"{line.name} {line.reported_accuracy:.4g}" for line in reported)
    return [f"  the order that was reported is another one: {names}"]


def _apart(frozen: Outcome, other: Outcome) -> str:
    """Compare the best of two kinds; the intervals are taken as independent, which is careful.

    Their difference as in Newcombe, "Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17, 1998, method 10.
    """
    first, second, side = frozen, other, "above"
    if (frozen.accuracy or 0.0) < (other.accuracy or 0.0):
        first, second, side = other, frozen, "below"
    a, b = first.accuracy or 0.0, second.accuracy or 0.0
    low = a - b - hypot(a - first.interval[0], second.interval[1] - b)
    high = a - b + hypot(first.interval[1] - a, b - second.interval[0])
    sure = "" if low > 0 else ", within their intervals"
    return (
        f"  {FROZEN} ({frozen.name}) are {100 * (a - b):.1f} points, {100 * low:.1f} to "
        f"{100 * high:.1f}, {side} the best of the {other.kind} ({other.name}){sure}"
    )


def _problems(outcomes: Sequence[Outcome]) -> list[str]:
    return [
        f"not run{': ' + outcome.variant if outcome.variant else ''}: {outcome.problem}"
        for outcome in outcomes
        if outcome.problem
    ]


def _training_split(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[str]:
    """Tell a figure of the training split that passed for one of the test split."""
    if recipe.reported.split != "train":
        return []
    said = []
    for key in dict.fromkeys((outcome.variant, outcome.per_class) for outcome in outcomes):
        lines = [o for o in outcomes if (o.variant, o.per_class) == key and o.accuracy is not None]
        by_split = {outcome.scored: outcome for outcome in lines}
        if len(by_split) == 2:
            train, test = by_split["train"], by_split["test"]
            name = f"{key[0]}: " if key[0] else ""
            said.append(
                f"the reported {recipe.reported.accuracy:.3f} is a figure of the TRAINING split, "
                f"whatever the source calls it; here {name}{train.accuracy:.3f} on the "
                f"{train.n_test:,} images that were fitted on, and {test.accuracy:.3f} on "
                f"{test.n_test:,} test images, which is the result"
            )
    return said


def _mistakes(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[str]:
    """Set wrong preprocessing beside the right one."""
    if len(recipe.parts.get("sweep", {}).get("preprocess", ())) < 2:
        return []
    found = {o.variant.rpartition(", ")[2]: o.accuracy for o in outcomes if o.accuracy is not None}
    right = found.pop("correct", None)
    if right is None:
        return []
    return [
        f"{name}: {accuracy:.3f}, against {right:.3f} with the weights' own preprocessing "
        f"({'a collapse' if accuracy < right / 2 else f'{100 * (accuracy - right):+.1f} points'})"
        for name, accuracy in found.items()
    ]


def _sizes(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[str]:
    """Set accuracy and cost of input sizes side by side."""
    if len(recipe.parts.get("sweep", {}).get("input_size", ())) < 2:
        return []
    said = []
    for k, lines in _by_size(outcomes).items():
        best = max(lines, key=lambda line: line.accuracy or 0.0)
        all_of_them = ", ".join(f"{o.variant} {o.accuracy:.3f}{_took(o)}" for o in lines)
        said.append(f"{k} per class: {all_of_them}; best at {best.variant}")
    return said


def _by_size(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.accuracy is not None:
            found.setdefault(outcome.per_class, []).append(outcome)
    return found


def _took(outcome: Outcome) -> str:
    seconds = outcome.extract_seconds
    return "" if seconds is None else f" ({seconds:.3g} s to extract)"


def _moves(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[str]:
    """Set heads that moved beside those that were fitted where they are tested."""
    if recipe.data.moved_to is None:
        return []
    said = []
    for k, lines in _by_size(outcomes).items():
        accuracy = {tuple(line.variant.split(" to ")): line.accuracy or 0.0 for line in lines}
        for (train, test), moved in accuracy.items():
            own = accuracy.get((test, test))
            if train != test and own is not None:
                said.append(
                    f"{k} per class: heads of {train} have {moved:.3f} on {test}, "
                    f"{100 * (moved - own):+.1f} points from those of {test} itself ({own:.3f})"
                )
    return said


def _against_reported(outcome: Outcome) -> list[str]:
    if outcome.accuracy is None or outcome.reported_accuracy is None:
        return []
    difference = outcome.accuracy - outcome.reported_accuracy
    low, high = outcome.interval
    at = outcome.per_class
    at += f" per class, reported at {outcome.reported_per_class}" if _is_other(outcome) else ""
    chance = f" (no better than chance, 1 of {outcome.n_classes})" if outcome.is_chance else ""
    measured = f"{outcome.accuracy:.3f} ({format_ends((low, high))}) measured{chance}"
    if low <= outcome.reported_accuracy <= high:
        words = f"{measured}, {outcome.reported_accuracy:.3f} reported: within the interval"
    else:
        side = "above" if difference > 0 else "below"
        points = 100 * abs(difference)
        words = (
            f"{measured}, {points:.1f} points {side} the {outcome.reported_accuracy:.3f} reported"
        )
    return [f"{words} ({at})" if _is_other(outcome) else words]


def _is_other(outcome: Outcome) -> bool:
    return outcome.reported_per_class not in ("", outcome.per_class)


_FOLDER, _KIND = "reproductions", "reproduction"
_TEXT = ("system", "scale", "scored on")
_WIDE = 1_000  # in files


@dataclass(frozen=True)
class SourceTable:
    """Everything that was run of one source, by this command and earlier ones."""

    csv: Path
    txt: Path
    text: str


def save_recipe(folder: Path, recipe: Recipe, outcomes: Sequence[Outcome]) -> Path:
    """Keep what a recipe gave, and what that shows in words."""
    values = {
        "source": recipe.system.source,
        "recipe": recipe.name,
        "scale": recipe.scale,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "words": lessons(recipe, outcomes),
    }
    stem = "-".join((_slug(recipe.system.source), _slug(recipe.name), recipe.scale))
    path = folder / _FOLDER / f"{stem}.json"
    if path.exists() and all(outcome.problem for outcome in outcomes):
        return path
    replace_text(path, record_text(_KIND, values))
    return path


def save_source(folder: Path, source: str, reporter: Reporter) -> SourceTable:
    """Set the recipes of a source that were run side by side, as CSV and as text."""
    outcomes: list[Outcome] = []
    words: list[str] = []
    for of_recipe, said in _kept(folder, source, reporter):
        outcomes += of_recipe
        words += said
    if any(outcome.scale == SMALL for outcome in outcomes):
        words.insert(0, "SMALL SCALE: fewer images and epochs than the source's; see each system.")
    stem = f"reproduce-{_slug(source)}"
    csv, txt = folder / f"{stem}.csv", folder / f"{stem}.txt"
    frame = pd.DataFrame([asdict(outcome) for outcome in outcomes], columns=OUTCOME_COLUMNS)
    replace_text(csv, frame.to_csv(index=False))
    lessons_text = "\n".join([*order(outcomes), *words])
    wide, text = (
        "\n\n".join(part for part in (source, table, lessons_text) if part) + "\n"
        for table in (format_outcomes(outcomes, _WIDE), format_outcomes(outcomes))
    )
    replace_text(txt, wide)
    return SourceTable(csv, txt, text)


def _kept(
    folder: Path, source: str, reporter: Reporter
) -> Iterator[tuple[list[Outcome], list[str]]]:
    """Read what each recipe of a source gave, and the words about it."""
    for path in sorted((folder / _FOLDER).glob(f"{_slug(source)}-*.json")):
        try:
            values = read_older_too(_KIND, path)
            if values["source"] == source:
                yield (
                    [Outcome.from_record(one) for one in values["outcomes"]],
                    list(values["words"]),
                )
        except (OSError, ValueError, TypeError, KeyError, RecordError) as error:
            reporter.warn(f"{path} is not read ({error}): run its recipe again to replace it")


def format_outcomes(outcomes: Sequence[Outcome], width: int | None = None) -> str:
    """Align outcomes as plain text, in the columns of the sources' own tables."""
    lines = [_line(outcome) for outcome in outcomes]
    header = list(lines[0]) if lines else ["system"]
    return text_table(
        header, [[line[name] for name in header] for line in lines], _TEXT, width=width
    )


def _line(outcome: Outcome) -> dict[str, str]:
    accuracy = "not run" if outcome.problem else _number(outcome.accuracy, ".3f")
    return {
        "system": outcome.name,
        "scale": outcome.scale,
        "per class": outcome.per_class,
        "reported": _number(outcome.reported_accuracy, ".4g"),
        "at": outcome.reported_per_class or "-",
        "its time": _number(outcome.reported_seconds, ",.0f"),
        "measured": accuracy,
        "scored on": outcome.scored.upper() if outcome.scored == "train" else outcome.scored,
        "95 % draws": format_ends(outcome.draws),
        "95 % test": format_ends(outcome.test),
        "images": _number(outcome.n_test or None, ","),
        "extraction": _number(outcome.extract_seconds, ",.1f"),
        "fit": _number(outcome.fit_seconds, ",.1f"),
        "layers": _number(outcome.n_layers, ""),
        "features": _number(outcome.n_features, ","),
    }


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")

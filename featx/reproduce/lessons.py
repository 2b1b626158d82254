"""What a table teaches, in words: where measured and reported agree, and where not."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

from featx.evaluate.intervals import format_ends
from featx.reproduce.outcome import FINE_TUNED, FROZEN, SCRATCH, Outcome
from featx.reproduce.recipe import SMALL, Recipe

__all__ = ["lessons", "order"]


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

"""Which records of a folder of results nothing reads any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from featx.evaluate.output import ResultsFolder
from featx.evaluate.rows import Row
from featx.evaluate.systems import find_words, to_systems, with_words

__all__ = ["find_idle", "find_named"]


def find_idle(results: ResultsFolder, today: Iterable[str] | None = None) -> dict[str, str]:
    """Find records that give no line of the table, or one of a cache that is gone."""
    every, used = results.all_rows(), results.rows()
    found = dict.fromkeys(results.unreadable(), "cannot be read")
    again = {False: "the same was fitted again later", True: "it failed, the same was tried again"}
    found |= {n: again[bool(row["error"])] for n, row in every.items() if n not in used}
    if today is not None:
        present = set(today)
        found |= {name: "its cache is gone" for name, row in used.items() if _is_gone(row, present)}
    return found


def _is_gone(row: Row, present: set[str]) -> bool:
    is_training = str(row["clf"]).partition("(")[0] == "train"
    return not is_training and not {row["train_fingerprint"], row["test_fingerprint"]} <= present


def find_named(results: ResultsFolder, systems: Iterable[str]) -> dict[str, str]:
    """Find the records of systems, by the words of ``featx compare``."""
    rows: Mapping[str, Row] = results.all_rows()
    frame = to_systems(row.as_dict() for row in rows.values())
    names = list(rows)
    found: dict[str, str] = {}
    for text in systems:
        kept = with_words(frame, find_words(text, frame))
        found |= {names[i]: text for i in kept.index}
    return found

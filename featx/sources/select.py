"""Which classes take part, and under which names: ``--classes``, ``--drop``, ``--map``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from featx.errors import UsageError, nearest
from featx.fingerprint import fingerprint
from featx.sources.base import Source
from featx.sources.labels import clean
from featx.text import some_of

__all__ = ["ClassChoice"]


@dataclass(frozen=True)
class ClassChoice:
    """Renames classes, then keeps some of them.

    Examples
    --------
    >>> choice = ClassChoice(drop=("frog",), rename={"automobile": "car"})
    >>> choice.apply(np.array([0, 1, 2]), ["automobile", "frog", "ship"])
    (array([ 0, -1,  1]), ['car', 'ship'])
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = [name for name in self.keep if name in self.drop]
        if both:
            raise UsageError(f"class {both[0]!r} is both kept and dropped: leave one of them out")

    @classmethod
    def parse(
        cls, keep: Iterable[str] = (), drop: Iterable[str] = (), rename: Iterable[str] = ()
    ) -> ClassChoice:
        """Read the words of the command line."""
        names: dict[str, str] = {}
        for word in rename:
            old, is_pair, new = word.partition("=")
            if not (is_pair and old and new):
                raise UsageError(f"--map takes OLD=NEW (automobile=car), not {word!r}")
            if old in names:
                raise UsageError(f"--map names {old!r} twice: a class gets one new name")
            names[old] = new
        return cls(tuple(keep), tuple(drop), names)

    @property
    def is_everything(self) -> bool:
        """Whether nothing is changed."""
        return not (self.keep or self.drop or self.rename)

    @property
    def tag(self) -> str:
        """Short name of the choice for file names; empty where nothing is changed."""
        return "" if self.is_everything else f"classes{fingerprint(self.record())[:6]}"

    def record(self) -> dict[str, Any]:
        """Give the choice as plain values for JSON."""
        return {"keep": list(self.keep), "drop": list(self.drop), "rename": dict(self.rename)}

    def apply(self, labels: np.ndarray, class_names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Give new labels and names."""
        old = _find("--map", self.rename, class_names)
        rename = dict(zip(old, self.rename.values(), strict=True))
        renamed = [rename.get(name, name) for name in class_names]
        present = list(dict.fromkeys(renamed))
        keep = _find("--classes", self.keep, present)
        drop = _find("--drop", self.drop, present)
        kept = [name for name in dict.fromkeys(keep or present) if name not in drop]
        if len(kept) < 2:
            raise UsageError(f"{len(kept)} of {len(present)} classes stay: a classifier needs two")
        index = {name: i for i, name in enumerate(kept)}
        # One entry more, reached by the label -1.
        table = np.array([*(index.get(name, -1) for name in renamed), -1], dtype=np.int64)
        return table[labels], kept

    def apply_to(self, source: Source) -> Source:
        """Keep the rows of the chosen classes; without unknown ones where a class is named."""
        if self.is_everything:
            return source
        labels, names = self.apply(source.labels, source.class_names)
        # A split without labels (STL-10's unlabeled) has nothing to choose from.
        rows = np.flatnonzero(labels >= 0) if (source.labels >= 0).any() else np.arange(len(source))
        relabelled = replace(source, labels=labels, class_names=tuple(names))
        return relabelled if len(rows) == len(source) else relabelled.take(rows)


def _find(flag: str, wanted: Iterable[str], present: Sequence[str]) -> list[str]:
    """Give the names that are wanted as the data write them; keyboards write é in two ways."""
    written = {clean(name): name for name in present}
    for name in wanted:
        if clean(name) not in written:
            close = nearest(name, present)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"there are {some_of(present)}"
            )
            raise UsageError(f"{flag}: there is no class {name!r}: {hint}")
    return [name if name in present else written[clean(name)] for name in wanted]

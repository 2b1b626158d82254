"""Forms: how a batch is shared out among the cores, which form is the fastest, and its memory.

It must not know what computes them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol, TypeVar

from featx.atomic import replace_text
from featx.fingerprint import fingerprint
from featx.records import parse_json
from featx.sources.places import default_data_dir

__all__ = ["Form", "FormMemory", "raced"]

_N_TURNS, _N_EACH = 3, 4  # turns of all forms, and batches of each in a turn
_WORTH = 0.97  # of the usual form's time: less of a gain is noise


@dataclass(frozen=True)
class Form:
    """A way to compute a batch: so many images a request, requests one by one or side by side."""

    hint: str
    n_rows: int

    @classmethod
    def choices(cls, n_rows: int, n_threads: int) -> list[Form]:
        """Give the ways that a machine has, the usual one first.

        One request side by side with others has a share of the cores, and of the memory.
        """
        n_parts = next(
            n for n in range(1, n_rows + 1) if n >= min(n_rows, n_threads) and n_rows % n == 0
        )
        usual = cls("LATENCY", n_rows)
        return [usual] if n_parts == 1 else [usual, cls("THROUGHPUT", n_rows // n_parts)]


class _Racer(Protocol):
    def wait(self) -> None:
        """Wait for all that is under way."""


_R = TypeVar("_R", bound=_Racer)


def raced(racers: Sequence[_R]) -> Generator[_R, None, _R]:
    """Give who computes each batch to come, in turns, and return the fastest.

    They are the batches of the run: none is computed only to be timed. The first is the usual
    one, which another must beat clearly.
    """
    shares: list[list[float]] = []
    for _ in range(_N_TURNS):
        seconds = []
        for racer in racers:
            began = time.perf_counter()
            yield from [racer] * _N_EACH
            racer.wait()
            seconds.append(time.perf_counter() - began)
        shares.append([each / seconds[0] for each in seconds])
    middle = [median(turn) for turn in zip(*shares, strict=True)]
    best = min(range(len(racers)), key=middle.__getitem__)
    return racers[best if middle[best] < _WORTH else 0]


class FormMemory:
    """Which form was the fastest, in a file for each network, size and machine."""

    def __init__(self, circumstances: Mapping[str, Any]) -> None:
        self._key = fingerprint(circumstances)
        self.path = default_data_dir() / "openvino" / f"{self._key[:32]}.json"

    def recall(self) -> Form | None:
        """Give what was kept; None where nothing is, or the file is damaged or another's."""
        try:
            record = parse_json(self.path.read_bytes())
            form = Form(record["hint"], record["n_rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return form if record == self._sealed(form) else None

    def keep(self, form: Form) -> None:
        """Remember a form; a disk that refuses is no error."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, json.dumps(self._sealed(form)) + "\n")

    def _sealed(self, form: Form) -> dict[str, Any]:
        record = {"key": self._key, **asdict(form)}
        return {**record, "sha256": fingerprint(record)}

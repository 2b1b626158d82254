"""What the steps found: JSON that is whole after each message, and a Markdown table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.atomic import replace_text
from gpu_kit.kit import Step

__all__ = ["Record"]


class Record:
    """Findings of a run, in files.

    Parameters
    ----------
    folder : Path
        Gets ``gpu.json`` and ``gpu.md``.
    asked : mapping
        What was typed.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self._folder = folder
        self.found: dict[str, Any] = {"asked": dict(asked), "steps": {}}
        self._step: dict[str, Any] = {}

    def begin(self, step: Step, seconds: float) -> None:
        """Open the record of a step that has so many seconds."""
        print(f"\n== {step.name}: {step.title} (at most {seconds:.0f} s)", flush=True)
        self._step = {"title": step.title, "state": "running", "rows": [], "texts": {}}
        self.found["steps"][step.name] = self._step
        self._write()

    def add(self, kind: str, value: Any) -> None:
        """Take up a row or a text."""
        if kind == "row":
            self._step["rows"].append(value)
            mark = "" if value.get("right", True) else "   <-- WRONG"
            print("  " + ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) + mark, flush=True)
        else:
            title, text = value
            self._step["texts"][title] = text
            print(f"  {title}:\n    " + text.replace("\n", "\n    "), flush=True)
        self._write()

    def end(self, state: str, seconds: float) -> None:
        """Close the record of the step."""
        self._step["seconds"] = round(seconds, 1)
        n_wrong = sum(not row.get("right", True) for row in self._step["rows"])
        self._step["state"] = f"{n_wrong} wrong" if state == "done" and n_wrong else state
        print(f"== {self._step['state']} after {seconds:.1f} s", flush=True)
        self._write()

    @property
    def is_good(self) -> bool:
        """Whether every step was done and found nothing wrong."""
        return all(step["state"] == "done" for step in self.found["steps"].values())

    def _write(self) -> None:
        text = json.dumps(self.found, indent=1, default=str)
        replace_text(self._folder / "gpu.json", text + "\n")
        parts = [_section(name, step) for name, step in self.found["steps"].items()]
        asked = "  ".join(f"{key}={value}" for key, value in self.found["asked"].items())
        head = f"`python benchmarks/gpu.py`, {asked}, load {os.getloadavg()[0]:.1f} at the end"
        replace_text(self._folder / "gpu.md", "\n\n".join([head, *parts]) + "\n")


def _section(name: str, step: Mapping[str, Any]) -> str:
    head = f"## {name}: {step['title']} ({step.get('seconds', 0.0):.0f} s, {step['state']})"
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in step["rows"]:
        tables.setdefault(tuple(row), []).append(row)
    return "\n\n".join([head, *(_table(*pair) for pair in tables.items())])


def _table(names: tuple[str, ...], rows: list[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (_shown(row[name]).replace("|", "\\|").replace("\n", " ") for name in names)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)

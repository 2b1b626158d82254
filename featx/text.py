"""Text for people: tables that fit the terminal, and names that cannot do anything to it."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Container, Iterator, Sequence

__all__ = [
    "as_utf8",
    "count_of",
    "csv_text",
    "shared_columns",
    "size_text",
    "some_of",
    "table_width",
    "text_table",
    "time_text",
    "visible",
]

_USUAL_WIDTH = 80
_GAP, _INDENT = 2, 4
_UNITS = (
    (1e12, "TB", ".1f"),
    (1e9, "GB", ".1f"),
    (1e6, "MB", ".1f"),
    (1e3, "kB", ".1f"),
    (1.0, "bytes", ".0f"),
)
_TIMES = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""Write control characters and marks of writing direction as escapes, as ``\x1b``.

    A class or a file may be called anything; on a terminal such a name could hide or forge lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_shown(c) else _escaped(c) for c in text)


def csv_text(value: object) -> object:
    """Put an apostrophe before text that a spreadsheet would take for a formula.

    Rule of OWASP, "CSV injection": text that begins with = + - @, a tab or a carriage return.
    """
    is_formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r")
    return f"'{value}" if is_formula else value


def size_text(n_bytes: float) -> str:
    """Write a size in the unit that makes it a number from 1 to 1,000."""
    unit, word, form = next((u for u in _UNITS if n_bytes >= u[0]), _UNITS[-1])
    return f"{format(n_bytes / unit, form)} {word}"


def time_text(seconds: float) -> str:
    """Write a length of time roughly, in the largest unit that it has twice."""
    size, unit = next((n, unit) for n, unit in _TIMES if seconds >= 2 * n or n == 1)
    return f"about {seconds / size:,.0f} {unit}"


def count_of(n: int, word: str) -> str:
    """Write a number of things: 1 file, 2 files."""
    return f"{n:,} {word}{'s' * (n != 1)}"


def some_of(names: Sequence[str], n: int = 12) -> str:
    """Name the first of many things, and how many more there are."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def as_utf8(name: str) -> str:
    r"""Write bytes of a file name that are no UTF-8 as ``\xNN``, for files that hold text only."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_shown(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def table_width() -> int:
    """Columns of the terminal; 80 where there is none (``COLUMNS`` changes it)."""
    return max(shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns, 40)


def shared_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], kept: Container[str]
) -> tuple[str, list[str], list[list[str]]]:
    """Take out the columns that are equal in all rows: they are said once, above the table."""
    shared = [
        i
        for i, name in enumerate(header)
        if name not in kept and len({row[i] for row in rows}) == 1
    ]
    said = "; ".join(f"{header[i]} {visible(rows[0][i], keep='')}" for i in shared)
    rest = [i for i in range(len(header)) if i not in shared]
    return said, [header[i] for i in rest], [[row[i] for i in rest] for row in rows]


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Container[str] | None = None,
    *,
    has_rule: bool = True,
    width: int | None = None,
) -> str:
    """Align cells below their names; columns that do not fit stand on further lines of each row.

    Columns in `left` are words and begin at the left; the others are numbers. None: all are words.
    """
    width = width or table_width()
    cells = [[visible(cell, keep="") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_left = [left is None or name in left for name in header]
    folds = list(_folded(widths, width))
    lines = []
    for row in cells:
        padded = [
            cell.ljust(size) if at else cell.rjust(size)
            for cell, size, at in zip(row, widths, is_left, strict=True)
        ]
        for n, columns in enumerate(folds):
            lines += _line([padded[i] for i in columns], " " * _INDENT * (n > 0), width)
    if has_rule:
        rule = "  ".join("-" * size for size in widths)
        lines.insert(len(folds), rule if len(folds) == 1 else "-" * max(map(len, lines)))
    return "\n".join(lines)


def _folded(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Give the columns of each line of a row."""
    line, used = list[int](), 0
    for i, size in enumerate(widths):
        if line and used + size > width:
            yield line
            line, used = [], _INDENT
        line.append(i)
        used += size + _GAP
    yield line


def _line(parts: Sequence[str], indent: str, width: int) -> list[str]:
    text = f"{indent}{(' ' * _GAP).join(parts)}".rstrip()
    if indent and not text:
        return []
    if len(text) <= width or len(parts) > 1:
        return [text]
    # One long cell, such as a description.
    return textwrap.wrap(
        text.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=indent or " " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )

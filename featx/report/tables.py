"""Tables for papers and documents: Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from featx.evaluate.systems import by_size
from featx.evaluate.table import Lines
from featx.text import csv_text

__all__ = ["class_table", "format_lines", "markdown_text"]

_DIGITS = 1  # of percentages
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " "},
}
_MARKDOWN = {**{letter: f"\\{letter}" for letter in "\\`*_[]<>|#~&"}, "\n": " ", "\r": " "}

Row = Sequence[str]


def format_lines(lines: Lines, form: str) -> str:
    """Write the results as a table: systems down, images per class across.

    A cell is the mean accuracy in per cent with its 95 % interval over draws and test images; the
    best of a column is bold. CSV has one row a line instead, with every figure unrounded.
    """
    if form == "csv":
        return lines.frame.drop(columns="id").map(csv_text).to_csv(index=False)
    write, bold = _WRITERS[form], _BOLD[form]
    escape = _ESCAPES[form]
    parts = []
    for data, frame in lines.frame.groupby("data", sort=False):
        sizes = by_size(frame["per class"].unique())
        head = ["system", *(f"{size} per class" for size in sizes)]
        rows = [[escape(word) for word in head]]
        cells = {size: _column(frame[frame["per class"] == size], bold) for size in sizes}
        for system in dict.fromkeys(frame["system"]):
            rows.append([escape(system), *(cells[size].get(system, "-") for size in sizes)])
        note = f"{data}: mean accuracy in per cent, {_what(frame)}; the best of a column is bold."
        parts.append(write(rows, escape(note)))
    return "\n".join(parts)


def _column(frame: pd.DataFrame, bold: Callable[[str], str]) -> dict[str, str]:
    best = frame["accuracy"].max()
    return {
        line["system"]: _cell(line, bold if line["accuracy"] == best else str)
        for _, line in frame.iterrows()
    }


def _cell(line: pd.Series[float], emphasise: Callable[[str], str]) -> str:
    if pd.isna(line["accuracy"]):
        return "failed"
    low, mean, high = (f"{100 * line[name]:.{_DIGITS}f}" for name in ("low", "accuracy", "high"))
    return f"{emphasise(mean)} ({low}–{high})"


def _what(frame: pd.DataFrame) -> str:
    draws, tests = (sorted(frame[name].unique()) for name in ("repeats", "test images"))
    n_draws = " or ".join(str(n) for n in draws)
    n_tests = " or ".join(f"{n:,}" for n in tests)
    return f"95 % interval over {n_draws} draws and {n_tests} test images"


def class_table(rows: Sequence[Mapping[str, object]], form: str, title: str) -> str:
    """Write precision, recall, F1 and test images of each class, as scikit-learn's report does."""
    if form == "csv":
        return pd.DataFrame(list(rows)).assign(table=title).map(csv_text).to_csv(index=False)
    escape = _ESCAPES[form]
    head = [escape(str(name)) for name in rows[0]]
    body = [[escape(_plain(value)) for value in row.values()] for row in rows]
    return _WRITERS[form]([head, *body], escape(title))


def _plain(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _escaper(letters: Mapping[str, str]) -> Callable[[str], str]:
    table = str.maketrans(dict(letters))
    return lambda text: str(text).translate(table)


def markdown_text(text: str) -> str:
    """Escape what Markdown would take for something else."""
    return _ESCAPES["md"](text)


def _markdown(rows: Sequence[Row], note: str) -> str:
    head, *body = rows
    rule = ["---", *(["---:"] * (len(head) - 1))]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
    return "\n".join([*lines, f"\n{note}", ""])


def _latex(rows: Sequence[Row], note: str) -> str:
    r"""Write a table of booktabs: ``\usepackage{booktabs}`` goes before it."""

    def lines() -> Iterator[str]:
        yield r"\begin{table}"
        yield rf"\caption{{{note}}}"
        yield rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
        yield r"\toprule"
        yield rf"{' & '.join(rows[0])} \\"
        yield r"\midrule"
        yield from (rf"{' & '.join(row)} \\" for row in rows[1:])
        yield r"\bottomrule"
        yield r"\end{tabular}"
        yield r"\end{table}"

    return "\n".join([*lines(), ""])


def _html(rows: Sequence[Row], note: str) -> str:
    def line(row: Row, kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in row)}</tr>"

    body = "\n".join(line(row, "td") for row in rows[1:])
    head = line(rows[0], "th")
    top = f"<caption>{note}</caption>\n<thead>{head}</thead>"
    return f"<table>\n{top}\n<tbody>\n{body}\n</tbody>\n</table>\n"


_WRITERS = {"md": _markdown, "latex": _latex, "html": _html}
_ESCAPES = {"md": _escaper(_MARKDOWN), "latex": _escaper(_LATEX), "html": html.escape}
_BOLD: dict[str, Callable[[str], str]] = {
    "md": lambda text: f"**{text}**",
    "latex": lambda text: rf"\textbf{{{text}}}",
    "html": lambda text: f"<b>{text}</b>",
}

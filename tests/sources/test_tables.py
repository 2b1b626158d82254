from __future__ import annotations

import builtins
import csv
import datetime
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import MissingExtraError, SourceError
from featx.progress import Reporter
from featx.sources.tables import read_numbered_table, read_table


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y\n1,b\n,c d\n"),
        ("a.CSV", "x,y\r\n1,b\r\n,c d"),
        ("a.csv", "\ufeffx,y\n1,b\n,c d\n"),
        ("a.csv", " x , y\n1, b\n, c d\n"),
        ("a.csv", '"x","y"\n\n"1",b\n,"c d"\n\n'),
        ("a.csv", "x;y\n1;b\n;c d\n"),
        ("a.csv", "x\ty\n1\tb\n\tc d\n"),
        ("a.tsv", "x\ty\n1\tb\n\tc d\n"),
        ("a.jsonl", '{"x": 1.0, "y": "b", "box": [1]}\n\n{"x": null, "y": "c d"}\n'),
    ],
)
def test_ways_to_write_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert read_table(write(tmp_path / name, text)) == {"x": ["1", ""], "y": ["b", "c d"]}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("utf-16", "x|y\n1|é\n"), ("cp1252", "x;y\n1;é\n"), ("latin-1", "x,y\n1,é\n\x81,\n")],
)
def test_other_encodings_and_separators(tmp_path: Path, encoding: str, text: str) -> None:
    file, stream = write(tmp_path / "a.csv", text.encode(encoding)), io.StringIO()
    found, _ = read_numbered_table(file, Reporter(stream=stream, quiet=True))
    assert (found["x"][0], found["y"][0]) == ("1", "é")
    assert f"a.csv is not UTF-8 text: read as {encoding}" in stream.getvalue()


def test_columns_without_rows(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "a.csv", "x,y\n")) == {"x": [], "y": []}


def test_a_separator_or_a_line_break_in_a_cell(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'x,y\n"a, b","c\nd"\n\n"say ""x""",;\n')
    columns, numbers = read_numbered_table(file)
    assert columns == {"x": ["a, b", 'say "x"'], "y": ["c\nd", ";"]}
    assert list(numbers) == [3, 5]


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            *[st.text(st.characters(codec="utf-8", exclude_characters="\r\0")).map(str.strip)] * 3
        ),
        max_size=8,
    )
)
def test_what_the_csv_module_writes_comes_back(
    rows: list[tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("x") / "a.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("a", "b", "c"), *rows])
    columns = read_table(file)
    assert list(zip(*columns.values(), strict=True)) == rows


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty: its first line must name the columns"),
        ("\n\n", "is empty"),
        ("x,y,x\n", "has two columns 'x': rename one"),
        ("x,y\n1,2\n\n1,2,3\n", "line 4: 3 cells in place of 2; a cell with the separator in it"),
        ("x,y\n1\n", "line 2: 1 cells in place of 2"),
        ('x,y\n1,"a\n', "is no table that featx can read: unexpected end of data"),
        ('x,y\n1,"a"b\n', "is no table that featx can read"),
        ("x,y\n1,b\n".encode("utf-16-le"), "is no text: save it as UTF-8"),
        ("x,y\n1," + "a" * 200_000, "is no table that featx can read: field larger than"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as caught:
        read_table(write(tmp_path / "a.csv", text))
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_wrong_lines_of_json(tmp_path: Path) -> None:
    for text in ('{"x": 1}\n[2]\n', '{"x": 1}\n{"x": 2'):
        with pytest.raises(SourceError, match="a.jsonl, line 2: no JSON object"):
            read_table(write(tmp_path / "a.jsonl", text))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=f"cannot read .*{name}: No such file"):
        read_table(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match=f"cannot read .*{name}: "):
        read_table(tmp_path / name)


def test_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "split=train"
    folder.mkdir()
    frame = pd.DataFrame(
        {
            "text": ["a", None, "c "],
            "number": [3, 4, 5],
            "hole": [1.0, np.nan, 3.0],
            "real": [0.5, 1.5, 2.0],
            "flag": [True, False, True],
            "day": [datetime.date(2026, 1, 2)] * 3,
            "image": [b"1", b"2", b"3"],
            "box": [[1, 2], [3], []],
        }
    )
    frame.to_parquet(folder / "a.parquet")
    columns, numbers = read_numbered_table(folder / "a.parquet")
    assert columns == {
        "text": ["a", "", "c "],
        "number": ["3", "4", "5"],
        "hole": ["1", "", "3"],
        "real": ["0.5", "1.5", "2"],
        "flag": ["True", "False", "True"],
        "day": ["2026-01-02"] * 3,
    }
    assert list(numbers) == [1, 2, 3]


def test_no_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", b"PAR1 no")
    with pytest.raises(SourceError, match="is no Parquet file, or damaged"):
        read_table(file)
    whole = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return whole(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[parquet\]'"):
        read_table(file)

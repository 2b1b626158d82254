"""Tables that fit, and names that cannot do anything to a terminal."""

from __future__ import annotations

import io

import pytest

from featx.progress import Reporter
from featx.text import csv_text, shared_columns, text_table, visible

HOSTILE = "cat\x1b[2J\u202egod\rdog\x07\u2028\u200b\ud800"
SHOWN = r"cat\x1b[2J\u202egod\rdog\x07\u2028\u200b\ud800"


def test_hostile_names_are_shown_as_escapes_and_others_as_they_are():
    assert visible(HOSTILE) == SHOWN
    assert visible("a\nb\tc") == "a\nb\tc"
    assert visible("a\nb", keep="") == r"a\nb"
    for name in ("Löwe", "قط", "猫 🐈", "é", "0.676–1.000"):
        assert visible(name) == name


def test_notices_are_shown_safely():
    stream = io.StringIO()
    Reporter(stream=stream).warn(HOSTILE)
    Reporter(stream=stream).say(HOSTILE)
    assert stream.getvalue() == f"warning: {SHOWN}\n{SHOWN}\n"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_fits_and_loses_no_cell(width):
    header = ["file", "layer", "accuracy", "interval", "seconds"]
    rows = [[f"name-{i}" * 4, "features", f"0.{i}", "0.1–0.2", "3.1"] for i in range(3)]
    text = text_table(header, rows, ("file", "layer"), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert sorted(text.replace("-" * 4, " ").split()) == sorted(
        [word.replace("-" * 4, " ") for line in (header, *rows) for word in line]
        + [word for word in text.replace("-" * 4, " ").split() if set(word) == {"-"}]
    )
    assert "\x1b" not in text_table(["name"], [[HOSTILE]])


def test_no_name_is_a_formula_in_a_csv_file():
    assert [csv_text(v) for v in ("=1+1", "+a", "-b", "@c", "\td")] == [
        *("'=1+1", "'+a", "'-b", "'@c", "'\td")
    ]
    assert [csv_text(v) for v in ("a=b", "", -0.5, None)] == ["a=b", "", -0.5, None]


def test_numbers_are_right_and_words_left():
    table = text_table(["name", "n"], [["a", "1"], ["bcdef", "1,234"]], ("name",), width=80)
    assert table.splitlines() == ["name       n", "-----  -----", "a          1", "bcdef  1,234"]


def test_a_long_last_word_is_wrapped_and_an_empty_one_takes_no_line():
    rows = [["svm", " ".join(["word"] * 30)], ["ncm", ""]]
    lines = text_table(["head", "what"], rows, has_rule=False, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-1] == "ncm"
    assert " ".join(lines).split().count("word") == 30


def test_what_is_equal_in_all_rows_is_said_once():
    rows = [["digits", "svm", "0.5"], ["digits", "ncm", "0.5"]]
    said, header, rest = shared_columns(["data", "head", "accuracy"], rows, ("accuracy",))
    assert (said, header) == ("data digits", ["head", "accuracy"])
    assert rest == [["svm", "0.5"], ["ncm", "0.5"]]

"""Groups stay on one side: of the hold-out, of train and test, and of the folds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import SourceError, UsageError
from featx.evaluate import Pair, Settings, add_groups, evaluate, fitting
from featx.evaluate.leaks import SAME_GROUP
from featx.progress import Reporter


def write_table(path, rows, names=("path", "patient")):
    path.write_text("\n".join(",".join(row) for row in [names, *rows]) + "\n", encoding="utf-8")
    return path


def run(pair, **settings):
    stream = io.StringIO()
    chosen = Settings(**{"per_class": ("all",), "C": 0.01, **settings})
    found = []
    results = evaluate(
        pair, chosen, reporter=Reporter(quiet=True, stream=stream), on_leaks=found.append
    )
    return results, stream.getvalue(), found[0]


@pytest.fixture
def whole(tmp_path):
    """90 images without splits, of 18 patients; each patient has five in a row."""
    cache = make_cache(90, split="all")
    names = [f"p{i // 5:02}" for i in range(90)]
    table = write_table(tmp_path / "t.csv", zip(cache.paths, names, strict=True))
    return Pair(cache, cache), table, np.array(names)


@pytest.fixture
def parted(pair, tmp_path):
    """Patients 0 to 11 in train; test has 15 others, but for rows 0 and 1 (patient 3)."""
    train = [f"p{i // 5}" for i in range(60)]
    test = ["p3", "p3"] + [f"q{i // 3}" for i in range(2, 45)]
    rows = zip([*pair.train.paths, *pair.test.paths], train + test, strict=True)
    return pair, write_table(tmp_path / "t.csv", rows)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_straddles_the_hold_out(whole, seed):
    pair, table, names = whole
    grouped = add_groups(pair, f"{table}:patient")
    drawable, test_rows = grouped.split(0.2, seed)
    assert not set(names[drawable]) & set(names[test_rows])
    assert drawable.sum() + len(test_rows) == 90
    shares = np.bincount(pair.train.y[test_rows]) / 30
    assert ((shares >= 0.1) & (shares <= 0.3)).all()


def test_a_hold_out_with_groups_is_told_and_has_no_leak(whole):
    pair, table, _ = whole
    (result,), text, leaks = run(add_groups(pair, f"{table}:patient"))
    assert leaks.counts[SAME_GROUP] == 0
    assert "20% of each class, in whole groups, held out (seed 0)" in result.notes
    assert result.detail["groups"]["column"] == "patient"
    assert text == ""
    (plain,), _, _ = run(pair)
    assert plain.fit_id != result.fit_id
    assert "groups" not in plain.detail


def test_a_group_on_both_sides_is_a_leak(parted):
    pair, table = parted
    grouped = add_groups(pair, f"{table}:patient")
    (result,), text, leaks = run(grouped)
    assert leaks.counts[SAME_GROUP] == 2
    assert leaks.train_rows.tolist() == [15, 16, 17, 18, 19]
    assert leaks.n_duplicates == 0
    assert "2 of 45 test images are in a group (patient) of training images" in text
    assert "same group: test/0000.jpg (ant) and train/0015.jpg (ant)" in text
    assert "(patient)" in result.notes
    assert result.n_train == 60
    (dropped,), _, _ = run(grouped, on_leak="drop")
    assert dropped.n_train == 55
    assert dropped.n_test == 45


@pytest.mark.parametrize("head", ["svm", "logreg"])
def test_folds_keep_groups_together(whole, monkeypatch, head):
    pair, table, names = whole
    seen = []
    real = fitting.FitOptions
    monkeypatch.setattr(fitting, "FitOptions", lambda *words: seen.append(words) or real(*words))
    (result,), _, _ = run(add_groups(pair, f"{table}:patient"), C=None, heads=(head,))
    groups = seen[0][3]
    rows = np.array(result.detail["train_rows"])
    assert len(groups) == len(rows)
    assert len(set(zip(groups.tolist(), names[rows].tolist(), strict=True))) == len(set(groups))
    assert len(result.detail["cv"]["accuracy"][0]) == 5


def test_the_table_that_a_cache_was_made_from_is_the_default(whole):
    pair, table, _ = whole
    with pytest.raises(UsageError, match="does not say its table: give --groups TABLE:patient"):
        add_groups(pair, "patient")
    pair.train.meta["request"] = {"data": str(table.parent)}
    with pytest.raises(UsageError, match="was made from .* which is no table"):
        add_groups(pair, "patient")
    pair.train.meta["request"] = {"data": str(table)}
    assert len(add_groups(pair, "patient").groups.names) == 18


@pytest.mark.parametrize(
    "how", ["as in the cache", "./", "relative", "absolute", "backslash", "id"]
)
def test_paths_are_joined_however_they_are_written(whole, tmp_path, how):
    pair, _, names = whole
    (tmp_path / "lists").mkdir()
    (tmp_path / "farm").mkdir()
    pair.train.meta["request"] = {"data": str(tmp_path / "farm")}
    write = {
        "as in the cache": lambda p: p,
        "./": lambda p: f"./{p}",
        "relative": lambda p: f"../farm/{p}",
        "absolute": lambda p: str(tmp_path / "farm" / p),
        "backslash": lambda p: p.replace("/", "\\"),
        "id": lambda p: p.rpartition(".")[0],
    }[how]
    rows = [(write(p), name) for p, name in zip(pair.train.paths, names, strict=True)]
    columns = ("image_id" if how == "id" else "path", "patient")
    table = write_table(tmp_path / "lists" / "t.csv", rows, columns)
    groups = add_groups(pair, f"{table}:patient").groups
    assert [groups.names[g] for g in groups.train] == names.tolist()


def test_images_without_a_group_are_an_error_with_counts_and_examples(whole, tmp_path):
    pair, _, names = whole
    rows = list(zip(pair.train.paths, names, strict=True))
    rows[4] = (rows[4][0], "")
    table = write_table(tmp_path / "part.csv", rows[:80])
    with pytest.raises(SourceError) as caught:
        add_groups(pair, f"{table}:patient")
    for words in ("for 11 of 90 images", "all/0004.jpg, all/0080.jpg", "its paths are like all/"):
        assert words in str(caught.value)
    pair.train.status[[4, *range(80, 90)]] = 2
    groups = add_groups(pair, f"{table}:patient").groups
    assert groups.train[4] == -1


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ("{table}:patent", UsageError, "no column 'patent': did you mean patient"),
        ("{table}:", UsageError, "COLUMN or TABLE:COLUMN"),
        ("{table}x.csv:patient", SourceError, "cannot read"),
    ],
)
def test_words_that_name_nothing(whole, words, error, text):
    pair, table, _ = whole
    with pytest.raises(error, match=text):
        add_groups(pair, words.format(table=table))


def test_a_path_in_two_groups_is_an_error(whole, tmp_path):
    pair, _, _ = whole
    table = write_table(tmp_path / "two.csv", [("a.jpg", "p1"), ("a.jpg", "p2")])
    with pytest.raises(SourceError, match="puts 'a.jpg' in two groups, 'p1' and 'p2'"):
        add_groups(pair, f"{table}:patient")


def test_a_table_without_paths_says_what_it_has(whole, tmp_path):
    table = write_table(tmp_path / "odd.csv", [("a.jpg", "p1")], names=("scan", "patient"))
    with pytest.raises(UsageError, match="no column 'path': .*scan, patient"):
        add_groups(whole[0], f"{table}:patient")
    table = write_table(tmp_path / "b.csv", [("a.jpg", "p1")], names=("filename", "patient"))
    with pytest.raises(SourceError, match="for 90 of 90"):
        add_groups(whole[0], f"{table}:patient")

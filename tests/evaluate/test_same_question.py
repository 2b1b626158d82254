"""A line of the table is one question, an answer has the names that were asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import UsageError
from featx.evaluate import (
    Pair,
    ResultsFolder,
    Settings,
    add_groups,
    compare,
    evaluate,
    read_results,
    summarise,
)
from featx.progress import SILENT

USUAL = Settings(per_class=(4,), repeats=3, C=0.01)


@pytest.fixture
def ask(tmp_path):
    """Ask as ``featx fit`` does; give the fits and how many were made."""

    def ask(pair, settings=USUAL):
        results = ResultsFolder(tmp_path)
        made = []

        def keep(result, fit):
            made.append(results.add(result))

        fits = evaluate(pair, settings, sink=keep, known=results)
        results.complete(fits)
        return fits, len(made)

    return ask


def lines_of(folder):
    table = summarise(read_results(folder, reporter=SILENT))
    return list(zip(table["repeats"], table["accuracy"].round(12), strict=True))


def line_of(fits):
    table = summarise(fits)
    return list(zip(table["repeats"], table["accuracy"].round(12), strict=True))


@pytest.fixture
def copies(pair):
    """The same images in another folder: one content, two names."""
    return Pair(make_cache(data="copy"), make_cache(45, split="test", data="copy"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 100},
        {"C": 0.5},
        {"C": None},
        {"folds": 3},
        {"scale": "l2"},
        {"class_weight": "balanced"},
        {"per_class": (5,)},
        {"heads": ("logreg",)},
    ],
)
def test_another_question_is_another_line(pair, ask, tmp_path, change):
    first, _ = ask(pair)
    second, _ = ask(pair, replace(USUAL, **change))
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]
    assert [n for n, _ in lines_of(tmp_path)] == [3, 3]


@pytest.mark.parametrize("change", [{"holdout": 0.3}, {"holdout_seed": 1}])
def test_another_test_part_is_another_line(ask, tmp_path, change):
    whole = make_cache(90, split="all")
    first, _ = ask(Pair(whole, whole))
    second, _ = ask(Pair(whole, whole), replace(USUAL, **change))
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]


def test_what_is_dropped_for_leaks_is_another_line(pair, ask, tmp_path):
    pair.test.X[:12] = pair.train.X[:12]
    first, _ = ask(pair)
    second, _ = ask(pair, replace(USUAL, on_leak="drop"))
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]
    assert len(read_results(tmp_path, reporter=SILENT)["on_leak"].dropna()) == 3
    ask(pair, replace(USUAL, heads=("logreg",)))
    with pytest.raises(UsageError, match="with on_leak drop, no: say which"):
        compare(["svm", "logreg"], tmp_path)


def test_groups_are_another_line(pair, ask, tmp_path):
    names = [*pair.train.paths, *pair.test.paths]
    table = tmp_path / "t.csv"
    lines = "".join(f"{path},g{i}\n" for i, path in enumerate(names))
    table.write_text("path,patient\n" + lines, encoding="utf-8")
    first, _ = ask(pair)
    second, _ = ask(add_groups(pair, f"{table}:patient"))
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]


def test_draws_that_overlap_are_made_once_and_counted_once_a_line(pair, ask, tmp_path):
    """Seeds 0 1 2 and 1 2 3: four draws, each known by its seed and rows and not by its number."""
    first, n_first = ask(pair)
    second, n_second = ask(pair, replace(USUAL, seed=1))
    assert (n_first, n_second) == (3, 1)
    assert [fit.acc1 for fit in second[:2]] == [fit.acc1 for fit in first[1:]]
    assert [fit.repeat for fit in second] == [0, 1, 2]
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]
    both = summarise([*first, *second])
    assert both["first seed"].tolist() == ["0", "1"]
    assert ask(pair, replace(USUAL, seed=1))[1] == 0
    assert len(list((tmp_path / "fits").iterdir())) == 6
    assert compare(["C=0.01,svm", "logreg"], _with_logreg(pair, [*first, *second]))[
        "n_draws"
    ].tolist() == [4]


def _with_logreg(pair, fits):
    return [*fits, *evaluate(pair, replace(USUAL, heads=("logreg",), repeats=4))]


def test_an_answer_by_content_has_the_name_that_was_asked_for(pair, copies, ask, tmp_path):
    first, _ = ask(pair)
    second, n_made = ask(copies)
    assert n_made == 0
    assert {fit.data for fit in second} == {"copy"}
    assert [fit.acc1 for fit in second] == [fit.acc1 for fit in first]
    assert summarise([*first, *second])["data"].tolist() == ["farm", "copy"]
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]
    assert [n for n, _ in lines_of(tmp_path)] == [3, 3]
    again, n_made = ask(pair)
    assert (n_made, again) == (0, first)
    assert second[0].detail["train_cache"] == "cache/copy-train.h5"
    more = replace(USUAL, heads=("logreg",))
    ask(pair, more)
    ask(copies, more)
    for name in ("farm", "copy"):
        table = compare(["svm", "logreg"], tmp_path, where={"data": [name]})
        assert table["n_draws"].tolist() == [3]


@pytest.mark.parametrize("name", ["weights", "backbone", "layer"])
def test_other_names_of_the_same_features(pair, ask, tmp_path, name):
    """Weights are known by their tensors: the same ones may lie in two files."""
    first, _ = ask(pair)
    value = {"label": "other"} if name == "weights" else "other"
    other = Pair(make_cache(**{name: value}), make_cache(45, split="test", **{name: value}))
    second, n_made = ask(other)
    assert n_made == 0
    assert {getattr(fit, name) for fit in second} == {"other"}
    assert lines_of(tmp_path) == [*line_of(first), *line_of(second)]


def test_what_is_named_twice_is_asked_once(pair, ask):
    settings = replace(USUAL, heads=("svm", "svm"), per_class=(4, 4))
    fits, n_made = ask(pair, settings)
    assert (len(fits), n_made) == (3, 3)


def test_fits_of_a_record_without_the_new_columns_answer(pair, ask, tmp_path):
    """Of a featx that kept no name of the question."""
    first, _ = ask(pair)
    for path in (tmp_path / "fits").iterdir():
        path.unlink()
    older = [
        replace(fit, detail={k: v for k, v in fit.detail.items() if k != "question"})
        for fit in first
    ]
    ResultsFolder(tmp_path).complete(older)
    again, n_made = ask(pair, replace(USUAL, repeats=4))
    assert n_made == 1
    assert [n for n, _ in line_of(again)] == [4]


def test_a_cache_that_grew_is_preferred_where_it_is_there_today(pair, ask, tmp_path):
    both = replace(USUAL, heads=("svm", "logreg"))
    ask(pair, both)
    grown = Pair(make_cache(63, seed=5), pair.test)
    grown.train.fingerprint = "grown"
    ask(grown, both)
    with pytest.raises(UsageError, match="names 2 systems, with cache") as error:
        compare(["svm", "logreg"], tmp_path)
    for word in ("farm-train.h5, 12 training images, fitted 20", ",cache="):
        assert word in str(error.value)
    fresh = compare(["svm", "logreg"], tmp_path, today=[grown.train.fingerprint])
    only = list(evaluate(grown, both))
    np.testing.assert_allclose(
        fresh["difference_points"], compare(["svm", "logreg"], only)["difference_points"]
    )
    assert fresh["n_draws"].tolist() == [3]

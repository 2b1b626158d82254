"""What is asked: subsets of all draws, and lines of the table under the names asked for."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError, UsageError
from featx.evaluate import (
    Pair,
    ResultsFolder,
    Settings,
    add_groups,
    choose_classes,
    compare,
    evaluate,
    read_results,
    summarise,
)
from featx.evaluate.pair import ClassView
from featx.evaluate.question import Subset, draw_all, share_reads, union_of
from featx.fewshot import draw_subset, name_images, subset_hash
from featx.progress import SILENT, Reporter
from featx.sources.select import ClassChoice

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
    second, n_made = ask(pair, replace(USUAL, **change))
    assert n_made == 3
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


def test_draw_r_has_the_seed_plus_r_and_sizes_are_nested():
    cache = make_cache()
    settings = Settings(per_class=(3, 8), repeats=2, seed=5)
    subsets, notices = draw_all(cache, np.ones(60, bool), settings)
    assert [(s.per_class, s.repeat, s.seed) for s in subsets] == [
        (3, 0, 5),
        (8, 0, 5),
        (3, 1, 6),
        (8, 1, 6),
    ]
    images = name_images(cache.image_digests, cache.paths)
    alone = draw_subset(cache.y, 3, seed=6, class_names=cache.class_names, images=images)
    assert subsets[2].rows.tolist() == alone.tolist()
    assert set(subsets[0].rows) < set(subsets[1].rows)
    assert subsets[0].sha256 == subset_hash(subsets[0].rows)
    assert notices == []


def test_equal_draws_are_fitted_once():
    settings = Settings(per_class=(20, "all"), repeats=4)
    subsets, notices = draw_all(make_cache(), np.ones(60, bool), settings)
    assert [(s.per_class, s.repeat) for s in subsets] == [(20, 0), ("all", 0)]
    assert notices == [
        "20 per class is all there is: 4 draws would be the same one, which is fitted once"
    ]


def subset(repeat, rows):
    return Subset(1, repeat, repeat, np.array(rows))


def test_overlapping_draws_share_a_gram_matrix_and_separate_ones_do_not():
    overlapping = [subset(0, [1, 2, 3, 4]), subset(1, [1, 2, 3, 5])]
    assert share_reads(overlapping) == [overlapping]
    apart = [subset(0, [1, 2]), subset(0, [1]), subset(1, [3, 4])]
    assert share_reads(apart) == [apart[:2], apart[2:]]
    assert union_of(apart).tolist() == [1, 2, 3, 4]


def told(pair, **settings):
    stream = io.StringIO()
    chosen = Settings(**{"C": 0.01, "repeats": 1, **settings})
    results = evaluate(pair, chosen, reporter=Reporter(quiet=True, stream=stream))
    return results, stream.getvalue()


@pytest.mark.parametrize("per_class", [5, "all"])
def test_a_tested_class_without_a_training_image_is_refused(per_class):
    train, test = make_cache(), make_cache(45, split="test")
    train.y[train.y == 1] = -1
    with pytest.raises(ProtocolError, match=r"1 of 3 tested classes .*bee.*--drop bee"):
        told(Pair(train, test), per_class=(per_class,))
    (result,), _ = told(
        choose_classes(Pair(train, test), ClassChoice(drop=("bee",))), per_class=(per_class,)
    )
    assert result.n_test == 30


def test_images_that_failed_are_no_training_images():
    train, test = make_cache(), make_cache(45, split="test")
    train.status[train.y == 2] = 2
    with pytest.raises(ProtocolError, match="cow"):
        told(Pair(train, test), per_class=("all",))


@pytest.mark.parametrize("per_class", [5, "all"])
def test_classes_that_are_never_tested_are_told_and_noted(per_class):
    train, test = make_cache(), make_cache(45, split="test")
    test.y[test.y == 1] = -1
    (result,), text = told(Pair(train, test), per_class=(per_class,))
    assert "1 of 3 classes have no test image" in text
    assert "of the other 2: bee" in text
    assert "never tested" in result.notes
    right = np.array(result.detail["predictions"]) == result.detail["test_labels"]
    assert result.acc1 == right.mean()
    assert result.n_test == 30


def test_a_class_that_is_on_no_side_is_no_error_for_all():
    train, test = make_cache(), make_cache(45, split="test")
    train.class_names = test.class_names = ["ant", "bee", "cow", "dog"]
    (result,), text = told(Pair(train, test), per_class=("all",))
    assert "dog" not in text
    assert result.n_train == 60


def rows_of(cache, **settings):
    subsets, _ = draw_all(cache, cache.status == 1, Settings(repeats=3, **settings))
    return [{cache.image_digests[row].tobytes() for row in subset.rows} for subset in subsets]


def test_a_draw_of_a_class_does_not_change_with_the_others_their_order_or_failed_rows():
    """Ships are the same ones without airplanes, in another order and beside failed rows."""
    cache = make_cache(120)
    rng = np.random.default_rng(0)
    cache.image_digests = rng.integers(0, 256, (120, 32), np.uint8)
    cows = {cache.image_digests[row].tobytes() for row in np.flatnonzero(cache.y == 2)}
    whole = rows_of(cache, per_class=(4, 9))
    fewer = rows_of(ClassView(cache, ClassChoice(drop=("ant",))), per_class=(4, 9))
    turned = rows_of(ClassView(cache, ClassChoice(keep=("cow", "bee"))), per_class=(4, 9))
    assert [rows & cows for rows in whole] == [rows & cows for rows in fewer]
    assert fewer == turned
    assert whole[0] & cows < whole[1] & cows
    order = rng.permutation(120)
    other = make_cache(120)
    other.y, other.image_digests = cache.y[order], cache.image_digests[order]
    assert rows_of(other, per_class=(4, 9)) == whole
    cache.status[np.flatnonzero(cache.y == 0)[:20]] = 2
    assert [rows & cows for rows in rows_of(cache, per_class=(4, 9))] == [
        rows & cows for rows in whole
    ]

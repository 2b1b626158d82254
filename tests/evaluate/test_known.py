"""The same question is answered from what was kept, without reading features."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from memory_cache import make_cache

from featx.evaluate import Pair, ResultsFolder, Settings, add_groups, evaluate, find_leaks
from featx.evaluate.leaks import leak_record, leaks_key, recall_leaks, record_leaks
from featx.heads.mlp import MlpHead
from featx.heads.torch_mlp import TorchMlpHead
from featx.progress import Reporter

QUESTION = Settings(heads=("svm", "logreg", "mlp"), per_class=(4, 9), repeats=2)


class Unread:
    """Features that nobody may look at."""

    def __init__(self, X):
        self.shape, self.ndim = X.shape, 2

    def __getitem__(self, key):
        raise AssertionError("features were read")


class Desk:
    """A pair, a folder, and everything that was said and fitted."""

    def __init__(self, pair, folder):
        self.pair, self.folder, self.stream = pair, folder, io.StringIO()
        self.reporter = Reporter(quiet=True, stream=self.stream)

    def ask(self, settings=QUESTION, is_known=True, most=None):
        results = ResultsFolder(self.folder, self.reporter)
        self.fitted = []

        def keep(result, fit):
            if len(self.fitted) == most:
                raise KeyboardInterrupt
            results.add(result)
            self.fitted.append(result)

        known = results if is_known else None
        found = evaluate(self.pair, settings, reporter=self.reporter, sink=keep, known=known)
        results.complete(found)
        return found

    @property
    def lines(self):
        return (self.folder / "results.csv").read_text(encoding="utf-8").splitlines()[1:]

    @property
    def files(self):
        return sorted((self.folder / "fits").iterdir())

    def hide(self):
        for cache in (self.pair.train, self.pair.test):
            cache.X = Unread(cache.X)


@pytest.fixture
def desk(pair, tmp_path):
    pair.test.X[[2, 4]] = pair.train.X[[2, 4]]
    return Desk(pair, tmp_path / "reports")


def test_a_known_question_is_answered_exactly_and_unread(desk):
    first = desk.ask()
    assert len(desk.fitted) == len(desk.lines) == len(desk.files) == 12
    before = {path: path.read_bytes() for path in desk.files}
    desk.hide()
    again = desk.ask()
    assert desk.fitted == []
    assert again == first
    assert [r.detail for r in again] == [r.detail for r in first]
    assert [repr(r) for r in again] == [repr(r) for r in first]
    assert len(desk.lines) == 12
    assert {path: path.read_bytes() for path in desk.files} == before
    assert desk.stream.getvalue().count("2 of 45 test images have a copy") == 2


def test_answers_belong_to_the_images_and_not_to_their_row_numbers(desk, tmp_path):
    """The same images in another order have the same fingerprint, and other ones are drawn."""
    for cache in (desk.pair.train, desk.pair.test):
        numbers = np.arange(1, len(cache.y) + 1, dtype="<u8")
        cache.image_digests[:, :8] = numbers.view("u1").reshape(-1, 8)
        cache.image_digests[:, 8] = len(cache.y)
    first = desk.ask()
    for cache in (desk.pair.train, desk.pair.test):
        order = np.concatenate([np.flatnonzero(cache.y == k)[::-1] for k in range(3)])
        cache.X, cache.y = cache.X[order], cache.y[order]
        cache.image_digests = cache.image_digests[order]
        cache.paths = [cache.paths[i] for i in order]
    moved = desk.ask()
    assert len(desk.fitted) == 12
    assert [r.fit_id for r in moved] != [r.fit_id for r in first] or moved != first
    nothing_known = Desk(desk.pair, tmp_path / "other").ask()
    assert [r.acc1 for r in moved] == [r.acc1 for r in nothing_known]
    assert [r.detail["leaks"] for r in moved] == [r.detail["leaks"] for r in nothing_known]
    assert desk.ask() == moved
    assert desk.fitted == []


def test_a_part_of_a_known_question_and_more_than_it(desk):
    first = {result.fit_id: result for result in desk.ask()}
    assert desk.ask(replace(QUESTION, heads=("logreg",), repeats=1)) == [
        r for r in first.values() if (r.clf, r.repeat) == ("logreg", 0)
    ]
    assert desk.fitted == []
    more = desk.ask(replace(QUESTION, repeats=3))
    assert len(desk.fitted) == 6
    assert {r.repeat for r in desk.fitted} == {2}
    assert all(first[r.fit_id] == r for r in more if r.repeat < 2)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interrupted_question_goes_on_and_ends_up_the_same(desk, tmp_path, n_jobs):
    settings = replace(QUESTION, n_jobs=n_jobs)
    whole = Desk(desk.pair, tmp_path / "whole")
    expected = whole.ask(settings)
    with pytest.raises(KeyboardInterrupt):
        desk.ask(settings, most=5)
    assert len(desk.lines) == 5
    found = desk.ask(settings)
    assert len(desk.fitted) == 7
    assert len(desk.lines) == 12

    def bare(result):
        times = {"fit_seconds": 0, "predict_seconds": 0, "created": ""}
        return replace(result, **times), result.detail

    if n_jobs == 1:
        assert [bare(r) for r in found] == [bare(r) for r in expected]
    assert [r.acc1 for r in found] == [r.acc1 for r in expected]


@pytest.mark.parametrize("change", [{"near": 0.3}, {"on_leak": "drop"}])
def test_what_was_done_about_leaks_is_part_of_the_question(desk, change):
    settings = Settings(per_class=(18,), repeats=1)
    desk.ask(settings)
    desk.ask(replace(settings, **change))
    assert len(desk.fitted) == 1
    desk.hide()
    desk.ask(replace(settings, **change))
    desk.ask(settings)
    assert desk.fitted == []


@pytest.mark.parametrize("head", [MlpHead, TorchMlpHead])
def test_a_head_that_computes_something_else_now_is_fitted_again(desk, head, monkeypatch):
    asked = replace(QUESTION, heads=("svm", head.name), per_class=(3,), repeats=1)
    with monkeypatch.context() as patch:
        patch.setattr(head, "version", 1)
        desk.ask(asked)
    desk.ask(asked)
    assert [result.clf for result in desk.fitted] == [head.name]
    desk.ask(asked)
    assert not desk.fitted


def test_other_features_are_another_question(desk):
    small = Settings(per_class=(4,), repeats=1)
    desk.ask(small)
    desk.pair.train.fingerprint = "changed"
    desk.ask(small)
    assert len(desk.fitted) == 1


def test_what_to_do_about_leaks_is_idle_without_leaks(pair, tmp_path):
    desk = Desk(pair, tmp_path)
    desk.ask()
    desk.ask(replace(QUESTION, on_leak="raise"))
    assert desk.fitted == []


def test_a_fit_without_leaks_answers_whatever_was_near_then(pair, tmp_path):
    first, then = Desk(pair, tmp_path / "first"), Desk(pair, tmp_path / "then")
    results = ResultsFolder(then.folder)
    for fit in first.ask():
        near = {**fit.detail["leaks"]["near"], "ratio": 0.123, "spread": 0.4}
        results.add(
            replace(fit, detail=fit.detail | {"leaks": fit.detail["leaks"] | {"near": near}})
        )
    then.ask()
    assert then.fitted == []
    then.ask(replace(QUESTION, near="off"))
    assert then.fitted


def damage(path, how):
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    if how == "a number changed":
        record["fit"]["acc1"] = 0.999
        text = json.dumps(record)
    elif how == "another fit":
        text = next(p for p in path.parent.iterdir() if p != path).read_text(encoding="utf-8")
    else:
        text = '{"fit": {"fit_id": "0"}}'
    path.write_text(text, encoding="utf-8")
    return text


@pytest.mark.parametrize("how", ["a number changed", "another fit", "foreign"])
def test_a_damaged_or_foreign_file_is_neither_trusted_nor_overwritten(desk, how):
    first = desk.ask()
    path = desk.files[3]
    text = damage(path, how)
    again = desk.ask()
    assert len(desk.fitted) == 1
    assert again[first.index(next(r for r in first if r.fit_id in path.name))] == desk.fitted[0]
    assert path.read_text(encoding="utf-8") == text
    assert f"{path} is not used and left as it is" in desk.stream.getvalue()
    assert path.with_name(path.stem + "-2.json").exists()
    desk.ask()
    assert desk.fitted == []


def test_damaged_leaks_are_searched_again(desk):
    desk.ask()
    (path,) = (desk.folder / "leaks").iterdir()
    path.write_text(path.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    desk.ask()
    assert desk.fitted == []
    assert len(list((desk.folder / "leaks").iterdir())) == 2
    desk.hide()
    desk.ask()


def test_fitting_again_keeps_both_and_the_latest_answers(desk):
    first = desk.ask()
    again = desk.ask(is_known=False)
    assert len(desk.fitted) == 12
    assert len(desk.files) == 24
    assert desk.ask() == again
    assert [r.fit_id for r in first] == [r.fit_id for r in again]


def test_leaks_are_recalled_as_they_were(pair, tmp_path):
    pair.test.X[[2, 4, 6]] = pair.train.X[[2, 4, 5]]
    pair.test.X[9] = pair.train.X[9] * np.float16(1.01)
    pair.test.image_digests[11] = pair.train.image_digests[12] = 7
    table = tmp_path / "t.csv"
    names = [*pair.train.paths, *pair.test.paths]
    rows = "".join(f"{path},g{i % 40}\n" for i, path in enumerate(names))
    table.write_text("path,patient\n" + rows, encoding="utf-8")
    for asked in (pair, add_groups(pair, f"{table}:patient")):
        for near in ("auto", "off", 0.9):
            settings = Settings(near=near)
            leaks = find_leaks(asked, np.ones(60, bool), np.arange(45), settings)
            assert {leak.kind for leak in leaks.found} >= {"same file", "equal features"}
            stored = json.loads(json.dumps(record_leaks(leaks)))
            back = recall_leaks(stored, asked)
            assert (back.found, back.conflicts) == (leaks.found, leaks.conflicts)
            assert leak_record(back) == leak_record(leaks)
            assert back.train_rows.tolist() == leaks.train_rows.tolist()


def test_searches_that_differ_have_other_names(pair):
    def key(pair, rows=60, tested=45, **settings):
        return leaks_key(pair, np.arange(60) < rows, np.arange(tested), Settings(**settings))

    other = Pair(make_cache(seed=3), pair.test)
    keys = [key(pair), key(pair, 50), key(pair, 60, 40), key(pair, near=0.5), key(other)]
    moved = Pair(make_cache(), pair.test)
    moved.train.paths = moved.train.paths[::-1]
    keys.append(key(moved))
    assert len(set(keys)) == 6
    assert key(pair, heads=("mlp",), on_leak="drop", C=1.0) == keys[0]


def test_names_that_are_no_text_are_kept(desk):
    desk.pair.train.paths[2] = desk.pair.test.paths[2] = "odd\udcff.jpg"
    first = desk.ask()
    assert "odd\udcff.jpg" in first[0].detail["leaks"]["pairs"][0]["train"]
    desk.hide()
    assert [r.detail for r in desk.ask()] == [r.detail for r in first]

"""What is said of long fits beforehand: steps against those that are made, and plain words."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from memory_cache import make_cache

from featx.evaluate import Pair, Settings, evaluate, forecast
from featx.heads import FitOptions, Pool, RowSpace, get_head
from featx.heads.linear import LinearWork, direct, geometry, gram_seconds
from featx.progress import Reporter

SHAPES = [(300, 1500, 4), (700, 400, 3), (2000, 40, 10)]


@pytest.fixture
def columns(monkeypatch):
    """Columns of all products there and back, as a solver asks for them."""
    found = []

    def count(kind, name, share):
        plain = getattr(kind, name)

        def counted(self, u, *rest):
            found.append(share * u.shape[1])
            return plain(self, u, *rest)

        monkeypatch.setattr(kind, name, counted)

    count(geometry.RowGeometry, "scores", 0.5)
    count(geometry.RowGeometry, "adjoint", 0.5)
    count(geometry.RowGeometry, "normal_product", 1)
    count(geometry.GramGeometry, "scores", 1)
    # A factorisation counts as the products that take as long.
    plain = direct._solve

    def factorised(matrix, rows, *rest):
        found.append(len(rows) ** 3 / 3 / (2 * matrix.n_rows**2))
        return plain(matrix, rows, *rest)

    monkeypatch.setattr(direct, "_solve", factorised)
    return found


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("name", ["svm", "logreg", "ridge"])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_steps_as_foretold_within_a_factor_of_three(columns, shape, name, is_given):
    n, d, n_classes = shape
    cache = make_cache(n, d)
    y = np.arange(n) % n_classes
    X = cache.X + np.random.default_rng(1).normal(size=(n_classes, d))[y]
    size = float(np.square(X).sum(axis=1).mean())
    space, head = RowSpace.of(X), get_head(name)
    head.fit(space, y, FitOptions(C=1 / size if is_given else None))
    work = LinearWork(head, space, n_classes, 0 if is_given else 5)
    made = sum(columns) / work.n_columns
    assert work.n_steps / 3 < made < 3 * work.n_steps


def test_time_grows_with_rows_and_steps():
    X = make_cache(600, 30).X
    few, many = (LinearWork(get_head("svm"), RowSpace.of(x), 3, 5) for x in (X, np.tile(X, (9, 1))))
    assert many.flops == pytest.approx(9 * few.flops, rel=0.01)
    assert 0 < few.seconds() < 60
    assert 0 < gram_seconds(RowSpace.of(X.T.copy())) < 60


def said(monkeypatch, least, **settings):
    monkeypatch.setattr(forecast, "_LONG_SECONDS", least)
    monkeypatch.setattr(forecast, "_FEW_FLOPS", 0)
    stream = io.StringIO()
    pair = Pair(make_cache(), make_cache(45, split="test"))
    evaluate(pair, Settings(near="off", **settings), reporter=Reporter(stream=stream))
    return [line for line in stream.getvalue().splitlines() if "about" in line]


def test_what_takes_long_is_said_once_with_what_the_search_costs(monkeypatch):
    asked = {"heads": ("svm", "ridge", "knn"), "per_class": (3, 10), "repeats": 2}
    (line,) = said(monkeypatch, 0.0, **asked)
    # Of 3 a class there are 3 folds, of 10 there are 5: (3 + 5) x 9 penalties x 2 heads x 2 draws.
    assert re.fullmatch(
        r"farm net last: about \d+ seconds: 288 fits of a penalty on up to 30 rows; with a given "
        r"one \(--C VALUE\) about \d+ seconds; not counted: knn",
        line,
    )
    (line,) = said(monkeypatch, 0.0, **asked, C=0.1)
    assert "8 fits with the given penalty on up to 30 rows" in line


def test_nothing_is_said_of_short_fits_and_of_those_that_cannot_be_foretold(monkeypatch):
    assert not said(monkeypatch, 60.0, heads=("svm",), per_class=(3,))
    assert not said(monkeypatch, 0.0, heads=("knn",), per_class=(3,))
    assert not said(monkeypatch, 0.0, heads=("svm",), per_class=(3,), scale="whiten")


def test_the_search_takes_as_many_times_longer_as_it_has_more_work(monkeypatch):
    monkeypatch.setattr(forecast, "_LONG_SECONDS", 0.0)
    monkeypatch.setattr(forecast, "_FEW_FLOPS", 0)
    monkeypatch.setattr(LinearWork, "seconds", lambda work: 1000.0 * work.n_steps)
    pool, rows = Pool(make_cache(60, 20).X), np.arange(60)
    subset = forecast.Subset("all", 0, 0, rows)
    text = forecast.foretell(pool, [[(subset, "svm")]], 3, Settings(per_class=("all",)))
    work = LinearWork(get_head("svm"), RowSpace.of(pool.X), 3, 5)
    assert text.startswith(f"about {1000 * work.n_steps / 86_400:.0f} days: 45 fits")
    assert text.endswith("(--C VALUE) about 12 hours")

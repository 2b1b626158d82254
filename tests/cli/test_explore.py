"""``featx explore``: neighbours, suspects and twins against plain NumPy; the page in a browser."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from browsing import open_page
from small_caches import write

import featx
from featx.cli import main
from featx.report.explore import look_at

CLASSES = ("cat", "</script><b>dog", "$frog_&")


@pytest.fixture(scope="module")
def features():
    """Three classes that lie apart, ten labels that are wrong, and two rows that are nearly one."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(150, 40)).astype(np.float32)
    truth = np.arange(150) % 3
    X[np.arange(150), truth] += 7
    X[149] = X[146] + 0.01 * generator.normal(size=40).astype(np.float32)
    return X


def cache_file(folder, X, labels):
    write(folder, "photos", "train", CLASSES, len(X), 1, X=X, labels=labels)
    return folder / f"photos-train-32-{X.shape[1]}.h5"


WRONG = np.arange(0, 100, 10)


@pytest.fixture(scope="module")
def file(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    y = np.arange(150) % 3
    y[WRONG] = (y[WRONG] + 1) % 3
    return cache_file(folder, features, y)


@pytest.fixture(scope="module")
def found(file):
    with featx.Cache.open(file) as cache:
        return look_at(cache, None)


def test_neighbours_are_the_largest_cosines_of_centred_rows(found, features):
    stored = features.astype(np.float16).astype(np.float64)
    centred = stored - stored.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    assert found.is_exact
    np.testing.assert_allclose(found.cosines, -np.sort(-cosines, axis=1)[:, :10], atol=1e-5)
    assert np.array_equal(found.rows, np.arange(150))


def test_votes_are_those_of_the_neighbours(found):
    for i in range(150):
        counts = Counter(found.labels[found.neighbours[i]].tolist())
        assert counts[found.voted[i]] == max(counts.values())
        assert found.votes[i] == counts[found.voted[i]] / 10


def test_labels_that_were_changed_are_suspects(found):
    assert set(found.suspects) == set(WRONG)
    assert list(found.margins[found.suspects]) == sorted(found.margins[found.suspects])[::-1]


def test_rows_that_are_nearly_one_are_twins(found):
    assert found.twins.tolist() == [[146, 149]]


def test_few_rows_of_a_class_no_labels_and_long_features_are_looked_at(tmp_path, features):
    y = np.zeros(150, np.int64)
    y[:4], y[4:9] = 1, -1
    longer = np.tile(features, (1, 60))
    with featx.Cache.open(cache_file(tmp_path, longer, y)) as cache:
        found = look_at(cache, 100)
    assert found.rows.shape == (100,)
    assert np.all(found.predicted == -1)  # one class of five rows is nothing to choose from
    assert found.suspects.size == 0


def test_the_table_for_embedding_atlas_has_its_columns(file, found, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "atlas.parquet"
    assert main(["explore", str(file), "--format", "atlas", "--out", str(out), "-q"]) == 0
    assert f"embedding-atlas {out} --x projection_x" in capsys.readouterr().out
    table = pq.read_table(out).to_pylist()
    assert [row["neighbors"]["ids"] for row in table] == found.neighbours.tolist()
    assert table[0]["label"] == CLASSES[1]
    assert table[0]["neighbours_say"] == table[0]["prediction"] == CLASSES[0]
    assert table[3]["image"] is None  # nobody knows where these images are


def test_images_are_in_the_table_where_they_are_there(digits_folder, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    from PIL import Image

    (file,) = (digits_folder / "cache").glob("*train*.h5")
    out = tmp_path / "atlas.parquet"
    assert main(["explore", str(file), "-f", "atlas", "--limit", "20", "--out", str(out)]) == 0
    rows = pq.read_table(out).to_pylist()
    digits = featx.open_data("digits")["train"]
    with featx.Cache.open(file) as cache:
        for row in rows:
            assert row["path"] == cache.paths[row["row"]]
            picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("L")
            own = digits.image(list(digits.paths).index(row["path"])).convert("L")
            assert np.abs(np.asarray(picture, int) - np.asarray(own, int)).mean() < 8


@pytest.fixture(scope="module")
def pages(file, digits_folder, tmp_path_factory):
    pytest.importorskip("altair")
    folder = tmp_path_factory.mktemp("pages")
    (digits,) = (digits_folder / "cache").glob("*train*.h5")
    for name, cache in (("named", file), ("digits", digits)):
        assert main(["explore", str(cache), "--out", str(folder / f"{name}.html"), "-q"]) == 0
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("name", ["named", "digits"])
def test_the_page_opens_without_errors_or_requests(browser, pages, name, width, scheme):
    tab, problems = open_page(browser, pages / f"{name}.html", width, scheme)
    assert problems == []
    assert tab.locator("#chart-map .mark-symbol.role-mark path").count() > 100
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("main b").count() == 0
    tab.context.close()


def test_choosing_an_image_shows_its_neighbours_with_pictures(browser, pages):
    tab, problems = open_page(browser, pages / "digits.html")
    tab.locator("#chart-map .mark-symbol.role-mark path").first.hover()
    tab.wait_for_selector("#vg-tooltip-element.visible img")
    tab.locator("#which").fill(tab.locator("#paths option").nth(5).get_attribute("value"))
    tab.locator("#which").press("Enter")
    pictures = tab.locator("#near-pictures img")
    assert pictures.count() == 11
    tab.locator("#chart-map .mark-symbol.role-mark path").nth(7).click(force=True)
    assert tab.locator("#near-pictures li").count() == 11
    assert problems == []
    tab.context.close()


def test_axe_finds_nothing_serious(browser, pages):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab, _ = open_page(browser, pages / "named.html")
    found = axe.run(tab).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    tab.context.close()


def test_a_file_that_is_no_cache_and_a_cache_of_two_rows_are_refused(tmp_path, features, capsys):
    assert main(["explore", str(tmp_path / "none.h5")]) != 0
    assert "none.h5" in capsys.readouterr().err
    file = cache_file(tmp_path, features[:2], np.arange(2))
    assert main(["explore", str(file)]) != 0
    assert "a map needs 3" in capsys.readouterr().err

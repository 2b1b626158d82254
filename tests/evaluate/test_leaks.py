"""Images on both sides of a split: found, told, drawn, left out or refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from memory_cache import make_cache
from PIL import Image

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Pair, Settings, evaluate
from featx.evaluate.leaks import Conflict, Leak, find_leaks, leak_lines, leak_record
from featx.progress import Reporter
from featx.records import record_text
from featx.report.leak_sheet import save_leak_sheet


def search(pair, **settings):
    chosen = Settings(**settings)
    return find_leaks(pair, *pair.split(chosen.holdout, 0), chosen)


def digest(i):
    return np.frombuffer(i.to_bytes(32, "little"), np.uint8)


@pytest.fixture
def leaky(pair):
    """Test rows 1 to 3: the file of train row 10, the features of 20, nearly those of 33."""
    pair.train.image_digests[:] = [digest(i + 1) for i in range(60)]
    pair.test.image_digests[:] = [digest(i + 1001) for i in range(45)]
    pair.test.image_digests[1] = pair.train.image_digests[10]
    pair.test.X[2] = pair.train.X[20]
    pair.test.X[3] = pair.train.X[33] * np.float16(1.01)
    return pair


def test_each_kind_is_found(leaky):
    leaks = search(leaky)
    assert [(leak.kind, leak.train, leak.test) for leak in leaks.found] == [
        ("same file", 10, 1),
        ("equal features", 20, 2),
        ("near", 33, 3),
    ]
    assert leaks.counts == {"same file": 1, "equal features": 1, "near": 1, "same group": 0}
    assert leaks.train_rows.tolist() == [10, 20, 33]
    assert leaks.found[2].cosine == pytest.approx(1, abs=1e-4)
    assert leaks.summary == (
        "3 of 45 test images have a copy among the 60 training images: "
        "1 same file, 1 equal features, 1 near"
    )


def test_without_leaks_there_is_nothing_to_tell(pair):
    leaks = search(pair)
    assert leaks.found == leaks.conflicts == ()
    assert leaks.summary == ""
    assert leak_lines(leaks) == []
    assert leaks.train_rows.tolist() == []


def test_unknown_digests_are_no_equal_files(pair):
    assert not pair.train.image_digests.any()
    assert not pair.test.image_digests.any()
    assert search(pair).n_duplicates == 0


def test_a_test_image_counts_once_as_the_surest_kind(leaky):
    leaky.test.X[1] = leaky.train.X[10]
    leaky.train.X[13] = leaky.train.X[10] * np.float16(1.01)
    leaks = search(leaky)
    assert leaks.counts["same file"] == 1
    assert leaks.n_duplicates == 3
    assert {10, 13} <= set(leaks.train_rows.tolist())


@pytest.mark.parametrize("n", [2, 30])
def test_all_copies_of_an_image_leak(pair, n):
    pair.train.X[:n] = pair.train.X[0]
    pair.test.X[:n] = pair.train.X[0]
    leaks = search(pair)
    assert leaks.counts["equal features"] == n
    assert set(range(n)) <= set(leaks.train_rows.tolist())
    assert len(leaks.found) <= 2 * n + 1


def test_near_can_be_widened_narrowed_and_switched_off(leaky):
    noise = np.random.default_rng(0).normal(size=100).astype(np.float16)
    leaky.test.X[4] = leaky.train.X[40] + np.float16(1.2) * noise
    by_ratio = {r: {k.test for k in search(leaky, near=r).duplicates} for r in (0.01, 0.5, 0.9)}
    assert by_ratio[0.01] == {1, 2, 3}
    assert by_ratio[0.01] < by_ratio[0.9]
    assert by_ratio[0.5] <= by_ratio[0.9]
    off = search(leaky, near="off")
    assert off.near is None
    assert {leak.test for leak in off.duplicates} == {1, 2}


def test_rows_that_may_not_be_drawn_or_tested_do_not_leak(leaky):
    leaky.train.status[10] = 2
    leaky.test.y[2] = -1
    leaky.train.X[5] = np.nan
    leaky.train.status[5] = 2
    assert [leak.test for leak in search(leaky).found] == [3]


def test_held_out_rows_of_one_cache_are_compared_with_the_others():
    whole = make_cache(90, split="all")
    pair = Pair(whole, whole)
    drawable, test_rows = pair.split(0.2, 0)
    train_row = int(np.flatnonzero(drawable)[4])
    whole.X[test_rows[3]] = whole.X[train_row]
    whole.image_digests[test_rows[5]] = digest(7)
    whole.image_digests[np.flatnonzero(drawable)[8]] = digest(7)
    leaks = find_leaks(pair, drawable, test_rows, Settings())
    assert leaks.counts["equal features"] == leaks.counts["same file"] == 1
    assert Leak("equal features", train_row, int(test_rows[3]), 1.0) in leaks.found


def test_one_image_with_two_classes_is_a_conflict(leaky):
    assert leaky.train.y[10] == leaky.test.y[1]
    leaky.test.y[1] = (leaky.train.y[10] + 1) % 3
    leaky.train.X[7] = leaky.train.X[6]  # neighbours differ in class
    leaky.train.image_digests[16] = leaky.train.image_digests[15]
    leaky.train.X[16] = leaky.train.X[15]
    leaks = search(leaky)
    assert set(leaks.conflicts) == {
        Conflict("same file", ("train", 10), ("test", 1)),
        Conflict("same file", ("train", 15), ("train", 16)),
        Conflict("equal features", ("train", 6), ("train", 7)),
    }
    lines = [line for line in leak_lines(leaks) if "conflict" in line]
    assert len(lines) == 3
    assert any("train/0006.jpg (ant) and train/0007.jpg (bee)" in line for line in lines)


def test_a_conflict_found_twice_is_of_the_surest_kind_in_the_place_of_the_last(pair):
    """Rows 3, 7 and 10 are one picture of three classes; only 3 and 10 are the same file."""
    pair.train.X[[7, 10]] = pair.train.X[3]
    pair.train.y[[3, 7, 10]] = 0, 1, 2
    pair.train.image_digests[[3, 10]] = 9
    assert search(pair, near="off").conflicts == (
        Conflict("equal features", ("train", 3), ("train", 7)),
        Conflict("same file", ("train", 3), ("train", 10)),
    )


def run(pair, **settings):
    stream = io.StringIO()
    chosen = Settings(**{"per_class": ("all",), "C": 0.01, **settings})
    results = evaluate(pair, chosen, reporter=Reporter(quiet=True, stream=stream))
    return results, stream.getvalue()


def test_warn_tells_pairs_and_fits_all_rows(leaky):
    (result,), text = run(leaky)
    assert "same file: test/0001.jpg (bee) and train/0010.jpg (bee)" in text
    assert "near (cosine 1.000): test/0003.jpg (ant)" in text
    assert result.n_train == 60
    assert result.n_test == 45
    assert "3 of 45 test images have a copy" in result.notes
    record = json.loads(record_text("fit", result.record()))["leaks"]
    assert record["on_leak"] == "warn"
    assert record["n_drawn"] == 3
    assert record["test_images"]["near"] == 1
    assert record["pairs"][0]["test"] == "test/0001.jpg (bee)"
    assert record["near"]["is_default"]


def test_drop_leaves_training_rows_out_and_no_test_row(leaky):
    (result,), text = run(leaky, on_leak="drop")
    assert result.n_train == 57
    assert result.n_test == 45
    assert not {10, 20, 33} & set(result.detail["train_rows"])
    assert "3 training images that leak are left out" in text
    assert "left out of training" in result.notes
    assert result.detail["leaks"]["n_drawn"] == 0


@pytest.mark.parametrize("k", [3, 19])
def test_no_dropped_row_is_ever_drawn(leaky, k):
    results, _ = run(leaky, on_leak="drop", per_class=(k,), repeats=6)
    assert len(results) == 6 or k == 19
    for result in results:
        assert not {10, 20, 33} & set(result.detail["train_rows"])


def test_a_class_that_becomes_too_small_is_an_error(leaky):
    with pytest.raises(ProtocolError, match="19 of 20 images of ant.*the 20 per class asked for"):
        run(leaky, on_leak="drop", per_class=(3, 20))


@pytest.mark.parametrize("per_class", [("all",), (1,)])
def test_no_class_is_emptied_by_what_leaks(leaky, per_class):
    bees = np.flatnonzero(leaky.train.y == 1)
    leaky.train.X[bees] = leaky.test.X[np.resize(np.flatnonzero(leaky.test.y == 1), len(bees))]
    with pytest.raises(ProtocolError, match="keep only 0 of 20 images of bee.*--no-near"):
        run(leaky, on_leak="drop", per_class=per_class)
    leaky.train.y[bees[1:]] = -1  # a class that was too small before is refused as such
    with pytest.raises(ProtocolError, match="no usable training image.*: bee"):
        run(leaky, on_leak="drop", per_class=(2,))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_offset_of_all_features_raises_no_alarms(leaky, dtype):
    for cache in (leaky.train, leaky.test):
        cache.X = (cache.X.astype(np.float64) / 4 + 1_000).astype(dtype)
    found = search(leaky).found
    assert [(leak.train, leak.test) for leak in found] == [(10, 1), (20, 2), (33, 3)]
    leaky.train.image_digests[:] = leaky.test.image_digests[:] = 0
    results, _ = run(leaky, on_leak="drop", per_class=("all",), repeats=1)
    assert results[0].n_train >= 57


def test_raise_stops_with_the_first_pairs(leaky):
    with pytest.raises(ProtocolError, match="3 of 45 test images have a copy") as caught:
        run(leaky, on_leak="raise")
    assert "test/0001.jpg (bee) and train/0010.jpg" in caught.value.__notes__[0]
    clean = Pair(make_cache(), make_cache(45, split="test"))
    assert len(run(clean, on_leak="raise")[0]) == 1


def test_a_search_that_was_switched_off_is_told(leaky):
    (result,), text = run(leaky, near="off")
    assert "near-duplicates are not looked for" in text
    assert any("--near off" in notice for notice in result.detail["notices"])
    assert result.detail["leaks"]["near"] == "off"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"on_leak": "ignore"}, "choose from warn, drop, raise"),
        ({"near": 0.0}, "near is 0.0"),
        ({"near": 1.5}, "between 0 and 1, or 'off'"),
        ({"near": "no"}, "near is 'no'"),
    ],
)
def test_settings_of_the_guard_that_do_not_fit(settings, text):
    with pytest.raises(UsageError, match=text):
        Settings(**settings)


def test_what_is_shown_is_short_and_what_is_recorded_is_bounded(pair):
    pair.test.X[:30] = pair.train.X[:30]
    leaks = search(pair)
    assert leaks.counts["equal features"] == 30
    lines = leak_lines(leaks)
    assert len(lines) == 4
    assert lines[-1] == "equal features: and 27 more"
    many = replace(leaks, found=leaks.found * 10)
    assert len(leak_record(many)["pairs"]) == 50
    assert leak_record(many)["n_pairs"] == 10 * len(leaks.found)


@pytest.fixture
def folder(tmp_path):
    """Images of the test pair's first rows, on the disk."""
    for split, colour in (("train", "red"), ("test", "blue")):
        for name in ("ant", "bee"):
            (tmp_path / "farm" / split / name).mkdir(parents=True)
            for i in range(3):
                path = tmp_path / "farm" / split / name / f"{i}.png"
                Image.new("RGB", (32, 32), colour).save(path)
    return tmp_path / "farm"


def drawn(pair, path):
    stream = io.StringIO()
    n = save_leak_sheet([search(pair)], path, Reporter(quiet=True, stream=stream))
    return n, stream.getvalue()


def test_pairs_are_drawn_side_by_side(leaky, folder, tmp_path):
    leaky.test.paths[1], leaky.train.paths[10] = "test/bee/1.png", "train/bee/2.png"
    for cache in (leaky.train, leaky.test):
        cache.meta["request"] = {"data": str(folder)}
    n, text = drawn(leaky, tmp_path / "sheet.png")
    assert n == 3
    assert text == ""
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours


@pytest.mark.parametrize("request_meta", [{}, {"data": "/nowhere/at/all"}])
def test_images_that_are_gone_are_told_and_grey(leaky, tmp_path, request_meta):
    for cache in (leaky.train, leaky.test):
        cache.meta["request"] = request_meta
    n, text = drawn(leaky, tmp_path / "sheet.png")
    assert n == 3
    assert text.count("cannot be drawn") == 1
    assert (tmp_path / "sheet.png").exists()


def test_no_pairs_no_picture(pair, tmp_path):
    assert drawn(pair, tmp_path / "sheet.png")[0] == 0
    assert not (tmp_path / "sheet.png").exists()

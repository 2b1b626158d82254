"""A place of shards is read as one cache: the same rows, and never rows of another place."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import (
    digests_of,
    fill,
    fill_shard,
    flip,
    make_place,
    make_rows,
    make_spec,
    whole_of,
)

from featx.catalog import load
from featx.errors import CacheBusyError, CacheError, CacheMismatchError, UsageError
from featx.housekeeping import list_entries, plan_removal, remove
from featx.records import record_text
from featx.store import (
    Cache,
    CacheWriter,
    ShardedCache,
    find_caches,
    read_summary,
    sharded,
    verify_file,
)
from featx.store.merge import merge_shards
from featx.store.recognise import PLACE_MANIFEST
from featx.store.shards import INDEX, Manifest, begin_place, is_place

N_ROWS, SHARD_ROWS = 130, 16


@pytest.fixture(scope="module")
def spec():
    meta = {"backbone": "vgg16", "split": "train", "splits": {"train": {"n_images": N_ROWS}}}
    # Names of different lengths, so that shards store them in different widths.
    paths = [f"{'x' * (i % 40)}/{i}" for i in range(N_ROWS)]
    return make_spec(N_ROWS, 600, identity={"backbone": "vgg16"}, meta=meta, paths=paths)


@pytest.fixture(scope="module")
def made(spec, tmp_path_factory):
    """A place, and one file of the same rows."""
    folder = tmp_path_factory.mktemp("shards")
    rows = make_rows(spec)
    make_place(folder / "a.shards", spec, rows, SHARD_ROWS)
    whole = whole_of(spec)
    content = whole.identity["source"]["content"]
    splits = {"train": {"n_images": N_ROWS, "content": content}}
    whole = replace(whole, meta={**spec.meta, "splits": splits})
    fill(folder / "one.h5", whole, rows, failed={5: "truncated"})
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A place that a test may change."""
    shutil.copytree(made / "a.shards", tmp_path / "a.shards")
    return tmp_path / "a.shards"


def test_everything_is_as_in_one_file(made):
    with load(made / "a.shards") as many, Cache.open(made / "one.h5") as one:
        assert isinstance(many, ShardedCache)
        assert (len(many), many.n_features, many.X.stored_dtype) == (N_ROWS, 600, "<f2")
        assert np.array_equal(many.X[:], one.X[:], equal_nan=True)
        for name in ("y", "labels", "status", "image_digests"):
            assert np.array_equal(getattr(many, name), getattr(one, name)), name
        for name in ("paths", "class_names", "errors", "meta", "fingerprint"):
            assert getattr(many, name) == getattr(one, name), name
        for seed in range(3):
            (x, y), (x1, y1) = many.sample(4, seed=seed), one.sample(4, seed=seed)
            assert np.array_equal(x, x1)
            assert np.array_equal(y, y1)
        assert np.isnan(many.X[5]).all()
        assert many.errors == {5: "truncated"}


@pytest.fixture(scope="module")
def both(made):
    with load(made / "a.shards") as many, Cache.open(made / "one.h5") as one:
        yield many.X, one.X


@given(data=st.data(), dtype=st.sampled_from(["float16", "float32", "float64"]))
@settings(max_examples=60, deadline=None)
def test_any_index_gives_what_one_file_gives(both, data, dtype):
    many, one = (X.astype(dtype) for X in both)
    row = st.integers(-N_ROWS, N_ROWS - 1)
    rows = data.draw(
        st.one_of(
            row, st.slices(N_ROWS), st.lists(row, max_size=80).map(lambda r: np.array(r, int))
        )
    )
    columns = data.draw(st.one_of(st.just(slice(None)), st.integers(0, 599), st.slices(600)))
    found, wanted = many[rows, columns], one[rows, columns]
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted, equal_nan=True)


def test_it_is_an_array_to_numpy_and_survives_a_pickle(both):
    many, one = both
    assert np.array_equal(np.asarray(many.stored), np.asarray(one.stored), equal_nan=True)
    again = pickle.loads(pickle.dumps(many.stored))
    assert again.dtype == np.float16
    assert np.array_equal(again[20:90], one.stored[20:90])
    with pytest.raises(UsageError, match="featx merge"):
        many.memmap()


def test_the_merged_file_is_that_of_one_run(made, tmp_path):
    out, is_new = merge_shards(made / "a.shards", tmp_path / "merged.h5")
    assert is_new
    assert verify_file(out) == []
    with h5py.File(out) as merged, h5py.File(made / "one.h5") as one:
        assert dict(merged.attrs) == dict(one.attrs)
        for name in one:
            assert merged[name].dtype == one[name].dtype
            assert merged[name][()].tobytes() == one[name][()].tobytes(), name
    assert merge_shards(made / "a.shards", out) == (out, False)


def test_missing_shards_are_named_by_rows(place):
    for number in (1, 2, 6):
        (place / f"0000/rows-{number * SHARD_ROWS:012d}.h5").unlink()
    for read in (load, merge_shards):
        with pytest.raises(
            CacheError,
            match=r"3 of 9 shards are missing: rows 16-47, 96-111: run .*--shard 1/1$",
        ):
            read(place)
    [damage] = verify_file(place)
    assert "3 of 9 shards" in damage.reason
    (place / "0000/rows-000000000000.h5").write_bytes(b"damaged")
    incomplete, damaged = verify_file(place)
    assert incomplete == damage
    assert "not a featx cache" in damaged.reason
    assert not place.with_suffix(".h5").exists()


def test_what_lies_in_a_shards_place_is_named(place):
    path = place / "0000/rows-000000000032.h5"
    path.write_bytes(b"something else")
    for read in (merge_shards, lambda place: load(place).fingerprint):
        with pytest.raises(CacheError, match=r"rows-000000000032\.h5: not a featx cache"):
            read(place)


def refused(place: Path, pattern: str) -> None:
    with load(place) as cache, pytest.raises(CacheMismatchError, match=pattern):
        cache.X[40]
    with pytest.raises(CacheMismatchError, match=pattern):
        merge_shards(place)
    assert not place.with_suffix(".h5").exists()
    assert any(pattern in damage.reason for damage in verify_file(place))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"identity": {"backbone": "vgg19"}}, "backbone: asked for 'vgg16', the file has 'vgg19'"),
        ({"class_names": ["a", "b", "c"]}, "class_names: asked for "),
        ({"dtype": "float32"}, "dtype: asked for 'float16', the file has 'float32'"),
        ({"paths": [f"other/{i}" for i in range(16)]}, "does not hold the images of rows 32-47"),
        ({"labels": np.zeros(16, int)}, "does not hold the images of rows 32-47"),
    ],
)
def test_a_shard_that_is_not_of_this_place_is_never_read(place, spec, more, words):
    (place / "0000/rows-000000000032.h5").unlink()
    fill_shard(place, Manifest.read(place), 2, spec, make_rows(spec), **more)
    refused(place, words)


def test_a_shard_of_other_rows_is_never_read(place):
    shutil.copy(place / "0000/rows-000000000048.h5", place / "0000/rows-000000000032.h5")
    refused(place, "does not hold the images of rows 32-47")


def test_damage_is_found_and_named_by_the_rows_of_the_whole(place):
    with load(place) as cache:
        cache.fingerprint  # noqa: B018 - the index is made before the damage
    with Cache.open(place / "0000/rows-000000000032.h5") as shard:
        flip(shard.path, 8 * (shard._structure.features.offset + 3))
    with load(place) as cache:
        cache.X[:32]
        with pytest.raises(CacheError, match=r"rows-000000000032.h5: damaged: features rows 0-"):
            cache.X[33]
        [damage] = cache.verify()
    assert (damage.start, damage.stop) == (32, 48)
    assert str(damage).startswith("0000/rows-000000000032.h5 features rows 32-47: changed")
    with pytest.raises(CacheError, match="damaged: features"):
        merge_shards(place)


def test_an_index_of_other_files_is_made_anew(place, spec):
    with load(place) as cache:
        first = cache.fingerprint
    assert (place / INDEX).is_file()
    (place / "0000/rows-000000000032.h5").unlink()
    other = digests_of(range(1000, 1016))
    fill_shard(place, Manifest.read(place), 2, spec, make_rows(spec), image_digests=other)
    with load(place) as cache:
        assert cache.fingerprint != first
        assert np.array_equal(cache.image_digests[32:48], other)


def test_a_damaged_index_is_made_anew_and_a_read_only_place_is_read(place):
    with load(place) as cache:
        first = cache.fingerprint
    (place / INDEX).write_text("{}")
    with load(place) as cache:
        assert cache.fingerprint == first
    assert json.loads((place / INDEX).read_text())["n_failed"] == 1


def test_a_shard_that_is_replaced_while_the_place_is_open_is_no_part_of_it(
    place, spec, monkeypatch
):
    monkeypatch.setattr(sharded, "_MOST_OPEN", 1)
    with load(place) as cache:
        cache.X[40]
        cache.X[0]  # closes the other one
        (place / "0000/rows-000000000032.h5").unlink()
        other = digests_of(range(1000, 1016))
        fill_shard(place, Manifest.read(place), 2, spec, make_rows(spec), image_digests=other)
        with pytest.raises(CacheError, match="was written anew since its place was opened"):
            cache.X[40]


@pytest.mark.parametrize("change", ["byte", "rows", "listed", "dtype", "splits", "extra", "newer"])
def test_a_manifest_that_was_changed_is_refused(place, change):
    path = place / PLACE_MANIFEST
    record = json.loads(path.read_text())
    if change == "byte":
        path.write_text(path.read_text().replace("vgg16", "vgg61", 1))
    else:  # anybody can seal one
        del record["sha256"], record["featx"], record["version"]
        record |= {
            "rows": {"n_rows": -1},
            "listed": {"listed": record["listed"][1:]},
            "dtype": {"dtype": "float8"},
            "splits": {"meta": {"splits": {"train": 1}}},
            "extra": {"more": 1},
            "newer": {"version": 2},
        }[change]
        path.write_text(record_text("cache shards", record))
    with pytest.raises(CacheError, match=PLACE_MANIFEST):
        load(place)


def n_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_only_a_bounded_number_of_files_is_open_and_each_is_checked_once(made, monkeypatch):
    monkeypatch.setattr(sharded, "_MOST_OPEN", 3)
    opened = []
    real = Cache.open.__func__
    counted = lambda cls, path, **more: opened.append(Path(path).name) or real(cls, path, **more)  # noqa: E731
    monkeypatch.setattr(Cache, "open", classmethod(counted))
    before = n_open()
    with load(made / "a.shards") as cache:
        assert opened == []  # nothing but the manifest is read
        assert cache.X[:16].shape == (16, 600)
        assert opened == ["rows-000000000000.h5"]
        assert len(cache.y) == N_ROWS
        assert n_open() - before <= 3
        assert sorted(set(opened)) == opened == sorted(opened)  # each once, in order
        checked = cache._shards._known[0][1]
        assert checked.all()  # what was compared with its digest is not compared again
        cache.X[:16]
        assert cache._shards.get(0).X.is_checked is checked


def test_a_folder_of_caches_holds_it_as_one(made, tmp_path):
    shutil.copytree(made / "a.shards", tmp_path / "deep" / "a.shards")
    assert find_caches(tmp_path) == [tmp_path / "deep" / "a.shards"]
    assert is_place(tmp_path / "deep" / "a.shards")
    summary = read_summary(tmp_path / "deep" / "a.shards")
    assert (summary["n_rows"], summary["n_failed"], summary["n_shards"]) == (N_ROWS, 1, 9)
    assert summary["failed"] == [(5, "xxxxx/5", "truncated")]


def test_merged_it_is_found_by_its_backbone_once(place):
    merge_shards(place)
    with load("vgg16", folder=place.parent) as cache:
        assert cache.path.suffix == ".h5"
    place.with_suffix(".h5").unlink()
    with load("vgg16", folder=place.parent) as cache:
        assert cache.path.suffix == ".shards"


def wanted(place, **more):
    return replace(Manifest.read(place), digest="", **more)


def begin(place, manifest, *, grows=False, overwrite=False):
    return begin_place(place, manifest, grows=grows, overwrite=overwrite, tell=print)


def test_a_process_that_comes_later_takes_up_the_manifest(place):
    before = (place / PLACE_MANIFEST).read_bytes()
    later = wanted(place, meta={"created": "later"})
    assert begin(place, later, grows=True, overwrite=True).meta["backbone"] == "vgg16"
    assert (place / PLACE_MANIFEST).read_bytes() == before


def test_another_question_to_the_same_place_is_refused_field_by_field(place):
    other = wanted(place, identity={"backbone": "vgg19", "precision": "fp32"}, n_features=7)
    with pytest.raises(CacheMismatchError, match="other features") as caught:
        begin(place, other)
    assert caught.value.differences == (
        "backbone: asked for 'vgg19', the file has 'vgg16'",
        "n_features: asked for 7, the file has 600",
        "precision: asked for 'fp32', the file has nothing",
    )
    assert begin(place, other, overwrite=True).identity["backbone"] == "vgg19"
    with pytest.raises(CacheError, match=r"shards of 16 rows, not 32: leave out --shard-rows"):
        begin(place, wanted(place, shard_rows=32), overwrite=True)
    listed = ["0" * 64, *wanted(place).listed[1:]]
    with pytest.raises(CacheMismatchError, match="give --append"):
        begin(place, wanted(place, listed=listed))
    assert begin(place, wanted(place, listed=listed), grows=True).listed == listed


def test_no_folder_of_a_place_grows_with_it():
    """A run looks through the folder of its file: with all shards in one, it would be quadratic."""
    n = 10_000
    manifest = Manifest(
        identity={},
        meta={},
        class_names=[],
        n_rows=2 * n,
        n_features=1,
        dtype="float16",
        shard_rows=2,
        listed=[""] * n,
    )
    names = [manifest.file_name(number) for number in range(n)]
    assert len(set(names)) == n
    assert names == sorted(names)
    assert max(Counter(name.split("/")[0] for name in names).values()) <= 256


def test_a_place_is_one_entry_and_goes_as_a_whole(place, made):
    root = place.parent
    shutil.copy(made / "one.h5", root)
    n_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    listed = {entry.path: entry for entry in list_entries(root)}
    assert list(listed) == [place, root / "one.h5"]
    assert (listed[place].state, listed[place].n_bytes) == ("complete", n_bytes)
    assert listed[place].made_by == listed[root / "one.h5"].made_by == "vgg16 train"
    (place / "0000" / "rows-000000000016.h5").unlink()
    assert list_entries(root)[0].state == "8 of 9 shards"
    (place / "notes.txt").write_text("mine")
    paths = plan_removal(root, ["a.shards"])
    assert paths[-1] == place / PLACE_MANIFEST
    remove(paths)
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    assert [entry.path for entry in list_entries(root)] == [root / "one.h5"]


def test_a_place_without_notes_leaves_no_folder(place):
    with pytest.raises(UsageError, match=r"did you mean a\.shards\?"):
        plan_removal(place.parent, ["b.shards"])
    remove(plan_removal(place.parent, ["a.shards"]))
    assert not place.exists()


def test_a_place_that_somebody_fills_is_not_removed(place):
    busy = CacheWriter.open(place / "0000" / "rows-000000000777.h5", make_spec(3, 2))
    with busy, pytest.raises(CacheBusyError, match="is being written by process"):
        plan_removal(place.parent, ["a.shards"])
    assert Manifest.read(place).missing(place) == []


def test_a_damaged_manifest_is_listed(place):
    (place / PLACE_MANIFEST).write_text("{}")
    [entry] = list_entries(place.parent)
    assert (entry.path, entry.state) == (place, "damaged")

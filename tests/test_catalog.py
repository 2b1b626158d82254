from __future__ import annotations

import numpy as np
import pytest

import featx
from featx.catalog import load, open_complete
from featx.errors import CacheError, UsageError
from featx.store import CacheSpec, CacheWriter


def make_cache(folder, name, **meta):
    meta = {"data": "pets", "split": "train", "backbone": "vgg16", "layer": "features"} | meta
    meta |= {"pool": "none", "input_size": 224} | meta
    labels = np.arange(6) % 2
    spec = CacheSpec(
        identity={"source": name},
        meta=meta,
        labels=labels,
        class_names=["cat", "dog"],
        paths=[f"{i}.jpg" for i in range(6)],
        n_features=3,
        dtype="float16",
    )
    with CacheWriter.open(folder / f"{name}.h5", spec) as writer:
        writer.write(0, np.arange(18, dtype=np.float32).reshape(6, 3))
        writer.finish()
    return folder / f"{name}.h5"


def test_a_cache_is_found_by_backbone_and_split_and_by_path(tmp_path):
    train = make_cache(tmp_path, "a")
    make_cache(tmp_path, "b", split="test")
    make_cache(tmp_path, "c", backbone="resnet50")
    with featx.load("vgg16", data="pets", split="train", folder=tmp_path) as cache:
        assert cache.path == train
        assert cache.X[[4, 1]].tolist() == [[12, 13, 14], [3, 4, 5]]
        assert cache.y.tolist() == [0, 1, 0, 1, 0, 1]
        X, y = cache.sample(per_class=2, seed=0)
        assert X.shape == (4, 3)
        assert np.bincount(y).tolist() == [2, 2]
    with featx.load(train) as cache:
        assert cache.class_names == ["cat", "dog"]


def test_a_split_is_known_by_every_word_for_it(tmp_path):
    path = make_cache(tmp_path, "a", split="val")
    for word in ("val", "validation", "valid", "dev", "Validation"):
        with load("vgg16", split=word, folder=tmp_path) as cache:
            assert cache.path == path
    with pytest.raises(UsageError, match="unknown split 'vla'"):
        load("vgg16", split="vla", folder=tmp_path)


def test_several_that_fit_are_an_error_that_says_what_to_add(tmp_path):
    make_cache(tmp_path, "a")
    make_cache(tmp_path, "b", layer="features.16")
    with pytest.raises(UsageError, match=r"2 caches.*layer \(features, features.16\)"):
        load("vgg16", folder=tmp_path)
    assert load("vgg16", layer="features.16", folder=tmp_path).path.name == "b.h5"


def test_none_that_fits_is_an_error_that_says_what_is_there(tmp_path):
    make_cache(tmp_path, "a")
    with pytest.raises(CacheError, match="holds vgg16 pets train.*featx extract --backbone vgg19"):
        load("vgg19", data="pets", folder=tmp_path)
    with pytest.raises(CacheError, match="no cache folder.*--cache DIR"):
        load("vgg16", folder=tmp_path / "none")
    with pytest.raises(CacheError, match="x.h5"):
        load(tmp_path / "x.h5")


def test_damaged_files_are_left_out_with_a_reason(tmp_path):
    make_cache(tmp_path, "a")
    broken = make_cache(tmp_path, "b", split="test")
    broken.write_bytes(broken.read_bytes()[:-100])
    caches, notices = open_complete(tmp_path)
    assert [cache.path.name for cache in caches] == ["a.h5"]
    assert "b.h5" in notices[0]


def test_the_split_is_train_or_the_only_one_there_is(tmp_path):
    whole = make_cache(tmp_path, "a", split="all")
    assert load("vgg16", folder=tmp_path).path == whole
    whole.unlink()
    test = make_cache(tmp_path, "b", split="test")
    assert load("vgg16", folder=tmp_path).path == test
    make_cache(tmp_path, "c", split="val")
    with pytest.raises(UsageError, match=r"add split \(test, val\)"):
        load("vgg16", folder=tmp_path)
    train = make_cache(tmp_path, "d", split="train")
    assert load("vgg16", folder=tmp_path).path == train

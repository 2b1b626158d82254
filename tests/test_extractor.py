from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from near import assert_near
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils import estimator_checks, get_tags

import featx
from featx import FeatureExtractor
from featx.backbones import open_backbone
from featx.engines import LocalEngine, loader
from featx.errors import (
    CacheError,
    FeatxError,
    ImageError,
    ReadError,
    UsageError,
    WeightsError,
)
from featx.extract import Settings, extract
from featx.extractor import estimator, open_networks
from featx.extractor import rows as memory
from featx.sources import open_data
from featx.store import Cache, find_caches
from featx.store.header import HeaderBlock

CPU = torch.device("cpu")
SMALL = {"weights": "random", "input_size": 32, "batch_size": 4, "device": "cpu"}


def small(**options):
    return FeatureExtractor("squeezenet1_1", **SMALL | options)


@pytest.fixture(scope="module")
def pixels():
    """Twenty pictures of two colours, which a linear classifier can tell apart."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (20, 30, 40, 3), np.uint8)
    images[::2, ..., 0] += 190
    return images


@pytest.fixture(scope="module")
def labels():
    return np.array([0, 1] * 10)


@pytest.fixture(scope="module")
def paths(pixels, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(pixels):
        folder = root / ("red" if i % 2 == 0 else "dark")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return [str(root / ("red" if i % 2 == 0 else "dark") / f"{i:02}.png") for i in range(20)]


@pytest.fixture
def computed(monkeypatch):
    """Numbers of images that went through a network in this process."""
    counts = []
    run = LocalEngine.run

    def counting(self, backbone, source, batches, **options):
        counts.append(len(source))
        return run(self, backbone, source, batches, **options)

    monkeypatch.setattr(LocalEngine, "run", counting)
    return counts


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


# Values.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_equal_those_of_a_cache_bit_for_bit(paths, tmp_path, dtype):
    root = tmp_path / "data"
    root.symlink_to(paths[0].rsplit("/", 2)[0])
    source = open_data(root)["all"]
    backbone = open_backbone("squeezenet1_1", weights="random", overrides={"input_size": 32})
    engine = LocalEngine(CPU, "fp32", 4, 0)
    extract(source, backbone, engine, tmp_path / "c.h5", Settings(store_dtype=dtype))
    files = [str(root / path) for path in source.paths]
    found = small(dtype=dtype).fit_transform(files)
    remembered = small(dtype=dtype, memory=tmp_path / "m").fit_transform(files)
    with Cache.open(tmp_path / "c.h5") as cache:
        assert found.dtype == cache.X.stored_dtype == dtype
        assert np.array_equal(found, cache.X[:])
        assert np.array_equal(remembered, cache.X[:])


def test_every_kind_of_input_gives_the_same_features(pixels, paths):
    extractor = small(pool="avg").fit(paths)
    wanted = extractor.transform(pixels)
    assert wanted.shape == (20, 512)
    assert wanted.dtype == np.float32
    mixed = [paths[0], Image.fromarray(pixels[1]), pixels[2], encoded(pixels[3]), *paths[4:]]
    objects = np.empty(20, object)
    objects[:] = mixed
    for images in (
        paths,
        tuple(paths),
        np.array(paths),
        np.array(paths)[:, None],
        pd.Series(paths),
        pd.DataFrame({"path": paths}),
        list(pixels),
        [Image.fromarray(image) for image in pixels],
        [encoded(image) for image in pixels],
        mixed,
        objects,
    ):
        assert np.array_equal(extractor.transform(images), wanted)
    grey = extractor.transform(pixels[..., 0])
    assert np.array_equal(grey, extractor.transform(np.repeat(pixels[..., :1], 3, axis=3)))


def test_the_same_file_may_come_several_times(paths, computed):
    extractor = small().fit(paths)
    drawn = [paths[i] for i in (3, 5, 3, 3, 0)]
    found = extractor.transform(drawn)
    assert computed == [3]
    assert np.array_equal(found[[0, 0]], found[[2, 3]])
    assert_near(found, extractor.transform(paths)[[3, 5, 3, 3, 0]])


def test_options_reach_the_network(paths):
    assert small(layer="features.3", pool="max").fit(paths).n_features_out_ == 128
    other = small(input_size=64, precision="bf16", workers=1).fit(paths)
    assert (other.input_size_, other.precision_, other.layer_) == (64, "bf16", "features")
    full = small(input_size=64).fit(paths).transform(paths[:4])
    low = other.transform(paths[:4])
    assert 0 < np.abs(full - low).max() < 0.1 * np.abs(full).max()
    vit = FeatureExtractor("vit_b_32", weights="random", input_size=32, device="cpu")
    assert vit.fit(paths).n_features_out_ == 768


UNKNOWN = {"crop_pct": 0.8, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": (0.2,) * 3}


def test_preprocessing_given_by_hand_is_that_of_the_command(pixels):
    extractor = small(**UNKNOWN).fit(pixels)
    overrides = UNKNOWN | {"input_size": 32, "mean": (0.5, 0.4, 0.3)}
    backbone = open_backbone("squeezenet1_1", weights="random", overrides=overrides)
    assert extractor.identity_["preprocessing"] == backbone.preprocessing.identity()
    found = extractor.transform(pixels)
    images = np.stack([backbone.preprocessing.pixels(Image.fromarray(image)) for image in pixels])
    with torch.inference_mode():
        wanted = backbone.features(backbone.preprocessing.normalise(torch.from_numpy(images)))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5 * float(wanted.abs().max()))
    assert not np.array_equal(found, small().fit_transform(pixels))
    again = pickle.loads(pickle.dumps(clone(extractor).fit(pixels)))
    assert np.array_equal(again.transform(pixels), found)
    as_array = small(**UNKNOWN | {"mean": np.array([0.5, 0.4, 0.3])}).fit(pixels)
    assert as_array.identity_ == extractor.identity_


def test_weights_of_unknown_preprocessing_can_be_used(pixels, tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("lcnet_035").state_dict(), tmp_path / "mine.pth")
    unknown = FeatureExtractor(
        "timm/lcnet_035", weights=str(tmp_path / "mine.pth"), pool="avg", device="cpu"
    )
    with pytest.raises(UsageError, match="the preprocessing of timm/lcnet_035 is not known"):
        unknown.fit(pixels)
    known = unknown.set_params(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=32)
    assert known.fit_transform(pixels).shape == (20, known.n_features_out_)


# scikit-learn's contracts.


CHECKS = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("name", CHECKS)
def test_the_checks_of_scikit_learn_that_need_no_table_of_numbers(name):
    getattr(estimator_checks, name)("FeatureExtractor", small())


def test_the_default_constructor_is_fine():
    estimator_checks.check_parameters_default_constructible("FeatureExtractor", FeatureExtractor())


def test_scikit_learn_knows_that_its_other_checks_do_not_apply():
    """They fit 2-D arrays of floats; the tests below do the same with images."""
    tags = get_tags(small())
    assert not tags.input_tags.two_d_array
    assert tags.no_validation
    with pytest.warns(Warning, match="Can't test estimator FeatureExtractor"):
        list(estimator_checks._yield_all_checks(small(), legacy=True))


def test_fit_returns_itself_leaves_its_parameters_and_its_input_alone(pixels):
    extractor, before = small(), pixels.copy()
    params = extractor.get_params()
    assert extractor.fit(pixels, [0] * 20) is extractor
    extractor.transform(pixels)
    assert extractor.get_params() == params
    assert np.array_equal(pixels, before)
    added = set(vars(extractor)) - set(params)
    assert all(name.endswith("_") and not name.startswith("_") for name in added)
    readonly = pixels.copy()
    readonly.flags.writeable = False
    extractor.fit(readonly).transform(readonly)


def test_transform_before_fit():
    for method in (lambda e: e.transform([b""]), lambda e: e.get_feature_names_out()):
        with pytest.raises(NotFittedError):
            method(small())


def test_rows_depend_neither_on_their_order_nor_on_their_neighbours(pixels):
    extractor = small().fit(pixels)
    whole = extractor.transform(pixels)
    order = np.random.default_rng(1).permutation(20)
    assert_near(extractor.transform(pixels[order]), whole[order])
    assert_near(extractor.transform(pixels[5:8]), whole[5:8])
    assert_near(small(batch_size=7).fit_transform(pixels), whole)
    assert np.array_equal(extractor.transform(pixels[4:8]), whole[4:8])  # a whole batch
    assert np.array_equal(small().fit_transform(pixels), whole)
    assert np.array_equal(extractor.fit(pixels[:1]).transform(pixels), whole)


def test_clone_and_pickle_before_and_after_fit(pixels, monkeypatch):
    extractor = small(pool="avg", memory="somewhere")
    assert clone(extractor).get_params() == extractor.get_params()
    again = pickle.loads(pickle.dumps(extractor))
    assert again.get_params() == extractor.get_params()
    extractor.set_params(memory=None)
    wanted = extractor.fit_transform(pixels)
    stored = pickle.dumps(extractor)
    assert len(stored) < 3000  # no weights: those are 5 MB
    open_networks._open_once.cache_clear()  # as in another process
    assert np.array_equal(pickle.loads(stored).transform(pixels), wanted)
    with pytest.raises(NotFittedError):
        clone(pickle.loads(stored)).transform(pixels)


def test_a_pickle_refuses_other_weights(pixels, tmp_path):
    from torchvision import models

    file = tmp_path / "weights.pth"

    def save(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.save(models.squeezenet1_1().state_dict(), file)

    save(0)
    stored = pickle.dumps(small(weights=str(file)).fit(pixels))
    save(1)
    with pytest.raises(WeightsError, match=r": weights_sha256\. Fit it again"):
        pickle.loads(stored).transform(pixels)
    save(0)
    pickle.loads(stored).transform(pixels)
    file.unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        pickle.loads(stored).transform(pixels)


@pytest.mark.parametrize("kind", ["weights", "network"])
def test_a_file_that_was_replaced_is_opened_again(pixels, tmp_path, monkeypatch, kind):
    """Of the same size and with the same time, and by a relative name in another folder."""
    from torchvision import models

    from featx.backbones import TrainedRecord, save_trained
    from featx.networks import get_network
    from featx.preprocess import Preprocessing

    half = (0.5,) * 3
    record = TrainedRecord(
        network="cnn-hoogasian-cifar",
        class_names=("a", "b"),
        preprocessing=Preprocessing(32, 32, "bilinear", half, half),
    )

    def save(path, seed):
        torch.manual_seed(seed)
        path.parent.mkdir(exist_ok=True)
        if kind == "weights":
            torch.save(models.squeezenet1_1().state_dict(), path)
        else:
            save_trained(path, get_network(record.network).build(2, 32, seed), record)
        os.utime(path, ns=(10**18, 10**18))

    name = "net.pth" if kind == "weights" else "net.safetensors"
    for folder, seed in (("a", 0), ("b", 1), ("c", 1)):
        save(tmp_path / folder / name, seed)
    monkeypatch.chdir(tmp_path / "a")
    make = partial(small, weights=name) if kind == "weights" else partial(FeatureExtractor, name)
    old = make().fit(pixels)
    before = old.transform(pixels)
    monkeypatch.chdir(tmp_path / "b")
    expected = make().fit_transform(pixels)
    assert not np.array_equal(expected, before)
    monkeypatch.chdir(tmp_path / "a")
    assert np.array_equal(old.transform(pixels), before)
    (tmp_path / "c" / name).replace(name)
    with pytest.raises(
        WeightsError, match="since this FeatureExtractor was fitted: weights_sha256"
    ):
        old.transform(pixels)
    assert np.array_equal(make().fit_transform(pixels), expected)


def test_parameters_changed_after_fit_must_be_fitted(pixels):
    extractor = small().fit(pixels).set_params(pool="avg", dtype="float16")
    with pytest.raises(
        WeightsError, match=": dtype, point.feature_shape, point.pool. Fit it again"
    ):
        extractor.transform(pixels)


def test_names_and_pandas_output(pixels):
    extractor = small(pool="avg").set_output(transform="pandas").fit(pixels)
    table = extractor.transform(pixels)
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == extractor.get_feature_names_out().tolist()
    assert table.columns[[0, -1]].tolist() == ["squeezenet1_1_0", "squeezenet1_1_511"]
    assert (table.to_numpy() == small(pool="avg").fit_transform(pixels)).all()
    named = extractor.transform(pd.Series(list(pixels[:3]), index=[7, 8, 9]))
    assert len(named) == 3


# Pipelines and the memory.


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_pipeline_search_over_the_extractor(paths, labels, tmp_path, n_jobs):
    pipeline = make_pipeline(small(pool="avg", memory=tmp_path / "m"), LogisticRegression(C=1e-2))
    search = GridSearchCV(
        pipeline,
        {"featureextractor__pool": ["avg", "max"], "logisticregression__C": [0.1, 1.0]},
        cv=3,
        n_jobs=n_jobs,
        error_score="raise",
    )
    assert search.fit(paths, labels).best_score_ == 1.0
    assert search.predict(paths).tolist() == labels.tolist()
    assert rows_of(tmp_path / "m") == [20, 20]


def rows_of(folder):
    """Rows in the memory of each identity."""
    totals = []
    for place in sorted(folder.iterdir()):
        files = []
        for file in sorted(place.glob("*.h5")):
            with Cache.open(file) as cache:
                assert cache.verify() == []
                files.append(cache.image_digests)
        digests = np.concatenate(files)
        assert len(np.unique(digests, axis=0)) == len(digests)
        totals.append(len(digests))
    return totals


def test_cross_validation_computes_each_image_once(paths, labels, tmp_path, computed):
    pipeline = make_pipeline(small(memory=tmp_path / "m"), LinearSVC())
    found = cross_validate(pipeline, paths, labels, cv=5, error_score="raise")
    assert found["test_score"].mean() == 1.0
    assert sum(computed) == 20
    cross_validate(pipeline, paths, labels, cv=4, error_score="raise")
    assert sum(computed) == 20
    without = make_pipeline(small(), LinearSVC())
    cross_validate(without, paths, labels, cv=5, error_score="raise")
    assert sum(computed) == 120


def test_processes_side_by_side_compute_each_image_once(paths, labels, tmp_path):
    pipeline = make_pipeline(small(memory=tmp_path / "m"), LinearSVC())
    cross_validate(pipeline, paths, labels, cv=5, n_jobs=2, error_score="raise")
    assert rows_of(tmp_path / "m") == [20]


def test_what_is_remembered_equals_what_is_computed(pixels, paths, tmp_path, computed):
    extractor = small(memory=tmp_path / "m").fit(pixels)
    wanted = small().fit_transform(paths)
    computed.clear()
    first = extractor.transform(paths[:7])
    second = extractor.transform(paths[::-1])
    assert computed == [7, 13]
    assert np.array_equal(first, wanted[:7])
    assert_near(second, wanted[::-1])
    assert np.array_equal(second[::-1][:7], first)  # kept
    # Keyed by content: pixels are other bytes than files, names do not matter.
    copies = [Path(path).read_bytes() for path in paths]
    assert np.array_equal(extractor.transform([*copies, copies[0]])[:20], second[::-1])
    assert computed == [7, 13]
    extractor.transform(pixels)
    assert computed == [7, 13, 20]


def test_everything_that_changes_features_has_a_memory_of_its_own(paths, tmp_path, computed):
    for options in (
        {},
        {"pool": "avg"},
        {"weights": "random:1"},
        {"input_size": 48},
        {"precision": "bf16"},
        {"dtype": "float16"},
        {"layer": "features.3"},
        {"crop_pct": 0.7},
        {"mean": [0.5] * 3},
    ):
        small(memory=tmp_path / "m", **options).fit_transform(paths[:4])
    assert computed == [4] * 9
    assert rows_of(tmp_path / "m") == [4] * 9
    small(memory=tmp_path / "m", batch_size=2, workers=1).fit_transform(paths[:4])
    assert computed == [4] * 9


def test_many_small_files_become_few(pixels, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(memory, "_MOST_FILES", 6)
    monkeypatch.setattr(memory, "_FILES_PER_MERGE", 4)
    extractor = small(memory=tmp_path / "m", pool="avg").fit(pixels)
    for image in pixels:
        extractor.transform(image[None])
    assert len(find_caches(next((tmp_path / "m").iterdir()))) < 6
    assert rows_of(tmp_path / "m") == [20]
    assert_near(extractor.transform(pixels), small(pool="avg").fit_transform(pixels))
    assert computed == [1] * 20 + [20]


def test_large_sets_are_kept_in_parts(pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_ROWS_PER_FILE", 9)
    extractor = small(memory=tmp_path / "m").fit(pixels)
    found = extractor.transform(pixels)
    assert np.array_equal(found, small().fit_transform(pixels))
    sizes = []
    for path in find_caches(next((tmp_path / "m").iterdir())):
        with Cache.open(path) as cache:
            sizes.append(len(cache))
    assert sorted(sizes) == [4, 8, 8]  # whole batches of four


def test_workers_of_a_memory_are_started_once(pixels, tmp_path, monkeypatch, capsys):
    started = []

    class Watched(loader.DataLoader):
        def __iter__(self):
            started.append(len(self.sampler))
            return super().__iter__()

    monkeypatch.setattr(loader, "DataLoader", Watched)
    monkeypatch.setattr(memory, "_ROWS_PER_FILE", 4)
    found = small(memory=tmp_path / "m", workers=1, verbose=True).fit_transform(pixels)
    assert started == [5]
    assert "squeezenet1_1: 20/20" in capsys.readouterr().err
    assert np.array_equal(found, small().fit_transform(pixels))


def test_rows_that_another_process_kept_meanwhile_are_not_computed(pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_ROWS_PER_FILE", 4)
    mine, others = (
        small(memory=tmp_path / "m").fit(pixels),
        small(memory=tmp_path / "m").fit(pixels),
    )
    kept, locked = [], memory.RowMemory._locked
    write = memory._write
    monkeypatch.setattr(memory, "_write", lambda *a: kept.append(len(a[1].paths)) or write(*a))

    def beside(self, folder):
        if kept == [4]:
            kept.append("others")
            others.transform(pixels[10:])
        return locked(self, folder)

    monkeypatch.setattr(memory.RowMemory, "_locked", beside)
    found = mine.transform(pixels)
    assert kept == [4, "others", 4, 4, 2, 4, 2]
    assert np.array_equal(found, small().fit_transform(pixels))


@pytest.mark.parametrize("part", ["end", "features"])
def test_a_damaged_memory_is_named(paths, tmp_path, part):
    extractor = small(memory=tmp_path / "m").fit(paths)
    extractor.transform(paths)
    file = next((tmp_path / "m").rglob("*.h5"))
    content = bytearray(file.read_bytes()[: -100 if part == "end" else None])
    if part == "features":
        content[HeaderBlock.parse(content[:4096]).features_offset + 9] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheError, match="damaged") as caught:
        extractor.transform(paths)
    assert f"delete {file}" in caught.value.__notes__[0]
    file.unlink()
    extractor.transform(paths)


def test_a_memory_that_cannot_be_made(paths, tmp_path):
    (tmp_path / "m").write_text("a file")
    with pytest.raises(CacheError, match=r"the memory .*m.* cannot be used"):
        small(memory=tmp_path / "m").fit(paths).transform(paths)


# Real weights.


def test_a_linear_classifier_on_real_photographs(shared, photographs, squeezenet_file, tmp_path):
    """Animals and things: 40 photographs, two-fold, far above the half of chance."""
    files = [str(path) for path in photographs]
    order = np.random.default_rng(0).permutation(40)
    is_animal = np.array([path.name < "n02600000" for path in photographs])
    extractor = FeatureExtractor(
        "squeezenet1_0", weights=str(squeezenet_file), pool="avg", memory=tmp_path / "m"
    )
    pipeline = make_pipeline(extractor, LinearSVC(C=0.01))
    X, y = [files[i] for i in order], is_animal[order]
    scores = cross_validate(pipeline, X, y, cv=4, error_score="raise")["test_score"]
    assert scores.mean() >= 0.8
    assert rows_of(tmp_path / "m") == [40]


# Errors.


@pytest.fixture
def spoilt(paths, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    (tmp_path / "empty.jpg").touch()
    return [*paths[:2], str(tmp_path / "bad.jpg"), *paths[2:4], str(tmp_path / "empty.jpg")]


@pytest.mark.parametrize("has_memory", [False, True])
def test_an_unreadable_image_is_named_by_number_and_path(spoilt, paths, tmp_path, has_memory):
    extractor = small(memory=tmp_path / "m" if has_memory else None).fit(paths)
    with pytest.raises(ImageError, match=r"^X\[2\] \(.*bad\.jpg\): not an image but an HTML page"):
        extractor.transform(spoilt)
    with pytest.raises(ImageError, match=r"^X\[1\]: the file is empty"):
        extractor.transform([encoded(np.zeros((9, 9, 3), np.uint8)), b""])
    with pytest.raises(ReadError, match=r"cannot read '.*none\.jpg': No such file"):
        extractor.transform([paths[0], paths[0], paths[1], str(tmp_path / "none.jpg")])


@pytest.mark.parametrize("has_memory", [False, True])
def test_an_unreadable_image_may_be_a_row_of_nan(spoilt, paths, tmp_path, has_memory):
    options = {"memory": tmp_path / "m"} if has_memory else {}
    extractor = small(on_error="nan", **options).fit(paths)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"2 images cannot be read .* X\[2\] \(.*bad.jpg\)"):
            found = extractor.transform(spoilt)
        assert np.isnan(found).all(1).tolist() == [False, False, True, False, False, True]
        good = [0, 1, 3, 4]
        assert_near(found[good], small().fit_transform([spoilt[i] for i in good]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(extractor.transform([b"bad", b"worse"])).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "squeezenet1"}, UsageError, "did you mean squeezenet1_"),
        ({"layer": "feature"}, UsageError, "did you mean features"),
        ({"pool": "mean"}, UsageError, "pool"),
        ({"weights": "nowhere.pth"}, WeightsError, "does not exist"),
        ({"precision": "fp8"}, UsageError, "bf16"),
        ({"device": "gpu"}, UsageError, "auto, cpu, cuda"),
        ({"batch_size": 0}, UsageError, "at least 1"),
        ({"dtype": "float64"}, UsageError, "float32, float16"),
        ({"on_error": "skip"}, UsageError, "raise, nan"),
        ({"mean": 0.5}, UsageError, r"mean must be 3 finite numbers \(RGB\), got 0.5"),
        ({"std": (1.0, 1.0)}, UsageError, "std must be 3 finite numbers"),
        ({"crop_pct": 1.5}, UsageError, "at most 1"),
        ({"interpolation": "cubic"}, UsageError, "bicubic"),
    ],
)
def test_wrong_parameters_are_errors_of_fit(pixels, options, error, message):
    extractor = FeatureExtractor(**{"backbone": "squeezenet1_1"} | SMALL | options)
    with pytest.raises(error, match=message):
        extractor.fit(pixels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("one.jpg", r"X is one str: of one image give the list \[image\]"),
        (b"\xff\xd8", "X is one bytes"),
        (Image.new("RGB", (9, 9)), "X is one Image"),
        ([], "no images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images"),
        (bytearray(b"\xff\xd8"), "X is one bytearray"),
        (np.zeros((4, 10)), r"shape \(4, 10\), .*of one image give the list \[image\]"),
        (np.zeros((9, 8, 3), np.uint8), r"one RGB image is given as \[image\]"),
        (np.zeros((3, 9, 8, 2), np.uint8), r"shape \(3, 9, 8, 2\), not \(N, H, W, 3\)"),
        (np.array([b"a", b"b"]), "fixed-length bytes"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "its one column"),
        ({"a": 1}, "X is a dict"),
    ],
)
def test_what_is_no_images_is_refused_by_fit_and_transform(pixels, images, message):
    extractor = small()
    with pytest.raises(UsageError, match=message):
        extractor.fit(images)
    with pytest.raises(UsageError, match=message):
        extractor.fit(pixels).transform(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8, 3), 2.0), "of values from 0 to 255 make .*uint8"),
        (list(np.zeros((9, 8, 3), np.uint8)), r"a row of an RGB image\? Give one .*\[image\]"),
        ([np.zeros((8, 8, 3), np.int64)], "int64"),
        (np.zeros((2, 3, 8, 8), np.uint8), "moveaxis"),
        ([np.zeros((8, 8, 3), np.uint8), 7], r"images\[1\] is of type builtins.int"),
    ],
)
def test_images_of_a_wrong_kind_are_refused(pixels, images, message):
    with pytest.raises(UsageError, match=message):
        small().fit(pixels).transform(images)


def test_values_that_the_type_cannot_hold_are_an_error(pixels, tmp_path):
    from torchvision import models

    state = models.squeezenet1_1().state_dict()
    state["features.0.weight"] *= 1e8
    torch.save(state, tmp_path / "large.pth")
    extractor = small(weights=str(tmp_path / "large.pth"), dtype="float16").fit(pixels)
    with pytest.raises(FeatxError, match="not finite in float16.*use dtype='float32'"):
        extractor.transform(pixels)


def test_progress_is_shown_where_it_is_wanted(pixels, capsys):
    small().fit_transform(pixels)
    assert capsys.readouterr().err == ""
    small(verbose=True).fit_transform(pixels)
    assert "squeezenet1_1: 20/20" in capsys.readouterr().err


def test_importing_featx_does_not_import_the_extractor():
    code = "import featx, sys; print('sklearn' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False False\n"
    assert featx.FeatureExtractor is FeatureExtractor


def test_the_example_in_the_docstring():
    import doctest

    found = doctest.testmod(estimator)
    assert found.attempted >= 7
    assert found.failed == 0

"""A plan: several layers in one pass, the images' own size, and mistakes made on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_photos import make_photos

import featx
from featx.catalog import open_complete
from featx.cli import main
from featx.errors import UsageError
from featx.evaluate import pair_caches
from featx.extract import Plan, run_plan
from featx.fewshot import draw_subset
from featx.preprocess import Preprocessing
from featx.progress import SILENT
from featx.sources import open_data
from featx.store import Cache
from featx.words import MISTAKES

BASE = {"backbone": ("squeezenet1_1",), "weights": "random:3", "workers": 0, "batch_size": 4}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_photos(tmp_path / "photos", {"cat": (40, 40), "dog": (40, 40)})


def run(**options):
    lines = []
    reports = run_plan(Plan(**{**BASE, "data": "photos", **options}), SILENT, tell=lines.append)
    return [Cache.open(report.path) for report in reports], lines, reports


def count_forwards(monkeypatch):
    from featx.backbones import BackboneGroup

    calls = []
    compute = BackboneGroup.features_many

    def counted(self, *args):
        calls.append(len(self))
        return compute(self, *args)

    monkeypatch.setattr(BackboneGroup, "features_many", counted)
    return calls


def test_several_layers_are_one_pass_and_one_file_each(photos, monkeypatch):
    layers = ("features.5", "features.8", "features")
    singles = [run(layer=(layer,), input_size=48, cache_dir="one")[0][0] for layer in layers]
    calls = count_forwards(monkeypatch)
    caches, lines, reports = run(layer=layers, input_size=48, cache_dir="all")
    assert calls == [3, 3, 3]  # ten images in batches of four
    assert [report.n_computed for report in reports] == [10, 10, 10]
    assert len(lines) == 3
    for single, cache in zip(singles, caches, strict=True):
        assert cache.path.name == single.path.name
        assert cache.fingerprint == single.fingerprint
        np.testing.assert_array_equal(cache.X[:], single.X[:])
    assert len({cache.meta["layer"] for cache in caches}) == len({c.path for c in caches}) == 3


def test_only_the_layers_that_lack_rows_are_written(photos, monkeypatch):
    [first], _, _ = run(layer=("features.5",), input_size=48)
    before = first.path.stat().st_mtime_ns
    caches, lines, reports = run(layer=("features.5", "features.8"), input_size=48)
    assert [report.n_computed for report in reports] == [0, 10]
    assert "was complete already" in lines[0]
    assert caches[0].path.stat().st_mtime_ns == before
    calls = count_forwards(monkeypatch)
    run(layer=("features.5", "features.8"), input_size=48)
    assert calls == []


def test_a_repair_asks_for_its_own_layer_only(photos):
    caches, _, _ = run(layer=("features.5", "features.8"), input_size=48)
    path, row = caches[1].path, caches[1].X.stored[3].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(row)] ^= 1
    path.write_bytes(content)
    assert main(["repair", str(path), "--quiet"]) == 0
    with h5py.File(path) as file:
        assert file["features"][3].tobytes() == row


def test_an_image_that_cannot_be_read_fails_in_every_layer(photos):
    (photos / "cat" / "2.png").write_bytes(b"")
    caches, _, reports = run(layer=("features.5", "features"), input_size=48)
    assert [report.n_failed for report in reports] == [1, 1]
    assert [cache.errors for cache in caches] == [{2: "the file is empty"}] * 2


def test_the_native_size_resizes_nothing(photos):
    [cache], _, _ = run(input_size="native")
    assert cache.meta["input_size"] == 40
    assert cache.meta["preprocessing"]["resize_px"] == 40
    assert cache.meta["request"]["input_size"] == "native"
    pixels = np.stack([np.asarray(Image.open(photos / path)) for path in cache.paths])
    backbone = featx.backbones.open_backbone(
        "squeezenet1_1", weights="random:3", overrides={"input_size": 40}
    )
    normalised = backbone.preprocessing.normalise(torch.from_numpy(pixels))
    with torch.inference_mode():
        wanted = backbone.features(normalised).numpy()
    np.testing.assert_allclose(cache.X[:], wanted, atol=2e-3, rtol=2e-3)


def test_the_native_size_needs_images_of_one_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", {"cat": (40, 40), "dog": (32, 32)})
    with pytest.raises(UsageError, match=r"2 sizes \(40 x 40 \(5\), 32 x 32 \(5\)\)"):
        run(input_size="native")


def test_oblong_images_are_cropped_at_their_native_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", {"cat": (60, 40), "dog": (60, 40)})
    [cache], _, _ = run(input_size="native")
    assert cache.meta["input_size"] == 40
    preprocessing = Preprocessing(40, 40, "bilinear", (0.0,) * 3, (1.0,) * 3)
    image = Image.open(tmp_path / "photos" / cache.paths[0])
    np.testing.assert_array_equal(preprocessing.pixels(image), np.asarray(image)[:, 10:50])


def squashing_network():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    return network, Preprocessing(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3, crop_mode="squash")


@pytest.mark.parametrize("size", [(60, 40), (40, 40)])
def test_weights_that_squash_images_have_no_native_size_for_oblong_ones(
    tmp_path, monkeypatch, size
):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", {"cat": size, "dog": size})
    code = (f"{__name__}:squashing_network",)
    options = {"backbone": code, "allow_code": code, "weights": None, "layer": ("1",)}
    if size == (40, 40):
        assert run(**options, input_size="native")[0][0].meta["input_size"] == 40
        return
    with pytest.raises(UsageError, match=r"crop mode squash\), and these are 60 x 40"):
        run(**options, input_size="native")
    run(**options, input_size=40)


def test_the_command_line_takes_sizes_and_words(photos, capsys):
    words = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--data", "photos"]
    assert main([*words, "-j", "0", "--input-size", "native", "--layer", "features.5"]) == 0
    captured = capsys.readouterr()
    assert "native input size: 40 pixels, nothing is resized" in captured.err
    assert main([*words, "--input-size", "big"]) == 2
    assert "neither a whole number of at least 1 nor 'native'" in capsys.readouterr().err


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_change_the_numbers_as_they_say(name):
    right = Preprocessing(8, 8, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    wrong = right.override(**MISTAKES[name])
    pixels = torch.arange(0, 192, dtype=torch.uint8).reshape(1, 8, 8, 3)
    values = pixels.permute(0, 3, 1, 2).double()
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (right.mean, right.std))
    expected = {
        "correct": (values / 255 - mean) / std,
        "half-range": values / 127.5 - 1,
        "divide-only": values / 255,
        "divide-twice": values / 255 / 255,
        "bgr": (values.flip(1) / 255 - mean) / std,
        "raw": values,
    }[name]
    torch.testing.assert_close(wrong.normalise(pixels).double(), expected, rtol=1e-5, atol=1e-4)
    assert (wrong.identity() == right.identity()) == (name == "correct")
    assert ("BGR" in wrong.describe()) == (name == "bgr")


def test_mistakes_are_other_files_and_other_fingerprints(photos):
    caches = [run(preprocess=name, store_dtype="float32", input_size=48)[0][0] for name in MISTAKES]
    assert (
        len({cache.path for cache in caches})
        == len({c.fingerprint for c in caches})
        == len(MISTAKES)
    )
    with pytest.raises(UsageError, match="did you mean divide-only"):
        run(preprocess="divide-onl")


def test_the_identity_of_what_is_right_has_not_changed():
    """Or every cache of earlier versions would be a mismatch."""
    right = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.25,) * 3)
    assert set(right.identity()) == {"resize_px", "crop_px", "interpolation", "mean", "std"}


def test_failed_images_are_told_although_another_layer_was_complete(photos, capsys):
    (photos / "cat" / "2.png").write_bytes(b"")
    words = ["extract", "--backbone", "squeezenet1_1", "--weights", "random:3", "--data", "photos"]
    words += ["-j", "0", "-b", "4", "--input-size", "48", "--layer"]
    assert main([*words, "features.5"]) == 0
    capsys.readouterr()
    assert main([*words, "features.5", "features.8"]) == 0
    assert "1 of 10 images could not be read" in capsys.readouterr().err


@pytest.fixture
def splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        make_photos(tmp_path / "photos" / split, dict.fromkeys(("cat", "dog", "eel"), (40, 40)), 9)
    return tmp_path / "photos"


def drawn(caches, name="dog"):
    return [{path for path in cache.paths if f"/{name}/" in path} for cache in caches]


def test_the_sample_of_a_class_depends_neither_on_the_others_nor_on_their_order(splits):
    options = {"input_size": 48, "per_class": 4, "test_per_class": 3}
    whole, *_ = run(**options)
    assert [len(paths) for paths in drawn(whole)] == [4, 3]
    assert drawn(run(**options, drop=("cat",))[0]) == drawn(whole)
    assert drawn(run(**options, classes=("eel", "dog"))[0]) == drawn(whole)
    shutil.rmtree(splits / "train" / "cat")
    shutil.rmtree(splits / "val" / "cat")
    assert drawn(run(**options, cache_dir="fewer")[0]) == drawn(whole)
    assert drawn(run(**options, cache_dir="other", seed=1)[0]) != drawn(whole)
    larger, *_ = run(input_size=48, cache_dir="larger", per_class=6)
    assert drawn(whole)[0] < drawn(larger)[0]


def test_samples_of_an_older_featx_are_completed_enlarged_and_repaired(splits, monkeypatch):
    """Their records do not name a rule; it went by the numbers of classes and rows."""
    options = {"input_size": 48, "per_class": 4, "test_per_class": 3}
    older, *_ = run(**options, draws=1)
    assert "draws" not in older[0].meta["request"]
    labels = open_data("photos")["train"].labels
    rows = np.flatnonzero(np.isin(open_data("photos")["train"].paths, older[0].paths))
    assert np.array_equal(rows, draw_subset(labels, 4, seed=0))  # as at that time
    assert [report.n_computed for report in run(**options)[2]] == [0, 0]
    larger, _, reports = run(**{**options, "per_class": 6})
    assert set(older[0].paths) < set(larger[0].paths)
    assert reports[1].n_computed == 0
    pairs, notices = pair_caches([*older, *larger])
    assert (len(pairs), notices) == (2, [])
    assert not any(pair.notices for pair in pairs)
    other, *_ = run(**options, cache_dir="fresh")
    assert other[0].meta["request"]["draws"] == 2
    assert set(other[0].paths) != set(older[0].paths)
    before, X = older[0].paths, older[0].X[:]
    path = older[0].path
    damage_first_block(path)
    assert main(["repair", str(path), "-q"]) == 0
    with Cache.open(path) as repaired:
        assert repaired.paths == before
        assert np.array_equal(repaired.X[:], X)


def damage_first_block(path):
    with h5py.File(path) as file:
        at = file["features"].id.get_offset()
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\x13\x37")


def test_caches_record_all_splits_of_their_run(splits):
    (train, val), *_ = run(input_size=48)
    contents = [cache.meta["identity"]["source"] for cache in (train, val)]
    wanted = {
        split: {"content": source["content"], "n_images": source["n_images"]}
        for split, source in zip(("train", "val"), contents, strict=True)
    }
    names = {split: source.names_id() for split, source in open_data("photos").items()}
    for split, listed in names.items():
        wanted[split]["listed"] = listed
    assert train.meta["splits"] == val.meta["splits"] == wanted
    (alone,), *_ = run(input_size=48, split=("val",), cache_dir="alone")
    assert alone.meta["splits"] == {
        "train": {"listed": names["train"], "n_images": 27},
        "val": wanted["val"],
    }


def test_a_new_train_cache_beside_an_old_one_of_val_is_told(splits):
    """As when  extract --overwrite  is stopped between the splits of changed data."""
    run(input_size=48)
    (splits / "val" / "dog" / "0.png").rename(splits / "train" / "dog" / "moved.png")
    (train, val), *_ = run(input_size=48, cache_dir="after")
    shutil.copy(train.path, Path("cache") / train.path.name)
    caches, _ = open_complete("cache")
    (pair,), _ = pair_caches(caches)
    assert "27 of val" in pair.notices[0]
    assert "beside 26 images of val" in pair.notices[0]
    (pair,), _ = pair_caches([train, val])
    assert pair.notices == ()


def test_what_fit_will_do_is_said_before_the_extraction(splits, capsys):
    words = ["extract", "--backbone", BASE["backbone"][0], "--weights", BASE["weights"]]
    words += ["--data", "photos", "--input-size", "48", "-j", "0", "--per-class", "5"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "tests on val, since there is no split test" in said
    assert said.index("tests on val") < said.index("preprocessing:")

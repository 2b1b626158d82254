"""``featx predict``, ``featx fit --save-models`` and ``featx list models``, on real images."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import featx
from featx.cli import main
from featx.predict import iter_predictions, open_network
from featx.sources import from_arrays

HEADS = ("svm", "logreg", "knn")


@pytest.fixture(scope="session")
def models(digits_folder):
    words = ["fit", "--clf", *HEADS, "--per-class", "6", "--repeats", "1", "--save-models"]
    words += ["--cache", str(digits_folder / "cache"), "--reports", str(digits_folder / "reports")]
    assert main([*words, "--quiet"]) == 0
    folder = digits_folder / "reports" / "models"
    return {name: next(folder.glob(f"*-{name}-*.safetensors")) for name in HEADS}


@pytest.fixture(scope="session")
def test_cache(digits_folder):
    return featx.load(next((digits_folder / "cache").glob("digits-test-*.h5")))


@pytest.fixture(scope="session")
def pictures(test_cache, tmp_path_factory):
    """The images of the test cache as PNG files, in the order of its rows."""
    folder = tmp_path_factory.mktemp("pictures")
    source = featx.open_data("digits")["test"]
    rows = {path: row for row, path in enumerate(source.paths)}
    for path in test_cache.paths:
        target = folder / f"{path}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(source.read(rows[path])).save(target)
    assert [str(p.relative_to(folder))[:-4] for p in sorted(folder.rglob("*.png"))] == sorted(
        test_cache.paths
    )
    return folder


@pytest.fixture
def predict(models, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*words, model="logreg"):
        code = main(["predict", "--model", str(models[model]), "-j", "0", *map(str, words)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def by_name(rows, test_cache):
    """Put rows into the order of the cache."""
    order = {f"{path.rpartition('/')[2]}.png": i for i, path in enumerate(test_cache.paths)}
    return sorted(rows, key=lambda row: order[row["path"].rpartition("/")[2]])


# The last digits of features, which then are rounded to float16, by up to 2**-11 of a value.
OTHER_BATCH_SIZE = 0.01


@pytest.mark.parametrize(
    ("name", "size"), [*((name, "16") for name in HEADS), ("svm", "7"), ("logreg", "7")]
)
def test_images_of_a_cache_score_as_its_rows(name, size, predict, models, pictures, test_cache):
    files = [pictures / f"{path}.png" for path in test_cache.paths]
    code, out, err = predict(*files, "--batch-size", size, "--top", "10", model=name)
    assert code == 0
    rows = table(out)
    saved = featx.load_model(models[name])
    decisions = saved.decision_function(test_cache)
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 11)] * len(test_cache)
    if size == "16":
        names = [rows[10 * i]["class"] for i in range(len(test_cache))]
        assert names == [saved.class_names[label] for label in saved.predict(test_cache)]
    found = np.empty_like(decisions)
    for i, row in enumerate(rows):
        found[i // 10, saved.class_names.index(row["class"])] = float(row["score"])
    allowed = 1e-9 if size == "16" else OTHER_BATCH_SIZE * np.ptp(decisions)
    np.testing.assert_allclose(found, decisions, rtol=0, atol=allowed)
    assert {row["status"] for row in rows} == {"done"}
    assert ("probability" in rows[0]) == (name != "svm")
    if name != "svm":
        sums = np.add.reduceat([float(row["probability"]) for row in rows], range(0, len(rows), 10))
        np.testing.assert_allclose(sums, 1.0)
    assert f"{name} on squeezenet1_1 features, 10 classes, fitted on digits, 6 per class" in err


def test_features_are_those_of_the_cache_bit_for_bit(models, pictures, test_cache):
    saved = featx.load_model(models["svm"])
    network = open_network(saved, workers=0)
    source = from_arrays([pictures / f"{path}.png" for path in test_cache.paths])
    batches = network.engine.run(network.backbone, source, range(3), dtype=network.dtype)
    features = np.concatenate([batch.features for batch in batches])
    assert features.dtype == np.float16
    assert (
        features.tobytes() == test_cache.X.stored[:].tobytes()
    )  # the same images in the same batches
    scores = [row.scores for row in iter_predictions(saved, network, source, top=10)]
    best = np.sort(saved.decision_function(test_cache), axis=1)[:, ::-1]
    np.testing.assert_allclose(scores, best, rtol=1e-12)


def test_from_python(models, pictures, test_cache):
    saved = featx.load_model(models["logreg"])
    paths = [pictures / f"{path}.png" for path in test_cache.paths[:5]]
    found = saved.predict_images([*paths, np.zeros((9, 9, 3), np.uint8), b"no image"], top=2)
    chances = saved.predict_proba(test_cache.X[:5])
    assert [row.classes[0] for row in found[:5]] == [str(i) for i in chances.argmax(axis=1)]
    np.testing.assert_allclose([row.probabilities[0] for row in found[:5]], chances.max(axis=1))
    assert [row.status == "done" for row in found] == [True] * 6 + [False]
    assert found[6].classes == ()
    assert found[6].probabilities is None


def test_memory_does_not_grow_with_the_images(models, monkeypatch):
    monkeypatch.setattr("featx.predict.predictions._BLOCK_ROWS", 20)
    saved = featx.load_model(models["svm"])
    network = open_network(saved, batch_size=16, workers=0)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    sizes = []
    real = type(saved.model).decision_function

    def spy(self, X):
        sizes.append(len(X))
        return real(self, X)

    monkeypatch.setattr(type(saved.model), "decision_function", spy)
    rows = list(iter_predictions(saved, network, from_arrays(pixels)))
    assert sizes == [32, 32, 32, 4]
    assert [row.path for row in rows] == [f"all/{i:05d}" for i in range(100)]


def test_bad_images_are_rows_and_other_files_are_counted(predict, pictures, tmp_path):
    mixed = tmp_path / "mixed"
    (mixed / "deep" / "er").mkdir(parents=True)
    images = sorted(pictures.rglob("*.png"))[:3]
    shutil.copy(images[0], mixed / "b.png")
    shutil.copy(images[1], mixed / "deep" / "er" / "c.PNG")
    (mixed / "a.jpg").write_bytes(b"torn")
    (mixed / "notes.txt").write_text("no image")
    (mixed / ".hidden.png").write_bytes(images[0].read_bytes())
    shutil.copy(images[2], tmp_path / "loose.dat")
    code, out, err = predict(mixed, mixed / "b.png", tmp_path / "loose.dat")
    assert code == 0
    rows = table(out)
    assert [row["path"] for row in rows] == [
        str(path)
        for path in (
            mixed / "a.jpg",
            mixed / "b.png",
            mixed / "deep/er/c.PNG",
            tmp_path / "loose.dat",
        )
    ]
    assert [row["status"] == "done" for row in rows] == [False, True, True, True]
    assert list(rows[0]) == ["path", "class", "score", "probability", "status"]
    assert rows[0]["class"] == rows[0]["score"] == rows[0]["probability"] == ""
    assert "2 files that are not images are left out" in err
    assert "1 of 4 images could not be read" in err


def test_json_and_output(predict, pictures, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"x")
    words = [tmp_path / "torn.png", *sorted(pictures.rglob("*.png"))[:2]]
    code, out, err = predict(*words, "--output", "found.json", "--top", "3", model="knn")
    assert (code, out) == (0, "")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["head"] == "knn"
    assert found["probability_is"].startswith("share of the votes")
    assert "decision score of knn" in found["score_is"]
    first, second, _ = found["predictions"]
    assert first["status"] != "done"
    assert first["classes"] == []
    assert [item["rank"] for item in second["classes"]] == [1, 2, 3]
    assert "found.json: 3 images" in err
    assert predict(*words, "--output", "found.csv")[0] == 0
    assert pd.read_csv(tmp_path / "found.csv").shape == (3, 5)
    _, out, _ = predict(*words, "--format", "json", model="svm")
    assert json.loads(out)["probability_is"] is None


def test_archives_and_manifests(predict, pictures, tmp_path):
    images = sorted(pictures.rglob("*.png"))[:2]
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for name, image in zip(("1.png", "y/1.png"), images, strict=True):
            archive.write(image, name)
        archive.writestr("y/readme.txt", "no image")
    (tmp_path / "new.csv").write_text("\n".join(["file", *map(str, images), "gone.png"]))
    code, _, err = predict("new.csv", images[0], "new.zip")
    assert code == 1
    assert "/gone.png': No such file or directory" in err
    (tmp_path / "gone.png").touch()
    code, out, err = predict("new.csv", images[0], "new.zip")
    assert code == 0
    rows = table(out)
    inside = ["new.zip/1.png", "new.zip/y/1.png"]
    assert [row["path"] for row in rows] == [*map(str, images), "gone.png", *inside]
    assert [row["status"] == "done" for row in rows] == [True, True, False, True, True]
    assert rows[0]["score"] == rows[3]["score"] != rows[1]["score"] == rows[4]["score"]
    assert "1 file that is no image left out" in err


def test_a_pipe_gives_one_image_or_names_of_images(predict, pictures, tmp_path, monkeypatch):
    first, second = sorted(pictures.rglob("*.png"))[:2]
    plain = table(predict(first, second)[1])

    def piped(content, *words):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        code, out, err = predict(*words)
        return code, table(out), err

    code, rows, _ = piped(first.read_bytes(), "-", second)
    assert code == 0
    scores = {row["path"]: float(row["score"]) for row in rows}
    wanted = {"-": float(plain[0]["score"]), str(second): float(plain[1]["score"])}
    assert scores == pytest.approx(wanted, rel=1e-6)
    assert piped(f"{first}\n{second}\n".encode(), "-")[:2] == (0, plain)
    for content, words in ((b"", "gives nothing"), (b"gone.png", "no file or folder 'gone.png'")):
        code, rows, err = piped(content, "-")
        assert (code, rows) == (1, [])
        assert words in err
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(first.read_bytes(),))
    writer.start()
    (row,) = table(predict("pipe")[1])
    assert (row["path"], row["class"]) == ("pipe", plain[0]["class"])
    writer.join()


@pytest.mark.skipif(os.name != "posix", reason="names that are not UTF-8")
def test_names_that_are_not_utf8_stay_as_they_are(predict, pictures, tmp_path):
    image = sorted(pictures.rglob("*.png"))[0]
    odd = os.fsencode(tmp_path) + b"/\xff,\n.png"
    shutil.copy(image, odd)
    code, _, _ = predict(os.fsdecode(odd), "--output", "x.csv")
    assert code == 0
    text = (tmp_path / "x.csv").read_text(errors="surrogateescape")
    assert os.fsencode(table(text)[0]["path"]) == odd


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing.png"], 1, "there is no file or folder 'nothing.png'"),
        (["empty"], 1, "there are no images in empty"),
        (["torn.png"], 1, "none of the 1 images could be read"),
        (["torn.png", "--output", "x.xls"], 2, "end it in .csv or .json"),
        (["torn.png", "--output", "none/x.csv"], 2, "there is no folder none"),
        (["torn.png", "--output", "/dev/null", "--format", "csv"], 2, "it is not a file"),
        (["torn.png", "--top", "0"], 2, "--top"),
        (["torn.png", "--model", "empty"], 1, "there is no model empty"),
        (["torn.png", "--model", "torn.png"], 1, "torn.png is no model"),
        (["torn.png", "--backbone", "vgg16"], 2, "not vgg16"),
        (["torn.png", "--device", "tpu"], 2, "device 'tpu' is unknown"),
    ],
)
def test_mistakes_are_one_line(words, code, message, predict, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.png").write_bytes(b"x")
    found, _, err = predict(*words)
    assert found == code
    assert message in err
    assert "Traceback" not in err


def test_a_failure_leaves_no_output(predict, pictures, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("old")

    def fail(*words):
        raise OSError("broken")

    monkeypatch.setattr("featx.predict.predictions._classes", fail)
    assert predict(pictures, "--output", "x.csv")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert (tmp_path / "x.csv").read_text() == "old"


def test_the_weights_are_checked(predict, digits_folder, pictures, tmp_path, monkeypatch):
    image = sorted(pictures.rglob("*.png"))[0]
    known, moved = digits_folder / "weights.pth", digits_folder / "moved.pth"
    expected = predict(image)[1]
    state = torch.load(known, weights_only=True)
    state["features.0.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "others.pth")
    code, out, err = predict(image, "--weights", tmp_path / "others.pth")
    assert (code, out) == (1, "")
    assert "others.pth does not hold the weights" in err
    assert "SHA-256" in err
    known.rename(moved)
    try:
        code, out, err = predict(image)
        assert (code, out) == (1, "")
        assert f"{known}, which do not exist any more" in err
        assert "--weights FILE" in err
        assert predict(image, "--weights", moved)[:2] == (0, expected)
        torch.save(state, known)
        code, out, err = predict(image)
        assert (code, out) == (1, "")
        assert "give the right file with --weights FILE" in err
    finally:
        moved.replace(known)
    assert predict(image)[:2] == (0, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_px": 10**9}, "more than 16,384"),
        ({"mean": None}, "preprocessing cannot be read"),
        ({"std": [1, 1]}, "preprocessing cannot be read"),
        ({"hook": 1}, "preprocessing cannot be read"),
    ],
)
def test_absurd_preprocessing_is_refused(change, message, models):
    saved = featx.load_model(models["svm"])
    saved.meta["features"]["preprocessing"].update(change)
    with pytest.raises(featx.FeatxError, match=message):
        saved.predict_images([b""])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "auto"}, "precision 'auto'"),
        ({"precision": None}, "which precision"),
        ({"store_dtype": "manual_seed"}, "store_dtype 'manual_seed'"),
        ({"point": {"layer": 3, "pool": "avg"}}, "which layer"),
        ({"decoder": "other/9"}, "decoder: asked for 'other/9'"),
        ({"backbone": "vgg99"}, "vgg"),
    ],
)
def test_absurd_features_are_refused(change, message, models):
    saved = featx.load_model(models["svm"])
    saved.meta["features"].update(change)
    if "backbone" in change:
        saved.meta["weights"].update(change)
    with pytest.raises(featx.FeatxError, match=message):
        saved.predict_images([b""])


def test_features_that_overflow_are_a_row_that_says_so(models):
    from featx.engines import FeatureBatch
    from featx.predict.predictions import _classify

    saved = featx.load_model(models["logreg"])
    features = np.ones((3, 512), np.float16)
    features[1, 7] = np.inf
    source = from_arrays(np.zeros((3, 8, 8, 3), np.uint8))
    batch = FeatureBatch(0, features, {}, source.image_digests())
    rows = list(_classify(saved, source, [batch], 1))
    assert [row.status for row in rows] == [
        "done",
        "its features are not finite in float16",
        "done",
    ]
    assert rows[0].scores == rows[2].scores


@pytest.mark.parametrize(
    "words",
    [
        "--backbone efficientnet_lite0 --crop-pct 0.8 --interpolation bilinear --input-size 64",
        "--backbone squeezenet1_1 --weights random:4 --preprocess bgr --input-size 33 "
        "--precision bf16 --store-dtype float32",
        "--backbone my_network:build --pool max",
    ],
)
def test_every_choice_of_an_extraction_is_taken_up(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_network.py").write_text(MY_NETWORK)
    words = words.split()
    sizes = ["--data", "digits", "--per-class", "3", "--test-per-class", "1", "-j", "0", "-q"]
    assert main(["extract", *words, *sizes]) == 0
    assert main(["fit", "--clf", "ncm", "--per-class", "3", "--repeats", "1", "--save-models"]) == 0
    [path] = (tmp_path / "reports" / "models").iterdir()
    saved = featx.load_model(path)
    cache = featx.load(next((tmp_path / "cache").glob("digits-test-*.h5")))
    source = featx.open_data("digits")["test"]
    pixels = [source.read(source.paths.index(name)) for name in cache.paths]
    own = words[1] if ":" in words[1] else None
    found = saved.predict_images(pixels, top=10, backbone=own)
    best = np.sort(saved.decision_function(cache), axis=1)[:, ::-1]
    np.testing.assert_allclose([row.scores for row in found], best, rtol=1e-12)


MY_NETWORK = """
from torch import nn
from featx.preprocess import Preprocessing
def build():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(network, nn.Linear(128, 5)), Preprocessing(
        40, 32, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    )
"""


def test_two_classes(digits_folder, pictures, test_cache, predict, models, tmp_path):
    words = ["fit", "--clf", "logreg", "--per-class", "6", "--repeats", "1", "--save-models"]
    words += ["--cache", str(digits_folder / "cache"), "--classes", "3", "8", "--quiet"]
    assert main(words) == 0
    [path] = (tmp_path / "reports" / "models").iterdir()
    saved = featx.load_model(path)
    assert saved.class_names == ("3", "8")
    code, out, _ = predict(pictures, "--model", path, "--top", "5")
    rows = by_name(table(out[out.index("path,") :]), test_cache)
    decisions = saved.decision_function(test_cache)
    assert code == 0
    assert len(rows) == 2 * len(test_cache)
    found = [
        {row["class"]: float(row["score"]) for row in rows[i : i + 2]}
        for i in range(0, len(rows), 2)
    ]
    np.testing.assert_allclose([f["8"] for f in found], decisions, rtol=1e-9)
    assert all(f["3"] == -f["8"] for f in found)
    assert [row["class"] for row in rows[::2]] == ["8" if s > 0 else "3" for s in decisions]


def test_list_models(models, digits_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    broken = models["svm"].with_name("broken.safetensors")
    broken.write_bytes(b"x")
    try:
        assert main(["list", "models", "--reports", str(digits_folder / "reports")]) == 0
    finally:
        broken.unlink()
    out, err = capsys.readouterr()
    header, *lines = out.splitlines()
    assert header.split("  ")[0] == "model"
    assert "test accuracy" in header
    assert sorted(line.split()[0] for line in lines) == sorted(p.name for p in models.values())
    assert all(line.split()[2:6] == ["squeezenet1_1", "features", "10", "6"] for line in lines)
    assert "left out" in err
    assert "broken.safetensors" in err
    assert main(["list", "models", "--reports", "nothing"]) == 0


def test_a_fit_is_known_only_with_its_model(digits_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--clf", "svm", "ncm", "--per-class", "3", "--repeats", "1", "--quiet"]
    words += ["--cache", str(digits_folder / "cache")]

    def fit(*more):
        assert main([*words, *more]) == 0
        captured = capsys.readouterr()
        return captured.out + captured.err

    fit()
    assert not (tmp_path / "reports" / "models").exists()
    assert "2 fits added" in fit("--save-models")
    models = sorted((tmp_path / "reports" / "models").iterdir())
    before = [path.read_bytes() for path in models]
    assert len(models) == 2
    text = fit("--save-models")
    assert "2 fits answered" in text
    assert "2 models in reports/models" in text
    models[0].write_bytes(before[0][:-1])
    models[1].unlink()
    text = fit("--save-models")
    assert "2 fits added" in text
    assert "fitted again" in text
    assert "2 models" in text
    assert "2 fits answered" in fit("--save-models")
    assert "2 fits answered" in fit()


def test_a_classifier_of_ones_own_is_refused_before_anything_is_fitted(
    digits_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--clf", "svm", "sklearn.tree:DecisionTreeClassifier", "--per-class", "3"]
    assert main([*words, "--save-models", "--cache", str(digits_folder / "cache")]) == 2
    assert "never pickles" in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()

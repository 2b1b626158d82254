"""Trainings as rows of the results: the draws, test images and tables of the heads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featx.backbones.trained import read_contents
from featx.catalog import open_complete
from featx.errors import ProtocolError, UsageError
from featx.evaluate import ResultsFolder, Settings, compare, evaluate, pair_caches, read_results
from featx.preprocess import Preprocessing
from featx.progress import SILENT, Reporter
from featx.sources import open_data
from featx.train import TrainPlan, TrainResult, run_train
from featx.train.images import Decoder

SMALL = "auto-cnn(filters=4 blocks=2)"


def plan(tmp_path: Path, **options: Any) -> TrainPlan:
    usual: dict[str, Any] = {
        "network": SMALL,
        "data": "digits",
        "per_class": (6,),
        "cache_per_class": 12,
        "test_per_class": 4,
        "epochs": 3,
        "validation": 0.2,
        "workers": 0,
        "device": "cpu",
        "reports_dir": str(tmp_path / "reports"),
    }
    return TrainPlan(**{**usual, **options})


def run(asked: TrainPlan, reporter: Reporter = SILENT) -> list[TrainResult]:
    return run_train(asked, reporter, lambda line: None)


class Heard(Reporter):
    """Keeps what a person must see."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        object.__setattr__(self, "warnings", [])

    def warn(self, text: str) -> None:
        self.warnings.append(text)  # type: ignore[attr-defined]


def tree(root: Path, n: int = 8, px: int = 16, splits: tuple[str, ...] = ("train", "test")) -> Path:
    rng = np.random.default_rng(len(splits))
    for split in splits:
        for label in range(2):
            for i in range(n):
                path = root / split / f"class{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 128, (px, px, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def test_images_and_tests_are_those_of_a_head_with_the_same_settings(
    digits_folder: Path, tmp_path: Path
) -> None:
    caches, _ = open_complete(digits_folder / "cache")
    (pair,), _ = pair_caches(caches)
    settings = Settings(heads=("svm",), per_class=(4, 6), repeats=2)
    results = ResultsFolder(tmp_path / "reports")
    heads = evaluate(pair, settings, sink=lambda result, fit: results.add(result))
    for cache in caches:
        cache.close()
    trained = run(plan(tmp_path, per_class=(4, 6), repeats=2, epochs=1))
    assert len(trained) == len(heads) == 4
    for head, training in zip(heads, trained, strict=True):
        fit = training.fit
        assert (fit.per_class, fit.repeat, fit.seed) == (head.per_class, head.repeat, head.seed)
        for key in ("train_images_sha256", "test_images_sha256", "test_labels", "class_names"):
            assert fit.detail[key] == head.detail[key]
        assert (fit.n_train, fit.n_test) == (head.n_train, head.n_test)
    systems = ["svm,pool=avg", "auto-cnn(filters=4 blocks=2),pool=none"]
    frame = compare(systems, tmp_path / "reports")
    assert len(frame) == 2
    assert frame["n_draws"].tolist() == [2, 2]
    assert frame["n_images"].tolist() == [40, 40]


def test_a_result_is_a_row_a_record_and_curves(tmp_path: Path) -> None:
    (result,) = run(plan(tmp_path, plot=True))
    fit, reports = result.fit, tmp_path / "reports"
    row = read_results(reports / "results.csv").iloc[0]
    assert row["acc1"] == fit.acc1
    assert row["clf"] == "train(epochs=3 validation=0.2)" == fit.clf
    assert (row["backbone"], row["layer"], row["n_features"]) == (SMALL, "input", 3 * 8 * 8)
    (path,) = (reports / "fits").glob("*.json")
    record = json.loads(path.read_text())
    guess, truth = np.array(record["predictions"]), np.array(record["test_labels"])
    assert fit.acc1 == (guess == truth).mean()
    matrix = np.array(record["confusion_matrix"])
    assert matrix.sum() == 40
    assert np.trace(matrix) / 40 == fit.acc1
    assert len(record["per_class"]["recall"]) == 10
    curves = record["trained"]["curves"]
    assert [line["epoch"] for line in curves] == [1, 2, 3]
    assert {"train_loss", "train_acc", "valid_loss", "valid_acc", "lr", "dur"} <= set(curves[0])
    (table,) = (reports / "curves").glob("*.csv")
    assert len(table.read_text().splitlines()) == 4
    (picture,) = (reports / "curves").glob("*.png")
    with Image.open(picture) as image:
        assert image.size[0] > 500
    assert not list((reports / "checkpoints").iterdir())
    assert result.trained.n_fitted == 50
    assert result.trained.n_watching == 10
    assert result.n_parameters == result.trained.n_trainable > 0


def test_the_same_question_is_answered_from_reports(tmp_path: Path) -> None:
    (first,) = run(plan(tmp_path))
    (again,) = run(plan(tmp_path, workers=1))
    assert again.is_known
    assert again.fit == first.fit
    assert again.trained == first.trained
    (other,) = run(plan(tmp_path, lr=0.01))
    assert not other.is_known
    assert other.fit.fit_id != first.fit.fit_id
    (anew,) = run(plan(tmp_path, refit=True))
    assert not anew.is_known
    assert anew.fit.detail["predictions"] == first.fit.detail["predictions"]
    assert anew.fit.log_loss == first.fit.log_loss


def test_a_network_that_is_to_be_saved_and_is_not_whole_is_trained_again(tmp_path: Path) -> None:
    run(plan(tmp_path))
    (saved,) = run(plan(tmp_path, save=True))
    assert not saved.is_known
    assert saved.checkpoint is not None
    (known,) = run(plan(tmp_path, save=True))
    assert known.is_known
    assert known.checkpoint == saved.checkpoint
    content = saved.checkpoint.read_bytes()
    saved.checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    reporter = Heard()
    (again,) = run(plan(tmp_path, save=True), reporter)
    assert not again.is_known
    assert any("trained again" in text for text in reporter.warnings)
    assert read_contents(saved.checkpoint).sha256


def test_a_fine_tuned_backbone_keeps_what_is_frozen(tmp_path: Path) -> None:
    from featx.backbones import open_backbone
    from featx.backbones.trained import open_trained

    (result,) = run(
        plan(
            tmp_path,
            network="squeezenet1_1",
            weights="random:1",
            top="flatten(hidden=8 dropout=0.2)",
            freeze="half",
            input_size=32,
            backbone_lr=1e-4,
            save=True,
            epochs=2,
        )
    )
    assert result.checkpoint is not None
    trained = open_trained(result.checkpoint).network
    before = open_backbone("squeezenet1_1", weights="random:1", overrides={"input_size": 32})
    pairs = list(
        zip(before.network.state_dict().values(), trained.body.state_dict().values(), strict=True)
    )
    same = [torch.equal(a, b) for a, b in pairs]
    assert same == [True] * sum(same) + [False] * (len(same) - sum(same))
    assert sum(same) == 2 * result.trained.n_frozen == 2 * (before_layers(before.network) // 2)
    assert result.fit.layer == before.layer
    assert "freeze=half" in result.fit.clf
    assert result.trained.n_trainable < result.trained.n_parameters


def before_layers(network: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())


def test_early_stopping_before_the_unfreezing_is_told(tmp_path: Path) -> None:
    late = {"freeze": "1", "unfreeze_after": 29, "epochs": 30, "lr": 0.5}
    heard = Heard()
    (result,) = run(plan(tmp_path, patience=1, **late), heard)
    told = f"after {len(result.curves)} epochs, before --unfreeze-after 29: nothing was unfrozen"
    assert any(told in text for text in heard.warnings)
    assert told in result.fit.notes
    early = plan(tmp_path, freeze="1", unfreeze_after=1, patience=0)
    assert "unfrozen" not in run(early)[0].fit.notes


@pytest.mark.parametrize("options", [{"freeze": "1"}, {"scheduler": "plateau"}])
def test_older_answers_with_frozen_layers_or_plateau_are_not_believed(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("featx.train.question._VERSION_HELD", 1)
        run(plan(tmp_path, epochs=1, **options))
        run(plan(tmp_path, epochs=1))
    assert not run(plan(tmp_path, epochs=1, **options))[0].is_known
    assert run(plan(tmp_path, epochs=1))[0].is_known


def test_copies_of_test_images_are_told_left_out_or_an_error(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    shutil.copy(data / "test" / "class0" / "3.png", data / "train" / "class0" / "copy.png")
    asked = plan(
        tmp_path, data=str(data), cache_per_class=None, test_per_class=None, per_class=("all",)
    )
    heard = Heard()
    (warned,) = run(asked, heard)
    assert any("1 of 16 test images have a copy" in text for text in heard.warnings)
    assert any("copy.png" in text for text in heard.warnings)
    assert "1 same file" in warned.fit.notes
    assert warned.fit.n_train == 17
    (dropped,) = run(replace(asked, on_leak="drop"), Heard())
    assert dropped.fit.n_train == 16
    assert "left out of training" in dropped.fit.notes
    with pytest.raises(ProtocolError, match="have a copy"):
        run(replace(asked, on_leak="raise"), Heard())


def test_images_that_cannot_be_read_are_told_and_left_out(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    (data / "train" / "class1" / "5.png").write_bytes(b"no image")
    asked = plan(
        tmp_path, data=str(data), cache_per_class=None, test_per_class=None, per_class=("all",)
    )
    heard = Heard()
    (result,) = run(replace(asked, input_size=16), heard)
    assert result.fit.n_train == 15
    assert any("1 rows of" in text and "left out" in text for text in heard.warnings)


def test_data_without_a_test_split_hold_some_out(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", n=20, splits=(".",))
    asked = plan(
        tmp_path, data=str(data), cache_per_class=None, test_per_class=None, per_class=("all",)
    )
    (result,) = run(asked)
    assert (result.fit.n_train, result.fit.n_test) == (32, 8)
    assert not set(result.fit.detail["train_rows"]) & set(result.fit.detail["test_rows"])
    assert "held out" in result.fit.notes


def test_images_beyond_the_memory_lie_in_a_scratch_file_and_give_the_same(tmp_path: Path) -> None:
    (small,) = run(plan(tmp_path, image_memory_gb=1e-6))
    (usual,) = run(plan(tmp_path, reports_dir=str(tmp_path / "other")))
    assert small.fit.detail["predictions"] == usual.fit.detail["predictions"]
    assert small.fit.log_loss == usual.fit.log_loss
    source = open_data("digits")["test"]
    scaled = Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)
    digests = source.image_digests()
    mapped, held = (Decoder(scaled, 0, n, SILENT).decode(source, digests) for n in (10, 1 << 30))
    assert isinstance(mapped.pixels, np.memmap)
    assert not isinstance(held.pixels, np.memmap)
    np.testing.assert_array_equal(mapped.pixels, held.pixels)


def test_what_fits_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(ProtocolError, match="--cache-per-class"):
        run(plan(tmp_path, image_memory_gb=1e-6))


def test_normalisation_and_size_are_as_asked(tmp_path: Path) -> None:
    (result,) = run(plan(tmp_path, normalise="cifar", input_size=16, epochs=1, save=True))
    assert result.fit.input_size == 16
    from featx.backbones.trained import read_trained

    assert result.checkpoint is not None
    record = read_trained(result.checkpoint)
    assert record.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert record.preprocessing.crop_px == 16


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"network": "auto-cn"}, "did you mean auto-cnn"),
        ({"network": "resnet51"}, "did you mean resnet50"),
        ({"top": "linear"}, "leave --top out"),
        ({"backbone_lr": 0.1}, "leave --backbone-lr out"),
        ({"network": "resnet18", "weights": "random", "top": "round"}, "top"),
        ({"freeze": "nowhere"}, "layer to freeze"),
        ({"augment": ("flop",)}, "did you mean flip"),
        ({"network": "auto-cnn(block=3)"}, "did you mean blocks"),
        ({"freeze": "0", "unfreeze_after": 1}, "no layer is frozen"),
        (
            {"network": "resnet18", "weights": "random", "freeze": "all", "backbone_lr": 0.1},
            "nothing below the top learns",
        ),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        run(plan(tmp_path, **options))


def test_val_is_tested_on_where_there_is_no_test_or_it_is_asked_for(tmp_path: Path) -> None:
    small: dict[str, Any] = {"per_class": (4,), "epochs": 1, "cache_per_class": None}
    data = str(tree(tmp_path / "two", splits=("train", "val")))
    (result,) = run(plan(tmp_path, data=data, **small))
    assert result.fit.data == "two (val)"
    assert "tested on the split val" in result.fit.notes
    data = str(tree(tmp_path / "three", splits=("train", "val", "test")))
    options: dict[str, Any] = {"data": data, **small}
    (on_test,) = run(plan(tmp_path, **options))
    (on_val,) = run(plan(tmp_path, **options, test_split="validation"))
    assert (on_test.fit.data, on_val.fit.data) == ("three", "three (val)")
    images = [fit.detail["test_images_sha256"] for fit in (on_test.fit, on_val.fit)]
    assert images[0] != images[1]
    with pytest.raises(ProtocolError, match="two: there is no split test"):
        run(plan(tmp_path, data=str(tmp_path / "two"), **small, test_split="test"))


def test_a_tested_class_without_a_training_image_is_refused(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    shutil.copytree(data / "test" / "class1", data / "test" / "class2")
    (data / "train" / "class2").mkdir()
    (data / "train" / "class2" / "0.png").write_bytes(b"cut off")
    small: dict[str, Any] = {"data": str(data), "epochs": 1, "cache_per_class": None}
    for per_class in (("all",), (4,)):
        with pytest.raises(ProtocolError, match=r"no usable training image.*--drop class2"):
            run(plan(tmp_path, **small, test_per_class=None, per_class=per_class))
    asked = plan(tmp_path, **small, test_per_class=None, per_class=("all",), drop=("class2",))
    (result,) = run(asked)
    assert result.fit.n_test == 16

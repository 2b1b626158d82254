from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from featx.cli import main
from featx.preprocess import Preprocessing

SMALL = ["verify", "--backbone", "squeezenet1_1", "--weights", "random", "--input-size", "64"]
SMALL += ["--device", "cpu", "-q"]


def verify(capsys, *words):
    code = main([*SMALL, *words])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_a_right_backbone_passes(capsys):
    code, lines, _ = verify(capsys)
    assert code == 0
    assert (
        "squeezenet1_1, weights random:0, layer features, pool none: cpu, torch, fp32" in lines[0]
    )
    assert "torchvision's squeezenet1_1 and transform of IMAGENET1K_V1" in lines[1]
    assert lines[2].split() == ["image", "input", "largest", "relative", "cosine"]
    assert len(lines[3:-2]) == 7
    for line in lines[3:-2]:
        assert re.search(r"^made: .+  0\.0e\+00  \d\.\de-\d\d   \d\.\de-\d\d  1\.000000000$", line)
    assert lines[-2] == "top-1 classes: the same for 7 of 7 images"
    assert lines[-1].startswith("PASS: largest difference ")
    assert "(at most 1.0e-04 for fp32, float32)" in lines[-1]


def test_wrong_preprocessing_fails_with_exit_code_1(capsys, monkeypatch):
    right = Preprocessing.pixels
    monkeypatch.setattr(Preprocessing, "pixels", lambda self, image: right(self, image)[..., ::-1])
    code, lines, _ = verify(capsys)
    assert code == 1
    assert lines[-1].startswith("FAIL: the network's input differs")
    assert "on 6 of 7 images" in lines[-1]  # grey is grey in any order


def test_layer_pool_precision_and_stored_type(capsys):
    words = ["--layer", "features.3", "--pool", "avg", "--precision", "bf16", "-b", "3"]
    code, lines, _ = verify(capsys, *words, "--store-dtype", "float16")
    assert code == 0
    assert "layer features.3, pool avg: cpu, torch, bf16, float16, batches of 3" in lines[0]
    assert "(at most 2.5e-01 for bf16, float16)" in lines[-1]


@pytest.fixture
def labelled(tmp_path):
    for i in range(3):
        Image.new("RGB", (70 + i, 80), (60 * i, 90, 200)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("path,imagenet_index,name\n0.jpg,5,a\n2.jpg,6,b\n")
    return tmp_path


def test_photographs_and_their_labels(capsys, labelled):
    labels = ["--labels", str(labelled / "labels.csv")]
    code, lines, _ = verify(capsys, *labels, "--photographs", str(labelled))
    assert code == 0
    assert [line.split()[0] for line in lines[10:14]] == ["0.jpg", "1.jpg", "2.jpg", "bad.jpg"]
    assert "not compared: the file is empty" in lines[13]
    assert re.search(r"right class: \d of 2 through featx, \d of 2 through the ref", lines[-2])
    words = ["--photographs", str(labelled / "1.jpg"), str(labelled / "2.jpg")]
    assert "of 1 through featx" in verify(capsys, *labels, *words)[1][-2]
    assert "of 2 through featx" in verify(capsys, *labels)[1][-2]
    code, _, err = verify(capsys, *labels, "--photographs", str(labelled / "1.jpg"))
    assert code == 2
    assert "names none of the photographs" in err


def test_the_native_size_is_that_of_the_smallest_photograph(capsys, labelled, monkeypatch):
    seen = []
    right = Preprocessing.pixels

    def watched(self, image):
        seen.append((*image.size, self.resize_px, self.crop_px))
        return right(self, image)

    monkeypatch.setattr(Preprocessing, "pixels", watched)
    code, lines, _ = verify(capsys, "--input-size", "native", "--photographs", str(labelled))
    assert code == 0
    assert lines[0].startswith("native input size: 70 pixels, nothing is resized")
    assert set(seen) == {(70, 70, 70, 70)}
    assert lines[-1].startswith("PASS: ")


def test_a_network_without_a_usable_classifier(capsys, tmp_path):
    from torchvision import models

    with torch.random.fork_rng():
        state = models.squeezenet1_1().state_dict()
    state["classifier.1.bias"].fill_(float("nan"))
    torch.save(state, tmp_path / "headless.pth")
    code, lines, _ = verify(capsys, "--weights", str(tmp_path / "headless.pth"))
    assert code == 0
    assert lines[-2] == "top-1 classes: not compared, the network has no usable classifier"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["verify"], 2, "either FILES of caches or --backbone NAME"),
        ([*SMALL, "a.h5"], 2, "either FILES of caches or --backbone NAME"),
        ([*SMALL, "--device", "gpu"], 2, "device 'gpu' is unknown"),
        ([*SMALL, "--precision", "fp8"], 2, "unknown precision 'fp8'"),
        ([*SMALL, "--input-size", "nativ"], 2, "neither a whole number of at least 1 nor 'native'"),
        ([*SMALL, "--layer", "feature"], 2, "features"),
        ([*SMALL, "--photographs", "nowhere"], 1, "no such file or folder"),
        ([*SMALL, "--labels", "nothing.csv"], 1, "nothing.csv cannot be read"),
        (["verify", "--backbone", "squeezenet"], 2, "did you mean squeezenet1_"),
        (["verify", "nothing.h5"], 1, "there is no file nothing.h5"),
    ],
)
def test_bad_input_is_one_line(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    err = capsys.readouterr().err
    assert message in err.splitlines()[0]
    assert "Traceback" not in err

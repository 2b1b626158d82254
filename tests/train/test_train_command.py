"""``featx train`` from the command line, the whole way to features of a trained network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featx.backbones.trained import open_trained
from featx.cli import main
from featx.sources import open_data
from featx.store import Cache

WORDS = ["train", "--data", "digits", "--per-class", "5", "--test-per-class", "3", "-j", "0"]
WORDS += ["--device", "cpu", "--epochs", "2", "--validation", "0.2"]


def test_networks_and_sizes_in_one_table_then_features_of_the_trained_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    networks = ["ann-nellangara", "auto-cnn(filters=4 blocks=2)"]
    words = [*WORDS, "--network", *networks, "--save", "--augment", "flip", "crop=1"]
    assert main([*words, "6"][:-1]) == 0
    out = capsys.readouterr().out
    assert "ann-nellangara" in out
    assert "auto-cnn(filters=4 blocks=2)" in out
    assert "2 added to reports/results.csv" in out
    assert main(words) == 0
    assert "2 trainings answered, 0 added" in capsys.readouterr().out

    (file,) = Path("reports/networks").glob("*auto_cnn*.safetensors")
    extract = ["extract", "--backbone", str(file), "--data", "digits", "--split", "test"]
    extract += ["--test-per-class", "3", "--store-dtype", "float32", "-j", "0"]
    extract += ["--device", "cpu", "--layer", "classifier"]
    assert main(extract) == 0
    (path,) = Path("cache").glob("*.h5")
    opened = open_trained(file)
    source = open_data("digits")["test"]
    with Cache.open(path) as cache:
        images = {p: i for i, p in enumerate(source.paths)}
        pixels = [opened.record.preprocessing.pixels(source.image(images[p])) for p in cache.paths]
        stack = torch.stack([torch.from_numpy(p.copy()) for p in pixels])
        with torch.no_grad():
            logits = opened.network(opened.record.preprocessing.normalise(stack))
        torch.testing.assert_close(torch.from_numpy(cache.X[:]), logits, atol=1e-4, rtol=1e-4)
    results = Path("reports/fits")
    assert len(list(results.glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--network", "cnn-vear"], "did you mean cnn-veer"),
        (["--network", "auto-cnn", "--optimizer", "Adm"], "did you mean Adam"),
        (["--network", "auto-cnn", "--validation", "0"], "--patience 0"),
        (["--network", "auto-cnn", "--per-class", "few"], "'few' is neither"),
    ],
)
def test_wrong_words_end_in_one_line_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_help_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from featx.cli import main; main(['train', '--help']); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=-3, check=False).returncode == 0

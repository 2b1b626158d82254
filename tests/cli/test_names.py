"""Names that people and programs give to classes and files, and what commands do with them."""

from __future__ import annotations

import os
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

import featx
from featx.cli import main
from featx.store.recognise import name_cache

CLASSES = (b"caf\xe9", b"dog\x1b[31m", b"a\nfake: intact", "x\u202eb".encode())
EXTRACT = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--input-size", "32"]
EXTRACT += ["-j", "0", "--data"]


def images(root, n=6):
    rng = np.random.default_rng(0)
    for name in CLASSES:
        folder = root / os.fsdecode(name)
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / os.fsdecode(b"%d\x1b[2J\n\xe9.png" % i))
        (folder / "\x1b[1mbroken\nimage.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    images(folder / "pets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*EXTRACT, "pets"]) == 0
        assert main(["fit", "--per-class", "3", "--repeats", "1", "--save-models"]) == 0
    return folder


def is_safe(text):
    return all(c.isprintable() or c == "\n" for c in text) and "\nfake" not in text


@pytest.mark.parametrize(
    "words",
    [
        [*EXTRACT, "pets", "--overwrite"],
        ["info", "--data", "pets"],
        ["info", "cache/*.h5"],
        ["fit", "--per-class", "3", "--repeats", "2"],
        ["fit", "--per-class", "3", "--classes", "dog\x1b[31n", "cat"],
        ["fit", "--clf", "sv\x1b[31m", "--per-class", "3"],
        ["fit", "--device", "\x1b[31m", "--per-class", "3", "--no\x1b[31m"],
        ["predict", "--model", "reports/models/*.safetensors", "pets"],
        ["explore", "cache/*.h5"],
        ["verify", "cache/*.h5"],
        ["export", "--format", "parquet", "cache/*.h5"],
        ["export", "--format", "projector", "cache/*.h5"],
        ["list", "caches"],
        ["list", "models"],
        ["reports", "list"],
        ["report"],
        ["report", "--format", "md"],
    ],
    ids=" ".join,
)
def test_no_name_reaches_the_terminal_with_a_control_character(
    words, extracted, monkeypatch, capfd
):
    monkeypatch.chdir(extracted)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code = main([str(next(extracted.glob(w))) if "*" in w else w for w in words])
    out, err = capfd.readouterr()
    assert is_safe(out)
    assert is_safe(err)
    assert "Traceback" not in err
    assert code == (2 if "\x1b" in "".join(words) else 0)


def test_names_that_are_not_text_are_kept_byte_by_byte(extracted):
    (file,) = (extracted / "cache").glob("*.h5")
    with featx.load(file) as cache:
        assert sorted(os.fsencode(name) for name in cache.class_names) == sorted(CLASSES)
    with h5py.File(file) as stored:
        assert sorted(stored["class_names"][()].tolist()) == sorted(CLASSES)


@pytest.mark.parametrize("letter", ["n", "\u00e9", "\U0001f600"])
def test_a_long_name_of_a_cache_is_cut_and_told_apart_by_a_hash(tmp_path, letter):
    names = {name_cache(tmp_path, (letter * 100 + last, "x" * 100)) for last in "abc"}
    assert len(names) == 3
    for path in names:
        assert len(os.fsencode(path.name)) <= 204
        path.with_name(f"{path.name}.{12 * '0'}-{8 * '0'}.partial.journal.new").touch()


def test_a_long_name_that_an_older_version_wrote_is_found(tmp_path):
    words = ("n" * 120, "x" * 100)
    older = tmp_path / f"{'-'.join(words)}.h5"
    older.touch()
    assert name_cache(tmp_path, words) == older
    older.unlink()
    assert name_cache(tmp_path, words) != older


def test_a_folder_with_a_long_name_is_extracted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = images(tmp_path / ("n" * 180), n=2).name
    words = [*EXTRACT, data, "--layer", "features.2", "--pool", "avg"]
    assert main([*words]) == 0
    (file,) = (tmp_path / "cache").glob("*.h5")
    assert featx.load(file).meta["data"] == data
    assert main([*words]) == 0
    assert list((tmp_path / "cache").glob("*.h5")) == [file]

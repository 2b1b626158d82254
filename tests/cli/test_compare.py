"""``featx compare`` on what ``featx fit`` kept."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest
from small_caches import CIFAR, write

from featx.cli import main

FIT = ["fit", "--clf", "svm", "logreg", "--repeats", "3", "--C", "0.01", "--quiet"]


@pytest.fixture
def kept(tmp_path, monkeypatch, capsys):
    """Two input sizes of the same images, and another draw of a third size."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    for seed, size in ((1, 32), (7, 64)):
        write(folder, "cifar", "train", CIFAR, 60, seed, input_size=size)
        write(folder, "cifar", "test", CIFAR, 30, seed + 1, input_size=size)
    assert main([*FIT, "--per-class", "4", "8"]) == 0
    capsys.readouterr()


@pytest.fixture
def compare(kept, capsys):
    def run(*words):
        code = main(["compare", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_table_and_a_sentence_for_each_comparison(compare):
    code, out, _ = compare("svm", "logreg")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "draws 3; images 30"
    assert lines[1].split()[:2] == ["A", "B"]
    assert "p (Holm)" in " ".join(lines[1:3])
    said = [line for line in lines if "test images" in line]
    assert len(said) == 4
    assert all("(3 draws, 30 test images" in line for line in said)
    assert all(line.startswith("input_size ") for line in said)
    assert not any("nan" in line for line in lines)


def test_a_comma_as_in_a_sentence_is_no_part_of_a_system(compare):
    assert compare("svm,", "logreg")[1] == compare("svm", "logreg")[1]
    assert compare("svm", "--data", "cifar", "logreg")[1] == compare("svm", "logreg")[1]


def test_forms_for_programs(compare):
    code, out, _ = compare("input_size=32", "input_size=64", "--clf", "svm", "--format", "csv")
    assert code == 0
    frame = pd.read_csv(io.StringIO(out), dtype={"per_class": str})
    assert frame["per_class"].tolist() == ["4", "8"]
    code, out, _ = compare("32", "64", "--clf", "svm", "--per-class", "8", "-f", "json")
    assert code == 0
    (record,) = json.loads(out)
    line = frame.iloc[1]
    assert record["difference_points"] == pytest.approx(line["difference_points"])
    assert record["low_points"] <= record["difference_points"] <= record["high_points"]
    assert (record["n_draws"], record["n_images"]) == (3, 30)
    first = pd.read_csv("reports/results.csv")
    means = first[(first["clf"] == "svm") & (first["per_class"] == 8)].groupby("input_size")
    acc = means["acc1"].mean()
    assert record["difference_points"] == pytest.approx(100 * (acc[32] - acc[64]))


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "Missing argument"),
        (("svm",), 2, "two or more different systems"),
        (("svm", "logref"), 2, "did you mean logreg"),
        (("svm", "logreg", "--data", "stl"), 2, "no fit has data=stl"),
        (("svm", "logreg", "--reports", "none"), 1, "none holds no fits: run  featx fit  first"),
        (("svm,per_class=4", "svm,per_class=8", "-f", "xml"), 2, "'xml' is not one of"),
    ],
)
def test_bad_words_are_one_line(compare, words, code, text):
    found, _, err = compare(*words)
    assert found == code
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_other_draws_say_how_to_mend_it(compare, capsys):
    words = ["fit", "--clf", "svm", "--repeats", "3", "--seed", "50", "--per-class", "6", "--quiet"]
    assert main([*words, "--C", "0.01", "--scale", "l2"]) == 0
    assert main([*FIT, "--per-class", "6", "--seed", "0"]) == 0
    capsys.readouterr()
    code, _, err = compare("scale=l2", "scale=none", "--per-class", "6", "--clf", "svm")
    assert code == 1
    assert "seed (50 and 0)" in err
    assert "fit both with the same --seed" in err


def test_a_damaged_fit_is_told_and_left_out(compare, tmp_path):
    path = sorted((tmp_path / "reports" / "fits").iterdir())[0]
    path.write_text(path.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    code, _, err = compare("svm", "logreg")
    assert code == 0
    assert f"reports/fits/{path.name} is not used" in err

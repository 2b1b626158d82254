from __future__ import annotations

import re

import pytest

from featx.cli import main
from featx.engines.runtimes.openvino import has_openvino


@pytest.mark.skipif(not has_openvino(), reason="the extra openvino is not installed")
def test_ceilings_and_the_real_thing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["bench", "--backbone", "squeezenet1_1", "--input-size", "64", "--images", "96"]
    words += ["--image-size", "80", "60", "--seconds", "0.2", "--rounds", "2", "-b", "8", "-j", "0"]
    assert main([*words, "--runtime", "torch", "openvino", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = re.split(r"\s{2,}", lines[0].strip())
    rates = ["decode", "forward", "write", "extract"]
    assert names[-7:] == [*rates, "of ceiling", "of forward", "of matmul"]
    rows = [dict(zip(names, re.split(r"\s{2,}", line.strip()), strict=True)) for line in lines[2:4]]
    assert [row["runtime"] for row in rows] == ["torch", "openvino"]
    for row in rows:
        found = {name: float(row[name].replace(",", "")) for name in names[5:]}
        assert min(found.values()) > 0  # beside other work they may be anything
        least = min(found[name] for name in rates[:3])
        assert abs(found["of ceiling"] - found["extract"] / least) <= 0.01 + 0.2 / least
    assert "GFLOP an image" in lines[-1]
    assert list(tmp_path.iterdir()) == []  # nothing is kept


def test_too_few_images_are_an_error(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--backbone", "squeezenet1_1", "--input-size", "48", "--images", "64"]
    words += ["--image-size", "32", "32", "--seconds", "0.1", "-b", "32", "-j", "0", "--quiet"]
    assert main(words) == 2
    assert "64 images are too few to measure: give at least 128" in capsys.readouterr().err

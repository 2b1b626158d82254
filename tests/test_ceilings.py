"""The benchmark of an extraction's ceilings runs, and its ratios are those of its rates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featx.cli import main
from featx.engines.runtimes.openvino import has_openvino

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "ceilings.py"


@pytest.fixture
def measure(forks, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"

    def run(*words):
        return forks.run(code, "--backbone", "squeezenet1_1", "-j", "0", "--quiet", *words)

    return run


@pytest.mark.skipif(not has_openvino(), reason="the extra openvino is not installed")
def test_ceilings_and_the_real_thing(tmp_path, measure):
    words = ["--input-size", "64", "--images", "96", "--image-size", "80", "60", "-b", "8"]
    words += ["--seconds", "0.2", "--rounds", "2", "--runtime", "torch", "openvino"]
    lines = measure(*words).stdout.splitlines()
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


def test_too_few_images_are_an_error(measure):
    words = ["--input-size", "48", "--images", "64", "--image-size", "32", "32", "-b", "32"]
    done = measure(*words, "--seconds", "0.1")
    assert done.returncode == 1
    assert "64 images are too few to measure: give at least 128" in done.stderr


def test_the_command_of_older_versions_says_where_it_went(capsys):
    assert main(["bench", "--backbone", "resnet50"]) == 2
    assert "python benchmarks/ceilings.py" in capsys.readouterr().err

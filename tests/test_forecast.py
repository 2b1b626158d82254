"""What ``featx plan`` says is arithmetic on what it says that it assumes."""

from __future__ import annotations

import re

import pytest

from featx.cli import main

SQUEEZE = [
    "plan",
    "--backbone",
    "squeezenet1_1",
    "--images",
    "100e6",
    "--gpus",
    "20",
    "-q",
    "--cache",
    "none",
]


def said(capsys, *words):
    assert main([*words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_figures_of_a_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--rate", "1000", "--price", "2.5", "--disk", "100", "--image-kb", "100"]
    lines = said(capsys, *SQUEEZE, *more)
    # 512 x 13 x 13 values; 1e8 images / (20 x 1,000 images/s) = 5,000 s; 2 x 10 TB / 5,000 s.
    assert lines[0] == "100,000,000 images, 20 GPUs"
    assert lines[1].endswith("100,000,000 x 86,528 float16 = 17.3 TB")
    assert lines[2] == "1,000.0 images/s of one GPU, given"
    assert "are 10.0 TB, hashed first and then computed, so read twice" in lines[3]
    assert "4.0 GB/s are read and 3.5 GB/s are written" in lines[4]
    assert "200.0 MB/s and 173.1 MB/s" in lines[4]
    assert lines[5].startswith("time: 1.4 hours")
    assert lines[6] == "money: 28 GPU hours x 2.5 = 69"
    assert lines[7] == "disk: 17.3 TB of the 100.0 TB that are given"
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_and_what_would(capsys):
    lines = said(capsys, *SQUEEZE, "--rate", "1000", "--disk", "1", "--network", "10")
    assert "17.3 TB do not fit into the 1.0 TB that are given:" in "\n".join(lines)
    # 8 x (22 + 17.3) TB / 10 Gbit/s = 31,445 s.
    assert "10.0 Gbit/s move all bytes in 8.7 hours; the GPUs would need 1.4" in lines[5]
    assert lines[6].startswith("time: 8.7 hours")
    assert lines[-3:] == [
        "  --pool avg: 102.4 GB, fits",
        "  --input-size 112: 3.7 TB, does not fit either",
        lines[-1],
    ]
    assert lines[-1].startswith("  featx pack: about 4.3 TB, does not fit either")


def test_the_rate_is_measured_here(capsys):
    lines = said(capsys, *SQUEEZE, "-b", "2", "-j", "0", "--disk", "100")
    found = re.fullmatch(r"([\d,.]+) images/s of one GPU, measured here \((.*)\) on .*", lines[2])
    assert found
    assert "cpu" in found[2]
    hours = 100e6 / (20 * float(found[1].replace(",", ""))) / 3600
    assert float(lines[5].split()[1].replace(",", "")) == pytest.approx(hours, rel=0.01, abs=0.1)


@pytest.mark.parametrize("wrong", ["--gpus 0", "--rate -1", "--images 0", "--disk nan"])
def test_numbers_that_mean_nothing(capsys, wrong):
    assert main([*SQUEEZE, *wrong.split()]) == 2
    assert "give a number" in capsys.readouterr().err

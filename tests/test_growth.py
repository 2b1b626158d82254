"""The benchmark of growth measures each point in a process, and prints exponents of its times."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "growth.py"


def test_time_grows_by_the_exponents_that_are_printed(tmp_path):
    words = ["--parts", "rows", "--rows", "400", "800", "--fixed-features", "1000"]
    words += ["--plot", str(tmp_path / "growth.png")]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=True
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()]
    found = [cells for cells in lines if cells and cells[0] == "rows"]
    assert [cells[1] for cells in found] == ["400", "800"]
    assert [cells[3] == "" for cells in found] == [True, False]
    first, second = (float(cells[2]) for cells in found)
    # Times have two digits: the exponent may be wrong by as much as they are rounded.
    rounding = 0.005 / first + 0.005 / second
    wanted = math.log2(second / first)
    assert float(found[1][3]) == pytest.approx(wanted, abs=2 * rounding + 0.01)
    assert (tmp_path / "growth.png").stat().st_size > 1000

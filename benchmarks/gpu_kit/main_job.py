"""The main job by its commands: CIFAR-10 through a network to the disk, then the protocol."""

from __future__ import annotations

import contextlib
import io
import time

from featx.cli import main
from gpu_kit.kit import Kit

__all__ = ["run_main_job"]

_AIM_EXTRACT_S, _AIM_FIT_S = 10.0, 20.0


def run_main_job(kit: Kit) -> None:
    """Extract and fit, timed behind the imports."""
    name = "squeezenet1_1" if kit.is_small else "vgg16"
    cache, reports = str(kit.scratch / "cache"), str(kit.scratch / "reports")
    tree = str(kit.pictures.tree("cifar"))
    extract = ["extract", "--backbone", name, "--weights", "random", "--data", tree, "--profile"]
    extract += ["--cache", cache, "--device", kit.device_name, "--quiet"]
    fit = ["fit", "--clf", "svm", "logreg", "--cache", cache, "--reports", reports, "--quiet"]
    if kit.is_small:
        extract += ["--input-size", "64", "--workers", "1", "--batch-size", "8"]
        fit += ["--per-class", "10", "--repeats", "2"]
    else:
        extract += ["--precision", "fp16"]
        fit += ["--per-class", "100", "--repeats", "5"]
    _time(kit, "extract", extract, _AIM_EXTRACT_S)
    _time(kit, "the same again", extract, 1.0)
    _time(kit, "fit", fit, _AIM_FIT_S)


def _time(kit: Kit, what: str, words: list[str], aim: float) -> None:
    said = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    seconds = time.perf_counter() - began
    kit.text(what, f"featx {' '.join(words)}\n{said.getvalue()}"[-6000:])
    kit.row(what=what, seconds=seconds, aim=aim, met=seconds < aim, right=code == 0)

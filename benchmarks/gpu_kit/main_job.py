"""The main job by its commands: CIFAR-10 through a network to the disk, then the protocol."""

from __future__ import annotations

import contextlib
import cProfile
import io
import pstats
import time

from featx.cli import main
from gpu_kit.kit import Kit

__all__ = ["run_main_job"]

_AIM_EXTRACT_S, _AIM_FIT_S = 10.0, 20.0
_N_FUNCTIONS = 60


def run_main_job(kit: Kit) -> None:
    """Extract and fit, timed behind the imports, with the functions that took the time."""
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
    said, profile = io.StringIO(), cProfile.Profile()
    began = time.perf_counter()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = profile.runcall(main, words)
    seconds = time.perf_counter() - began
    kit.text(what, f"featx {' '.join(words)}\n{said.getvalue()}"[-6000:])
    kit.text(f"{what}, by function", _split(profile))
    kit.row(what=what, seconds=seconds, aim=aim, met=seconds < aim, right=code == 0)


def _split(profile: cProfile.Profile) -> str:
    """Give the functions of featx in which the first thread was longest, with what they called."""
    written = io.StringIO()
    pstats.Stats(profile, stream=written).sort_stats("cumulative").print_stats(
        r"/featx/", _N_FUNCTIONS
    )
    return written.getvalue()

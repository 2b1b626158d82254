"""An extraction that is killed and run again, against one that was not."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np

import featx
from featx.backbones import BackboneGroup
from featx.extract import Settings, extract_many
from featx.progress import SILENT, Reporter
from featx.sources import Source, open_data
from gpu_kit.kit import FORK, Kit
from gpu_kit.watching import Watch

__all__ = ["kill_and_resume"]

_TOLERANCE = 1e-2


def kill_and_resume(kit: Kit) -> None:
    """Kill the process in the middle, resume in another, and compare the files."""
    name, n = ("squeezenet1_1", 72) if kit.is_small else ("vgg16", 24_000)
    group = kit.group_for_trials(name)
    source = max(open_data(kit.pictures.tree("cifar")).values(), key=len)
    source = source.take(np.arange(min(n, len(source))))
    whole, broken = kit.scratch / "whole.h5", kit.scratch / "broken.h5"
    kit.in_children(
        {"not killed": partial(_extract, group, source, whole, "not killed")}, kit.left()
    )
    for share in (0.3, 0.7):
        _kill(kit, group, source, broken, int(share * len(source)))
    kit.in_children({"resumed": partial(_extract, group, source, broken, "resumed")}, kit.left())
    _compare(kit, whole, broken)


def _extract(
    group: BackboneGroup,
    source: Source,
    target: Path,
    label: str,
    kit: Kit,
    *,
    reporter: Reporter = SILENT,
) -> None:
    engine = kit.engine("fp16" if kit.is_gpu else "fp32", 8 if kit.is_small else None)
    engine = engine.fitted_to(group)
    began = time.perf_counter()
    [report] = extract_many(source, group, engine, [target], Settings(), reporter=reporter)
    n_kept = report.n_images - report.n_computed
    seconds = time.perf_counter() - began
    kit.row(
        run=label, batch=engine.batch_size, computed=report.n_computed, kept=n_kept, seconds=seconds
    )


def _kill(kit: Kit, group: BackboneGroup, source: Source, target: Path, n_rows: int) -> None:
    """Kill an extraction once it says that so many rows are done."""
    count = FORK.Value("l", 0)
    watch = Watch(quiet=True, tick=partial(setattr, count, "value"))
    run = partial(_extract, reporter=watch)
    child = FORK.Process(target=run, args=(group, source, target, "to be killed", kit))
    child.start()
    while child.is_alive() and count.value < n_rows and kit.left() > 0:
        time.sleep(0.001)
    n_done = count.value
    child.kill()
    child.join()
    kit.row(what=f"killed at {n_rows:,} of {len(source):,} rows; it said", found=n_done)


def _compare(kit: Kit, whole: Path, broken: Path) -> None:
    with featx.load(whole) as a, featx.load(broken) as b:
        n_equal, apart, largest = 0, 0.0, 0.0
        for start in range(0, len(a.y), 1024):
            left, right = (c.X[start : start + 1024].astype(np.float32) for c in (a, b))
            n_equal += int((left == right).all(axis=1).sum())
            apart = max(apart, float(np.abs(left - right).max()))
            largest = max(largest, float(np.abs(left).max()))
        n = len(a.y)
    kit.row(what="rows equal in bits", found=f"{n_equal:,} of {n:,}")
    kit.row(
        what="largest difference of the largest value",
        found=apart / largest,
        right=apart < 1e-2 * largest,
    )

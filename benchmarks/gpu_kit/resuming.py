"""An extraction that is killed and run again, against one that was not."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np

import featx
from featx.backbones import BackboneGroup
from featx.extract import Settings, extract_many
from featx.sources import Source, open_data
from gpu_kit.kit import FORK, Kit

__all__ = ["kill_and_resume"]


def kill_and_resume(kit: Kit) -> None:
    """Kill the process in the middle, resume in another, and compare the files."""
    name, n = ("squeezenet1_1", 72) if kit.is_small else ("vgg16", 24_000)
    group = kit.group(name)
    source = max(open_data(kit.pictures.tree("cifar")).values(), key=len)
    source = source.take(np.arange(min(n, len(source))))
    whole, broken = kit.scratch / "whole.h5", kit.scratch / "broken.h5"
    kit.in_children(
        {"not killed": partial(_extract, group, source, whole, "not killed")}, kit.left()
    )
    n_bytes = whole.stat().st_size
    for k, share in enumerate((0.3, 0.6)):
        kit.row(
            what=f"kill {k + 1}, bytes written",
            found=_kill(kit, group, source, broken, share * n_bytes),
        )
    kit.in_children({"resumed": partial(_extract, group, source, broken, "resumed")}, kit.left())
    _compare(kit, whole, broken)


def _extract(group: BackboneGroup, source: Source, target: Path, label: str, kit: Kit) -> None:
    engine = kit.engine("fp16" if kit.is_gpu else "fp32", 8 if kit.is_small else None)
    began = time.perf_counter()
    [report] = extract_many(source, group, engine.fitted_to(group), [target], Settings())
    kit.row(
        run=label,
        rows=report.n_images,
        computed=report.n_computed,
        kept=report.n_images - report.n_computed,
        seconds=time.perf_counter() - began,
    )


def _kill(kit: Kit, group: BackboneGroup, source: Source, target: Path, n_bytes: float) -> int:
    """Kill an extraction once its files have grown so far."""
    child = FORK.Process(target=_extract, args=(group, source, target, "killed", kit))
    child.start()

    def grown() -> int:
        # Blocks on the disk: a file may have its whole length from the start.
        return sum(512 * p.stat().st_blocks for p in target.parent.glob(f"{target.name}*"))

    while child.is_alive() and grown() < n_bytes and kit.left() > 0:
        time.sleep(0.002)
    size = grown()
    child.kill()
    child.join()
    return size


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

"""``--runtime compile``: compiled once, its graphs launched, and whether it is worth its time."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from ceilings import forward_rate

from featx.engines import LocalEngine
from featx.sources import open_data
from gpu_kit.kit import Kit

__all__ = ["compile_once"]


class _Kept(logging.Handler):
    """Keeps what the compiler says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage()[:400])


def compile_once(kit: Kit) -> None:
    """Warm up, run batches of both kinds, and count what was compiled behind the start."""
    from torch._dynamo.utils import counters

    trees = {"32 px, enlarged on the device": "cifar", "224 px files": "large"}
    for tree in trees.values():
        kit.pictures.tree(tree)  # by processes that are forked before CUDA starts
    kept = _Kept()
    logging.getLogger("torch").addHandler(kept)
    torch._logging.set_logs(recompiles=True, graph_breaks=True, cudagraphs=True)
    name = "squeezenet1_1" if kit.is_small else "resnet50"
    group = kit.group(name)
    precision = "fp16" if kit.is_gpu else "fp32"
    engine = kit.engine(precision, None if kit.is_gpu else 8, runtime="compile").fitted_to(group)
    began = time.perf_counter()
    engine.warm_up(group, "float16")
    kit.row(what=f"compiling {name} and one batch, s", found=time.perf_counter() - began)
    _log(kit, "warming up", counters, kept)
    n_graphs = counters["stats"]["unique_graphs"]
    for label, tree in trees.items():
        began = time.perf_counter()
        _run(kit, engine, group, tree)
        kit.row(what=f"6 batches of {label}, s", found=time.perf_counter() - began)
        n_now = counters["stats"]["unique_graphs"]
        kit.row(
            what=f"graphs behind {label}",
            found=f"{n_now}, {n_graphs} when warm",
            right=n_now == n_graphs == 1,
        )
        _log(kit, label, counters, kept)
    n_skipped = sum(counters["inductor"][key] for key in counters["inductor"] if "skip" in key)
    kit.row(what="CUDA graphs skipped", found=n_skipped, right=n_skipped == 0)
    for runtime in ("torch", "compile"):
        one: LocalEngine = engine.with_runtime(runtime) if runtime == "torch" else engine
        rate = forward_rate(one, group, "float16", 0.2 if kit.is_small else 1.0)()
        kit.row(what=f"bare forward pass of {name}, {precision}, {runtime}, images/s", found=rate)


def _run(kit: Kit, engine: LocalEngine, group: Any, tree: str) -> None:
    source = next(iter(open_data(kit.pictures.tree(tree)).values()))
    n = min(6, len(source) // engine.batch_size)
    for _ in engine.run_many(group, source.take(np.arange(n * engine.batch_size)), range(n)):
        pass


def _log(kit: Kit, label: str, counters: Any, kept: _Kept) -> None:
    lines = [f"{group}: {dict(counts)}" for group, counts in counters.items() if counts]
    kit.text(f"compiler, {label}", "\n".join(lines + kept.lines)[-6000:])
    kept.lines.clear()

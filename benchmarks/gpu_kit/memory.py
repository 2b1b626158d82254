"""A card with little memory: a sentence and right rows, or a sentence and none."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from featx.backbones import BackboneGroup
from featx.errors import FeatxError
from featx.sources import Source
from featx.sources.memory import from_arrays
from gpu_kit.kit import Kit

__all__ = ["run_short_of_memory"]

_FRACTIONS = (0.05, 0.02, 0.01, 0.003)
_TOLERANCE = 2e-2  # of the largest value: batches of another size in float16


@dataclass(frozen=True)
class _Case:
    fraction: float
    batch: int | None
    runtime: str


def run_short_of_memory(kit: Kit) -> None:
    """Extract with a share of the card's memory, in processes side by side."""
    name, batch = ("squeezenet1_1", 8) if kit.is_small else ("vgg16", 256)
    group = kit.group_for_trials(name)
    rng = np.random.default_rng(0)
    source = from_arrays(rng.integers(0, 256, (2 * batch, 32, 32, 3), np.uint8))
    plain = kit.scratch / "plain.npy"
    kit.in_children({"all of the memory": partial(_plain, group, source, plain)}, 60)
    wanted = np.load(plain)
    cases = [
        _Case(fraction, size, runtime)
        for fraction in _FRACTIONS[: 1 if kit.is_small else None]
        for size in (None, batch)
        for runtime in (["torch"] if kit.is_small else ["torch", "compile"])
        if runtime == "torch" or (size is not None and fraction in (0.02, 0.003))
    ]
    trials = {f"{case}": partial(_trial, case, group, source, wanted) for case in cases}
    kit.in_children(trials, kit.left())


def _rows(
    kit: Kit, group: BackboneGroup, source: Source, batch: int | None, **options: object
) -> np.ndarray:
    precision = "fp16" if kit.is_gpu else "fp32"
    workers = {"workers": 1 if kit.is_small else 4}
    engine = kit.engine(precision, batch, **workers, **options).fitted_to(group)
    n_batches = -(-len(source) // engine.batch_size)
    found = [rows.features for (rows,) in engine.run_many(group, source, range(n_batches))]
    return np.concatenate(found)


def _plain(group: BackboneGroup, source: Source, plain: object, kit: Kit) -> None:
    np.save(str(plain), _rows(kit, group, source, 32))


def _trial(case: _Case, group: BackboneGroup, source: Source, wanted: np.ndarray, kit: Kit) -> None:
    if kit.is_gpu:
        torch.cuda.set_per_process_memory_fraction(case.fraction, kit.device)
    told: list[str] = []
    columns = {
        "memory": f"{case.fraction:.1%}",
        "batch": case.batch or "chosen",
        "runtime": case.runtime,
    }
    try:
        found = _rows(kit, group, source, case.batch, tell=told.append, runtime=case.runtime)
    except FeatxError as error:
        told.append(f"{type(error).__name__}: {error}")
        kit.row(**columns, outcome="a sentence", told="; ".join(told), right=True)
    except Exception as error:
        kit.text(f"{case}", traceback.format_exc()[-3000:])
        told.append(f"{type(error).__name__}: {error}"[:200])
        kit.row(**columns, outcome="a traceback", told="; ".join(told), right=False)
    else:
        apart = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        outcome = f"rows, {apart:.1e} apart"
        kit.row(**columns, outcome=outcome, told="; ".join(told), right=apart < _TOLERANCE)

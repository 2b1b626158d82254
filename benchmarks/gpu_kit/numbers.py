"""fp32 against float64, whatever a program has allowed before; and what of it stays changed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from featx.backbones import BackboneGroup
from featx.engines.several import SeveralDevices
from featx.errors import FeatxError
from featx.heads import Pool, RowSpace
from featx.heads.device import matrix_on
from featx.sources.memory import from_arrays
from gpu_kit.kit import Kit

__all__ = ["compare_precisions"]

_MOST = 2e-5  # TF32 is wrong by some 1e-3
_MOST_GRAM = 1e-6
_N_IMAGES = 8
_CANNOT_BE_UNDONE = "NVIDIA_TF32_OVERRIDE=1"


def _set_nothing() -> None:
    """Leave everything as it is."""


def _allow_both() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def _set_newer() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]


def _override() -> None:
    os.environ["NVIDIA_TF32_OVERRIDE"] = "1"  # read when the libraries start


def _ways() -> dict[str, Callable[[], object]]:
    """Give what a program may have set, by name."""
    ways: dict[str, Callable[[], object]] = {
        "nothing": _set_nothing,
        'set_float32_matmul_precision("high")': partial(torch.set_float32_matmul_precision, "high"),
        'set_float32_matmul_precision("medium")': partial(
            torch.set_float32_matmul_precision, "medium"
        ),
        "allow_tf32 of both": _allow_both,
        _CANNOT_BE_UNDONE: _override,
    }
    if hasattr(torch.backends, "fp32_precision"):
        ways['fp32_precision = "tf32"'] = _set_newer
    return ways


def compare_precisions(kit: Kit) -> None:
    """Compute in a process for each way, side by side."""
    names = ["resnet18"] if kit.is_small else ["resnet18", "vgg16"]
    groups = [kit.group_for_trials(name) for name in names]
    ways = _ways()
    if kit.is_small:
        ways = {name: ways[name] for name in (next(iter(ways)), list(ways)[-1])}
    trials = {name: partial(_trial, name, way, groups) for name, way in ways.items()}
    kit.in_children(trials, kit.left())


def _trial(name: str, way: Callable[[], object], groups: list[BackboneGroup], kit: Kit) -> None:
    way()
    before = _flags()
    trying = partial(_trying, kit, name)
    pixels = np.random.default_rng(0).integers(0, 256, (_N_IMAGES, 32, 32, 3), np.uint8)
    for group in groups:
        what = f"{group[0].name} features"
        trying(what, _MOST, partial(_features_apart, kit, group, pixels))
    pieces = {
        "Gram matrix": (_gram_apart, _MOST_GRAM),
        "product of a head in float32": (_product_apart, _MOST),
        "train --precision fp32": (_logits_apart, _MOST),
        "two lanes on one device": (partial(_lanes_apart, groups[0]), _MOST),
    }
    for what, (measure, most) in pieces.items():
        trying(what, most, partial(measure, kit))
    after = _flags()
    changed = {
        key: (value, after.get(key, "cannot be read"))
        for key, value in before.items()
        if value != after.get(key)
    }
    kit.row(allowed=name, what="flags that stay changed", found=str(changed), right=not changed)


def _trying(kit: Kit, allowed: str, what: str, most: float, measure: Callable[[], float]) -> None:
    """Record how far apart results are; what cannot be undone may be refused in words."""
    with kit.trying(allowed=allowed, what=what):
        try:
            apart = measure()
        except FeatxError as error:
            if allowed != _CANNOT_BE_UNDONE:
                raise
            kit.row(allowed=allowed, what=what, found=f"refused: {error}", right=True)
        else:
            kit.row(allowed=allowed, what=what, found=f"{apart:.1e}", right=apart < most)


def _flags() -> dict[str, Any]:
    """Read every flag that a run could change; mixtures of old and new cannot all be read."""
    backends: Any = torch.backends
    readers = {
        "matmul precision": torch.get_float32_matmul_precision,
        "matmul.allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: backends.cudnn.allow_tf32,
        "cudnn.benchmark": lambda: backends.cudnn.benchmark,
        "cudnn.enabled": lambda: backends.cudnn.enabled,
        "cudnn.deterministic": lambda: backends.cudnn.deterministic,
        "fp32_precision": lambda: backends.fp32_precision,
        "cuda.matmul.fp32_precision": lambda: backends.cuda.matmul.fp32_precision,
        "cudnn.conv.fp32_precision": lambda: backends.cudnn.conv.fp32_precision,
        "cudnn.rnn.fp32_precision": lambda: backends.cudnn.rnn.fp32_precision,
    }
    found: dict[str, Any] = {}
    for name, read in readers.items():
        with suppress(RuntimeError, AttributeError):
            found[name] = read()
    return found


def _apart(found: Any, wanted: Any) -> float:
    found, wanted = (np.asarray(values, np.float64) for values in (found, wanted))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@torch.inference_mode()
def _reference(group: BackboneGroup, device: torch.device, pixels: torch.Tensor) -> np.ndarray:
    """Compute features in float64."""
    exact = replace(group, network=copy.deepcopy(group.network).to(device).double())
    images = group.preprocessing.normalise(pixels).to(device).double()
    [rows] = exact.features_many(images, torch.float64)
    return np.asarray(rows.cpu().numpy())


def _features_apart(kit: Kit, group: BackboneGroup, pixels: np.ndarray) -> float:
    source = from_arrays(pixels)
    engine = replace(kit.engine("fp32", _N_IMAGES), workers=0, resize_on_device=False)
    [batch] = engine.run(group[0], source, [0])
    loaded = torch.from_numpy(
        np.stack([group.preprocessing.pixels(source.image(row)) for row in range(len(source))])
    )
    return _apart(batch.features, _reference(group, kit.device, loaded))


def _gram_apart(kit: Kit) -> float:
    X = np.random.default_rng(3).standard_normal((200, 3_000)).astype(np.float16)
    found = RowSpace(Pool(X, str(kit.device)), np.arange(len(X))).gram
    exact = X.astype(np.float64)
    return _apart(found, exact @ exact.T)


def _product_apart(kit: Kit) -> float:
    rng = np.random.default_rng(4)
    matrix, v = (rng.standard_normal(s).astype(np.float32) for s in ((500, 500), (500, 40)))
    found = matrix_on(str(kit.device), matrix).times(v)
    return _apart(found, matrix.astype(np.float64) @ v.astype(np.float64))


def _logits_apart(kit: Kit) -> float:
    from torchvision.models import resnet18

    from featx.train.classifier import NetworkClassifier

    torch.manual_seed(0)
    network = resnet18(num_classes=10).eval()
    pixels = np.random.default_rng(5).integers(0, 256, (_N_IMAGES, 64, 64, 3), np.uint8)
    net = NetworkClassifier(
        copy.deepcopy(network), validation=0.0, precision="fp32", device=str(kit.device)
    )
    net.initialize()
    net.module_.eval()
    found = net.decision_function(pixels)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        wanted = network.to(kit.device).double()(images.to(kit.device)).cpu()
    return _apart(found, wanted)


def _lanes_apart(group: BackboneGroup, kit: Kit) -> float:
    """Two engines take turns on one device: the same rows as in float64."""
    n_batches, batch = (4, 2) if kit.is_small else (24, 4)
    pixels = np.random.default_rng(6).integers(0, 256, (n_batches * batch, 32, 32, 3), np.uint8)
    source = from_arrays(pixels)
    one = replace(kit.engine("fp32", batch), workers=1, resize_on_device=False)
    lanes = SeveralDevices((one, replace(one, workers=1)))
    found = [rows.features for (rows,) in lanes.run_many(group, source, range(n_batches))]
    loaded = [group.preprocessing.pixels(source.image(row)) for row in range(len(source))]
    return _apart(
        np.concatenate(found), _reference(group, kit.device, torch.from_numpy(np.stack(loaded)))
    )

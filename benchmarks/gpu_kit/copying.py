"""Resizing on the device, hidden waits, and batches that overlap: all against the plain way."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from featx.backbones import BackboneGroup
from featx.engines.runtimes import Resize, Result
from featx.preprocess import Preprocessing
from featx.resample import RESAMPLED
from featx.sources import Source, open_data
from featx.sources.memory import from_arrays
from gpu_kit.kit import Kit

__all__ = ["compare_resizes", "find_waits", "race"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZES = [(32, 32), (28, 28), (48, 36), (64, 64), (31, 57), (96, 96), (150, 200), (223, 223)]
_SIDES = [(256, 224), (232, 224), (224, 224), (342, 299), (384, 384)]


def compare_resizes(kit: Kit) -> None:
    """Compare every pixel with Pillow's, and normalised numbers with the CPU's."""
    sizes, sides = (_SIZES[:2], _SIDES[:1]) if kit.is_small else (_SIZES, _SIDES)
    rng = np.random.default_rng(0)
    n_each = 2 if kit.is_small else 6
    for name in RESAMPLED:
        n_images = n_unequal = n_without = 0
        for size, (resize_px, crop_px) in ((a, b) for a in sizes for b in sides):
            p = Preprocessing(resize_px, crop_px, name, _MEAN, _STD)
            resize = p.find_resize(*size)
            if resize is None:
                n_without += 1
                continue
            pixels = _pictures(rng, n_each, *size)
            wanted = np.stack([p.pixels(Image.fromarray(image)) for image in pixels])
            found = resize(torch.from_numpy(pixels).to(kit.device)).cpu().numpy()
            n_images += len(pixels)
            n_unequal += sum(not np.array_equal(*pair) for pair in zip(found, wanted, strict=True))
        right = n_images > 0 and not n_unequal
        left = f"{n_without} of {len(sizes) * len(sides)}"
        kit.row(filter=name, images=n_images, unequal=n_unequal, left_to_workers=left, right=right)
    _compare_normalised(kit, rng)


def _pictures(rng: np.random.Generator, n: int, width: int, height: int) -> np.ndarray:
    """Noise, its extremes, and smooth shapes."""
    noise = rng.integers(0, 256, (n, height, width, 3), np.uint8)
    noise[0] = np.where(noise[0] > 127, 255, 0)
    for i in range(1, n, 2):
        coarse = Image.fromarray(noise[i, :6, :6])
        noise[i] = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return noise


def _compare_normalised(kit: Kit, rng: np.random.Generator) -> None:
    p = Preprocessing(224, 224, "bilinear", _MEAN, _STD)
    pixels = torch.from_numpy(rng.integers(0, 256, (8, 224, 224, 3), np.uint8))
    found = p.normalise(pixels.to(kit.device))
    apart = (found.cpu() - p.normalise(pixels)).abs().amax().item()
    is_last = found.is_contiguous(memory_format=torch.channels_last)
    kit.row(what="normalised, largest difference from the CPU's", found=apart, right=apart < 1e-6)
    kit.row(what="normalised, channels last in memory", found=is_last, right=is_last)


def find_waits(kit: Kit) -> None:
    """Start a warm batch where anything that waits for the device is an error."""
    for name in ["squeezenet1_1"] if kit.is_small else ["vgg16", "resnet50"]:
        group = kit.group(name)
        for precision in ("fp16", "fp32") if kit.is_gpu else ("bf16",):
            runtime = kit.engine(precision, 64).open(group, "float16")
            for label, (pixels, resize) in _two_ways(kit, group, 64).items():
                for _ in range(3):
                    runtime.start(pixels, resize)()
                with kit.trying(network=name, precision=precision, pixels=label):
                    with _no_waits(kit, "error"):
                        result = runtime.start(pixels, resize)
                    result()
                    kit.row(network=name, precision=precision, pixels=label, right=True, found="")
                if kit.is_gpu:
                    _list_waits(kit, name, partial(runtime.start, pixels, resize))


def _two_ways(
    kit: Kit, group: BackboneGroup, n: int
) -> dict[str, tuple[torch.Tensor, Resize | None]]:
    """Load a batch that is enlarged already, and one to be enlarged on the device."""
    n = 8 if kit.is_small else n
    source = open_data(kit.pictures.tree("cifar"))["test"].take(np.arange(n))
    images = [source.image(row) for row in range(n)]
    enlarged = [group.preprocessing.pixels(image) for image in images]
    both: dict[str, tuple[Sequence[Any], Resize | None]] = {"already enlarged": (enlarged, None)}
    resize = group.preprocessing.find_resize(32, 32)
    if resize is not None:
        both["enlarged on the device"] = images, resize
    return {label: (_batch(kit, arrays), found) for label, (arrays, found) in both.items()}


def _batch(kit: Kit, images: Sequence[Any]) -> torch.Tensor:
    """Make a batch on the host, page-locked for a GPU."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.pin_memory() if kit.is_gpu else pixels


@contextmanager
def _no_waits(kit: Kit, mode: str) -> Iterator[None]:
    if not kit.is_gpu:
        yield
        return
    kit.wait()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _list_waits(kit: Kit, name: str, start: Callable[[], Result]) -> None:
    """Name the lines that wait, all of them."""
    with warnings.catch_warnings(record=True) as caught, _no_waits(kit, "warn"):
        warnings.simplefilter("always")
        result = start()
    result()
    places = sorted({f"{w.filename}:{w.lineno} {w.message}"[:200] for w in caught})
    if places:
        kit.text(f"lines of {name} that wait", "\n".join(places))


def race(kit: Kit) -> None:
    """Run distinct batches with a consumer that is now and then slow; compare with one by one."""
    n_batches, batch = (6, 4) if kit.is_small else (300, 32)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (n_batches * batch, 32, 32, 3), np.uint8)
    source: Source = from_arrays(images)
    group = kit.group("squeezenet1_1", overrides={"input_size": 64})
    precision = "fp16" if kit.is_gpu else "fp32"
    engine = replace(kit.engine(precision, batch), resize_on_device=True, images_per_batch=batch)
    resize = group.preprocessing.find_resize(32, 32)
    assert resize is not None
    runtime = engine.open(group, "float16")
    wanted = []
    for i in range(n_batches):
        kit.wait()
        [rows] = runtime.start(_batch(kit, images[i * batch : (i + 1) * batch]), resize)()
        kit.wait()
        wanted.append(rows.copy())
    n_kinds = len({rows.tobytes() for rows in wanted})
    kit.row(what="batches that differ", found=n_kinds, right=n_kinds == n_batches)
    sleep = random.Random(2)
    for run in range(3):
        n_wrong = 0
        for i, (found,) in enumerate(
            engine.run_many(group, source, range(n_batches), dtype="float16")
        ):
            time.sleep(sleep.choice([0, 0, 0, 0.001, 0.01]))
            n_wrong += not np.array_equal(found.features, wanted[i], equal_nan=True)
        kit.row(what=f"run {run + 1}, batches unequal in bits", found=n_wrong, right=not n_wrong)

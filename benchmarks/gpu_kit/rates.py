"""Images per second: featx, its ceilings, and what else a person would run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ceilings import decode_rate, forward_rate, write_rate
from loops import Setting, Steady, bare, script, timm_loop

from featx.backbones import BackboneGroup
from featx.engines import LocalEngine
from featx.extract import Settings, extract_many
from featx.extract.times import StageTimes
from featx.extractor import FeatureExtractor
from featx.sources import Source, open_data
from featx.sources.base import ArraySource
from gpu_kit.kit import Kit
from gpu_kit.watching import Watch

__all__ = ["measure_rates"]

_MOST_BYTES = 4 << 30
_MOST_OTHERS = 16_384
_ARRAYS = "arrays"
_DISK, _MEMORY = "disk", "memory"
_TRANSFORM, _TRANSFORM_KEPT = "FeatureExtractor", "FeatureExtractor(memory=)"
# What stays only if it is worth a tenth.
_BY_WORKERS, _COMPILED = "enlarged by the workers", "--runtime compile"
_HOW: dict[str, dict[str, Any]] = {
    "": {},
    _BY_WORKERS: {"resize_on_device": False},
    _COMPILED: {"runtime": "compile"},
}


@dataclass(frozen=True)
class _Case:
    network: str
    precision: str
    images: str
    target: str = _DISK
    has_others: bool = False
    how: str = ""


_found_before: dict[tuple[str, str, int], float] = {}

_FIRST = [
    _Case("vgg16", "fp16", "cifar", has_others=True),
    _Case("resnet50", "fp16", "cifar"),
    _Case("vgg16", "fp16", _ARRAYS, _MEMORY),
    _Case("resnet50", "fp16", "large", has_others=True),
    _Case("squeezenet1_0", "fp16", "cifar"),
    _Case("vgg16", "fp16", _ARRAYS, _TRANSFORM),
    _Case("vit_b_16", "fp16", "large"),
    _Case("vgg16", "fp16", "photographs", has_others=True),
    _Case("densenet121", "fp16", "cifar"),
    _Case("vgg16", "fp16", "cifar", how=_BY_WORKERS),
    _Case("resnet50", "fp16", _ARRAYS, _MEMORY),
    _Case("resnet50", "fp16", _ARRAYS, _MEMORY, how=_COMPILED),
    _Case("vgg16", "bf16", "cifar"),
    _Case("resnet50", "bf16", _ARRAYS, _MEMORY),
    _Case("resnet50", "fp16", "photographs"),
    _Case("squeezenet1_0", "fp16", "large"),
    _Case("vit_b_16", "bf16", _ARRAYS, _MEMORY),
    _Case("densenet121", "bf16", "large"),
    _Case("vgg16", "fp16", _ARRAYS, _TRANSFORM_KEPT),
]
_SMALL = [
    _Case("squeezenet1_1", "fp32", "cifar", has_others=True),
    _Case("squeezenet1_1", "bf16", _ARRAYS, _MEMORY),
    _Case("squeezenet1_1", "fp32", _ARRAYS, _TRANSFORM_KEPT),
]


def _cases(kit: Kit) -> list[_Case]:
    """Give the most telling first, then the rest of the product."""
    if kit.is_small:
        return _SMALL
    rest = [
        _Case(network, precision, images, target)
        for precision in ("fp16", "bf16")
        for images, target in (
            ("cifar", _DISK),
            ("large", _DISK),
            (_ARRAYS, _MEMORY),
            ("photographs", _DISK),
        )
        for network in ("vgg16", "resnet50", "densenet121", "vit_b_16", "squeezenet1_0")
    ]
    done = {replace(case, has_others=False) for case in _FIRST}
    return _FIRST + [case for case in rest if case not in done]


def measure_rates(kit: Kit) -> None:
    """Measure case by case while there is time for another one."""
    seconds = 0.2 if kit.is_small else 1.5
    for name in ("cifar", "large", "photographs"):
        kit.pictures.tree(name)  # by processes that are forked before CUDA starts
    disk = write_rate(kit.scratch)
    kit.row(what="disk, one writer, MB/s", found=disk / 1e6)
    open_group = cache(kit.group)
    slowest = {True: 0.0, False: 0.0}
    for case in _cases(kit):
        if kit.left() < slowest[case.has_others]:
            what = "" if case.has_others else " and what follows"
            kit.row(not_measured=f"{case}{what}: no time")
            if case.has_others:
                continue  # the loops of others take as long as three cases without
            break
        began = time.monotonic()
        with kit.trying(case=str(case)):
            _Measurement(kit, case, open_group(case.network), seconds).run(disk)
        took = time.monotonic() - began
        slowest[case.has_others] = max(0.8 * slowest[case.has_others], took)


class _Measurement:
    """One case."""

    def __init__(self, kit: Kit, case: _Case, group: BackboneGroup, seconds: float) -> None:
        self.kit, self.case, self.group, self.seconds = kit, case, group, seconds
        engine: LocalEngine = kit.engine(
            case.precision, 8 if kit.is_small else None, **_HOW[case.how]
        )
        self.engine = engine.fitted_to(group)
        self.setting = Setting(kit.device, case.precision, self.engine.batch_size)
        self.row_bytes = 2 * group[0].n_features

    def run(self, disk: float) -> None:
        """Measure the ceilings, then the whole, then what else one would run."""
        kit, case, size = self.kit, self.case, self.engine.batch_size
        n = max(4, int(self._about() * self.seconds / size)) * size
        alone = bare(self.group, self.setting, n // 2)
        own = forward_rate(self.engine, self.group, "float16", self.seconds / 3)()
        source = self._images(n)
        decode = decode_rate(self.engine, self.group, source)
        write = disk / self.row_bytes if case.target == _DISK else None
        least = min(alone, decode, write or alone)
        with _utilisation(kit) as busy:
            rate, times = self._whole(source)
        others = self._others(source) if case.has_others else {"script": None, "timm": None}
        kit.row(
            network=case.network,
            precision=case.precision,
            images=f"{case.images} ({len(source):,})",
            to=", ".join(filter(None, (case.target, case.how))),
            batch=size,
            bare=alone,
            own_forward=own,
            decode=decode,
            write=write,
            featx=rate,
            of_bare=rate / alone,
            of_least=rate / least,
            **others,
            gpu_busy=busy.get("mean"),
            start_s=times and times.start_seconds,
        )
        if times is not None:
            label = " ".join((case.network, case.precision, case.images, case.target, case.how))
            kit.text(f"{label}, profile", times.table())

    def _whole(self, source: Source) -> tuple[float, StageTimes | None]:
        """Run featx; give images per second, and how busy each stage was."""
        if self.case.target not in (_DISK, _MEMORY):
            return self._transform(source), None
        return self._on_disk(source) if self.case.target == _DISK else self._in_memory(source)

    def _transform(self, source: Source) -> float:
        """Transform arrays of a program, the start of its workers included."""
        kit, case = self.kit, self.case
        memory = kit.scratch / "memory" if case.target == _TRANSFORM_KEPT else None
        extractor = FeatureExtractor(
            case.network,
            weights="random",
            precision=case.precision,
            device=kit.device_name,
            input_size=self.group.preprocessing.crop_px,
            workers=self.engine.workers,
            dtype="float16",
            memory=memory,
        )
        assert isinstance(source, ArraySource)
        pixels = np.asarray(source.pixels[: len(source)])
        # Of 64 images that repeat, memory would keep 64.
        pixels = pixels + np.arange(len(pixels)).astype(np.uint8)[:, None, None, None]
        extractor.fit(pixels[:8])
        extractor.transform(pixels[:8])
        return len(pixels) / kit.seconds(lambda: extractor.transform(pixels))

    def _about(self) -> float:
        """Give the network's rate, roughly; as it was found before, where it was."""
        key = self.case.network, self.case.precision, self.engine.batch_size
        if key not in _found_before:
            _found_before[key] = bare(self.group, self.setting, 4 * self.engine.batch_size)
        return _found_before[key]

    def _images(self, n: int) -> Source:
        """Take as many images as the time and the disk allow, in whole batches."""
        kit, size = self.kit, self.engine.batch_size
        most = min(n, _MOST_BYTES // self.row_bytes)
        if self.case.images == _ARRAYS:
            source = kit.pictures.arrays()
        else:
            source = max(open_data(kit.pictures.tree(self.case.images)).values(), key=len)
        n_images = max(2 * size, min(most, len(source)) // size * size)
        if self.case.images == _ARRAYS:
            return source.take(np.arange(n_images))
        return source.take(np.linspace(0, len(source) - 1, n_images).astype(int))

    def _on_disk(self, source: Source) -> tuple[float, StageTimes]:
        """Extract to a file; its last commit and closing count."""
        target = self.kit.scratch / "rate.h5"
        steady = Steady(len(source))
        watch = Watch(quiet=True, tick=steady.tick)
        given = source, self.group, self.engine, [target], Settings()
        [report] = extract_many(*given, reporter=watch)
        rate = steady.rate()
        target.unlink()
        assert report.times is not None
        return rate, report.times

    def _in_memory(self, source: Source) -> tuple[float, StageTimes]:
        """Keep the last of the rows: memory of all would be written for the first time."""
        size, steady = self.engine.batch_size, Steady(len(source))
        rows = np.empty((size, self.group[0].n_features), np.float16)
        times = StageTimes(self.engine.n_workers)
        batches = range(len(source) // size)
        for (batch,) in self.engine.run_many(self.group, source, batches, dtype="float16"):
            times.add(len(batch.features), batch.seconds)
            rows[: len(batch.features)] = batch.features
            steady.tick(batch.start + len(batch.features))
        times.finish()
        return steady.rate(), times

    def _others(self, source: Source) -> dict[str, Any]:
        """Run the script and timm's loop on the files of the source, linked into a folder."""
        tree = self.kit.scratch / f"{self.case.images}-{len(source)}"
        root = self.kit.pictures.tree(self.case.images)
        for i, path in enumerate(source.paths[:_MOST_OTHERS]):
            name = tree / f"class{i % 2}" / f"{i:05}.jpg"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.hardlink_to(_found(root, path))
        found: dict[str, Any] = {}
        loops = {
            "script": partial(script, self.group, self.setting, tree, self.kit.scratch),
            "timm": partial(timm_loop, self.group, self.setting, tree),
        }
        for name_, loop in loops.items():
            found[name_] = None
            with self.kit.trying(case=f"{name_} of {self.case}"):
                found[name_] = loop()
        return found


def _found(root: Path, path: str) -> Path:
    """Give the file of a row, whose path may begin below the folder of its split."""
    return next(p for p in (root / path, root / "train" / path, root / "test" / path) if p.exists())


@contextmanager
def _utilisation(kit: Kit) -> Iterator[dict[str, float]]:
    """Ask the driver every 50 ms for the share of time in which the card computes."""
    found: dict[str, float] = {}
    try:
        import pynvml
    except ImportError:
        yield found
        return
    if not kit.is_gpu:
        yield found
        return
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(kit.device.index or 0)
    values: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.05):
            values.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["mean"] = sum(values) / max(1, len(values)) / 100

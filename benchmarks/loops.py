"""What else a person would run: the bare forward loop, a careful script, timm's loader.

Each gives images per second on a CPU or a GPU, behind the start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, InterpolationMode, transforms

from featx.backbones import BackboneGroup
from featx.engines.runtimes.base import DTYPES

__all__ = ["Setting", "Steady", "bare", "rate", "script", "timm_loop"]


@dataclass(frozen=True)
class Setting:
    """Where a loop computes, and how.

    Parameters
    ----------
    device : torch.device
        A CPU or a GPU.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``; the last two by autocast.
    batch : int
        Images at once.
    """

    device: torch.device
    precision: str
    batch: int

    @property
    def is_gpu(self) -> bool:
        """Whether the device computes beside this program."""
        return self.device.type == "cuda"

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients, in the precision."""
        dtype = DTYPES.get(self.precision)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            yield

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def clock(self) -> float:
        """Seconds, once everything is computed."""
        self.wait()
        return time.perf_counter()


class Steady:
    """The rate of a pipeline behind the first quarter of its images.

    When the first batch comes, every worker has about one ready, which would count as speed.

    Parameters
    ----------
    n : int
        Images in all.
    clock : callable, default=time.perf_counter
        Gives seconds.
    """

    def __init__(self, n: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._n, self._clock = n, clock
        self._began: tuple[int, float] | None = None

    def tick(self, n_done: int) -> None:
        """Take note of how many images are done."""
        if self._began is None and 4 * n_done >= self._n:
            self._began = n_done, self._clock()

    def rate(self) -> float:
        """Images per second, now that all are done."""
        n_before, began = self._began or (0, 0.0)
        return (self._n - n_before) / (self._clock() - began)


def rate(step: Callable[[], object], n: int, setting: Setting) -> float:
    """Images per second of a step that computes one batch, over about n images."""
    step()
    started = setting.clock()
    for _ in range(n // setting.batch):
        step()
    return n // setting.batch * setting.batch / (setting.clock() - started)


def bare(group: BackboneGroup, setting: Setting, n: int) -> float:
    """Images per second of the plain loop: channels last, autocast, one resident batch."""
    side = group.preprocessing.crop_px
    network = group.network.to(setting.device, memory_format=torch.channels_last)
    images = torch.rand(setting.batch, 3, side, side, device=setting.device)
    images = images.contiguous(memory_format=torch.channels_last)
    with setting.computing():
        return rate(lambda: network(images), n, setting)


def transform_of(group: BackboneGroup) -> Compose:
    """Write torchvision's transform as a person would."""
    p = group.preprocessing
    return transforms.Compose(
        [
            transforms.Resize(p.resize_px, InterpolationMode(p.interpolation)),
            transforms.CenterCrop(p.crop_px),
            transforms.ToTensor(),
            transforms.Normalize(p.mean, p.std),
        ]
    )


def script(group: BackboneGroup, setting: Setting, tree: Path, scratch: Path) -> float:
    """Images per second of a careful script: DataLoader, torchvision's transform, h5py."""
    data = ImageFolder(str(tree), transform_of(group))
    loader = DataLoader(
        data, setting.batch, num_workers=os.cpu_count() or 1, pin_memory=setting.is_gpu
    )
    order = torch.channels_last if setting.is_gpu else torch.contiguous_format
    network = group.network.to(setting.device, memory_format=order).eval()
    path = scratch / "script.h5"
    at, steady = 0, Steady(len(data))
    with h5py.File(path, "w") as file, setting.computing():
        out = file.create_dataset("features", (len(data), group[0].n_features), "float16")
        for images, _ in loader:
            there = images.to(setting.device, memory_format=order, non_blocking=True)
            features = network(there)[0].flatten(1).half()
            out[at : at + len(features)] = features.cpu().numpy()
            at += len(features)
            steady.tick(at)
        file.flush()
        found = steady.rate()
    path.unlink()
    return found


def timm_loop(group: BackboneGroup, setting: Setting, tree: Path) -> float:
    """Images per second of timm's loader and a forward loop; nothing is written."""
    from timm.data import create_dataset, create_loader

    p = group.preprocessing
    data = create_dataset("", str(tree))
    loader = create_loader(
        data,
        (3, p.crop_px, p.crop_px),
        setting.batch,
        use_prefetcher=setting.is_gpu,
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
        num_workers=os.cpu_count() or 1,
        crop_pct=p.crop_px / p.resize_px,
        pin_memory=setting.is_gpu,
        device=setting.device,
    )
    network = group.network.to(setting.device, memory_format=torch.channels_last).eval()
    at, steady = 0, Steady(len(data), setting.clock)
    with setting.computing():
        for images, _ in loader:
            network(images.contiguous(memory_format=torch.channels_last))
            at += len(images)
            steady.tick(at)
    return steady.rate()

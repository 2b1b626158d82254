"""Images on the disk: CIFAR-10 and photographs of ``FEATX_SHARED``, or made ones in a small run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from ceilings import make_pictures
from PIL import Image

from featx.engines.machine import n_cores
from featx.sources import Source
from featx.sources.memory import from_arrays

__all__ = ["Pictures"]

_N_LARGE, _N_LARGE_NAMES = 2_000, 32_000
_N_PHOTOGRAPH_NAMES = 8_000
_N_ARRAYS = 12_288
_SMALL = {"cifar": (32, 32, 72), "large": (96, 96, 40), "photographs": (160, 120, 40)}


@dataclass(frozen=True)
class Pictures:
    """Folders of images, each made when it is first asked for.

    Parameters
    ----------
    folder : Path
        Where they are made; all steps have the same.
    shared : Path
        With ``data/cifar10-jpeg.tar.xz`` and ``data/photographs``.
    is_small : bool
        Whether a few are made up instead.
    """

    folder: Path
    shared: Path
    is_small: bool

    def tree(self, name: str) -> Path:
        """Give a folder of JPEG files, class by class, of one of three kinds.

        ``cifar`` has ``train`` and ``test``, 60,000 of 32 x 32 pixels; ``large`` is 2,000 of
        them enlarged to 224 x 224 under 32,000 names; ``photographs`` are 40 under 8,000 names.
        """
        target = self.folder / name
        if not target.exists():
            half = self.folder / f"{name}.unfinished"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            if self.is_small:
                self._make_small(name, half)
            else:
                {"cifar": self._unpack, "large": self._enlarge, "photographs": self._link}[name](
                    half
                )
            half.rename(target)
        return target

    def arrays(self) -> Source:
        """Give 12,288 images of 224 x 224 pixels as an array mapped from a file (1.8 GB)."""
        file, n, side = self.folder / "arrays.npy", _N_ARRAYS, 224
        if self.is_small:
            n, side = _SMALL["large"][2], 64
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            some = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
            half = file.with_suffix(".unfinished")
            with half.open("wb") as stream:
                np.save(stream, np.resize(some, (n, side, side, 3)))
            half.rename(file)
        return replace(from_arrays(np.load(file, mmap_mode="r")), file=str(file))

    @staticmethod
    def _make_small(name: str, folder: Path) -> None:
        width, height, n = _SMALL[name]
        if name == "cifar":
            make_pictures(folder / "train", n, width, height)
            make_pictures(folder / "test", n // 3, width, height, seed=1)
        else:
            make_pictures(folder, n, width, height)

    def _unpack(self, folder: Path) -> None:
        archive = self.shared / "data" / "cifar10-jpeg.tar.xz"
        if shutil.which("tar") and shutil.which("xz"):
            subprocess.run(["tar", "-xJf", archive, "-C", folder], check=True)
            return
        with tarfile.open(archive, "r|xz") as stream:
            stream.extractall(folder, filter="data")

    def _enlarge(self, folder: Path) -> None:
        files = sorted(self.tree("cifar").glob("test/*/*.jpg"))
        files = files[:: len(files) // _N_LARGE][:_N_LARGE]
        made = [folder / f"class{i % 2}" / f"{i:05}.jpg" for i in range(len(files))]
        for k in range(2):
            (folder / f"class{k}").mkdir()
        with ProcessPoolExecutor(n_cores(), get_context("fork")) as pool:
            list(pool.map(_enlarge_one, files, made, chunksize=32))
        _link_names(made, _N_LARGE_NAMES)

    def _link(self, folder: Path) -> None:
        made = []
        for i, file in enumerate(sorted((self.shared / "data" / "photographs").glob("*.jpg"))):
            path = folder / f"class{i % 2}" / f"{i:05}.jpg"
            path.parent.mkdir(exist_ok=True)
            made.append(Path(shutil.copy(file, path)))
        _link_names(made, _N_PHOTOGRAPH_NAMES)


def _enlarge_one(file: Path, path: Path) -> None:
    with Image.open(file) as image:
        image.resize((224, 224), Image.Resampling.BICUBIC).save(path, quality=90)


def _link_names(made: list[Path], n: int) -> None:
    """Give files more names, so that there are n: what is decoded is the same each time."""
    for i in range(len(made), n):
        file = made[i % len(made)]
        os.link(file, file.with_name(f"{i:05}.jpg"))

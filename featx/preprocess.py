"""From a decoded image to the numbers a network was trained on.

Preprocessing belongs to the weights. A `Preprocessing` is read off the weights'
own record (torchvision's ``weights.transforms()``, timm's ``pretrained_cfg``)
and splits the reference transform in two halves that together give the same
numbers bit for bit: `Preprocessing.pixels` (resize and crop with Pillow, uint8,
in the worker processes) and `Preprocessing.normalise` (float32, on the device).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, functional

from featx.depth import check_bits
from featx.errors import UsageError
from featx.resample import find_resampler
from featx.words import INTERPOLATIONS, MISTAKES, check_scale

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Preprocessing", "is_traced"]

CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1] and normalise, as the weights want it."""

    resize_px: int
    crop_px: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str = ""
    channels: str = "rgb"
    crop_mode: str = "center"
    bits: int | None = None
    crop_pct: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_positive("resize_px", self.resize_px)
        _check_positive("crop_px", self.crop_px)
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"interpolation {self.interpolation!r} is unknown: choose from "
                + ", ".join(INTERPOLATIONS)
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise UsageError(f"{name} must be 3 finite numbers (RGB), got {values}")
        if {"mean": self.mean, "std": self.std} != MISTAKES["divide-twice"]:
            check_scale(self.mean, self.std)
        check_bits(self.bits)
        if self.channels not in ("rgb", "bgr"):
            raise UsageError(f"channels {self.channels!r} is unknown: choose from rgb, bgr")
        if self.crop_mode not in CROP_MODES:
            raise UsageError(
                f"crop mode {self.crop_mode!r} is unknown: choose from {', '.join(CROP_MODES)}"
            )
        if min(self.std) <= 0:
            raise UsageError(f"std must be positive, got {self.std}")

    @classmethod
    def from_torchvision(cls, transform: Any, origin: str = "") -> Preprocessing:
        """Read the preset of a torchvision weights entry."""
        # The preset puts what it is given, one side or two, into a list.
        resize, crop = (
            np.ravel(size).tolist() for size in (transform.resize_size, transform.crop_size)
        )
        _check_square(origin or "the transform", "resize_size", resize)
        _check_square(origin or "the transform", "crop_size", crop)
        return cls(
            resize_px=int(resize[0]),
            crop_px=int(crop[0]),
            interpolation=str(transform.interpolation.value),
            mean=_triple(transform.mean),
            std=_triple(transform.std),
            origin=origin,
            crop_mode="squash" if len(resize) > 1 else "center",
        )

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any], origin: str = "") -> Preprocessing:
        """Read a timm ``pretrained_cfg``."""
        _check_square(origin or "the configuration", "input_size", cfg["input_size"][-2:])
        crop_px, crop_pct = int(cfg["input_size"][-1]), float(cfg["crop_pct"])
        return cls(
            resize_px=math.floor(crop_px / crop_pct),
            crop_px=crop_px,
            interpolation=str(cfg["interpolation"]),
            mean=_triple(cfg["mean"]),
            std=_triple(cfg["std"]),
            origin=origin,
            crop_mode=str(cfg.get("crop_mode") or "center"),
            crop_pct=crop_pct,
        )

    def override(
        self,
        *,
        input_size: int | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        channels: str | None = None,
        bits: int | None = None,
    ) -> Preprocessing:
        """Replace some of the values."""
        crop_px = self.crop_px if input_size is None else input_size
        _check_positive("input_size", crop_px)
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise UsageError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
        ratio = self.crop_pct if crop_pct is None else crop_pct
        if input_size is None and crop_pct is None:
            resize_px = self.resize_px
        elif ratio is not None:
            resize_px = math.floor(crop_px / ratio)
        else:
            resize_px = max(1, crop_px * self.resize_px // self.crop_px)
        changed = replace(
            self,
            resize_px=resize_px,
            crop_px=crop_px,
            interpolation=interpolation or self.interpolation,
            mean=mean or self.mean,
            std=std or self.std,
            channels=channels or self.channels,
            bits=bits or self.bits,
            crop_pct=ratio,
        )
        if changed == self:
            return self
        return replace(changed, origin=f"{self.origin}, changed by options")

    def identity(self) -> dict[str, Any]:
        """Return the values that change the features, for the fingerprint."""
        values = asdict(self)
        del values["origin"], values["crop_pct"]
        if self.channels == "rgb":  # what every cache of earlier versions has
            del values["channels"]
        if self.crop_mode == "center":
            del values["crop_mode"]
        if self.bits is None:
            del values["bits"]
        return values

    def describe(self) -> str:
        """Return one line that a person can check."""
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        others = ", BGR" if self.channels == "bgr" else ""
        others += f", {self.bits} bits" if self.bits else ""
        how = {"squash": "both sides to ", "border": "longer side to "}.get(self.crop_mode, "")
        return (
            f"resize {how}{self.resize_px} {self.interpolation}, centre crop {self.crop_px}, "
            f"mean {mean}, std {std}{others} ({self.origin})"
        )

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop one image, exactly as torchvision does it on Pillow images.

        Where it is sure to give the same values, torch's resize of uint8 images takes the
        place of Pillow's: it is several times faster (see `_is_exact`).
        """
        if self.crop_mode != "center":
            return self._squashed_or_bordered(image)
        width, height = _resized(*image.size, self.resize_px)
        is_inside = min(width, height) >= self.crop_px
        if is_inside and _is_exact(self.interpolation, image.size, (width, height), self.crop_px):
            left, top = round((width - self.crop_px) / 2), round((height - self.crop_px) / 2)
            resized = _resize_by_torch(image, height, width, self.interpolation)
            return resized[top : top + self.crop_px, left : left + self.crop_px]
        by_pillow = functional.resize(
            image, [self.resize_px], interpolation=InterpolationMode(self.interpolation)
        )
        return np.asarray(functional.center_crop(by_pillow, [self.crop_px, self.crop_px]))

    def _squashed_or_bordered(self, image: Image.Image) -> np.ndarray:
        """Resize and crop as timm does it for these two modes."""
        side = self.resize_px
        size = [side, side]
        if self.crop_mode == "border":
            ratio = max(image.size) / side
            size = [round(image.height / ratio), round(image.width / ratio)]
        resized = functional.resize(
            image, size, interpolation=InterpolationMode(self.interpolation)
        )
        if self.crop_mode == "border":
            lacking = [max(0, self.crop_px - length) for length in (resized.width, resized.height)]
            before, after = [n // 2 for n in lacking], [(n + 1) // 2 for n in lacking]
            fill = tuple(round(255 * value) for value in self.mean)
            resized = functional.pad(resized, [*before, *after], fill=fill)
        return np.asarray(functional.center_crop(resized, [self.crop_px, self.crop_px]))

    def find_resize(self, width: int, height: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Find the same resize and crop for a device, for images of one size."""
        after = _resized(width, height, self.resize_px)
        if self.crop_mode != "center" or min(after) < self.crop_px:
            return None
        if width * height >= self.crop_px**2:
            return None
        resampler = find_resampler((width, height), after, self.interpolation)
        if resampler is None:
            return None
        left, top = (round((length - self.crop_px) / 2) for length in after)

        def resize(pixels: torch.Tensor) -> torch.Tensor:
            cropped = resampler(pixels)[:, top : top + self.crop_px, left : left + self.crop_px]
            return cropped.contiguous()  # what comes resized has the same strides

        return resize

    def normalise(
        self, pixels: torch.Tensor, constants: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Scale to [0, 1], subtract the mean and divide by the deviation."""
        if self.channels == "bgr":
            pixels = pixels.flip(-1)
        if pixels.device.type == "cpu" and not is_traced():
            return self._normalised_by_rows(pixels)
        mean, std = constants or self.constants(pixels.device)
        # A copy, so that the rest works in place: three passes over memory instead of six.
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, copy=True)
        return values.div_(255).sub_(mean).div_(std)

    def constants(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation, copied to a device once: the host waits for such a copy."""
        return _on_device(self.mean, device), _on_device(self.std, device)

    def _normalised_by_rows(self, pixels: torch.Tensor) -> torch.Tensor:
        """Do the same image by image and row by row: in the cache, with vector instructions.

        A mean of three values, broadcast over pixels that lie side by side, would be
        subtracted three values at a time: this is several times faster, and equal.
        """
        n, height, width, _ = pixels.shape
        mean, std = (
            torch.tensor(v, dtype=torch.float32).repeat(width) for v in (self.mean, self.std)
        )
        values = torch.empty((n, height, width * 3))
        for image, rows in zip(values, pixels.reshape(n, height, width * 3), strict=True):
            image.copy_(rows).div_(255).sub_(mean).div_(std)
        return values.view(n, height, width, 3).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # training uses the same ones
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def is_traced() -> bool:
    """Whether torch is following a pass to compile or convert it, not to compute it."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def _resized(width: int, height: int, shorter_px: int) -> tuple[int, int]:
    """Give the size after a resize of the shorter side, as torchvision rounds it."""
    if width <= height:
        return shorter_px, int(shorter_px * height / width)
    return int(shorter_px * width / height), shorter_px


def _is_exact(
    interpolation: str, before: tuple[int, int], after: tuple[int, int], crop_px: int
) -> bool:
    """Whether fixed-point numbers hold all weights of an enlargement, in the part that is kept.

    Pillow has 22 bits for them and torch at least 14, and both round after each pass, so that
    their results are equal where no weight is rounded. An enlargement by m / n (in lowest
    terms) has its weights at multiples of 1 / (2 m) of a pixel: they are multiples of 1 / (2 m),
    or of 1 / (16 m^3) if they are cubic, exact if m is a power of two. Where the edge cuts off
    some, the rest is divided by its sum: one of two is 1 then, but of four none is exact.
    """
    if interpolation not in _MOST_EXACT:
        return False
    most, n_cut = _MOST_EXACT[interpolation]
    for old, new in zip(before, after, strict=True):
        m = new // math.gcd(old, new)
        if new < old or m > most or m & (m - 1):
            return False
        if (new - crop_px) // 2 * old < n_cut * new:
            return False
    return True


# The largest m, and the pixels at an edge, before the enlargement, that the crop must cut off.
_MOST_EXACT = {"bilinear": (1 << 10, 0), "bicubic": (1 << 3, 2)}


def _resize_by_torch(image: Image.Image, height: int, width: int, mode: str) -> np.ndarray:
    """Resize to uint8 (height, width, 3) in channels-last order, torch's fast path."""
    if image.size == (width, height):
        return np.asarray(image)
    # A copy: torch does not take arrays that must not be written to.
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        pixels, size=(height, width), mode=mode, antialias=True
    )
    return np.asarray(resized[0].permute(1, 2, 0).numpy())


def _check_square(origin: str, name: str, sides: Any) -> None:
    if len(set(sides)) > 1:
        raise UsageError(
            f"{name} of {origin} is {' x '.join(map(str, sides))}, and featx gives square images: "
            "return one side, or a network that takes square ones"
        )


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name} must be at least 1 pixel, got {value}")


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

"""featx's own way beside the reference, image by image, and the verdict."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from featx.backbones import Backbone
from featx.engines import Engine
from featx.reference.networks import Reference
from featx.reference.pictures import Picture
from featx.sources import from_arrays

__all__ = [
    "INPUT_TOLERANCE",
    "TOLERANCES",
    "Agreement",
    "Classes",
    "Tolerance",
    "Verdict",
    "compare",
    "judge",
]


@dataclass(frozen=True)
class Tolerance:
    """How far featx's way may lie from the reference."""

    relative: float
    cosine: float
    margin: float

    def with_storing(self, dtype: str) -> Tolerance:
        """Add the rounding of a stored type: float16 rounds a value by up to 2**-11 of it."""
        return replace(self, relative=self.relative + (2.0**-11 if dtype == "float16" else 0.0))


TOLERANCES = MappingProxyType(
    {
        "fp32": Tolerance(1e-4, 1 - 1e-6, 1e-3),
        "fp16": Tolerance(0.05, 0.999, 0.05),
        "bf16": Tolerance(0.25, 0.99, 0.25),
    }
)
"""By the arithmetic of the network.

One rounding to float32, float16 or bfloat16 is at most 6e-8, 5e-4 or 4e-3 of a value, and
those of all layers add up. Seen on a CPU, on made pictures and 40 photographs: 6e-6, 0.03 and
0.15 (EfficientNet-Lite0, the worst of them); a wrong mean, crop, filter or order of colours
shows in the input, which has the same tight bound for every arithmetic.
"""

INPUT_TOLERANCE = 1e-6
"""Largest difference of the network's input, relative to the largest input value."""


@dataclass(frozen=True)
class Classes:
    """The class that either way gives an image."""

    featx: int
    reference: int
    margin: float


@dataclass(frozen=True)
class Agreement:
    """How near featx comes to the reference on one image."""

    name: str
    inputs: float = np.nan
    largest: float = np.nan
    relative: float = np.nan
    cosine: float = np.nan
    classes: Classes | None = None
    failure: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether featx's features are right."""

    reasons: tuple[str, ...]
    tolerance: Tolerance
    largest: float
    relative: float
    inputs: float
    cosine: float

    @property
    def is_pass(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    def describe(self, arithmetic: str) -> str:
        """One line, beginning with PASS or FAIL."""
        figures = (
            f"largest difference {self.largest:.1e}, relative {self.relative:.1e} "
            f"(at most {self.tolerance.relative:.1e} for {arithmetic}), smallest cosine "
            f"{self.cosine:.9f} (at least {self.tolerance.cosine:g})"
        )
        return f"PASS: {figures}" if self.is_pass else f"FAIL: {'; '.join(self.reasons)}: {figures}"


def compare(
    backbone: Backbone,
    reference: Reference,
    engine: Engine,
    pictures: Sequence[Picture],
    *,
    store_dtype: str = "float32",
) -> Iterator[Agreement]:
    """Compute the features of pictures in both ways.

    featx's way is its own decoder, preprocessing, cut network and engine, in batches.
    For the classes, a copy of the reference's whole network goes through that engine.

    Parameters
    ----------
    backbone : Backbone
        At the feature point.
    reference : Reference
        Of the same point.
    engine : Engine
        With the arithmetic, device and batch size that are to be checked.
    pictures : sequence of Picture
        At least one.
    store_dtype : {"float32", "float16"}
        Type to which the engine converts the features.

    Yields
    ------
    Agreement
        One a picture, in order.
    """
    # Not the paths: the same file may be named twice.
    source = from_arrays([_bytes_of(picture) for picture in pictures], name="verify")
    whole = replace(backbone, network=copy.deepcopy(reference.network), pool="none")
    batches = range(-(-len(source) // engine.batch_size))
    features = engine.run(backbone, source, batches, dtype=store_dtype)
    logits = engine.run(whole, source, batches)
    for of_features, of_logits in zip(features, logits, strict=True):
        for i, values in enumerate(of_features.features):
            row = of_features.start + i
            failure = of_features.failed.get(row, "")
            if failure:
                yield Agreement(pictures[row].name, failure=failure)
                continue
            image = source.image(row, backbone.preprocessing.bits)
            pixels = torch.from_numpy(backbone.preprocessing.pixels(image).copy())
            inputs = backbone.preprocessing.normalise(pixels[None])[0]
            yield _compare_one(
                pictures[row], reference, inputs.numpy(), values, of_logits.features[i]
            )


def _bytes_of(picture: Picture) -> bytes:
    return picture.data if isinstance(picture.data, bytes) else picture.data.read_bytes()


def _compare_one(
    picture: Picture,
    reference: Reference,
    inputs: np.ndarray,
    features: np.ndarray,
    logits: np.ndarray,
) -> Agreement:
    """Compare what featx gives for one image with the reference."""
    try:
        image = picture.open(reference.point.preprocessing.bits)
    except Exception as error:  # Pillow's parsers raise nearly anything on bad bytes
        return Agreement(picture.name, failure=f"Pillow cannot read it: {error}")
    seen, tapped, answer = reference.run(image)
    largest, relative = _difference(features, tapped.numpy())
    return Agreement(
        name=picture.name,
        inputs=_difference(inputs, seen.numpy())[1],
        largest=largest,
        relative=relative,
        cosine=_cosine(features, tapped.numpy()),
        classes=None if answer is None else _classes(logits, answer.numpy()),
    )


def _difference(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference; and that, divided by the largest absolute reference value."""
    if ours.shape != reference.shape:
        return np.inf, np.inf
    largest = float(np.abs(ours.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    if largest == 0:
        return 0.0, 0.0
    return largest, largest / scale if scale else np.inf


def _cosine(ours: np.ndarray, reference: np.ndarray) -> float:
    if ours.shape != reference.shape:
        return np.nan
    one, other = ours.astype(np.float64), reference.astype(np.float64)
    if np.array_equal(one, other):
        return 1.0
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one @ other) / max(lengths, 1e-300)


def _classes(ours: np.ndarray, reference: np.ndarray) -> Classes:
    one, other = int(np.nanargmax(ours)), int(reference.argmax())
    scale = max(float(np.abs(reference).max()), 1e-30)
    return Classes(one, other, (float(reference[other]) - float(reference[one])) / scale)


def judge(agreements: Sequence[Agreement], tolerance: Tolerance) -> Verdict:
    """Compare the largest differences with what is allowed."""
    compared = [agreement for agreement in agreements if not agreement.failure]
    if not compared:
        return Verdict(("no image could be compared",), tolerance, *[float("nan")] * 4)
    wrong = {
        "the network's input differs, so decoding or preprocessing is wrong": [
            not a.inputs <= INPUT_TOLERANCE for a in compared
        ],
        "the features differ": [
            not (a.relative <= tolerance.relative and a.cosine >= tolerance.cosine)
            for a in compared
        ],
        "the top-1 class is another one": [
            a.classes is not None and a.classes.margin > tolerance.margin for a in compared
        ],
    }
    return Verdict(
        reasons=tuple(
            f"{what} on {sum(flags)} of {len(compared)} images"
            for what, flags in wrong.items()
            if any(flags)
        ),
        tolerance=tolerance,
        largest=max(a.largest for a in compared),
        relative=max(a.relative for a in compared),
        inputs=max(a.inputs for a in compared),
        cosine=min(a.cosine for a in compared),
    )

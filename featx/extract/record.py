"""What made a cache: the identity that is fingerprinted, and the record beside it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.engines import Engine
from featx.extract.settings import Settings, images_identity
from featx.images import DECODER
from featx.sources import Source
from featx.store import CacheSpec

__all__ = ["make_spec"]

SCHEMA = 1
_RECORDED_PACKAGES = ("featx", "torch", "torchvision", "numpy", "h5py", "Pillow")


def make_spec(
    source: Source,
    backbone: Backbone,
    engine: Engine,
    settings: Settings,
    digests: np.ndarray,
    content: str,
) -> CacheSpec:
    """Everything about a cache that is known before the first image."""
    return CacheSpec(
        identity=_identity(source, backbone, engine, settings, content),
        meta=_record(source, backbone, engine, settings),
        labels=source.labels,
        class_names=source.class_names,
        paths=source.paths,
        n_features=backbone.n_features,
        dtype=settings.store_dtype,
        image_digests=digests,
    )


def _identity(
    source: Source, backbone: Backbone, engine: Engine, settings: Settings, content: str
) -> dict[str, Any]:
    """Everything that changes the values of the features, and nothing else."""
    return {
        "schema": SCHEMA,
        "source": images_identity(source, content),
        "decoder": DECODER,
        **backbone.identity(),
        **engine.identity(),
        "store_dtype": settings.store_dtype,
    }


def _packages(backbone: Backbone, engine: Engine) -> list[str]:
    """Name the packages whose code has a part in the features."""
    kinds = {type(module).__module__.partition(".")[0] for module in backbone.network.modules()}
    others = {"timm": "timm" in kinds, "openvino": engine.runtime == "openvino"}
    return [*_RECORDED_PACKAGES, *(name for name, is_used in others.items() if is_used)]


def _record(
    source: Source, backbone: Backbone, engine: Engine, settings: Settings
) -> dict[str, Any]:
    """Collect what a person, and a repair, want to know beside the identity."""
    weights = backbone.weights
    return {
        "data": source.name,
        "split": source.split,
        "sample": settings.sample.record(),
        "backbone": backbone.name,
        "weights": {
            "label": weights.label,
            "file": weights.file,
            "sha256": weights.sha256,
            "file_sha256": weights.file_sha256,
            "key": weights.key,
        },
        "layer": backbone.layer,
        "pool": backbone.pool,
        "input_size": backbone.input_size,
        "preprocessing": {
            **backbone.preprocessing.identity(),
            "origin": backbone.preprocessing.origin,
        },
        "feature_shape": list(backbone.feature_shape),
        "n_features": backbone.n_features,
        "precision": engine.precision,
        "store_dtype": settings.store_dtype,
        "engine": engine.describe(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _packages(backbone, engine)},
        },
        "request": dict(settings.request),
        "splits": dict(settings.splits),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }

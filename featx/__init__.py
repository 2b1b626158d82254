"""Transfer learning on frozen features: extract once, cache, compare honestly.

Importing featx loads neither torch nor scikit-learn; each name brings what it
needs when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.backbones import available_backbones, open_backbone
    from featx.catalog import load
    from featx.concat import concat_caches
    from featx.errors import FeatxError
    from featx.evaluate.table import results
    from featx.experiment import fit
    from featx.extractor import FeatureExtractor
    from featx.fewshot import draw_subset
    from featx.heads.classifier import Classifier
    from featx.own_features import write_cache
    from featx.predict import load_model
    from featx.sources import open_data
    from featx.store import Cache

__version__ = "0.1.0"

_HOME = {
    "Cache": "featx.store",
    "Classifier": "featx.heads.classifier",
    "FeatureExtractor": "featx.extractor",
    "FeatxError": "featx.errors",
    "available_backbones": "featx.backbones",
    "concat_caches": "featx.concat",
    "draw_subset": "featx.fewshot",
    "fit": "featx.experiment",
    "load": "featx.catalog",
    "load_model": "featx.predict",
    "open_backbone": "featx.backbones",
    "open_data": "featx.sources",
    "results": "featx.evaluate.table",
    "write_cache": "featx.own_features",
}

__all__ = [
    "Cache",
    "Classifier",
    "FeatureExtractor",
    "FeatxError",
    "__version__",
    "available_backbones",
    "concat_caches",
    "draw_subset",
    "fit",
    "load",
    "load_model",
    "open_backbone",
    "open_data",
    "results",
    "write_cache",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    # Rooms, as featx.evaluate and featx.plot, without an import of their own.
    if not name.startswith("_") and importlib.util.find_spec(f"featx.{name}"):
        return importlib.import_module(f"featx.{name}")
    raise AttributeError(f"module 'featx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

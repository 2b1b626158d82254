"""`FeatureExtractor`: a frozen network as a scikit-learn transformer."""

from __future__ import annotations

from featx.extractor.estimator import FeatureExtractor

__all__ = ["FeatureExtractor"]

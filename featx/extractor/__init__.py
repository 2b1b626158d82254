"""`FeatureExtractor`: a frozen network as a scikit-learn transformer.

In: images as scikit-learn passes them (paths, arrays, PIL images). Out: an array of features.
The way: estimator, open_networks (kept open in the process), rows (computed by the engine, or
found on the disk). The room must not know labels, splits, heads or results.
"""

from __future__ import annotations

from featx.extractor.estimator import FeatureExtractor

__all__ = ["FeatureExtractor"]

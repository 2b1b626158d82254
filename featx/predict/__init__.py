"""Saved models: written by ``featx fit --save-models``, applied to features and new images."""

from __future__ import annotations

from featx.predict.folder import ModelsFolder
from featx.predict.images import open_images
from featx.predict.model import SavedModel, load_model
from featx.predict.network import Network, open_network
from featx.predict.run import DONE, Prediction, iter_predictions

__all__ = [
    "DONE",
    "ModelsFolder",
    "Network",
    "Prediction",
    "SavedModel",
    "iter_predictions",
    "load_model",
    "open_images",
    "open_network",
]

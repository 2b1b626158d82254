"""Saved models: fitted heads in files, and what they predict for new features and new images.

In: a fit with its cache (to write a file), or a file and images. Out: a `SavedModel`, and a
`Prediction` for each image. The way: model (the file, and what users call), network (the backbone,
opened as it was), predictions (images, classes, table), folder (models beside results). The room
must not know how heads are fitted, nor commands.
"""

from __future__ import annotations

from featx.predict.folder import ModelsFolder
from featx.predict.model import SavedModel, load_model
from featx.predict.network import Network, open_network
from featx.predict.predictions import DONE, Prediction, iter_predictions, open_images

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

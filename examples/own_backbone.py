"""A network and a head of one's own, named on the command line.

cd examples
featx extract --backbone own_backbone:small_network --data digits --cache-per-class 20
featx fit --clf own_backbone:NearestMean --per-class 5
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def small_network() -> tuple[nn.Module, dict]:
    """Return a network with its weights, and the preprocessing that they were trained with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # in place of weights that you would load here
        network = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
    size = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear"}
    return network.eval(), {"mean": MEAN, "std": STD, **size}


class NearestMean(ClassifierMixin, BaseEstimator):
    """The class whose mean is nearest: any scikit-learn classifier is a head."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.means_ = np.stack([X[y == label].mean(axis=0) for label in self.classes_])
        return self

    def decision_function(self, X):
        return -np.linalg.norm(X[:, None] - self.means_, axis=2)

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]

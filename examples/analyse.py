"""Look into cached features: how far apart are the classes?

Run after  featx demo  (or any extraction):

    python examples/analyse.py efficientnet_lite0 digits
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

import featx

backbone, data = sys.argv[1:3]
train = featx.load(backbone, data=data, split="train")
test = featx.load(backbone, data=data, split="test")
print(train)
print("made with", train.meta["weights"]["label"], "from layer", train.meta["layer"])

X, y = train.sample(per_class=50, seed=0)
X_test = test.X[:]
means = np.stack([X[y == label].mean(axis=0) for label in range(len(train.class_names))])
distances = np.linalg.norm(means[:, None] - means[None], axis=2)
np.fill_diagonal(distances, np.inf)
first, second = np.unravel_index(distances.argmin(), distances.shape)
print("closest classes:", train.class_names[first], "and", train.class_names[second])

accuracy = KNeighborsClassifier(5).fit(X, y).score(X_test, test.y)
print(f"5 nearest neighbours, 50 images per class: {accuracy:.3f} of the test split")

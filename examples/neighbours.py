"""Nearest neighbours of an image, and labels that are likely wrong, with scikit-learn on a cache.

python examples/neighbours.py cache/digits-train-efficientnet_lite0.h5

featx explore FILE  makes a page of the same kind.
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

import featx

cache = featx.Cache.open(sys.argv[1])
X, y, names = cache.X[:], cache.y, np.array(cache.class_names)
centred = X - X.mean(axis=0)  # an offset that all share makes no two alike

search = NearestNeighbors(n_neighbors=5, metric="cosine").fit(centred)
distances, neighbours = search.kneighbors()
print(f"{cache.paths[0]} ({names[y[0]]}); its neighbours:")
for row, distance in zip(neighbours[0], distances[0], strict=True):
    print(f"  {cache.paths[row]} ({names[y[row]]}), cosine {1 - distance:.2f}")

others = cross_val_predict(featx.Classifier("ncm"), centred, y, cv=4)  # each by a head without it
suspects = np.flatnonzero((others != y) & ((y[neighbours] == others[:, None]).sum(axis=1) >= 3))
print(f"{len(suspects)} labels that neighbours and prediction contradict")
for row in suspects[:10]:
    print(f"  {cache.paths[row]}: label {names[y[row]]}, they say {names[others[row]]}")

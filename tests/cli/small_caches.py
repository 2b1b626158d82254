"""Cache files of real form with few rows of made-up features."""

from __future__ import annotations

import hashlib

import numpy as np

from featx.store import CacheSpec, CacheWriter

CIFAR = ("automobile", "frog", "ship")
STL = ("car", "monkey", "ship")
D = 60


def features(labels, names, seed):
    """Points around a centre for each meaning of a name."""
    rng = np.random.default_rng(seed)
    meanings = ("car", "frog", "ship", "monkey")
    centres = np.random.default_rng(99).normal(size=(4, D))
    at = [meanings.index({"automobile": "car"}.get(name, name)) for name in names]
    X = centres[np.array(at)[labels]] + 0.7 * rng.normal(size=(len(labels), D))
    return np.maximum(0, X).astype(np.float16)


def write(folder, data, split, names, n, seed, **changes):
    labels = changes.pop("labels", np.arange(n) % len(names))
    X = features(labels, names, seed) if "X" not in changes else changes.pop("X")
    digests = [hashlib.sha256(f"{data} {split} {i}".encode()).digest() for i in range(n)]
    for row, key in changes.pop("files", {}).items():
        digests[row] = hashlib.sha256(key.encode()).digest()
    size = changes.get("input_size", 32)
    meta = {
        **{"data": data, "split": split, "backbone": "vgg16", "layer": "features"},
        **{"pool": "none", "input_size": size, "precision": "fp32", "sample": None},
        "identity": {
            "source": {"content": f"{data} {split}"},
            "weights_sha256": "w",
            "input_size": size,
        },
        **changes,
    }
    spec = CacheSpec(
        identity=meta["identity"],
        meta={k: v for k, v in meta.items() if k != "identity"},
        labels=labels,
        class_names=list(names),
        paths=[f"{split}/{names[i % len(names)]}/{i:04}.png" for i in range(n)],
        n_features=X.shape[1],
        dtype="float16",
        image_digests=np.frombuffer(b"".join(digests), np.uint8).reshape(n, 32),
    )
    path = folder / f"{data}-{split}-{size}-{X.shape[1]}.h5"
    with CacheWriter.open(path, spec) as writer:
        writer.write(0, X.astype(np.float32))
        writer.finish()
    return X

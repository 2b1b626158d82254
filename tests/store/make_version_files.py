"""Makes the files of tests/store/data, which every later featx must read.

usage: make_version_files.py

Run once for each encoding version, by the featx that introduced it; existing
files are never made again. What is in them stands in test_store_versions.py.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from featx.store import CacheSpec, CacheWriter
from featx.store.layout import ENCODING_VERSION

FOLDER = Path(__file__).with_name("data")
NAMES = ["plain.png", "Größe 大 😀.jpg", os.fsdecode(b"not-\xff-utf8.png"), "line\nbreak.png", ""]


def main() -> None:
    for dtype in ("float16", "float32"):
        spec = CacheSpec(
            identity={"backbone": "vgg16", "source": {"content": "abc"}, "scale": 0.5, "é": None},
            meta={"split": "train", "note": "naïve"},
            labels=np.array([0, 1, -1, 1, 0]),
            class_names=["cat", "élan \udcff"],
            paths=NAMES,
            n_features=410,  # 4,100 bytes: HDF5 aligns everything else too if features are fewer
            dtype=dtype,
            image_digests=np.array(
                [list(hashlib.sha256(f"image {i}".encode()).digest()) for i in range(5)], "u1"
            ),
        )
        rows = np.array([[i - j / 8 for j in range(410)] for i in range(5)], np.float32)
        rows[:, 1] = 1 / 3
        target = FOLDER / f"v{ENCODING_VERSION}-{dtype}.h5"
        if target.exists():
            print(f"{target} stays as it is")
            continue
        with CacheWriter.open(target, spec) as writer:
            writer.write(0, rows, {3: "truncated: 12 bytes missing: 12 €"})
            writer.finish()


if __name__ == "__main__":
    main()

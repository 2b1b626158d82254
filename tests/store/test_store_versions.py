"""Files of every version of the format that ever was are read for ever.

`make_version_files.py` made them. A test that fails here is never mended by a new
file: somebody has hours of work in the old ones.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import h5py
import make_version_files
import numpy as np
import pytest
from make_version_files import FOLDER

from featx.store import Cache, CacheWriter, read_summary, verify_file
from featx.store.layout import ENCODING_VERSION
from featx.store.spec import CacheSpec

IDENTITY = {"backbone": "vgg16", "source": {"content": "abc"}, "scale": 0.5, "é": None}
FINGERPRINT = "0e46b7ad1f281586bc764e9f5dbd46fc29cfe5285ef3f612eac57ce616c7e8fe"
THIRD = {"float16": 0.333251953125, "float32": 0.3333333432674408}


def test_each_version_is_here() -> None:
    names = sorted(path.name for path in FOLDER.iterdir())
    packed = [f"v1-float16-{codec}.featx.h5" for codec in ("gzip", "zstd")]
    assert names == [*packed, "v1-float16.h5", "v1-float32.h5"]
    assert f"v{ENCODING_VERSION}-float16.h5" in names, "make the files of the new version"


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("v1-float16.h5", "c213524de3045566be00dd3df20945b511dac9c5683444afabd0b46108d7c60b"),
        ("v1-float32.h5", "f79328db05007ab6460b79527429da03334fda3cb588387a2429831d00be059e"),
    ],
)
def test_version_1(tmp_path: Path, name: str, sha256: str) -> None:
    content = (FOLDER / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256, "the file itself was changed"
    (tmp_path / name).write_bytes(content)
    assert verify_file(tmp_path / name) == []
    dtype = name.removeprefix("v1-").removesuffix(".h5")
    with Cache.open(tmp_path / name) as cache:
        assert cache.X.shape == (5, 410)
        assert cache.X.stored_dtype == np.dtype(dtype)
        assert cache.X[4][:4].tolist() == [4, THIRD[dtype], 3.75, 3.625]
        assert cache.X[0][-2:].tolist() == [-51, -51.125]
        assert np.isnan(cache.X[3]).all()
        assert cache.labels.tolist() == [0, 1, -1, 1, 0]
        assert cache.status.tolist() == [1, 1, 1, 2, 1]
        assert cache.errors == {3: "truncated: 12 bytes missing: 12 €"}
        assert cache.class_names == ["cat", "élan \udcff"]
        assert cache.paths == [
            "plain.png",
            "Größe 大 😀.jpg",
            os.fsdecode(b"not-\xff-utf8.png"),
            "line\nbreak.png",
            "",
        ]
        assert cache.image_digests[0].tobytes().hex() == (
            "cc88f6acf10ba9e488201201e9067fd63fc23aeb64fcf686578e6d900fceeef6"
        )
        assert cache.fingerprint == FINGERPRINT
        assert cache.meta == {"identity": IDENTITY, "split": "train", "note": "naïve"}
    assert read_summary(tmp_path / name)["n_failed"] == 1


@pytest.mark.skipif(h5py.version.hdf5_version_tuple[0] != 2, reason="made by HDF5 2")
def test_files_are_written_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_version_files, "FOLDER", tmp_path)
    make_version_files.main()
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_of_version_1_is_still_complete_and_reusable(tmp_path: Path) -> None:
    target = tmp_path / "a.h5"
    target.write_bytes((FOLDER / "v1-float16.h5").read_bytes())
    with Cache.open(target) as cache:
        values = {
            "identity": cache.meta["identity"],
            "meta": {},
            "labels": cache.labels,
            "class_names": cache.class_names,
            "n_features": 410,
            "dtype": "float16",
            "image_digests": cache.image_digests,
        }
        spec = CacheSpec(paths=cache.paths, **values)
    with CacheWriter.open(target, spec) as writer:
        assert writer.is_complete
    spec = CacheSpec(paths=["a", "b", "c", "d", "e"], **values)
    with CacheWriter.open(target, spec, reuse=target) as writer:
        assert writer.missing().tolist() == [False, False, False, True, False]

"""What docs/cache-format.md says is enough to read the files: no featx in the readers here."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_helpers import fill, make_rows, make_spec, stored

from featx.fingerprint import canonical_json
from featx.store.pack import pack_cache

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cache-format.md"
N_FEATURES, FAILED = 3_000, 5


# 174 or 87 rows a block, so that the last is short; or one short block.
@pytest.fixture(params=[("float16", 400), ("float32", 400), ("float16", 9)], ids=str)
def spec(request):
    dtype, n_rows = request.param
    return make_spec(n_rows, N_FEATURES, dtype)


@pytest.fixture
def expected(spec):
    rows = stored(spec, make_rows(spec))
    rows[FAILED] = np.nan
    return rows


@pytest.fixture(params=["gzip", "zstd"])
def archive(request, spec, tmp_path):
    if request.param == "zstd":
        pytest.importorskip("hdf5plugin", reason="the extra pack is not installed")
    fill(tmp_path / "vgg16.h5", spec, make_rows(spec), failed={FAILED: "truncated"})
    return pack_cache(tmp_path / "vgg16.h5", codec=request.param).path


def test_the_examples_run(archive, expected, monkeypatch):
    monkeypatch.chdir(archive.parent)
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        names = {}
        exec(compile(example, str(DOCUMENT), "exec"), names)
        assert np.array_equal(names["features"], expected, equal_nan=True)
        assert names["labels"].tolist() == [i % 3 for i in range(len(expected))]
        assert names["meta"]["backbone"] == "vgg16"
    assert names["codec"] in ("gzip", "zstd")


def test_the_user_block_of_an_archive(archive):
    content = archive.read_bytes()
    text, zeros = content[:4096].split(b"\0", 1)
    lines = text.decode("ascii").split("\n")
    seal = hashlib.sha256(content[4096:]).hexdigest()
    assert lines[:3] == ["featx-pack 1", f"file_bytes {len(content)}", f"seal {seal}"]
    before = text[: text.index(b"check ")]
    assert lines[3:] == [f"check {hashlib.sha256(before).hexdigest()}", ""]
    assert not zeros.strip(b"\0")


def test_the_attributes_of_an_archive(archive):
    with h5py.File(archive) as file, h5py.File(archive.with_name("vgg16.h5")) as cache:
        assert file.userblock_size == 4096
        found, there = dict(file.attrs), dict(cache.attrs)
        assert found.pop("encoding-type") == b"featx-pack"
        assert found.pop("encoding-version") == b"1"
        assert found.pop("codec") in (b"gzip", b"zstd")
        assert found == {name: there[name] for name in ("fingerprint", "block_rows", "meta")}
        for name in found:
            assert file.attrs.get_id(name).get_type() == cache.attrs.get_id(name).get_type()
        identity = canonical_json(json.loads(found["meta"])["identity"])
        digest = hashlib.sha256(identity.encode() if isinstance(identity, str) else identity)
        assert digest.hexdigest().encode() == found["fingerprint"]


def test_the_small_datasets_of_an_archive_are_those_of_the_cache(archive):
    with h5py.File(archive) as file, h5py.File(archive.with_name("vgg16.h5")) as cache:
        assert sorted(file) == sorted(cache)
        for name in set(cache) - {"features"}:
            assert file[name].id.get_type() == cache[name].id.get_type()
            assert file[name].shape == cache[name].shape
            assert file[name][()].tobytes() == cache[name][()].tobytes()
            assert file[name].chunks is None
            assert not file[name].id.get_create_plist().get_nfilters()


def unshuffled(data, n_values, dtype):
    planes = np.frombuffer(data, "u1").reshape(dtype.itemsize, n_values)
    return planes.T.copy().view(dtype).reshape(-1)


def test_the_chunks_of_an_archive(archive, expected):
    with h5py.File(archive) as file:
        features, digests = file["features"], file["digests"][:]
        chunk_rows = min(int(file.attrs["block_rows"]), len(expected))
        codec = file.attrs["codec"].decode()
        plan = features.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        assert filters == [2, {"gzip": 1, "zstd": 32015}[codec]]
        assert features.chunks == (chunk_rows, N_FEATURES)
        assert features.id.get_num_chunks() == len(digests) == -(-len(expected) // chunk_rows)
        n_values, dtype = chunk_rows * N_FEATURES, features.dtype
        for block, digest in enumerate(digests):
            start = block * chunk_rows
            mask, data = features.id.read_direct_chunk((start, 0))
            assert mask == 0
            rows = expected[start : start + chunk_rows]
            assert hashlib.sha256(rows.tobytes()).digest() == digest.tobytes()
            if codec == "gzip":
                values = unshuffled(zlib.decompress(data), n_values, dtype)
                assert values[: rows.size].tobytes() == rows.tobytes()
                assert not values[rows.size :].any()
            else:
                assert data[:4] == bytes.fromhex("28b52ffd")
                assert data[4] & 0xE0  # a size of the content, of one byte or more
                assert features[start : start + chunk_rows].tobytes() == rows.tobytes()

"""What the tests of the store share: small caches with values that name their row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.sources.base import content_of
from featx.store import CacheSpec, CacheWriter
from featx.store.header import HeaderBlock, hash_file
from featx.store.journal import journal_path, read_journal
from featx.store.shards import Manifest, begin_place, list_digests

SEED = int(os.environ.get("FEATX_TEST_SEED", "0"))


def digests_of(keys: Iterable[object]) -> np.ndarray:
    """Digests of images, each named by a key."""
    found = b"".join(hashlib.sha256(f"image {key}".encode()).digest() for key in keys)
    return np.frombuffer(found, "u1").reshape(-1, 32)


def make_spec(
    n_rows: int = 40, n_features: int = 7, dtype: str = "float16", **more: Any
) -> CacheSpec:
    values: dict[str, Any] = {
        "identity": {"backbone": "vgg16", "point": {"pool": "avg"}, "n": n_rows},
        "meta": {"backbone": "vgg16", "split": "train"},
        "labels": np.arange(n_rows) % 3,
        "class_names": ["cat", "dog", "élan"],
        "paths": [f"images/{i:05d}.png" for i in range(n_rows)],
        "n_features": n_features,
        "dtype": dtype,
        "image_digests": digests_of(range(n_rows)),
    }
    return CacheSpec(**{**values, **more})


def make_rows(spec: CacheSpec, seed: int = 7) -> np.ndarray:
    """Every value is its own; the first column is the row's number."""
    rows = np.random.default_rng(seed).normal(size=(spec.n_rows, spec.n_features))
    rows[:, 0] = np.arange(spec.n_rows) % 2048
    return rows.astype(np.float32)


def stored(spec: CacheSpec, rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.dtype(spec.dtype).newbyteorder("<"))


def fill(
    target: Path,
    spec: CacheSpec,
    rows: np.ndarray,
    *,
    batch: int = 8,
    failed: dict[int, str] | None = None,
    commit_each: bool = True,
    **options: Any,
) -> CacheWriter:
    """Write whatever is missing, and finish."""
    with CacheWriter.open(target, spec, **options) as writer:
        write_missing(writer, rows, batch=batch, failed=failed, commit_each=commit_each)
        writer.finish()
    return writer


def write_missing(
    writer: CacheWriter,
    rows: np.ndarray,
    *,
    batch: int = 8,
    failed: dict[int, str] | None = None,
    commit_each: bool = True,
    n_batches: int | None = None,
) -> None:
    failed = failed or {}
    missing = writer.missing()
    for start in list(range(0, len(rows), batch))[:n_batches]:
        for low, high in runs(missing[start : start + batch], start):
            here = {row: why for row, why in failed.items() if low <= row < high}
            writer.write(low, rows[low:high], here)
        if commit_each:
            writer.commit()


def runs(mask: np.ndarray, start: int) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
    return [(start + int(a), start + int(b)) for a, b in edges.reshape(-1, 2)]


def make_place(place: Path, spec: CacheSpec, rows: np.ndarray, shard_rows: int) -> Manifest:
    """Write rows as shards, as processes that never met would; row 5 of the whole failed."""
    manifest = Manifest(
        identity=spec.identity,
        meta=spec.meta,
        class_names=spec.class_names,
        n_rows=spec.n_rows,
        n_features=spec.n_features,
        dtype=spec.dtype,
        shard_rows=shard_rows,
        listed=list_digests(spec.paths, spec.labels, shard_rows),
    )
    manifest = begin_place(place, manifest, grows=False, overwrite=False, tell=print)
    for number in range(manifest.n_shards):
        fill_shard(place, manifest, number, spec, rows)
    return manifest


def fill_shard(
    place: Path, manifest: Manifest, number: int, spec: CacheSpec, rows: np.ndarray, **more: Any
) -> None:
    start, stop = manifest.rows(number)
    images = {
        "labels": spec.labels[start:stop],
        "paths": spec.paths[start:stop],
        "image_digests": spec.image_digests[start:stop],
        "identity": {**manifest.identity, "source": {"content": f"shard {number}"}},
    }
    failed = {5 - start: "truncated"} if start <= 5 < stop else {}
    part = replace(spec, **(images | more))
    fill(place / manifest.file_name(number), part, rows[start:stop], failed=failed)


def whole_of(spec: CacheSpec) -> CacheSpec:
    """What one run over all rows would say."""
    content = content_of(spec.image_digests, spec.labels, spec.class_names)
    source = {"content": content, "n_images": spec.n_rows, "class_names": list(spec.class_names)}
    return replace(spec, identity={**spec.identity, "source": source})


def check_partial(partial: Path, expected: np.ndarray) -> int:
    """Every journalled row that did not fail is on the disk; return how many rows are."""
    header, ranges, _ = read_journal(journal_path(partial))
    content = partial.read_bytes()
    for item in ranges:
        first = header.features_offset + item.start * header.row_bytes
        last = header.features_offset + item.stop * header.row_bytes
        assert len(content) >= last
        found = np.frombuffer(content[first:last], expected.dtype).reshape(-1, header.n_features)
        for row in range(item.start, item.stop):
            if row in item.failed:
                assert np.isnan(found[row - item.start]).all()
            else:
                np.testing.assert_array_equal(found[row - item.start], expected[row])
    return sum(item.stop - item.start for item in ranges)


def header_of(path: Path) -> HeaderBlock:
    with path.open("rb") as stream:
        return HeaderBlock.parse(stream.read(4096))


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as stream:
        byte = os.pread(stream.fileno(), 1, bit // 8)[0]
        os.pwrite(stream.fileno(), bytes([byte ^ (1 << bit % 8)]), bit // 8)


def reseal(path: Path, features_offset: int, features_bytes: int) -> None:
    """Give a file a valid seal, as a stranger could."""
    with path.open("r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        seal = HeaderBlock(size, features_offset, features_bytes, "0" * 64)
        digest = hash_file(stream.fileno(), seal)
        stream.write(HeaderBlock(size, features_offset, features_bytes, digest).render())

"""Rows of an older cache are taken over where they belong, and nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import (
    SEED,
    digests_of,
    fill,
    flip,
    header_of,
    make_spec,
    write_missing,
)

from featx.errors import CacheError, CacheMismatchError
from featx.store import Cache, CacheSpec, CacheWriter, verify_file
from featx.store.file_layout import lay_out

WIDE = 20_000  # 13 rows a block of float32


def row_of(key: int, n_features: int) -> np.ndarray:
    """The features of an image depend on nothing but the image."""
    return np.random.default_rng(key).normal(size=n_features).astype(np.float32)


def spec_of(
    keys: Sequence[int], n_features: int = 7, dtype: str = "float16", **more: Any
) -> tuple[CacheSpec, np.ndarray]:
    """A cache of the images named by `keys`, and its rows."""
    values: dict[str, Any] = {
        "identity": {"backbone": "vgg16", "source": {"images": [int(key) for key in keys]}},
        "labels": np.asarray(keys) % 3,
        "paths": [f"{key}.png" for key in keys],
        "image_digests": digests_of(keys),
    }
    spec = make_spec(len(keys), n_features, dtype, **{**values, **more})
    return spec, np.array([row_of(key, n_features) for key in keys])


def whole(tmp_path: Path, spec: CacheSpec, rows: np.ndarray, **options: Any) -> bytes:
    fill(tmp_path / "whole" / "a.h5", spec, rows, **options)
    return (tmp_path / "whole" / "a.h5").read_bytes()


def reuse(
    target: Path, spec: CacheSpec, rows: np.ndarray, old: Path | None = None, **options: Any
) -> tuple[list[int], list[str]]:
    """Write with reuse; give the rows that had to be computed, and the notices.

    Reused rows are handed over as rubbish: they must never be asked for.
    """
    with CacheWriter.open(target, spec, reuse=old or target) as writer:
        missing = writer.missing()
        write_missing(writer, np.where(missing[:, None], rows, -1), **options)
        writer.finish()
    assert verify_file(target) == []
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    return np.flatnonzero(missing).tolist(), writer.notices


OLD = list(range(40))
CHANGES: dict[str, tuple[list[int], dict[str, Any], list[int]]] = {
    "appended": ([*OLD, 50, 51], {}, [40, 41]),
    "inserted": ([*OLD[:3], 50, *OLD[3:]], {}, [3]),
    "removed": ([*OLD[:7], *OLD[9:]], {}, []),
    "reversed": (OLD[::-1], {}, []),
    "replaced": ([*OLD[:7], 77, *OLD[8:]], {"paths": [f"{key}.png" for key in OLD]}, [7]),
    "renamed": (OLD, {"paths": [f"{'new' * 9}{key}.png" for key in OLD]}, []),
    "relabelled": (OLD, {"labels": np.full(40, -1), "class_names": ["other"]}, []),
    "twice": ([*OLD, 3, 3, *OLD], {}, []),
    "all at once": ([90, *OLD[:20:-1], 91, 4, 4], {"paths": ["x"] * 23}, [0, 20]),
    "others": (list(range(60, 70)), {}, list(range(10))),
}


@pytest.mark.parametrize("is_target", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_changed_images(tmp_path: Path, name: str, is_target: bool) -> None:
    keys, more, computed = CHANGES[name]
    spec, rows = spec_of(OLD)
    old = tmp_path / ("new" if is_target else "old") / "a.h5"
    fill(old, spec, rows)
    before = old.read_bytes()
    spec, rows = spec_of(keys, **more)
    target = tmp_path / "new" / "a.h5"
    missing, notices = reuse(target, spec, rows, old)
    assert missing == computed
    assert notices == [f"reused: {len(keys) - len(computed)} of {len(keys)} rows from {old}"]
    assert target.read_bytes() == whole(tmp_path, spec, rows)
    assert is_target or old.read_bytes() == before


def test_many_blocks_in_any_order(tmp_path: Path) -> None:
    spec, rows = spec_of(range(70), WIDE, "float32")
    fill(tmp_path / "a.h5", spec, rows, failed={5: "bad"})
    order = np.random.default_rng(SEED).permutation(80).tolist()
    spec, rows = spec_of(order, WIDE, "float32")
    fill(tmp_path / "b.h5", spec, rows)
    with CacheWriter.open(tmp_path / "a.h5", spec, reuse=tmp_path / "a.h5") as writer:
        assert sorted(order[i] for i in np.flatnonzero(writer.missing())) == [5, *range(70, 80)]
        write_missing(writer, rows)
        writer.finish()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_failed_rows_are_computed_again(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    target = tmp_path / "a" / "a.h5"
    fill(target, spec, rows, failed={3: "bad", 9: "worse"})
    with CacheWriter.open(target, spec) as writer:
        assert writer.is_complete
    spec, rows = spec_of([*OLD, 50])
    assert reuse(tmp_path / "a" / "a.h5", spec, rows)[0] == [3, 9, 40]
    assert Cache.open(tmp_path / "a" / "a.h5").errors == {}


def test_the_same_place_goes_before_an_equal_image_elsewhere(tmp_path: Path) -> None:
    """A network need not give equal images equal features in each place of a batch."""
    spec, rows = spec_of([1, 1, 1, 2])
    rows[1], rows[2] = 11, 12
    fill(tmp_path / "a" / "a.h5", spec, rows)
    spec, _ = spec_of([1, 1, 1, 2], labels=np.zeros(4, int))
    assert reuse(tmp_path / "a" / "a.h5", spec, rows)[0] == []
    assert Cache.open(tmp_path / "a" / "a.h5").X[1:3][:, 0].tolist() == [11, 12]


def test_images_that_are_not_known_are_never_reused(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    fill(tmp_path / "a" / "a.h5", spec, rows)
    zeros = np.zeros((40, 32), "u1")
    spec, _ = spec_of(OLD, image_digests=zeros)
    missing, notices = reuse(tmp_path / "a" / "a.h5", spec, rows)
    assert missing == OLD
    assert "digests of the wanted images are not known" in notices[0]
    some = digests_of(OLD).copy()
    some[:30] = 0
    spec, _ = spec_of(OLD, image_digests=some)
    assert reuse(tmp_path / "a" / "a.h5", spec, rows)[0] == OLD  # nor from what is not known
    spec, _ = spec_of(OLD)
    assert reuse(tmp_path / "a" / "a.h5", spec, rows)[0] == OLD[:30]


def test_a_target_that_is_complete_and_intact_is_left_alone(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    target = tmp_path / "a.h5"
    fill(target, spec, rows)
    before = target.stat()
    with CacheWriter.open(target, spec, reuse=target) as writer:
        assert writer.is_complete
        assert not writer.missing().any()
    after = target.stat()  # the time of the last read may be another
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [target]


# Damage and repair.


def test_repair_computes_only_the_rows_of_damaged_blocks(tmp_path: Path) -> None:
    spec, rows = spec_of(range(70), WIDE, "float32")
    target = tmp_path / "a" / "a.h5"
    fill(target, spec, rows, failed={5: "bad"})
    pristine = target.read_bytes()
    seal = header_of(target)
    flip(target, 8 * (seal.features_offset + 20 * 4 * WIDE) + 3)
    flip(target, 8 * (seal.features_end - 1) + 7)
    assert [str(damage) for damage in verify_file(target)] == [
        "features rows 13-25: changed since they were written",
        "features rows 65-69: changed since they were written",
    ]
    missing, notices = reuse(target, spec, rows, failed={5: "bad"})
    assert missing == [5, *range(13, 26), *range(65, 70)]
    assert notices[0].startswith("reused: 51 of 70 rows")
    assert "not reused: 18 rows of" in notices[1]
    assert target.read_bytes() == pristine


def test_damage_outside_the_features_has_all_rows_computed_again(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    target = tmp_path / "a" / "a.h5"
    fill(target, spec, rows, failed={5: "bad"})
    pristine = target.read_bytes()
    text = [0, 14, 20, 300]  # of the first bytes: name, version, numbers, zeros behind
    arrays = list(lay_out(spec).offsets.values())[1:]
    meta = [pristine.index(spec.fingerprint.encode()), pristine.index(b'"identity":')]
    damaged = {at: bytearray(pristine) for at in (*text, 4100, *arrays, *meta, len(pristine) - 1)}
    for at, content in damaged.items():
        content[at] ^= 1
    damage = "damaged outside its features"
    cuts = [pristine[:n] for n in (4096, lay_out(spec).tail_offset, len(pristine) - 1)]
    for content in (*damaged.values(), *cuts, pristine + b"more"):
        target.write_bytes(content)
        missing, notices = reuse(target, spec, rows, failed={5: "bad"})
        assert missing == OLD
        assert notices == [f"not reused: {target} is {damage}: all rows are computed"]
        assert target.read_bytes() == pristine


# What may not be reused.


def test_another_identity_is_refused_with_the_differences(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    target = tmp_path / "a.h5"
    fill(target, spec, rows)
    pristine = target.read_bytes()
    other, _ = spec_of(OLD, identity={"backbone": "vgg19", "source": {"images": []}})
    for overwrite in (False, True):
        with pytest.raises(CacheMismatchError, match="made with other settings") as caught:
            CacheWriter.open(target, other, reuse=target, overwrite=overwrite)
        assert caught.value.differences == ("backbone: asked for 'vgg19', the file has 'vgg16'",)
    for more, line in (
        ({"n_features": 8}, "n_features: asked for 8, the file has 7"),
        ({"dtype": "float32"}, "dtype: asked for 'float32', the file has 'float16'"),
    ):
        with pytest.raises(CacheMismatchError) as caught:
            CacheWriter.open(target, spec_of(OLD, **more)[0], reuse=target)
        assert caught.value.differences == (line,)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == pristine


def test_what_is_no_cache_is_not_reused_or_replaced(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    fill(tmp_path / "b.h5", spec, rows)
    content = (tmp_path / "b.h5").read_bytes()
    newer = content.replace(b"featx-cache 1\n", b"featx-cache 2\n", 1)
    text = newer[: newer.index(b"check ")]
    check = hashlib.sha256(text).hexdigest().encode()
    newer = newer.replace(newer[len(text) + 6 : len(text) + 70], check)
    for old, reason in (
        (b"my thesis", "not a featx cache"),
        (b"", "empty"),
        (bytes(4096) + content[4096:], "not a featx cache"),  # no trace of the first bytes
        (b"featx-cache 2\nsomething else", "newer featx"),
        (newer, "newer featx"),
        (b"featx-partial 1\n".ljust(4096, b"\0") + content[4096:], "incomplete"),
    ):
        (tmp_path / "a.h5").write_bytes(old)
        with pytest.raises(CacheError, match=reason):
            CacheWriter.open(tmp_path / "a.h5", spec, reuse=tmp_path / "a.h5")
        assert (tmp_path / "a.h5").read_bytes() == old
    (tmp_path / "a.h5").unlink()
    for old, reason in (("none.h5", "no cache at"), (".", "not a file")):
        with pytest.raises(CacheError, match=reason):
            CacheWriter.open(tmp_path / "a.h5", spec, reuse=tmp_path / old)
    assert [p.name for p in tmp_path.iterdir()] == ["b.h5"]


def test_another_target_is_replaced_only_if_asked_to(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    fill(tmp_path / "old.h5", spec, rows)
    other, _ = spec_of(OLD, identity={"backbone": "resnet50"})
    fill(tmp_path / "a.h5", other, rows)
    with pytest.raises(CacheMismatchError, match="--overwrite"):
        CacheWriter.open(tmp_path / "a.h5", spec, reuse=tmp_path / "old.h5")
    with CacheWriter.open(
        tmp_path / "a.h5", spec, reuse=tmp_path / "old.h5", overwrite=True
    ) as writer:
        assert not writer.missing().any()
        writer.finish()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "old.h5").read_bytes()


def test_a_partial_file_is_resumed_and_the_rest_reused(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    target = tmp_path / "a.h5"
    fill(target, spec, rows)
    spec, rows = spec_of([*OLD, *range(50, 60)])
    with CacheWriter.open(target, spec, overwrite=True) as writer:
        writer.write(30, rows[30:45])
    with CacheWriter.open(target, spec, reuse=target) as writer:
        assert np.flatnonzero(writer.missing()).tolist() == [45, 46, 47, 48, 49]
        assert "15 of 50 rows are there" in writer.notices[0]
        assert writer.notices[1] == f"reused: 30 of 50 rows from {target}"
    with CacheWriter.open(target, spec, reuse=target) as writer:
        assert writer.missing().sum() == 5
        write_missing(writer, rows)
        writer.finish()
    assert target.read_bytes() == whole(tmp_path, spec, rows)


# Changed images are named.


def test_changed_images_are_named(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    fill(tmp_path / "a.h5", spec, rows)
    digests = spec.image_digests.copy()
    digests[3:10] ^= 1
    paths = [f"{key}.png" for key in [*OLD[:38], 50, 51]]
    spec, _ = spec_of(OLD, image_digests=digests, paths=paths)
    with pytest.raises(CacheMismatchError) as caught:
        CacheWriter.open(tmp_path / "a.h5", spec)
    assert caught.value.differences[1:] == (
        "7 images changed: 3.png, 4.png, 5.png, 6.png, 7.png, ...",
        "2 images added: 50.png, 51.png",
        "2 images removed: 38.png, 39.png",
    )
    spec, _ = spec_of([*OLD, 50])
    with pytest.raises(CacheMismatchError, match="  1 image added: 50.png$"):
        CacheWriter.open(tmp_path / "a.h5", spec)


def test_another_order_is_no_change_of_images(tmp_path: Path) -> None:
    spec, rows = spec_of(OLD)
    fill(tmp_path / "a.h5", spec, rows)
    spec, _ = spec_of(OLD[::-1], identity=spec.identity)
    with pytest.raises(CacheMismatchError, match="images: the same ones in another order"):
        CacheWriter.open(tmp_path / "a.h5", spec)

"""What is there already is respected, and what cannot be stored is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_helpers import digests_of, fill, make_rows, make_spec

from featx.errors import CacheError, CacheMismatchError
from featx.store import Cache, CacheSpec, CacheWriter, find_partials, verify_file
from featx.store.existing import is_reusable


def test_a_finished_cache_is_left_alone(tmp_path: Path) -> None:
    spec = make_spec()
    target = tmp_path / "new" / "a.h5"
    fill(target, spec, make_rows(spec))
    before = target.stat()
    with CacheWriter.open(target, spec) as writer:
        assert writer.is_complete
        assert not writer.missing().any()
        writer.finish()
    after = target.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )


@pytest.mark.parametrize("is_there", [False, True])
def test_what_came_meanwhile_is_not_replaced(tmp_path: Path, is_there: bool) -> None:
    target, spec = tmp_path / "a.h5", make_spec()
    if is_there:
        fill(target, make_spec(identity={"backbone": "vgg19"}), make_rows(spec))
    with CacheWriter.open(target, spec, overwrite=is_there) as writer:
        writer.write(0, make_rows(spec))
        target.unlink(missing_ok=True)
        target.write_text("mine")
        with pytest.raises(CacheError, match="by another program meanwhile, and is not replaced"):
            writer.finish()
    assert target.read_text() == "mine"
    target.rename(tmp_path / "mine")
    with CacheWriter.open(target, spec) as writer:
        assert not writer.missing().any()
        writer.finish()
    assert not verify_file(target)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.h5", "mine"]


def test_a_partial_file_is_not_taken_up_through_a_link(tmp_path: Path) -> None:
    target, spec = tmp_path / "a.h5", make_spec()
    with CacheWriter.open(target, spec) as writer:
        writer.write(0, make_rows(spec)[:10])
    [partial] = find_partials(target)
    elsewhere = partial.rename(tmp_path / "elsewhere")
    partial.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    fill(target, spec, make_rows(spec))
    assert elsewhere.read_bytes() == before
    assert not verify_file(target)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"identity": {"backbone": "vgg19"}}, "backbone: asked for 'vgg19', the file has 'vgg16'"),
        ({"labels": np.zeros(40, int)}, "labels: 26 of 40"),
        ({"paths": ["x"] * 40}, "paths: 40 of 40 are others, the first at 0: asked for 'x'"),
        ({"class_names": ["a", "b", "c", "d"]}, "class_names: asked for 4, the file has 3"),
        ({"n_features": 8}, "features: asked for (40, 8) float16, the file has (40, 7) float16"),
    ],
)
def test_other_settings_are_named_and_nothing_replaced(tmp_path, change, line) -> None:
    fill(tmp_path / "a.h5", make_spec(), make_rows(make_spec()))
    before = (tmp_path / "a.h5").read_bytes()
    other = make_spec(**change)
    with pytest.raises(CacheMismatchError) as caught:
        CacheWriter.open(tmp_path / "a.h5", other)
    assert line in str(caught.value)
    assert "--overwrite" in str(caught.value)
    with CacheWriter.open(tmp_path / "a.h5", other, overwrite=True) as writer:
        writer.write(0, make_rows(other))
        assert (tmp_path / "a.h5").read_bytes() == before
        writer.finish()
    with Cache.open(tmp_path / "a.h5") as cache:
        assert cache.fingerprint == other.fingerprint
        assert cache.paths == list(other.paths)


def test_foreign_and_damaged_files_are_not_replaced(tmp_path: Path) -> None:
    spec = make_spec()
    for content, reason, may_overwrite in (
        (b"my thesis", "not a featx cache", False),
        (b"", "empty", False),
        (b"featx-cache 1\n rubbish", "damaged", True),
        (b"featx-cache 2\n", "newer featx", True),
    ):
        (tmp_path / "a.h5").write_bytes(content)
        with pytest.raises(CacheError, match=reason):
            CacheWriter.open(tmp_path / "a.h5", spec)
        if may_overwrite:
            with CacheWriter.open(tmp_path / "a.h5", spec, overwrite=True) as writer:
                assert writer.missing().all()
        else:
            with pytest.raises(CacheError, match="choose another name"):
                CacheWriter.open(tmp_path / "a.h5", spec, overwrite=True)
        assert (tmp_path / "a.h5").read_bytes() == content
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CacheError, match="an HDF5 file, but not a featx cache"):
        Cache.open(tmp_path / "b.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_the_same_images_in_another_order_can_be_taken_over(tmp_path: Path) -> None:
    def spec_of(content: str, **more: Any) -> CacheSpec:
        identity = {"backbone": "vgg16", "source": {"content": content, **more}}
        return make_spec(identity=identity)

    target, spec = tmp_path / "a.h5", spec_of("x", order=1)
    assert not is_reusable(target, spec, overwrite=True)  # nothing is there
    fill(target, spec, make_rows(spec))
    for other, expected in (
        (spec, False),  # it is the answer already
        (spec_of("x", order=2), True),
        (spec_of("y", order=1), False),
        (make_spec(), False),
        (make_spec(identity={"backbone": "vgg19", "source": {"content": "x"}}), False),
    ):
        for overwrite in (False, True):
            assert is_reusable(target, other, overwrite=overwrite) is expected
    fill(target, spec_of("x"), make_rows(spec), failed={3: "bad"}, overwrite=True)
    assert not is_reusable(target, spec_of("x"), overwrite=False)
    assert is_reusable(target, spec_of("x"), overwrite=True)  # the failed row is tried again


@pytest.mark.parametrize("is_edited", [False, True])
def test_rows_of_an_unfinished_run_are_taken(tmp_path: Path, is_edited: bool) -> None:
    """Its images were moved since, and one perhaps edited: then the unfinished file stays."""
    target, settings = tmp_path / "a.h5", {"identity": {"backbone": "vgg16"}}
    for one in (make_spec(**settings), make_spec(identity={"backbone": "vgg19"})):
        with CacheWriter.open(target, one) as writer:
            writer.write(0, make_rows(one)[:20], {4: "bad"})
    old, other = sorted(find_partials(target), key=lambda path: path.stat().st_mtime_ns)
    names = [*range(39, 0, -1), "edited" if is_edited else 0]
    with CacheWriter.open(target, make_spec(**settings, image_digests=digests_of(names))) as writer:
        writer.take_unfinished()
        found = np.flatnonzero(~writer.missing())
        assert found.tolist() == [row for row in range(20, 40 - is_edited) if row != 35]
    assert old.exists() is is_edited
    assert writer.n_reused == len(found)
    left_alone = [line for line in writer.notices if line.startswith("left alone: ")]
    assert [str(old) in line for line in left_alone].count(True) == is_edited
    assert [str(other) in line for line in left_alone].count(True) == 1


def test_partials_of_other_runs_are_left_alone(tmp_path: Path) -> None:
    spec, changed = make_spec(), digests_of(["changed", *range(1, 40)])
    others = ({"identity": {"b": 2}}, {"paths": ["p"] * 40}, {"image_digests": changed})
    for one in (make_spec(**other) for other in others):
        with CacheWriter.open(tmp_path / "a.h5", one) as writer:
            writer.write(0, make_rows(one)[:5])
    before = find_partials(tmp_path / "a.h5")
    writer = fill(tmp_path / "a.h5", spec, make_rows(spec))
    text = "\n".join(writer.notices)
    assert find_partials(tmp_path / "a.h5") == before
    assert len(before) == 3
    assert text.count("other settings") == 1
    assert text.count("other paths, labels, class names or images") == 2
    assert "delete it" in text


def test_starting_anew_drops_the_partial(tmp_path: Path) -> None:
    spec = make_spec()
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        writer.write(0, make_rows(spec)[:5])
    with CacheWriter.open(tmp_path / "a.h5", spec, resume=False) as writer:
        assert writer.missing().all()
        assert "starts anew" in writer.notices[0]
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_is_missing_is_no_finished_cache(tmp_path: Path) -> None:
    spec = make_spec()
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        writer.write(1, make_rows(spec)[1:])
        with pytest.raises(CacheError, match="1 of 40 rows are missing, the first is 0"):
            writer.finish()
        writer.write(0, make_rows(spec)[:1])
        writer.finish()
    assert verify_file(tmp_path / "a.h5") == []


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    spec = make_spec()
    rows = make_rows(spec)
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        writer.write(4, rows[4:8])
        for start, part, failed in (
            (6, rows[:3], None),
            (38, rows[:3], None),
            (-1, rows[:1], None),
            (10, rows[:2, :3], None),
            (10, rows[:2].astype(int), None),
            (10, rows[:2], {12: "x"}),
        ):
            with pytest.raises(ValueError, match="rows"):
                writer.write(start, part, failed)
        writer.write(10, rows[:0])
    with pytest.raises(CacheError, match="run ended"):
        writer.write(0, rows[:1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": np.zeros(3, int)}, "3 labels do not fit 40 paths"),
        ({"labels": np.full(40, 3)}, r"labels must lie in -1..2, not 3..3"),
        ({"labels": np.full(40, -2)}, "labels must lie"),
        ({"labels": np.zeros(40)}, "integers"),
        ({"dtype": "int8"}, "float16 or float32"),
        ({"n_features": 0}, "nothing to store"),
        ({"image_digests": np.zeros((39, 32), "u1")}, r"image_digests must be \(40, 32\) uint8"),
        ({"image_digests": np.zeros((40, 32))}, "uint8, not"),
    ],
)
def test_specs_that_make_no_cache(change, reason) -> None:
    with pytest.raises(CacheError, match=reason):
        make_spec(**change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"paths": ["a\0b"] * 40}, "cannot be stored"),
        ({"paths": ["\ud800"] * 40}, "cannot be stored"),
        ({"paths": ["\udcc3\udca9"] * 40}, "cannot be stored"),
        ({"meta": {"x": float("nan")}}, "JSON"),
        ({"identity": {"x": object()}}, "JSON"),
        ({"meta": {"x": "y" * 70_000}}, "60,000"),
    ],
)
def test_contents_that_cannot_be_stored(tmp_path, change, reason) -> None:
    with pytest.raises(CacheError, match=reason):
        CacheWriter.open(tmp_path / "a.h5", make_spec(**change))
    assert list(tmp_path.iterdir()) == []

"""What is packed comes back bit by bit, and nothing else passes for it."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import SEED, fill, make_rows, make_spec, write_missing
from store_seam import killed_at

from featx.catalog import load
from featx.errors import CacheError, MissingExtraError, UsageError
from featx.export import export_cache
from featx.store import Cache, CacheWriter, disk, read_summary, verify_file
from featx.store.header import HeaderBlock, hash_file
from featx.store.pack import pack_cache, unpack_cache
from featx.store.packed import _inflate, _zstd_content_bytes, open_any, render

CODECS = ["gzip", "zstd"]


def need(codec: str) -> None:
    if codec == "zstd":
        pytest.importorskip("hdf5plugin", reason="the extra pack is not installed")


@pytest.fixture
def cache_file(tmp_path):
    # 3,000 features: 174 rows a block, so that there are several and the last is short.
    spec = make_spec(400, 3_000)
    fill(tmp_path / "a.h5", spec, make_rows(spec), failed={5: "truncated", 399: "ein Wüstling"})
    return tmp_path / "a.h5"


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip_gives_the_same_file(cache_file, codec):
    need(codec)
    before = cache_file.read_bytes()
    report = pack_cache(cache_file, codec=codec)
    assert report.path == cache_file.with_name("a.featx.h5")
    assert report.source_bytes == len(before)
    assert report.n_bytes == report.path.stat().st_size
    assert cache_file.read_bytes() == before
    found = unpack_cache(report.path, cache_file.with_name("b.h5"))
    assert found.path.read_bytes() == before
    assert found.is_new
    again = unpack_cache(report.path)  # onto the cache it came from
    assert not again.is_new
    assert sorted(p.name for p in cache_file.parent.iterdir()) == ["a.featx.h5", "a.h5", "b.h5"]


@st.composite
def small_specs(draw):
    n_rows, names = draw(st.integers(1, 9)), draw(st.lists(NAMES, max_size=3))
    labels = np.full(n_rows, len(names) - 1)
    dtype = draw(st.sampled_from(["float16", "float32"]))
    return make_spec(n_rows, draw(st.integers(1, 5)), dtype, class_names=names, labels=labels)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    spec=small_specs(),
    codec=st.sampled_from(CODECS),
    failed=st.sets(st.integers(0, 8)),
    block=st.sampled_from([1, 40, 1 << 20]),
)
def test_round_trip_of_any_small_cache(tmp_path, spec, codec, failed, block):
    need(codec)
    source = tmp_path / os.urandom(8).hex() / "a.h5"
    reasons = {row: f"reason {row}" for row in failed if row < spec.n_rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featx.store.layout._BLOCK_BYTES", block)
        fill(source, spec, make_rows(spec), failed=reasons)
        packed = pack_cache(source, codec=codec).path
        unpacked = unpack_cache(packed, source.with_name("b.h5")).path
    assert unpacked.read_bytes() == source.read_bytes()


def test_plain_h5py_reads_gzip_without_featx_and_without_a_plugin(cache_file):
    packed = pack_cache(cache_file).path
    code = (
        "import h5py, sys, hashlib\n"
        "with h5py.File(sys.argv[1]) as f:\n"
        "    print(f.attrs['encoding-type'].decode(), f['features'].shape, f['features'].dtype,\n"
        "          hashlib.sha256(f['features'][:].tobytes()).hexdigest(),\n"
        "          f['paths'].asstr()[3], f['status'][5], f['features'].compression)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, packed], capture_output=True, text=True, check=True
    ).stdout.split()
    with Cache.open(cache_file) as cache:
        assert out[0] == "featx-pack"
        digest = hashlib.sha256(cache.X.stored[:].tobytes()).hexdigest()
        assert out[-4:] == [digest, cache.paths[3], "2", "gzip"]


def test_a_damaged_cache_is_not_packed(cache_file):
    with Cache.open(cache_file) as cache:
        offset = cache._structure.features.offset + 200 * 6_000 + 17
    with cache_file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x55")
    with pytest.raises(CacheError, match=r"features rows 174-347 changed"):
        pack_cache(cache_file)
    assert [p.name for p in cache_file.parent.iterdir()] == ["a.h5"]


def test_nothing_is_replaced_unasked(cache_file):
    packed = pack_cache(cache_file).path
    before = packed.read_bytes()
    with pytest.raises(CacheError, match="--overwrite"):
        pack_cache(cache_file, level=1)
    assert packed.read_bytes() == before
    assert pack_cache(cache_file, level=1, overwrite=True).path.read_bytes() != before
    for target in (cache_file, cache_file.with_name("b.h5")):
        if target != cache_file:
            target.write_bytes(cache_file.read_bytes())
        with pytest.raises(CacheError, match="is a cache, and is not replaced"):
            pack_cache(cache_file, target, overwrite=True)


def test_a_file_that_comes_meanwhile_is_not_replaced(cache_file, monkeypatch):
    target = cache_file.with_name("x.featx.h5")
    real = hash_file

    def late(*args):
        target.write_text("mine")
        return real(*args)

    monkeypatch.setattr("featx.store.pack.hash_file", late)
    with pytest.raises(CacheError, match="is there already"):
        pack_cache(cache_file, target)
    assert target.read_text() == "mine"
    assert len(list(cache_file.parent.iterdir())) == 2


@pytest.mark.parametrize("n", range(0, 12, 3))
def test_a_disk_that_fails_is_one_error_and_leaves_nothing(cache_file, monkeypatch, n):
    calls = [0]
    real = disk.pwrite

    def fail(fd, data, offset):
        calls[0] += 1
        if calls[0] == n + 1:  # and later ones succeed: the first must not be forgotten
            raise OSError(28, "No space left on device")
        real(fd, data, offset)

    monkeypatch.setattr(disk, "pwrite", fail)
    with pytest.raises(CacheError, match=r"cannot write .*No space left"):
        pack_cache(cache_file)
    assert [p.name for p in cache_file.parent.iterdir()] == ["a.h5"]


def test_a_kill_leaves_nothing_that_looks_complete(cache_file):
    target, copy = cache_file.with_name("a.featx.h5"), cache_file.with_name("c.h5")
    n, is_whole = 0, []
    while killed_at(n, lambda: pack_cache(cache_file)):
        left = [p for p in cache_file.parent.iterdir() if p not in (cache_file, target)]
        assert all(p.name.endswith(".featx-tmp") for p in left)
        is_whole.append(target.exists())
        if is_whole[-1]:
            assert unpack_cache(target, copy).path.read_bytes() == cache_file.read_bytes()
        for path in (*left, target, copy):
            path.unlink(missing_ok=True)
        n += 1
    assert is_whole[0] is False
    assert is_whole[-1] is True


def test_flips_anywhere_are_found_before_hdf5_sees_them(cache_file):
    packed = pack_cache(cache_file).path
    content = packed.read_bytes()
    rng = np.random.default_rng(SEED)
    places = [0, 10, 60, 4095, 4096, len(content) - 1, *rng.integers(0, len(content), 40).tolist()]
    target = cache_file.with_name("b.h5")
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        packed.write_bytes(damaged)
        with pytest.raises(CacheError, match="damaged|not a packed"):
            unpack_cache(packed, target)
    packed.write_bytes(content[:-100])
    with pytest.raises(CacheError, match=r"bytes in place of"):
        unpack_cache(packed, target)
    assert not list(cache_file.parent.glob("b.h5*"))


def stamp(path: Path) -> None:
    """Give an archive a valid seal, as a stranger could."""
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    os.pwrite(fd, render(size, hash_file(fd, HeaderBlock(size, size, 0, ""))), 0)
    os.close(fd)


def other_values(file):
    chunk = file["features"].id.read_direct_chunk((174, 0))[1]
    plain = bytearray(zlib.decompress(chunk))
    plain[0] ^= 1
    file["features"].id.write_direct_chunk((174, 0), zlib.compress(bytes(plain), 4))


def bomb(file):
    data = zlib.compress(bytes(200 << 20), 1)
    file["features"].id.write_direct_chunk((174, 0), data)


def large_bomb(file):
    # Small enough to be read, but it would become 100 times a chunk.
    data = zlib.compress(bytes(100 << 20), 9)
    file["features"].id.write_direct_chunk((174, 0), data)


def short_chunk(file):
    file["features"].id.write_direct_chunk((174, 0), zlib.compress(b"x" * 100))


def trailing(file):
    chunk = file["features"].id.read_direct_chunk((174, 0))[1]
    file["features"].id.write_direct_chunk((174, 0), chunk + b"more")


def no_filter(file):
    file["features"].id.write_direct_chunk((174, 0), bytes(174 * 6_000), filter_mask=3)


def replace_features(file, **options):
    shape, dtype = file["features"].shape, file["features"].dtype
    del file["features"]
    file.create_dataset("features", shape, dtype, **options)


def shape_bomb(file):
    del file["features"]
    file.create_dataset(
        "features", (400, 1 << 40), "<f2", chunks=(1, 1 << 20), shuffle=True, compression="gzip"
    )


def wide_bomb(file):
    file.attrs.modify("block_rows", np.int64(1))
    del file["features"], file["digests"]
    file.create_dataset("digests", data=np.zeros((400, 32), "u1"))
    wide = 1 << 30
    file.create_dataset(
        "features", (400, wide), "<f2", chunks=(1, wide), shuffle=True, compression="gzip"
    )


def virtual(file):
    shape, dtype = file["features"].shape, file["features"].dtype
    del file["features"]
    plan = h5py.VirtualLayout(shape, dtype)
    plan[:] = h5py.VirtualSource("other.h5", "features", shape)
    file.create_virtual_dataset("features", plan)


def soft(name, link):
    def change(file):
        del file[name]
        file[name] = link

    return change


def status_lies(file):
    file["status"][5] = 1


def wrong_block_rows(file):
    file.attrs.modify("block_rows", np.int64(1))


HOSTILE = {
    "other values": (other_values, r"rows 174-347: its digest"),
    "bomb": (bomb, r"rows 174-347: decompresses"),
    "large bomb": (large_bomb, r"rows 174-347: decompresses"),
    "short chunk": (short_chunk, r"rows 174-347: decompresses"),
    "trailing bytes": (trailing, r"rows 174-347: decompresses"),
    "unfiltered chunk": (no_filter, r"rows 174-347: its chunk is missing"),
    "missing chunks": (
        lambda f: replace_features(f, chunks=(174, 3_000), shuffle=True, compression="gzip"),
        r"rows 0-173: .*",
    ),
    "other chunks": (
        lambda f: replace_features(f, chunks=(100, 3_000), shuffle=True, compression="gzip"),
        r"not stored in chunks",
    ),
    "other filters": (
        lambda f: replace_features(f, chunks=(174, 3_000), compression="gzip"),
        r"has the filters",
    ),
    "contiguous": (replace_features, r"not stored in chunks"),
    "external": (
        lambda f: replace_features(f, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
        r"not stored in chunks",
    ),
    "shape bomb": (shape_bomb, r"blocks of"),
    "wide bomb": (wide_bomb, r"cannot hold"),
    "virtual": (virtual, r"not stored in chunks"),
    "soft link": (soft("features", h5py.SoftLink("/labels")), r"link to somewhere else"),
    "external link": (soft("labels", h5py.ExternalLink("x.h5", "/labels")), r"link to somewhere"),
    "group": (lambda f: f.create_group("more"), r"unexpected"),
    "group in place": (
        lambda f: (f.__delitem__("features"), f.create_group("features")),
        r"not a dataset",
    ),
    "attribute": (lambda f: f.attrs.create("more", 1), r"7 attributes in place of 6"),
    "status": (status_lies, r"errors are not those of its failed rows"),
    "block_rows": (wrong_block_rows, r"blocks of 1 rows"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(cache_file, name):
    change, message = HOSTILE[name]
    packed = pack_cache(cache_file).path
    with h5py.File(packed, "r+") as file:
        change(file)
    stamp(packed)
    target = cache_file.with_name("b.h5")
    with pytest.raises(CacheError, match=message):
        unpack_cache(packed, target)
    assert not target.exists()


def test_decompression_stops_at_the_size_of_a_chunk():
    data = zlib.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    with pytest.raises(CacheError, match="decompresses"):
        _inflate(data, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_zstd_frame_must_say_its_size():
    frame = bytes.fromhex("28b52ffd") + bytes([0xA0]) + (1 << 31).to_bytes(4, "little")
    assert _zstd_content_bytes(frame) == 1 << 31
    for data in (frame[:7], b"", b"\0" * 20, bytes.fromhex("28b52ffd0058")):
        assert _zstd_content_bytes(data) is None


def test_unpacking_is_resumed(cache_file):
    packed = pack_cache(cache_file).path
    with (
        Cache.open(cache_file) as cache,
        CacheWriter.open(cache_file.with_name("b.h5"), spec := make_spec(400, 3_000)) as writer,
    ):
        writer.write(0, cache.X[:5])
        writer.write(100, cache.X[100:250])
        assert not writer.is_complete
        assert writer.spec is spec
    unpack_cache(packed, cache_file.with_name("b.h5"))
    assert cache_file.with_name("b.h5").read_bytes() == cache_file.read_bytes()


def test_rows_of_another_run_are_never_mixed_in(cache_file):
    packed = pack_cache(cache_file).path
    target, spec = cache_file.with_name("b.h5"), make_spec(400, 3_000)
    with CacheWriter.open(target, spec) as writer:
        write_missing(writer, make_rows(spec, seed=8), n_batches=3)
    with pytest.raises(CacheError, match=r"holds other rows than those asked for"):
        unpack_cache(packed, target)
    fill(target, spec, make_rows(spec, seed=8))
    with pytest.raises(CacheError, match=r"has other .*digests"):
        unpack_cache(packed, target)


def test_what_is_no_archive_is_refused(cache_file, tmp_path):
    (tmp_path / "x").write_text("hello")
    for path, message in (
        (cache_file, "a cache, and not packed"),
        (tmp_path / "x", "not a packed"),
    ):
        with pytest.raises(CacheError, match=message):
            unpack_cache(path)
    with pytest.raises(CacheError, match="no file"):
        unpack_cache(tmp_path / "none")


def test_an_archive_is_named_as_one_where_a_cache_is_wanted(cache_file):
    packed = pack_cache(cache_file).path
    message = r"a\.featx\.h5: a packed archive: get the cache back with  featx unpack FILE"
    spec = make_spec(400, 3_000)
    for use in (
        pack_cache,
        Cache.open,
        lambda path: CacheWriter.open(path, spec, overwrite=True),
    ):
        before = packed.read_bytes()
        with pytest.raises(CacheError, match=message):
            use(packed)
        assert packed.read_bytes() == before


@pytest.mark.parametrize("codec", CODECS)
def test_an_archive_is_described_as_its_cache_is(cache_file, codec, monkeypatch):
    need(codec)
    packed = pack_cache(cache_file, codec=codec).path
    link = packed.with_name("link.h5")
    link.symlink_to(packed)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # not needed for it
    found, cache = read_summary(link), read_summary(cache_file)
    assert found.pop("codec") == codec
    assert found.pop("unpacked_bytes") == cache.pop("file_bytes")
    assert found.pop("file_bytes") == packed.stat().st_size
    assert (found.pop("path"), cache.pop("path")) == (str(link), str(cache_file))
    assert found == cache
    assert cache["failed"] == [
        (5, "images/00005.png", "truncated"),
        (399, "images/00399.png", "ein Wüstling"),
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_an_archive_is_verified(cache_file, codec, monkeypatch):
    need(codec)
    packed = pack_cache(cache_file, codec=codec).path
    assert verify_file(packed) == []
    content = bytearray(packed.read_bytes())
    content[-9] ^= 1
    packed.write_bytes(content)
    (damage,) = verify_file(packed)
    assert str(damage).startswith("file: ")
    assert "damaged: it changed" in str(damage)
    assert "take another copy of it, or pack the cache again" in str(damage)
    if codec == "zstd":
        packed = pack_cache(cache_file, codec=codec, overwrite=True).path
        monkeypatch.setitem(sys.modules, "hdf5plugin", None)
        for use in (verify_file, unpack_cache):
            with pytest.raises(MissingExtraError, match=r"pip install 'featx\[pack\]'"):
                use(packed)


def test_a_sealed_archive_of_other_features_does_not_verify(cache_file):
    packed = pack_cache(cache_file).path
    with h5py.File(packed, "r+") as file:
        other_values(file)
    stamp(packed)
    (damage,) = verify_file(packed)
    assert "features rows 174-347: its digest is another" in str(damage)


def test_options_are_checked(cache_file, monkeypatch):
    with pytest.raises(UsageError, match=r"unknown codec 'lzma': choose from gzip, zstd"):
        pack_cache(cache_file, codec="lzma")
    with pytest.raises(UsageError, match=r"1 to 9, not 10"):
        pack_cache(cache_file, level=10)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[pack\]'"):
        pack_cache(cache_file, codec="zstd")
    assert [p.name for p in cache_file.parent.iterdir()] == ["a.h5"]


@pytest.mark.parametrize(("codec", "level"), [("gzip", 4), ("zstd", 1)])
def test_the_default_level_is_the_one_measured_to_be_best(cache_file, codec, level):
    need(codec)
    packed = pack_cache(cache_file, codec=codec).path
    with h5py.File(packed) as file:
        plan = file["features"].id.get_create_plist()
        assert plan.get_filter(1)[2][0] == level


@pytest.mark.parametrize("codec", CODECS)
def test_an_archive_is_read_as_its_cache_is(cache_file, codec):
    need(codec)
    packed = load(pack_cache(cache_file, codec=codec).path)
    keys = (7, slice(3, 380), slice(None, None, 7), [399, 0, 0, 173, 174, 5], np.s_[2:9, 4])
    with load(cache_file) as cache, packed:
        for key in keys:
            assert packed.X[key].tobytes() == cache.X[key].tobytes()
        assert packed.X.stored[:].tobytes() == cache.X.stored[:].tobytes()
        assert np.asarray(packed.X.stored).tobytes() == np.asarray(cache.X.stored).tobytes()
        for name in ("labels", "status", "image_digests"):
            assert np.array_equal(getattr(packed, name), getattr(cache, name))
        for name in ("paths", "class_names", "errors", "meta", "fingerprint"):
            assert getattr(packed, name) == getattr(cache, name)
        one, other = packed.sample(5, seed=3), cache.sample(5, seed=3)
        assert [part.tobytes() for part in one] == [part.tobytes() for part in other]
        again = pickle.loads(pickle.dumps(packed))
        assert again.X[9].tobytes() == cache.X[9].tobytes()
        with pytest.raises(UsageError, match="featx unpack"):
            packed.X.memmap()
        with pytest.raises(ValueError, match="by a copy"):
            packed.X.__array__(copy=False)
    with pytest.raises(CacheError, match="was closed"):
        packed.X[300]


def test_a_block_is_decompressed_once_for_many_of_its_rows(cache_file, monkeypatch):
    calls = []
    monkeypatch.setattr("featx.store.packed._inflate", lambda *a: calls.append(1) or _inflate(*a))
    with open_any(pack_cache(cache_file).path) as packed:
        assert len(packed.X[:40:5]) == 8
    assert len(calls) == 1


def test_rows_of_a_damaged_block_are_an_error_and_the_others_are_read(cache_file):
    packed = pack_cache(cache_file).path
    with h5py.File(packed, "r+") as file:
        other_values(file)
    stamp(packed)
    with load(packed) as cache:
        assert cache.X[[0, 399]].shape == (2, 3_000)
        with pytest.raises(CacheError, match=r"rows 174-347: its digest is another: take another"):
            cache.X[200]


def test_an_archive_is_exported_as_its_cache_is(cache_file):
    files = (cache_file, pack_cache(cache_file).path)
    one, other = (export_cache(file, "npz", str(file) + ".npz").path for file in files)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_of_the_first_version_unpacks(tmp_path, codec):
    need(codec)
    data = Path(__file__).with_name("data")
    found = unpack_cache(data / f"v1-float16-{codec}.featx.h5", tmp_path / "a.h5").path
    assert found.read_bytes() == (data / "v1-float16.h5").read_bytes()

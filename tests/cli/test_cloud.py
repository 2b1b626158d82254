"""Commands on data and caches behind URLs: the same features, and no secret anywhere."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
from sites import s3_site, web_site
from small_photos import make_photos

import featx
from featx.cli import main
from featx.store import find_caches

NET = [
    "--backbone",
    "squeezenet1_1",
    "--weights",
    "random:3",
    "--input-size",
    "64",
    "-b",
    "4",
    "--pool",
    "avg",
]
SECRET = "sig=abcdef0123"


@pytest.fixture(scope="module")
def s3():
    with s3_site() as site:
        yield site


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATX_DATA", str(tmp_path / "kept"))
    return make_photos(tmp_path / "pets", {"cat": (64, 64), "dog": (64, 64)}, n=6)


@pytest.fixture
def web(photos):
    with web_site(photos) as url:
        yield url


def upload(folder, place):
    for path in folder.rglob("*.*"):
        key = f"photos/{place}/{path.relative_to(folder).as_posix()}"
        fsspec.filesystem("s3").pipe_file(key, path.read_bytes())
    return f"s3://photos/{place}"


def extracted(data, cache, *more):
    assert main(["extract", *NET, "--data", str(data), "--cache", cache, "-q", *more]) == 0
    return find_caches(cache)[0]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_features_equal_those_of_the_same_files_here(s3, photos, workers):
    url = upload(photos, "pets")
    here, there = (
        extracted(data, name, "-j", workers) for data, name in ((photos, "a"), (url, "b"))
    )
    with featx.load(here) as one, featx.load(there) as two:
        assert np.array_equal(one.X[:], two.X[:])
        assert (one.paths, one.fingerprint) == (two.paths, two.fingerprint)
        assert two.meta["request"]["data"] == url


def test_nothing_secret_is_kept_or_said(web, photos, tmp_path, capsys):
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    rows = [f"{web.replace('//', '//me:pw@')}/{n}?{SECRET},{n.split('/')[0]}" for n in names]
    rows.append(f"{web}/none.png?{SECRET},cat")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,label", *rows]))
    assert main(["extract", *NET, "--data", str(table)]) == 1
    err = capsys.readouterr().err
    assert f"cannot read '{web}/none.png': the server has no such file" in err
    table.write_text("\n".join(["path,label", *rows[:-1]]))
    file = extracted(table, "cache")
    said = capsys.readouterr()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path != table]
    text = b"".join(path.read_bytes() for path in kept) + f"{err}{said.out}{said.err}".encode()
    assert b"none.png" in text
    assert not any(word in text for word in (SECRET.encode(), b"me:pw"))
    with featx.load(file) as cache:
        assert cache.paths[0] == f"{web}/{names[0]}"


def test_a_cache_behind_a_url(s3, photos, capsys, tmp_path):
    file = extracted(photos, "cache")
    capsys.readouterr()
    assert main(["cache", "publish", str(file), "s3://photos/caches", "-q"]) == 0
    url = f"s3://photos/caches/{file.name}"
    assert capsys.readouterr().out.startswith(f"{url}: SHA-256 ")
    with featx.load(url) as there, featx.load(file) as here:
        assert np.array_equal(there.X[:], here.X[:])
    assert main(["info", url]) == 0
    assert "features: 12 x 512 float16" in capsys.readouterr().out
    fit = ["fit", "--clf", "ridge", "--per-class", "2", "--repeats", "1", "-q", "--cache"]
    assert main([*fit, "s3://photos/caches"]) == 0
    assert s3.count("GET", file.name) == 1
    fsspec.filesystem("s3").pipe_file("photos/caches/x.h5", b"no cache")
    assert main(["info", "s3://photos/caches/x.h5"]) == 1
    damaged = tmp_path / "d.h5"
    damaged.write_bytes(file.read_bytes()[:-1])
    assert main(["cache", "publish", str(damaged), "s3://photos/caches"]) == 1
    assert "is not written" in capsys.readouterr().err
    assert not fsspec.filesystem("s3").exists("photos/caches/d.h5")


def test_a_place_of_shards_behind_a_url(s3, photos):
    words = ["extract", *NET, "--data", str(photos), "-q"]
    assert main([*words, "--shard", "1/1", "--shard-rows", "8"]) == 0
    place = next((photos.parent / "cache").glob("*.shards"))
    assert main(["cache", "publish", str(place), "s3://photos/places/"]) == 0
    with featx.load(f"s3://photos/places/{place.name}") as there, featx.load(place) as here:
        assert np.array_equal(there.X[:], here.X[:])
        assert there.fingerprint == here.fingerprint
    assert main(["cache", "publish", str(place), "s3://photos/places/"]) == 0


def test_a_strangers_cache_makes_no_request(photos):
    from featx.sources.album import Album

    album = Album.of({"request": {"data": "http://127.0.0.1:9/photos"}})
    assert "which is not asked for them" in album.problem

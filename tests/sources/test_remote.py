"""The same images behind URLs give the same rows, whatever form they have."""

from __future__ import annotations

import io

import fsspec
import numpy as np
import pytest
from packing import files_of, pack_folder
from sites import drops, fails, is_slow, s3_site, web_site
from small_photos import make_photos
from test_webdataset import from_folder

from featx.errors import CacheError, ReadError, SourceError, UnreachableError
from featx.progress import Reporter
from featx.sources import LayoutChoice, open_data
from featx.sources.archives.webdataset import open_webdataset
from featx.sources.transfer import fetch_file, fetch_folder, publish

SECRET = "sig=abcdef0123"


@pytest.fixture(scope="module")
def s3():
    with s3_site() as site:
        yield site
        assert site.faults == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "pets"
    for split in ("train", "test"):
        make_photos(root / split, {"a cat": (20, 24), "dog": (24, 20)}, n=4)
    return root


@pytest.fixture(scope="module")
def web(photos):
    with web_site(photos.parent) as url:
        yield url


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("FEATX_DATA", str(folder))
    return folder


def upload(root, place):
    system = fsspec.filesystem("s3")
    for name, data in files_of(root).items():
        system.pipe_file(f"photos/{place}/{name}", data)
    return f"s3://photos/{place}"


def rows(splits, *, with_paths=True):
    return {
        split: [
            (path if with_paths else "", source.class_names[label], source.fetch(row)[1])
            for row, (path, label) in enumerate(zip(source.paths, source.labels, strict=True))
        ]
        for split, source in splits.items()
    }


def test_folders_are_read_as_on_the_disk(s3, web, photos):
    here = open_data(photos)
    url = upload(photos, "pets")
    assert rows(open_data(f"file://{photos}")) == rows(here)
    for place in (url, f"{web}/pets", f"{web}/pets/"):
        there = open_data(place)
        s3.faults += [fails, is_slow, drops] if place == url else []
        assert rows(there) == rows(here)
        assert [s.content_id() for s in there.values()] == [s.content_id() for s in here.values()]
        assert {source.name for source in there.values()} == {"pets"}
    with pytest.raises(SourceError, match="the server has no such file or folder"):
        open_data("s3://photos/pet")


def test_hashes_of_a_listing_are_remembered_until_the_server_changes(s3, photos):
    url = upload(photos, "kept")
    first = [open_data(url)["train"].image_digests() for _ in range(2)]
    assert np.array_equal(*first)
    assert s3.count("GET", "kept/train/dog/0.png") == 1
    fsspec.filesystem("s3").pipe_file("photos/kept/train/dog/0.png", b"other")
    assert not np.array_equal(open_data(url)["train"].image_digests(), first[0])


def manifest(photos, path, address):
    lines = [f"{address(name)},{name.split('/')[1]}" for name in files_of(photos)]
    path.write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["s3", "http", "file", "remote", "root"])
def test_tables_of_urls(s3, web, photos, tmp_path, kind):
    url, layout = upload(photos, "table"), None
    address = {
        "s3": lambda name: f"{url}/{name}",
        "http": lambda name: f"{web}/pets/{name.replace(' ', '%20')}?{SECRET}",
        "file": lambda name: f"file://{photos}/{name.replace(' ', '%20')}",
    }.get(kind, lambda name: name)
    table = manifest(photos, tmp_path / "all.csv", address)
    if kind == "remote":
        fsspec.filesystem("s3").put_file(str(table), "photos/table/all.csv")
        table = f"{url}/all.csv"
    elif kind == "root":
        layout = LayoutChoice(images_root=url)
    found = open_data(table, layout=layout)
    here = open_data(manifest(photos, photos / "here.csv", str))
    (photos / "here.csv").unlink()
    assert rows(found, with_paths=False) == rows(here, with_paths=False)
    paths = [path for source in found.values() for path in source.paths]
    start = {"http": f"{web}/pets/", "file": f"{photos}/"}.get(kind, f"{url}/")
    assert all(path.startswith(start) and SECRET not in path for path in paths)


def test_rows_that_differ_in_a_query_are_two(web, tmp_path):
    table = tmp_path / "t.csv"
    urls = [f"{web}/pets/train/dog/0.png?id={n}" for n in (1, 2, 2)]
    labels = ["a", "b", "b"]
    table.write_text("path,label\n" + "\n".join(map(",".join, zip(urls, labels, strict=True))))
    source = open_data(table)["all"]
    plain = urls[0].partition("?")[0]
    assert source.paths == (plain, f"{plain}#2")
    assert source.take(np.array([1])).fetch(0)[1] == source.fetch(0)[1]
    table.write_text(f"path,label\n{urls[0]}&{SECRET},a\n{urls[0]}&{SECRET},b\n")
    with pytest.raises(SourceError, match="two labels") as told:
        open_data(table)
    assert SECRET not in str(told.value)


def test_shards_are_streamed_once(s3, web, photos, tmp_path):
    shards = from_folder(tmp_path / "shards", photos, per_shard=3)
    url = upload(shards, "shards")
    here = rows(open_webdataset(shards))
    by_name = f"{url}/{{train,test}}-{{000..002}}.tar"
    for place in (by_name, url):
        s3.asked.clear()
        there = open_data(place)
        digests = {split: source.image_digests() for split, source in there.items()}
        assert s3.count("GET", "train-001.tar") == 1
        s3.faults += [drops, fails]
        assert rows(there) == here
        for split, found in digests.items():
            assert [bytes(row) for row in found] == [row[2] for row in here[split]]
    data = (shards / "train-001.tar").read_bytes()
    fsspec.filesystem("s3").pipe_file("photos/shards/train-001.tar", data[:1024])
    with pytest.raises(ReadError, match=r"train-001\.tar"):
        rows(there)
    with pytest.raises(SourceError, match="no shard 's3://photos/shards/train-003.tar'"):
        open_data(f"{url}/train-{{002..003}}.tar")
    with pytest.raises(SourceError, match="compressed, and its images cannot be read one by one"):
        open_data(f"{url}/train-{{002..003}}.tar.gz")


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_archives_are_fetched_once(s3, photos, tmp_path, ending):
    upload(pack_folder(tmp_path / "a" / f"pets{ending}", photos).parent, "archives")
    for _ in range(2):
        assert rows(open_data(f"s3://photos/archives/pets{ending}")) == rows(open_data(photos))
    assert s3.count("GET", f"archives/pets{ending}") == 1


def test_a_server_that_is_gone_ends_the_hashing(s3, photos, monkeypatch):
    source = open_data(upload(photos, "gone"))["train"]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    type(fsspec.filesystem("s3")).clear_instance_cache()
    monkeypatch.setattr("time.sleep", lambda _: None)
    s3.faults += [fails] * 1000
    with pytest.raises(UnreachableError, match="s3://photos/gone/train/a cat/"):
        source.image_digests()
    n_left = len(s3.faults)
    s3.faults.clear()
    assert n_left > 900
    type(fsspec.filesystem("s3")).clear_instance_cache()


def test_what_is_published_comes_back_and_is_never_replaced(s3, tmp_path, data_dir):
    file = tmp_path / "x.h5"
    file.write_bytes(b"one" * 1000)
    s3.faults += [fails, drops]
    digest = publish(file, "s3://photos/out/")
    assert publish(file, "s3://photos/out/x.h5") == digest
    stream = io.StringIO()
    found = fetch_file("s3://photos/out/x.h5", reporter=Reporter(stream=stream))
    assert (found.read_bytes(), found.name) == (file.read_bytes(), "x.h5")
    assert fetch_folder("s3://photos/out") / "x.h5" == found
    assert s3.count("GET", "out/x.h5") == 1
    fsspec.filesystem("s3").rm_file("photos/out/x.h5.sha256")
    assert publish(file, "s3://photos/out/") == digest  # it was stopped before the checksum
    file.write_bytes(b"two" * 1000)
    with pytest.raises(CacheError, match="another content, and is never replaced"):
        publish(file, "s3://photos/out/")
    fsspec.filesystem("s3").pipe_file("photos/out/x.h5", b"two" * 1000)
    with pytest.raises(ReadError, match="does not fit the checksum beside it"):
        fetch_file("s3://photos/out/x.h5")
    assert found.read_bytes() == b"one" * 1000


def test_a_copy_that_was_damaged_here_is_fetched_again(s3, tmp_path):
    upload(make_photos(tmp_path / "p", {"a": (9, 9)}, n=1), "damaged")
    found = fetch_file("s3://photos/damaged/a/0.png")
    whole = found.read_bytes()
    found.write_bytes(whole[:-1])
    assert fetch_file("s3://photos/damaged/a/0.png").read_bytes() == whole

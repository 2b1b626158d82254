"""URLs through fsspec: what is read, what is tried again, and what is never said."""

from __future__ import annotations

import time

import fsspec
import pytest
from sites import drops, fails, gs_site, is_slow, s3_site, web_site
from small_photos import make_photos

from featx import urls
from featx.cli import main
from featx.errors import MissingExtraError, ReadError, UnreachableError, UsageError
from featx.sources import open_data

SECRET = "X-Amz-Signature=abcdef0123"


@pytest.fixture(scope="module")
def s3():
    with s3_site() as site:
        yield site
        assert site.faults == []


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "site"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1 ü.jpg").write_bytes(b"one")
    with web_site(folder) as url:
        yield url


def put(key: str, data: bytes) -> str:
    fsspec.filesystem("s3").pipe_file(f"photos/{key}", data)
    return f"s3://photos/{key}"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (f"https://me:pw@host:80/a/b.jpg?{SECRET}#f", "https://host:80/a/b.jpg"),
        ("s3://bucket/a?b#c.jpg", "s3://bucket/a?b#c.jpg"),
        ("s3://key:pw@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("photos/a.jpg?x", "photos/a.jpg?x"),
    ],
)
def test_secrets_are_not_shown(url, wanted):
    assert urls.shown(url) == wanted


@pytest.mark.parametrize(
    "spec", ["memory://a/b", "ftp://me:secret@host/x?key=secret", "S3://bucket/x", "s3:/bucket/x"]
)
def test_a_url_of_another_kind_is_refused(spec):
    with pytest.raises(UsageError, match="featx reads s3://, gs://, hf://, http://") as caught:
        open_data(spec)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("spec", ["s3://", "gs:///", "http://", "file://", "hf://"])
def test_a_url_without_a_place_is_refused(spec):
    with pytest.raises(UsageError, match=f"^{spec} names nothing: go on with a bucket"):
        open_data(spec)


@pytest.mark.parametrize(
    "spec", ["http://[::1/x", "http:///x", "https://me:pw@host:99999/x", "http://host:a/x"]
)
def test_a_host_that_is_none_is_refused(spec):
    with pytest.raises(UsageError, match="has no host, or a port that is none") as caught:
        open_data(spec)
    assert "pw" not in str(caught.value)


def test_a_library_that_tries_again_by_itself_is_asked_once(monkeypatch):
    asked = []

    def act(system: object) -> None:
        asked.append(system)
        raise OSError("no answer")

    monkeypatch.setattr(urls, "_filesystem", lambda url: None)
    with pytest.raises(UnreachableError, match="no good answer in 6 tries"):
        urls._again("gs://bucket/a.jpg", act)
    assert len(asked) == 1


def test_no_line_shows_what_a_url_has_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for spec in (
        "ftp://me:secret@host/x",
        "http://me:secret@127.0.0.1:1/x?key=secret",
        "s3://a:secret@b/",
    ):
        for words in (["extract", "--backbone", "squeezenet1_0", "--data", spec], ["info", spec]):
            assert main([*words, "-q"]) in (1, 2)
    (tmp_path / "list.csv").write_text("path,label\nftp://me:secret@host/a.jpg,cat\n")
    assert main(["info", "--data", "list.csv", "-q"]) == 2
    said = capsys.readouterr()
    assert "featx reads s3://" in said.err
    assert "secret" not in said.out + said.err


def test_a_folder_with_a_name_like_a_url_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "memory:" / "pets", {"cat": (8, 8), "dog": (8, 8)}, n=2)
    assert len(open_data("memory:/pets")["all"]) == 4


def test_parts_of_urls():
    url = f"https://me@host/a/b%20c.tar?{SECRET}"
    assert (urls.name_of(url), urls.parent(url)) == ("b c.tar", "https://me@host/a")
    assert urls.join("http://h/a/", "b c?.jpg") == "http://h/a/b%20c%3F.jpg"
    assert urls.join("s3://b/a", "b c?.jpg") == "s3://b/a/b c?.jpg"
    assert str(urls.local_path("file:///a%20b/c.jpg")) == "/a b/c.jpg"
    with pytest.raises(UsageError, match="three slashes"):
        urls.local_path("file://data/c.jpg")


@pytest.mark.parametrize("fault", [fails, is_slow, drops])
def test_what_passes_is_tried_again(s3, fault):
    url = put("a/1.jpg", b"x" * 100)
    s3.faults += [fault, fault]
    assert urls.read_url(url, 1000) == b"x" * 100
    assert urls.read_part(url, 98, 10) == b"xx"


def test_a_file_that_is_empty_or_too_long(s3, web):
    assert urls.read_url(put("empty.jpg", b""), 10) == b""
    for url in (put("long.jpg", b"12345"), f"{web}/cat/1%20ü.jpg"):
        with pytest.raises(ReadError, match="more than 2 bytes"):
            urls.read_url(url, 2)


def test_a_listing_names_every_file(s3, web):
    for key in ("l/cat/1 ü.jpg", "l/a?b#.jpg", "l/cat/x/y/2.jpg", "long/3.jpg"):
        put(key, key.encode())
    found = dict(urls.walk("s3://photos/l"))
    assert sorted(found) == ["a?b#.jpg", "cat/1 ü.jpg", "cat/x/y/2.jpg"]
    assert found["a?b#.jpg"].n_bytes == len("l/a?b#.jpg")
    assert found["a?b#.jpg"] == urls.stat_url("s3://photos/l/a?b#.jpg")
    assert [name for name, _ in urls.walk(web)] == ["cat/1 ü.jpg"]
    with pytest.raises(UsageError, match="one file, not a folder"):
        next(urls.walk(f"{web}/?{SECRET}"))


def test_what_cannot_pass_is_said_at_once(s3, web, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
    for url in ("s3://photos/none.jpg", "s3://no-such-bucket/a.jpg", f"{web}/none.jpg?{SECRET}"):
        with pytest.raises(ReadError, match=r"(none|a)\.jpg': the server has no such file") as told:
            urls.read_url(url, 10)
        assert SECRET not in str(told.value)
        assert told.value.__suppress_context__

    def refuses(environ, start):
        start("403 Forbidden", [("Content-Length", "0")])
        return [b""]

    s3.faults.append(refuses)
    with pytest.raises(ReadError, match="the server allows no access: check the credentials"):
        urls.read_url("s3://photos/a/1.jpg", 10)
    with pytest.raises(ReadError, match="sends whole files only"):
        urls.read_part(f"{web}/cat/1%20ü.jpg", 1, 1)


def test_no_credentials(s3, monkeypatch, tmp_path):
    from s3fs import S3FileSystem

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(ReadError, match="no credentials were found: set them as s3fs takes them"):
        urls.read_url("s3://photos/a/1.jpg", 10)
    monkeypatch.undo()
    S3FileSystem.clear_instance_cache()


def test_a_server_that_is_gone(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(UnreachableError, match="no good answer in 5 tries") as told:
        urls.read_url(f"http://me:pw@127.0.0.1:9/a.jpg?{SECRET}", 10)
    assert "http://127.0.0.1:9/a.jpg" in str(told.value)
    assert not any(word in str(told.value) for word in (SECRET, "pw"))
    assert [round(pause / (0.25 * 2**n) + 0.25) for n, pause in enumerate(pauses)] == [1] * 4


def test_a_name_is_taken_once(s3, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    s3.faults += [fails, drops]
    assert urls.create(one, "s3://photos/name")
    assert not urls.create(two, "s3://photos/name")
    # Another process takes the name behind the look for it.
    monkeypatch.setattr(urls, "stat_url", lambda url: None)
    assert not urls.create(two, "s3://photos/name")
    assert urls.read_url("s3://photos/name", 10) == b"one"
    with pytest.raises(UsageError, match="featx writes to s3 and gs only"):
        urls.create(one, "http://host/name")


def test_what_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"s3:// needs the package 's3fs'.*featx\[cloud\]"):
        urls.read_url("s3://b/a.jpg", 10)


def test_a_password_has_no_place_in_a_bucket():
    with pytest.raises(UsageError, match="a password has no place") as told:
        urls.read_url("s3://key:very-secret@photos/a.jpg", 10)
    assert "very-secret" not in str(told.value)


@pytest.fixture
def gs():
    with gs_site() as site:
        yield site


def test_google_s_objects_are_listed_read_and_fetched(gs, tmp_path):
    data = {"set/cat/1 ü#?.jpg": b"one", "set/dog/2.jpg": bytes(range(256)) * 100}
    gs.objects |= data
    assert {name for name, _ in urls.walk("gs://photos/set")} == {"cat/1 ü#?.jpg", "dog/2.jpg"}
    for name, content in data.items():
        url = f"gs://photos/{name}"
        assert urls.read_url(url, 1 << 20) == content
        assert urls.stat_url(url).n_bytes == len(content)
    assert urls.read_part("gs://photos/set/dog/2.jpg", 300, 40) == data["set/dog/2.jpg"][300:340]
    urls.download("gs://photos/set/dog/2.jpg", tmp_path / "2.jpg")
    assert (tmp_path / "2.jpg").read_bytes() == data["set/dog/2.jpg"]
    assert urls.stat_url("gs://photos/none.jpg") is None
    with pytest.raises(ReadError, match="no such file or folder"):
        urls.read_url("gs://photos/none.jpg", 10)


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # gcsfs's own
@pytest.mark.parametrize("n_bytes", [1000, 6 << 20])  # in one request, and in parts
def test_a_name_at_google_is_taken_once(gs, tmp_path, n_bytes):
    path = tmp_path / "a.h5"
    path.write_bytes(b"a" * n_bytes)
    assert urls.create(path, "gs://photos/cache/a.h5")
    path.write_bytes(b"another")
    assert not urls.create(path, "gs://photos/cache/a.h5")
    assert gs.objects["cache/a.h5"] == b"a" * n_bytes


def test_google_s_passing_errors_are_ridden_through(gs):
    gs.objects["a.jpg"] = b"a"
    gs.statuses += [503, 500]
    assert urls.read_url("gs://photos/a.jpg", 10) == b"a"
    gs.statuses += [403] * 3
    with pytest.raises(ReadError, match="the server allows no access"):
        urls.read_url("gs://photos/a.jpg", 10)

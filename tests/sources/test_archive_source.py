from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pickle
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packing import KINDS, MODES, files_of, member, named, pack, pack_folder, pack_members, raw
from test_folder_source import ERRORS
from test_source_contract import SourceContract

from featx.errors import FeatxError, ImageError, ReadError, SourceError
from featx.progress import Reporter
from featx.sources import Source
from featx.sources.archives import members as members_module
from featx.sources.archives.archive import ZipSource, index_zip, is_archive, open_archive
from featx.sources.archives.members import ArchiveFile, clean_name
from featx.sources.archives.tar import TarSource, index_tar, read_tar_member
from featx.sources.folder import open_folder

PLAIN = (".zip", ".tar")
TWO = ("a/1.jpg", "b/1.jpg")


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("FEATX_DATA", str(folder))
    return folder


def said(path: Path, *, quiet: bool = False) -> str:
    stream = io.StringIO()
    open_archive(path, reporter=Reporter(stream=stream, quiet=quiet))
    return stream.getvalue()


class TestZip(SourceContract):
    ending = ".zip"

    @pytest.fixture
    def splits(self, photo_tree: Path, tmp_path: Path) -> dict[str, Source]:
        return open_archive(pack_folder(tmp_path / f"packed{self.ending}", photo_tree))


class TestTar(TestZip):
    ending = ".tar"


class TestTarGz(TestZip):
    ending = ".tar.gz"


@pytest.mark.parametrize("below", ["", "./", "cifar10/", "./cifar10/"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_as_in_the_folder(
    cifar_slice: Path, tmp_path: Path, kind: str, below: str
) -> None:
    folder = open_folder(cifar_slice)
    packed = open_archive(pack_folder(tmp_path / f"slice{kind}", cifar_slice, below))
    assert list(packed) == list(folder)
    for split, source in packed.items():
        assert source.name == "slice"
        assert source.paths == folder[split].paths
        assert source.class_names == folder[split].class_names
        np.testing.assert_array_equal(source.labels, folder[split].labels)
        assert source.content_id() == folder[split].content_id()


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("name", ERRORS)
def test_layouts_that_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    paths, reason = ERRORS[name]
    with pytest.raises(SourceError, match=reason) as caught:
        open_archive(pack(tmp_path / f"x{kind}", named(*paths)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PLAIN)
def test_hidden_files_are_left_out_as_in_folders(tmp_path: Path, kind: str) -> None:
    names = (
        *("pets/a/1.jpg", "pets/a/.2.jpg", "pets/a/.DS_Store", "pets/a/Thumbs.db", "pets/b/1.JPG"),
        *("__MACOSX/pets/a/._1.jpg", "pets/b/.hid/3.jpg", "pets/b/notes.txt", "pets/b/inner.zip"),
        *(".top.jpg", "README.md"),
    )
    path = pack(tmp_path / f"x{kind}", named(*names))
    assert open_archive(path)["all"].paths == ("a/1.jpg", "b/1.JPG")
    text = "'x': everything lies in 'pets/'\n'x': 2 files that are no images left out"
    assert said(path) == text + " (1 .zip, 1 .txt)\n"


@pytest.mark.parametrize("kind", PLAIN)
def test_one_folder_on_top_is_looked_through_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    pack(path, named("top/train/a/1.jpg", "top/train/b/1.jpg"))
    assert open_archive(path)["train"].paths == ("train/a/1.jpg", "train/b/1.jpg")
    pack(path, named("train/a/1.jpg", "train/b/1.jpg"))
    assert list(open_archive(path)) == ["train"]
    pack(path, named("pets/dog/old/1.jpg", "pets/dog/young/1.jpg"))
    with pytest.raises(
        SourceError, match=r"x.*/pets' has one class only \('dog'\).* --classes-at 3"
    ):
        open_archive(path)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("./a//1.jpg", "a/1.jpg"),
        ("a/./b/", "a/b"),
        ("a/..b/c..", "a/..b/c.."),
        ("../1.jpg", None),
        ("a/../../1.jpg", None),
        ("a/..", None),
        ("/etc/passwd.jpg", None),
        ("//host/1.jpg", None),
        ("C:/a/1.jpg", None),
        ("c:1.jpg", None),
        ("..\\1.jpg", None),
        ("a\\1.jpg", None),
        ("a/1.jpg\0.txt", None),
        ("", None),
        (".", None),
        ("a/" * 3000 + "1.jpg", None),
    ],
)
def test_names(raw: str, clean: str | None) -> None:
    assert clean_name(raw) == clean


BAD_NAMES = ("../a/9.jpg", "/a/9.jpg", "a/../../9.jpg", "C:/a/9.jpg", "C:\\a\\9.jpg", "..\\9.jpg")


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_lead_outside_are_left_out(tmp_path: Path, kind: str, data_dir: Path) -> None:
    path = pack(tmp_path / "in" / f"x{kind}", named(*BAD_NAMES, *TWO))
    before = set(tmp_path.rglob("*"))
    assert open_archive(path)["all"].paths == TWO
    text = said(path, quiet=True)
    assert text.count("6 members with names that lead elsewhere ('../a/9.jpg') left out") == 1
    assert set(tmp_path.rglob("*")) == before
    written = {p.name.partition("-")[0] for p in (data_dir / "unpacked").glob("*.tar")}
    assert written == (set() if kind in PLAIN else {"x"})


def test_backslashes_in_a_zip_separate_folders(tmp_path: Path) -> None:
    names = ("train\\a\\1.jpg", "train\\b\\1.jpg", "test\\a\\2.jpg", "test\\b/2.jpg")
    found = open_archive(pack(tmp_path / "x.zip", named(*names)))
    assert {split: source.paths for split, source in found.items()} == {
        "train": ("train/a/1.jpg", "train/b/1.jpg"),
        "test": ("test/a/2.jpg", "test/b/2.jpg"),
    }
    assert found["train"].read(0) == raw(names[0])
    with pytest.raises(SourceError, match="twice"):
        open_archive(pack(tmp_path / "y.zip", named(*TWO, "a\\1.jpg")))


def pack_with_unicode_path(path: Path, stored: str, unicode: str, about: str) -> Path:
    """Write a zip whose first member has the field 0x7075, with the checksum of a name."""
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(stored)
        body = struct.pack("<BL", 1, zlib.crc32(about.encode())) + unicode.encode()
        info.extra = struct.pack("<HH", 0x5455, 1) + b"\0"  # another field before it
        info.extra += struct.pack("<HH", 0x7075, len(body)) + body
        archive.writestr(info, b"x")
        archive.writestr("b/1.jpg", b"y")
    return path


def test_the_unicode_path_of_a_member_is_its_name(tmp_path: Path) -> None:
    path = pack_with_unicode_path(tmp_path / "x.zip", "_/1.jpg", "кот/1.jpg", "_/1.jpg")
    assert open_archive(path)["all"].paths == ("b/1.jpg", "кот/1.jpg")
    path = pack_with_unicode_path(path, "_/1.jpg", "кот/1.jpg", "the name before it was renamed")
    assert open_archive(path)["all"].paths == ("_/1.jpg", "b/1.jpg")
    path = pack_with_unicode_path(path, "_/1.jpg", "../c/1.jpg", "_/1.jpg")
    assert [*index_zip(path).files] == ["b/1.jpg"]


def test_names_with_nul_are_left_out(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", named(*TWO, "a/2.jpg#.txt"))
    path.write_bytes(path.read_bytes().replace(b"#", b"\0"))
    assert open_archive(path)["all"].paths == TWO
    assert "1 members with names that lead elsewhere ('a/2.jpg\\x00.txt')" in said(path)
    odd = member("ignored", b"x", pax_headers={"path": "a/2.jpg\0.txt"})
    pack_members(tmp_path / "x.tar", *(member(name) for name in TWO), odd)
    assert open_archive(tmp_path / "x.tar")["all"].paths == TWO


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["a/1.jpg", "./a/1.jpg", "a//1.jpg"])
def test_a_name_that_comes_twice_is_refused(tmp_path: Path, kind: str, again: str) -> None:
    if kind == ".zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in (*TWO, again):
                archive.writestr(name, name)
    else:
        pack_members(tmp_path / "x.tar", *(member(name) for name in (*TWO, again)))
    with pytest.raises(SourceError, match=r"has 'a/1.jpg' twice \(members 1 and 3 of its files\)"):
        open_archive(tmp_path / f"x{kind}")


def test_links_and_devices_in_tar_are_left_out(tmp_path: Path) -> None:
    path = pack_members(
        tmp_path / "x.tar",
        *(member(name, name.encode()) for name in TWO),
        member("a/soft.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("a/far.jpg", kind=tarfile.SYMTYPE, linkname="../../x"),
        member("a/hard.jpg", kind=tarfile.LNKTYPE, linkname="a/1.jpg"),
        member("a/pipe.jpg", kind=tarfile.FIFOTYPE),
        member("a/zero.jpg", kind=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("a/disk.jpg", kind=tarfile.BLKTYPE),
        member("a/odd.jpg", b"123", kind=b"Z"),
    )
    assert open_archive(path)["all"].paths == TWO
    assert said(path, quiet=True) == (
        "warning: 'x.tar': 3 devices or pipes ('a/pipe.jpg'), 2 symbolic links ('a/soft.jpg'), "
        "1 hard links ('a/hard.jpg'), 1 members of an unknown type ('a/odd.jpg') left out\n"
    )


def test_links_and_devices_in_zip_are_left_out(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", named(*TWO))
    with zipfile.ZipFile(path, "a") as archive:
        for name, mode in (("a/link.jpg", stat.S_IFLNK), ("a/pipe.jpg", stat.S_IFIFO)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            archive.writestr(info, "../../etc/passwd")
    assert open_archive(path)["all"].paths == TWO
    assert "1 symbolic links ('a/link.jpg'), 1 devices or pipes ('a/pipe.jpg') left" in said(path)


@pytest.mark.parametrize(
    "odd",
    [
        member("a/2.jpg", b"x", kind=tarfile.GNUTYPE_SPARSE),
        member("a/2.jpg", b"x", kind=b"M"),
        member("a/2.jpg", b"1\n0\n5\n", pax_headers={"GNU.sparse.major": "1"}),
    ],
)
def test_sparse_members_are_refused(tmp_path: Path, odd: tuple[object, object]) -> None:
    pack_members(tmp_path / "x.tar", member("a/1.jpg"), odd)
    with pytest.raises(SourceError, match=r"holds 'a/2.jpg' as a sparse file.* without --sparse"):
        open_archive(tmp_path / "x.tar")


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.mark.parametrize("fmt", FORMATS)
def test_names_that_are_not_ascii_or_not_utf8(tmp_path: Path, fmt: int) -> None:
    names = ["thé/1.jpg", "thé/日本.jpg", "b/1.jpg", "b/" + "long/" * 20 + "2.jpg"]
    names += ["caf\udce9/1.jpg"] if fmt != tarfile.PAX_FORMAT else []
    names += [f"thé/{'日本' * 60}.jpg"] if fmt != tarfile.USTAR_FORMAT else []
    path = pack(tmp_path / "x.tar", named(*names), format=fmt, errors="surrogateescape")
    source = pickle.loads(pickle.dumps(open_archive(path)["all"]))
    assert sorted(source.paths) == sorted(names)
    assert [source.read(row) for row in range(len(source))] == [raw(p) for p in source.paths]
    assert len(source.content_id()) == 64


def test_names_in_zip_that_do_not_say_their_encoding(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", named("a##/1.jpg", "b$/1.jpg"))
    # UTF-8, as macOS writes it; and code page 437, which is no UTF-8.
    path.write_bytes(path.read_bytes().replace(b"##", "é".encode()).replace(b"$", b"\x82"))
    assert open_archive(path)["all"].class_names == ("aé", "bé")


@pytest.mark.parametrize("kind", PLAIN)
def test_odd_names_survive(tmp_path: Path, kind: str) -> None:
    names = ("a b/ 1 .jpg", "a b/x.jpg/2.jpg", "b/" + "n" * 251 + ".jpg", "b/'\"\n.jpg")
    source = open_archive(pack(tmp_path / f"x{kind}", named(*names)))["all"]
    assert sorted(source.paths) == sorted(names)
    assert [source.read(row).decode() for row in range(4)] == list(source.paths)


NAMES = st.text(st.characters(exclude_characters="/\\\0:", exclude_categories=["Cs"]), min_size=1)


@given(
    st.dictionaries(NAMES.filter(lambda name: name not in (".", "..")), st.binary(max_size=1500)),
    st.sampled_from(FORMATS),
)
def test_any_tar_is_read_as_tarfile_reads_it(files: dict[str, bytes], fmt: int) -> None:
    files = {f"{name}/{name * (i % 9)}x": data for i, (name, data) in enumerate(files.items())}
    if fmt == tarfile.USTAR_FORMAT:
        files = {name: data for name, data in files.items() if len(name.encode()) < 100}
    with tempfile.TemporaryDirectory() as folder:
        path = pack(Path(folder, "x.tar"), files, format=fmt)
        index = index_tar(ArchiveFile.of(path))
        with tarfile.open(path) as tar:
            theirs = {m.name: (0, m.offset_data, m.size) for m in tar.getmembers()}
    assert {name: index.rows[row] for name, row in index.files.items()} == theirs
    assert len(theirs) == len(files)


def test_very_old_tar_and_large_numbers(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", named(*TWO), format=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[257:265] = bytes(8)  # V7 has no magic
    data[156] = 0
    data[124:136] = b"\x80" + (7).to_bytes(11, "big")  # base 256
    data[116:119] = b"\xe9\xe9\xe9"
    signed = [b - 256 if b > 127 else b for b in data[:148] + data[156:512]]
    data[148:156] = b"%06o\0 " % (sum(signed) + 256)
    path.write_bytes(data)
    source = open_archive(path)["all"]
    assert [source.read(row).decode() for row in range(2)] == list(TWO)


def _local(data: bytearray, name: bytes) -> int:
    return data.index(name) - 30


def _central(data: bytearray, name: bytes) -> int:
    return data.rindex(name) - 46


def _edit_zip(
    path: Path, change: Callable[[bytearray, int, int], None], method: int = zipfile.ZIP_DEFLATED
) -> Source:
    """Change the second member of a zip, given the offsets of its two headers."""
    payload = {"a/1.jpg": b"one" * 50, "b/1.jpg": b"two" * 50, "c/1.jpg": b"three" * 50}
    data = bytearray(pack(path, payload, method=method).read_bytes())
    change(data, _local(data, b"b/1.jpg"), _central(data, b"b/1.jpg"))
    path.write_bytes(data)
    return open_archive(path)["all"]


def _set(offset: int, fmt: str, value: int) -> Callable[[bytearray, int, int], None]:
    def change(data: bytearray, local: int, central: int) -> None:
        del local
        struct.pack_into(fmt, data, central + offset, value)

    return change


def _spoil(data: bytearray, local: int, central: int) -> None:
    del central
    data[local + 30 + 7 + 2] ^= 0xFF


def _no_local(data: bytearray, local: int, central: int) -> None:
    del central
    data[local : local + 2] = b"XX"


BAD_MEMBERS = {
    "declares less": (_set(24, "<I", 10), r"^unpacks to more than the 10 bytes that the archive"),
    "declares more": (_set(24, "<I", 1000), r"^damaged in the archive: unpacks to 150 of 1,000"),
    "huge": (_set(24, "<I", 0xFFFFFFF0), r"^4,294,967,280 bytes, more than 1,073,741,824: a zip b"),
    "absurd ratio": (_set(24, "<I", 500 << 20), r"^\d+ bytes that unpack to 524,288,000: a zip bo"),
    "encrypted": (_set(8, "<H", 1), r"^encrypted in the archive: unpack it with the password$"),
    "bad CRC": (_set(16, "<I", 1), r"^damaged in the archive: its checksum \(CRC-32\) is wrong$"),
    "another method": (_set(10, "<H", 14), r"^packed by zip's method 14, which featx does not"),
    "no header": (_no_local, r"^the archive is damaged: no image where its list says"),
    "bad stream": (_spoil, r"^damaged in the archive"),
}


class _Slow(io.FileIO):
    def readinto(self, buffer: Any) -> int | None:
        return super().readinto(memoryview(buffer)[:13])

    def read(self, size: int | None = -1) -> bytes | None:
        return super().read(13 if size is None or size < 0 else min(size, 13))


class _Broken(io.FileIO):
    def read(self, *_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    readinto = read


@pytest.mark.parametrize("kind", PLAIN)
def test_a_disk_that_is_slow_or_broken_while_members_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = pack(tmp_path / f"x{kind}", {"a/1.jpg": b"one" * 50, "b/2.jpg": b"two" * 50})
    for disk in (_Slow, _Broken):
        stream = type("Stream", (members_module._Stream, disk), {})
        with monkeypatch.context() as patch:
            patch.setattr(members_module, "_Stream", stream)
            if disk is _Slow:
                source = open_archive(path)["all"]
                assert (source.read(0), source.read(1)) == (b"one" * 50, b"two" * 50)
                continue
            with pytest.raises(ReadError, match=f"^cannot read '.*x{kind}': Input/output error"):
                open_archive(path)


@pytest.mark.parametrize("name", BAD_MEMBERS)
def test_a_bad_member_of_a_zip_is_one_bad_image(tmp_path: Path, name: str) -> None:
    change, reason = BAD_MEMBERS[name]
    source = _edit_zip(tmp_path / "x.zip", change)
    for read in (source.read, source.image):
        with pytest.raises(ImageError, match=reason):
            read(1)
    assert (source.read(0), source.read(2)) == (b"one" * 50, b"three" * 50)
    assert len(source.content_id()) == 64


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_methods_of_zip(tmp_path: Path, method: int) -> None:
    source = _edit_zip(tmp_path / "x.zip", lambda *_: None, method)
    assert [source.read(row) for row in range(3)] == [b"one" * 50, b"two" * 50, b"three" * 50]
    source = _edit_zip(tmp_path / "x.zip", _set(24, "<I", 10), method)
    with pytest.raises(ImageError, match=r"^unpacks to more than the 10 bytes"):
        source.read(1)


def test_a_lying_member_unpacks_no_more_than_it_declares(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", named(*TWO) | {"c/1.jpg": bytes(64 << 20)})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, _central(data, b"c/1.jpg") + 24, 10)
    path.write_bytes(data)
    source = open_archive(path)["all"]
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"^unpacks to more than the 10 bytes"):
        source.read(2)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    def onto_the_first(data: bytearray, local: int, central: int) -> None:
        del local
        struct.pack_into("<I", data, central + 42, 0)

    def behind_the_list(data: bytearray, local: int, central: int) -> None:
        del local
        struct.pack_into("<I", data, central + 42, central)

    for change in (onto_the_first, behind_the_list):
        with pytest.raises(SourceError, match=r"x.zip' has members that overlap, as a zip bomb"):
            _edit_zip(tmp_path / "x.zip", change)


def test_zip64_and_other_files_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = pack(tmp_path / "x.zip", named(*TWO))
    assert b"PK\6\7" in path.read_bytes()
    path.write_bytes(b"#!/bin/unpack\n" * 9 + path.read_bytes())
    with pytest.raises(SourceError, match="is no tar archive"):
        open_archive(path.rename(tmp_path / "x.tar"))
    source = open_archive((tmp_path / "x.tar").rename(path))["all"]
    assert [source.read(row).decode() for row in range(2)] == list(TWO)


def test_a_zip_cut_short_at_any_byte(tmp_path: Path) -> None:
    whole = pack(tmp_path / "x.zip", named(*TWO)).read_bytes()
    for n_bytes in range(len(whole)):
        (tmp_path / "x.zip").write_bytes(whole[:n_bytes])
        with pytest.raises(SourceError, match=r"is cut short after|is no zip archive|is damaged"):
            open_archive(tmp_path / "x.zip")


def test_a_tar_cut_short_at_any_block(tmp_path: Path) -> None:
    whole = pack(tmp_path / "x.tar", named(*TWO, "c/" + "n" * 150 + ".jpg")).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for n_bytes in (*range(0, end + 1, 512), 1, 511, 513, 1023, end - 1, end + 511):
        (tmp_path / "x.tar").write_bytes(whole[:n_bytes])
        with pytest.raises(SourceError, match=r"is cut short after|is no tar archive"):
            open_archive(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(whole[: end + 512])
    assert len(open_archive(tmp_path / "x.tar")["all"]) == 3


def test_a_damaged_header_does_not_end_the_list(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", named(*TWO, "c/1.jpg"))
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 1  # what a library may make of it
    with pytest.raises(SourceError, match=r"x.tar' is damaged at byte 1,024: copy or download"):
        open_archive(path)


def _tar_header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(name.ljust(100, b"\0") + bytes(412))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


@pytest.mark.parametrize(
    "header",
    [
        _tar_header(b"a/2.jpg", b"\xff" * 11 + b"\0"),  # -256: a reader could go in circles
        _tar_header(b"a/2.jpg", b"\xff" * 12),
        _tar_header(b"a/2.jpg", b"-0000001000\0"),
        _tar_header(b"a/2.jpg", b"0000000zzzz\0"),
        _tar_header(b"x", b"77777777777\0", b"x"),
        _tar_header(b"x", b"\x80" + b"\x7f" * 11, b"L"),
        _tar_header(b"x", b"00000000010\0", b"x") + b"99 path=".ljust(512, b"x"),
        _tar_header(b"x", b"00000000010\0", b"x") + b"-9 path=".ljust(512, b"x"),
        _tar_header(b"x", b"00000000010\0", b"x") + b"xxxxxxxx".ljust(512, b"x"),
        _tar_header(b"x", b"00000000012\0", b"x") + b"10 size=x\n".ljust(512, b"\0"),
        _tar_header(b"x", b"00000000012\0", b"x") + b"10 size=x\n".ljust(512, b"\0") + bytes(512),
        _tar_header(b"x", b"00000000013\0", b"x") + b"11 size=-9\n".ljust(512, b"\0"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: bytes) -> None:
    path = pack(tmp_path / "x.tar", named(*TWO))
    path.write_bytes(header + path.read_bytes())
    with pytest.raises(SourceError, match=r"is damaged|is cut short|is no tar archive"):
        open_archive(path)


def test_a_second_archive_behind_the_end_is_refused(tmp_path: Path) -> None:
    first = pack(tmp_path / "x.tar", named(*TWO))
    first.write_bytes(first.read_bytes() * 2)
    with pytest.raises(SourceError, match="is followed by a second archive in the same file"):
        open_archive(first)


def outcome(path: Path) -> str:
    try:
        source = next(iter(open_archive(path).values()))
        return f"{len([source.read(row) for row in range(len(source))])} images"
    except FeatxError as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_bytes_give_our_errors_only(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    path = pack(tmp_path / f"x{kind}", named("a/1.jpg", "b/1.jpg", "b/" + "é" * 90 + ".jpg"))
    whole = path.read_bytes()
    whole = whole.rstrip(b"\0") + bytes(2048) if kind == ".tar" else whole
    outcomes = []
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        outcomes.append(outcome(path))
    assert len(set(outcomes)) > (3 if kind in PLAIN else 1)
    assert not any("\n" in text for text in outcomes)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_archives(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    for data in (b"", b"x", b"<!doctype html>" + b"x" * 1000):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"x.*' is no (zip|tar) archive$"):
            open_archive(path)
    path.unlink()
    with pytest.raises(SourceError, match=r"cannot read '.*x\..*': No such file"):
        open_archive(path)
    path.mkdir()
    with pytest.raises(SourceError, match="is no archive but a folder"):
        open_archive(path)


def test_what_counts_is_the_content_and_not_the_ending(tmp_path: Path) -> None:
    packed = {kind: pack(tmp_path / f"x{kind}", named(*TWO)) for kind in KINDS}
    for kind, path in packed.items():
        for other in KINDS:
            copy = tmp_path / f"copy{other}"
            shutil.copy(path, copy)
            source = open_archive(copy)["all"]
            assert source.paths == TWO
            assert isinstance(source, ZipSource if kind == ".zip" else TarSource)


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "MOST_MEMBERS", 1)
    for kind in PLAIN:
        with pytest.raises(SourceError, match="has more than 1 files"):
            open_archive(pack(tmp_path / f"x{kind}", named(*TWO)))
    monkeypatch.setattr("featx.sources.archives.archive._MOST_DIRECTORY_BYTES", 50)
    with pytest.raises(SourceError, match="has a list of members of more than 50 bytes"):
        open_archive(tmp_path / "x.zip")


def test_a_tar_member_too_large_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_archive(pack(tmp_path / "x.tar", named(*TWO)))["all"]
    monkeypatch.setattr("featx.sources.archives.tar.MOST_IMAGE_BYTES", 3)
    with pytest.raises(ImageError, match="^7 bytes, more than 3$"):
        source.read(0)


@pytest.mark.parametrize("kind", PLAIN)
def test_an_archive_that_changed_is_an_error_of_the_whole(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / f"x{kind}", named(*TWO))
    source = open_archive(path)["all"]
    pack(path, named(*TWO, "a/2.jpg"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(SourceError, match="has changed since it was listed: start again"):
        source.read(0)
    path.unlink()
    with pytest.raises(SourceError, match="cannot read .*: No such file"):
        source.content_id()


@pytest.mark.parametrize("kind", KINDS)
def test_hashes_are_remembered_while_the_archive_is_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.sources.places._COARSEST_CLOCK_NS", 0)
    path = pack(tmp_path / f"x{kind}", named(*TWO))
    source = open_archive(path)["all"]
    before = source.content_id()
    with monkeypatch.context() as patch:
        patch.setattr(type(source), "read", None)
        assert open_archive(path)["all"].content_id() == before
    pack(path, {"a/1.jpg": b"another", "b/1.jpg": b"b/1.jpg"})
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # also on a clock that is coarse
    assert open_archive(path)["all"].content_id() != before


@pytest.mark.parametrize("kind", PLAIN)
def test_a_disk_that_fails_is_no_bad_image(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_archive(pack(tmp_path / f"x{kind}", named(*TWO)))["all"]
    broken = type("Stream", (members_module._Stream, _Broken), {})
    monkeypatch.setattr(members_module, "_Stream", broken)
    with pytest.raises(ReadError, match=r"^cannot read '.*/x\..*': Input/output error\."):
        source.read(0)
    with pytest.raises(ImageError, match="^cannot be read: the archive ends before it does$"):
        read_tar_member(io.BytesIO(b"123"), 1, 3)
    with pytest.raises(ValueError, match="^members must give one image for each label$"):
        replace(source, members=source.members[:1])


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_worker_processes_and_threads(photo_tree: Path, kind: str, method: str) -> None:
    path = pack_folder(photo_tree.parent / f"x{kind}", photo_tree)
    source = open_archive(path)["all"]
    wanted = [files_of(photo_tree)[name] for name in source.paths]
    rows = list(range(len(source))) * 4
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(source.read, rows) == wanted * 4
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(source.read, rows * 5)) == wanted * 20
    assert pickle.loads(pickle.dumps(source)).read(3) == wanted[3]


def test_endings() -> None:
    for name in ("a.zip", "A.ZIP", "a.tar", "a.TAR.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.txz"):
        assert is_archive(name)
        assert is_archive(Path("somewhere", name))
    for name in ("a.gz", "zip", "tar", "a.csv", "a.rar", "a.7z", "a.zip.txt", ""):
        assert not is_archive(name)


def unpacked(data_dir: Path) -> list[str]:
    folder = data_dir / "unpacked"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("kind", [kind for kind in MODES if kind != ".tar"])
def test_a_compressed_tar_is_unpacked_once(
    tmp_path: Path, data_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / f"my set{kind}", named(*TWO))
    text = said(path)
    assert "a compressed tar has no random access, so it is unpacked once\n" in text
    assert f"unpacking my set{kind}: 1/1" in text
    [tar] = [name for name in unpacked(data_dir) if name.endswith(".tar")]
    assert re.fullmatch(r"my_set-[0-9a-f]{16}\.tar", tar)
    assert f"unpacked 0 MB to {data_dir / 'unpacked' / tar}" in text
    assert not [name for name in unpacked(data_dir) if name.endswith(".part")]
    assert said(path) == ""
    shutil.copy(path, tmp_path / f"my set 2{kind}")
    path.touch()
    assert said(path) == ""
    monkeypatch.setattr("hashlib.file_digest", None)  # not needed a second time
    assert open_archive(path)["all"].name == "my set"
    monkeypatch.undo()
    other = tmp_path / "other"
    assert open_archive(path, data_dir=other)["all"].read(0) == b"a/1.jpg"
    assert (other / "unpacked" / tar).is_file()
    (other / "unpacked" / tar).unlink()
    assert open_archive(path, data_dir=other)["all"].read(0) == b"a/1.jpg"
    (other / "unpacked" / tar).write_bytes(b"not whole")
    assert open_archive(path, data_dir=other)["all"].read(0) == b"a/1.jpg"


def test_another_content_under_the_same_name_is_unpacked_anew(
    tmp_path: Path, data_dir: Path
) -> None:
    path = pack(tmp_path / "x.tar.gz", named(*TWO))
    open_archive(path)
    pack(path, named("c/1.jpg", "d/1.jpg"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert open_archive(path)["all"].class_names == ("c", "d")
    assert len([name for name in unpacked(data_dir) if name.endswith(".tar")]) == 2


@pytest.mark.parametrize("kind", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_compressed_tar_cut_short_leaves_nothing(
    tmp_path: Path, data_dir: Path, kind: str
) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    path = pack(tmp_path / f"x{kind}", named(*TWO) | {"a/2.jpg": noise})
    whole = path.read_bytes()
    for cut in (20, 1000, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"is damaged or cut short \(|no tar archive inside"):
            open_archive(path)
        assert not [name for name in unpacked(data_dir) if not name.endswith(".lock")]
    path.write_bytes(whole[:900] + b"\0\1\2\3" + whole[904:])
    with pytest.raises(SourceError):
        open_archive(path)


def test_a_compressed_file_that_is_no_tar(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(b"hello" * 1000))
    with pytest.raises(SourceError, match="is compressed, but no tar archive inside"):
        open_archive(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(SourceError, match="by Zstandard, which featx does not read: unpack it"):
        open_archive(path)


def test_a_decompression_bomb_is_refused(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.sources.archives.unpacked._SMALL_BYTES", 1 << 20)
    path = pack(tmp_path / "x.tar.xz", named(*TWO) | {"a/2.jpg": bytes(30 << 20)})
    with pytest.raises(SourceError, match=r"unpacks to more than 1,\d+,\d+ bytes from .* a decomp"):
        open_archive(path)
    assert not [name for name in unpacked(data_dir) if not name.endswith(".lock")]


def test_a_full_disk_is_said(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "x.tar.gz", named(*TWO))
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SourceError, match=r"cannot unpack .*: only 3 MB are free: make room, or"):
        open_archive(path)
    monkeypatch.undo()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SourceError, match=r"cannot unpack .*: Not a directory|File exists"):
        open_archive(path, data_dir=file)

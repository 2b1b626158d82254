from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featx.cli import main
from featx.store import CacheSpec, CacheWriter


def begin(path, n_rows=10):
    meta = {"backbone": "vgg16", "data": "cifar10", "split": "test", "layer": "features"}
    names = [str(i) for i in range(10)]
    spec = CacheSpec({"n": 10}, meta, np.zeros(10, int), ["cat"], names, 4, "float16")
    writer = CacheWriter.open(path, spec)
    writer.write(0, np.ones((n_rows, 4), np.float32), {2: "broken"})
    writer.commit()
    return writer


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with begin("cache/a.h5") as writer:
        writer.finish()
    begin("cache/b.h5", 4).close()
    return tmp_path


def answer(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_pack_and_unpack(in_tmp, capsys):
    before = (in_tmp / "cache/a.h5").read_bytes()
    assert main(["pack", "cache/a.h5", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"a\.featx\.h5: [\d.]+ MB became [\d.]+ MB \(ratio [\d.]+\) in", out)
    assert main(["pack", "cache/a.h5"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["pack", "cache/a.h5", "--overwrite", "--level", "9"]) == 0
    assert main(["pack", "cache/a.h5", "--level", "12", "-o", "x"]) == 2
    capsys.readouterr()
    assert main(["unpack", "cache/a.featx.h5", "-o", "back.h5"]) == 0
    assert "back.h5: 0.1 MB in" in capsys.readouterr().out
    assert (in_tmp / "back.h5").read_bytes() == before
    assert main(["unpack", "cache/a.featx.h5"]) == 0
    assert "is there already, and the same" in capsys.readouterr().out
    assert main(["verify", "back.h5"]) == 0


def test_a_damaged_archive_is_one_line(in_tmp, capsys):
    assert main(["pack", "cache/a.h5", "-o", "x.featx.h5"]) == 0
    content = bytearray((in_tmp / "x.featx.h5").read_bytes())
    content[-9] ^= 1
    (in_tmp / "x.featx.h5").write_bytes(content)
    assert main(["unpack", "x.featx.h5", "--quiet"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "x.featx.h5: damaged" in err
    assert not (in_tmp / "x.h5").exists()


def test_an_archive_is_described_and_verified_like_its_cache(in_tmp, capsys):
    assert main(["info", "cache/a.h5"]) == 0
    of_cache = capsys.readouterr().out.splitlines()
    assert main(["pack", "cache/a.h5", "-o", "my a.h5", "-q"]) == 0
    capsys.readouterr()
    assert main(["info", "my a.h5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    packed = [line for line in lines if line not in of_cache]
    assert packed[0] == "my a.h5: complete"
    assert re.fullmatch(r"packed: gzip, [\d.]+ kB when unpacked \(ratio [\d.]+\)", packed[-2])
    assert packed[-1] == "unpack: featx unpack 'my a.h5'"
    assert set(of_cache) - set(lines) <= {"cache/a.h5: complete", "size: 61.7 kB"}
    assert lines[-1] == "  row 2: 2: broken"
    assert main(["verify", "my a.h5"]) == 0
    assert capsys.readouterr().out == "my a.h5: intact\n"
    assert main(["repair", "my a.h5"]) == 1
    assert "a packed archive: get the cache back with  featx unpack" in capsys.readouterr().err


def test_export(in_tmp, capsys):
    assert main(["export", "cache/a.h5", "--format", "npz", "-q"]) == 0
    out = capsys.readouterr().out
    assert "a.npz: 9 rows, 1.3 kB, 1 left out because" in out
    words = ["export", "cache/a.h5", "-f", "npz", "-o", "b.npz", "--rows", "1:7:2", "-q"]
    assert main([*words, "--keep-failed"]) == 0
    with np.load(in_tmp / "b.npz", allow_pickle=False) as found:
        assert found["paths"].tolist() == ["1", "3", "5"]
    assert main([*words]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", "cache/a.h5", "-f", "projector", "-q"]) == 0
    assert (in_tmp / "cache/a.projector/tensors.tsv").is_file()
    for rows in ("3", "a:b", "1:2:0"):
        assert main([*words[:-3], "--rows", rows]) == 2
        assert "START:STOP" in capsys.readouterr().err
    assert main(["export", "cache/a.h5"]) == 2


def test_list(in_tmp, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"cache/a\.h5 +complete +61\.7 kB +\d+ s +vgg16 cifar10 test features", out)
    assert re.search(r"cache/b\.h5\.\S+\.partial +partial 40 % ", out)
    assert "2 files in cache" in out
    assert main(["cache", "list", "--cache", "none"]) == 1
    assert "--cache DIR" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["n\n", "\n", ""])
def test_rm_asks_first(in_tmp, capsys, monkeypatch, text):
    answer(monkeypatch, text)
    before = sorted((in_tmp / "cache").iterdir())
    assert main(["cache", "rm", "a.h5", "b.h5"]) == 0
    out = capsys.readouterr().out
    assert "cache/a.h5 (complete, 61.7 kB): vgg16" in out
    assert "remove 2 files for good? [y/N]" in out
    assert "nothing was removed" in out
    assert sorted((in_tmp / "cache").iterdir()) == before


def test_rm_removes_when_told_to(in_tmp, capsys, monkeypatch):
    answer(monkeypatch, "y\n")
    assert main(["cache", "rm", "a.h5"]) == 0
    assert "removed 1, freed" in capsys.readouterr().out
    assert not (in_tmp / "cache/a.h5").exists()
    assert main(["cache", "rm", "b.h5", "--yes"]) == 0
    assert list((in_tmp / "cache").glob("[!.]*")) == []


def test_rm_refuses_what_another_process_writes(in_tmp, capsys):
    code = "import sys, test_archive_commands as t\nwith t.begin('cache/c.h5', 4):\n"
    code += "    print('open', flush=True); sys.stdin.readline()\n"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert child.stdout.readline() == b"open\n"
    try:
        assert main(["cache", "rm", "c.h5", "--yes"]) == 1
        assert f"being written by process {child.pid} on" in capsys.readouterr().err
        assert main(["cache", "gc", "--older-than", "0", "--yes"]) == 0
        assert "in use" in capsys.readouterr().err
        assert len(list((in_tmp / "cache").glob("c.h5*"))) == 3
    finally:
        child.communicate(b"\n", timeout=300)


def test_gc_shows_and_asks(in_tmp, capsys, monkeypatch):
    (in_tmp / "cache/mine.txt").write_text("x")
    assert main(["cache", "gc"]) == 0
    assert "nothing older than 7 days" in capsys.readouterr().out
    answer(monkeypatch, "n\n")
    assert main(["cache", "gc", "--older-than", "0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"b\.h5\.\S+\.partial +partial 40 %, resumable", out)
    assert "remove these 1, and free" in out
    assert "nothing was removed" in out
    assert main(["cache", "gc", "--older-than", "0", "--yes"]) == 0
    assert sorted(p.name for p in (in_tmp / "cache").iterdir()) == ["a.h5", "mine.txt"]


def test_rm_stays_in_its_folder(in_tmp, capsys):
    (in_tmp / "a.h5").write_bytes((in_tmp / "cache/a.h5").read_bytes())
    assert main(["cache", "rm", "../a.h5", "--yes"]) == 2
    assert "outside the cache folder" in capsys.readouterr().err
    assert (in_tmp / "a.h5").exists()


def test_verify_tells_what_is_no_cache_from_what_is_damaged(in_tmp, capsys):
    assert main(["export", "cache/a.h5", "--format", "npz", "-q"]) == 0
    Path("cache/folder").mkdir()
    capsys.readouterr()
    files = sorted(str(path) for path in Path("cache").glob("*"))
    assert main(["verify", *files, "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cache/a.h5: intact" in lines
    assert "cache/a.npz: not checked: not a cache" in lines
    assert "cache/folder: not checked: a folder" in lines
    assert sum("not checked: unfinished" in line for line in lines) == 2  # and its journal
    assert "DAMAGED" not in "".join(lines)
    assert main(["verify", "cache/a.npz"]) == 1
    assert "none of these is a finished cache" in capsys.readouterr().err
    Path("cache/b.h5").write_bytes(b"\0" * 8192)
    assert main(["verify", "cache/b.h5", "-q"]) == 1
    assert "DAMAGED" in capsys.readouterr().out

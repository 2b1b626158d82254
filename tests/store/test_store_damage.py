"""One flipped bit anywhere in a finished file is found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from store_helpers import SEED, fill, flip, header_of, make_rows, make_spec

from featx.errors import CacheError
from featx.progress import Reporter
from featx.store import Cache, read_summary, verify_file
from featx.store.header import HeaderBlock

WORKER = Path(__file__).with_name("mutant_worker.py")
SPEC = make_spec(70, 20_000, "float32")  # 2.8 MB of features, 13 rows a block
BLOCK_ROWS = 13


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("pristine") / "a.h5"
    fill(target, SPEC, make_rows(SPEC), failed={5: "truncated"})
    assert verify_file(target) == []
    return target.read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("small") / "a.h5"
    fill(target, make_spec(), make_rows(make_spec()), failed={5: "truncated"})
    return target


def check_flip(path: Path, bit: int, seal: HeaderBlock) -> None:
    """Flip one bit of a file, see it found, and flip it back."""

    flip(path, bit)
    is_feature = seal.features_offset <= bit // 8 < seal.features_end
    if not is_feature:
        with pytest.raises(CacheError, match=r"damaged|not a featx cache|newer featx"):
            Cache.open(path)
        (damage,) = verify_file(path)
        assert damage.dataset == "file"
    else:
        with Cache.open(path) as cache:
            (damage,) = cache.verify()
            row_bytes = cache.X.nbytes // len(cache)
        row = (bit // 8 - seal.features_offset) // row_bytes
        assert damage.dataset == "features"
        assert damage.start <= row < damage.stop
    flip(path, bit)


def test_random_bit_flips_in_all_of_the_file(tmp_path: Path, small: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(small.read_bytes())
    seal = header_of(small)
    rng = np.random.default_rng(SEED)
    bits = rng.integers(0, 8 * seal.file_bytes, 300).tolist()
    first, last = 8 * seal.features_offset, 8 * seal.features_end
    bits += rng.integers(first, last, 40).tolist()
    bits += rng.integers(0, 8 * 320, 40).tolist()  # the text of the user block
    bits += [0, first - 1, first, last - 1, last, 8 * seal.file_bytes - 1]
    for bit in bits:
        check_flip(path, bit, seal)
    assert verify_file(path) == []


@pytest.mark.slow
def test_every_bit_of_a_small_file(tmp_path: Path, small: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(small.read_bytes())
    seal = header_of(small)
    for bit in range(8 * seal.file_bytes):
        check_flip(path, bit, seal)


def test_damage_names_each_run_of_rows(tmp_path: Path, pristine: bytes) -> None:
    seal = HeaderBlock.parse(pristine[:4096])
    content = bytearray(pristine)
    for row in (0, 14, 69):
        content[seal.features_offset + row * 80_000 + 7] ^= 255
    (tmp_path / "a.h5").write_bytes(content)
    damage = verify_file(tmp_path / "a.h5")
    assert [(d.start, d.stop) for d in damage] == [(0, 26), (65, 70)]
    assert str(damage[1]) == "features rows 65-69: changed since they were written"
    assert all(d.dataset == "features" for d in damage)


def test_verify_shows_progress(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_file(small, Reporter()) == []
    assert "verify a.h5: 40/40" in capsys.readouterr().err


def test_changes_while_it_is_open_are_found(tmp_path: Path, small: Path) -> None:
    content = small.read_bytes()
    seal = HeaderBlock.parse(content[:4096])
    path = tmp_path / "a.h5"
    for at, reason in ((20, "first 4,096 bytes"), (seal.features_offset - 1, "labels, names")):
        path.write_bytes(content)
        with Cache.open(path) as cache:
            with path.open("r+b") as stream:
                stream.seek(at)
                stream.write(b"\xee")
            (damage,) = cache.verify()
            assert damage.dataset == "header"
            assert reason in damage.reason
    path.write_bytes(content)
    with Cache.open(path) as cache, path.open("ab") as stream:
        stream.write(b"x")
        stream.flush()
        (damage,) = cache.verify()
        assert damage.dataset == "header"
        assert re.search(r"bytes in place of .*: repeat the command .* --overwrite", damage.reason)


def test_truncation_and_growth_at_any_size(tmp_path: Path, small: Path) -> None:
    content = small.read_bytes()
    sizes = [*range(0, 5000, 97), *range(5000, len(content), 301), len(content) - 1]
    for size in sizes:
        (tmp_path / "a.h5").write_bytes(content[:size])
        with pytest.raises(CacheError):
            Cache.open(tmp_path / "a.h5")
        assert verify_file(tmp_path / "a.h5")[0].dataset == "file"
        with pytest.raises(CacheError):
            read_summary(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(content + b"\0")
    with pytest.raises(CacheError, match=r"damaged: it has .* bytes in place of"):
        Cache.open(tmp_path / "a.h5")


def test_rows_that_cannot_be_read_are_damage(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cache.open(small) as cache:

        def fails(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("featx.store.reader.hash_span", fails)
        (damage,) = cache.verify()
    assert (damage.start, damage.stop) == (0, 40)
    assert "Input/output error" in damage.reason


def mutants(path: Path, n_each: int, *more: str) -> Counter[str]:
    found: Counter[str] = Counter()
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", WORKER, path, str(seed), str(n_each), *more],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (SEED, SEED + 1)
    ]
    for worker in workers:
        text, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0, f"{worker.returncode}: a mutant crashed the reader"
        found.update(text.split())
    return found


def test_mutants_are_refused_and_never_crash(small: Path) -> None:
    found = mutants(small, 500)
    assert found["accepted"] == 0
    assert found["refused"] > 850
    assert found["damage"] > 5


def test_sealed_mutants_never_crash(small: Path) -> None:
    """A stranger may seal anything: what HDF5 accepts then is data, what it refuses an error."""
    found = mutants(small, 500, "resealed")
    assert found["refused"] > 100
    assert found["accepted"] + found["damage"] > 100

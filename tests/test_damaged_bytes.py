"""A flipped bit anywhere in a cache is an error for everything that reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featx
from featx.cli.main import main
from featx.errors import CacheError, FeatxError
from featx.evaluate import ResultsFolder, Settings, evaluate, pair_caches
from featx.export import export_cache
from featx.store import Cache, CacheSpec, CacheWriter
from featx.store.header import HeaderBlock
from featx.store.pack import pack_cache, unpack_cache

N_FEATURES = 20_000  # 13 rows of float32 in a block
META = {
    **{"data": "farm", "backbone": "net", "layer": "last", "pool": "none", "sample": None},
    **{"input_size": 32, "precision": "fp32", "feature_shape": [N_FEATURES]},
}


def write(path: Path, split: str, n: int) -> None:
    rng = np.random.default_rng(len(split))
    labels = np.arange(n) % 3
    rows = np.random.default_rng(9).normal(size=(3, N_FEATURES))[labels]
    rows = (rows + 16 * rng.normal(size=rows.shape)).astype(np.float32)
    digests = rng.integers(0, 256, (n, 32)).astype(np.uint8)
    names, paths = ["ant", "bee", "cow"], [f"{split}/{i}.png" for i in range(n)]
    identity = {"source": {"content": split}, "weights": "w", "schema": 1}
    spec = CacheSpec(
        identity, {**META, "split": split}, labels, names, paths, N_FEATURES, "float32", digests
    )
    with CacheWriter.open(path, spec) as writer:
        writer.write(0, rows)
        writer.finish()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    write(folder / "train.h5", "train", 40)
    write(folder / "test.h5", "test", 24)
    return folder


def fit(folder: Path) -> Any:
    with Cache.open(folder / "train.h5") as train, Cache.open(folder / "test.h5") as test:
        ((pair,), _) = pair_caches([train, test])
        (found,) = evaluate(pair, Settings(heads=("ridge",), C=1.0, per_class=(12,), repeats=1))
        return found.acc1, found.detail["predictions"], found.detail["leaks"]


def larger_than_memory(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featx.evaluate.run.available_bytes", lambda: 0)
        return fit(folder)


def loaded(key: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        with featx.load(folder / "train.h5") as cache:
            about = (cache.paths, cache.class_names, cache.errors, cache.meta, cache.fingerprint)
            return cache.X[key].tobytes(), cache.y.tolist(), cache.image_digests.tolist(), about

    return read


def sampled(folder: Path) -> Any:
    with featx.load(folder / "train.h5") as cache:
        return [part.tobytes() for part in cache.sample(12, seed=0)]


def as_array(folder: Path) -> Any:
    with featx.load(folder / "train.h5") as cache:
        return np.asarray(cache.X).tobytes(), np.array(cache.X, np.float64).tobytes()


def exported(folder: Path) -> Any:
    return export_cache(folder / "train.h5", "npz", overwrite=True).path.read_bytes()


def packed(folder: Path) -> Any:
    archive = pack_cache(folder / "train.h5", overwrite=True).path
    out = folder / "unpacked" / "a.h5"
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    unpack_cache(archive, out)
    return out.read_bytes()


READERS = {
    "fit": fit,
    "fit, larger than memory": larger_than_memory,
    "rows of all blocks": loaded([39, 0, 30, 13]),
    "slice": loaded(slice(None)),
    "steps": loaded(slice(None, None, 7)),
    "sample": sampled,
    "array": as_array,
    "export": exported,
    "pack": packed,
}


def regions(content: bytes) -> dict[str, tuple[int, int]]:
    seal = HeaderBlock.parse(content[:4096])
    edges = (0, 320, 4096, seal.features_offset, seal.features_end, len(content))
    return dict(zip(("text", "zeros", "head", "features", "tail"), pairwise(edges), strict=True))


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_is_an_error(pristine: Path, tmp_path: Path, reader: str) -> None:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / "train.h5").read_bytes()
    assert READERS[reader](tmp_path)
    rng = np.random.default_rng(0)
    for region, (first, last) in regions(content).items():
        for at in rng.integers(first, last, 3).tolist():
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            (tmp_path / "train.h5").write_bytes(changed)
            with pytest.raises(FeatxError) as error:
                READERS[reader](tmp_path)
            assert region == "text" or "damaged" in str(error.value)


def flip_in_row(path: Path, row: int) -> None:
    content = bytearray(path.read_bytes())
    content[HeaderBlock.parse(content[:4096]).features_offset + row * 4 * N_FEATURES + 7] ^= 64
    path.write_bytes(content)


def test_only_what_is_read_is_checked_and_only_once(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(pristine / "train.h5", tmp_path))
    flip_in_row(path, 30)
    with Cache.open(path) as cache:
        n_read: list[int] = []
        original = featx.store.disk.pread_into

        def counted(fd: int, view: memoryview, offset: int) -> None:
            n_read.append(len(view))
            original(fd, view, offset)

        monkeypatch.setattr("featx.store.disk.pread_into", counted)
        row = 4 * N_FEATURES
        first = cache.X[[14, 1, 20]]
        assert sorted(n_read) == [row, 13 * row, 13 * row]
        n_read.clear()
        assert (cache.X[[14, 1, 20]] == first).all()
        assert n_read == [row] * 3
        with pytest.raises(CacheError, match=r"features rows 26-38 changed .* featx repair .*h5"):
            _ = cache.X[27]
        with pytest.raises(CacheError, match="features rows 26-38 changed"):
            np.asarray(cache.X)
        assert cache.X[39].any()


def accuracy(folder: Path, reports: str) -> float:
    words = ["--cache", str(folder / "cache"), "--reports", str(folder / reports)]
    assert main(["fit", "--clf", "svm", "--per-class", "4", "--repeats", "1", *words]) == 0
    (result,) = ResultsFolder(folder / reports).fits()
    return result.acc1


def test_no_answer_comes_of_damaged_features_nor_outlives_their_repair(
    digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits_folder / "cache", tmp_path / "cache")
    wanted = accuracy(tmp_path, "right")
    assert wanted > 0.3
    train = next((tmp_path / "cache").glob("*train*.h5"))
    content = train.read_bytes()
    first, last = regions(content)["features"]
    other = np.random.default_rng(0).normal(size=(last - first) // 2).astype("<f2").tobytes()
    train.write_bytes(content[:first] + other + content[last:])
    words = ["--cache", str(tmp_path / "cache"), "--reports", str(tmp_path / "wrong")]
    capsys.readouterr()
    assert main(["fit", "--clf", "svm", "--per-class", "4", "--repeats", "1", *words]) == 1
    assert f"featx repair {train}" in capsys.readouterr().err
    assert not list((tmp_path / "wrong").rglob("*.json"))
    # The answer of a featx that did not look, of before the repair.
    (path,) = (tmp_path / "right" / "fits").glob("*.json")
    record = featx.records.read_record("fit", path)
    del record["features_checked"]
    record["fit"] |= {"acc1": 0.2, "created": "2026-01-01T00:00:00+00:00"}
    stem = tmp_path / "wrong" / "fits" / path.stem
    featx.records.write_record(stem, "fit", record)
    assert main(["repair", str(train)]) == 0
    assert accuracy(tmp_path, "wrong") == wanted
    assert len(list((tmp_path / "wrong" / "fits").iterdir())) == 2
    # One of after it goes on answering.
    record["fit"]["created"] = "2999-01-01T00:00:00+00:00"
    featx.records.write_record(tmp_path / "old" / "fits" / path.stem, "fit", record)
    assert accuracy(tmp_path, "old") == 0.2

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import featx
from featx.cli.main import cli
from featx.concat import concat_caches
from featx.errors import CacheError, FeatxError, ModelError, SourceError, UsageError
from featx.evaluate import pair_caches
from featx.export import export_cache
from featx.feature_files import open_features
from featx.own_features import import_features, write_cache
from featx.store import Cache

N, D = 60, 7
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def features(seed=0, n=N, d=D, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 2 * (np.arange(n) % 3)[:, None]).astype(dtype)


def names(n=N):
    return [CLASSES[i % 3] for i in range(n)]


def digests(n=N, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (n, 32), dtype=np.uint8)


def cache_of(X, *, backbone="clip", data="pets", y=None, **options):
    return write_cache(
        X, names(len(X)) if y is None else y, backbone=backbone, data=data, **options
    )


def featx_command(*words):
    return CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=True)


# write_cache


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_arrays_are_stored_as_they_are(dtype):
    X = features(dtype=np.float64).round(1).astype(dtype)
    cache = cache_of(X, split="train")
    assert cache.meta["store_dtype"] == ("float16" if dtype == np.float16 else "float32")
    assert np.array_equal(cache.X[:].astype(np.float64), X.astype(np.float32))
    assert [cache.class_names[i] for i in cache.y] == names()
    assert cache.verify() == []
    assert featx.load("clip", folder="cache").path == cache.path


@pytest.mark.parametrize(
    "y",
    [
        np.arange(N) % 3,
        pd.Series(np.arange(N) % 3, dtype="Int64"),
        [float(i % 3) for i in range(N)],
        np.array([b"ant", b"bee", b"cat"] * 20),
        pd.Categorical(names()),
    ],
    ids=["int64", "Int64", "float", "bytes", "categorical"],
)
def test_labels_come_in_many_types(y):
    given = None if isinstance(y, pd.Categorical) or y[0] == b"ant" else CLASSES
    cache = cache_of(features(), y=y, class_names=given)
    assert [cache.class_names[i] for i in cache.y] == names()


def test_unknown_labels_and_rows_without_features_are_known_as_such():
    X, y = features(), [None, float("nan"), "", *names()[3:]]
    X[5] = np.nan
    cache = cache_of(X, y=y)
    assert cache.y[:3].tolist() == [-1, -1, -1]
    assert list(cache.errors) == [5]
    assert "NaN" in cache.errors[5]
    assert np.isnan(cache.X[5]).all()
    assert np.array_equal(np.delete(cache.X[:], 5, 0), np.delete(X, 5, 0))


def test_the_same_again_is_there_and_others_are_not_replaced():
    X = features()
    first = cache_of(X)
    stamp = first.path.stat().st_mtime_ns
    assert cache_of(X).path.stat().st_mtime_ns == stamp
    X[3, 3] += 1
    with pytest.raises(CacheError, match="overwrite"):
        cache_of(X)
    with pytest.raises(CacheError, match="overwrite"):
        cache_of(features(), made_by="another network")
    assert np.array_equal(cache_of(X, overwrite=True).X[:], X)


def test_rows_of_many_blocks_come_from_the_disk(monkeypatch):
    monkeypatch.setattr("featx.own_features.BLOCK_BYTES", 4 * D * 11)
    X = features()
    np.save("x.npy", X)
    cache = cache_of(np.load("x.npy", mmap_mode="r"))
    assert np.array_equal(cache.X[:], X)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"X": features()[0]}, UsageError, r"\(N, D\)"),
        ({"y": names()[1:]}, UsageError, "60 entries"),
        ({"y": [["a"]] * N}, UsageError, "not list"),
        ({"paths": ["a"] * N}, UsageError, "different"),
        ({"split": "fold3"}, UsageError, "choose from"),
        ({"class_names": ["ant", "bee"]}, UsageError, "'cat'"),
        ({"class_names": ["ant", "ant", "bee", "cat"]}, UsageError, "different"),
        ({"backbone": " "}, UsageError, "must be a name"),
        ({"dtype": "int8"}, CacheError, "float16 or float32"),
        ({"image_digests": np.zeros((3, 32), np.uint8)}, FeatxError, "60"),
        ({"X": np.full((N, D), np.inf)}, CacheError, "row 0"),
        ({"X": np.full((N, D), 1e39)}, CacheError, "do not fit"),
        ({"images": "photos"}, UsageError, "paths"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(change, error, words):
    given = {"X": features(), "y": names(), "backbone": "clip", "data": "pets"} | change
    with pytest.raises(error, match=words):
        write_cache(**given)
    assert not list(Path().glob("cache/*.h5"))


def test_a_row_that_is_partly_nan_is_refused():
    X = features()
    X[17, 2] = np.nan
    with pytest.raises(CacheError, match="row 17"):
        cache_of(X)


def test_images_are_hashed(photographs, tmp_path):
    paths = [path.name for path in photographs]
    X = features(n=len(paths))
    cache = cache_of(X, paths=paths, images=photographs[0].parent)
    expected = [hashlib.sha256(path.read_bytes()).digest() for path in photographs]
    assert [bytes(digest) for digest in cache.image_digests] == expected
    with pytest.raises(UsageError, match=r"1 of 40 images .* gone\.jpg"):
        cache_of(X, paths=["gone.jpg", *paths[1:]], images=photographs[0].parent)


# Splits, fits and leaks


def test_splits_of_one_name_are_fitted_and_tested_together():
    cache_of(features(0), split="train", made_by="clip")
    cache_of(features(1), split="test", made_by="clip")
    run = featx_command("fit", "--clf", "svm", "--per-class", "10", "--repeats", "2")
    assert run.exit_code == 0, run.output
    assert "clip" in run.output
    fits = sorted(Path("reports/fits").glob("*.json"))
    again = featx_command("fit", "--clf", "svm", "--per-class", "10", "--repeats", "2")
    assert again.exit_code == 0, again.output
    assert sorted(Path("reports/fits").glob("*.json")) == fits


def test_an_image_of_both_splits_is_a_leak():
    both = digests()
    cache_of(features(0), split="train", image_digests=both)
    other = digests(seed=1)
    other[7] = both[3]
    cache_of(features(1), split="test", image_digests=other)
    run = featx_command("fit", "--clf", "svm", "--per-class", "5", "--repeats", "1")
    assert "same file: test/00007 (bee) and train/00003 (ant)" in run.output


# Files


def saved(kind, X, y, paths, split=None):
    arrays = {"features": X, "labels": np.array(y), "paths": np.array(paths)}
    if split is not None:
        arrays["split"] = np.array(split)
    if kind == "npz":
        np.savez("own.npz", **arrays)
    elif kind == "parquet":
        columns = {name: a for name, a in arrays.items() if name != "features"}
        pd.DataFrame(columns | {"features": list(X)}).to_parquet("own.parquet")
    else:
        with h5py.File("own.h5", "w") as file:
            for name, array in arrays.items():
                file[name] = array.astype("S") if array.dtype.kind == "U" else array
    return f"own.{kind}"


@pytest.mark.parametrize("kind", ["npz", "parquet", "h5"])
def test_a_file_with_splits_becomes_a_cache_of_each(kind):
    X = features()
    split = np.where(np.arange(N) % 4 == 0, "Validation", "training")
    y = np.where((split == "Validation") & (np.array(names()) == "cat"), "bee", names())
    paths = [f"p{i}.jpg" for i in range(N)]
    file = saved(kind, X, y, paths, split)
    run = featx_command("import", file, "--name", "clip", "--data", "pets")
    assert run.exit_code == 0, run.output
    for name, word in (("train", "training"), ("val", "Validation")):
        rows = np.flatnonzero(split == word)
        cache = Cache.open(f"cache/pets-{name}-clip.h5")
        assert cache.class_names == CLASSES  # also where a split has no cat
        assert np.array_equal(cache.X[:], X[rows])
        assert cache.paths == [paths[row] for row in rows]
        assert [cache.class_names[i] for i in cache.y] == y[rows].tolist()


@pytest.mark.parametrize("kind", ["npz", "parquet"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_was_exported_can_be_imported(kind, dtype):
    X = features(dtype=dtype)
    before = cache_of(X, backbone="before", y=["", *names()[1:]])
    export_cache(before.path, kind, f"out.{kind}")
    run = featx_command(
        "import",
        f"out.{kind}",
        "--name",
        "after",
        "--data",
        "pets",
        "--store-dtype",
        np.dtype(dtype).name,
    )
    assert run.exit_code == 0, run.output
    after = Cache.open("cache/pets-all-after.h5")
    assert np.array_equal(after.X[:], before.X[:])
    assert after.X.stored_dtype == before.X.stored_dtype
    assert (after.paths, after.class_names) == (before.paths, before.class_names)
    assert np.array_equal(after.y, before.y)


@pytest.mark.parametrize("ending", ["npy", "csv", "txt"])
def test_labels_lie_in_a_file_of_their_own(ending):
    np.save("x.npy", features())
    if ending == "npy":
        np.save("y.npy", np.array(names()))
    elif ending == "csv":
        pd.DataFrame({"path": [f"{i}.png" for i in range(N)], "label": names()}).to_csv("y.csv")
    else:
        Path("y.txt").write_text("\n".join(names()) + "\n")
    words = ["--paths", "y.csv"] if ending == "csv" else []
    run = featx_command(
        "import",
        "x.npy",
        "--labels",
        f"y.{ending}",
        "--name",
        "a",
        "--data",
        "d",
        "--split",
        "train",
        *words,
    )
    assert run.exit_code == 0, run.output
    cache = Cache.open("cache/d-train-a.h5")
    assert [cache.class_names[i] for i in cache.y] == names()
    assert cache.paths[3] == ("3.png" if ending == "csv" else "train/00003")


class Bomb:
    def __reduce__(self):
        return open, ("run.txt", "w")


def test_nothing_in_a_file_is_run(tmp_path):
    np.savez("bomb.npz", features=features(), labels=np.array([Bomb()] * N, object))
    np.save("bomb.npy", np.array([[Bomb()]], object), allow_pickle=True)
    for file in ("bomb.npz", "bomb.npy"):
        run = featx_command("import", file, "--name", "a", "--data", "d", "--labels", "labels")
        assert isinstance(run.exception, SourceError), run.output
    assert not (tmp_path / "run.txt").exists()


def test_values_in_other_files_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * N * D))
    with h5py.File("own.h5", "w") as file:
        file["labels"] = np.arange(N) % 3
        file.create_dataset(
            "features", (N, D), "f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(SourceError, match="other files"), open_features(tmp_path / "own.h5"):
        pass


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["own.npz", "--features", "featurs"], "featurs"),
        (["own.npz", "--labels", "labls"], "labls"),
        (["own.txt"], "none of"),
        (["gone.npz"], "no file"),
        (["cut.npz"], "cannot be read"),
        (["x.npy"], "no labels"),
        (["cache.h5"], "already"),
        (["lists.parquet"], "differ in length"),
    ],
    ids=str,
)
def test_errors_of_files_are_for_people(words, told):
    saved("npz", features(), names(), range(N))
    np.save("x.npy", features())
    Path("own.txt").touch()
    Path("cut.npz").write_bytes(Path("own.npz").read_bytes()[:300])
    shutil.copy(cache_of(features(), folder="elsewhere").path, "cache.h5")
    pd.DataFrame({"features": [[1.0], [1.0, 2.0]], "label": [0, 1]}).to_parquet("lists.parquet")
    run = featx_command("import", *words, "--name", "a", "--data", "d")
    assert isinstance(run.exception, FeatxError), run.output
    assert told in str(run.exception)


def test_labels_and_rows_must_be_as_many():
    np.savez("own.npz", features=features(), labels=np.zeros(3))
    with (
        pytest.raises(SourceError, match=r"labels has the shape \(3,\): it must be \(60,\)"),
        open_features(Path("own.npz")),
    ):
        pass


def imported(file, *words):
    return featx_command("import", file, "--name", "a", "--data", "d", *words)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": np.float32(3)}, r"labels has the shape \(\)"),
        ({"labels": np.eye(3)[np.arange(N) % 3]}, r"labels has the shape \(60, 3\)"),
        ({"class_names": np.array("ant")}, r"class_names has the shape \(\)"),
        ({"class_names": np.array([CLASSES])}, r"class_names has the shape \(1, 3\)"),
        ({"paths": np.full((N, 1), "a")}, r"paths has the shape \(60, 1\)"),
        ({"labels": np.array(names(), object)}, "labels.*Python objects.*tolist"),
    ],
    ids=str,
)
def test_arrays_of_another_shape_or_kind_are_told(arrays, told):
    np.savez("own.npz", **{"features": features(), "labels": np.arange(N) % 3} | arrays)
    run = imported("own.npz")
    assert isinstance(run.exception, FeatxError), run.output
    assert re.search(told, str(run.exception)), str(run.exception)


def test_a_header_that_asks_for_more_than_there_is_names_its_file():
    head = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 512)}
    with zipfile.ZipFile("own.npz", "w") as archive, archive.open("features.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, head)
    with h5py.File("own.h5", "w") as file:
        file["features"] = features()
        file.create_dataset("labels", (10**12,), "i8", chunks=(1000,))
    for name in ("own.npz", "own.h5"):
        run = imported(name)
        assert isinstance(run.exception, SourceError), run.output
        assert name in str(run.exception)


def test_labels_of_a_text_file_are_its_lines():
    np.save("x.npy", features())
    words = [["ant", "b\u2028ee", "cat\x1c"][i % 3] for i in range(N)]
    Path("y.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(words).encode())  # as Windows writes it
    assert imported("x.npy", "--labels", "y.txt").exit_code == 0
    assert Cache.open("cache/d-all-a.h5").class_names == ["ant", "b\u2028ee", "cat"]


def test_coordinates_called_x_are_no_features():
    frame = pd.DataFrame({"x": np.arange(N), "embedding": list(features()), "label": names()})
    frame.to_parquet("own.parquet")
    with open_features(Path("own.parquet")) as found:
        assert np.array_equal(found.X, features())


def test_arrays_in_groups_are_named_with_their_group():
    with h5py.File("own.h5", "w") as file:
        file["train/features"], file["train/labels"] = features(), np.arange(N) % 3
        file["test"] = h5py.SoftLink("/train")
    words = ["--features", "train/features", "--labels", "train/labels"]
    assert imported("own.h5", *words).exit_code == 0
    assert np.array_equal(Cache.open("cache/d-all-a.h5").X[:], features())
    for words in (["--features", "test/features"], []):
        assert "train" in str(imported("own.h5", *words).exception)


def test_a_split_is_called_as_people_call_it():
    saved("npz", features(), names(), range(N))
    assert imported("own.npz", "--split", "Validation").exit_code == 0
    assert Cache.open("cache/d-val-a.h5").meta["split"] == "val"


# Side by side


def test_features_of_the_same_images_are_joined_by_their_digests():
    of, order = digests(), np.random.default_rng(5).permutation(N)
    X, Z = features(0), features(1, d=4, dtype=np.float16)
    y = np.array(names())
    Z[9] = np.nan
    a = cache_of(X, backbone="a", image_digests=of)
    b = cache_of(Z[order], backbone="b", y=y[order], image_digests=of[order])
    joined = concat_caches([a, b])
    assert joined.path.name == "pets-all-a+b.h5"
    assert list(joined.errors) == [9]
    keep = np.delete(np.arange(N), 9)
    assert np.array_equal(joined.X[:][keep], np.hstack([X, Z.astype(np.float32)])[keep])
    assert (joined.paths, joined.class_names) == (a.paths, a.class_names)
    assert np.array_equal(joined.image_digests, of)
    assert np.array_equal(joined.y, a.y)


def test_equal_images_are_joined_once_each():
    of = digests()
    of[11] = of[4]
    a = cache_of(features(0), backbone="a", image_digests=of, y=["x"] * N)
    b = cache_of(features(1)[::-1], backbone="b", image_digests=of[::-1].copy(), y=["x"] * N)
    joined = concat_caches([a, b])
    rows = [tuple(row[D:]) for row in joined.X[:]]
    assert sorted(rows) == sorted(map(tuple, b.X[:]))


def test_splits_side_by_side_are_paired():
    for split, seed in (("train", 0), ("test", 1)):
        of = digests(seed=seed)
        for name in "ab":
            cache_of(features(seed), backbone=name, split=split, image_digests=of)
        run = featx_command(
            "concat", f"cache/pets-{split}-a.h5", f"cache/pets-{split}-b.h5", "--name", "both"
        )
        assert run.exit_code == 0, run.output
    both = [Cache.open(f"cache/pets-{split}-both.h5") for split in ("train", "test")]
    pairs, notices = pair_caches(both)
    assert len(pairs) == 1
    assert not notices


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_digests": digests(seed=9)}, "not of the same images"),
        ({"image_digests": None}, "does not know its images"),
        ({"y": [*names()[1:], "ant"]}, "other classes"),
        ({"split": "train"}, "splits"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_images_are_not_joined(change, words):
    a = cache_of(features(0), backbone="a", image_digests=digests())
    b = cache_of(features(1), **({"backbone": "b", "image_digests": digests()} | change))
    with pytest.raises(UsageError, match=words):
        concat_caches([a, b])


def test_one_cache_is_not_side_by_side():
    with pytest.raises(UsageError, match="at least two"):
        concat_caches([cache_of(features())])


def test_an_interrupted_import_goes_on(monkeypatch):
    monkeypatch.setattr("featx.own_features.BLOCK_BYTES", 4 * D * 10)
    X, written = features(), []
    write = featx.store.CacheWriter.write

    def stops(self, start, rows, failed=None):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, rows, failed)

    with monkeypatch.context() as patch:
        patch.setattr(featx.store.CacheWriter, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            cache_of(X)
    seen = []
    monkeypatch.setattr(
        featx.store.CacheWriter,
        "write",
        lambda self, start, rows, failed=None: (
            seen.append(start) or write(self, start, rows, failed)
        ),
    )
    assert np.array_equal(cache_of(X).X[:], X)
    assert seen == [30, 40, 50]


def test_what_featx_did_not_compute_cannot_be_repaired():
    cache = cache_of(features())
    run = featx_command("repair", cache.path)
    assert isinstance(run.exception, CacheError)
    assert "featx import" in str(run.exception)


def test_a_model_of_imported_features_takes_features_and_no_images(photographs):
    X = features(1)
    cache_of(features(0), split="train")
    cache_of(X, split="test")
    words = ("fit", "--clf", "svm", "--per-class", "10", "--repeats", "1", "--save-models")
    assert featx_command(*words).exit_code == 0
    (model,) = Path("reports/models").glob("*.safetensors")
    right = featx.load_model(model).predict(X) == np.arange(N) % 3
    assert right.mean() > 0.5
    run = featx_command("predict", "--model", model, photographs[0])
    assert isinstance(run.exception, ModelError)
    assert "did not compute" in str(run.exception)


def test_splits_that_are_unknown_are_told():
    saved("npz", features(), names(), range(N), ["fold1"] * N)
    with (
        open_features(Path("own.npz")) as found,
        pytest.raises(UsageError, match="fold1"),
    ):
        list(import_features(found, backbone="a", data="d"))


def test_imported_features_are_compared_with_those_of_a_backbone(photographs):
    folder = photographs[0].parent
    y = [i % 2 for i in range(len(photographs))]
    Path("photos.csv").write_text(
        "path,label\n" + "".join(f"{p},{c}\n" for p, c in zip(photographs, y, strict=True))
    )
    words = ["--backbone", "squeezenet1_0", "--weights", "random", "--pool", "avg", "--quiet"]
    run = featx_command("extract", "--data", "photos.csv", *words)
    assert run.exit_code == 0, run.output
    own = features(n=len(y))
    write_cache(
        own, y, [p.name for p in photographs], backbone="clip", data="photos", images=folder
    )
    fit = ["--clf", "ncm", "--per-class", "3", "--repeats", "2", "--quiet"]
    run = featx_command("fit", *fit)
    assert run.exit_code == 0, run.output
    run = featx_command("compare", "clip", "squeezenet1_0")
    assert run.exit_code == 0, run.output
    assert "2 draws" in run.output

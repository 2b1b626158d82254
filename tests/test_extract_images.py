"""A row of a cache is the features of the image that its name, label and digest say."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featx.backbones import open_backbone
from featx.cli import main
from featx.engines import LocalEngine
from featx.errors import CacheMismatchError, ImageError, ReadError, SourceError
from featx.extract import Plan, Settings, extract, run_plan
from featx.extract.known import find_known
from featx.progress import SILENT
from featx.sources import Source, open_data
from featx.sources.folder import FolderSource
from featx.store import Cache, CacheWriter, find_partials

N = 12


@pytest.fixture(scope="module")
def backbone():
    overrides = {"input_size": 64}
    return open_backbone("squeezenet1_1", weights="random", pool="avg", overrides=overrides)


def run(source, backbone, target, workers=0, **settings):
    engine = LocalEngine(torch.device("cpu"), "fp32", 4, workers)
    return extract(source, backbone, engine, target, Settings(**settings))


def pictures(root: Path, kind: str = "png") -> Path:
    """Two classes; of the cats two have the same bytes, and one has those of a dog."""
    rng = np.random.default_rng(0)
    for i in range(N):
        folder = root / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8)).save(folder / f"{i:02}.{kind}")
    shutil.copy(root / "cats" / f"01.{kind}", root / "cats" / f"03.{kind}")
    shutil.copy(root / "dogs" / f"00.{kind}", root / "cats" / f"05.{kind}")
    return root


def assert_right(target: Path, source: Source, backbone, tmp_path: Path) -> None:
    """Compare every row with a cache that was computed from nothing."""
    fresh = tmp_path / "fresh.h5"
    run(source, backbone, fresh, overwrite=True)
    with Cache.open(target) as cache, Cache.open(fresh) as wanted:
        assert cache.paths == wanted.paths == list(source.paths)
        assert cache.class_names == wanted.class_names
        assert cache.labels.tolist() == wanted.labels.tolist() == source.labels.tolist()
        assert cache.fingerprint == wanted.fingerprint
        assert np.array_equal(cache.image_digests, wanted.image_digests)
        assert cache.errors == wanted.errors
        assert np.allclose(cache.X[:], wanted.X[:], rtol=1e-2, atol=1e-2, equal_nan=True)
        assert cache.verify() == []
    fresh.unlink()


# The same images under other names, in another order, with other numbers of classes.


def renamed(root: Path) -> Source:
    for path in sorted(root.rglob("??.*")):
        path.rename(path.with_name(f"{(7 * int(path.stem)) % 13:02}-new.png"))
    return open_data(root)["all"]


def exchange(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def exchanged(root: Path) -> Source:
    """Two files of one class change places: names and labels stay."""
    exchange(root / "dogs" / "02.png", root / "dogs" / "08.png")
    return open_data(root)["all"]


def renumbered(root: Path) -> Source:
    source = open_data(root)["all"]
    return replace(source, class_names=source.class_names[::-1], labels=1 - source.labels)


def shuffled(root: Path) -> Source:
    source = open_data(root)["all"]
    return source.take(np.random.default_rng(1).permutation(len(source)))


@pytest.mark.parametrize("change", [renamed, exchanged, renumbered, shuffled])
@pytest.mark.parametrize("overwrite", [False, True])
def test_rows_follow_their_images_without_computing(tmp_path, backbone, change, overwrite):
    root, target = pictures(tmp_path / "d"), tmp_path / "c.h5"
    run(open_data(root)["all"], backbone, target)
    source = change(root)
    report = run(source, backbone, target, overwrite=overwrite)
    assert (report.n_computed, report.n_reused) == (0, N)
    assert "12 rows taken from the file that was there, nothing computed" in str(report)
    assert_right(target, source, backbone, tmp_path)
    assert "complete already" in str(run(source, backbone, target))


def test_a_shuffled_dataset_saved_to_the_same_place(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    source = open_data(pictures(tmp_path / "d"))["all"]
    names = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cats", "dogs"])}
    images = [{"bytes": source.read(row), "path": None} for row in range(N)]
    columns = {"image": images, "label": source.labels.tolist()}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(names))
    words = {"backbone": ("squeezenet1_1",), "weights": "random", "input_size": 48, "workers": 0}
    plan = Plan(data="set", batch_size=4, layer=("features.5", "features"), pool="avg", **words)

    data.save_to_disk("set")
    run_plan(plan, SILENT, tell=str)
    assert find_known(plan, SILENT) is not None
    shutil.rmtree("set")
    data = data.shuffle(seed=4)
    data.save_to_disk("set")
    assert find_known(plan, SILENT) is None
    again = run_plan(plan, SILENT, tell=str)
    assert [(report.n_computed, report.n_reused) for report in again] == [(0, N)] * 2
    assert find_known(plan, SILENT) is not None
    fresh = run_plan(replace(plan, cache_dir="fresh"), SILENT, tell=str)
    for one, other in zip(again, fresh, strict=True):
        with Cache.open(one.path) as cache, Cache.open(other.path) as wanted:
            assert cache.labels.tolist() == wanted.labels.tolist() == list(data["label"])
            assert np.array_equal(cache.image_digests, wanted.image_digests)
            assert np.allclose(cache.X[:], wanted.X[:], rtol=1e-2, atol=1e-2)


def test_rows_whose_image_is_not_known_are_computed(tmp_path, backbone, monkeypatch):
    """A cache without digests of its images says nothing about their order."""
    root, target = pictures(tmp_path / "d"), tmp_path / "c.h5"
    with monkeypatch.context() as patch:
        from featx.extract import run as module

        real = module.make_spec

        def without_digests(*args):
            return replace(real(*args), image_digests=np.zeros((0, 32), "u1"))

        patch.setattr(module, "make_spec", without_digests)
        patch.setattr(Source, "require_unchanged", lambda *_: None)
        run(open_data(root)["all"], backbone, target)
    source = exchanged(root)
    assert run(source, backbone, target).n_computed == N
    assert_right(target, source, backbone, tmp_path)


def test_other_images_or_classes_are_still_a_mismatch(tmp_path, backbone):
    root, target = pictures(tmp_path / "d"), tmp_path / "c.h5"
    run(open_data(root)["all"], backbone, target)
    before = target.read_bytes()
    (root / "cats" / "01.png").rename(root / "dogs" / "01.png")
    with pytest.raises(CacheMismatchError, match="content"):
        run(open_data(root)["all"], backbone, target)
    assert target.read_bytes() == before


def test_a_stop_while_rows_are_put_into_order_loses_nothing(tmp_path, backbone, monkeypatch):
    root, target = pictures(tmp_path / "d"), tmp_path / "c.h5"
    run(open_data(root)["all"], backbone, target)
    before, source = target.read_bytes(), shuffled(root)
    real, calls = CacheWriter.write, iter(range(3))

    def stop(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, backbone, target)
    assert target.read_bytes() == before
    assert run(source, backbone, target).n_computed == 0
    assert_right(target, source, backbone, tmp_path)


# Failed rows.


@pytest.mark.parametrize("how", ["append", "overwrite", "repair", "other order"])
def test_failed_rows_are_tried_again(tmp_path, monkeypatch, how):
    """As after an update of the decoder; and those of older versions, which failed for less."""
    monkeypatch.chdir(tmp_path)
    root = pictures(tmp_path / "d")
    words = ["extract", "--data", "d", "--backbone", "squeezenet1_1", "--weights", "random"]
    words += ["--input-size", "48", "--pool", "avg", "-j", "0", "-b", "4", "--quiet"]
    with monkeypatch.context() as patch:
        real, n_decoded = Source.decoded, iter(range(99))

        def fail(self, *what):
            if next(n_decoded) == 7:
                raise ImageError("cannot be read: Input/output error")
            return real(self, *what)

        patch.setattr(Source, "decoded", fail)
        assert main(words) == 0
    (target,) = Path("cache").glob("*.h5")
    assert len(Cache.open(target).errors) == 1
    if how == "other order":
        renamed(root)
        assert main(words) == 0
    else:
        assert main(words) == 0
        assert len(Cache.open(target).errors) == 1  # what is complete is not touched
        again = ["repair", str(target), "--quiet"] if how == "repair" else [*words, f"--{how}"]
        assert main(again) == 0
    with Cache.open(target) as cache:
        assert cache.errors == {}
        assert np.isfinite(cache.X[:]).all()
        assert cache.paths == list(open_data(root)["all"].paths)


# Errors of the machine.


@pytest.fixture
def calls(monkeypatch):
    """Do something before the n-th image is read for the features, not for its digest."""
    monkeypatch.setattr("featx.sources.hub.dataset._BYTES_OF_PARTS", 0)
    plan: dict[int, object] = {}
    n_read = iter(range(1, 999))
    from featx.engines import loader

    class Spy:
        def __init__(self, source):
            self.source = source

        def __getattr__(self, name):
            return getattr(self.source, name)

        def __len__(self):
            return len(self.source)

        def fetch(self, row):
            plan.pop(next(n_read), lambda: None)()
            return self.source.fetch(row)

    def load(source, *more):
        return loader.Loading(Spy(source), *more)

    monkeypatch.setattr("featx.engines.local.Loading", load)
    return plan


def in_folder(root: Path, to: Path) -> Path:
    return root


def in_table(root: Path, to: Path) -> Path:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("??.*"))
    lines = [f"{name},{name.split('/')[0]}" for name in names]
    (root / "t.csv").write_text("\n".join(["path,label", *lines]))
    return root / "t.csv"


def in_zip(root: Path, to: Path) -> Path:
    with zipfile.ZipFile(to / "a.zip", "w") as archive:
        for path in sorted(root.rglob("??.*")):
            archive.write(path, path.relative_to(root))
    return to / "a.zip"


def in_tar(root: Path, to: Path) -> Path:
    return Path(shutil.make_archive(str(to / "a"), "tar", root))


def in_parquet(root: Path, to: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    paths = sorted(root.rglob("??.*"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    table = pa.table({"image": images, "label": [path.parent.name for path in paths]})
    options = {"row_group_size": 1, "compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(table, to / "a.parquet", write_statistics=False, **options)
    return to / "a.parquet"


FORMS = [in_folder, in_table, in_zip, in_tar, in_parquet]


@pytest.mark.parametrize(
    ("form", "error"),
    [
        *((in_folder, error) for error in (errno.ENOENT, errno.ESTALE, errno.EACCES, errno.EMFILE)),
        *((form, errno.EIO) for form in FORMS),
    ],
)
@pytest.mark.parametrize("at", [0, 7], ids=["hashing", "decoding"])
def test_an_error_of_the_machine_ends_the_run_and_stays_nowhere(
    tmp_path, backbone, monkeypatch, calls, form, error, at
):
    where = form(pictures(tmp_path / "d"), tmp_path)
    source, target = next(iter(open_data(where).values())), tmp_path / "c.h5"

    def fail(*_):
        raise OSError(error, os.strerror(error))

    def break_disk():
        if form is in_parquet:
            monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", fail)
        elif isinstance(source, FolderSource) or form is in_table:
            monkeypatch.setattr("featx.sources.folder.os.open", fail)
        else:
            monkeypatch.setattr("featx.sources.archives.members._Stream", fail)

    break_disk() if at == 0 else calls.update({at: break_disk})
    with pytest.raises(ReadError, match=rf"cannot read .*: {os.strerror(error)}") as caught:
        run(source, backbone, target)
    assert not target.exists()
    assert bool(find_partials(target)) == bool(at)
    assert "same command goes on" in " ".join(getattr(caught.value, "__notes__", ())) or not at
    monkeypatch.undo()
    report = run(next(iter(open_data(where).values())), backbone, target)
    assert report.n_failed == 0
    assert report.n_computed == (N - 4 if at else N)
    assert_right(target, source, backbone, tmp_path)


def test_a_folder_that_is_gone_for_a_while(tmp_path, backbone, calls):
    root, target = pictures(tmp_path / "d"), tmp_path / "c.h5"
    source = open_data(root)["all"]
    calls[7] = lambda: root.rename(tmp_path / "away")
    with pytest.raises(ReadError, match="cannot read .*No such file"):
        run(source, backbone, target)
    with pytest.raises(ReadError):
        run(source, backbone, target)
    (tmp_path / "away").rename(root)
    report = run(open_data(root)["all"], backbone, target)
    assert (report.n_computed, report.n_failed) == (N - 4, 0)
    assert_right(target, source, backbone, tmp_path)


def test_files_that_stay_unreadable_are_named_with_a_way_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, root = [f"{i:02}.jpg" for i in range(7, 14)], pictures(tmp_path / "d")
    for name in names:
        (root / "cats" / name).symlink_to(f"/nowhere/{name}")
    words = ["extract", "--data", "d", "--backbone", "squeezenet1_1", "--weights", "random"]
    words += ["--input-size", "48", "--pool", "avg", "-j", "0"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "d/cats/07.jpg': No such file or directory" in said
    assert "Make the file readable, or take it out of the data" in said
    assert "6 more cannot be read" in said
    assert [name in said for name in names] == [True] * 6 + [False]
    assert main(["info", "--data", "d"]) == 0
    assert "cats/07.jpg" in capsys.readouterr().out
    for name in names:
        (root / "cats" / name).unlink()
    assert main(words) == 0


def test_what_older_versions_remembered_of_an_error_is_not_believed(tmp_path, monkeypatch):
    from featx.sources import base

    root = pictures(tmp_path / "d")
    wanted = open_data(root)["all"].content_id()
    monkeypatch.setattr("featx.sources.places._COARSEST_CLOCK_NS", -(10**12))

    def poisoned(self, row):
        return b"", self._none(row)

    with monkeypatch.context() as patch:
        patch.setattr(base.Source, "fetch", poisoned)
        open_data(root)["all"].image_digests()
        memory = base.Remembered(str(root))
        source = open_data(root)["all"]
        for row, path in enumerate(source.paths):
            memory.add(path, source.stamp(row), source._none(row))
        memory.save()
    assert open_data(root)["all"].content_id() == wanted


class Killed(FolderSource):
    def fetch(self, row):
        if row == 9 and os.getpid() != self.__dict__.get("parent"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fetch(row)


class Starved(FolderSource):
    def fetch(self, row):
        if row == 9 and os.getpid() != self.__dict__.get("parent"):
            raise MemoryError
        return super().fetch(row)


@pytest.mark.parametrize("kind", [Killed, Starved])
def test_a_worker_without_memory_is_no_bad_image(tmp_path, backbone, kind):
    source, target = open_data(pictures(tmp_path / "d"))["all"], tmp_path / "c.h5"
    bad = kind(**{field.name: getattr(source, field.name) for field in fields(source)})
    bad.__dict__["parent"] = os.getpid()
    with pytest.raises(SourceError, match="No image is marked as failed"):
        run(bad, backbone, target, workers=1)
    report = run(source, backbone, target)
    assert report.n_failed == 0
    assert_right(target, source, backbone, tmp_path)


def test_a_worker_that_ends_is_named_wherever_its_signal_arrives(tmp_path, backbone, monkeypatch):
    def struck(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("featx.extract.fill._check", struck)
    source = open_data(pictures(tmp_path / "d"))["all"]
    with pytest.raises(SourceError, match="No image is marked as failed"):
        run(source, backbone, tmp_path / "c.h5")


# What is decoded is what was hashed.


def exchange_bytes(where: Path, source: Source, one: int, other: int) -> None:
    """Let two pictures of equal length change places; size and time stay."""
    if where.is_dir() or where.suffix == ".csv":
        root = where if where.is_dir() else where.parent
        exchange(root / source.paths[one], root / source.paths[other])
        return
    status, data = where.stat(), where.read_bytes()
    a, b = source.read(one), source.read(other)
    assert (data.count(a), data.count(b), len(a)) == (1, 1, len(b))
    mark = b"*" * len(a)
    data = data.replace(a, mark).replace(b, a).replace(mark, b)
    with where.open("r+b") as stream:
        stream.write(data)
    os.utime(where, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("form", FORMS)
def test_images_that_change_while_they_are_read(tmp_path, backbone, calls, form):
    where = form(pictures(tmp_path / "d", kind="bmp"), tmp_path)
    source, target = next(iter(open_data(where).values())), tmp_path / "c.h5"
    calls[7] = lambda: exchange_bytes(where, source, 8, 10)
    with pytest.raises(ReadError, match=r"changed while this ran.* Run the same again"):
        run(source, backbone, target)
    assert not target.exists()
    source = next(iter(open_data(where).values()))
    report = run(source, backbone, target)
    assert report.n_failed == (2 if form is in_zip else 0)  # a zip has checksums of its own
    assert (report.n_computed, report.n_reused) == (4, 8)  # the batch with the changed images
    assert find_partials(target) == []
    assert_right(target, source, backbone, tmp_path)


def test_a_digest_that_was_wrong_is_forgotten(tmp_path, backbone, monkeypatch):
    """Where neither size nor times tell a change, the next run reads the file again."""
    monkeypatch.setattr("featx.sources.places._COARSEST_CLOCK_NS", -(10**12))
    root, target = pictures(tmp_path / "d"), tmp_path / "c.h5"
    monkeypatch.setattr(FolderSource, "stamp", lambda *_: (1, 1, 1))
    open_data(root)["all"].image_digests()
    source = exchanged(root)
    with pytest.raises(ReadError, match="'dogs/02.png' of d all changed"):
        run(source, backbone, target)
    with pytest.raises(ReadError, match="'dogs/08.png' of d all changed"):
        run(source, backbone, target)
    run(source, backbone, target)
    assert_right(target, source, backbone, tmp_path)


def test_the_memory_of_an_extractor_keeps_no_row_of_another_image(tmp_path, monkeypatch):
    import featx

    root = pictures(tmp_path / "d")
    paths = [str(path) for path in sorted((root / "dogs").iterdir())]
    options = {"weights": "random", "input_size": 48, "pool": "avg", "workers": 0}
    extractor = featx.FeatureExtractor("squeezenet1_1", memory=tmp_path / "m", **options).fit(paths)
    real = Source.image_digests

    def then_exchange(self, **more):
        found = real(self, **more)
        exchanged(root)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Source, "image_digests", then_exchange)
        with pytest.raises(ReadError, match="changed while this ran"):
            extractor.transform(paths)
    wanted = featx.FeatureExtractor("squeezenet1_1", **options).fit_transform(paths)
    assert np.allclose(extractor.transform(paths), wanted, rtol=1e-3, atol=1e-3)


def test_trainings_see_the_images_that_they_name(tmp_path, backbone):
    from featx.train.images import Decoder

    root = pictures(tmp_path / "d")
    source = open_data(root)["all"]
    digests = source.image_digests()
    decoder = Decoder(backbone.preprocessing, 0, 1 << 30, SILENT)
    decoder.decode(source, digests)
    exchanged(root)
    with pytest.raises(ReadError, match="'dogs/02.png' and 1 more"):
        decoder.decode(source, digests, np.arange(2, N))

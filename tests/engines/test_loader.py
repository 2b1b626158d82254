"""Oracle: every image opened and prepared by itself, in this process."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import signal
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from featx.backbones import open_backbone
from featx.engines import LocalEngine, SeveralDevices, loader, local
from featx.engines.loader import Loading, iter_pixels
from featx.errors import SourceError
from featx.images import LARGEST
from featx.preprocess import Preprocessing
from featx.sources import open_data
from featx.sources.folder import FolderSource

CPU = torch.device("cpu")
SIZE = 30, 24
PREPROCESSING = Preprocessing(40, 36, "bicubic", (0.5,) * 3, (0.5,) * 3)
BAD, OTHER, DEEP = 5, 60, (2, 70, 71)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A hundred images; one is broken, one has another size, some have 16 bits."""
    folder = tmp_path_factory.mktemp("many") / "images"
    for name in "ab":
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(100):
        width, height = (33, 24) if i == OTHER else SIZE
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        if i in DEEP:
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
        image.save(folder / "ab"[i // 50] / f"{i:03}.png")
    (folder / "a" / f"{BAD:03}.png").write_bytes(b"<html>")
    return folder


@pytest.fixture
def source(root):
    [split] = open_data(root).values()
    return split


def wanted(source, row, is_raw=False):
    """Pixels of one image, or None where there is none."""
    if row == BAD or row >= len(source):
        return 0
    image = source.image(row)
    return np.asarray(image) if is_raw else PREPROCESSING.pixels(image)


def assert_right(batch, source, *, is_raw=False):
    assert batch.is_raw == is_raw
    for i, pixels in enumerate(batch.pixels.numpy()):
        assert (pixels == wanted(source, batch.start + i, is_raw)).all(), batch.start + i


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("size", [7, 48, 100, 128])
def test_batches_are_what_their_images_are_one_by_one(source, workers, size):
    n_batches = -(-100 // size)
    found = list(
        iter_pixels(Loading(source, PREPROCESSING, size), range(n_batches), workers=workers)
    )
    assert [(b.start, b.n_images) for b in found] == [
        (start, min(size, 100 - start)) for start in range(0, 100, size)
    ]
    for batch in found:
        assert batch.pixels.shape == (size, 36, 36, 3)
        assert_right(batch, source)
    failed = {row: why for batch in found for row, why in batch.failed.items()}
    assert list(failed) == [BAD]
    assert "not an image but an HTML page" in failed[BAD]
    read = [hashlib.sha256(source.read(row)).digest() for row in range(100)]
    assert b"".join(batch.digests.tobytes() for batch in found) == b"".join(read)
    deep = [value for batch in found for value in batch.deep]
    assert deep == [source.image(row).info[LARGEST] for row in DEEP]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_with_one_image_of_another_size_is_resized_here(source, workers):
    loading = Loading(source, PREPROCESSING, 50, SIZE)
    first, second = iter_pixels(loading, [0, 1], workers=workers)
    assert_right(first, source, is_raw=True)
    assert_right(second, source)  # its other chunk had come as decoded
    assert [first.failed.keys(), second.failed.keys()] == [{BAD}, set()]
    assert len(first.deep + second.deep) == len(DEEP)


def test_pixels_in_use_are_not_written_over(source):
    numbers = [0, 3, 1, 2, 4, 0, 1, 3, 2, 4, 1, 0]
    loading, held = Loading(source, PREPROCESSING, 20), []
    for batch in iter_pixels(loading, numbers, workers=2, n_held=2, max_bytes=1):
        held = [*held, batch][-3:]
        for each in held:
            assert_right(each, source)


@pytest.mark.parametrize("size", [1, 16, 100, 256])
@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("n_held", [0, 2])
@pytest.mark.parametrize("n_places_allowed", [0, 4, 6, 100])
def test_no_place_is_taken_twice_and_the_bytes_are_bounded(
    source, size, workers, n_held, n_places_allowed
):
    loading, n_batches = Loading(source, PREPROCESSING, size), 30
    limit = n_places_allowed * size * 36 * 36 * 3
    shares = loader._Shares.of(loading, n_batches, workers, n_held, limit)
    assert shares.n_places <= n_places_allowed or (shares.workers, shares.ahead) == (1, 1)
    assert 1 <= shares.workers <= workers
    assert shares.each * shares.n_parts >= size > shares.each * (shares.n_parts - 1)
    assert shares.each <= 32
    # torch hands out a chunk for every one that it gives, behind those for the start.
    for batch in range(n_batches):
        n_given = (batch + 1) * shares.n_parts
        last = min(n_batches - 1, (n_given + shares.workers * shares.ahead - 1) // shares.n_parts)
        in_use = range(max(0, batch - n_held), last + 1)
        assert len({number % shares.n_places for number in in_use}) == len(in_use)


class Notes(FolderSource):
    """Leaves a file that says which process read a row, and how it gives way."""

    def fetch(self, row):
        gc.collect()
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        (Path(self.__dict__["notes"]) / f"{row}-{os.getpid()}-{niceness}").touch()
        return super().fetch(row)


def noting(source, folder):
    fields = ("name", "split", "class_names", "labels", "paths", "root")
    found = Notes(**{name: getattr(source, name) for name in fields})
    found.__dict__["notes"] = str(folder)
    return found


@linux
def test_many_workers_decode_one_batch(source, tmp_path):
    notes = noting(source, tmp_path)
    [batch] = iter_pixels(Loading(notes, PREPROCESSING, 128), [0], workers=3)
    assert_right(batch, source)
    read = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(int(row) for row, _, _ in read) == list(range(100))
    assert len({worker for _, worker, _ in read}) == 3
    assert {niceness for _, _, niceness in read} == {str(loader._NICENESS)}


@linux
def test_pixels_do_not_lie_where_containers_have_little_room(source):
    loading = Loading(source, PREPROCESSING, 32)
    batches = iter_pixels(loading, range(3), workers=2, n_held=0)
    next(batches)
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:featx" in maps
    assert "/dev/shm/torch" not in maps
    batches.close()


def kill_itself(image):
    os.kill(os.getpid(), signal.SIGKILL)


def compute_for_ever(image):
    while True:
        pass


@linux
@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (kill_itself, "was ended while it decoded b/077.png, mostly since memory ran out"),
        (compute_for_ever, "b/077.png takes more than 0.2 seconds of computing to decode"),
    ],
)
def test_the_image_that_ends_a_worker_is_named(source, monkeypatch, at, reason):
    read = FolderSource.read

    def strange(self, row):
        return at(row) if self.paths[row] == "b/077.png" else read(self, row)

    monkeypatch.setattr(FolderSource, "read", strange)
    monkeypatch.setattr(loader, "_MOST_SECONDS", 0.2)
    with pytest.raises(SourceError, match=reason):
        list(iter_pixels(Loading(source, PREPROCESSING, 10), range(10), workers=2))


def test_workers_that_are_not_forked_share_the_pixels_too(source, monkeypatch):
    monkeypatch.setattr(loader, "_START", "spawn")
    [batch] = iter_pixels(Loading(source, PREPROCESSING, 40), [1], workers=1)
    assert_right(batch, source)


@pytest.mark.parametrize("call", ["os.fork", "os.memfd_create", "os.truncate"])
@linux
def test_without_workers_this_process_decodes_and_says_so(source, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, fail)
    said = []
    found = iter_pixels(Loading(source, PREPROCESSING, 40), [0, 2], workers=2, tell=said.append)
    for batch in found:
        assert_right(batch, source)
    if call == "os.memfd_create":  # another file without a name takes its place
        assert said == []
    else:
        [line] = said
        assert "No space left on device" in line
        assert "this one decodes the images" in line


class Cycle:
    """Garbage that only a collection finds, such as a tensor of a GPU in a traceback."""

    def __init__(self, path):
        self.me, self.path, self.pid = self, path, os.getpid()

    def __del__(self):
        if os.getpid() != self.pid:
            Path(self.path).touch()


@linux
def test_what_a_worker_inherits_is_never_collected_there(source, tmp_path):
    (tmp_path / "notes").mkdir()
    notes, trace = noting(source, tmp_path / "notes"), tmp_path / "collected"
    gc.disable()
    try:
        Cycle(trace)
        [batch] = iter_pixels(Loading(notes, PREPROCESSING, 100), [0], workers=1)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert batch.n_images == len(list((tmp_path / "notes").iterdir())) == 100
    assert not trace.exists()


@linux
def test_pythons_warning_of_forks_beside_threads_reaches_nobody(source, monkeypatch):
    fork = os.fork

    def warning():
        message = "This process (pid=1) is multi-threaded, use of fork() may lead to deadlocks"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return fork()

    monkeypatch.setattr(os, "fork", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [batch] = iter_pixels(Loading(source, PREPROCESSING, 40), [0], workers=1)
    assert_right(batch, source)


def test_all_workers_are_started_before_any_device_computes(source, monkeypatch):
    started = []

    class Watched(DataLoader):
        def __iter__(self):
            lanes = [t for t in threading.enumerate() if t.name == "featx-device"]
            started.append((threading.current_thread(), lanes))
            return super().__iter__()

    monkeypatch.setattr(loader, "DataLoader", Watched)
    backbone = open_backbone("squeezenet1_1", weights="random", overrides={"input_size": 32})
    one = LocalEngine(CPU, "fp32", 16, 1)
    parts = list(SeveralDevices((one,) * 2).run(backbone, source, range(7)))
    assert [part.start for part in parts] == list(range(0, 100, 16))
    assert started == [(threading.main_thread(), [])] * 2


def test_workers_of_a_gpu_leave_it_two_cores(monkeypatch):
    engine = LocalEngine(torch.device("cuda", 0))
    for n_cores, n_workers in ((1, 1), (4, 2), (16, 14), (64, 16)):
        monkeypatch.setattr(local, "n_cores", lambda n=n_cores: n)
        assert engine.n_workers == n_workers
    assert LocalEngine(CPU).n_workers == 1


class Driver:
    """Stands in for CUDA's: notes what is asked, and says yes or no."""

    def __init__(self, answer, monkeypatch):
        self.answer, self.asked = answer, []
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.asked.append("wait"))
        monkeypatch.setattr(torch, "zeros", self.report)

        def pin(batch):
            self.asked.append(batch.start)
            return batch

        monkeypatch.setattr(loader.PixelBatch, "pin_memory", pin)

    def cudaHostRegister(self, address, n_bytes, flags):
        self.asked.append(n_bytes)
        return self.answer

    def cudaHostUnregister(self, address):
        self.asked.append("let go")

    def report(self, *_, **__):
        raise RuntimeError("CUDA error: operation not supported")


@pytest.mark.parametrize(
    ("raw_size", "answer", "n_images", "asked"),
    [
        (None, 0, 50, [4 * 50 * 36 * 36 * 3, "wait", "let go"]),
        (None, 1, 50, [4 * 50 * 36 * 36 * 3, 0, 50]),
        (SIZE, 0, 50, [4 * 50 * 30 * 24 * 3, 50, "wait", "let go"]),  # the second is resized
    ],
)
def test_a_gpu_fetches_from_the_shared_memory_if_its_driver_lets_it(
    source, monkeypatch, raw_size, answer, n_images, asked
):
    driver = Driver(answer, monkeypatch)
    loading = Loading(source, PREPROCESSING, n_images, raw_size)
    cuda = torch.device("cuda", 0)
    found = list(iter_pixels(loading, [0, 1, 0, 1], workers=2, n_held=4, device=cuda))
    for batch in found[:2]:
        assert_right(batch, source, is_raw=raw_size is not None and batch.start == 0)
    n_bytes, *others = driver.asked
    assert [n_bytes, *dict.fromkeys(others)] == asked


@pytest.mark.gpu
@pytest.mark.parametrize("raw_size", [None, SIZE])
def test_pixels_for_a_real_gpu_are_page_locked(source, raw_size):
    loading = Loading(source, PREPROCESSING, 25, raw_size)
    device = torch.device("cuda", 0)
    for batch in iter_pixels(loading, [0, 1, 2, 3], workers=2, n_held=0, device=device):
        assert batch.pixels.is_pinned()
        there = batch.pixels.to(device, non_blocking=True).cpu()
        assert torch.equal(there, batch.pixels)
        assert_right(batch, source, is_raw=raw_size is not None and batch.start != 50)
    torch.ones(3, device=device).sum().item()  # no error was left behind

"""Any order of writing, killing, resuming, appending, damage and repair keeps every row right."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_helpers import digests_of, header_of, make_spec
from store_seam import seam

from featx.errors import CacheError, CacheMismatchError
from featx.store import Cache, CacheSpec, CacheWriter, layout, verify_file
from featx.store.header import HeaderBlock

N_FEATURES = 5
Name = tuple[int, int]  # number and version of an image


def row_of(name: Name) -> np.ndarray:
    return np.random.default_rng(name).normal(size=N_FEATURES).astype("<f4")


def fails(name: Name) -> bool:
    """Some images cannot be read, each time they are tried."""
    return sum(name) % 6 == 5


def spec_of(images: list[Name]) -> CacheSpec:
    return make_spec(
        len(images),
        N_FEATURES,
        "float32",
        identity={"backbone": "vgg16", "source": [list(name) for name in images]},
        paths=[f"{number}.png" for number, _ in images],
        image_digests=digests_of(images),
    )


class Unsynced:
    """What was written since the last sync of each file, so that it can be lost."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, int, bytes, int]] = []

    def __call__(self, call: str, args: tuple[Any, ...]) -> None:
        if call in ("pwrite", "fsync", "fdatasync"):
            name = str(Path(f"/proc/self/fd/{args[0]}").readlink())
        if call == "pwrite":
            size = os.fstat(args[0]).st_size
            old = os.pread(args[0], len(args[1]), args[2])
            self.pieces.append((name, args[2], old, size))
        elif call in ("fsync", "fdatasync"):
            self.pieces = [piece for piece in self.pieces if piece[0] != name]

    def lose(self) -> None:
        for name, offset, old, size in reversed(self.pieces):
            if Path(name).exists():
                with Path(name).open("r+b") as stream:
                    os.pwrite(stream.fileno(), old, offset)
                    os.truncate(stream.fileno(), size)
        self.pieces = []


class StoreMachine(RuleBasedStateMachine):
    """The model: which images there are, what the finished file holds, which rows are safe."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="featx-machine-"))
        self.target = self.folder / "a.h5"
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(layout, "_BLOCK_BYTES", 2 * 4 * N_FEATURES)  # two rows a block
        self.unsynced = Unsynced()
        self.stack.enter_context(seam(self.unsynced))
        self.writer: CacheWriter | None = None
        self.images: list[Name] = []
        self.finished: list[Name] | None = None
        self.pristine = b""
        self.damage: int | None = None  # the flipped bit of the finished file
        self.safe: dict[tuple[Name, ...], set[Name]] = {}

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.stack.close()
        shutil.rmtree(self.folder)

    # Images.

    @initialize(n=st.integers(1, 7))
    def start(self, n: int) -> None:
        self.images = [(i, 0) for i in range(n)]

    @precondition(lambda self: self.writer is None)
    @rule(data=st.data(), change=st.sampled_from(["append", "edit", "remove", "move"]))
    def change_images(self, data: st.DataObject, change: str) -> None:
        at = data.draw(st.integers(0, len(self.images) - 1))
        number, version = self.images[at]
        if change == "append" and len(self.images) < 10:
            first = max(number for number, _ in self.images) + 1
            self.images += [(first, 0), (first + 1, 0)]
        elif change == "edit":
            self.images[at] = (number, version + 1)
        elif change == "remove" and len(self.images) > 1:
            del self.images[at]
        elif change == "move":
            self.images.insert(0, self.images.pop(at))

    # Runs.

    def key(self) -> tuple[Name, ...]:
        return tuple(self.images)

    def took_up(self, writer: CacheWriter, expected: set[Name], at_most: set[Name]) -> None:
        if writer.is_complete:
            assert self.finished == self.images
            writer.close()
            return
        missing = writer.missing()
        there = {name for name, is_missing in zip(self.images, missing, strict=True) if ~is_missing}
        assert expected <= there <= at_most
        self.writer = writer

    @precondition(lambda self: self.writer is None)
    @rule()
    def open_or_resume(self) -> None:
        spec, safe = spec_of(self.images), self.safe.get(self.key(), set())
        if self.finished is None:
            self.took_up(CacheWriter.open(self.target, spec), safe, safe)
        elif self.is_damaged_outside():
            with pytest.raises(CacheError):
                CacheWriter.open(self.target, spec)
        elif self.finished != self.images:
            with pytest.raises(CacheMismatchError) as caught:
                CacheWriter.open(self.target, spec)
            old = dict(self.finished)
            changed = sum(old.get(number, version) != version for number, version in self.images)
            assert changed == 0 or f"{changed} image" in str(caught.value)
        else:
            with CacheWriter.open(self.target, spec) as writer:
                assert writer.is_complete

    @precondition(lambda self: self.writer is None)
    @rule()
    def open_to_overwrite(self) -> None:
        spec, safe = spec_of(self.images), self.safe.get(self.key(), set())
        # A wrong first byte hides what the file was, and only reuse looks further.
        self.took_up(CacheWriter.open(self.target, spec, overwrite=True), safe, safe)

    @precondition(lambda self: self.writer is None and self.finished is not None)
    @rule()
    def open_to_reuse(self) -> None:
        assert self.finished is not None
        safe = self.safe.get(self.key(), set())
        good = {name for name in self.finished if not fails(name)} & set(self.images)
        lost: set[Name] = set()
        if self.is_damaged_outside():
            lost = good
        elif self.damage is not None:
            seal = header_of(self.target)
            row = (self.damage // 8 - seal.features_offset) // (4 * N_FEATURES)
            lost = set(self.finished[row // 2 * 2 : row // 2 * 2 + 2])
        writer = CacheWriter.open(self.target, spec_of(self.images), reuse=self.target)
        assert not (writer.is_complete and self.damage is not None)
        self.took_up(writer, safe | (good - lost), safe | good)

    @precondition(lambda self: self.writer is not None)
    @rule(data=st.data(), is_committed=st.booleans())
    def write(self, data: st.DataObject, is_committed: bool) -> None:
        assert self.writer is not None
        todo = [row for row, status in enumerate(self.writer._rows.status) if status == 0]
        if todo:
            start = data.draw(st.sampled_from(todo))
            n = data.draw(st.integers(1, 3))
            self.write_rows([row for row in todo if start <= row < start + n])
        if is_committed:
            self.writer.commit()
            assert not (self.writer.missing() & (self.writer._rows.status != 0)).any()

    def write_rows(self, rows: list[int]) -> None:
        assert self.writer is not None
        for row in rows:
            name = self.images[row]
            failed = {row: f"{name} is bad"} if fails(name) else {}
            self.writer.write(row, row_of(name)[np.newaxis], failed)

    def remember(self) -> None:
        assert self.writer is not None
        missing = self.writer.missing()
        safe = {name for name, is_missing in zip(self.images, missing, strict=True) if ~is_missing}
        self.safe[self.key()] = safe

    @precondition(lambda self: self.writer is not None)
    @rule(is_power_lost=st.booleans(), is_resumed=st.booleans())
    def kill(self, is_power_lost: bool, is_resumed: bool) -> None:
        assert self.writer is not None
        self.remember()
        writer, self.writer = self.writer, None
        for fd in (writer._partial.fd, writer._partial.journal.fd, writer._lock._fd):
            os.close(fd)
        if is_power_lost:
            self.unsynced.lose()
        if is_resumed:
            self.open_to_overwrite()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def interrupt(self) -> None:
        assert self.writer is not None
        with self.writer:
            pass
        status = self.writer._rows.status
        self.safe[self.key()] = {
            name for name, done in zip(self.images, status, strict=True) if done
        }
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule()
    def finish(self) -> None:
        assert self.writer is not None
        self.write_rows(np.flatnonzero(self.writer._rows.status == 0).tolist())
        self.writer.finish()
        self.writer = None
        self.safe.pop(self.key(), None)
        self.finished, self.damage = list(self.images), None
        assert verify_file(self.target) == []

    @precondition(lambda self: self.writer is None and self.finished is not None)
    @rule()
    def repair_or_append(self) -> None:
        self.open_to_reuse()
        if self.writer is not None:
            self.finish()

    # Damage.

    def is_damaged_outside(self) -> bool:
        if self.damage is None or self.finished is None:
            return False
        content = self.pristine
        seal = HeaderBlock.parse(content[:4096])
        return not seal.features_offset <= self.damage // 8 < seal.features_end

    @precondition(lambda self: self.finished is not None and self.damage is None)
    @rule(data=st.data(), is_feature=st.booleans())
    def flip_a_bit(self, data: st.DataObject, is_feature: bool) -> None:
        content = bytearray(self.target.read_bytes())
        self.pristine = bytes(content)
        seal = HeaderBlock.parse(self.pristine[:4096])
        first, last = (seal.features_offset, seal.features_end) if is_feature else (0, len(content))
        bit = data.draw(st.integers(8 * first, 8 * last - 1))
        content[bit // 8] ^= 1 << bit % 8
        before = self.target.stat()
        self.target.write_bytes(content)
        # Decay leaves the time of change alone; a new one would be another program's work.
        os.utime(self.target, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.damage = bit

    # What always holds.

    @rule()
    def verify(self) -> None:
        if self.finished is None:
            return
        found = verify_file(self.target)
        assert bool(found) == (self.damage is not None), (found, self.damage)

    @invariant()
    def what_opens_is_the_model(self) -> None:
        if self.finished is None:
            assert not self.target.exists()
            return
        if self.is_damaged_outside():
            with pytest.raises(CacheError):
                Cache.open(self.target)
            return
        with Cache.open(self.target) as cache:
            assert cache.paths == [f"{number}.png" for number, _ in self.finished]
            np.testing.assert_array_equal(cache.image_digests, digests_of(self.finished))
            bad = [row for row, name in enumerate(self.finished) if fails(name)]
            assert cache.errors == {row: f"{self.finished[row]} is bad" for row in bad}
            if self.damage is None:
                expected = np.array([row_of(name) for name in self.finished])
                expected[bad] = np.nan
                np.testing.assert_array_equal(cache.X[:], expected)


StoreMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("FEATX_TEST_EXAMPLES", "60")),
    stateful_step_count=20,
    deadline=None,
)
TestStore = StoreMachine.TestCase

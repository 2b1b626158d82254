"""Writing a cache so that whatever stops it, no committed row is lost or wrong."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from featx.atomic import unlock
from featx.errors import CacheError
from featx.progress import SILENT, Reporter
from featx.store import disk, layout
from featx.store import partial as partials
from featx.store.checksums import Checksums
from featx.store.existing import is_finished, is_intact
from featx.store.file_layout import lay_out
from featx.store.journal import Range, RowStates
from featx.store.lock import Lock
from featx.store.partial import Partial
from featx.store.reuse import (
    OlderCache,
    copy_rows,
    is_same_file,
    is_wanted,
    open_older,
    open_unfinished,
)
from featx.store.spec import CacheSpec, as_stored, check_rows
from featx.store.threads import give_way

__all__ = ["CacheWriter"]


class CacheWriter:
    """One run that fills a cache; holds its lock until `close`.

    Made by `CacheWriter.open` and used as a context manager. Rows are written to
    a partial file beside the target as they come, become durable in groups, and
    the whole file takes the target's name in `finish`.

    Attributes
    ----------
    target : pathlib.Path
        The cache file.
    spec : CacheSpec
        What it is about.
    is_complete : bool
        Whether the target is there; then nothing is to be done.
    notices : list of str
        What was resumed, reused, removed or left alone, to be shown to the user.
    n_reused : int
        Rows that were copied from an older cache.
    """

    def __init__(self, target: Path, spec: CacheSpec) -> None:
        self.target, self.spec = target, spec
        self.is_complete = False
        self.notices: list[str] = []
        self.n_reused = 0
        self._dtype = layout.feature_dtype(spec.dtype)
        self._rows = RowStates(spec.n_rows)
        self._run = secrets.token_hex(4)
        self._lock: Lock | None = None
        self._partial: Partial | None = None
        self._features_offset: int
        self._is_broken = False
        self._before: tuple[int, ...] | None = None  # what had the target's name at the start
        block_rows = layout.default_block_rows(spec.row_bytes)
        self._checksums = Checksums(spec.n_rows, block_rows, spec.row_bytes)
        self._committer = ThreadPoolExecutor(1, "featx-commit", give_way)
        self._committing: tuple[Future[None], list[Range]] | None = None

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str],
        spec: CacheSpec,
        *,
        overwrite: bool = False,
        resume: bool = True,
        reuse: str | os.PathLike[str] | None = None,
        reporter: Reporter = SILENT,
    ) -> CacheWriter:
        """Start or resume a cache.

        Parameters
        ----------
        target : path-like
            The cache file; its folder is made if need be.
        spec : CacheSpec
            What it is about.
        overwrite : bool, default=False
            Replace a cache of other features, or a damaged one, when the new one
            is complete. A file that is no featx cache is never replaced.
        resume : bool, default=True
            Take up a partial file of the same features; False removes it.
        reuse : path-like, optional
            A featx cache of the same features but for its source. Rows of it that
            verify and belong to wanted images (by `CacheSpec.image_digests`) are
            copied and made durable, so that `missing` is only the rest. Where it is
            damaged outside its features, no row is copied. It may be the target
            itself, which is then checked byte by byte and, unless it is complete and
            undamaged and no row failed, replaced in `finish`.
        reporter : Reporter, optional
            Shows the check of a partial file's rows, and the copying of rows.

        Returns
        -------
        CacheWriter
            With `is_complete` where a cache of just these features is there.

        Raises
        ------
        CacheError
            If what is there, or what shall be reused, is damaged or no cache, or the
            disk has no room or may not be written to. A CacheBusyError if another
            process writes it, a CacheMismatchError if a cache of other features is
            there, or shall be reused.
        """
        path = Path(target).absolute()
        old = None if reuse is None else Path(reuse).absolute()
        # Check without the lock first, unless the target itself is reused.
        is_own = old is not None and is_same_file(old, path)
        writer = cls(path, spec)
        writer.is_complete = not is_own and is_finished(path, spec, overwrite=overwrite)
        if writer.is_complete:
            with suppress(OSError):  # what a run that was killed at its very end left behind
                partials.sweep(path)
            return writer
        with disk.translated(f"cannot write {target}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                writer._lock_target()
                # Another process may have finished between the first look and the lock.
                writer.is_complete = (
                    is_intact(path, spec, reporter)
                    if is_own
                    else is_finished(path, spec, overwrite=overwrite)
                )
                writer._start(resume, old, reporter)
            except BaseException:
                writer.close()
                raise
        return writer

    def _lock_target(self) -> None:
        lock = Lock(self.target)
        lock.acquire()
        self._lock = lock
        self._before = _identity(self.target)
        if not lock.is_supported:
            self.notices.append(
                f"{self.target.parent} has no file locks: let one process at a time write there; "
                "an interrupted run cannot be resumed"
            )

    def _start(self, resume: bool, old: Path | None, reporter: Reporter) -> None:
        partials.sweep(self.target)
        if self.is_complete:
            self._release()
            return
        older = None if old is None else open_older(old, self.spec, self.notices.append)
        with nullcontext() if older is None else closing(older):
            self._take_up(resume, reporter)
            if older is not None:
                self._reuse(older, reporter)

    def _take_up(self, resume: bool, reporter: Reporter) -> None:
        file_layout = lay_out(self.spec)
        self._features_offset = file_layout.features_offset
        found, notices = partials.adopt(self.target, self.spec, file_layout, reporter)
        if found is not None and not resume:
            found.close()
            partials.discard(found.path)
            notices, found = [f"removed: {found.path}: this run starts anew"], None
        self.notices += notices
        self._partial = found or partials.create(self.target, self.spec, file_layout)
        for item in self._partial.ranges:
            self._rows.adopt(item)

    def _reuse(self, older: OlderCache, reporter: Reporter) -> None:
        n_before = int(np.count_nonzero(self._rows.status))
        self.notices += copy_rows(older, self.spec, self.missing(), self.write, reporter)
        self.n_reused += int(np.count_nonzero(self._rows.status)) - n_before
        self.commit()

    def take_unfinished(self, reporter: Reporter = SILENT) -> None:
        """Take rows from unfinished runs of the same settings whose images changed since."""
        if self._partial is None:
            return
        for path in partials.find_partials(self.target):
            is_own = path == self._partial.path
            older = None if is_own else open_unfinished(path, self.spec, reporter)
            if older is None:
                continue
            with closing(older), disk.translated(f"cannot write {self.target}"):
                self._reuse(older, reporter)
                if not is_wanted(older, self.spec).all():
                    continue
                partials.discard(path)
            left_alone = f"left alone: {path} "
            self.notices = [line for line in self.notices if not line.startswith(left_alone)]
            self.notices.append(f"removed: {path}: its rows are in the new file")

    @property
    def n_rows(self) -> int:
        """Number of images."""
        return self.spec.n_rows

    @property
    def failed(self) -> dict[int, str]:
        """Rows without features so far, of earlier runs too, with the reasons."""
        return dict(self._rows.failed)

    def missing(self) -> np.ndarray:
        """Rows that are not durable yet.

        Returns
        -------
        numpy.ndarray
            Shape (N,), bool.
        """
        return np.zeros(self.n_rows, bool) if self.is_complete else ~self._rows.is_committed

    def write(self, start: int, rows: np.ndarray, failed: Mapping[int, str] | None = None) -> None:
        """Write neighbouring rows; now and then makes all written rows durable.

        Parameters
        ----------
        start : int
            Number of the first row.
        rows : numpy.ndarray
            Shape (n, D), any float type; cast to the stored type. They are handed
            over: do not change the array before the next `commit`, its checksums are
            computed meanwhile.
        failed : mapping of int to str, optional
            Rows among them (by number in the cache) that have no features, with
            reasons; they are stored as NaN whatever `rows` holds.

        Raises
        ------
        CacheError
            If a row that did not fail is not finite in the stored type (nothing
            of this call is written then), or the disk fails.
        ValueError
            If the rows do not fit, or were written before.
        """
        failed = dict(failed or {})
        check_rows(self.spec, start, rows, failed)
        if self._rows.status[start : start + len(rows)].any():
            raise ValueError(f"some of rows {start}-{start + len(rows) - 1} were written before")
        if len(rows) == 0:
            return
        data = disk.bytes_of(as_stored(rows, self._dtype, start, failed))
        stop = start + len(rows)
        with self._writing(f"rows {start}-{stop - 1}") as partial:
            offset = self._features_offset + start * self.spec.row_bytes
            disk.pwrite(partial.fd, data, offset)
        item = self._rows.queue(Range(start, stop, 0, failed, self._run), len(data))
        self._checksums.add(start, data, item)
        if self._rows.is_due:
            self._end_commit()
            self._begin_commit()

    @contextmanager
    def _writing(self, what: str) -> Iterator[Partial]:
        # After a failed fsync the system may forget the lost pages and report success
        # the next time, so nothing is tried twice: the next run computes these rows anew.
        if self._partial is None or self._is_broken:
            raise CacheError(f"{self.target}: this run ended, or failed before: start another")
        n_safe = self._rows.n_committed
        action = f"cannot write {what} of {self.target} ({n_safe:,} rows are safe)"
        try:
            with disk.translated(action):
                yield self._partial
        except Exception:
            self._is_broken = True
            raise

    def commit(self) -> None:
        """Make all rows written so far durable.

        Raises
        ------
        CacheError
            If the disk fails; rows committed before are safe.
        """
        self._end_commit()
        self._begin_commit()
        self._end_commit()

    def _begin_commit(self) -> None:
        """Make the written rows durable in the background, while others are written."""
        group = self._rows.take_group()
        if group:
            with self._writing("its journal") as partial:
                job = self._committer.submit(_make_durable, partial, group, self._checksums.take())
            self._committing = job, group

    def _end_commit(self) -> None:
        if self._committing is None:
            return
        job, group = self._committing
        with self._writing("its journal"):
            job.result()
        self._committing = None
        self._rows.end_commit(group)

    def finish(self, expected: np.ndarray | None = None) -> None:
        """Complete the file, and give it the target's name in one step.

        Parameters
        ----------
        expected : numpy.ndarray, optional
            Digests that its blocks must have, rows of an earlier run included: shape
            (n_blocks, 32), uint8.

        Raises
        ------
        CacheError
            If a row is missing, or the disk fails; the target is as it was then.
        """
        if self.is_complete:
            return
        self.commit()
        n_missing = self.n_rows - self._rows.n_committed
        if n_missing:
            first = int(np.flatnonzero(~self._rows.is_committed)[0])
            raise CacheError(
                f"{self.target}: {n_missing:,} of {self.n_rows:,} rows are missing, the first "
                f"is {first}: run the same command again to compute them"
            )
        with self._writing("the end") as partial:
            self._seal(partial, expected)
            if _identity(self.target) != self._before:
                self._refuse_to_replace()
            # HDF5 locks what it reads; no reader shall find the new file locked.
            unlock(partial.fd)
            disk.replace(partial.path, self.target)
            disk.fsync_folder(self.target.parent)
            self.is_complete = True
            disk.unlink(partial.journal.path)
        self.close()

    def _refuse_to_replace(self) -> None:
        """Keep what came meanwhile, unless another process computed the same features."""
        with suppress(CacheError):
            if is_finished(self.target, self.spec, overwrite=False):
                return
        raise CacheError(
            f"{self.target} was made or changed by another program meanwhile, and is not replaced: "
            "move it away, then run the same command again, which finds all rows computed"
        )

    def _seal(self, partial: Partial, expected: np.ndarray | None) -> None:
        digests = self._checksums.digests(partial.fd, self._features_offset)
        if expected is not None and not np.array_equal(digests, expected):
            raise CacheError(
                f"{partial.path} holds other rows than those asked for: finish the run that "
                "began it, or delete it, or choose another name (-o)"
            )
        status, failed = self._rows.status, self._rows.failed
        finished = lay_out(self.spec, status, failed, digests)
        if finished.features_offset != self._features_offset:
            raise CacheError("HDF5 laid the finished file out differently: report it as a bug")
        # All space is there before the first byte changes.
        disk.allocate(partial.fd, finished.file_bytes)
        disk.truncate(partial.fd, finished.file_bytes)
        partials.write_layout(partial.fd, finished)
        disk.fsync(partial.fd)

    def close(self) -> None:
        """Let go of files and lock; committed rows stay for the next run.

        A partial file without any committed row is removed.
        """
        self._committer.shutdown()  # waits for a commit under way
        self._checksums.close()
        self._count_last_commit()
        partial, self._partial = self._partial, None
        if partial is not None:
            is_useless = not self.is_complete and not self._rows.n_committed
            if is_useless and partial.path.exists():
                with suppress(OSError):
                    partials.discard(partial.path)
            partial.close()
        self._release()

    def _count_last_commit(self) -> None:
        # After an error elsewhere nobody waited for it, but its rows may be durable.
        committing, self._committing = self._committing, None
        if committing is not None and committing[0].exception() is None:
            self._rows.end_commit(committing[1])

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._partial is not None and not self._is_broken:
                self.commit()  # rows written before an interruption are good
        except CacheError:
            if kind is None:
                raise
        finally:
            self.close()


def _make_durable(partial: Partial, group: list[Range], sums: list[Future[None]]) -> None:
    disk.fdatasync(partial.fd)
    for job in sums:
        job.result()
    partial.journal.append(group)


def _identity(path: Path) -> tuple[int, ...] | None:
    """Tell a file from another one that got its name, or from itself after a change."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

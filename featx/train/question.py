"""What is asked of a training: which images, tested on which, known by which name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Leaks, Pair, Settings
from featx.evaluate.draws import Subset, draw_all
from featx.evaluate.images import images_sha256
from featx.evaluate.leak_report import guard, leak_record, leak_remark
from featx.evaluate.leaks import Leak
from featx.extract.settings import Sample, take_sample
from featx.fingerprint import fingerprint
from featx.progress import Reporter
from featx.sources import ClassChoice, Source, open_data
from featx.train.batches import PixelSet
from featx.train.images import Decoded, Decoder, SourceRows, is_readable
from featx.train.networks import Recipe
from featx.train.plan import TrainPlan

__all__ = ["TrainQuestion", "open_sources"]

_VERSION = 1
"""Part of every training's name; to be raised when the same question gets another answer."""

# Columns of the table of their own, or what images and recipe say more exactly.
_NOT_TOLD = {
    *("network", "data", "classes", "drop", "map", "seed", "cache_per_class", "test_per_class"),
    *("holdout", "on_leak", "weights", "layer", "input_size", "precision", "channels_last"),
}


def open_sources(plan: TrainPlan, reporter: Reporter) -> dict[str, Source]:
    """Open the data, restricted to the chosen classes and to the pool that is drawn first.

    Parameters
    ----------
    plan : TrainPlan
        What to do.
    reporter : Reporter
        Is told about downloads.

    Returns
    -------
    dict of str to Source
        ``train`` and ``test``, the same ones that heads are fitted and tested on; or ``all``.

    Raises
    ------
    FeatxError
        If the data cannot be opened, or have no images to train on or to test on.
    """
    classes = ClassChoice.parse(plan.classes, plan.drop, plan.map)
    sample = Sample(plan.cache_per_class, plan.test_per_class, plan.seed, classes)
    splits = open_data(plan.data, reporter=reporter)
    names = ("all",) if "all" in splits else ("train", "test" if "test" in splits else "val")
    lacking = [name for name in names if name not in splits]
    if lacking:
        raise UsageError(
            f"{plan.data} has the splits {', '.join(splits)}: a training needs train and test"
        )
    return {name: take_sample(splits[name], sample) for name in names}


class TrainQuestion:
    """The images of a training: subsets to train on, and test images.

    Parameters
    ----------
    plan : TrainPlan
        What to do.
    sources : mapping of str to Source
        As from `open_sources`.
    recipe : Recipe
        Network and preprocessing.
    decoder : Decoder
        Decodes.
    precision : str
        Arithmetic, resolved.

    Attributes
    ----------
    pair : Pair
        The splits as evaluation sees them.
    subsets : list of Subset
        By draw, then by size: the rows that heads draw.
    test_rows : ndarray of int64
        Rows of the test split.
    truth : ndarray of int64
        Their labels.
    remarks : list of str
        Part of every result's notes.

    Raises
    ------
    ProtocolError
        If a class has too few images, nothing can be tested, or there are leaks and they are
        to be errors.
    """

    def __init__(
        self,
        plan: TrainPlan,
        sources: Mapping[str, Source],
        recipe: Recipe,
        decoder: Decoder,
        precision: str,
    ) -> None:
        self.plan, self.recipe, self.decoder, self.precision = plan, recipe, decoder, precision
        self.reporter = decoder.reporter
        self._sources = list(sources.values())
        # A draw depends on which images can be read: that is known of some sources only.
        self._decoded: dict[int, Decoded] = {
            id(source): decoder.decode(source)
            for source in self._sources
            if not is_readable(source)
        }
        rows = [self._rows(source) for source in self._sources]
        self.pair = Pair(rows[0], rows[-1])
        self.settings = Settings(
            heads=(), per_class=plan.per_class, repeats=plan.repeats, seed=plan.seed
        )
        self.notices: list[str] = []
        drawable, self.test_rows = self.pair.split(plan.holdout, self.settings.holdout_seed)
        if not self.test_rows.size:
            raise ProtocolError(f"{self.pair.name}: no test image is labelled and usable")
        self._tell(self._unusable())
        self.leaks = _find_copies(self.pair, drawable, self.test_rows)
        drawable = guard(self.leaks, plan.on_leak, drawable, self._tell, self.reporter)
        self.subsets, notices = draw_all(self.pair.train, drawable, self.settings)
        self._tell(notices)
        self.truth = np.asarray(self.pair.test.y)[self.test_rows]
        self.remarks = self._remarks()
        self._decode_the_rest()

    def _rows(self, source: Source) -> SourceRows:
        digests = source.image_digests(reporter=self.reporter)
        identity = {
            "content": source.content_id(digests),
            "split": source.split,
            "preprocessing": self.recipe.preprocessing.identity(),
        }
        decoded = self._decoded.get(id(source))
        failed = sorted(decoded.failed) if decoded else []
        return SourceRows(source, digests, failed, fingerprint(identity), self.recipe.text)

    def _tell(self, notices: Iterable[str]) -> None:
        for notice in notices:
            self.notices.append(notice)
            self.reporter.warn(f"{self.pair.name}: {notice}")

    def _unusable(self) -> list[str]:
        splits = [self.pair.train] if self.pair.is_holdout else [self.pair.train, self.pair.test]
        lost = [(split, int((~self.pair.usable(split)).sum())) for split in splits]
        return [
            f"{n} images of {split.path} cannot be read or have no label, and are left out"
            for split, n in lost
            if n
        ]

    def _remarks(self) -> list[str]:
        held_out = []
        if self.pair.is_holdout:
            share, seed = self.plan.holdout, self.settings.holdout_seed
            held_out = [f"no test split: {share:.0%} of each class held out (seed {seed})"]
        return held_out + leak_remark(self.leaks, self.plan.on_leak)

    def _decode_the_rest(self) -> None:
        """Decode what is drawn and tested, of sources that can be read for sure."""
        drawn = np.unique(np.concatenate([subset.rows for subset in self.subsets]))
        wanted: dict[int, NDArray[np.int64]] = {id(self._sources[0]): drawn}
        last = id(self._sources[-1])
        wanted[last] = np.union1d(wanted.get(last, drawn[:0]), self.test_rows)
        for source in self._sources:
            if id(source) not in self._decoded:
                decoded = self.decoder.decode(source, wanted[id(source)])
                self._decoded[id(source)] = decoded
                if decoded.failed:
                    row, why = next(iter(decoded.failed.items()))
                    raise ProtocolError(f"{source.paths[row]} cannot be read: {why}")

    @property
    def class_names(self) -> list[str]:
        """One name a class."""
        return self.pair.train.class_names

    def training_images(self, subset: Subset) -> PixelSet:
        """Images of one draw."""
        source = self._sources[0]
        return self._decoded[id(source)].take(source.labels, subset.rows)

    @cached_property
    def test_images(self) -> PixelSet:
        """Images that are tested."""
        source = self._sources[-1]
        return self._decoded[id(source)].take(source.labels, self.test_rows)

    @cached_property
    def _test_sha256(self) -> str:
        return images_sha256(self.pair.test, self.test_rows)

    @property
    def head(self) -> str:
        """What the table calls the training: settings that are not the default ones."""
        usual = {f.name: f.default for f in fields(TrainPlan)}
        asked = {k: v for k, v in self.plan.asked().items() if k not in _NOT_TOLD}
        if self.recipe.top is not None:
            asked["top"] = self.recipe.top
        changed = {k: v for k, v in asked.items() if v != _plain(usual[k])}
        words = " ".join(f"{key}={_text(value)}" for key, value in changed.items())
        return f"train({words})" if words else "train"

    def fit_id(self, subset: Subset) -> str:
        """Name the training: 16 hexadecimal digits, of images, network and settings.

        Parameters
        ----------
        subset : Subset
            One of `subsets`.

        Returns
        -------
        str
        """
        asked = self.plan.asked()
        for name in ("data", "classes", "drop", "map", "cache_per_class", "test_per_class"):
            del asked[name]  # the images and their classes are told below
        return fingerprint(
            {
                "version": _VERSION,
                "kind": "train",
                "asked": {**asked, "precision": self.precision},
                "recipe": self.recipe.identity(),
                "class_names": self.class_names,
                "train_images": images_sha256(self.pair.train, subset.rows),
                "test_images": self._test_sha256,
                "per_class": str(subset.per_class),
                "repeat": subset.repeat,
                "seed": subset.seed,
                "n_drawn_leaks": self._n_drawn(subset),
            }
        )[:16]

    def _n_drawn(self, subset: Subset) -> int:
        return int(np.isin(subset.rows, self.leaks.train_rows).sum())

    def record(self, subset: Subset) -> dict[str, Any]:
        """Give what a training's JSON keeps of the question, as fits of heads do.

        Parameters
        ----------
        subset : Subset
            One of `subsets`.

        Returns
        -------
        dict
            Plain values.
        """
        is_choice = len(self.test_rows) < len(self.pair.test.y)
        leaks = {"on_leak": self.plan.on_leak, "n_drawn": self._n_drawn(subset)}
        return {
            "train_rows": subset.rows.tolist(),
            "test_rows": self.test_rows.tolist() if is_choice else "all",
            "train_images_sha256": images_sha256(self.pair.train, subset.rows),
            "test_images_sha256": self._test_sha256,
            "test_labels": self.truth.tolist(),
            "is_holdout": self.pair.is_holdout,
            "notices": list(self.notices),
            "leaks": leak_record(self.leaks) | leaks,
            "settings": {**self.settings.record(), **self.plan.asked(), "heads": [self.head]},
        }

    def with_plan(self, plan: TrainPlan) -> TrainQuestion:
        """Ask the same of the same images with other settings of the training.

        Parameters
        ----------
        plan : TrainPlan
            It differs in how is trained, not in the data.

        Returns
        -------
        TrainQuestion
            Sharing the images.
        """
        other = object.__new__(TrainQuestion)
        other.__dict__.update(self.__dict__)
        other.plan = plan
        if plan.network != self.plan.network:
            other.recipe = replace(self.recipe, text=plan.network)
        return other


def _find_copies(pair: Pair, drawable: NDArray[np.bool_], test_rows: NDArray[np.int64]) -> Leaks:
    """Find training images whose bytes are those of a test image."""
    rows = np.flatnonzero(drawable)
    in_test: dict[bytes, int] = {}
    for row in test_rows.tolist():
        in_test.setdefault(pair.test.image_digests[row].tobytes(), row)
    digests = [pair.train.image_digests[row].tobytes() for row in rows]
    twins = [
        Leak("same file", int(row), in_test[digest])
        for row, digest in zip(rows, digests, strict=True)
        if digest in in_test
    ]
    # Several test images may be one file: each is told.
    in_train = {pair.train.image_digests[leak.train].tobytes(): leak.train for leak in twins[::-1]}
    known = {leak.test for leak in twins}
    twins += [
        Leak("same file", in_train[digest], row)
        for row in test_rows.tolist()
        if row not in known and (digest := pair.test.image_digests[row].tobytes()) in in_train
    ]
    return Leaks(pair, len(rows), len(test_rows), tuple(twins))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

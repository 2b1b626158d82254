"""Everything that one question of ``featx extract`` says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from featx.devices import find_device
from featx.errors import CacheError, UsageError, reason_of
from featx.network_names import check_network_name, check_weights_name
from featx.progress import Reporter
from featx.urls import is_url, shown
from featx.words import (
    INTERPOLATIONS,
    MISTAKES,
    POOLS,
    PRECISIONS,
    RUNTIMES,
    STORE_DTYPES,
    check_scale,
    check_word,
    put_in_form,
)

if TYPE_CHECKING:
    from featx.extract.settings import Sample
    from featx.sources import Source

__all__ = ["NATIVE", "NOT_RECORDED", "Plan", "Share", "Sources", "make_folder", "open_sources"]

NATIVE = "native"
"""An input size: that of the images themselves, which are not resized."""

# What decides nothing about the features.
NOT_RECORDED = (
    "cache_dir",
    "overwrite",
    "append",
    "split",
    "device",
    "workers",
    "max_memory",
    "on_error",
    "allow_code",
)
_Item = TypeVar("_Item")
_PATHS = ("data", "weights", "images_root")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was typed after ``featx extract``, by the names of the options.

    And `draws`, the rule of samples: see `drawn_as_in_folder`. A backbone ``module:function`` is
    imported only if it is in `allow_code` too: a plan may come out of a file.
    """

    backbone: tuple[str, ...]
    data: str = "cifar10"
    split: tuple[str, ...] = ()
    train_folder: str | None = None
    val_folder: str | None = None
    test_folder: str | None = None
    classes_at: int | None = None
    images_root: str | None = None
    columns: tuple[str, ...] | None = None
    classes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: tuple[str, ...] = ()
    weights: str | None = None
    weights_key: str | None = None
    layer: tuple[str, ...] = ()
    pool: str = "none"
    input_size: int | str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bits: int | None = None
    preprocess: str = "correct"
    precision: str = "fp32"
    store_dtype: str = "float16"
    batch_size: int | None = None
    workers: int | None = None
    max_memory: int | None = None
    device: str | tuple[str, ...] = "auto"
    runtime: str = "torch"
    per_class: int | None = None
    test_per_class: int | None = None
    seed: int = 0
    cache_dir: str = "cache"
    overwrite: bool = False
    on_error: str = "skip"
    append: bool = False
    allow_code: tuple[str, ...] = ()
    draws: int | None = None

    def __post_init__(self) -> None:
        put_in_form(self)

    def check_words(self) -> None:
        """Refuse words that nothing knows, before data are opened and torch is imported."""
        for name in self.backbone:
            check_network_name(name)
            check_weights_name(name, self.weights)
        for device in self.devices:
            find_device(device)
        replace(self, input_size=None if self.input_size == NATIVE else self.input_size).overrides()
        for kind, word, allowed in (
            ("interpolation", self.interpolation or INTERPOLATIONS[0], INTERPOLATIONS),
            ("pool", self.pool, POOLS),
            ("precision", self.precision, PRECISIONS),
            ("runtime", self.runtime, RUNTIMES),
            ("store-dtype", self.store_dtype, STORE_DTYPES),
        ):
            check_word(kind, word, allowed)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices."""
        return (self.device,) if isinstance(self.device, str) else self.device

    @property
    def sample(self) -> Sample:
        """Which part of the data it takes."""
        from featx.extract.settings import Sample
        from featx.fewshot import DRAWS_VERSION
        from featx.sources import ClassChoice

        classes = ClassChoice.parse(self.classes, self.drop, self.map)
        rule = DRAWS_VERSION if self.draws is None else self.draws
        return Sample(self.per_class, self.test_per_class, self.seed, classes, rule)

    @property
    def is_sample(self) -> bool:
        """Whether images are drawn, not all of them taken."""
        return self.per_class is not None or self.test_per_class is not None

    def drawn_as_in_folder(self) -> Plan:
        """Keep the rule of the samples of these data and this seed that the folder has.

        So the sample of an older featx is completed, and is the same for another backbone.
        """
        from featx.fewshot import DRAWS_VERSION
        from featx.store import find_caches, open_any

        if not self.is_sample or self.draws is not None:
            return self
        own = self.request("")
        rules = []
        for path in find_caches(Path(self.cache_dir)):
            try:
                with open_any(path) as cache:
                    request = cache.meta.get("request") or {}
            except CacheError:
                continue  # the usual way says what is wrong with it
            is_sample = "per_class" in request or "test_per_class" in request
            if is_sample and all(request.get(key) == own[key] for key in ("data", "seed")):
                rules.append(request.get("draws", 1))
        return replace(self, draws=max(rules, default=DRAWS_VERSION))

    def overrides(self) -> dict[str, Any]:
        """Give the changes to the weights' own preprocessing that were asked for."""
        check_word("preprocess", self.preprocess, MISTAKES)
        if isinstance(self.input_size, str):
            raise UsageError(f"input-size is {self.input_size!r}: give pixels, or {NATIVE!r}")
        check_scale(self.mean or (0.0,), self.std or (0.0,))
        names = ("input_size", "crop_pct", "interpolation", "mean", "std", "bits")
        values = {name: getattr(self, name) for name in names}
        chosen = {name: value for name, value in values.items() if value is not None}
        return MISTAKES[self.preprocess] | chosen

    def at_native_size(self, sources: Sequence[Source], reporter: Reporter) -> Plan:
        """Put the size of the images in place of ``native``."""
        if self.input_size != NATIVE:
            return self
        from featx.sources.look import common_size

        width, height = common_size(sources)
        side = min(width, height)
        cropped = "" if width == height else f", centre crop of {width} x {height}"
        reporter.say(f"native input size: {side} pixels, nothing is resized{cropped}")
        return replace(self, input_size=side, crop_pct=1.0)

    def request(self, backbone: str) -> dict[str, Any]:
        """Give what decides the features of one backbone, to be recorded and asked again."""
        from featx.sources import available_data

        values = {k: v for k, v in asdict(self).items() if v is not None and k not in NOT_RECORDED}
        values["backbone"] = [backbone]
        if self.runtime == "torch":  # what no older cache names
            del values["runtime"]
        if self.draws == 1 or not self.is_sample:  # likewise
            values.pop("draws", None)
        for name in _PATHS:
            word = values.get(name)
            if is_url(word):
                values[name] = shown(word)
            elif word and Path(word).exists() and word not in available_data():
                path = Path(word)
                values[name] = str(path.resolve() if ".." in path.parts else path.absolute())
        return values


@dataclass(frozen=True)
class Share:
    """Shards number i, i + n, i + 2 n, ... of all; written ``i/n``, from 1 on."""

    i: int = 1
    n: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what was typed, as in ``3/20``."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        share = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= share.i <= share.n:
            raise UsageError(
                f"shard {text!r} is no part: give I/N, as in 3/20 for the third of 20 processes, "
                "with I from 1 to N"
            )
        return share

    def of(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Give every n-th of all items, from the i-th on."""
        return islice(items, self.i - 1, None, self.n)


class Sources(list["Source"]):
    """The splits that are extracted."""

    def __init__(self, chosen: Iterable[Source], listed: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(chosen)
        self.listed = listed


def open_sources(plan: Plan, reporter: Reporter) -> Sources:
    """Open the splits of a plan, restricted to its sample."""
    from featx.extract.settings import take_sample
    from featx.sources import LayoutChoice, open_data
    from featx.sources.splits import describe_choice

    layout = LayoutChoice.of(plan)
    opened = open_data(plan.data, layout=layout, wanted=plan.split, reporter=reporter)
    splits = _chosen(opened, plan)
    if not plan.split:
        reporter.say(describe_choice(opened))
    listed = {
        name: {"n_images": len(source), "listed": source.names_id()}
        for name, source in opened.items()
    }
    return Sources([take_sample(source, plan.sample) for source in splits.values()], listed)


def _chosen(splits: Mapping[str, Source], plan: Plan) -> dict[str, Source]:
    unknown = [name for name in plan.split if name not in splits]
    if unknown:
        raise UsageError(
            f"{plan.data} has no split {unknown[0]!r}: choose from {', '.join(splits)}"
        )
    # Images without labels serve no fit: they are extracted where they are asked for.
    wanted = plan.split or [name for name in splits if name != "unlabeled" or len(splits) == 1]
    return {name: source for name, source in splits.items() if name in wanted}


def make_folder(folder: Path) -> None:
    """Make the folder for cache files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"the folder {folder} for cache files cannot be made: {reason_of(error)}. "
            "Give another one with --cache DIR"
        ) from error

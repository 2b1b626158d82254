"""How the command line reads its words: space-separated lists and shared options."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from featx.progress import Reporter
from featx.words import ENGINES, LOCAL

__all__ = [
    "DATA_HELP",
    "INPUT_SIZE",
    "MEASURES",
    "PER_CLASS",
    "TRACKERS",
    "Bytes",
    "ListCommand",
    "ListOption",
    "NumberOr",
    "RenamedOption",
    "bits_option",
    "cache_option",
    "class_options",
    "cluster_options",
    "code_option",
    "common_options",
    "engine_options",
    "fit_options",
    "layout_options",
    "list_option",
    "log_option",
    "measures_option",
    "reports_option",
    "test_split_option",
]

# Those of featx.evaluate.scores but for the accuracy; importing that takes seconds.
MEASURES = ("acc5", "recall", "macro_f1", "auroc", "average_precision", "log_loss", "ece")

# Those of featx.tracking.
TRACKERS = ("mlflow", "tensorboard", "wandb")

DATA_HELP = "Built-in name, folder, archive, manifest or Hugging Face data: see  featx list data."
"""Help of ``--data``."""

F = TypeVar("F", bound=Callable[..., Any])


class ListCommand(click.Command):
    """A command whose repeatable options take several words: ``--clf svm logreg``.

    Every word up to the next option belongs to the list, and a comma parts words too. Where the
    command then lacks the words of its own (``compare --data c10 svm logreg``), a list keeps its
    first word, and the others are the command's.
    """

    def __init__(self, *args: Any, least: int = 1, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.least = least  # words of its own that it needs

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell out the lists, then parse as usual."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        lists = {name: p for p in options if isinstance(p, ListOption) for name in p.opts}
        flags = {name for p in options if p.is_flag for name in (*p.opts, *p.secondary_opts)}
        own = [p for p in self.get_params(ctx) if isinstance(p, click.Argument)]
        spelled, n_own = _spelled(
            args, lists, flags, lambda option, word, n: not (own and n) or option.takes(word)
        )
        if any(p.required for p in own) and n_own < self.least:
            spelled, _ = _spelled(args, lists, flags, lambda option, word, n: n == 0)
        return super().parse_args(ctx, spelled)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say how several words are given."""
        with formatter.indentation():
            formatter.write_text("NAME...: several words, separated by spaces or commas.")


class RenamedOption(click.Option):
    """An option of which the help shows its first spelling; older ones go on working."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Write the line of the help."""
        every, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


class ListOption(RenamedOption):
    """An option that takes several words."""

    def __init__(self, *args: Any, has_commas: bool = True, **settings: Any) -> None:
        settings["multiple"] = True
        super().__init__(*args, **settings)
        self.has_commas = has_commas

    def words(self, word: str) -> list[str]:
        """Part a word at its commas, but for those within parentheses and in names of files."""
        if not self.has_commas or "," not in word or Path(word).exists():
            return [word]
        return [part.strip() for part in re.split(r",(?![^()]*\))", word) if part.strip()]

    def takes(self, word: str) -> bool:
        """Whether a word may be one of the list: those of NAME=PLACE have an equals sign."""
        return "=" in word or "=" not in (self.metavar or "")

    def make_metavar(self, ctx: click.Context) -> str:
        """Say that several words may come."""
        one = super().make_metavar(ctx)
        one = "NAME" if one == "TEXT" else one
        return one if one.endswith("...") else f"{one}..."


def _spelled(
    args: Sequence[str],
    lists: Mapping[str, ListOption],
    flags: Container[str],
    takes: Callable[[ListOption, str, int], bool],
) -> tuple[list[str], int]:
    """Give each word of a list its option; count the words that belong to no option.

    `takes` says whether an option that has n words takes another.
    """
    spelled: list[str] = []
    name, n_words, n_own, is_value = "", 0, 0, False
    for word in args:
        if word.startswith("-") and len(word) > 1 and not is_value:
            _require_word(name, n_words)
            option, has_value, value = word.partition("=")
            name, n_words = (option if option in lists else ""), 0
            is_value = not (name or has_value or word in flags)
            if name and has_value:
                spelled += [part for one in lists[name].words(value) for part in (name, one)]
                n_words = 1
            elif not name:
                spelled.append(word)
        elif name and takes(lists[name], word, n_words):
            spelled += [part for one in lists[name].words(word) for part in (name, one)]
            n_words += 1
        else:
            n_own += not is_value
            spelled.append(word)
            name, is_value = "", False
    _require_word(name, n_words)
    return spelled, n_own


def _require_word(name: str, n_words: int) -> None:
    if name and not n_words:
        raise click.BadOptionUsage(name, f"Option {name!r} requires an argument.")


class NumberOr(click.ParamType):  # type: ignore[type-arg]
    """A number above 0, or a certain word."""

    def __init__(self, word: str, what: str, kind: type[int] | type[float] = int) -> None:
        self.word, self.kind = word, kind
        self.name = f"{what}|{word}"

    def get_metavar(self, param: click.Parameter, ctx: Any = None) -> str:
        """Write the word as it is typed."""
        return self.name

    def convert(self, value: Any, param: Any, ctx: Any) -> int | float | str:
        """Read one word."""
        if value == self.word:
            return self.word
        try:
            number = self.kind(value)
        except ValueError:
            number = 0
        if not number > 0:
            what = "whole number of at least 1" if self.kind is int else "number above 0"
            self.fail(f"{value!r} is neither a {what} nor {self.word!r}", param, ctx)
        return number


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: ``500MB``, ``4GB``, ``4GiB``."""

    name = "BYTES"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Read one word."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", str(value).upper())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no amount of memory: write 500MB, 4GB or 4GiB", param, ctx)
        base = 1024 if found[3] else 1000
        return int(float(found[1]) * base ** " KMGT".index(found[2] or " "))


PER_CLASS = NumberOr("all", "N")
INPUT_SIZE = NumberOr("native", "PIXELS")


def list_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Option that takes several words, for a `ListCommand`; what comes twice is once."""
    return click.option(*names, cls=ListOption, **{"callback": _unique, **settings})


def _unique(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
    del ctx, param
    return tuple(dict.fromkeys(values))


def bits_option(function: F) -> F:
    """Add ``--bits``, those in use of pixel values that are stored in 16."""
    return click.option(
        "--bits",
        type=int,
        help="Bits in use of pixel values stored in 16, such as 12.  [default: all 16]",
    )(function)


def cache_option(function: F) -> F:
    """Add ``--cache``, the folder of the cache files."""
    return click.option(
        "--cache", "cache_dir", default="cache", show_default=True, help="Folder of cache files."
    )(function)


def reports_option(function: F) -> F:
    """Add ``--reports``, the folder of the results."""
    return click.option(
        "--reports", "reports_dir", default="reports", show_default=True, help="Folder of results."
    )(function)


def test_split_option(function: F) -> F:
    """Add ``--test-split``, the split that is tested on."""
    return click.option(
        "--test-split",
        metavar="test|val",
        help="Split to test on.  [default: test, or val where there is no test]",
    )(function)


def class_options(function: F) -> F:
    """Add ``--classes``, ``--drop`` and ``--map``, for a `ListCommand`."""
    return _with(_CLASS_OPTIONS, function)


_STORE_DTYPES = click.Choice(["float16", "float32"])


def _take_fast(ctx: click.Context, param: click.Parameter, is_fast: bool) -> None:
    """Change the defaults of what is not typed."""
    del param
    if is_fast:
        ctx.default_map = {**(ctx.default_map or {}), "precision": "auto", "runtime": "auto"}


_ENGINE_OPTIONS = (
    click.option(
        "--fast",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_take_fast,
        help="Short for  --runtime auto --precision auto: the fastest that this machine has.",
    ),
    click.option("--weights", help="Tag (IMAGENET1K_V1), file (.pth, .safetensors), or random."),
    click.option(
        "--weights-key",
        help="Entry of the file, as state_dict or teacher.  [default: averaged weights (EMA), "
        "then the only ones]",
    ),
    click.option(
        "--precision", default="fp32", show_default=True, help="fp32, bf16, fp16 or auto."
    ),
    click.option(
        "--store-dtype",
        type=_STORE_DTYPES,
        default="float16",
        show_default=True,
        help="Type of the cached features.",
    ),
    click.option(
        "--batch-size",
        "-b",
        type=int,
        help="Images at once.  [default: that of the rows that are there, else as many as fit, "
        "up to 16, on a GPU 256]",
    ),
    click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none."),
    click.option(
        "--max-memory",
        type=Bytes(),
        help="What batches may take on their way: 4GB.  [default: half of what is free]",
    ),
    list_option(
        "--device",
        default=("auto",),
        show_default=True,
        help="auto, cpu, cuda or cuda:N; several GPUs share the work.",
    ),
    click.option(
        "--runtime",
        default="torch",
        show_default=True,
        help="What computes the network: torch, compile, openvino or auto.",
    ),
)
_CLUSTER_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default=LOCAL,
        show_default=True,
        help="Where the work is done: in this process, or by workers of a Ray cluster.",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT|auto",
        help="The Ray cluster; auto for that of this machine.  [default: RAY_ADDRESS, or one of "
        "this machine alone]",
    ),
)
_CLASS_OPTIONS = (
    list_option(
        "--classes", has_commas=False, help="Classes to keep, by their new names.  [default: all]"
    ),
    list_option("--drop", has_commas=False, help="Classes to leave out."),
    list_option(
        "--map", has_commas=False, metavar="OLD=NEW", help="New names; equal ones become one class."
    ),
)
_LAYOUT_OPTIONS = (
    click.option("--train-folder", metavar="FOLDER", help="Training images, below --data."),
    click.option("--val-folder", metavar="FOLDER", help="Validation images, below --data."),
    click.option("--test-folder", metavar="FOLDER", help="Test images, below --data."),
    click.option(
        "--classes-at",
        type=click.IntRange(1),
        metavar="DEPTH",
        help="The classes are the folders DEPTH levels below --data, or below those folders.",
    ),
    click.option(
        "--images-root",
        metavar="FOLDER",
        help="Of a table: the folder of its paths.  [default: the table's own]",
    ),
    list_option(
        "--columns",
        metavar="path=NAME...",
        callback=lambda ctx, param, words: words or None,
        help="Of a table: its columns, as path=image_id label=breed split=part.",
    ),
)
_FIT_OPTIONS = (
    list_option(
        "--clf",
        "--head",
        default=("svm",),
        show_default=True,
        help="Heads: featx list heads; with settings, 'mlp(hidden=512,256)'.",
    ),
    list_option(
        "--per-class", type=PER_CLASS, required=True, help="Training images a class, or all."
    ),
    click.option("--repeats", type=int, default=5, show_default=True, help="Draws of the subset."),
    click.option("--C", "C", type=float, help="Penalty.  [default: chosen inside each subset]"),
    click.option("--folds", type=int, default=5, show_default=True, help="Folds for choosing C."),
    click.option(
        "--scale",
        default="none",
        show_default=True,
        help="none, l2, standard, power, whiten or whiten=N: see docs/heads.md.",
    ),
    click.option(
        "--class-weight",
        type=click.Choice(["balanced"]),
        help="Weight classes by the inverse of their share of the subset.",
    ),
    click.option(
        "--n-jobs", type=int, default=1, show_default=True, help="Fits side by side; -1: all cores."
    ),
)


def measures_option(function: F) -> F:
    """Add ``--measures``: columns of results.csv to print beside the accuracy."""
    return list_option(
        "--measures",
        type=click.Choice(MEASURES),
        metavar="NAME...",
        help=f"Print means of these too: {', '.join(MEASURES)}.",
    )(function)


def log_option(function: F) -> F:
    """Add ``--log``, the trackers that get results too."""
    return list_option(
        "--log",
        "trackers",
        type=click.Choice(TRACKERS),
        metavar="NAME...",
        help=f"Give each fit to these too, once: {', '.join(TRACKERS)} (extras of these names).",
    )(function)


def layout_options(function: F) -> F:
    """Add which folders of ``--data`` are splits and classes: the fields of `LayoutChoice`."""
    return _with(_LAYOUT_OPTIONS, function)


def code_option(function: F) -> F:
    """Add ``--allow-code``: names of code that a file may name, see `featx.plugins`."""
    return list_option(
        "--allow-code",
        metavar="MODULE:NAME",
        help="Import this code of yours where a file names it; other code is refused.",
    )(function)


def engine_options(function: F) -> F:
    """Add what weights, numbers and machine an extraction uses."""
    return _with(_ENGINE_OPTIONS, function)


def cluster_options(function: F) -> F:
    """Add ``--engine`` and ``--address``: where the work is done."""
    return _with(_CLUSTER_OPTIONS, function)


def fit_options(function: F) -> F:
    """Add heads, subsets and the choice of the penalty, for a `ListCommand`."""
    return _with(_FIT_OPTIONS, function)


def _with(options: Sequence[Callable[[F], F]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def common_options(function: F) -> F:
    """Add ``--quiet`` and ``--debug``, and hand over a `Reporter`."""

    def make_reporter(ctx: click.Context, param: click.Parameter, value: bool) -> Reporter:
        return Reporter(quiet=value)

    function = click.option(
        "--quiet", "-q", "reporter", is_flag=True, callback=make_reporter, help="No progress."
    )(function)
    return click.option(
        "--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors."
    )(function)

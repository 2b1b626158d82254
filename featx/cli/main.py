"""Entry point of the command line: commands by name, and errors in one line."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import click

from featx import __version__
from featx.errors import FeatxError, reason_of
from featx.stops import NUMBERS, heard
from featx.text import visible
from featx.urls import without_secrets

__all__ = ["cli", "main"]

# Each command lives in a module of its own, loaded when it is called.
_COMMANDS = {
    "extract": "Run a backbone once over a data set and cache its features.",
    "plan": "Say what many images take on many GPUs: bytes, hours, money.",
    "fit": "Fit classifiers on cached features and print the table.",
    "train": "Train networks end to end, beside the heads.",
    "compare": "Compare heads, backbones, ... on the same draws and test images.",
    "report": "Make a page of all results to look at, or tables for papers.",
    "explore": "Make a map of a cache: neighbours, likely wrong labels, near-duplicates.",
    "reports": "List kept fits, or remove those that nothing reads any more.",
    "sweep": "Compare input sizes, layers, poolings or preprocessing, all else equal.",
    "reproduce": "Run published systems again: reported beside measured.",
    "predict": "Classify new images with a saved model.",
    "card": "Print a model card of a saved model.",
    "list": "List backbones, layers, data, caches, heads, networks or models.",
    "info": "Show what is in a cache file and how it was made.",
    "verify": "Check every byte of cache files, or a backbone against a slow reference.",
    "pack": "Write a compressed copy of a cache, for archives.",
    "unpack": "Give back the cache that was packed.",
    "merge": "Make one cache file of all shards of a place.",
    "export": "Write features as npz, Parquet or for TensorBoard's projector.",
    "import": "Make caches of features that another program computed.",
    "concat": "Put features of the same images side by side.",
    "cache": "List, remove, tidy up or publish cache files.",
    "repair": "Compute the damaged rows of cache files again.",
    "demo": "Extract and fit on handwritten digits, offline.",
}


_MOVED = {
    "bench": "where the time of a run goes:  featx extract --profile; this machine's ceilings: "
    "python benchmarks/ceilings.py, of the source code",
}
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_SECONDS_OF_ONE_STOP = 1.0  # timeout(1) and others send the same signal twice


class _Stop(KeyboardInterrupt):
    """A signal that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Lazy(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"featx.cli.{name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS:
            from featx.errors import UsageError, unknown_name

            if args[0] in _MOVED:
                raise UsageError(f"featx {args[0]} is no command any more: {_MOVED[args[0]]}")
            raise unknown_name("command", args[0], _COMMANDS, see="featx --help")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featx")
def cli() -> None:
    """Transfer learning on frozen features: extract once, cache, compare honestly."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line."""
    words = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    stops = _Stops(words)
    try:
        try:
            stops.take()
            return _answer(words)
        except KeyboardInterrupt as stop:
            return stops.tell(getattr(stop, "number", signal.SIGINT))
    finally:
        # A program is over here: a signal that comes now ends it without another word.
        stops.give_back(signal.SIG_DFL if args is None else None)


def _answer(words: list[str]) -> int:
    try:
        with heard():
            return _run(words)
    except FeatxError as error:
        if "--debug" in words:
            raise
        _print_error(error)
        return error.exit_code
    except (OSError, MemoryError) as error:
        if "--debug" in words:
            raise
        _print_error(_in_words(error))
        return 1


def _in_words(error: OSError | MemoryError) -> FeatxError:
    """Say what the system refused, of which file, and what to do."""
    if isinstance(error, MemoryError):
        return FeatxError(f"memory ran out: {str(error) or 'end other programs, or use less data'}")
    place = "".join(f"{os.fsdecode(name)}: " for name in (error.filename,) if name)
    return FeatxError(f"{place}{reason_of(error)}")


class _Stops:
    """The signals that end a command, but for those that are ignored or handled already."""

    def __init__(self, words: list[str]) -> None:
        self.command = shlex.join(["featx", *map(without_secrets, words)])
        self.first = 0.0
        self.taken: dict[int, Any] = {}

    def take(self) -> None:
        """Handle the signals; only the main thread can."""
        for number in NUMBERS if current_thread() is main_thread() else ():
            previous = signal.getsignal(number)
            if previous in (signal.SIG_DFL, signal.default_int_handler):
                self.taken[number] = previous
                signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if not self.first:
            self.first = now
            raise _Stop(number)
        if now - self.first > _SECONDS_OF_ONE_STOP:
            # Asked again: what was written is good whenever the process ends. No print: the
            # signal may have come in the middle of one.
            with suppress(OSError):
                os.write(2, f"{self._text(number)}\n".encode(errors="surrogateescape"))
            os._exit(128 + number)

    def tell(self, number: int) -> int:
        """Say how to go on, and give the exit code."""
        with suppress(OSError):  # a terminal that was closed
            print(self._text(number), file=sys.stderr, flush=True)
        return 128 + number

    def _text(self, number: int) -> str:
        word = _WORDS[signal.Signals(number).name]
        return f"{word}; what was done is kept, go on with:  {self.command}"

    def give_back(self, handler: Any) -> None:
        """Let somebody else handle the signals: who did before, by default."""
        for number, previous in self.taken.items():
            signal.signal(number, previous if handler is None else handler)


def _run(words: list[str]) -> int:
    try:
        result = cli.main(args=words, prog_name="featx", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            print(error.format_message(), file=sys.stderr)
        else:
            hint = ""
            if isinstance(error, click.UsageError) and error.ctx is not None:
                hint = f" (see {error.ctx.command_path} --help)"
            text = without_secrets(f"featx: {error.format_message()}{hint}")
            print(visible(text), file=sys.stderr)
        return error.exit_code
    except click.Abort:  # click's word for any stop
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0


def _print_error(error: Exception) -> None:
    more = [f"  {line}" for line in getattr(error, "differences", ())]
    message = str(error).removesuffix("\n".join(["", *more]))
    more += [f"  {note}" for note in getattr(error, "__notes__", ())]
    for line in (f"featx: {message}", *more):
        print(visible(without_secrets(line), keep=""), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

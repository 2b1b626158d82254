"""Entry point of the command line: commands by name, and errors in one line."""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from featx import __version__
from featx.errors import FeatxError

__all__ = ["cli", "main"]

# Each command lives in a module of its own, loaded when it is called.
_COMMANDS = {
    "extract": "Run a backbone once over a data set and cache its features.",
    "fit": "Fit classifiers on cached features and print the table.",
    "train": "Train networks end to end, beside the heads.",
    "compare": "Compare heads, backbones, ... on the same draws and test images.",
    "sweep": "Compare input sizes, layers, poolings or preprocessing, all else equal.",
    "reproduce": "Run published systems again: reported beside measured.",
    "bench": "Measure extractions against the ceilings of this machine.",
    "predict": "Classify new images with a saved model.",
    "list": "List backbones, layers, data, caches, heads, networks or models.",
    "info": "Show what is in a cache file and how it was made.",
    "verify": "Check every byte of cache files, or a backbone against a slow reference.",
    "pack": "Write a compressed copy of a cache, for archives.",
    "unpack": "Give back the cache that was packed.",
    "export": "Write features as npz, Parquet or for TensorBoard's projector.",
    "import": "Make caches of features that another program computed.",
    "concat": "Put features of the same images side by side.",
    "cache": "List, remove or tidy up cache files.",
    "repair": "Compute the damaged rows of cache files again.",
    "demo": "Extract and fit on handwritten digits, offline.",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C but for its exit code."""


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
            from featx.errors import unknown_name

            raise unknown_name("command", args[0], _COMMANDS, see="featx --help")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featx")
def cli() -> None:
    """Transfer learning on frozen features: extract once, cache, compare honestly."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args : sequence of str, optional
        The words behind ``featx``; ``sys.argv`` by default.

    Returns
    -------
    int
        0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if args is None else args)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(words)
    except FeatxError as error:
        if "--debug" in words:
            raise
        _print_error(error)
        return error.exit_code
    except (OSError, MemoryError) as error:
        if "--debug" in words:
            raise
        _print_error(error)
        return 1
    except KeyboardInterrupt as stop:
        command = shlex.join(["featx", *words])
        is_terminated = isinstance(stop, _Terminated)
        print(
            f"{'terminated' if is_terminated else 'interrupted'}; what was done is kept, "
            f"go on with:  {command}",
            file=sys.stderr,
        )
        return 143 if is_terminated else 130
    finally:
        signal.signal(signal.SIGTERM, previous)


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
            print(f"featx: {error.format_message()}{hint}", file=sys.stderr)
        return error.exit_code
    except click.Abort as error:
        # Click's word for KeyboardInterrupt: keep which one it was.
        stop = error.__cause__
        raise (stop if isinstance(stop, KeyboardInterrupt) else KeyboardInterrupt()) from None
    return result if isinstance(result, int) else 0


def _print_error(error: Exception) -> None:
    print(f"featx: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())

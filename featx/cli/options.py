"""How the command line reads its words: space-separated lists and shared options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from featx.progress import Reporter

__all__ = [
    "DATA_HELP",
    "InputSize",
    "ListCommand",
    "PerClass",
    "cache_option",
    "class_options",
    "common_options",
    "list_option",
]

DATA_HELP = "Built-in name, folder, archive, manifest or Hugging Face data: see  featx list data."
"""Help of ``--data``."""

F = TypeVar("F", bound=Callable[..., Any])


class ListCommand(click.Command):
    """A command whose repeatable options take space-separated lists.

    ``--clf svm logreg`` is read as ``--clf svm --clf logreg``: every word up to the
    next option belongs to the list.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell out the lists, then parse as usual.

        Parameters
        ----------
        ctx : click.Context
            Of this call.
        args : list of str
            The words behind the command's name.

        Returns
        -------
        list of str
            The words that are left over.
        """
        lists = {
            name
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and parameter.multiple
            for name in parameter.opts
        }
        spelled: list[str] = []
        current, is_first = "", False
        for word in args:
            if word.startswith("-") and len(word) > 1:
                name, has_value, _ = word.partition("=")
                current, is_first = (name if name in lists else ""), not has_value
                spelled.append(word)
            elif current and not is_first:
                spelled += [current, word]
            else:
                spelled.append(word)
                is_first = False
        return super().parse_args(ctx, spelled)


class PerClass(click.ParamType):  # type: ignore[type-arg]
    """Images per class: a whole number of at least 1, or ``all``."""

    name = "N|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        """Read one word.

        Parameters
        ----------
        value : object
            The word.
        param, ctx : object
            For the error.

        Returns
        -------
        int or str
            The number, or ``"all"``.
        """
        if value == "all":
            return "all"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of at least 1 nor 'all'", param, ctx)
        return int(value)


class InputSize(click.ParamType):  # type: ignore[type-arg]
    """Pixels, or ``native``."""

    name = "PIXELS|native"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        """Read the word.

        Parameters
        ----------
        value : object
            The word.
        param, ctx : object
            For the error.

        Returns
        -------
        int or str
        """
        if value == "native":
            return "native"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of pixels nor 'native'", param, ctx)
        return int(value)


def list_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Option that takes a space-separated list, for a `ListCommand`."""
    return click.option(*names, multiple=True, **settings)


def cache_option(function: F) -> F:
    """Add ``--cache``, the folder of the cache files."""
    return click.option(
        "--cache", "cache_dir", default="cache", show_default=True, help="Folder of cache files."
    )(function)


def class_options(function: F) -> F:
    """Add ``--classes``, ``--drop`` and ``--map``, for a `ListCommand`."""
    for option in (
        list_option("--map", metavar="OLD=NEW", help="New names; equal ones become one class."),
        list_option("--drop", help="Classes to leave out."),
        list_option("--classes", help="Classes to keep, by their new names.  [default: all]"),
    ):
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

"""Things of the user's own, found by name: ``module:name``, or an entry point of a package."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from featx.errors import UsageError, unknown_name

__all__ = ["import_named", "is_plugin", "offered"]


@cache
def offered(group: str) -> dict[str, EntryPoint]:
    """Entry points that installed packages offer in a group, by name, sorted."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda p: p.name)}


def is_plugin(name: str, group: str) -> bool:
    """Whether a name is ``module:name``, or an entry point of the group."""
    return ":" in name or name in offered(group)


def import_named(name: str, group: str, where: str, kind: str) -> Any:
    """Import what a name stands for.

    Parameters
    ----------
    name : str
        ``module:name``, the module found as Python finds it or in the current folder, or an
        entry point of the group.
    group : str
        Group of entry points.
    where : str
        What took the name, such as ``--backbone``, for the error.
    kind : str
        What it should be, such as ``function``, for the error.

    Returns
    -------
    callable

    Raises
    ------
    UsageError
        If the module cannot be imported, has no such name, or it cannot be called.
    """
    points = offered(group)
    module, _, attribute = (points[name].value if name in points else name).partition(":")
    # The installed program "featx" does not see the current folder, as "python" would.
    if (folder := os.getcwd()) not in sys.path:  # noqa: PTH109
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"the module {module!r} of {where} {name} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(found) if callable(getattr(found, n)) and n[0] != "_"]
            raise unknown_name(f"{kind} of {module}", attribute, public)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name} is a {type(found).__name__}, not a {kind}")
    return found

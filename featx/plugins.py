"""Code of the user's own, found by name: ``module:name``, or an entry point of a package.

A name is imported only where the user has named it: on the command line, or as an argument of a
call in Python. Whoever takes it from there hands it down as `allow_code`, to `import_named`, the
one place that imports; a name out of a file (a record, a cache, a recipe) is never added to it.
That the code of an entry point is installed changes nothing: the file would still choose it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from featx.errors import CodeError, UsageError, unknown_name

__all__ = ["Imported", "import_named", "is_plugin", "loaded_now", "named_by", "offered"]

_INSTALLED = {"site-packages", "dist-packages"}


@cache
def offered(group: str) -> dict[str, EntryPoint]:
    """Entry points that installed packages offer in a group, by name, sorted."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda p: p.name)}


def is_plugin(name: str, group: str) -> bool:
    """Whether a name is ``module:name``, or an entry point of the group."""
    return ":" in name or name in offered(group)


@contextmanager
def named_by(file: str | os.PathLike[str]) -> Iterator[None]:
    """Say in the error which file names code that is not allowed."""
    try:
        yield
    except CodeError as error:
        error.files.insert(0, os.fspath(file))
        raise


@dataclass(frozen=True)
class Imported:
    """What a name stands for, and the module where it was found."""

    found: Any
    module: ModuleType

    @property
    def source_sha256(self) -> str:
        """Digest of the source of the module, and of modules of the user's that it imports.

        Empty for the code of an installed package. Code without a file, as in a notebook, has a
        digest of its own in every process: nothing that it gave is found again.
        """
        sources: dict[str, bytes] = {}
        waiting = [self.module]
        while waiting:
            module = waiting.pop()
            if module.__name__ not in sources and not _is_installed(module):
                sources[module.__name__] = source = _source(module, self.found)
                waiting += _imports(module, source)
        both = [(name, hashlib.sha256(sources[name]).hexdigest()) for name in sorted(sources)]
        return hashlib.sha256(repr(both).encode()).hexdigest() if both else ""


def import_named(
    name: str, group: str, where: str, kind: str, allow_code: Collection[str]
) -> Imported:
    """Import what a name stands for, if the user has named it."""
    if name not in {*allow_code}:  # a set: a part of a string is not a name
        raise CodeError(name)
    module, attributes = _parts(name, group)
    # The installed program "featx" does not see the current folder, as "python" would.
    if (folder := os.getcwd()) not in sys.path:  # noqa: PTH109
        sys.path.append(folder)
    try:
        home = importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"the module {module!r} of {where} {name} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    found: Any = home
    for part in attributes:
        if not hasattr(found, part):
            public = [n for n in dir(found) if callable(getattr(found, n)) and n[0] != "_"]
            raise unknown_name(f"{kind} of {module}", ".".join(attributes), public)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name} is a {type(found).__name__}, not a {kind}")
    return Imported(found, home)


def loaded_now(name: str, group: str) -> tuple[Any, str]:
    """Give what a name stands for, and the digest of its source, without importing anything."""
    module, attributes = _parts(name, group)
    home = found = sys.modules.get(module)
    for part in attributes:
        found = getattr(found, part, None)
    return found, Imported(found, home).source_sha256 if home else ""


def _parts(name: str, group: str) -> tuple[str, list[str]]:
    points = offered(group)
    module, _, attribute = (points[name].value if name in points else name).partition(":")
    return module, attribute.split(".")


_sources: dict[tuple[str, int], tuple[Any, bytes]] = {}


def _source(module: ModuleType, found: Any) -> bytes:
    """Read a module's file once each time that it is loaded: what changes later does not run."""
    loaded = module.__spec__ or found  # a reload makes a new specification
    key = module.__name__, id(loaded)
    if key not in _sources:
        file = getattr(module, "__file__", None)
        is_known = file is not None and not _is_edited(module, file)
        _sources[key] = loaded, Path(file).read_bytes() if file and is_known else uuid4().bytes
    return _sources[key][1]


def _is_edited(module: ModuleType, file: str) -> bool:
    """Whether a file changed since Python loaded it: Python notes time and size in its cache."""
    try:
        noted = Path(module.__spec__.cached).read_bytes()[:16]  # type: ignore[union-attr,arg-type]
        flags, changed, size = struct.unpack("<4x3I", noted)
        now = os.stat(file)  # noqa: PTH116 - as Python itself does
    except (OSError, AttributeError, TypeError, struct.error):
        return False  # there is no cache
    found = int(now.st_mtime) & 0xFFFFFFFF, now.st_size & 0xFFFFFFFF
    return not flags and found != (changed, size)


def _is_installed(module: ModuleType) -> bool:
    """Whether a module is part of Python, of featx or of an installed package, or has no code."""
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__spec__ is not None  # built into Python, or a folder of modules
    top = module.__name__.partition(".")[0]
    return top in (*sys.stdlib_module_names, "featx") or bool(_INSTALLED & {*Path(file).parts})


def _imports(module: ModuleType, source: bytes) -> Iterator[ModuleType]:
    """Yield the loaded modules that a module's source imports, and the packages around them."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # compiled, or of a notebook
    names = {module.__name__}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # a relative import that was never run
                base = resolve_name("." * node.level + (node.module or ""), module.__package__)
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if (loaded := sys.modules.get(".".join(parts[:end]))) is not None:
                yield loaded

"""Errors that a person can act on, and the hints that they carry.

Every error that featx raises on purpose is a `FeatxError`. Its text says what
was wrong, what is allowed, and what to do; the command line prints it on one
line and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Final

__all__ = [
    "BackboneError",
    "CacheBusyError",
    "CacheError",
    "CacheMismatchError",
    "CodeError",
    "FeatxError",
    "FitError",
    "ImageError",
    "MissingExtraError",
    "ModelError",
    "ProtocolError",
    "ReadError",
    "SourceError",
    "UsageError",
    "WeightsError",
    "nearest",
    "read_error",
    "reason_of",
    "unknown_name",
]


class FeatxError(Exception):
    """Base class of featx's own errors; the command line exits with 1."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to other processes whole, whatever the constructor of a subclass takes."""
        return _remade, (type(self), self.args, vars(self))


def _remade(kind: type[FeatxError], args: tuple[Any, ...], state: dict[str, Any]) -> FeatxError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class UsageError(FeatxError):
    """A wrong name or an option that does not fit; the command line exits with 2."""

    exit_code = 2


class CodeError(UsageError):
    """Code that the user did not name: it is not imported.

    Parameters
    ----------
    name : str
        ``module:name``, or the name of an entry point.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.files: list[str] = []
        """Where the name was found; of several files, each names the next."""

    def __str__(self) -> str:
        found = f"{' -> '.join(self.files)} names the code" if self.files else "this is code:"
        # The name may be a stranger's: what is copied from here must not be another command.
        name = self.name if self.name.isprintable() else repr(self.name)
        return (
            f"{found} {name}, and code runs only where you name it yourself: nothing was "
            f"imported. If you trust it, add  --allow-code {shlex.quote(name)}  to the command, or "
            f"in Python allow_code=({json.dumps(self.name)},)"
        )


class SourceError(FeatxError):
    """A data set that is missing, empty or not laid out as featx can read it."""


class ReadError(SourceError):
    """Bytes that this machine cannot read; it says nothing about the image, and ends the run."""


class UnreachableError(ReadError):
    """A server that gives no good answer, however often it is asked."""


class ImageError(FeatxError):
    """One image that cannot be decoded; the text is the reason for its status row."""


class WeightsError(FeatxError):
    """Weights that are missing, damaged or made for another network."""


class BackboneError(FeatxError):
    """A network that cannot give the features asked for."""


class CacheError(FeatxError):
    """A cache file that is missing, incomplete, damaged or cannot be written."""


class CacheBusyError(CacheError):
    """Another process is writing the same cache file."""


class CacheMismatchError(CacheError):
    """A cache file that was made with other settings than those asked for.

    Parameters
    ----------
    message : str
        What was compared, and what to do about it.
    differences : sequence of str
        One line a field, as made by `featx.fingerprint.differences`.
    """

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {line}" for line in differences)]))
        self.differences = tuple(differences)


class ModelError(FeatxError):
    """A saved model that is missing, damaged or contradicts itself, or cannot be written."""


class ProtocolError(FeatxError):
    """A few-shot question that the data cannot answer honestly."""


class FitError(ProtocolError):
    """One fit that fails; the text is the reason for its row, and other fits go on."""


class MissingExtraError(FeatxError):
    """An optional package that is not installed.

    Parameters
    ----------
    package : str
        The missing package, as imported.
    extra : str
        The extra of featx that installs it.
    purpose : str
        What needs it, for the first words of the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"run  pip install 'featx[{extra}]'"
        )


# A folder or a socket that is called like an image: reading it again gives no image either.
_NO_FILE: Final = frozenset({errno.EISDIR, errno.ENXIO})


def read_error(path: str | os.PathLike[str], error: OSError) -> ReadError | ImageError:
    """Make an error of the disk, the network or a permission one that ends the run."""
    reason = _cause(error)
    if error.errno in _NO_FILE:
        return ImageError(f"cannot be read: {reason}")
    return ReadError(
        f"cannot read {os.fspath(path)!r}: {reason}. No image is marked as failed because of this. "
        "Make the file readable, or take it out of the data; then run the same again"
    )


_MENDS = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of your disk quota and run the same command again",
    errno.EFBIG: "raise the limit on file size (ulimit -f) or use another file system",
    errno.EACCES: "choose a folder that you may write to, or change its permissions",
    errno.EPERM: "choose a folder that you may write to, or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EIO: "the disk reports an error: check it, or use another one",
}


def _cause(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def reason_of(error: OSError) -> str:
    """Say why the system refused, and what to do about it where that is known."""
    reason = _cause(error)
    mend = _MENDS.get(error.errno or 0, "")
    return f"{reason}: {mend}" if mend else reason


def nearest(name: str, allowed: Iterable[str], *, n: int = 3) -> list[str]:
    """Names most like `name`, best first, for a "did you mean".

    Parameters
    ----------
    name : str
        What was typed.
    allowed : iterable of str
        What could have been typed.
    n : int, default=3
        The most names returned.

    Returns
    -------
    list of str
        At most `n` names; empty where nothing is close.
    """
    by_lower = {choice.lower(): choice for choice in allowed}
    word = name.lower()
    close = difflib.get_close_matches(word, by_lower, n=n, cutoff=0.5)
    if not close:  # the beginning of a longer name
        starts = difflib.get_close_matches(word, {c[: len(word)] for c in by_lower}, n=1)
        close = [choice for choice in by_lower if starts and choice.startswith(starts[0])][:n]
    return [by_lower[choice] for choice in close]


def unknown_name(kind: str, name: str, allowed: Iterable[str], *, see: str = "") -> UsageError:
    """Error for a name that does not exist, with the nearest that do.

    Parameters
    ----------
    kind : str
        What the name should have been, for example ``"backbone"``.
    name : str
        What was typed.
    allowed : iterable of str
        What could have been typed.
    see : str, optional
        The command that lists all names.

    Returns
    -------
    UsageError
        To be raised by the caller.
    """
    names = sorted(allowed)
    message = f"unknown {kind} {name!r}"
    close = nearest(name, names)
    if close and len(names) <= 6:
        message += f": did you mean {', '.join(close)}? There are {', '.join(names)}"
    elif close:
        message += f": did you mean {', '.join(close)}?"
    elif len(names) <= 20:
        message += f": choose from {', '.join(names)}"
    if see:
        message += f" (all of them: {see})"
    return UsageError(message)

"""Files behind URLs, through fsspec: listed, read, fetched and written.

Credentials come from where the libraries look for them. What may be secret in a URL (a password, a
signed query) is never part of a message, nor is the text of a library's error, which may hold it.
"""

from __future__ import annotations

import errno
import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from featx.errors import MissingExtraError, ReadError, UnreachableError, UsageError
from featx.stops import check

__all__ = [
    "Stat",
    "check_url",
    "create",
    "download",
    "is_url",
    "join",
    "local_path",
    "name_of",
    "parent",
    "read_part",
    "read_url",
    "shown",
    "stat_url",
    "walk",
    "without_secrets",
    "write_text",
]

T = TypeVar("T")

_PACKAGES: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
_WRITTEN: Final = ("s3", "gs")
_START: Final = re.compile(rf"({'|'.join(_PACKAGES)}|file)://")
_LIKE_A_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}")
_USER: Final = re.compile(r"""(\b[A-Za-z][A-Za-z0-9+.-]+:/{1,2})[^\s/'"]*@""")
_QUERY: Final = re.compile(r"""(\bhttps?:/{1,2}[^\s'"?]+)\?[^\s'"]*[^\s'",:;.]""", re.IGNORECASE)
_OBJECTS: Final = ("s3", "gs", "hf", "file")
_TRIES: Final = 5
_ANONYMOUS: Final = {"s3": "FSSPEC_S3_ANON=true", "gs": "FSSPEC_GS_TOKEN=anon"}
_OWN_TRIES: Final = {"gs": 6}  # gcsfs tries again by itself, for most of a minute
_FIRST_PAUSE_SECONDS: Final = 0.25
_CHUNK_BYTES: Final = 1 << 20
_OF_THIS_MACHINE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_PASSING: Final = (408, 409, 425, 429)  # of the answers from 400 to 499, those that may pass
_TAGS: Final = ("ETag", "etag", "md5Hash", "sha256", "blob_id", "LastModified", "Last-Modified")
_NO_CREDENTIALS: Final = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
)


@dataclass(frozen=True)
class Stat:
    """What tells whether a file is still the same: its size, and the server's tag for it."""

    n_bytes: int | None
    tag: str | None

    @property
    def number(self) -> int:
        """The tag as a whole number below 2**56; -1 where there is none."""
        if self.tag is None:
            return -1
        return int.from_bytes(hashlib.sha256(self.tag.encode()).digest()[:7], "big")


def is_url(spec: object) -> TypeGuard[str]:
    """Whether a text is a URL that featx reads; ``hf://owner/name`` of the Hub is one, too."""
    return isinstance(spec, str) and _START.match(spec) is not None


def shown(url: str) -> str:
    """Give a URL without name, password, query and fragment; another text as it is.

    Examples
    --------
    >>> shown("https://me:secret@example.org/a/cat.jpg?signature=secret")
    'https://example.org/a/cat.jpg'
    """
    match = _LIKE_A_URL.match(url)
    if match is None:
        return url
    rest = url[match.end() :]
    # Names in a bucket may hold any character.
    path = rest if match[1] in _OBJECTS else re.split("[?#]", rest, maxsplit=1)[0]
    host, slash, below = path.partition("/")
    return f"{match[0]}{host.rpartition('@')[2]}{slash}{below}"


def check_url(spec: object) -> None:
    """Refuse what looks like a URL, and is none that featx reads; other things pass."""
    if not isinstance(spec, str) or not (match := _LIKE_A_URL.match(spec)) or Path(spec).exists():
        return
    if not is_url(spec):
        kinds = ", ".join(f"{name}://" for name in _PACKAGES)
        raise UsageError(
            f"{shown(spec)}: featx reads {kinds} and file:///, in small letters; give one of "
            "these, or copy the data to this machine and give the folder"
        )
    if not spec[match.end() :].strip("/"):
        raise UsageError(f"{spec} names nothing: go on with a bucket, an owner, a host or a path")
    if spec.startswith("http"):
        with suppress(ValueError):
            parts = urlsplit(spec)
            if parts.hostname and parts.port != 0:  # the port is read here
                return
        raise UsageError(f"{shown(spec)} has no host, or a port that is none: correct it")


def without_secrets(text: str) -> str:
    """Give a text with what `shown` leaves out of URLs left out, also of one that became a path."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def local_path(url: str) -> Path | None:
    """Give the path that a ``file://`` URL means; None for others."""
    if not url.startswith("file://"):
        return None
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url}: a file URL has three slashes, as in  file:///data/photos")
    return Path(unquote(parts.path))


def name_of(url: str) -> str:
    """Give the name of the file or folder, without its query."""
    name = shown(url).rstrip("/").rpartition("/")[2]
    return unquote(name) if url.startswith("http") else name


def parent(url: str) -> str:
    """Give the URL of the folder of a file, without a query."""
    if not url.startswith("http"):
        return url.rstrip("/").rpartition("/")[0]
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0], "", ""))


def join(folder: str, path: str) -> str:
    """Give the URL of a path below a folder."""
    return f"{folder.rstrip('/')}/{quote(path) if folder.startswith('http') else path}"


def read_url(url: str, most: int) -> bytes:
    """Read a file whole; a `ReadError` where it has more than `most` bytes."""
    data = _found(url, lambda system: _read(system, url, most))
    if len(data) > most:
        raise ReadError(f"{shown(url)!r} has more than {most:,} bytes")
    return data


def _read(system: Any, url: str, most: int) -> bytes:
    if not url.startswith("http"):
        try:
            return bytes(system.cat_file(url, start=0, end=most + 1))
        except Exception as error:  # the errors are of several libraries
            if _status(error) == 416:  # an empty file has no range
                return b""
            raise
    found = bytearray()
    # The size is a word that is not used: without one, fsspec asks for it first.
    with system.open(url, "rb", block_size=0, size=1) as stream:
        while len(found) <= most and (part := stream.read(_CHUNK_BYTES)):
            found += part
    return bytes(found)


def read_part(url: str, start: int, n_bytes: int) -> bytes:
    """Read some bytes of a file; fewer where it ends before."""
    if n_bytes == 0:
        return b""
    end = start + n_bytes
    data = _found(url, lambda system: bytes(system.cat_file(url, start=start, end=end)))
    if len(data) > n_bytes:
        raise ReadError(
            f"the server of {shown(url)!r} sends whole files only, no parts: fetch the file, and "
            "give its path"
        )
    return data


def stat_url(url: str) -> Stat | None:
    """Look at a file; None where there is none."""
    try:
        return _stat(_again(url, lambda system: system.info(url)))
    except FileNotFoundError:
        return None


def _stat(info: dict[str, Any]) -> Stat:
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), None)
    return Stat(info.get("size"), tag)


def walk(url: str) -> Iterator[tuple[str, Stat]]:
    """Give the files below a folder, by their paths relative to it; folder by folder."""
    if urlsplit(url).query and url.startswith("http"):
        raise UsageError(
            f"{shown(url)} with a query is one file, not a folder: list the URLs of the images in "
            "a table, with the columns path and label"
        )
    pending = [url.rstrip("/") + "/"]
    root, seen = _plain(pending[0]), set(pending)
    while pending:
        folder = pending.pop()
        for info in _found(folder, partial(_listed, folder)):
            name = _plain(info["name"])
            if not name.startswith(root) or name == _plain(folder):
                continue
            if info["type"] != "directory":
                below = name[len(root) :]
                yield unquote(below) if url.startswith("http") else below, _stat(info)
            elif (inner := url.rstrip("/") + "/" + name[len(root) :].strip("/") + "/") not in seen:
                seen.add(inner)
                pending.append(inner)


def _plain(name: str) -> str:
    """Give a name as the listings of all file systems have it: without scheme, user and query."""
    return re.sub(
        r"^[a-z0-9]+://([^/]*@)?", "", re.split("[?#]", name)[0] if "://" in name else name
    )


def download(url: str, path: Path) -> None:
    """Fetch a file whole."""

    def fetch(system: Any) -> None:
        system.get_file(url, str(path))

    _found(url, fetch)


def create(path: Path, url: str) -> bool:
    """Write a file whole under a name that nothing has; False where something has it."""
    scheme = url.split("://", maxsplit=1)[0]
    if scheme not in _WRITTEN:
        raise UsageError(f"{shown(url)}: featx writes to {' and '.join(_WRITTEN)} only")
    if stat_url(url) is not None:
        return False
    try:
        _again(url, lambda system: system.put_file(str(path), url, mode="create"), "write")
    except FileExistsError:  # perhaps of another process, perhaps of a try whose answer was lost
        return False
    return True


def write_text(url: str, text: str) -> None:
    """Write a small text whole."""
    _again(url, lambda system: system.pipe_file(url, text.encode()), "write")


def _listed(folder: str, system: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = system.ls(folder, detail=True)
    return found


def _found(url: str, act: Callable[[Any], T]) -> T:
    """Read something that must be there."""
    try:
        return _again(url, act)
    except FileNotFoundError:
        raise ReadError(
            f"cannot read {shown(url)!r}: the server has no such file or folder"
        ) from None


def _filesystem(url: str) -> Any:
    scheme, rest = url.split("://", 1)
    if not scheme.startswith("http") and ":" in rest.partition("@")[0] and "@" in rest:
        raise UsageError(
            f"{shown(url)}: a password has no place in such a URL: give it as the library of "
            f"{scheme}:// takes it (docs/cloud.md)"
        )
    try:
        import fsspec

        # A new process, and each thread, gets a system of its own: fsspec sees to that.
        if scheme == "gs":
            # Not the class that asks by gRPC, before each request, what kind of bucket it is: where
            # nothing answers, it waits a minute each time.
            from gcsfs.core import GCSFileSystem

            return GCSFileSystem(use_listings_cache=False)
        system = fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        raise MissingExtraError(_PACKAGES[scheme], "cloud", f"{scheme}://") from None
    if scheme == "s3":
        system.retries = 1  # tries of s3fs's own, which `_again` would multiply
    return system


def _again(url: str, act: Callable[[Any], T], verb: str = "read") -> T:
    """Do something with a file system; errors that may pass are tried again after a pause."""
    system = _filesystem(url)
    own = _OWN_TRIES.get(url.partition("://")[0])
    for n in range(1 if own else _TRIES):
        if n:
            check()
            pause = _FIRST_PAUSE_SECONDS * 2 ** (n - 1)
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - apart from other workers
        try:
            return act(system)
        except Exception as error:  # the errors are of six libraries
            found = _translated(url, error, verb)
            if found is not None:
                raise found from None  # its text and its trace may hold the secret part of a URL
            last = _status(error) or type(error).__name__
    raise UnreachableError(
        f"cannot {verb} {shown(url)!r}: the server gave no good answer in {own or _TRIES} tries "
        f"(the last: {last}). Run the same again when it does"
    )


def _translated(url: str, error: Exception, verb: str) -> Exception | None:
    """Give the error to raise at once; None for one that may pass."""
    status, names = _status(error), {type(each).__name__ for each in _chain(error)}
    if status == 412 or isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "exists", shown(url))
    if status == 404 or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(errno.ENOENT, "there is no such file", shown(url))
    if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
        return error
    scheme = url.split("://", maxsplit=1)[0]
    if names & {*_NO_CREDENTIALS}:
        why = (
            f"no credentials were found: set them as {_PACKAGES[scheme]} takes them, or  "
            f"{_ANONYMOUS[scheme]}  for public data (docs/cloud.md)"
        )
    elif status in (401, 403) or isinstance(error, PermissionError):
        why = "the server allows no access: check the credentials, and until when a link is valid"
    elif status is not None and 400 <= status < 500 and status not in _PASSING:
        why = f"the server refuses it (status {status})"
    else:
        return None
    return ReadError(f"cannot {verb} {shown(url)!r}: {why}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: Exception) -> int | None:
    """Find the status of HTTP in an error: of aiohttp, botocore, gcsfs or the Hub's library."""
    for each in _chain(error):
        if str(each).startswith("Forbidden: "):  # all that gcsfs says of it
            return 403
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        # aiohttp calls what it cannot parse, such as half an answer, code 400.
        is_of_gcs = type(each).__module__.startswith("gcsfs")
        for found in (
            getattr(each, "status", None),
            getattr(each, "code", None) if is_of_gcs else None,
            getattr(response, "status_code", response),
        ):
            if isinstance(found, int):
                return found
    return None

"""What a cache was made from, as canonical JSON, its SHA-256 and its differences."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "differences", "fingerprint", "sha256_file"]

_READ_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Encode `value` as the one JSON text that all equal values share.

    Keys are sorted, there is no white space, text is UTF-8 and floats are the
    shortest decimals that read back equal. NaN and infinity are refused.

    Parameters
    ----------
    value : object
        Nested dicts with string keys, lists, tuples, strings, numbers, booleans, None.

    Returns
    -------
    bytes
        UTF-8 JSON.

    Raises
    ------
    ValueError
        If `value` holds NaN or infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8", "surrogatepass")  # names of files need not be text


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `identity`.

    Examples
    --------
    >>> fingerprint({"b": 1, "a": [2.5]}) == fingerprint({"a": [2.5], "b": 1})
    True
    """
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """List the fields in which two identities differ.

    Examples
    --------
    >>> differences({"point": {"pool": "avg"}}, {"point": {"pool": "none"}})
    ["point.pool: asked for 'avg', the file has 'none'"]
    """
    left, right = dict(_flatten(wanted)), dict(_flatten(found))
    missing = object()
    lines = []
    for name in sorted(left.keys() | right.keys()):
        a, b = left.get(name, missing), right.get(name, missing)
        if a == b:
            continue
        asked = "nothing" if a is missing else repr(a)
        has = "nothing" if b is missing else repr(b)
        lines.append(f"{name}: asked for {asked}, the file has {has}")
    return lines


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(item) if isinstance(item, tuple) else item


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes."""
    state = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_READ_BYTES):
            state.update(chunk)
    return state.hexdigest()

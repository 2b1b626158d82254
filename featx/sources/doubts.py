"""Names of folders and files that make a layout doubtful: parts, copies, indexes, masks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from featx.sources.splits import split_of_folder
from featx.sources.tree import ending, some

__all__ = ["IMAGES", "NO_CLASS", "NUMBERED", "find_doubt", "masks_beside", "stem"]

IMAGES = r"((jpeg|png)?images?|imgs?|photos?|pictures|jpe?gs?|pngs?|data|dataset)"
NO_CLASS = re.compile(IMAGES)
_PARTS = re.compile(r"(cv|fold|part|partition|batch|chunk|set|subset)[ _.-]?(\d{1,3}|[a-z])")
_IMAGES_OF_PART = re.compile(r"(.*[ _-])?(images?|imgs?|photos?|data)([ _-]?part)?[ _.-]?\d+")
# patient1, 007, 20231; but not the synset n01440764, and not class1
NUMBERED = re.compile(r"(?!n\d{8}$)(?!(class|label|grade|stage|type|level)\W?\d)\D+\d+|0\d+|\d{4,}")
_MASK_OF = re.compile(r"(^|[ _.-]+)(mask|seg|segmentation|labels?|gt|annotation)s?([ _.-]+|$)")

_Below = Mapping[str, list[str]]


def find_doubt(names: list[str], below: _Below) -> str:
    """Say why class folders may be none; empty where there is no reason."""
    kinds = (_repeated, _of_parts, _of_letters, _of_splits, _of_siblings, _of_masks)
    return next(filter(None, (find(names, below) for find in kinds)), "")


def _repeated(names: list[str], below: _Below) -> str:
    """Find folders of equal names in classes without images of their own."""
    n_times: dict[str, int] = {}
    for inner in below.values():
        for name in inner:
            n_times[name] = n_times.get(name, 0) + 1
    shared = [name for name, n in n_times.items() if n > 1]
    is_most = 2 * sum(n_times[name] for name in shared) > sum(n_times.values())
    if len(shared) < 2 or not is_most or all(map(NUMBERED.fullmatch, shared)):
        return ""
    return f"the folders {some(below)} hold folders of the same names ({some(sorted(shared), 3)})"


def _of_parts(names: list[str], below: _Below) -> str:
    """Find class folders called like parts of a data set, or like images and with folders only."""
    if all(_PARTS.fullmatch(n.lower()) or _IMAGES_OF_PART.fullmatch(n.lower()) for n in names):
        return f"{some(names)} are called like parts of a data set"
    parts = [name for name in below if _PARTS.fullmatch(name.lower())]
    if len(parts) < len(names):
        parts = [name for name in below if NO_CLASS.fullmatch(name.lower())]
    return f"{some(parts)} are called like parts of a data set, and hold folders" if parts else ""


def _of_letters(names: list[str], below: _Below) -> str:
    """Find the letters of an index: a/airfield, b/bank."""
    words = [(name.lower(), other.lower()) for name in below for other in below[name]]
    is_index = all(len(name) == 1 and name.isalpha() and name == other[0] for name, other in words)
    is_numbered = all(NUMBERED.fullmatch(other) for _, other in words)
    if len(below) < len(names) or is_numbered or not is_index:
        return ""
    return f"{some(names)} hold folders that begin with the same letter"


def _of_splits(names: list[str], below: _Below) -> str:
    """Find a class folder that holds folders called like two splits."""
    del names
    for name, inner in below.items():
        splits = [other for other in inner if split_of_folder(other)]
        if len({split_of_folder(other) for other in splits}) > 1:
            return f"{name!r} holds folders called like splits ({some(splits, 3)})"
    return ""


def _of_siblings(names: list[str], below: _Below) -> str:
    """Find a class folder that holds folders called like the classes beside it."""
    siblings = {*names}
    for name, inner in below.items():
        same = [other for other in inner if other in siblings]
        if same:
            return f"{name!r} holds folders called like those beside it ({some(same, 3)})"
    return ""


def _of_masks(names: list[str], below: _Below) -> str:
    """Find a folder called like another one with a word such as ``_mask``."""
    del below
    others = {name.lower() for name in names}
    rest = {name: _MASK_OF.sub("", name.lower()) for name in names if "mask" in name.lower()}
    same = [name for name in rest if rest[name] in others - {name.lower()}]
    return f"{some(same)} are called like masks of the others" if same else ""


def masks_beside(paths: list[str]) -> list[str]:
    """Find images of a class that are called like others, but for ``_mask``."""
    named = [path for path in paths if "_mask" in path.lower()]
    others = {stem(path) for path in {*paths} - {*named}} if named else set()
    return [path for path in named if stem(path) in others]


def stem(path: str) -> str:
    """Give the name of a file without its ending and without words such as ``_mask``."""
    name = path[path.rfind("/") + 1 :].lower()
    return _MASK_OF.sub("", name[: len(name) - len(ending(name))]) or name

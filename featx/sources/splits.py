"""What the splits of a data set are called, and their order."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from featx.errors import ProtocolError, SourceError, UsageError, unknown_name

__all__ = [
    "SPLIT_ORDER",
    "choose_splits",
    "describe_choice",
    "in_order",
    "names_test",
    "read_split",
    "split_in",
    "split_of",
    "split_of_folder",
    "split_of_shard",
]

_Value = TypeVar("_Value")

SPLIT_ORDER = ("train", "val", "test", "unlabeled", "all")
"""Names of splits. ``all`` stands alone: the data have no splits."""

_SYNONYMS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
    "unsupervised": "unlabeled",
}
# In names of folders and shards; in tables "eval" is one split here and another there.
_IN_NAMES = _SYNONYMS | {"dev": "val", "eval": "test", "evaluation": "test"}
# Words of a name: testImages has two, IMG_train two, trainset one.
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_GLUED = re.compile(r"(?<=.)(set|data|images?|imgs?)$", re.IGNORECASE)


def split_of(word: str) -> str | None:
    """Give the split that a folder, a file or a manifest calls by `word`.

    Examples
    --------
    >>> split_of("Validation")
    'val'
    """
    return _SYNONYMS.get(word.lower())


def split_in(name: str) -> tuple[str | None, str]:
    """Give the split that a name with other words around names, and the rest of the name.

    Examples
    --------
    >>> split_in("seg_train"), split_in("testImages"), split_in("train_val"), split_in("cat")
    (('train', 'seg'), ('test', 'images'), (None, ''), (None, 'cat'))
    """
    found, rest = set(), name
    for match in reversed([*_WORDS.finditer(name)]):
        word = _GLUED.sub("", match[0])
        if split := _IN_NAMES.get(word.lower()):
            found.add(split)
            rest = rest[: match.start()] + rest[match.start() + len(word) :]
    split = found.pop() if len(found) == 1 else None
    return split, "".join(filter(str.isalnum, rest)).lower()


def names_test(name: str) -> bool:
    """Whether a file is called as if it listed images of a test or validation split."""
    return any(split_of(word) in ("val", "test") for word in _WORDS.findall(name))


def split_of_folder(name: str) -> str | None:
    """Give the split that a folder is called by: by `split_in`, without other words."""
    split, rest = split_in(name)
    return None if rest else split


def split_of_shard(name: str) -> str | None:
    """Give the split that the name of a shard names.

    Examples
    --------
    >>> split_of_shard("imagenet-val-00"), split_of_shard("test_tubes_train_000")
    ('val', 'train')
    """
    words = [*re.finditer("[A-Za-z]+", name)]
    splits = [_IN_NAMES.get(_GLUED.sub("", word[0]).lower()) for word in words]
    found = [(word, split) for word, split in zip(words, splits, strict=True) if split]
    if len({split for _, split in found}) < 2:
        return found[0][1] if found else None
    last, split = found[-1]
    in_folders = {other for word, other in found if "/" in name[word.end() :]}
    pair = splits[-2:] if words[-1] == last else [None]
    if words[-1] != last or pair[0] not in (None, split) or not in_folders <= {split}:
        shown = ", ".join(repr(word[0]) for word, _ in found)
        raise SourceError(
            f"the file {name!r} names more than one split ({shown}): end its name with the split "
            "and a number, as in  tubes-train-000"
        )
    return split


def read_split(word: str) -> str:
    """Give the split that a person calls by `word`: ``validation`` and ``dev`` are ``val``."""
    split = word if word in SPLIT_ORDER else _IN_NAMES.get(word.lower())
    if split is None:
        raise unknown_name("split", word, SPLIT_ORDER)
    return split


def choose_splits(splits: Collection[str], test_split: str | None = None) -> tuple[str, str]:
    """Choose the split that is fitted on and the one that is tested on, for all commands alike.

    Examples
    --------
    >>> choose_splits(["train", "val"]), choose_splits(["train", "val", "test"])
    (('train', 'val'), ('train', 'test'))
    """
    wanted = None if test_split is None else read_split(test_split)
    if wanted not in (None, "test", "val"):
        raise UsageError(f"--test-split {test_split}: heads are tested on test or on val")
    there = ", ".join(splits) or "none"
    if "all" in splits:
        if wanted is not None:
            raise ProtocolError(
                f"--test-split {test_split}: the data have no splits, a share is held out of them "
                "(--holdout): leave --test-split out"
            )
        return "all", "all"
    if "train" not in splits:
        raise ProtocolError(
            f"there is no split train to fit on, but {there}: name the folder of the training "
            "images (--train-folder)"
        )
    tested = next((name for name in ("test", "val") if name in splits), None)
    if wanted is not None and wanted not in splits:
        raise ProtocolError(f"there is no split {wanted} to test on, but {there}")
    if wanted is None and tested is None:
        raise ProtocolError(
            f"there is no split to test on, but {there}: name the folder of the test images "
            "(--test-folder), or give the folder of the training images itself after --data: of a "
            "set without splits a share is held out (--holdout)"
        )
    return "train", wanted or str(tested)


def describe_choice(splits: Collection[str]) -> str:
    """Say what is fitted on and what is tested on, before anything is computed."""
    try:
        fitted, tested = choose_splits(splits)
    except ProtocolError as error:
        return f"featx fit has nothing to do with these data: {error}"
    if fitted == tested:
        return "no splits: featx fit holds out a share of each class to test on (--holdout)"
    words = f"featx fit draws from {fitted} and tests on {tested}"
    if tested == "val":
        return f"{words}, since there is no split test"
    return f"{words}; val is left for choices (--test-split val)" if "val" in splits else words


def in_order(splits: Mapping[str, _Value]) -> dict[str, _Value]:
    """Sort splits as `SPLIT_ORDER` has them."""
    return {name: splits[name] for name in SPLIT_ORDER if name in splits}

"""Where the splits and the classes of a tree lie: recognised, or refused.

A layout that can be read in more than one way is never guessed: the error names what was seen and
the flags that settle it. docs/data.md has the rules.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import islice

from featx.errors import SourceError
from featx.progress import Reporter
from featx.sources.doubts import IMAGES, NO_CLASS, NUMBERED, find_doubt, stem
from featx.sources.splits import in_order, split_in, split_of_folder
from featx.sources.tree import View, ending, some

__all__ = ["Recogniser", "Root", "wrapper"]


@dataclass(frozen=True)
class Root:
    """The folder of a split, and the folders of each class; ``""`` is images without a label."""

    prefix: str
    classes: dict[str, list[str]]


_WRAPPER = re.compile(rf"(.*[ _-])?({IMAGES}|.*categories|.*classes|\d+)")  # 101_ObjectCategories
_MASKS = re.compile(
    r"(masks?|msks?|annotations?|labels?|segmentations?|segmaps?|segs?|ground.?truths?|gts?|trimaps?"
    r"|bbox(es)?|boxes)"
)
_NO_IMAGES = re.compile(
    r"(imagesets?|lists|meta(data)?|docs?|code|src|scripts|models|papers|figures|assets|samples?"
    r"|__pycache__|utils|notebooks?|weights|checkpoints?|outputs?|results|reports?|caches?|logs?|runs)"
)
_UNLABELLED = re.compile(r"(.*[ _-])?(pred|predict|prediction)s?([ _-].*)?")
_JPEG = frozenset({".jpg", ".jpeg"})
_N_COMPARED = 200  # names of files
_N_ALIKE = 3  # fewer files of equal names may be chance


def wrapper(view: View) -> str:
    """Give the prefix of the one folder that holds everything, as archives often have it."""
    folders = view.folders("")
    if len(folders) != 1 or split_of_folder(folders[0]) or view.n_images(""):
        return ""
    top = f"{folders[0]}/"
    return top if view.folders(top) and not view.n_images(top) else ""


class Recogniser:
    """Recognises the layouts of docs/data.md."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.folders = cache(self._folders)
        self._splits = cache(self._find_splits)
        self._masks: set[str] = set()

    def tell(self, reporter: Reporter) -> None:
        """Say what was noted."""
        for note in dict.fromkeys(self.notes):
            reporter.say(f"{self.view.tree.name!r}: {note}")
        for warning in dict.fromkeys(self.warnings):
            reporter.warn(f"{self.view.tree.name!r}: {warning}")

    def find(self, wanted: Collection[str] = ()) -> dict[str, Root]:
        """Find the splits and their classes, or refuse; splits that are not wanted may be wrong."""
        top = self._unwrapped()
        splits = self._splits(top)
        if not splits:
            return {"all": self._classes(top)}
        roots = {split: self.inside(prefix) for split, prefix in splits.items()}
        folders = {root: self._class_folders(root) for root in roots.values()}
        found: dict[str, Root] = {}
        for split, root in roots.items():
            others = {name for r, names in folders.items() if r != root for name in names}
            if others and split != "train" and not self.view.has_images(root):
                self.warnings.append(f"{root!r} has no images: left out")
            elif self._has_no_labels(split, root, others):
                self._add_unlabelled(found, split, root)
            else:
                try:
                    found[split] = self._classes(root)
                except SourceError as error:
                    if not wanted or split in wanted:
                        raise
                    self.warnings.append(f"the split {split} left out: {error}")
        return in_order(found)

    def _has_no_labels(self, split: str, root: str, others: set[str]) -> bool:
        """Whether images lie in no class folder, or in one that the other splits do not have."""
        names = self._with_images(root)
        if split == "unlabeled":
            return others.isdisjoint(names)
        if split == "train" or not others:
            return False
        if self.view.n_images(root):
            return not self.folders(root)
        return len(names) == 1 and names[0] not in others

    def _add_unlabelled(self, found: dict[str, Root], split: str, root: str) -> None:
        """Take the images of a folder into the split ``unlabeled``."""
        if split != "unlabeled":
            n_images = sum(1 for _ in self.view.images(root))
            self.warnings.append(
                f"{n_images:,} images of {root!r} lie in no class folders, and so have no labels: "
                "they are the split unlabeled"
            )
        known = found.setdefault("unlabeled", Root(root, {"": []}))
        known.classes[""].append(root)

    # Folders, and what they hold

    def _folders(self, prefix: str) -> list[str]:
        """Names of the folders in a folder, without masks and annotations of the images."""
        names = self.view.folders(prefix)
        return [name for name in names if not self._is_aside(prefix, name, names)]

    def holds_classes(self, prefix: str) -> bool:
        """Whether there are images in folders, and none beside these."""
        return not self.view.n_images(prefix) and bool(self._with_images(prefix))

    def _class_folders(self, prefix: str) -> list[str]:
        return self._with_images(prefix) if self.holds_classes(prefix) else []

    def _with_images(self, prefix: str) -> list[str]:
        return [n for n in self.folders(prefix) if self.view.has_images(f"{prefix}{n}/")]

    def _is_aside(self, prefix: str, name: str, names: list[str]) -> bool:
        """Whether a folder has what belongs to images: masks of images in folders beside it."""
        word = name.lower()
        if not (_MASKS.fullmatch(word) or _NO_IMAGES.fullmatch(word)):
            return False
        if not self.view.has_images(f"{prefix}{name}/"):
            n_others = len(names) - 1
            if n_others or self.view.n_images(prefix):
                self.notes.append(f"{prefix + name!r} has no images: left out")
            return bool(n_others)
        if not _MASKS.fullmatch(word):
            return False
        others = [other for other in names if not _MASKS.fullmatch(other.lower())]
        if any(self._may_be_class(prefix, other) for other in others):
            return False
        if not self._are_masks(f"{prefix}{name}/", [f"{prefix}{other}/" for other in others]):
            return False
        self._masks.add(prefix)
        self.warnings.append(f"{prefix + name!r} left out: masks or annotations of other images")
        return True

    def _may_be_class(self, prefix: str, name: str) -> bool:
        is_plain = not (NO_CLASS.fullmatch(name.lower()) or split_in(name)[0])
        return is_plain and bool(self.view.n_images(f"{prefix}{name}/"))

    def _are_masks(self, masks: str, images: list[str]) -> bool:
        """Whether files have the names of images beside them, but for words such as ``_mask``."""
        parent = masks[: masks.rfind("/", 0, -1) + 1]
        stems = {stem(e.name) for e in self.view.files(parent) if self.view.is_image(e)}
        stems |= {stem(path) for prefix in images for path in self.view.images(prefix)}
        sample = [*islice(self.view.images(masks), _N_COMPARED)]
        return 2 * sum(stem(path) in stems for path in sample) > len(sample)

    # The folder that holds splits or classes

    def _unwrapped(self) -> str:
        """Look through folders that alone hold everything: the first; others by their names."""
        prefix = ""
        while inner := self._only(prefix):
            name = inner[len(prefix) : -1]
            if split_of_folder(name) or self.view.n_images(inner):
                break
            if prefix and not (self._says_nothing(prefix, name) or self._splits(inner)):
                break
            prefix = inner
        if prefix:
            self.notes.append(f"everything lies in {prefix!r}")
        return prefix

    def inside(self, prefix: str) -> str:
        """Look through folders of a split that repeat its name, or are called ``images``."""
        while inner := self._only(prefix):
            name = inner[len(prefix) : -1]
            split = split_in(prefix.rstrip("/").rpartition("/")[2])[0]
            if not (self._says_nothing(prefix, name) or (split and split_in(name)[0] == split)):
                break
            prefix = inner
        return prefix

    def _only(self, prefix: str) -> str:
        """Give the one folder in a folder; others may be empty if its name tells nothing."""
        names, full = self.folders(prefix), self._with_images(prefix)
        if self.view.n_images(prefix) or len(full) != 1:
            return ""
        others = [name for name in names if name != full[0]]
        if others and not _WRAPPER.fullmatch(full[0].lower()):
            return ""
        self.notes += [f"{prefix + name!r} has no images: left out" for name in others]
        return f"{prefix}{full[0]}/"

    def _says_nothing(self, prefix: str, name: str) -> bool:
        parent = prefix.rstrip("/").rpartition("/")[2] or self.view.tree.name
        return name.lower() == parent.lower() or bool(_WRAPPER.fullmatch(name.lower()))

    def _find_splits(self, prefix: str) -> dict[str, str]:
        """Map each split to its folder's prefix; empty where the folders are classes.

        A class may be called "train": a folder counts as a split if all folders are called like
        splits, or if it has folders and no images of its own.
        """
        names = self.folders(prefix)
        exact = [name for name in names if split_of_folder(name)]
        if exact and len(exact) == len(names):
            return self._named(prefix, exact)
        full = self._with_images(prefix)
        family = _family(full)
        members = [name for name in full if name in family or split_of_folder(name)]
        if not any(self._holds_split(prefix, name) for name in members):
            self._refuse_flat_splits(prefix, full, family)
            return {}
        aside = [n for n in full if n not in members and self._is_unlabelled(prefix, n)]
        strays = [name for name in full if name not in members + aside]
        if strays:
            reason = f"beside folders called like splits ({some(members)}) lie {some(strays)}"
            raise self.doubt(prefix, reason)
        others = [name for name in names if name not in members]
        if others:
            self.warnings.append(f"only {some(members)} read, {some(others)} left out")
        return self._named(prefix, members)

    def _named(self, prefix: str, names: list[str]) -> dict[str, str]:
        prefixes: dict[str, str] = {}
        for name in names:
            split = split_in(name)[0] or name
            if split in prefixes:
                other = prefixes[split][len(prefix) : -1]
                raise self.doubt(
                    prefix, f"has both {some([other, name])} for the split {split}: keep one"
                )
            prefixes[split] = f"{prefix}{name}/"
        return in_order(prefixes)

    def _holds_split(self, prefix: str, name: str) -> bool:
        return self.holds_classes(self.inside(f"{prefix}{name}/"))

    def _is_unlabelled(self, prefix: str, name: str) -> bool:
        """Whether a folder beside splits is known to be none: images to predict, masks, figures."""
        if _MASKS.fullmatch(name.lower()) or _NO_IMAGES.fullmatch(name.lower()):
            return True
        is_known = split_in(name)[0] or _UNLABELLED.fullmatch(name.lower())
        return bool(is_known) and not self._holds_split(prefix, name)

    def _refuse_flat_splits(self, prefix: str, full: list[str], family: set[str]) -> None:
        """Refuse train_images and test_images without class folders, and train_a beside b."""
        splits = {split_in(name)[0] for name in full}
        if len(splits) > 1 and None not in splits:  # train and test1
            family = {*full}
        if family:
            reason = f"{some(sorted(family))} are called like splits, but have no class folders"
            raise self.doubt(prefix, reason)
        named = [n for n in full if split_in(n)[0] and len(self._classes_in(prefix, n)) > 1]
        if named and len(full) > 1:
            raise self.doubt(prefix, f"{some(named)} may be a split, by name and folders")

    def _classes_in(self, prefix: str, name: str) -> list[str]:
        return self._class_folders(self.inside(f"{prefix}{name}/"))

    # The classes

    def _classes(self, prefix: str) -> Root:
        folders = self.folders(prefix)
        aside = [name for name in folders if _is_without_labels(name)]
        names = [name for name in folders if name not in aside]
        if aside:
            self.warnings.append(
                f"{some(aside)} left out: called like a folder of images without labels "
                f"(--classes-at {prefix.count('/') + 1} takes it as a class)"
            )
        self._refuse_doubtful(prefix, [n for n in names if self.view.has_images(f"{prefix}{n}/")])
        return Root(prefix, {name: [f"{prefix}{name}/"] for name in names})

    def _refuse_doubtful(self, prefix: str, names: list[str]) -> None:
        if prefix in self._masks and len(names) == 1:
            raise self.doubt(prefix, "there are images and their masks, and no class folders")
        if len(names) < 2:
            return
        if any(split_in(name)[0] for name in names) and self._splits(prefix):
            raise self.doubt(prefix, "folders of splits lie inside a split")
        hollow = [name for name in names if not self.view.n_images(f"{prefix}{name}/")]
        below = {name: self._with_images(self.inside(f"{prefix}{name}/")) for name in hollow}
        if reason := find_doubt(names, below):
            raise self.doubt(prefix, reason)
        self._refuse_pairs(prefix, names)
        inner = [name for found in below.values() for name in found]
        if len(hollow) == len(names) < len(inner):
            self._note_inner(prefix, inner, prefix.count("/") + 1)

    def _note_inner(self, prefix: str, inner: list[str], depth: int) -> None:
        text = (
            f"the classes are the folders at depth {depth}, as {self.folders(prefix)[0]!r}; those "
            f"in them, as {min(inner)!r}, count to their class (--classes-at {depth + 1} takes "
            "them as the classes)"
        )
        is_numbered = all(map(NUMBERED.fullmatch, inner))
        (self.notes if is_numbered else self.warnings).append(text)

    def _refuse_pairs(self, prefix: str, names: list[str]) -> None:
        """Refuse folders whose files have the same names where one seems to have masks."""
        is_jpeg = {name: self._is_jpeg(prefix, name) for name in names}
        odd = [
            name
            for name in names
            if NO_CLASS.fullmatch(name.lower())
            or (_MASKS.fullmatch(name.lower()) and not is_jpeg[name])
        ]
        if not odd and len(set(is_jpeg.values())) == 1:
            return
        alike: dict[frozenset[str], list[str]] = {}
        for name in names:
            stems = frozenset(map(stem, self.view.images(f"{prefix}{name}/")))
            alike.setdefault(stems, []).append(name)
        for stems, same in alike.items():
            differ = len(stems) >= _N_ALIKE and len({is_jpeg[name] for name in same}) > 1
            if len(same) > 1 and (differ or {*same} & {*odd}):
                reason = f"the images in {some(same)} have the same names, as masks have"
                raise self.doubt(prefix, reason)
        for name in odd:
            others = [f"{prefix}{other}/" for other in names if other != name]
            pairs = [(f"{prefix}{name}/", others)] if _MASKS.fullmatch(name.lower()) else []
            if NO_CLASS.fullmatch(name.lower()):  # JPEGImages beside SegmentationClass
                other_kind = [n for n in names if is_jpeg[n] != is_jpeg[name]]
                pairs += [(f"{prefix}{other}/", [f"{prefix}{name}/"]) for other in other_kind]
            for masks, images in pairs:
                if self._are_masks(masks, images):
                    shown = masks[len(prefix) : -1]
                    reason = f"the images in {shown!r} have the names of others, as masks have"
                    raise self.doubt(prefix, reason)

    def _is_jpeg(self, prefix: str, name: str) -> bool:
        return ending(next(self.view.images(f"{prefix}{name}/"))) in _JPEG

    def doubt(self, prefix: str, reason: str) -> SourceError:
        """Make the error of a layout that can be read in more than one way."""
        names = [n for n in self.view.folders(prefix) if self.view.has_images(f"{prefix}{n}/")]
        depth = prefix.count("/") + 1
        tops = self._filled([prefix])
        inner = sorted({name for top in tops for name in self._with_images(top)})
        if inner and all(map(split_of_folder, inner)):
            tops = self._filled(tops)
            inner = sorted({name for top in tops for name in self._with_images(top)})
        ways = [f"--classes-at {depth} for the classes {some(names, 3)}"]
        if len(inner) > 1:
            below = 1 + max(top.count("/") for top in tops)
            ways.append(f"--classes-at {below} for {some(inner, 3)}")
        seen = ", ".join(self._describe(prefix, name) for name in names[:6])
        return SourceError(
            f"{self.view.tree.path(prefix)!r}: {reason}. There are {seen}"
            f"{', ...' if len(names) > 6 else ''}. Say what is meant: --train-folder FOLDER and "
            f"--test-folder FOLDER, or {', or '.join(ways)}"
        )

    def _filled(self, tops: list[str]) -> list[str]:
        """Give the folders with images in some, looked through."""
        return [self.inside(f"{top}{name}/") for top in tops for name in self._with_images(top)]

    def _describe(self, prefix: str, name: str) -> str:
        n_folders = len(self.view.folders(f"{prefix}{name}/"))
        n_images = sum(1 for _ in self.view.images(f"{prefix}{name}/"))
        return f"{name!r} ({n_folders:,} folders, {n_images:,} images)"


def _is_without_labels(name: str) -> bool:
    return split_of_folder(name) == "unlabeled" or bool(_UNLABELLED.fullmatch(name.lower()))


def _family(names: list[str]) -> set[str]:
    """Find names that differ in the split alone: seg_train and seg_test."""
    by_rest: dict[str, dict[str, str]] = {}
    for name in names:
        split, rest = split_in(name)
        if split:
            by_rest.setdefault(rest, {})[name] = split
    found = [splits for splits in by_rest.values() if len({*splits.values()}) > 1]
    return {name for splits in found for name in splits}

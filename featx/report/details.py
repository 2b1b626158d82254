"""What is behind a line of the table: classes, confusions, leaks, settings, pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import FeatxError
from featx.evaluate import FitResult, ResultsFolder
from featx.evaluate.scores import confusion_of
from featx.progress import SILENT, Reporter
from featx.sources.album import Albums, thumbnail_url
from featx.store import open_any

__all__ = ["Picture", "Pictures", "details_of", "read_fits", "wrong_pictures"]

_USUAL = {
    **{"folds": 5, "holdout": 0.2, "on_leak": "warn", "near": "auto"},
    **{"scale": "none", "class_weight": None},
}
_MOST_CONFUSED, _MOST_PICTURES, _MOST_LEAKS, _MOST_MISTAKES = 10, 24, 12, 12
_MOST_SHELF_BYTES = 1_000_000
_THUMBNAIL_PX = 96
_SETTINGS = (
    "folds",
    "holdout",
    "holdout_seed",
    "on_leak",
    "near",
    "scale",
    "class_weight",
    "device",
)


def read_fits(
    folder: ResultsFolder, names: Iterable[str], reporter: Reporter = SILENT
) -> list[FitResult]:
    """Read the records that can be read; the others are named."""
    fits = []
    for name in names:
        try:
            fits.append(folder.read(name))
        except (FeatxError, OSError) as error:
            reporter.warn(f"{folder.folder / 'fits' / name} cannot be shown: {error}")
    return fits


def details_of(fits: Sequence[FitResult], pictures: Pictures | None = None) -> dict[str, Any]:
    """Describe one line, of all draws together, as plain values for the page."""
    first, scored = fits[0], [fit for fit in fits if not fit.error]
    told: dict[str, Any] = {
        "made": dict(_made(first)),
        "command": command_of(fits),
        "notes": list(dict.fromkeys(n for fit in fits for n in fit.notes.split("; ") if n)),
        "errors": list(dict.fromkeys(fit.error for fit in fits if fit.error)),
        "leaks": _leaks(first, pictures),
        "calibration": [f.detail["calibration"] for f in scored if "calibration" in f.detail],
        "curves": list(first.detail.get("trained", {}).get("curves", ())),
    }
    if scored:
        told |= _of_classes(scored)
        told["mistakes"] = list(_mistakes(scored[0], pictures))
    return told


def _of_classes(fits: Sequence[FitResult]) -> dict[str, Any]:
    """Sum the confusions of all draws."""
    names = fits[0].detail["class_names"]
    matrix = sum(confusion_of(fit.detail) for fit in fits).tocoo()
    right, true, guessed = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    numbers = (matrix.row, matrix.col, matrix.data)
    cells = sorted(zip(*(each.tolist() for each in numbers), strict=True))
    recall, precision = (right / np.maximum(total, 1) for total in (true, guessed))
    f1 = 2 * right / np.maximum(true + guessed, 1)
    pairs = sorted((-n, i, j) for i, j, n in cells if i != j)
    return {
        "classes": [
            {
                "class": name,
                "precision": round(float(precision[i]), 4),
                "recall": round(float(recall[i]), 4),
                "f1": round(float(f1[i]), 4),
                "images": int(true[i]) // len(fits),
            }
            for i, name in enumerate(names)
        ],
        # Rows and columns by number: names would take most of the page.
        "cells": [list(cell) for cell in cells],
        "confused": [
            {
                "true": names[i],
                "predicted": names[j],
                "images": round(-n / len(fits), 2),
                "share": round(-n / int(true[i]), 4),
            }
            for n, i, j in pairs[:_MOST_CONFUSED]
        ],
    }


def _made(fit: FitResult) -> Iterator[tuple[str, str]]:
    """Say how a fit was made."""
    asked = fit.detail.get("settings", {})
    yield "data", fit.data
    weights = f", weights {fit.weights}" * bool(fit.weights)
    yield "backbone", f"{fit.backbone}{weights}, layer {fit.layer}, pool {fit.pool}"
    yield "images", f"{fit.input_size} px, precision {fit.precision}"
    yield "feature", f"{fit.n_features:,} values"
    yield "head", fit.clf
    yield "training images", f"{fit.n_train:,} ({fit.per_class} per class)"
    yield "test images", f"{fit.n_test:,}"
    for name in _SETTINGS:
        if asked.get(name) is not None:
            yield name.replace("_", " "), str(asked[name])
    for name in ("train_cache", "test_cache"):
        if path := fit.detail.get(name):
            yield name.replace("_", " "), str(path)
    yield (
        "fingerprints",
        f"{fit.train_fingerprint[:16]} (train), {fit.test_fingerprint[:16]} (test)",
    )
    versions = fit.detail.get("versions", {})
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())
    yield "made", fit.created
    yield "fit", fit.fit_id


def command_of(fits: Sequence[FitResult]) -> str:
    """Write the command that makes a line again; empty for trainings and older records."""
    fit, asked = fits[0], fits[0].detail.get("settings", {})
    if not asked or "trained" in fit.detail:
        return ""
    words = ["featx", "fit", "--data", fit.data, "--backbone", fit.backbone, "--clf", fit.clf]
    words += ["--per-class", fit.per_class, "--repeats", str(asked.get("repeats", len(fits)))]
    words += ["--seed", str(asked.get("seed", 0))]
    if asked.get("C") is not None:
        words += ["--C", repr(asked["C"]).removesuffix(".0")]
    for name, usual in _USUAL.items():
        if asked.get(name, usual) != usual:
            words += [f"--{name.replace('_', '-')}", str(asked[name])]
    return shlex.join(words)


def _leaks(fit: FitResult, pictures: Pictures | None) -> dict[str, Any]:
    record: Mapping[str, Any] = fit.detail.get("leaks", {})
    if not record:
        return {}
    pairs = [dict(pair) for pair in record.get("pairs", [])[:_MOST_LEAKS]]
    if pictures is not None:
        for pair in pairs:
            both = [(part, _path(pair[part], fit)) for part in ("test", "train")]
            pair["pictures"] = [pictures.keep(fit, *one) for one in both]
    kinds = {kind: n for kind, n in record.get("test_images", {}).items() if n}
    return {"n_test": record.get("n_test"), "kinds": kinds, "pairs": pairs}


def _path(named: str, fit: FitResult) -> str:
    """Give the path of an image that a record names with its class."""
    endings = [f" ({name})" for name in (*fit.detail.get("class_names", ()), "unknown")]
    found = max((end for end in endings if named.endswith(end)), key=len, default="")
    return named.removesuffix(found)


def _mistakes(fit: FitResult, pictures: Pictures | None) -> Iterator[dict[str, Any]]:
    """Name the test images that one fit is most sure of, and wrong about."""
    record = fit.detail.get("most_confident_wrong", {})
    shown = pictures and pictures.images_of(fit, "test")
    if not shown:
        return
    names, is_probability = fit.detail["class_names"], record.get("confidence") == "probability"
    for i, confidence in record.get("test_rows", [])[:_MOST_MISTAKES]:
        path = shown.paths[_row(fit, i)]
        sure = f"{confidence:.3f}" if is_probability else f"margin {confidence:.3g}"
        yield {
            "path": path,
            "label": names[fit.detail["test_labels"][i]],
            "guess": f"{names[fit.detail['predictions'][i]]} ({sure})",
            "picture": pictures.keep(fit, "test", path) if pictures else "",
        }


def _row(fit: FitResult, i: int) -> int:
    """Give the row in the cache of the i-th test image."""
    rows = fit.detail.get("test_rows", "all")
    return i if rows == "all" else int(rows[i])


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what to say about it; without an image where that is gone."""

    title: str
    lines: tuple[str, ...]
    url: str = ""


@dataclass(frozen=True)
class Images:
    """What a cache says of its images."""

    meta: Mapping[str, Any]
    paths: Sequence[str]


@dataclass
class Pictures:
    """Opens each data set once, and says once why its images cannot be shown."""

    reporter: Reporter = SILENT
    problems: list[str] = field(default_factory=list)
    shelf: dict[str, str] = field(default_factory=dict)
    """Thumbnails that several lines share, as ``data:`` URLs, by their keys."""
    _albums: Albums = field(default_factory=Albums)
    _opened: dict[tuple[str, str], Images | None] = field(default_factory=dict)
    _keys: dict[tuple[str, str], str] = field(default_factory=dict)

    def thumbnail(self, meta: Mapping[str, Any], path: str) -> str:
        """Give an image as a ``data:`` URL; empty where it is not there."""
        data = meta.get("data", "a data set")
        album = self._albums.of(meta, lambda problem: self._note(f"pictures of {data}: {problem}"))
        image = album.picture(path)
        return "" if image is None else thumbnail_url(image, _THUMBNAIL_PX)

    def keep(self, fit: FitResult, part: str, path: str) -> str:
        """Put an image on the shelf, and give its key; empty where it is not there, or no room."""
        shown = self.images_of(fit, part)
        if shown is None:
            return ""
        name = (str(shown.meta.get("data")), path)
        if name not in self._keys:
            is_full = sum(map(len, self.shelf.values())) > _MOST_SHELF_BYTES
            url = "" if is_full else self.thumbnail(shown.meta, path)
            self._keys[name] = str(len(self.shelf)) if url else ""
            if url:
                self.shelf[self._keys[name]] = url
        return self._keys[name]

    def images_of(self, fit: FitResult, part: str) -> Images | None:
        """Read what the ``train`` or ``test`` cache of a fit says, if it is still the same."""
        key = (str(fit.detail.get(f"{part}_cache", "")), getattr(fit, f"{part}_fingerprint"))
        if key not in self._opened:
            self._opened[key] = self._open(fit.data, *key)
        return self._opened[key]

    def _open(self, data: str, path: str, fingerprint: str) -> Images | None:
        if not path:
            self._note(f"pictures of {data}: the fits name no cache")
            return None
        try:
            with open_any(Path(path)) as cache:
                if cache.fingerprint == fingerprint:
                    return Images(cache.meta, list(cache.paths))
        except (FeatxError, OSError) as error:
            self._note(f"pictures of {data}: {path} cannot be opened ({error})")
            return None
        self._note(f"pictures of {data}: {path} has changed since")
        return None

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            self.reporter.warn(problem)


def wrong_pictures(fits: Iterable[FitResult], pictures: Pictures) -> list[Picture]:
    """Show the test images of one test set that most of the fits got wrong.

    What every system gets wrong is often a wrong label.
    """
    scored = [fit for fit in fits if not fit.error and "predictions" in fit.detail]
    if not scored or (shown := pictures.images_of(scored[0], "test")) is None:
        return []
    truth = np.asarray(scored[0].detail["test_labels"])
    guesses = np.array([fit.detail["predictions"] for fit in scored])
    n_wrong = (guesses != truth).sum(axis=0)
    names, found = scored[0].detail["class_names"], []
    for i in np.argsort(-n_wrong, kind="stable")[:_MOST_PICTURES].tolist():
        if not n_wrong[i]:
            break
        said = guesses[:, i].tolist()
        path = shown.paths[_row(scored[0], i)]
        guess, n = Counter(g for g in said if g != truth[i]).most_common(1)[0]
        lines = (f"label: {names[truth[i]]}", f"{n} of {len(said)} fits say {names[guess]}")
        found.append(Picture(path, lines, pictures.thumbnail(shown.meta, path)))
    return found

"""What is behind a line of the table: classes, confusions, leaks, settings, pictures."""

from __future__ import annotations

import base64
import io
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.errors import FeatxError
from featx.evaluate import FitResult, ResultsFolder
from featx.progress import SILENT, Reporter
from featx.sources.album import Albums
from featx.store import Cache

__all__ = ["Picture", "Pictures", "details_of", "read_fits", "wrong_pictures"]

_USUAL = {
    **{"folds": 5, "holdout": 0.2, "on_leak": "warn", "near": "auto"},
    **{"scale": "none", "class_weight": None},
}
_MOST_CONFUSED, _MOST_PICTURES, _MOST_LEAKS = 10, 24, 12
_THUMBNAIL_PX, _QUALITY = 96, 80
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


def details_of(fits: Sequence[FitResult]) -> dict[str, Any]:
    """Describe one line, of all draws together, as plain values for the page."""
    first, scored = fits[0], [fit for fit in fits if not fit.error]
    told: dict[str, Any] = {
        "made": dict(_made(first)),
        "command": command_of(fits),
        "notes": list(dict.fromkeys(n for fit in fits for n in fit.notes.split("; ") if n)),
        "errors": list(dict.fromkeys(fit.error for fit in fits if fit.error)),
        "leaks": _leaks(first.detail.get("leaks", {})),
        "calibration": [f.detail["calibration"] for f in scored if "calibration" in f.detail],
        "curves": list(first.detail.get("trained", {}).get("curves", ())),
    }
    if scored:
        told |= _of_classes(scored)
    return told


def _of_classes(fits: Sequence[FitResult]) -> dict[str, Any]:
    """Sum the confusions of all draws."""
    names = fits[0].detail["class_names"]
    matrix = np.sum([fit.detail["confusion_matrix"] for fit in fits], axis=0)
    right, true, guessed = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    recall, precision = (right / np.maximum(total, 1) for total in (true, guessed))
    f1 = 2 * right / np.maximum(true + guessed, 1)
    pairs = [(int(matrix[i, j]), i, j) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
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
        "cells": [
            [int(i), int(j), int(matrix[i, j])] for i, j in zip(*np.nonzero(matrix), strict=True)
        ],
        "confused": [
            {
                "true": names[i],
                "predicted": names[j],
                "images": round(n / len(fits), 2),
                "share": round(n / int(true[i]), 4),
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


def _leaks(record: Mapping[str, Any]) -> dict[str, Any]:
    if not record:
        return {}
    kinds = {kind: n for kind, n in record.get("test_images", {}).items() if n}
    return {
        "n_test": record.get("n_test"),
        "kinds": kinds,
        "pairs": list(record.get("pairs", []))[:_MOST_LEAKS],
    }


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what to say about it; without an image where that is gone."""

    title: str
    lines: tuple[str, ...]
    url: str = ""


@dataclass
class Pictures:
    """Opens each data set once, and says once why its images cannot be shown."""

    reporter: Reporter = SILENT
    problems: list[str] = field(default_factory=list)
    _albums: Albums = field(default_factory=Albums)

    def thumbnail(self, meta: Mapping[str, Any], path: str) -> str:
        """Give an image as a ``data:`` URL; empty where it is not there."""
        data = meta.get("data", "a data set")
        album = self._albums.of(meta, lambda problem: self._note(f"pictures of {data}: {problem}"))
        image = album.picture(path)
        if image is None:
            return ""
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

    def open_cache(self, fit: FitResult) -> Cache | None:
        """Open the cache that a fit was tested on, if it is still the same."""
        path = fit.detail.get("test_cache")
        if not path:
            self._note(f"pictures of {fit.data}: the fits name no cache")
            return None
        try:
            cache = Cache.open(Path(path))
        except (FeatxError, OSError) as error:
            self._note(f"pictures of {fit.data}: {path} cannot be opened ({error})")
            return None
        if cache.fingerprint == fit.test_fingerprint:
            return cache
        cache.close()
        self._note(f"pictures of {fit.data}: {path} has changed since")
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
    if not scored or (cache := pictures.open_cache(scored[0])) is None:
        return []
    with cache:
        truth = np.asarray(scored[0].detail["test_labels"])
        guesses = np.array([fit.detail["predictions"] for fit in scored])
        n_wrong = (guesses != truth).sum(axis=0)
        worst = np.argsort(-n_wrong, kind="stable")[:_MOST_PICTURES]
        rows, names = scored[0].detail.get("test_rows", "all"), scored[0].detail["class_names"]
        return [
            _wrong_picture(cache, pictures, i if rows == "all" else rows[i], names, truth[i], said)
            for i in worst.tolist()
            if n_wrong[i]
            for said in [guesses[:, i].tolist()]
        ]


def _wrong_picture(
    cache: Cache, pictures: Pictures, row: int, names: Sequence[str], true: int, said: list[int]
) -> Picture:
    path = cache.paths[row]
    guess, n = Counter(g for g in said if g != true).most_common(1)[0]
    lines = (f"label: {names[true]}", f"{n} of {len(said)} fits say {names[guess]}")
    return Picture(path, lines, pictures.thumbnail(cache.meta, path))

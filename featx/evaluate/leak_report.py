"""What is told about leaks: lines, a record for JSON, and a picture of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.errors import ProtocolError
from featx.evaluate.leaks import KINDS, SAME_GROUP, Conflict, Leak, Leaks
from featx.evaluate.pair import CacheLike
from featx.progress import SILENT, Reporter
from featx.sheet import contact_sheet, save_sheet
from featx.sources.album import Albums

__all__ = [
    "conflict_line",
    "guard",
    "leak_lines",
    "leak_record",
    "leak_remark",
    "save_leak_sheet",
    "summary",
]

_SHOWN, _RECORDED, _DRAWN = 3, 50, 40


def summary(leaks: Leaks) -> str:
    """Count in one line; empty where nothing was found."""
    counts, parts = leaks.counts, []
    if leaks.n_twins:
        kinds = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts[kind])
        parts.append(
            f"{leaks.n_twins:,} of {leaks.n_test:,} test images have a twin among the "
            f"{leaks.n_train:,} training images: {kinds}"
        )
    if counts[SAME_GROUP]:
        column = leaks.pair.groups.column if leaks.pair.groups else ""
        parts.append(
            f"{counts[SAME_GROUP]:,} of {leaks.n_test:,} test images are in a group "
            f"({column}) of training images"
        )
    return " and ".join(parts)


def leak_remark(leaks: Leaks, on_leak: str) -> list[str]:
    """Say in the notes of a result what was found; nothing where nothing was."""
    found = summary(leaks)
    return [f"{found} (left out of training)" if on_leak == "drop" else found] if found else []


def guard(
    leaks: Leaks,
    on_leak: str,
    drawable: NDArray[np.bool_],
    tell: Callable[[list[str]], object],
    reporter: Reporter,
    least: int = 1,
) -> NDArray[np.bool_]:
    """Do about leaks what was asked for."""
    found, lines = summary(leaks), leak_lines(leaks)
    if found and on_leak == "raise":
        error = ProtocolError(f"{leaks.pair.name}: {found}")
        for line in lines:
            error.add_note(line)
        raise error
    tell([found] * bool(found))
    for line in lines:
        reporter.warn(f"  {line}")
    if not found or on_leak != "drop":
        return drawable
    kept = drawable & ~np.isin(np.arange(len(drawable)), leaks.train_rows)
    _require_enough(leaks, drawable, kept, least)
    tell([f"{len(leaks.train_rows):,} training images that leak are left out"])
    return kept


def _require_enough(
    leaks: Leaks, before: NDArray[np.bool_], after: NDArray[np.bool_], least: int
) -> None:
    """Refuse to leave too few images of a class that had enough."""
    labels, names = np.asarray(leaks.pair.train.y), leaks.pair.train.class_names
    n_before, n_after = (
        np.bincount(labels[kept], minlength=len(names)) for kept in (before, after)
    )
    short = np.flatnonzero((n_before >= least) & (n_after < least))
    if not short.size:
        return
    of_classes = [f"{n_after[i]:,} of {n_before[i]:,} images of {names[i]}" for i in short]
    more = f" and {len(short) - _SHOWN} more classes" * (len(short) > _SHOWN)
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in leaks.counts.items() if n)
    raise ProtocolError(
        f"{leaks.pair.name}: leaving out what leaks ({kinds}) would keep only "
        f"{', '.join(of_classes[:_SHOWN])}{more}, fewer than the {least} per class asked for: look "
        "at the pairs (--on-leak warn); if they are no twins, --near 0.3 is stricter and --no-near "
        "compares files and features alone; if they are, fit fewer images per class"
    )


def leak_lines(leaks: Leaks) -> list[str]:
    """Describe the first pairs and the first label conflicts."""
    lines = []
    for kind in (*KINDS, SAME_GROUP):
        pairs = _one_per_test_image(leak for leak in leaks.found if leak.kind == kind)
        lines += [_pair_line(leaks, leak) for leak in pairs[:_SHOWN]]
        lines += [f"{kind}: and {len(pairs) - _SHOWN:,} more"] * (len(pairs) > _SHOWN)
    lines += [conflict_line(leaks, conflict) for conflict in leaks.conflicts[:_SHOWN]]
    n_more = len(leaks.conflicts) - _SHOWN
    return lines + [f"label conflict: and {n_more:,} more"] * (n_more > 0)


def conflict_line(leaks: Leaks, conflict: Conflict) -> str:
    """Describe two labels of one image."""
    names = [_named(leaks, part, row) for part, row in (conflict.first, conflict.second)]
    return f"label conflict, {conflict.kind}: {names[0]} and {names[1]}"


def _one_per_test_image(found: Iterable[Leak]) -> list[Leak]:
    kept: dict[int, Leak] = {}
    for leak in found:
        kept.setdefault(leak.test, leak)
    return list(kept.values())


def _pair_line(leaks: Leaks, leak: Leak) -> str:
    names = _named(leaks, "test", leak.test), _named(leaks, "train", leak.train)
    like = "" if leak.kind != "near" else f" (cosine {leak.cosine:.3f})"
    return f"{leak.kind}{like}: {names[0]} and {names[1]}"


def _cache(leaks: Leaks, part: str) -> CacheLike:
    return leaks.pair.train if part == "train" else leaks.pair.test


def _named(leaks: Leaks, part: str, row: int) -> str:
    cache = _cache(leaks, part)
    label = int(cache.y[row])
    return f"{cache.paths[row]} ({cache.class_names[label] if label >= 0 else 'unknown'})"


def leak_record(leaks: Leaks) -> dict[str, Any]:
    """Give what was found as plain values, for a fit's JSON."""
    near: Any = "off"
    if leaks.near is not None:
        rule = leaks.near.rule
        near = {"ratio": rule.ratio, "is_default": rule.is_default, "spread": rule.spread}
        near["n_by_sketch_only"] = leaks.near.n_sketched
    return {
        "n_train": leaks.n_train,
        "n_test": leaks.n_test,
        "n_twins": leaks.n_twins,
        "test_images": leaks.counts,
        "n_train_images": len(leaks.train_rows),
        "near": near,
        "n_pairs": len(leaks.found),
        "pairs": [_pair_record(leaks, leak) for leak in leaks.found[:_RECORDED]],
        "n_label_conflicts": len(leaks.conflicts),
        "label_conflicts": [conflict_line(leaks, c) for c in leaks.conflicts[:_RECORDED]],
    }


def _pair_record(leaks: Leaks, leak: Leak) -> dict[str, Any]:
    return {
        "kind": leak.kind,
        "train": _named(leaks, "train", leak.train),
        "test": _named(leaks, "test", leak.test),
        "cosine": leak.cosine,
        "ratio": leak.ratio,
    }


def save_leak_sheet(many: Iterable[Leaks], path: Path, reporter: Reporter = SILENT) -> int:
    """Draw the pairs side by side: the test image, then the training image."""
    albums = Albums()
    cells: dict[tuple[str, ...], list[tuple[Image.Image | None, str]]] = {}
    for leaks in many:
        for leak in _one_per_test_image(leaks.found):
            sides = (("test", leak.test), ("train", leak.train))
            caches = [_cache(leaks, part) for part, _ in sides]
            key = tuple(c.paths[row] for c, (_, row) in zip(caches, sides, strict=True))
            if key in cells or len(cells) == _DRAWN:
                continue
            how = leak.kind if leak.kind != "near" else f"near {leak.cosine:.2f}"
            cells[key] = [
                (_picture(albums, cache, row, reporter), caption)
                for cache, (_, row), caption in zip(
                    caches, sides, (how, _named(leaks, "train", leak.train)), strict=True
                )
            ]
    if cells:
        save_sheet(contact_sheet([c for two in cells.values() for c in two], columns=8), path)
    return len(cells)


def _picture(albums: Albums, cache: CacheLike, row: int, reporter: Reporter) -> Image.Image | None:
    def tell(problem: str) -> None:
        reporter.warn(f"images of {Path(cache.path).name} cannot be drawn: {problem}")

    return albums.of(cache.meta, tell).picture(cache.paths[row])

"""An unfinished run whose images changed since: its rows may be taken into the new file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featx.atomic import is_flocked
from featx.errors import CacheError
from featx.fingerprint import differences
from featx.progress import Reporter
from featx.store.donor import Donor, without_source
from featx.store.features import Handle
from featx.store.image import build_image
from featx.store.journal import read_journal
from featx.store.layout import default_block_rows, feature_dtype, journal_path
from featx.store.partial import verified
from featx.store.spec import CacheSpec

__all__ = ["open_unfinished"]


def open_unfinished(path: Path, spec: CacheSpec, reporter: Reporter) -> Donor | None:
    """Open a partial file that was made as `spec` says, of other images; None if it is no such."""
    if is_flocked(path):
        return None
    try:
        header, ranges, _ = read_journal(journal_path(path))
        settings = without_source(spec.identity), without_source(header.meta["identity"])
        same_type = (header.n_features, header.dtype) == (spec.n_features, spec.dtype)
        if not same_type or differences(*settings):
            return None
        n = header.n_rows
        old = replace(
            spec,
            labels=np.full(n, -1),
            class_names=(),
            paths=["?"] * n,
            image_digests=np.zeros((0, 32), "u1"),
        )
        image = build_image(old)  # the place of the digests depends on no name
        if image.features_offset != header.features_offset:
            return None
        handle = Handle(str(path))
        digests, is_usable = np.empty((n, 32), "u1"), np.zeros(n, bool)
        handle.read_into(digests, image.offsets["image_sha256"])
        for item in verified(handle.fd, ranges, old, image, reporter):
            is_usable[item.start : item.stop] = True
            is_usable[list(item.failed)] = False
    except (CacheError, OSError, KeyError):
        return None
    return Donor(
        path=path,
        handle=handle,
        features_offset=header.features_offset,
        n_features=spec.n_features,
        dtype=feature_dtype(spec.dtype),
        block_rows=default_block_rows(spec.row_bytes),
        digests=np.zeros((0, 32), "u1"),
        image_digests=digests,
        is_usable=is_usable & digests.any(axis=1),
    )

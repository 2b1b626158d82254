"""The saved models in a folder of results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import ModelError
from featx.evaluate import FitResult, ResultsFolder
from featx.fingerprint import fingerprint
from featx.heads import find_head, get_head, settings_of
from featx.heads.saving import check_savable, n_features_of, pack_model
from featx.predict.model import (
    check_record,
    features_identity,
    read_model,
    read_record,
    write_file,
)
from featx.progress import SILENT, Reporter
from featx.records import ENDING

if TYPE_CHECKING:
    from featx.evaluate import CacheLike, Pair
    from featx.heads import Fit

__all__ = ["ModelsFolder"]

_TEST = "TEST score: accuracy on test images that the head was not fitted on, when it was fitted"


class ModelsFolder(ResultsFolder):
    """Results whose fits count as known only if their models are there too."""

    def __init__(self, folder: str | os.PathLike[str], reporter: Reporter = SILENT) -> None:
        super().__init__(folder, reporter)
        self.models = self.folder / "models"

    def find(self, fit_id: str) -> Iterator[FitResult]:
        """Yield the fits with an id, if there is a model of it; see `ResultsFolder.find`."""
        if self._has(fit_id):
            yield from super().find(fit_id)

    def _has(self, fit_id: str) -> bool:
        problems = []
        for path in sorted(self.models.glob(f"*{fit_id}*{ENDING}"), reverse=True):
            try:
                if read_model(path)[0].get("fit_id") == fit_id:
                    return True
            except ModelError as error:
                problems.append(str(error))
        for problem in problems:
            self.reporter.warn(f"fitted again: {problem}")
        return False

    @staticmethod
    def check_heads(names: Sequence[str]) -> None:
        """Refuse heads whose models cannot be saved, before anything is fitted."""
        for name in names:
            check_savable(get_head(name))

    def keep(self, pair: Pair, result: FitResult, fit: Fit | None) -> Path:
        """Write a result, then its model under the same name; a fit that failed has none."""
        if fit is None:
            return self.add(result)
        path = self.models / f"{self.add(result).stem}{ENDING}"
        plain, arrays = pack_model(fit.model)
        record = {"model": plain, "n_features": n_features_of(fit.model), **_record(pair, result)}
        if path.exists():
            _refuse_another(path, result.fit_id)
        write_file(path, record, arrays)
        return path

    def count(self, results: Iterable[FitResult]) -> int:
        """Count the fits that have a model."""
        names = " ".join(path.name for path in self.models.glob(f"*{ENDING}"))
        return sum(result.fit_id in names for result in results)

    def list_models(self) -> list[tuple[Path, dict[str, Any]]]:
        """Read the records of all models; damaged files are warned about and left out."""
        found = []
        for path in sorted(self.models.glob(f"*{ENDING}")):
            try:
                record = read_record(path)
                check_record(record)
            except ModelError as error:
                self.reporter.warn(f"{path.name} is left out: {error}")
                continue
            found.append((path, record))
        return found


def _refuse_another(path: Path, fit_id: str) -> None:
    try:
        other = read_record(path).get("fit_id")
    except ModelError:
        return  # a damaged file may be overwritten
    if other != fit_id:
        raise ModelError(f"{path} is another model ({other}) and is not overwritten: move it away")


def _record(pair: Pair, result: FitResult) -> dict[str, Any]:
    """Return everything about a model except its arrays."""
    meta = pair.train.meta
    features = features_identity(meta)
    return {
        "featx_version": version("featx"),
        "created": result.created,
        "fit_id": result.fit_id,
        "head": result.clf,
        "head_settings": settings_of(find_head(result.clf, ())),
        "C": result.C,
        "scale": result.scale,
        "class_weight": result.class_weight,
        "class_names": list(pair.train.class_names),
        "features": features,
        "fingerprint": fingerprint(features),
        "weights": _weights(meta),
        "train": {
            "data": str(meta["data"]),
            "per_class": result.per_class,
            "repeat": result.repeat,
            "seed": result.seed,
            "n_train": result.n_train,
            "subset_sha256": result.subset_sha256,
            "images_sha256": result.detail.get("train_images_sha256"),
            "fingerprint": result.train_fingerprint,
        },
        "test": _test(pair, result),
    }


def _test(pair: Pair, result: FitResult) -> dict[str, Any]:
    cache: CacheLike = pair.test
    held_out = "images held out of the training data" if pair.is_holdout else None
    return {
        "what": _TEST,
        "data": str(cache.meta["data"]),
        "split": held_out or str(cache.meta["split"]),
        "accuracy": result.acc1,
        "n_test": result.n_test,
        "images_sha256": result.detail.get("test_images_sha256"),
        "fingerprint": result.test_fingerprint,
    }


def _weights(meta: dict[str, Any]) -> dict[str, Any]:
    """Return where the weights came from, and how to open the network again."""
    record = dict(meta.get("weights") or {})
    if record.get("file") and Path(record["file"]).is_file():
        record["file"] = str(Path(record["file"]).absolute())
    request = meta.get("request") or {}
    names = request.get("backbone") or [meta["backbone"]]
    asked = request.get("weights")
    if not request:  # a cache made from Python records no command, only the file or the tag
        file = record.get("file")
        asked = str(Path(file).absolute()) if file else record.get("label")
    return {**record, "backbone": str(names[0]), "asked": asked}

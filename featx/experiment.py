"""The experiment of ``featx fit`` in Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import CacheError
from featx.evaluate import CacheChoice, Pair, ResultsFolder, Settings, run_fit
from featx.evaluate.table import frame_of
from featx.progress import SILENT, Reporter
from featx.sources import ClassChoice
from featx.store import Cache
from featx.tracking import track

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit", "results_folder"]

_CHOICES = ("data", "backbone", "layer", "pool", "input_size")


def fit(  # noqa: PLR0913
    caches: str | os.PathLike[str] | Cache | Sequence[Cache] = "cache",
    *,
    clf: str | Iterable[str] = "svm",
    per_class: int | str | Iterable[int | str] = 100,
    reports: str | os.PathLike[str] = "reports",
    classes: Iterable[str] = (),
    drop: Iterable[str] = (),
    rename: Iterable[str] = (),
    test_split: str | None = None,
    groups: str | None = None,
    refit: bool = False,
    save_models: bool = False,
    log: str | Iterable[str] = (),
    reporter: Reporter = SILENT,
    **settings: Any,
) -> pd.DataFrame:
    """Fit classifiers on few labelled images per class, and keep the results.

    Draws, fits, ids and files are those of ``featx fit``: what the folder of results holds already
    is read, not fitted again.

    Parameters
    ----------
    caches : path-like, Cache or sequence of Cache, default="cache"
        A folder of caches, of which all that are finished are taken. Or one cache: it is fitted
        on, and tested on its partner beside it in the same folder (held-out rows where its data
        have no splits). Or several caches, as a training cache and its test cache.
    clf : str or iterable of str, default="svm"
        Heads: names of ``featx list heads``, with settings as ``"mlp(hidden=512,256)"``.
    per_class : int, "all" or iterable of these, default=100
        Training images of each class.
    reports : path-like, default="reports"
        Folder of the results.
    classes, drop : iterable of str
        Classes to keep, and to leave out.
    rename : iterable of str
        New names of classes, as ``"automobile=car"``.
    test_split : str, optional
        ``"test"`` or ``"val"``; test by default, or val where there is no test.
    groups : str, optional
        ``[TABLE:]COLUMN``: images of one group stay on one side of every split.
    refit : bool, default=False
        Fit again what the folder of results has an answer to.
    save_models : bool, default=False
        Keep every fitted head in ``REPORTS/models/``.
    log : str or iterable of str
        Trackers that get the fits too, each once: ``"mlflow"``, ``"tensorboard"``, ``"wandb"``.
    reporter : Reporter, optional
        Shows progress and notices; ``featx.progress.Reporter()`` prints them.
    **settings
        Of `featx.evaluate.Settings`: ``repeats=5``, ``seed=0``, ``C=None`` (searched), ``folds=5``,
        ``scale="none"``, ``class_weight=None``, ``holdout=0.2``, ``on_leak="warn"``,
        ``near="auto"``, ``n_jobs=1``, ``device="auto"``, ``engine="local"`` or ``"ray"`` with the
        ``address`` of a cluster.

    Returns
    -------
    pandas.DataFrame
        One row a fit, with the columns of `featx.results`. Fits that failed have no accuracy and
        an ``error``.

    Raises
    ------
    CacheError
        If no cache can be fitted and tested on.
    UsageError
        If a setting is none, or not one of those that are allowed.

    Examples
    --------
    >>> fits = featx.fit(featx.load("vgg16"), clf=("svm", "logreg"))  # doctest: +SKIP
    >>> fits.groupby("clf")["acc1"].mean()  # doctest: +SKIP
    """
    heads, sizes = _several(clf), _several(per_class)
    asked = Settings(heads=heads, per_class=sizes, allow_code=heads, **settings)
    choice = CacheChoice(
        test_split=test_split,
        groups=groups,
        classes=ClassChoice.parse(_several(classes), _several(drop), _several(rename)),
    )
    folder = results_folder(reports, heads, save_models, reporter)
    pairs = _pairs(caches, choice, sizes, reporter)
    fits, _ = run_fit(pairs, asked, folder, refit=refit, reporter=reporter)
    for name in _several(log):
        track(fits, name, folder.folder, reporter)
    keys = {fit.key for fit in fits}
    rows = {name: row for name, row in folder.rows().items() if row.key in keys}
    return frame_of(rows)


def results_folder(
    folder: str | os.PathLike[str], heads: Sequence[str], save_models: bool, reporter: Reporter
) -> Any:
    """Open a folder of results: a `ModelsFolder` if fitted heads are to be saved in it too."""
    if not save_models:
        return ResultsFolder(folder, reporter)
    from featx.predict import ModelsFolder  # loaded only where models are saved

    ModelsFolder.check_heads(heads)
    return ModelsFolder(folder, reporter)


def _several(value: Any) -> tuple[Any, ...]:
    """Take one word or number as a tuple of one."""
    return (value,) if isinstance(value, str | int) else tuple(value)


def _pairs(
    caches: str | os.PathLike[str] | Cache | Sequence[Cache],
    choice: CacheChoice,
    per_class: Sequence[int | str],
    reporter: Reporter,
) -> list[Pair]:
    if isinstance(caches, str | os.PathLike):
        if Path(caches).is_file():
            caches = Cache.open(caches)
        else:
            return choice.pairs_in(caches, per_class, reporter)
    if not isinstance(caches, Cache):
        return choice.pairs(list(caches), per_class, reporter)
    like: dict[str, Any] = {name: (caches.meta[name],) for name in _CHOICES if name in caches.meta}
    found = replace(choice, **like).pairs_in(caches.path.parent, per_class, reporter)
    pairs = [pair for pair in found if pair.train.fingerprint == caches.fingerprint]
    if not pairs:
        fitted = ", ".join(pair.train.path.name for pair in found)
        raise CacheError(f"{caches.path} is not a cache to fit on, but to test on: give {fitted}")
    return pairs

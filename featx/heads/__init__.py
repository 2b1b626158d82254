"""Heads: classifiers of features, found by name. A new one is a file and an entry here.

In: rows of features, labels, `FitOptions`. Out: a `Fit`: the fitted model, the curve of its search,
notes. Rows come as a `RowSpace`, which holds scaling and Gram matrix, so that several fits share
them; `linear` solves many problems at once; `boundary` turns what libraries raise into `FitError`.
The room must not know caches, draws, test rows or results.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from featx.configurable import Configurable, parse, settings_of, split_settings, words_of
from featx.errors import UsageError, unknown_name
from featx.heads import foreign
from featx.heads.base import CvCurve, Fit, FitOptions, Head, LinearModel, Model
from featx.heads.centroid import NCM
from featx.heads.knn import KNN, KNN_DINO
from featx.heads.lda import LDA
from featx.heads.linear import LOGREG, RIDGE, SVM
from featx.heads.linear_probe import LINEAR_PROBE
from featx.heads.mlp import MLP
from featx.heads.rowspace import Pool, RowSpace
from featx.heads.torch_mlp import MLP_TORCH
from featx.plugins import is_plugin, offered

__all__ = [
    "CvCurve",
    "Fit",
    "FitOptions",
    "Head",
    "LinearModel",
    "Model",
    "Pool",
    "RowSpace",
    "available_heads",
    "canonical_name",
    "configure",
    "find_head",
    "get_head",
    "settings_of",
    "with_settings",
    "words_of",
]

_HEADS: dict[str, Head] = {
    head.name: head
    for head in (SVM, LOGREG, RIDGE, MLP, MLP_TORCH, KNN, KNN_DINO, NCM, LDA, LINEAR_PROBE)
}


def available_heads() -> dict[str, str]:
    """Names of all heads, with the scikit-learn estimator of each.

    Those that installed packages offer as entry points of the group ``featx.heads`` come last.
    """
    names = {name: head.estimator for name, head in _HEADS.items()}
    others = {name: point.value for name, point in offered(foreign.GROUP).items()}
    return names | {name: value for name, value in others.items() if name not in names}


def get_head(name: str) -> Head:
    """Find a head by its name.

    Parameters
    ----------
    name : str
        One of `available_heads`, or ``module:Class`` for a scikit-learn classifier of your own,
        see `featx.heads.foreign`; with settings in brackets, ``mlp(hidden=512,256 alpha=0.1)``.

    Returns
    -------
    Head

    Raises
    ------
    UsageError
        If there is none of that name, it is no classifier, or a setting does not fit.
    """
    return find_head(name, (name,))


def find_head(name: str, allow_code: Collection[str]) -> Head:
    """Find a head by a name that may come out of a file: only code in `allow_code` is imported."""
    bare, words = split_settings(name)
    if bare in _HEADS:
        head = _HEADS[bare]
    elif is_plugin(bare, foreign.GROUP):
        head = foreign.load(bare, {split_settings(allowed)[0] for allowed in allow_code})
    else:
        raise unknown_name("head", bare, available_heads(), see="featx list heads")
    return with_settings(head, parse(head, words))


def canonical_name(name: str, allow_code: Collection[str]) -> str:
    """Name a head one way, however its settings are typed: ``mlp(hidden=100)`` is ``mlp``.

    Settings that are as they would be anyway are left out, others come in the head's order.
    """
    bare, words = split_settings(name)
    if not words:
        return bare
    plain = find_head(bare, allow_code)
    usual, values = settings_of(plain), parse(plain, words)
    texts = dict(zip(values, words, strict=True))
    if not isinstance(plain, foreign.ForeignHead):
        texts = {key: words_of({key: value}) for key, value in values.items()}
    # By their texts: values of the user's own classes may be arrays.
    kept = [texts[key] for key in usual if key in values and repr(values[key]) != repr(usual[key])]
    return f"{bare}({' '.join(kept)})" if kept else bare


def with_settings(head: Head, values: dict[str, Any]) -> Head:
    """Give a head with other settings; see `settings_of`.

    Parameters
    ----------
    head : Head
        Not changed.
    values : dict
        Values by name, such as ``{"hidden": (512, 256), "dropout": 0.2}``.

    Returns
    -------
    Head

    Raises
    ------
    UsageError
        If the head has no such setting, or it cannot have this value.
    """
    if not values:
        return head
    if not isinstance(head, Configurable):
        raise UsageError(f"{head.name} has no settings: leave {', '.join(values)} out")
    return head.with_settings(**values)


def configure(name: str, words: Sequence[str] = ()) -> Head:
    """Find a head and change its settings as they are typed.

    Examples
    --------
    >>> from featx.heads import configure
    >>> configure("mlp-torch", ["hidden=512,256", "dropout=0.2,0", "optimizer=Adam"]).hidden
    (512, 256)
    """
    head = get_head(name)
    return with_settings(head, parse(head, words))

"""Heads: classifiers of features, found by name. A new one is a file and an entry here."""

from __future__ import annotations

from featx.errors import unknown_name
from featx.heads.base import CvCurve, Fit, FitOptions, Head, LinearModel, Model
from featx.heads.linear import LOGREG, SVM
from featx.heads.mlp import MLP
from featx.heads.rowspace import Pool, RowSpace

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
    "get_head",
]

_HEADS: dict[str, Head] = {head.name: head for head in (SVM, LOGREG, MLP)}


def available_heads() -> dict[str, str]:
    """Names of all heads, with the scikit-learn estimator of each."""
    return {name: head.estimator for name, head in _HEADS.items()}


def get_head(name: str) -> Head:
    """Find a head by its name.

    Parameters
    ----------
    name : str
        One of `available_heads`.

    Returns
    -------
    Head

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name not in _HEADS:
        raise unknown_name("head", name, _HEADS, see="featx list heads")
    return _HEADS[name]

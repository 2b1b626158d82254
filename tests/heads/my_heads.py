"""Classifiers of a user's own."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import SVC

NUMBER = 3
Regressor = LinearRegression
one_against_one = partial(SVC, decision_function_shape="ovo")


class Nearest(ClassifierMixin, BaseEstimator):
    """Knows `predict` alone."""

    def __init__(self, power=2, names=("a", "b")):
        self.power = power
        self.names = names

    def fit(self, X, y):
        self.dtype_ = X.dtype
        self.classes_ = np.unique(y)
        self.means_ = np.stack([X[y == c].mean(axis=0) for c in self.classes_])
        return self

    def predict(self, X):
        distance = (np.abs(X[:, None] - self.means_) ** self.power).sum(axis=2)
        return self.classes_[distance.argmin(axis=1)]


class Needy(Nearest):
    def __init__(self, needed):
        self.needed = needed


class Fails(Nearest):
    def fit(self, X, y):
        raise ValueError("no luck")


class Nothing(Nearest):
    def fit(self, X, y):
        super().fit(X, y)


class Shares(Nearest):
    """Knows the probabilities of three classes, right or wrong."""

    shares: tuple[float, ...] = (0.5, 0.25, 0.25)

    def predict_proba(self, X):
        return np.tile(self.shares, (len(X), 1))


class NoNumbers(Shares):
    shares = (0.5, 0.5, np.nan)


class TooMuch(Shares):
    shares = (1.0, 1.0, 1.0)


class Negative(Shares):
    shares = (1.0, -0.5, 0.5)


class OneColumn(Shares):
    shares = (1.0,)


class OneMore(Shares):
    shares = (0.25, 0.25, 0.25, 0.25)


class Labels(Nearest):
    """Predicts one thing."""

    label: object = 0

    def predict(self, X):
        return np.array([self.label] * len(X))


class Beyond(Labels):
    label = 3


class Half(Labels):
    label = 0.5


class Names(Labels):
    label = "cat"


class Short(Labels):
    def predict(self, X):
        return np.zeros(len(X) - 1, dtype=np.int64)


class Backwards(Shares):
    def fit(self, X, y):
        super().fit(X, y)
        self.classes_ = self.classes_[::-1]
        return self


class Warns(Nearest):
    def fit(self, X, y):
        warnings.warn("not\nyet", ConvergenceWarning, stacklevel=1)
        self.n_iter_ = [3, 7]
        return super().fit(X, y)


def strong():
    return LogisticRegression(C=100.0, max_iter=1000)

"""`ncm`: the nearest class mean, which is a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from featx.configurable import Configurable
from featx.heads.base import Fit, FitOptions, linear_model
from featx.heads.moments import class_means
from featx.heads.rowspace import RowSpace
from featx.heads.training import check_options, codes_of

__all__ = ["NCM", "NcmHead", "class_weights", "second_against_first"]


@dataclass(frozen=True)
class NcmHead(Configurable):
    """The class whose mean is nearest, as NearestCentroid has it.

    With m the mean of a class, -|x - m|^2 / 2 = x m - |m|^2 / 2 - |x|^2 / 2, and the last term
    is the same for all classes: coefficients m, intercept -|m|^2 / 2.

    References
    ----------
    T. Mensink, J. Verbeek, F. Perronnin and G. Csurka, "Distance-based image classification:
    generalizing to new classes at near-zero cost", IEEE TPAMI 35(11), 2013, equations 1 and 2.
    """

    has_class_weight: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = False

    name: str = "ncm"
    estimator: str = "sklearn.neighbors.NearestCentroid"
    link: str = ""

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Average the rows of every class."""
        check_options(self.name, options)
        classes, codes = codes_of(y)
        space = space.scaled(options.scale)
        if space.is_wide:
            means = space.combine(class_weights(codes)).T
        else:
            means = class_means(space, codes)
        coef, intercept = second_against_first(means, -0.5 * np.einsum("ij,ij->i", means, means))
        return Fit(linear_model(space, classes, coef, intercept))


def class_weights(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of the rows in the means of the classes, (n_rows, n_classes)."""
    indicators = np.eye(int(codes.max()) + 1)[codes]
    return np.asarray(indicators / indicators.sum(axis=0))


def second_against_first(
    coef: NDArray[np.float64], intercept: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Make one row of the rows of two classes, as a `LinearModel` has it."""
    if len(coef) > 2:
        return coef, intercept
    return coef[1:] - coef[:1], intercept[1:] - intercept[:1]


NCM = NcmHead()

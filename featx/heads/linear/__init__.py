"""`svm`, `logreg` and `ridge`: L2-regularised linear classifiers, solved in the row space."""

from __future__ import annotations

from featx.heads.linear.head import LOGREG, RIDGE, SVM, LinearHead
from featx.heads.linear.work import LinearWork, gram_seconds

__all__ = ["LOGREG", "RIDGE", "SVM", "LinearHead", "LinearWork", "gram_seconds"]

"""Photographs in one folder per class: extract once, compare heads, keep a model.

python examples/own_photographs.py photos/
"""

from __future__ import annotations

import sys

import featx
from featx.extract import Plan, run_plan

folder = sys.argv[1]
run_plan(Plan(backbone=("efficientnet_lite0",), data=folder, pool="avg"))
fits = featx.fit("cache", clf=["svm", "logreg", "ncm"], per_class=[5, "all"], save_models=True)
print(fits.groupby(["per_class", "clf"], sort=False)["acc1"].agg(["mean", "std", "count"]).round(3))
best = fits.loc[fits["acc1"].idxmax()]
print(f"best fit: {best['clf']} on {best['n_train']} images, {best['acc1']:.3f} of the test images")
print(f"its model: reports/models/{best['file'].removesuffix('.json')}.safetensors")

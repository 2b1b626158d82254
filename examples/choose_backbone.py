"""Which of the extracted backbones is worth its cost? Accuracy beside length and time.

Run after some  featx extract --backbone A B C --data D :

python examples/choose_backbone.py cache/
"""

from __future__ import annotations

import sys

import featx
from featx.evaluate import compare

fits = featx.fit(sys.argv[1], clf="svm", per_class=8, repeats=3)
table = fits.groupby("backbone").agg(
    accuracy=("acc1", "mean"), features=("n_features", "first"), seconds=("fit_seconds", "mean")
)
print(table.sort_values("accuracy", ascending=False).round(3).to_string())
if len(table) > 1:
    # Chosen by these very accuracies: differences to the others look larger than they are.
    print("\n".join(compare(list(table.nlargest(2, "accuracy").index), "reports")["statement"]))

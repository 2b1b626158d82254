"""The slow, plain way to the features, to which featx's own way is compared.

Pillow decodes, the transform that the library brings prepares, the whole network runs: one image
at a time, float32, on the CPU. featx's decoder, preprocessing, cut networks and engines are
compared with that. The network itself is loaded as everywhere; the tests build it a second time
without featx's loaders.
"""

from __future__ import annotations

from featx.reference.compare import (
    TOLERANCES,
    Agreement,
    Classes,
    Tolerance,
    Verdict,
    compare,
    judge,
)
from featx.reference.networks import Reference, open_reference
from featx.reference.pictures import (
    Picture,
    find_photographs,
    fit_native,
    made_pictures,
    read_labels,
)

__all__ = [
    "TOLERANCES",
    "Agreement",
    "Classes",
    "Picture",
    "Reference",
    "Tolerance",
    "Verdict",
    "compare",
    "find_photographs",
    "fit_native",
    "judge",
    "made_pictures",
    "open_reference",
    "read_labels",
]

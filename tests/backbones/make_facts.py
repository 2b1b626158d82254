"""Computes featx/backbones/torchvision_facts.tsv: python tests/backbones/make_facts.py."""

from __future__ import annotations

from pathlib import Path

import featx.backbones
from featx.backbones import list_layers, torchvision_models


def shape_of(name: str) -> str:
    points, default = list_layers(name)
    return "x".join(str(n) for point in points if point.name == default for n in point.shape)


if __name__ == "__main__":
    lines = [f"{name}\t{shape_of(name)}\n" for name in torchvision_models.available()]
    target = Path(featx.backbones.__file__).parent / "torchvision_facts.tsv"
    head = "# Shape of the default feature point at the default size; made by make_facts.py\n"
    target.write_text(head + "".join(lines), encoding="ascii")

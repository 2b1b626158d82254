"""Dense layers, one after the other: how they are set, and the modules that they become.

The head ``mlp-torch``, the tops of backbones and the networks from scratch have the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featx.configurable import Configurable, setting
from featx.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DenseLayers", "dense_stack"]


@dataclass(frozen=True)
class DenseLayers(Configurable):
    """Settings of hidden dense layers."""

    hidden: tuple[int, ...] = setting((512, 256), within="[1, inf)")
    dropout: tuple[float, ...] = setting((0.2,), within="[0, 1)")
    batch_norm: str = setting("none", choices=("none", "input", "before", "after"))
    activation: str = setting("relu", choices=("relu", "tanh", "sigmoid", "gelu"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dropout) not in (1, len(self.hidden)):
            raise UsageError(
                f"dropout of {self.name} has {len(self.dropout)} numbers for {len(self.hidden)} "
                "hidden layers: give one for all, or one for each"
            )

    def stack(self, n_in: int, n_out: int) -> list[nn.Module]:
        """Make the hidden layers, and a last dense layer."""
        return dense_stack(
            n_in,
            self.hidden,
            n_out,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
            activation=self.activation,
        )


def dense_stack(
    n_in: int,
    hidden: Sequence[int],
    n_out: int | None = None,
    *,
    dropout: Sequence[float] = (0.0,),
    batch_norm: str = "none",
    activation: str = "relu",
) -> list[nn.Module]:
    """Make dense layers with torch's current random generator, and a last one for `n_out`.

    A hidden layer is batch normalisation where it is ``before``, the dense layer, batch
    normalisation where it is ``after``, the activation, dropout.
    """
    from torch import nn

    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
    drops = dropout if len(dropout) > 1 else [*dropout] * len(hidden)
    parts: list[nn.Module] = [nn.BatchNorm1d(n_in)] if batch_norm == "input" else []
    for width, drop in zip(hidden, drops, strict=True):
        parts += [nn.BatchNorm1d(n_in)] if batch_norm == "before" else []
        parts.append(nn.Linear(n_in, width))
        parts += [nn.BatchNorm1d(width)] if batch_norm == "after" else []
        parts.append(kinds[activation]())
        parts += [nn.Dropout(drop)] if drop else []
        n_in = width
    return parts if n_out is None else [*parts, nn.Linear(n_in, n_out)]

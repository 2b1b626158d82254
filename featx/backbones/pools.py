"""From the output of a tap point to the features of one image."""

from __future__ import annotations

import torch

from featx.errors import UsageError
from featx.preprocess import is_traced
from featx.words import POOLS, check_word

__all__ = ["flatten_features", "pool_features", "pooled_shape"]

Shape = tuple[int, ...]


def pooled_shape(shape: Shape, pool: str, *, has_class_token: bool = True) -> Shape:
    """Shape of one image's features after pooling."""
    check_word("pool", pool, POOLS)
    if pool == "none":
        return shape
    is_map, is_tokens = len(shape) == 3, len(shape) == 2
    if pool in ("avg", "max") and is_map:
        return shape[:1]
    if is_tokens and (has_class_token or "cls" not in pool):
        return (2 * shape[1],) if pool == "avg+cls" else shape[1:]
    allowed = "none, avg or max" if is_map or is_tokens else "none"
    lacks = ", which has no class token" if is_tokens else ""
    raise UsageError(
        f"pool {pool!r} does not fit a layer whose output has the shape {shape}{lacks}: "
        f"use {allowed}"
    )


def pool_features(output: torch.Tensor, pool: str, n_prefix_tokens: int = 0) -> torch.Tensor:
    """Pool the output of a tap point."""
    if pool == "none":
        return output
    if pool == "cls":
        return output[:, 0]
    if output.dim() == 4:
        return output.mean((2, 3)) if pool == "avg" else output.amax((2, 3))
    patches = output[:, n_prefix_tokens:]
    if pool == "max":
        return patches.amax(1)
    mean = patches.mean(1)
    return torch.cat([mean, output[:, 0]], 1) if pool == "avg+cls" else mean


def flatten_features(features: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Flatten pooled features, in the order channels, rows, columns."""
    if dtype is not None:
        features = features.to(dtype)
    is_turned = features.dim() == 4 and not features.is_contiguous()
    if is_traced() or not is_turned or features.device.type != "cpu":
        return features.flatten(1)
    # Image by image this is the transpose of a matrix, for which torch has a fast path, ten
    # times faster than its copy of the whole tensor.
    n, channels, height, width = features.shape
    bits = _BITS.get(features.dtype, features.dtype)
    turned = features.permute(0, 2, 3, 1).reshape(n, height * width, channels).view(bits)
    rows = torch.empty((n, channels, height * width), dtype=bits)
    for row, pixels in zip(rows, turned, strict=True):
        row.copy_(pixels.t())
    return rows.view(features.dtype).flatten(1)


# Whole numbers of the same width: torch copies these faster than halves.
_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16}

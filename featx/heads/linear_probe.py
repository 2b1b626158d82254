"""`linear-probe`: the softmax layer that papers train by SGD on frozen features, as DINOv2 does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featx.configurable import Configurable, setting
from featx.errors import FitError
from featx.heads.base import SOFTMAX, CvCurve, Fit, FitOptions, flat, linear_model
from featx.heads.centroid import second_against_first
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.select import fold_rows
from featx.heads.training import check_options, codes_of

__all__ = ["LINEAR_PROBE", "LinearProbeHead", "descend"]

_LRS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_PER = 256
_MOMENTUM, _STD = 0.9, 0.01
_LEFT_OUT = 5  # one fifth of the rows chooses the learning rate

Rows32 = NDArray[np.float32]


@dataclass(frozen=True)
class LinearProbeHead(Configurable):
    """A softmax layer trained by SGD with every learning rate of a grid; one is kept.

    Momentum 0.9, no weight decay, a cosine schedule down to 0, weights from N(0, 0.01^2), biases
    of 0; a learning rate is multiplied by the rows of a batch / 256. All learning rates see the
    same batches. DINOv2 chooses among them on the validation images that it reports, and trains
    on augmented images; here a fifth of the subset chooses, all of it is then fitted, and the
    features are those of the cache.

    Training stays in the span of the rows, so that it is done there, in at most as many dimensions
    as rows; what the first weights have outside of it is left out.

    References
    ----------
    M. Oquab et al., "DINOv2: Learning robust visual features without supervision", TMLR 2024,
    section 7.1, and its ``dinov2/eval/linear.py``.
    """

    has_class_weight: ClassVar[bool] = False

    name: str = "linear-probe"
    estimator: str = "torch.optim.SGD on a torch.nn.Linear"
    lr: tuple[float, ...] = setting(_LRS, within="(0, inf)")
    max_iter: int = setting(12_500, within="[1, inf)")
    batch_size: int = setting(1024, within="[1, inf)")
    link: str = SOFTMAX

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Choose the learning rate on a fifth of the rows, then train on all of them."""
        check_options(self.name, options)
        classes, codes = codes_of(y)
        space = space.scaled(options.scale)
        rows, dual = space.coordinates
        rows32 = rows.astype(np.float32)
        lr, cv, notes = self._choose(space, rows32, codes, options)
        weights, biases = self._descend(space, rows32, codes, (lr,), options.seed)
        if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
            raise self._diverged()
        coef, intercept = second_against_first(weights[0].T, biases[0])
        scores = flat(rows @ coef.T + intercept)
        coef = coef if dual is None else space.combine(dual @ coef.T).T
        model = linear_model(space, classes, coef, intercept, SOFTMAX)
        return Fit(model, cv=cv, n_iter=self.max_iter, notes=notes, train_scores=scores)

    def _choose(
        self, space: RowSpace, rows: Rows32, codes: NDArray[np.int64], options: FitOptions
    ) -> tuple[float, CvCurve | None, tuple[str, ...]]:
        if len(self.lr) == 1:
            return self.lr[0], None, ()
        folds = fold_rows(codes, _LEFT_OUT, options.seed, options.groups)
        if not folds:
            lr = self.lr[len(self.lr) // 2]
            why = "a class with one image, or one group, leaves nothing out"
            return lr, None, (f"lr not searched, lr={lr:g}: {why}",)
        fitted, left_out = folds[0]
        found = self._descend(space, rows[fitted], codes[fitted], self.lr, options.seed)
        right = [
            float((np.argmax(rows[left_out] @ w + b, axis=1) == codes[left_out]).mean())
            if np.isfinite(w).all()
            else -1.0
            for w, b in zip(*found, strict=True)
        ]
        if max(right) < 0:
            raise self._diverged()
        cv = CvCurve(self.lr, tuple((max(share, 0.0),) for share in right), "lr")
        lr = self.lr[int(np.argmax(right))]
        return lr, cv, (f"lr={lr:g} chosen on {len(left_out):,} of {len(codes):,} training images",)

    def _descend(
        self,
        space: RowSpace,
        rows: Rows32,
        codes: NDArray[np.int64],
        lrs: tuple[float, ...],
        seed: int,
    ) -> tuple[Array, Array]:
        n_bytes = 3 * rows.nbytes + 16 * rows.shape[1] * len(lrs) * (int(codes.max()) + 1)
        return space.pool.on_device(
            lambda device: descend(self, rows, codes, lrs, seed, device), len(rows), n_bytes
        )

    def _diverged(self) -> FitError:
        return FitError(
            f"{self.name} diverged with every lr from {min(self.lr):g} on: take smaller ones, or "
            "scale the features (--scale standard)"
        )


def descend(
    head: LinearProbeHead,
    rows: Rows32,
    codes: NDArray[np.int64],
    lrs: tuple[float, ...],
    seed: int,
    device: str,
) -> tuple[Array, Array]:
    """Train a layer for each learning rate: (n_lrs, d, n_classes) and (n_lrs, n_classes)."""
    import torch

    from featx.arithmetic import refuse_forced_tf32, true_float32

    if device.startswith("cuda"):
        refuse_forced_tf32("choose --device cpu")
    n, d, n_classes = *rows.shape, int(codes.max()) + 1
    size = min(head.batch_size, n)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn((d, n_classes), generator=generator) * _STD
    place = torch.device(device)
    X, truth = torch.from_numpy(rows).to(place), torch.from_numpy(codes).to(place)
    # One matrix for all learning rates: (d, n_lrs * n_classes).
    w = start.to(place).repeat(1, len(lrs))
    b = torch.zeros(len(lrs) * n_classes, device=place)
    moving = torch.zeros_like(w), torch.zeros_like(b)
    steps = torch.tensor(lrs).repeat_interleave(n_classes).to(place) * (size / _PER)
    one_hot = torch.nn.functional.one_hot(truth, n_classes).float()
    with torch.inference_mode(), true_float32():
        for step, batch in enumerate(_batches(n, size, head.max_iter, generator)):
            at = slice(None) if size == n else batch.to(place)
            some, wanted = X[at], one_hot[at]
            scores = torch.addmm(b, some, w).view(size, len(lrs), n_classes)
            slope = (scores.softmax(-1) - wanted[:, None]).view(size, -1) / size
            decay = 0.5 * (1 + math.cos(math.pi * step / head.max_iter))
            for value, speed, gradient in (
                (w, moving[0], some.T @ slope),
                (b, moving[1], slope.sum(0)),
            ):
                speed.mul_(_MOMENTUM).add_(gradient)
                value.sub_(speed * (steps * decay))
    weights = w.view(d, len(lrs), n_classes).permute(1, 0, 2).cpu().numpy()
    return weights.astype(np.float64), b.view(len(lrs), n_classes).cpu().numpy().astype(np.float64)


def _batches(n: int, size: int, n_steps: int, generator: Any) -> Iterator[Any]:
    """Rows of each step: one random order of all rows after the other, without an end."""
    import torch

    waiting = torch.randperm(n, generator=generator)
    for _ in range(n_steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(n, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


LINEAR_PROBE = LinearProbeHead()

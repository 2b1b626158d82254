"""The linear probe against torch's own SGD, cosine schedule and layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_data import features
from torch import nn

from featx.errors import ProtocolError
from featx.heads import FitOptions, Pool, RowSpace
from featx.heads.linear_probe import LINEAR_PROBE, descend


def by_torch(X, codes, lr, *, n_steps, size, seed, basis=None):
    """Train nn.Linear with torch.optim.SGD as dinov2/eval/linear.py does."""
    n_classes = int(codes.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(X.shape[1], n_classes)
    basis = torch.eye(X.shape[1]) if basis is None else torch.from_numpy(basis).float()
    with torch.no_grad():
        start = torch.randn((basis.shape[1], n_classes), generator=generator) * 0.01
        layer.weight.copy_((basis @ start).T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr * size / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=0)
    waiting = torch.randperm(len(X), generator=generator)
    for _ in range(n_steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(len(X), generator=generator)])
        rows, waiting = waiting[:size], waiting[size:]
        loss = nn.functional.cross_entropy(
            layer(torch.from_numpy(X[rows])), torch.from_numpy(codes[rows])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("size", [16, 90, 1024])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_the_training_of_torch(size, n_classes):
    X, y = features(90, 20, n_classes)
    head = LINEAR_PROBE.with_settings(lr=0.02, max_iter=120, batch_size=size)
    model = head.fit(RowSpace.of(X), y, FitOptions(seed=4)).model
    classes, codes = np.unique(y, return_inverse=True)
    w, b = by_torch(X.astype(np.float32), codes, 0.02, n_steps=120, size=min(size, 90), seed=4)
    if n_classes == 2:
        w, b = w[1:] - w[:1], b[1:] - b[:1]
    assert np.allclose(model.coef_, w, atol=2e-4 * np.abs(w).max())
    assert np.allclose(model.intercept_, b, atol=2e-4)
    assert np.array_equal(model.classes_, classes)


def test_every_learning_rate_sees_the_same_batches():
    X, y = features(60, 12, 3)
    _, codes = np.unique(y, return_inverse=True)
    head = LINEAR_PROBE.with_settings(max_iter=50, batch_size=16)
    rows = X.astype(np.float32)
    together = descend(head, rows, codes, (0.001, 0.05), 3, "cpu")
    for i, lr in enumerate((0.001, 0.05)):
        alone = descend(head, rows, codes, (lr,), 3, "cpu")
        assert np.allclose(together[0][i], alone[0][0], atol=1e-5)
        assert np.allclose(together[1][i], alone[1][0], atol=1e-5)


def test_fewer_rows_than_features_are_trained_in_their_span():
    X, y = features(40, 300, 3)
    space = RowSpace.of(X)
    model = LINEAR_PROBE.with_settings(lr=0.1, max_iter=300).fit(space, y, FitOptions()).model
    _, dual = space.coordinates
    _, codes = np.unique(y, return_inverse=True)
    w, b = by_torch(
        X.astype(np.float32), codes, 0.1, n_steps=300, size=40, seed=0, basis=space.combine(dual)
    )
    assert np.allclose(model.coef_, w, atol=1e-3 * np.abs(w).max())
    assert np.allclose(model.intercept_, b, atol=1e-3)


def test_the_learning_rate_is_chosen_on_rows_that_are_not_fitted():
    X, y = features(100, 30, 3, noise=3.0)
    head = LINEAR_PROBE.with_settings(max_iter=100, lr=(1e-5, 1e-3, 0.1))
    fit = head.fit(RowSpace.of(X), y, FitOptions(seed=1))
    assert fit.cv.parameter == "lr"
    assert fit.cv.C == (1e-5, 1e-3, 0.1)
    lr = fit.cv.C[fit.cv.best]
    assert fit.notes == (f"lr={lr:g} chosen on 20 of 100 training images",)
    fixed = head.with_settings(lr=lr).fit(RowSpace.of(X), y, FitOptions(seed=1))
    assert np.array_equal(fixed.model.coef_, fit.model.coef_)


def test_a_learning_rate_that_diverges_is_not_chosen():
    X, y = features(100, 30, 3)
    both = LINEAR_PROBE.with_settings(max_iter=60, lr=(0.01, 3e38))
    fit = both.fit(RowSpace.of(X), y, FitOptions())
    assert np.isfinite(fit.model.coef_).all()
    with pytest.raises(ProtocolError, match="diverged with every lr"):
        both.with_settings(lr=3e38).fit(RowSpace.of(X), y, FitOptions())


def test_one_image_a_class_leaves_nothing_to_choose_on():
    X, y = features(3, 30, 3)
    fit = LINEAR_PROBE.with_settings(max_iter=20).fit(RowSpace.of(X), y, FitOptions())
    assert fit.cv is None
    assert fit.notes[0].startswith("lr not searched, lr=0.001: ")


@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_a_device_the_layer_is_the_same(device):
    X, y = features(80, 40, 3, noise=3.0)
    head = LINEAR_PROBE.with_settings(max_iter=100, lr=0.05)
    here = head.fit(RowSpace.of(X), y, FitOptions(seed=2)).model
    there = head.fit(RowSpace(Pool(X, device), np.arange(len(X))), y, FitOptions(seed=2)).model
    assert np.allclose(there.coef_, here.coef_, atol=1e-4 * np.abs(here.coef_).max())

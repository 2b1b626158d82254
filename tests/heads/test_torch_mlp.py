"""The network of torch: what is built, what is trained, and that numpy predicts the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_data import features
from scipy.special import softmax
from skorch.callbacks import Callback, LRScheduler

from featx.errors import ProtocolError, UsageError
from featx.heads import FitOptions, RowSpace, torch_mlp
from featx.heads.torch_mlp import MLP_TORCH

SMALL = MLP_TORCH.with_settings(hidden=(16, 8), max_epochs=12, patience=3, device="cpu", lr=0.01)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Layers this small are slower on two threads, and much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def networks(monkeypatch):
    """Networks of torch that a fit has made, trained."""
    made = []

    def keep(*args):
        made.append(build(*args))
        return made[-1]

    build = torch_mlp._network
    monkeypatch.setattr(torch_mlp, "_network", keep)
    return made


@pytest.mark.parametrize(
    ("batch_norm", "activation"),
    [("none", "gelu"), ("input", "tanh"), ("before", "relu"), ("after", "sigmoid")],
)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_numpy_predicts_what_torch_does(networks, batch_norm, activation, n_classes):
    X, y = features(90, 40, n_classes, noise=0.5)
    head = SMALL.with_settings(
        batch_norm=batch_norm, activation=activation, batch_size=8, inputs="features"
    )
    model = head.fit(RowSpace.of(X), y, FitOptions(scale="l2")).model
    new, _ = features(30, 40, n_classes, seed=1)
    new[:, 0] = 0.1  # always 0 in training, so that its variance there is next to nothing
    rows = new / np.linalg.norm(new, axis=1, keepdims=True)
    rows -= (X / np.linalg.norm(X, axis=1, keepdims=True)).mean(axis=0)
    network = networks[0].eval()
    with torch.no_grad():
        logits = network(torch.tensor(rows)).numpy()
    scores = model.decision_function(new)
    expected = logits[:, 1] - logits[:, 0] if n_classes == 2 else logits
    assert scores.dtype == np.float64
    assert np.allclose(scores, expected, atol=1e-5)
    assert np.array_equal(model.predict(new), logits.argmax(axis=1))
    assert np.allclose(model.probabilities(scores), softmax(logits, axis=1), atol=1e-5)


@pytest.mark.parametrize("n_features", [30, 200])
def test_on_principal_axes_numpy_predicts_what_torch_does(networks, n_features):
    X, y = features(60, n_features, 3, noise=0.5)
    space = RowSpace.of(X)
    model = SMALL.with_settings(batch_norm="after").fit(space, y, FitOptions()).model
    rows, _ = space.centred
    assert rows.shape[1] <= 60
    with torch.no_grad():
        seen = torch.tensor(rows / np.sqrt(np.mean(rows**2)), dtype=torch.float32)
        logits = networks[0].eval()(seen).numpy()
    assert np.allclose(model.decision_function(X), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"hidden": (512, 256), "dropout": (0.2, 0)},  # document 003
            "Linear 512, ReLU, Dropout 0.2, Linear 256, ReLU, Linear 3",
        ),
        (
            {"hidden": (400, 256, 256), "dropout": 0.2, "batch_norm": "input"},  # document 001
            "BatchNorm1d 9, Linear 400, ReLU, Dropout 0.2, Linear 256, ReLU, Dropout 0.2, "
            "Linear 256, ReLU, Dropout 0.2, Linear 3",
        ),
        (
            {"hidden": (256, 128, 64), "dropout": 0.5, "batch_norm": "before"},  # document 002
            "BatchNorm1d 9, Linear 256, ReLU, Dropout 0.5, BatchNorm1d 256, Linear 128, ReLU, "
            "Dropout 0.5, BatchNorm1d 128, Linear 64, ReLU, Dropout 0.5, Linear 3",
        ),
        (
            {"hidden": 4, "dropout": 0, "batch_norm": "after", "activation": "tanh"},
            "Linear 4, BatchNorm1d 4, Tanh, Linear 3",
        ),
    ],
)
def test_the_tops_of_the_documents(settings, expected):
    network = torch_mlp._network(MLP_TORCH.with_settings(**settings), 9, 3)
    sizes = ("out_features", "num_features", "p")
    found = [
        " ".join([type(p).__name__, *(str(getattr(p, s)) for s in sizes if hasattr(p, s))])
        for p in network
    ]
    assert ", ".join(found) == expected


def test_it_learns_and_stops_early_with_the_best_weights():
    X, y = features(200, 30, 3, noise=1.0)
    new, truth = features(200, 30, 3, noise=1.0)
    head = SMALL.with_settings(max_epochs=200, dropout=0)
    fit = head.fit(RowSpace.of(X), y, FitOptions(scale="standard"))
    assert fit.converged
    assert fit.n_iter < 200
    best = fit.n_iter - head.patience
    (note,) = fit.notes
    assert note.startswith(("stopped early (20 of 200 rows", "stopped early (21 of"))
    assert note.endswith(f" watched) after {fit.n_iter} epochs: weights of epoch {best}")
    assert np.mean(fit.model.predict(new) == truth) > 0.9


def test_the_weights_are_those_of_the_best_epoch(monkeypatch):
    """Training for exactly that many epochs, on the same rows, gives the same weights."""
    X, y = features(120, 30, 3, noise=3.0)
    space, options = RowSpace.of(X), FitOptions()
    stopped = SMALL.with_settings(max_epochs=50).fit(space, y, options)
    best = int(stopped.notes[0].rsplit(" ", 1)[1])
    short = SMALL.with_settings(max_epochs=best).fit(space, y, options)
    assert best == stopped.n_iter - 3
    for first, second in zip(stopped.model.coefs_, short.model.coefs_, strict=True):
        assert np.array_equal(first, second)
    assert not short.converged
    assert "not stopped early" in short.notes[0]


def test_the_watching_rows_are_not_fitted_and_keep_groups(monkeypatch):
    X, y = features(60, 10, 2)
    groups = np.arange(60) // 4
    seen = []
    train = torch_mlp._train
    monkeypatch.setattr(torch_mlp, "_train", lambda *a: seen.append(a[3]) or train(*a))
    SMALL.fit(RowSpace.of(X), y, FitOptions(groups=groups))
    ((fitted, watching),) = seen
    assert not set(groups[fitted]) & set(groups[watching])
    assert sorted([*fitted, *watching]) == list(range(60))
    assert set(y[watching]) == set(y[fitted]) == {0, 1}


def test_the_seed_decides_and_the_state_of_torch_is_left_alone():
    X, y = features(60, 30, 3)
    space = RowSpace.of(X)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    head = SMALL.with_settings(early_stopping=False)
    fits = [head.fit(space, y, FitOptions(seed=1)).model.coefs_[0]]
    assert torch.equal(torch.rand(3), expected)
    fits += [head.fit(space, y, FitOptions(seed=s)).model.coefs_[0] for s in (1, 2)]
    assert np.array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


def test_without_rows_to_spare_all_are_trained():
    X, y = features(4, 10, 4)
    fit = SMALL.with_settings(batch_norm="input").fit(RowSpace.of(X), y, FitOptions())
    assert fit.n_iter == 12
    assert fit.converged
    assert "no rows to spare" in fit.notes[0]
    plain = SMALL.with_settings(early_stopping=False).fit(RowSpace.of(X), y, FitOptions())
    assert plain.notes == ()


def test_a_last_batch_of_one_row_does_not_hurt_batch_normalisation():
    X, y = features(33, 10, 3)
    head = SMALL.with_settings(batch_norm="before", batch_size=16, early_stopping=False)
    assert head.fit(RowSpace.of(X), y, FitOptions()).n_iter == 12


@pytest.mark.parametrize("scheduler", ["StepLR", "CosineAnnealingLR", "ReduceLROnPlateau"])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_schedulers_lower_the_learning_rate(scheduler, early_stopping, monkeypatch):
    X, y = np.random.default_rng(0).normal(size=(60, 30)), np.arange(60) % 3
    rates = []
    after = LRScheduler.on_epoch_end

    def watch(self, net, **options):
        rates.append(net.optimizer_.param_groups[0]["lr"])
        after(self, net, **options)

    monkeypatch.setattr(LRScheduler, "on_epoch_end", watch)
    head = SMALL.with_settings(
        scheduler=scheduler, early_stopping=early_stopping, step_size=2, lr=0.3, patience=12
    )
    head.fit(RowSpace.of(X), y, FitOptions())
    epochs = np.arange(12)
    if scheduler == "StepLR":
        assert np.allclose(rates, 0.3 * 0.1 ** (epochs // 2))
    elif scheduler == "CosineAnnealingLR":
        assert np.allclose(rates, 0.15 * (1 + np.cos(np.pi * epochs / 12)))
    else:
        assert rates[0] == 0.3
        assert np.all(np.diff(rates) <= 0)
        assert rates[-1] < 0.1


@pytest.mark.parametrize(("step_size", "wanted"), [(1, [1, 1, 0.5, 0.25]), (2, [1, 1, 1, 0.5])])
def test_a_plateau_is_so_many_epochs_without_a_better_loss(step_size, wanted):
    X, y = np.random.default_rng(0).normal(size=(60, 30)), np.arange(60) % 3
    # It learns nothing, and the first loss is the best.
    settings = {"scheduler": "ReduceLROnPlateau", "step_size": step_size, "gamma": 0.5}
    head = SMALL.with_settings(optimizer="SGD", lr=1e-30, max_epochs=4, **settings)
    rates = []
    original = torch_mlp._callbacks

    class Watch(Callback):
        def on_epoch_begin(self, net, **_):
            rates.append(net.optimizer_.param_groups[0]["lr"] / 1e-30)

    def watched(*args, **options):
        return [*original(*args, **options), ("watch", Watch())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_mlp, "_callbacks", watched)
        head.fit(RowSpace.of(X), y, FitOptions())
    assert np.allclose(rates, wanted)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adamax", "RMSprop", "NAdam"])
def test_optimizers_come_by_name(name):
    X, y = features(30, 10, 2)
    head = SMALL.with_settings(optimizer=name, max_epochs=2, weight_decay=0.1)
    assert np.isfinite(head.fit(RowSpace.of(X), y, FitOptions()).model.coefs_[0]).all()


def test_balanced_classes_weigh_the_same():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(210, 4)) + 0.3 * (np.arange(210) < 10)[:, None]
    y = (np.arange(210) < 10).astype(np.int64)
    space, head = RowSpace.of(X), SMALL.with_settings(early_stopping=False)
    rare = [
        (head.fit(space, y, FitOptions(class_weight=w)).model.predict(X) == 1).mean()
        for w in (None, "balanced")
    ]
    assert rare[0] < 0.1 < rare[1]


def test_what_is_wrong_is_told():
    X, y = features(30, 10, 2)
    space = RowSpace.of(X)
    with pytest.raises(UsageError, match="unknown optimizer 'Adm': did you mean Adam"):
        SMALL.with_settings(optimizer="Adm").fit(space, y, FitOptions())
    with pytest.raises(UsageError, match="choose auto, cpu, cuda or cuda:N"):
        SMALL.with_settings(device="gpux").fit(space, y, FitOptions())
    with pytest.raises(UsageError, match="3 numbers for 2 hidden layers"):
        SMALL.with_settings(dropout=(0.1, 0.2, 0.3))
    with pytest.raises(UsageError, match="unknown activation of mlp-torch 'rely': did you mean"):
        SMALL.with_settings(activation="rely")
    for stops in (True, False):
        head = SMALL.with_settings(optimizer="SGD", lr=1e30, early_stopping=stops)
        with pytest.raises(ProtocolError, match="diverged"):
            head.fit(space, y, FitOptions())


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same():
    X, y = features(200, 30, 3, noise=1.0)
    for device in ("cpu", "cuda"):
        model = SMALL.with_settings(device=device).fit(RowSpace.of(X), y, FitOptions()).model
        assert np.mean(model.predict(X) == y) > 0.9

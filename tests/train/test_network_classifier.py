"""The classifier against a bare loop, and as a scikit-learn estimator."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import RandomizedSearchCV, cross_val_score
from train_data import TinyNet, classifier, coloured

from featx.errors import ProtocolError, UsageError
from featx.networks import FineTuned
from featx.preprocess import Preprocessing
from featx.train.classifier import Callback, NetworkClassifier
from featx.train.images import Augment, Batches, PixelSet
from featx.train.optimisation import get_optimizer

MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.21, 0.22)
AUGMENT = Augment(flip=True, crop=1, rotation=0.05, zoom=0.1)


def weights_of(net: NetworkClassifier) -> list[np.ndarray]:
    return [value.numpy().copy() for value in net.module_.state_dict().values()]


def is_same(a: NetworkClassifier, b: NetworkClassifier) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


def preprocessing() -> Preprocessing:
    return Preprocessing(12, 12, "bilinear", MEAN, STD)


def test_a_training_is_that_of_a_bare_loop() -> None:
    X, y = coloured()
    net = classifier(partial(TinyNet, seed=3), mean=MEAN, std=STD, max_epochs=3, batch_size=32)
    orders: list[np.ndarray] = []
    given = net._permutation
    net._permutation = lambda n: orders.append(given(n)) or orders[-1]
    net.fit(X, y)

    bare = TinyNet(seed=3)
    images = preprocessing().normalise(torch.from_numpy(X)).contiguous()
    labels = torch.from_numpy(y)
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01)
    losses = []
    for order in orders:
        total = 0.0
        for part in torch.from_numpy(order).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(bare(images[part]), labels[part])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        losses.append(total / len(y))
    assert len(orders) == 3
    assert not np.array_equal(orders[0], orders[1])
    for ours, theirs in zip(weights_of(net), bare.state_dict().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    np.testing.assert_allclose([line["train_loss"] for line in net.history], losses, rtol=1e-6)


def test_it_learns_and_predicts_as_an_estimator() -> None:
    X, y = coloured(n=40)
    net = classifier(max_epochs=6, validation=0.2, patience=3, augment=AUGMENT)
    net.fit(X, y)
    assert net.score(X, y) > 0.9
    p = net.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    logits = net.decision_function(X)
    assert logits.dtype == np.float64
    np.testing.assert_array_equal(net.predict(X), logits.argmax(axis=1))
    np.testing.assert_array_equal(logits, net.decision_function(X))  # nothing random
    again = clone(net).fit(X, y)
    assert is_same(net, again)
    other = clone(net).set_params(seed=1).fit(X, y)
    assert not is_same(net, other)
    assert cross_val_score(clone(net), X, y, cv=2).min() > 0.5


def test_the_generator_of_torch_is_left_as_it_was() -> None:
    X, y = coloured()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    classifier(max_epochs=1, augment=AUGMENT).fit(X, y)
    assert torch.equal(torch.rand(3), wanted)


def test_early_stopping_gives_back_the_best_weights() -> None:
    X, y = coloured()
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < 0.5, rng.integers(0, 3, len(y)), y)  # so that it overfits
    net = classifier(validation=0.3, patience=4, max_epochs=60, lr=0.02)
    net.fit(X, y)
    losses = [line["valid_loss"] for line in net.history]
    assert net.best_epoch_ == int(np.argmin(losses)) + 1
    assert len(losses) == net.best_epoch_ + 4 < 60
    assert net.has_stopped_
    _, watching = net.split(X, y)
    assert watching is not None
    logits = torch.from_numpy(net.decision_function(watching))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(watching.labels))
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


def test_the_watching_part_is_stratified_and_not_fitted() -> None:
    X, y = coloured(n=20)
    fitted, watching = classifier(validation=0.25).split(X, y)
    assert watching is not None
    assert np.bincount(watching.labels).tolist() == [5, 5, 5]
    assert sorted([*fitted.rows, *watching.rows]) == list(range(60))


def fine_tuned(n_classes: int = 3, seed: int = 0) -> FineTuned:
    net = TinyNet(n_classes, seed)
    return FineTuned(net.body, net.top)


def tuner(**options: Any) -> NetworkClassifier:
    usual = {"optimizer": torch.optim.SGD, "lr": 0.1, "max_epochs": 2}
    return classifier(fine_tuned, **usual | options)


def changed(before: FineTuned, after: FineTuned) -> set[str]:
    old = before.state_dict()
    return {
        name
        for name, value in after.state_dict().items()
        if not name.endswith("num_batches_tracked") and not torch.equal(value, old[name])
    }


# A normalisation takes away what a bias before it adds: its gradient is zero, but for rounding.
WITHOUT_GRADIENT = {"body.0.bias", "body.3.bias"}


def test_what_is_frozen_does_not_move_its_statistics_neither() -> None:
    X, y = coloured()
    start = fine_tuned()
    names = {name for name in start.state_dict() if not name.endswith("num_batches_tracked")}
    everything = changed(start, tuner().fit(X, y).module_)
    assert everything | WITHOUT_GRADIENT == names
    half = changed(start, tuner(freeze="half").fit(X, y).module_)
    learning = {name for name in names if not name.startswith(("body.0", "body.1"))}
    assert half <= learning
    assert half | WITHOUT_GRADIENT == learning | WITHOUT_GRADIENT
    assert changed(start, tuner(freeze="all").fit(X, y).module_) == {"top.weight", "top.bias"}


def test_unfreezing_after_an_epoch_trains_the_body_from_then_on() -> None:
    X, y = coloured()
    start = fine_tuned()
    seen = []

    class Look(Callback):
        def on_epoch_end(self, net: NetworkClassifier) -> None:
            seen.append(changed(start, net.module_))

    tuner(freeze="all", unfreeze_after=2, max_epochs=3, callbacks=[Look()]).fit(X, y)
    assert seen[0] == seen[1] == {"top.weight", "top.bias"}
    assert {"body.0.weight", "body.1.running_mean"} <= seen[2]


def test_backbone_and_top_have_rates_of_their_own() -> None:
    X, y = coloured()
    slow = tuner(backbone_lr=1e-12, max_epochs=1).fit(X, y)
    before, after = fine_tuned(), slow.module_
    assert torch.allclose(after.body[0].weight, before.body[0].weight, atol=1e-9)
    assert not torch.allclose(after.top.weight, before.top.weight, atol=1e-3)
    n = sum(len(group["params"]) for group in slow.optimizer_.param_groups)
    assert n == len(list(after.parameters()))


@pytest.mark.parametrize("name", ["step", "cosine", "plateau"])
def test_schedules_change_the_rate_after_each_epoch(name: str) -> None:
    X, y = coloured()
    net = classifier(schedule=name, step_size=1, gamma=0.5, max_epochs=4, lr=1e-9).fit(X, y)
    rates = np.array([line["lr"] for line in net.history]) / 1e-9
    wanted = {"step": [1, 0.5, 0.25, 0.125], "cosine": (1 + np.cos(np.pi * np.arange(4) / 4)) / 2}
    if name in wanted:
        np.testing.assert_allclose(rates, wanted[name])
    else:
        assert rates[0] == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_too_and_gives_other_bits(precision: str) -> None:
    X, y = coloured()
    full, half = (classifier(precision=p, max_epochs=6).fit(X, y) for p in ("fp32", precision))
    assert half.score(X, y) > 0.9
    assert half.module_.top.weight.dtype == torch.float32
    assert not is_same(full, half)


def test_channels_last_is_a_matter_of_memory_only() -> None:
    X, y = coloured()
    usual, last = (
        classifier(channels_last=c, optimizer=torch.optim.SGD).fit(X, y) for c in (False, True)
    )
    weight = last.module_.body[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(usual.decision_function(X), last.decision_function(X), atol=1e-3)


def test_a_loss_beyond_all_bounds_is_told() -> None:
    X, y = coloured()
    net = classifier(optimizer=get_optimizer("SGD", 0.99), lr=1e30)
    with pytest.raises(ProtocolError, match="take a lower lr"):
        net.fit(X, y)


def test_ctrl_c_is_passed_on() -> None:
    class Stop(Callback):
        def on_epoch_end(self, net: NetworkClassifier) -> None:
            raise KeyboardInterrupt

    X, y = coloured()
    with pytest.raises(KeyboardInterrupt):
        classifier(callbacks=[Stop()]).fit(X, y)


def test_a_last_batch_of_one_image_is_left_out_of_training_only() -> None:
    X, y = coloured(n=11)  # 33 images
    net = classifier(batch_size=16, max_epochs=1)
    net.fit(X, y)
    assert len(net.decision_function(X)) == 33
    images = PixelSet.of(X, y)
    batches = Batches(images, 16, torch.device("cpu"), without_single=True)
    assert len(batches) == len(list(batches)) == 2
    assert len(list(Batches(images, 16, torch.device("cpu")))) == 3


def test_a_network_that_is_given_is_copied_and_settings_are_searched_as_parameters() -> None:
    X, y = coloured()
    given = TinyNet(seed=3)
    trained = classifier(given, max_epochs=1).fit(X, y)
    assert is_same(trained, classifier(partial(TinyNet, seed=3), max_epochs=1).fit(X, y))
    assert torch.equal(given.top.weight, TinyNet(seed=3).top.weight)
    space = {"module": [partial(TinyNet, seed=seed) for seed in range(2)], "lr": [0.01, 0.02]}
    search = RandomizedSearchCV(classifier(max_epochs=2), space, n_iter=3, cv=2, random_state=0)
    assert search.fit(X, y).best_params_.keys() == space.keys()


def test_what_cannot_be_fitted_is_told() -> None:
    X, y = coloured()
    with pytest.raises(UsageError, match="give y"):
        classifier().fit(X)
    with pytest.raises(UsageError, match="validation part"):
        classifier(patience=2).fit(X, y)
    with pytest.raises(NotFittedError):
        classifier().predict(X)


def test_other_images_than_decoded_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="uint8"):
        classifier().fit(np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int64))


def test_pixels_that_must_not_be_written_to_are_taken() -> None:
    X, y = coloured()
    frozen = X.copy()
    frozen.flags.writeable = False
    assert is_same(classifier().fit(X, y), classifier().fit(frozen, y))


def test_batches_that_are_not_resident_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = coloured(n=17)
    images = PixelSet.of(X, y).take(np.arange(50)[::-1])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    streamed = Batches(images, 8, torch.device("cpu"))
    streamed._is_resident = False
    found = list(streamed)
    assert len(found) == len(streamed) == 7
    np.testing.assert_array_equal(torch.cat([p for p, _ in found]).numpy(), X[:50][::-1])
    np.testing.assert_array_equal(torch.cat([n for _, n in found]).numpy(), y[:50][::-1])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from featx.train import images

    X, y = coloured(n=40)
    options = {"device": "cuda", "channels_last": True, "augment": AUGMENT, "precision": precision}
    resident = classifier(max_epochs=8, **copy.deepcopy(options)).fit(X, y)
    assert resident.score(X, y) > 0.9
    assert resident.scaler_.is_enabled() == (precision == "fp16")
    monkeypatch.setattr(images, "_fits", lambda device, n_bytes: False)
    streamed = classifier(max_epochs=8, **options).fit(X, y)
    assert streamed.score(X, y) > 0.9

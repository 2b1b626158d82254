"""Trainings of networks that are partly frozen: whatever is watched, broken off and unfrozen."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import train_data
from torch import Tensor, nn
from train_data import TinyNet, coloured

from featx.errors import UsageError
from featx.networks import FineTuned, get_network
from featx.progress import SILENT
from featx.train.checkpoint import Checkpoint
from featx.train.classifier import Callback, NetworkClassifier

State = dict[str, Tensor]


def build(name: str) -> nn.Module:
    if name == "tiny":
        return TinyNet(dropout=0.5)
    if name == "fine-tuned":
        whole = TinyNet(dropout=0.5)
        return FineTuned(whole.body, whole.top)
    return get_network(name).build(3, 12, seed=0)


NETWORKS = [
    "tiny",
    "fine-tuned",
    "auto-cnn(filters=4 blocks=2 dropout=0.3)",
    "cnn-search(convs=2 filters=32 neurons=128)",
]
# Dropout, and batch normalisation, below the last frozen layer.
FREEZE = ["1", "half", "all"]


def classifier(name: str, **options: Any) -> NetworkClassifier:
    return train_data.classifier(partial(build, name), **{"max_epochs": 3, **options})


def state_of(network: nn.Module) -> State:
    return {key: value.clone() for key, value in network.state_dict().items()}


def moved(before: State, after: State) -> set[str]:
    return {key for key, value in after.items() if not torch.equal(value, before[key])}


def held_by(net: NetworkClassifier) -> set[str]:
    """Names of all that belongs to modules whose parameters do not learn."""
    return {
        f"{path}.{key}"
        for path, module in net.module_.named_modules()
        if list(module.parameters(recurse=False))
        and not any(p.requires_grad for p in module.parameters(recurse=False))
        for key in module.state_dict()
    }


@pytest.mark.parametrize("validation", [0.0, 0.25])
@pytest.mark.parametrize("freeze", FREEZE)
@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_layers_are_as_they_were_and_all_others_move(
    name: str, freeze: str, validation: float
) -> None:
    X, y = coloured(n=20)
    start = state_of(build(name))
    net = classifier(name, freeze=freeze, validation=validation).fit(X, y)
    held = held_by(net)
    assert held
    assert moved(start, state_of(net.module_)) == set(start) - held


@pytest.mark.parametrize("validation", [0.0, 0.25])
@pytest.mark.parametrize("name", NETWORKS)
def test_modes_change_when_everything_begins_to_learn_and_at_no_other_time(
    name: str, validation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = coloured(n=20)
    seen: list[list[str]] = []
    logits = NetworkClassifier._logits

    def watched(net: NetworkClassifier, images: Tensor) -> Tensor:
        paths = [path for path, module in net.module_.named_modules() if module.training]
        if torch.is_grad_enabled() and (not seen or seen[-1] != paths):
            seen.append(paths)
        assert torch.is_grad_enabled() or not paths
        return logits(net, images)

    monkeypatch.setattr(NetworkClassifier, "_logits", watched)
    net = classifier(name, freeze="half", unfreeze_after=2, validation=validation)
    net.set_params(max_epochs=4).fit(X, y)
    first, second = seen
    assert set(first) < set(second) == {path for path, _ in net.module_.named_modules()}


def test_a_mode_that_somebody_else_set_lasts_no_epoch() -> None:
    class Meddle(Callback):
        def on_epoch_end(self, net: NetworkClassifier) -> None:
            net.module_.body.train()

    X, y = coloured(n=20)
    start = state_of(build("fine-tuned"))
    net = classifier("fine-tuned", freeze="all", callbacks=[Meddle()]).fit(X, y)
    assert moved(start, state_of(net.module_)) == {"top.weight", "top.bias"}


class Stop(Callback):
    """Breaks off behind an epoch, once its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, net: NetworkClassifier) -> None:
        if len(net.history) == self.epoch:
            net.callbacks[0].wait()
            raise KeyboardInterrupt


@pytest.mark.parametrize("unfreeze_after", [None, 1, 3])
@pytest.mark.parametrize("validation", [0.0, 0.25])
@pytest.mark.parametrize("name", ["tiny", "fine-tuned", NETWORKS[2]])
def test_a_training_that_is_broken_off_ends_with_the_same_bits(
    tmp_path: Path, name: str, validation: float, unfreeze_after: int | None
) -> None:
    X, y = coloured(n=20)

    def net(path: Path, *more: Callback) -> NetworkClassifier:
        return classifier(
            name,
            freeze="half",
            unfreeze_after=unfreeze_after,
            validation=validation,
            max_epochs=5,
            callbacks=[Checkpoint(path, "key", SILENT), *more],
        )

    whole = net(tmp_path / "whole.safetensors").fit(X, y)
    for epoch in (1, 2, 4):
        with pytest.raises(KeyboardInterrupt):
            net(tmp_path / "broken.safetensors", Stop(epoch)).fit(X, y)
    resumed = net(tmp_path / "broken.safetensors").fit(X, y)
    assert len(resumed.history) == 5
    assert not moved(state_of(whole.module_), state_of(resumed.module_))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backbone_lr": 0.1, "freeze": "all"}, r"backbone_lr is 0.1, and nothing below the top"),
        ({"backbone_lr": 0.1, "freeze": "4"}, r"freeze is 4, 4 of 4 layers"),
        ({"unfreeze_after": 1, "freeze": "0"}, r"unfreeze_after is 1, and no layer is frozen"),
        ({"unfreeze_after": 1}, r"freeze is none"),
    ],
)
def test_settings_that_change_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    X, y = coloured(n=5)
    with pytest.raises(UsageError, match=told):
        classifier("fine-tuned", **options).fit(X, y)
    # What learns later has a use for them.
    classifier("fine-tuned", backbone_lr=0.1, freeze="all", unfreeze_after=1).initialize()

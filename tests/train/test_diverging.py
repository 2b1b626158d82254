"""Trainings that leave the finite numbers: nothing of them is kept, whatever went first."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_data import classifier, coloured

from featx.errors import ProtocolError
from featx.progress import SILENT
from featx.train import TrainPlan, run_train
from featx.train.checkpoint import Checkpoint, read_checkpoint
from featx.train.optimisation import get_loss


class Lengths(nn.Module):
    """Lengths of maps, whose gradient is none where a map is zero: in the last step of an epoch."""

    def __init__(self, epoch: int = 1, steps: int = 2) -> None:
        super().__init__()
        self.conv, self.top = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.steps_left = epoch * steps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.steps_left -= self.training
        maps = self.conv(images)
        if self.training and not self.steps_left:
            maps = maps * 0  # all dead, as behind too long a step
        logits: torch.Tensor = self.top(maps.square().sum((2, 3)).sqrt())
        return logits


SGD: dict[str, Any] = {"optimizer": torch.optim.SGD, "batch_size": 30}


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_weights_that_the_last_step_of_an_epoch_made_infinite_are_told(
    tmp_path: Path, validation: float
) -> None:
    X, y = coloured(n=20)
    path = tmp_path / "checkpoint.safetensors"
    with Checkpoint(path, "key", SILENT) as checkpoint:
        net = classifier(
            partial(Lengths, epoch=2),
            **SGD,
            max_epochs=2,
            validation=validation,
            callbacks=[checkpoint],
        )
        with pytest.raises(ProtocolError, match=r"no longer finite after epoch 2; take"):
            net.fit(X, y)
    state = read_checkpoint(path, "key")
    assert len(state["history"]) == 1
    assert all(value.isfinite().all() for value in state["network"].values())


def test_finite_weights_whose_scores_are_not_are_told() -> None:
    X, y = coloured(n=5)
    net = classifier(partial(Lengths, epoch=0), **SGD, max_epochs=1).fit(X, y)
    with torch.no_grad():
        net.module_.top.weight.fill_(3e38)
    for method in ("decision_function", "predict", "predict_proba"):
        with pytest.raises(ProtocolError, match="scores of images are not finite"):
            getattr(net, method)(X)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_that_diverges_in_its_last_epoch_keeps_nothing(
    tmp_path: Path, epochs: int
) -> None:
    asked = TrainPlan(
        network="cnn-veer",
        data="digits",
        per_class=(3,),
        test_per_class=2,
        epochs=epochs,
        patience=0,
        validation=0.0,
        optimizer="SGD",
        lr=1e38,
        workers=0,
        device="cpu",
        save=True,
        reports_dir=str(tmp_path / "reports"),
    )
    for _ in range(2):
        with pytest.raises(ProtocolError, match="training diverged"):
            run_train(asked, SILENT, lambda line: None)
    for folder in ("networks", "fits", "curves"):
        assert not list((tmp_path / "reports").glob(f"{folder}/*"))
    assert not (tmp_path / "reports" / "results.csv").exists()


def test_the_binary_loss_of_logits_that_are_none_is_none() -> None:
    loss = get_loss("binary-cross-entropy")()
    for value in (float("nan"), float("inf")):
        logits = torch.tensor([[value, 0.0], [1.0, 2.0]], requires_grad=True)
        assert loss(logits, torch.tensor([0, 1])).isnan()
    finite = torch.tensor([[80.0, 0.0], [1.0, 2.0]])
    assert loss(finite, torch.tensor([1, 1])).dtype == torch.float32

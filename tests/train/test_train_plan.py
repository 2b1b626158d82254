from __future__ import annotations

from typing import Any

import pytest

from featx.errors import UsageError
from featx.train import TrainPlan


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "adam"}, "did you mean Adam"),
        ({"scheduler": "steps"}, "did you mean step"),
        ({"loss": "mse"}, "cross-entropy"),
        ({"normalise": "cifar10"}, "did you mean cifar"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"on_leak": "tell"}, "unknown on_leak"),
        ({"input_size": "big"}, "give pixels"),
        ({"input_size": 0}, "must be 1 or more"),
        ({"per_class": (0,)}, "numbers above 0"),
        ({"per_class": ("half",)}, "numbers above 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"backbone_lr": -1.0}, "backbone_lr is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"momentum": 1.0}, "below 1"),
        ({"holdout": 1.0}, "above 0, and below 1"),
        ({"validation": 1.0}, "below 1"),
        ({"validation": 0.0}, "--patience 0"),
        ({"unfreeze_after": 2}, "--freeze half"),
        ({"unfreeze_after": 30, "freeze": "half"}, "--unfreeze-after 30 with 30 epochs"),
        ({"unfreeze_after": 31, "freeze": "half"}, "give fewer, or more --epochs"),
        ({"momentum": 0.9}, "Adam has no momentum"),
        ({"optimizer": "Nesterov", "momentum": 0.0}, "above 0"),
        ({"optimizer": "SGD", "momentum": 0.9, "search": 2}, "search chooses"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        TrainPlan(network="auto-cnn", **options)


def test_what_is_asked_leaves_the_machine_out() -> None:
    plan = TrainPlan(network="auto-cnn")
    same = TrainPlan(network="auto-cnn", device="cpu", workers=3, save=True, reports_dir="x")
    assert plan.asked() == same.asked()
    for options in ({"lr": 0.1}, {"augment": ("flip",)}, {"search": 3}, {"freeze": "half"}):
        assert TrainPlan(network="auto-cnn", **options).asked() != plan.asked()

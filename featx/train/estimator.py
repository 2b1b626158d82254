"""From a plan to the classifier that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from featx.train.augment import Augment
from featx.train.classifier import NetworkClassifier
from featx.train.networks import Recipe, build
from featx.train.optimisation import get_loss, get_optimizer
from featx.train.plan import TrainPlan
from featx.train.question import TrainQuestion

__all__ = ["check_frozen", "make_classifier"]

Classifier = TypeVar("Classifier", bound=NetworkClassifier)


def check_frozen(plan: TrainPlan, recipe: Recipe) -> None:
    """Refuse settings of frozen layers that do not fit the network, before images are decoded."""
    NetworkClassifier(
        build,
        module__recipe=recipe,
        module__n_classes=2,
        module__seed=plan.seed,
        freeze=plan.freeze,
        unfreeze_after=plan.unfreeze_after,
        backbone_lr=plan.backbone_lr,
    ).initialize()


def make_classifier(
    question: TrainQuestion,
    seed: int,
    device: torch.device,
    kind: Callable[..., Classifier],
    **options: Any,
) -> Classifier:
    """Make the classifier of a training, not yet fitted."""
    plan, recipe = question.plan, question.recipe
    return kind(
        build,
        module__recipe=recipe,
        module__n_classes=len(question.class_names),
        module__seed=seed,
        criterion=get_loss(plan.loss),
        optimizer=get_optimizer(plan.optimizer, plan.momentum, plan.weight_decay),
        lr=plan.lr,
        backbone_lr=plan.backbone_lr,
        schedule=plan.scheduler,
        step_size=plan.step_size,
        gamma=plan.gamma,
        max_epochs=plan.epochs,
        patience=plan.patience,
        validation=plan.validation,
        batch_size=plan.batch_size,
        mean=recipe.preprocessing.mean,
        std=recipe.preprocessing.std,
        augment=Augment.parse(plan.augment),
        freeze=plan.freeze,
        unfreeze_after=plan.unfreeze_after,
        precision=question.precision,
        channels_last=plan.channels_last,
        device=str(device),
        seed=seed,
        classes=list(range(len(question.class_names))),
        **options,
    )

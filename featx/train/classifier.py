"""A network as a scikit-learn classifier of decoded images, trained by skorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from featx.arithmetic import refuse_forced_tf32, true_float32
from featx.errors import ProtocolError, UsageError
from featx.fewshot import split_holdout
from featx.networks import freeze
from featx.networks.finetuned import hold_still
from featx.networks.freezing import statistics_of
from featx.train.augment import Augment
from featx.train.batches import Batches, PixelSet
from featx.train.callbacks import BestWeights, Schedule

__all__ = ["NetworkClassifier"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The last word of each generator's key.
_ORDER, _AUGMENT, _DROPOUT = 0, 1, 2

Pixels = NDArray[np.uint8] | PixelSet
Batch = tuple[Tensor, Tensor]


class NetworkClassifier(NeuralNetClassifier):  # type: ignore[misc]
    """Train a network end to end.

    Everything random is keyed by `seed` and the number of the epoch, so that a training that is
    taken up again after some epochs is the same as one without a break (on the CPU, to the last
    bit).

    Parameters
    ----------
    module : callable or torch.nn.Module
        Gives the network, from ``module__...``: logits (n, n_classes) of normalised images
        (n, 3, height, width). Parameters under its attribute ``top`` learn with `lr`, the others
        with `backbone_lr`; without such an attribute, all with `lr`.
    criterion : type, default=torch.nn.CrossEntropyLoss
        Loss of logits and labels.
    mean, std : tuple of 3 floats
        Subtracted from, then divided into, RGB values between 0 and 1.
    augment : Augment
        Random changes of training images.
    freeze : str, default="none"
        As `featx.networks.freeze` takes it.
    unfreeze_after : int, optional
        Epochs after which everything learns; there must be something that does not.
    backbone_lr : float, optional
        `lr` by default; something below the top must learn.
    schedule : str, default="none"
        As `featx.train.optimisation.make_scheduler` takes it, with `step_size` and `gamma`.
    validation : float, default=0.1
        Share of each class that is watched, not fitted; 0 for none.
    patience : int, default=0
        Epochs without a better loss of that part before training stops with the best weights;
        0 for no stop.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        Arithmetic of the forward pass.
    channels_last : bool, default=False
        Memory order of images and weights.
    seed : int, default=0
        Of everything random but the network's first weights.
    **options : object
        Everything else that `skorch.NeuralNetClassifier` takes: ``optimizer``, ``lr``,
        ``max_epochs``, ``batch_size``, ``device``, ``callbacks``.

    Attributes
    ----------
    first_frozen_, frozen_ : featx.networks.FrozenCount
        What is frozen in the first epoch, and now.
    history : skorch.history.History
        A line an epoch: ``train_loss`` and ``train_acc`` (means over the batches as they were
        trained, augmented), ``valid_loss``, ``valid_acc``, ``lr``, ``dur`` in seconds.

    Notes
    -----
    Losses and right answers are added up on the device and read once an epoch: skorch's record of
    every batch would make a GPU wait for it.
    """

    module_: nn.Module
    optimizer_: torch.optim.Optimizer
    callbacks_: list[tuple[str, Any]]

    def __init__(  # noqa: PLR0913 - scikit-learn wants every setting to be a parameter
        self,
        module: Any,
        *,
        criterion: Any = nn.CrossEntropyLoss,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        augment: Augment | None = None,
        freeze: str = "none",
        unfreeze_after: int | None = None,
        backbone_lr: float | None = None,
        schedule: str = "none",
        step_size: int = 5,
        gamma: float = 0.1,
        validation: float = 0.1,
        patience: int = 0,
        precision: str = "fp32",
        channels_last: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.mean, self.std, self.augment = mean, std, augment
        self.freeze, self.unfreeze_after, self.backbone_lr = freeze, unfreeze_after, backbone_lr
        self.schedule, self.step_size, self.gamma = schedule, step_size, gamma
        self.validation, self.patience = validation, patience
        self.precision, self.channels_last, self.seed = precision, channels_last, seed
        options = {"train_split": None, "predict_nonlinearity": _softmax, "verbose": 0} | options
        super().__init__(module, criterion=criterion, **options)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        from skorch.callbacks import EpochTimer

        return [("timer", EpochTimer()), ("schedule", Schedule()), ("best", BestWeights())]

    # What is fitted, and what watches.

    def get_dataset(self, X: Pixels, y: Any = None) -> PixelSet:
        """Make images a set of rows; see `skorch.NeuralNet.get_dataset`."""
        return X if isinstance(X, PixelSet) else PixelSet.of(X, y)

    def get_split_datasets(
        self, X: Pixels, y: Any = None, **options: Any
    ) -> tuple[PixelSet, PixelSet | None]:
        """Split off the part that watches, class by class."""
        images = self.get_dataset(X, y)
        if not self.validation:
            return images, None
        fitted, watching = split_holdout(images.labels, self.validation, seed=self.seed)
        return images.take(fitted), images.take(watching)

    def get_iterator(self, dataset: PixelSet, training: bool = False) -> Batches:
        """Hand out batches; see `skorch.NeuralNet.get_iterator`."""
        device = torch.device(self.device)
        if not training:
            return Batches(dataset, self.batch_size, device)
        return Batches(
            dataset, self.batch_size, device, order=self._permutation, without_single=True
        )

    def _key(self, what: int) -> int:
        """Seed of something random in the epoch that runs."""
        words = np.random.SeedSequence([self.seed, len(self.history), what]).generate_state(2)
        return int(words[0]) << 31 | int(words[1]) >> 1

    def _permutation(self, n: int) -> NDArray[np.int64]:
        return np.random.default_rng(self._key(_ORDER)).permutation(n)

    # The network.

    def initialize_module(self) -> Self:
        """Build the network, freeze it and bring it to the device."""
        super().initialize_module()
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        self.module_ = self.module_.to(memory_format=order)
        self.frozen_ = self.first_frozen_ = freeze(self.module_, self.freeze)
        self._check_frozen()
        device = torch.device(self.device)
        if self.precision == "fp32" and device.type == "cuda":
            refuse_forced_tf32("choose another precision")
        self.scaler_ = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.generator_ = torch.Generator(device)
        self._scale_ = [
            torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std)
        ]
        return self

    def _check_frozen(self) -> None:
        """Refuse settings that change nothing about this network."""
        n_frozen, n_layers = self.frozen_.n_frozen, self.frozen_.n_layers
        if self.unfreeze_after is not None and not n_frozen:
            raise UsageError(
                f"unfreeze_after is {self.unfreeze_after}, and no layer is frozen (freeze is "
                f"{self.freeze}): leave it out, or freeze some of the {n_layers} layers"
            )
        if self.backbone_lr is None or self.unfreeze_after is not None:
            return
        if hasattr(self.module_, "top") and not any(p.requires_grad for p in self._below_top()):
            raise UsageError(
                f"backbone_lr is {self.backbone_lr:g}, and nothing below the top learns (freeze is "
                f"{self.freeze}, {n_frozen} of {n_layers} layers): leave it out, freeze fewer "
                "layers, or give unfreeze_after"
            )

    def _below_top(self) -> list[nn.Parameter]:
        top = self.module_.get_submodule("top")
        of_top = {id(parameter) for parameter in top.parameters()}
        return [p for p in self.module_.parameters() if id(p) not in of_top]

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> Any:
        """Give the top and the backbone learning rates of their own."""
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        top = getattr(self.module_, "top", None)
        if self.backbone_lr is None or top is None:
            return args, kwargs
        below = self._below_top()
        groups = [{"params": list(top.parameters())}, {"params": below, "lr": self.backbone_lr}]
        return (groups,), kwargs

    def unfreeze(self) -> None:
        """Let every parameter learn from now on."""
        self.frozen_ = freeze(self.module_, "none")

    def _set_training(self, training: bool = True) -> None:
        # Whatever mode it is in: the mode of a network does not tell that of its parts.
        self.module_.train(training)
        hold_still(self.frozen_.modules)

    def _prepared(self, pixels: Tensor, *, training: bool) -> Tensor:
        """Scale as `featx.preprocess.Preprocessing.normalise` does, and augment."""
        changes = self.augment if training else None
        if changes is not None:
            pixels = changes.move(pixels, self.generator_)
        mean, std = self._scale_
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=order)
        values = values.div_(255).sub_(mean).div_(std)
        return values if changes is None else changes.warp(values, self.generator_)

    def infer(self, x: Tensor, **options: Any) -> Tensor:
        """Logits of images.

        Parameters
        ----------
        x : tensor of uint8, shape (n_images, height, width, 3)
            On the device.
        **options : object
            None is used.

        Returns
        -------
        tensor of float32, shape (n_images, n_classes)
        """
        return self._logits(self._prepared(x, training=False))

    def _logits(self, images: Tensor) -> Tensor:
        with true_float32(), self._autocast():
            logits: Tensor = self.module_(images)
        return logits.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, _DTYPES[self.precision])

    # Training.

    def fit(self, X: Pixels, y: Any = None, **options: Any) -> Self:
        """Train.

        Parameters
        ----------
        X : ndarray of uint8, shape (n_images, height, width, 3), or PixelSet
            Decoded images.
        y : ndarray of int64, shape (n_images,), optional
            Labels; a `PixelSet` has its own.
        **options : object
            None is used.

        Returns
        -------
        NetworkClassifier

        Raises
        ------
        ProtocolError
            If the loss or the weights are no longer finite.
        UsageError
            If a setting of what is frozen does not fit the network.
        """
        labels = X.labels if isinstance(X, PixelSet) else y
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            super().fit(X, labels)
        return self

    def partial_fit(self, X: Pixels, y: Any = None, classes: Any = None, **options: Any) -> Self:
        """Train on; unlike skorch's, Ctrl-C is passed on."""
        if not self.initialized_:
            self.initialize()
        self.notify("on_train_begin", X=X, y=y)
        self.fit_loop(X, y)
        self.notify("on_train_end", X=X, y=y)
        return self

    def fit_loop(self, X: Pixels, y: Any = None, epochs: int | None = None, **options: Any) -> Self:
        """Train the epochs that are missing, until one callback says that it is over."""
        self.check_data(X, y)
        fitted, watching = self.get_split_datasets(X, y)
        batches = self.get_iterator(fitted, training=True)
        watched = None if watching is None else self.get_iterator(watching)
        told = {"dataset_train": fitted, "dataset_valid": watching}
        last = self.max_epochs if epochs is None else len(self.history) + epochs
        while len(self.history) < last and not dict(self.callbacks_)["best"].is_over:
            self.notify("on_epoch_begin", **told)
            self._begin_epoch()
            self.run_single_epoch(batches, True, "train", self.train_step)
            self._check_weights()
            self.run_single_epoch(watched, False, "valid", self.validation_step)
            self.notify("on_epoch_end", **told)
        return self

    def _begin_epoch(self) -> None:
        torch.manual_seed(self._key(_DROPOUT))
        self.generator_.manual_seed(self._key(_AUGMENT))
        is_late = self.unfreeze_after is not None and len(self.history) > self.unfreeze_after
        if is_late and self.frozen_.n_frozen:
            self.unfreeze()
        self.history.record("lr", self.optimizer_.param_groups[0]["lr"])

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **options: Any
    ) -> None:
        """Pass over the images once; see `skorch.NeuralNet.run_single_epoch`."""
        if iterator is None:
            return
        losses, rights, counts = [], [], []
        self._set_training(training)
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch)
            losses.append(step["loss"])
            rights.append((step["y_pred"].argmax(1) == batch[1]).sum())
            counts.append(len(batch[1]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
        # One look at the device an epoch.
        loss = np.average(torch.stack(losses).cpu().numpy(), weights=counts)
        accuracy = int(torch.stack(rights).sum()) / sum(counts)
        if not np.isfinite(loss):
            raise self._diverged(f"the {prefix} loss of epoch {len(self.history)} is {loss}")
        self.history.record(f"{prefix}_loss", float(loss))
        self.history.record(f"{prefix}_acc", accuracy)

    def _check_weights(self) -> None:
        """Look behind the last step, whose loss was computed before it."""
        # Not at buffers of other kinds: masks are infinite on purpose.
        values = [*self.module_.parameters(), *statistics_of(self.module_)]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            epoch = len(self.history)
            raise self._diverged(f"the weights are no longer finite behind epoch {epoch}")

    def _diverged(self, what: str) -> ProtocolError:
        half = ", or --precision fp32 or bf16" if self.precision == "fp16" else ""
        return ProtocolError(
            f"training diverged: {what}; take a lower lr (it was {self.lr:g}){half}"
        )

    def train_step(self, batch: Batch, **options: Any) -> dict[str, Tensor]:
        """Learn from one batch.

        Parameters
        ----------
        batch : tuple of tensor
            Images, uint8, and labels, on the device.
        **options : object
            None is used.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``, without their graph.
        """
        pixels, labels = batch
        self.optimizer_.zero_grad()
        logits = self._logits(self._prepared(pixels, training=True))
        loss = self.get_loss(logits, labels)
        with true_float32():
            self.scaler_.scale(loss).backward()
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()
        return {"loss": loss.detach(), "y_pred": logits.detach()}

    def validation_step(self, batch: Batch, **options: Any) -> dict[str, Tensor]:
        """Loss and logits of one batch, without learning; see `train_step`."""
        pixels, labels = batch
        with torch.no_grad():
            logits = self.infer(pixels)
            return {"loss": self.get_loss(logits, labels), "y_pred": logits}

    # Predicting.

    def forward_iter(
        self, X: Pixels, training: bool = False, device: str = "cpu"
    ) -> Iterator[Tensor]:
        """Yield logits batch by batch, all finite; see `skorch.NeuralNet.forward_iter`."""
        self.check_is_fitted()
        self._set_training(training)
        for pixels, _ in self.get_iterator(self.get_dataset(X), training=False):
            with torch.set_grad_enabled(training):
                logits = self.infer(pixels).to(device)
            if not logits.isfinite().all():
                raise self._diverged("its scores of images are not finite")
            yield logits

    def decision_function(self, X: Pixels) -> NDArray[np.float64]:
        """Logits.

        Parameters
        ----------
        X : ndarray of uint8, shape (n_images, height, width, 3), or PixelSet
            Decoded images.

        Returns
        -------
        ndarray of float64, shape (n_images, n_classes)
        """
        parts = [logits.numpy().astype(np.float64) for logits in self.forward_iter(X)]
        return np.concatenate(parts)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)

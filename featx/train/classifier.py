"""`NetworkClassifier`: a network as a scikit-learn classifier of decoded images."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from featx.arithmetic import refuse_forced_tf32, true_float32
from featx.errors import ProtocolError, UsageError
from featx.fewshot import split_holdout
from featx.memory import reused_memory
from featx.networks import freeze
from featx.networks.freezing import keep_in_evaluation_mode, statistics_of
from featx.train.images import Augment, Batches, PixelSet
from featx.train.optimisation import EarlyStopping, make_scheduler

__all__ = ["Callback", "DivergedError", "NetworkClassifier"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The last word of each random generator's key.
_ORDER, _AUGMENT, _DROPOUT = 0, 1, 2

Pixels = NDArray[np.uint8] | PixelSet


class DivergedError(ProtocolError):
    """A loss, a weight or a score is no longer finite."""


class Callback:
    """Is called between the epochs of a training; subclasses override what they need."""

    def on_train_begin(self, net: NetworkClassifier) -> None:
        """Is called when the network is built."""

    def on_epoch_begin(self, net: NetworkClassifier) -> None:
        """Is called before each epoch."""

    def on_epoch_end(self, net: NetworkClassifier) -> None:
        """Is called after each epoch; ``net.history[-1]`` has its losses."""

    def on_train_end(self, net: NetworkClassifier) -> None:
        """Is called after the last epoch, unless an error ended the training."""


@dataclass(eq=False, repr=False)  # scikit-learn compares and prints estimators itself
class NetworkClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Train a network end to end.

    All random numbers depend on `seed` and on the number of the epoch only. A training that is
    resumed after some epochs therefore equals one without a break (on the CPU, to the last bit).

    Parameters
    ----------
    module : callable or torch.nn.Module
        Returns the network, without arguments (`functools.partial` fills in arguments); or the
        network itself, which is copied. The network takes normalised images
        (n, 3, height, width) and returns logits (n, n_classes). Parameters under its attribute
        ``top`` learn with `lr`, the others with `backbone_lr`; without such an attribute, all
        learn with `lr`.
    criterion : type, default=torch.nn.CrossEntropyLoss
        Loss of logits and labels.
    optimizer : callable, default=torch.optim.SGD
        Makes the optimizer from parameters and ``lr``.
    lr : float, default=0.01
        Learning rate.
    max_epochs : int, default=10
        Most passes over the images.
    batch_size : int, default=128
        Images in a step.
    mean, std : tuple of 3 floats
        Subtracted from, then divided into, RGB values between 0 and 1.
    augment : Augment, optional
        Random changes of training images.
    freeze : str, default="none"
        As `featx.networks.freeze` takes it.
    unfreeze_after : int, optional
        Number of epochs after which all layers learn; some layers must be frozen before.
    backbone_lr : float, optional
        `lr` by default; something below the top must learn.
    schedule : str, default="none"
        As `featx.train.optimisation.make_scheduler` takes it, with `step_size` and `gamma`.
    step_size : int, default=5
        Epochs; see `schedule`.
    gamma : float, default=0.1
        Factor; see `schedule`.
    validation : float, default=0.1
        Share of each class that is the validation part and is not fitted; 0 for none.
    patience : int, default=0
        Epochs without a lower validation loss before training stops; the network then gets the
        weights of its best epoch. 0 trains all epochs and keeps the last weights.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        Arithmetic of the forward pass.
    channels_last : bool, default=False
        Memory order of images and weights.
    device : str, default="cpu"
        ``cpu``, ``cuda`` or ``cuda:N``.
    seed : int, default=0
        Seed of everything random except the network's first weights.
    callbacks : sequence of Callback, default=()
        Called between the epochs, in this order.

    Attributes
    ----------
    module_ : torch.nn.Module
        The network.
    first_frozen_, frozen_ : featx.networks.FrozenCount
        What is frozen in the first epoch, and what is frozen now.
    history : list of dict
        One dict per epoch: ``epoch``, ``lr``, ``train_loss`` and ``train_acc`` (means over the
        augmented batches as they were trained), ``valid_loss``, ``valid_acc``, ``dur`` in seconds.
    best_epoch_ : int
        Epoch of the weights that were kept, counted from 1.
    has_stopped_ : bool
        Whether early stopping ended the training.
    """

    module: Callable[[], nn.Module] | nn.Module
    _: KW_ONLY
    criterion: Callable[[], nn.Module] = nn.CrossEntropyLoss
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    lr: float = 0.01
    max_epochs: int = 10
    batch_size: int = 128
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    augment: Augment | None = None
    freeze: str = "none"
    unfreeze_after: int | None = None
    backbone_lr: float | None = None
    schedule: str = "none"
    step_size: int = 5
    gamma: float = 0.1
    validation: float = 0.1
    patience: int = 0
    precision: str = "fp32"
    channels_last: bool = False
    device: str = "cpu"
    seed: int = 0
    callbacks: Sequence[Callback] = ()

    # The network.

    def initialize(self) -> Self:
        """Build the network on its device, with a fresh optimizer and an empty history."""
        device = torch.device(self.device)
        if self.precision == "fp32" and device.type == "cuda":
            refuse_forced_tf32("choose another precision")
        given = self.module
        with self._seeded():
            network = copy.deepcopy(given) if isinstance(given, nn.Module) else given()
        self.module_: nn.Module = network.to(memory_format=self._memory_order)
        self.frozen_ = self.first_frozen_ = freeze(self.module_, self.freeze)
        self._check_frozen()
        self.module_.to(device)
        self.criterion_ = self.criterion().to(device)
        self.optimizer_ = self.optimizer(self._parameter_groups(), lr=self.lr)
        self.scheduler_ = make_scheduler(
            self.schedule,
            self.optimizer_,
            epochs=self.max_epochs,
            step_size=self.step_size,
            gamma=self.gamma,
        )
        self.stopping_ = EarlyStopping(self.patience)
        self.scaler_ = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.generator_ = torch.Generator(device)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std)
        )
        self.history: list[dict[str, Any]] = []
        return self

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed torch's own generator, and restore its state at the end."""
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield

    @property
    def _memory_order(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _check_frozen(self) -> None:
        """Refuse settings that would change nothing about this network."""
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
        of_top = {id(parameter) for parameter in self.module_.get_submodule("top").parameters()}
        return [p for p in self.module_.parameters() if id(p) not in of_top]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters; the top and the backbone may have different learning rates."""
        if self.backbone_lr is None or not hasattr(self.module_, "top"):
            return [{"params": list(self.module_.parameters())}]
        top = list(self.module_.get_submodule("top").parameters())
        return [{"params": top}, {"params": self._below_top(), "lr": self.backbone_lr}]

    def _set_training(self, training: bool) -> None:
        # Also where the network is in this mode already: its parts may be in another one.
        self.module_.train(training)
        keep_in_evaluation_mode(self.frozen_.modules)

    def _prepared(self, pixels: Tensor, *, training: bool) -> Tensor:
        """Scale as `featx.preprocess.Preprocessing.normalise` does, and augment."""
        augment = self.augment if training else None
        if augment is not None:
            pixels = augment.move(pixels, self.generator_)
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._memory_order)
        values = values.div_(255).sub_(self._mean).div_(self._std)
        return values if augment is None else augment.warp(values, self.generator_)

    def _logits(self, images: Tensor) -> Tensor:
        with true_float32(), self._autocast():
            logits: Tensor = self.module_(images)
        return logits.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, _DTYPES[self.precision])

    # Training.

    def split(self, X: Pixels, y: Any = None) -> tuple[PixelSet, PixelSet | None]:
        """Split images into those that are fitted and the validation part, class by class."""
        images = PixelSet.of(X, y)
        if not self.validation:
            return images, None
        fitted, watched = split_holdout(images.labels, self.validation, seed=self.seed)
        return images.take(fitted), images.take(watched)

    def fit(self, X: Pixels, y: Any = None) -> Self:
        """Train.

        Parameters
        ----------
        X : ndarray of uint8, shape (n_images, height, width, 3), or PixelSet
            Decoded images.
        y : ndarray of int64, shape (n_images,), optional
            Labels; a `PixelSet` has its own.

        Raises
        ------
        ProtocolError
            If the loss or the weights are no longer finite.
        UsageError
            If the settings of frozen layers do not fit the network.
        """
        if y is None and not isinstance(X, PixelSet):
            raise UsageError("there are no labels: give y")
        if self.patience and not self.validation:
            raise UsageError("patience needs a validation part: give validation a share, as 0.1")
        fitted, watched = self.split(X, y)
        self.classes_ = np.unique(fitted.labels)
        with self._seeded(), reused_memory():
            self.initialize()
            self._train(
                self._batches(fitted, order=self._permutation, without_single=True),
                None if watched is None else self._batches(watched),
            )
        return self

    def _train(self, fitted: Batches, watched: Batches | None) -> None:
        """Train the epochs that are missing, until the last or until early stopping."""
        self._call("on_train_begin")
        while len(self.history) < self.max_epochs and not self.stopping_.is_over:
            self._call("on_epoch_begin")
            self._run_epoch(fitted, watched)
            self._call("on_epoch_end")
        self.has_stopped_ = self.stopping_.is_over
        self.best_epoch_ = self.stopping_.finish(self.module_, len(self.history))
        self._call("on_train_end")

    def _call(self, method: str) -> None:
        for callback in self.callbacks:
            getattr(callback, method)(self)

    def _run_epoch(self, fitted: Batches, watched: Batches | None) -> None:
        started = time.time()
        self.history.append({"epoch": len(self.history) + 1})
        epoch = self.history[-1]
        torch.manual_seed(self._key(_DROPOUT))
        self.generator_.manual_seed(self._key(_AUGMENT))
        is_late = self.unfreeze_after is not None and epoch["epoch"] > self.unfreeze_after
        if is_late and self.frozen_.n_frozen:
            self.frozen_ = freeze(self.module_, "none")
        epoch["lr"] = self.optimizer_.param_groups[0]["lr"]
        self._pass(fitted, "train")
        self._check_weights()
        if watched is not None:
            self._pass(watched, "valid")
        loss = epoch.get("valid_loss", epoch["train_loss"])
        if self.scheduler_ is not None:
            self.scheduler_.step(*([loss] if self.schedule == "plateau" else []))
        self.stopping_.look(epoch["epoch"], loss, self.module_)
        epoch["dur"] = time.time() - started

    def _pass(self, batches: Batches, part: str) -> None:
        """Pass over all images once, and record the mean loss and the accuracy."""
        is_training = part == "train"
        losses, rights, counts = [], [], []
        self._set_training(is_training)
        for pixels, labels in batches:
            with torch.set_grad_enabled(is_training):
                logits = self._logits(self._prepared(pixels, training=is_training))
                loss = self.criterion_(logits, labels)
            if is_training:
                self._learn(loss)
            losses.append(loss.detach())
            rights.append((logits.detach().argmax(1) == labels).sum())
            counts.append(len(labels))
        # Read from the device once an epoch: to read every batch would make a GPU wait.
        mean = np.average(torch.stack(losses).cpu().numpy(), weights=counts)
        if not np.isfinite(mean):
            raise self._diverged(f"the {part} loss of epoch {len(self.history)} is {mean}")
        accuracy = int(torch.stack(rights).sum()) / sum(counts)
        self.history[-1] |= {f"{part}_loss": float(mean), f"{part}_acc": accuracy}

    def _learn(self, loss: Tensor) -> None:
        self.optimizer_.zero_grad()
        with true_float32():
            self.scaler_.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()

    def _check_weights(self) -> None:
        """Check the weights after the last step, whose loss was computed before it."""
        # Other buffers are not checked: masks contain infinity on purpose.
        values = [*self.module_.parameters(), *statistics_of(self.module_)]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            epoch = len(self.history)
            raise self._diverged(f"the weights are no longer finite after epoch {epoch}")

    def _diverged(self, what: str) -> DivergedError:
        half = ", or --precision fp32 or bf16" if self.precision == "fp16" else ""
        return DivergedError(
            f"training diverged: {what}; take a lower lr (it was {self.lr:g}){half}"
        )

    def _batches(self, images: PixelSet, **options: Any) -> Batches:
        return Batches(images, self.batch_size, torch.device(self.device), **options)

    def _key(self, what: int) -> int:
        """Return the seed of something random in the current epoch."""
        words = np.random.SeedSequence([self.seed, len(self.history), what]).generate_state(2)
        return int(words[0]) << 31 | int(words[1]) >> 1

    def _permutation(self, n: int) -> NDArray[np.int64]:
        return np.random.default_rng(self._key(_ORDER)).permutation(n)

    # Predicting.

    def _iter_logits(self, X: Pixels) -> Iterator[Tensor]:
        """Yield logits on the CPU, batch by batch, all finite."""
        check_is_fitted(self, "module_")
        self._set_training(False)
        for pixels, _ in self._batches(PixelSet.of(X)):
            with torch.no_grad():
                logits = self._logits(self._prepared(pixels, training=False)).cpu()
            if not logits.isfinite().all():
                raise self._diverged("its scores of images are not finite")
            yield logits

    def decision_function(self, X: Pixels) -> NDArray[np.float64]:
        """Compute logits.

        Parameters
        ----------
        X : ndarray of uint8, shape (n_images, height, width, 3), or PixelSet
            Decoded images.

        Returns
        -------
        ndarray of float64, shape (n_images, n_classes)
        """
        return np.concatenate(
            [logits.numpy().astype(np.float64) for logits in self._iter_logits(X)]
        )

    def predict(self, X: Pixels) -> NDArray[np.int64]:
        """Return the labels of the largest logits.

        Parameters
        ----------
        X : ndarray or PixelSet
            As for `decision_function`.

        Returns
        -------
        ndarray of int64, shape (n_images,)
        """
        labels: NDArray[np.int64] = self.decision_function(X).argmax(axis=1)
        return labels

    def predict_proba(self, X: Pixels) -> NDArray[np.float32]:
        """Compute the softmax of the logits.

        Parameters
        ----------
        X : ndarray or PixelSet
            As for `decision_function`.

        Returns
        -------
        ndarray of float32, shape (n_images, n_classes)
        """
        return np.concatenate([logits.softmax(dim=-1).numpy() for logits in self._iter_logits(X)])

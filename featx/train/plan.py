"""`TrainPlan`: all options of ``featx train``, and the names that they may have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featx.configurable import check_number
from featx.devices import find_device
from featx.errors import UsageError, unknown_name
from featx.network_names import SCRATCH, check_network_name, check_weights_name
from featx.sources import LAYOUT_FIELDS
from featx.words import ALL, PRECISIONS, check_word, put_in_form

__all__ = ["LOSSES", "NORMALISATIONS", "OPTIMIZERS", "SCHEDULERS", "TrainPlan"]

OPTIMIZERS = ("SGD", "Nesterov", "Adam", "Adamax", "RMSprop", "AdamW")
SCHEDULERS = ("none", "step", "cosine", "plateau")
LOSSES = ("cross-entropy", "binary-cross-entropy")

Triple = tuple[float, float, float]

NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "half-range": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "divide-only": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "divide-twice": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
"""Mean and deviation of RGB values between 0 and 1, by name."""

_COUNTS = {
    "[0, inf)": ("seed", "patience", "search", "workers"),
    "[1, inf)": (
        *("repeats", "epochs", "step_size", "unfreeze_after"),
        *("cache_per_class", "test_per_class", "input_size"),
    ),
    "[2, inf)": ("batch_size",),
}
_NUMBERS = {
    "[0, inf)": ("weight_decay",),
    "(0, inf)": ("lr", "backbone_lr", "gamma", "image_memory_gb"),
    "(0, 1)": ("holdout",),
    "[0, 1)": ("momentum", "validation"),
}

# Fields that do not change the trained network.
_NOT_ASKED = (
    "device",
    "workers",
    "image_memory_gb",
    "save",
    "plot",
    "refit",
    "reports_dir",
    "per_class",
    "repeats",
    "allow_code",
)


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """All options of ``featx train``, by their names.

    Parameters
    ----------
    network : str
        A network of `featx.networks` with its settings, such as ``auto-cnn(blocks=3)``, which is
        trained from scratch; or the name of a backbone or the file of a trained network, which is
        cut off at `layer`, gets `top` and is fine-tuned.
    data : str, default="cifar10"
        As for ``featx extract``.
    train_folder, val_folder, test_folder : str, optional
        The folders of the splits, relative to `data`, if featx does not recognise them.
    classes_at : int, optional
        Depth of the folders that are classes; see `featx.sources.LayoutChoice`.
    images_root, columns : optional
        The folder of the images and the columns of a table; see `featx.sources.LayoutChoice`.
    classes, drop, map : tuple of str
        Classes to use, and their new names, as for ``featx extract``.
    per_class : tuple of int or "all", default=("all",)
        Labelled images of each class, including the validation part. Each number is a training.
    repeats : int, default=1
        Draws; draw r has the seed ``seed + r``.
    seed : int, default=0
        Seed of the first draw, and of everything random in its training.
    cache_per_class, test_per_class : int, optional
        Images of each class that are drawn first: a pool to draw training images from, and the
        test images. With the same numbers as a cache, the images are those of its heads. All
        images by default.
    holdout : float, default=0.2
        Share of each class that is held out for testing, if the data have no test split.
    test_split : str, optional
        ``test`` or ``val``; by default ``test``, or ``val`` if the data have no ``test``.
    on_leak : {"warn", "drop", "raise"}, default="warn"
        What to do about exact copies of test images in the train split.
    weights : str, optional
        Weights of a backbone: a tag, a file, or ``random``.
    weights_key : str, optional
        Entry of that file; see `featx.open_backbone`.
    layer : str, optional
        Where the backbone is cut off; the last feature map by default.
    top : str, optional
        Layers that are put on a backbone, such as ``gap(hidden=256)``; ``linear`` by default.
        Networks trained from scratch have their own last layers.
    freeze : str, default="none"
        ``none``, ``half``, ``all``, a number of layers, or the name of the last layer that does
        not learn; see `featx.networks.freeze`.
    unfreeze_after : int, optional
        Number of epochs after which all layers learn; fewer than `epochs`.
    input_size : int or "native", optional
        Side of the input in pixels. By default that of the weights or, from scratch, that of
        the images.
    normalise : str, optional
        One of `NORMALISATIONS`; by default that of the weights or, from scratch, ``half-range``.
    bits : int, optional
        Number of used bits of pixel values that are stored in 16 bits; 16 by default.
    augment : tuple of str
        ``flip``, ``rotation=FRACTION`` of a turn, ``zoom=FRACTION``, ``crop=PADDING`` in pixels.
    optimizer : str, default="Adam"
        One of `OPTIMIZERS`.
    lr : float, default=0.001
        Learning rate.
    backbone_lr : float, optional
        Learning rate of the backbone below the top; `lr` by default.
    momentum : float, optional
        Of SGD (0 by default), Nesterov (0.9) and RMSprop (0).
    weight_decay : float, default=0.0
        As in torch's optimizers.
    scheduler : str, default="none"
        One of `SCHEDULERS`: ``step`` multiplies by `gamma` every `step_size` epochs, ``cosine``
        falls to 0 over `epochs`, ``plateau`` multiplies by `gamma` after `step_size` epochs
        without a lower loss.
    step_size : int, default=5
        Epochs; see `scheduler`.
    gamma : float, default=0.1
        Factor; see `scheduler`.
    loss : str, default="cross-entropy"
        One of `LOSSES`; ``binary-cross-entropy`` is Keras's, of softmax probabilities and one-hot
        labels.
    epochs : int, default=30
        Most passes over the training part.
    patience : int, default=10
        Epochs without a lower validation loss before training stops; the network then gets the
        weights of its best epoch. 0 trains all epochs and keeps the last weights.
    validation : float, default=0.1
        Share of each class of the subset that is the validation part and is not fitted; 0 for
        none, with a `patience` of 0.
    batch_size : int, default=64
        Images in a step.
    precision : {"fp32", "bf16", "fp16", "auto"}, default="fp32"
        Arithmetic of the forward pass (autocast); weights stay float32.
    channels_last : bool, default=True
        Whether the channels of a pixel are next to each other in memory, in images and weights:
        the faster order on the CPU and on GPUs with tensor cores (benchmarks/RESULTS.md).
    device : str, default="auto"
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    workers : int, optional
        Processes that decode images; 0 for none.
    image_memory_gb : float, optional
        Most memory for decoded images, in 10^9 bytes; by default half of the free memory. If they
        need more, they are kept in a scratch file.
    save : bool, default=False
        Whether to write trained networks as files that can be used as backbones.
    plot : bool, default=False
        Whether to draw the curves (PNG).
    refit : bool, default=False
        Whether to train again if ``reports/`` has the answer already.
    search : int, default=0
        Number of settings that a random search tries on a part of each subset, before the
        training with the best ones; see `featx.train.search`.
    reports_dir : str, default="reports"
        Folder of results.
    allow_code : tuple of str, default=()
        Functions ``module:function`` that may be imported; `network` must be among them if it is
        such a function, as a plan may come from a file.

    Raises
    ------
    UsageError
        If a name is unknown, or a number is outside its range.
    """

    network: str
    data: str = "cifar10"
    train_folder: str | None = None
    val_folder: str | None = None
    test_folder: str | None = None
    classes_at: int | None = None
    images_root: str | None = None
    columns: tuple[str, ...] | None = None
    classes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: tuple[str, ...] = ()
    per_class: tuple[int | str, ...] = (ALL,)
    repeats: int = 1
    seed: int = 0
    cache_per_class: int | None = None
    test_per_class: int | None = None
    holdout: float = 0.2
    test_split: str | None = None
    on_leak: str = "warn"
    weights: str | None = None
    weights_key: str | None = None
    layer: str | None = None
    top: str | None = None
    freeze: str = "none"
    unfreeze_after: int | None = None
    input_size: int | str | None = None
    normalise: str | None = None
    bits: int | None = None
    augment: tuple[str, ...] = ()
    optimizer: str = "Adam"
    lr: float = 0.001
    backbone_lr: float | None = None
    momentum: float | None = None
    weight_decay: float = 0.0
    scheduler: str = "none"
    step_size: int = 5
    gamma: float = 0.1
    loss: str = "cross-entropy"
    epochs: int = 30
    patience: int = 10
    validation: float = 0.1
    batch_size: int = 64
    precision: str = "fp32"
    channels_last: bool = True
    device: str = "auto"
    workers: int | None = None
    image_memory_gb: float | None = None
    save: bool = False
    plot: bool = False
    refit: bool = False
    search: int = 0
    reports_dir: str = "reports"
    allow_code: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put_in_form(self)
        _check_choices(self)
        _check_ranges(self, _COUNTS, is_whole=True)
        _check_ranges(self, _NUMBERS, is_whole=False)
        self._check_together()

    def check_words(self) -> None:
        """Refuse names that nothing knows, before data are opened and torch is imported."""
        if self.network.partition("(")[0] not in SCRATCH:
            self._check_backbone()
        find_device(self.device)

    def _check_backbone(self) -> None:
        try:
            check_network_name(self.network)
        except UsageError as error:
            nearest = unknown_name("network", self.network, SCRATCH)
            if "did you mean" in str(nearest):
                raise nearest from error
            error.add_note(f"networks from scratch are {', '.join(SCRATCH)}")
            raise
        check_weights_name(self.network, self.weights)

    def _check_together(self) -> None:
        if self.patience and not self.validation:
            raise UsageError(
                "early stopping needs a validation part: give --validation a share, as 0.1, "
                "or --patience 0 to train all epochs"
            )
        if self.unfreeze_after is not None and self.freeze == "none":
            raise UsageError("--unfreeze-after needs frozen layers: give --freeze half or all")
        if self.unfreeze_after is not None and self.unfreeze_after >= self.epochs:
            raise UsageError(
                f"--unfreeze-after {self.unfreeze_after} with {self.epochs} epochs: no epoch would "
                "be left in which all layers learn; give fewer, or more --epochs"
            )
        if self.momentum is not None and self.optimizer.startswith("Ada"):
            raise UsageError(
                f"{self.optimizer} has no momentum to set: leave --momentum out, or take SGD, "
                "Nesterov or RMSprop"
            )
        if self.search and self.momentum is not None:
            raise UsageError("the search chooses the optimiser: leave --momentum out")
        if self.optimizer == "Nesterov" and self.momentum == 0:
            raise UsageError("Nesterov needs a momentum above 0: leave --momentum out for 0.9")

    def asked(self) -> dict[str, Any]:
        """Return the fields that change the trained network, as plain values.

        Returns
        -------
        dict
            Fields by name, without those of the machine and without size and number of the subset.
        """
        values = {key: value for key, value in asdict(self).items() if key not in _NOT_ASKED}
        if not self.search:
            del values["search"]
        for name in (*LAYOUT_FIELDS, "weights_key", "bits", "test_split"):  # not in older records
            if values[name] is None:
                del values[name]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _check_choices(plan: TrainPlan) -> None:
    choices: dict[str, tuple[str | None, Collection[str]]] = {
        "optimizer": (plan.optimizer, OPTIMIZERS),
        "scheduler": (plan.scheduler, SCHEDULERS),
        "loss": (plan.loss, LOSSES),
        "normalise": (plan.normalise, NORMALISATIONS),
        "on_leak": (plan.on_leak, ("warn", "drop", "raise")),
        "precision": (plan.precision, PRECISIONS),
    }
    for what, (value, allowed) in choices.items():
        if value is not None:
            check_word(what, value, allowed)
    if isinstance(plan.input_size, str) and plan.input_size != "native":
        raise UsageError(f"input_size is {plan.input_size!r}: give pixels, or 'native'")
    for k in plan.per_class:
        if k != ALL and not (isinstance(k, int) and k > 0):
            raise UsageError(f"per_class is {k!r}: give numbers above 0, or {ALL!r}")


def _check_ranges(plan: TrainPlan, ranges: Mapping[str, Iterable[str]], *, is_whole: bool) -> None:
    for interval, names in ranges.items():
        for name in names:
            value = getattr(plan, name)
            if value is not None and not isinstance(value, str):  # input_size may be a word
                check_number(name, value, interval, is_whole=is_whole)

"""All classification networks of torchvision, with their own weights and transforms.

Keras's names of layers are read too, for networks that torchvision has as well (VGG16 and VGG19,
ResNet50, 101 and 152, InceptionV3) and for points that correspond one to one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from featx.backbones.graph_taps import GraphTaps
from featx.backbones.recipe import Filled, LoadedNetwork, Recipe, State
from featx.backbones.taps import Layout, Taps
from featx.errors import BackboneError
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import Weights, WeightsFile, download, load_into

__all__ = [
    "PLAIN_INPUT",
    "TorchvisionRecipe",
    "available",
    "check_input",
    "classifiers",
    "default_tag",
    "feed_plainly",
    "is_fed_plainly",
    "keras_aliases",
]


def keras_aliases(name: str, network: nn.Module) -> dict[str, str]:
    """Other names of feature points."""
    if isinstance(network, models.VGG):
        return _vgg(network, has_convolutions=name in ("vgg16", "vgg19"))
    if name in ("resnet50", "resnet101", "resnet152") and isinstance(network, models.ResNet):
        return _resnet(network)
    if isinstance(network, models.Inception3):
        return _inception()
    return {}


def _vgg(network: models.VGG, *, has_convolutions: bool) -> dict[str, str]:
    """``block3``, ``block3_pool``; ``block3_conv2`` is the ReLU, which is part of Keras's layer."""
    aliases: dict[str, str] = {}
    block, convolution = 1, 0
    for i, module in enumerate(network.features):
        if isinstance(module, nn.MaxPool2d):
            aliases |= {f"block{block}": f"features.{i}", f"block{block}_pool": f"features.{i}"}
            block, convolution = block + 1, 0
        elif isinstance(module, nn.ReLU) and has_convolutions:
            convolution += 1
            aliases[f"block{block}_conv{convolution}"] = f"features.{i}"
    return aliases


def _resnet(network: models.ResNet) -> dict[str, str]:
    """``conv4_block6_out``: what leaves the sixth block of the stage that torchvision numbers 3."""
    aliases = {"conv1_relu": "relu", "pool1_pool": "maxpool"}
    for stage in range(1, 5):
        blocks = network.get_submodule(f"layer{stage}")
        for i, _ in enumerate(blocks.children()):
            aliases[f"conv{stage + 1}_block{i + 1}_out"] = f"layer{stage}.{i}"
    return aliases


def _inception() -> dict[str, str]:
    """``mixed0`` to ``mixed10``, which the paper and torchvision call 5b to 7c."""
    blocks = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    return {f"mixed{i}": f"Mixed_{block}" for i, block in enumerate(blocks)}


# With weights, torchvision builds these so that they turn an input which was normalised by the mean
# and std of ImageNet into one normalised by 0.5 and 0.5 (``transform_input``).
_TRANSFORMS_INPUT = ("googlenet", "inception_v3")
PLAIN_INPUT = "transform_input=False"
"""What is different in a network of these that takes its input as it comes."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_AUXILIARY_HEADS = ("AuxLogits.", "aux1.", "aux2.")


@cache
def available() -> tuple[str, ...]:
    """Names of torchvision's classification networks."""
    return tuple(models.list_models(module=models))


def default_tag(name: str) -> str:
    """Weights used when none are asked for.

    Never torchvision's moving ``DEFAULT``: the first entry that torchvision lists,
    which is ``IMAGENET1K_V1`` wherever that exists.
    """
    return next(iter(_entries(name)))


def _entries(name: str) -> dict[str, Any]:
    return {entry.name: entry for entry in models.get_model_weights(name)}


class TorchvisionRecipe(Recipe):
    """Builds a network of torchvision and fills it from one of its weights entries, or a file."""

    def __init__(self, name: str, weights: str | None, reporter: Reporter) -> None:
        super().__init__(name, weights, reporter)
        self._entries = _entries(name)
        self.tags, self.default_tag = list(self._entries), default_tag(name)
        self.tag = weights if weights in self._entries else self.default_tag
        self.origin = f"{name} {self.tag}"

    def preprocess(self, overrides: Mapping[str, Any]) -> Preprocessing:
        """Give the preprocessing of the weights entry, changed."""
        transforms = self._entries[self.tag].transforms()
        return Preprocessing.from_torchvision(transforms, self.origin).override(**overrides)

    def build(self, input_px: int, seed: int = 0) -> nn.Module:
        """Build the network with seeded random values."""
        return _build(self.name, input_px, seed)

    def own(self, input_px: int, weights_key: str | None) -> tuple[Weights, State, Filled]:
        """Fill the network from the weights entry."""
        entry = self._entries[self.tag]
        file = WeightsFile.at(entry.url, int(entry.meta.get("_file_size", 0) * 2**20))
        return self.read(download(file, reporter=self.reporter), input_px, weights_key)

    def fill(self, state: State, input_px: int, path: Path) -> Filled:
        """Build the network for a state dict; its classifier may be another one, or empty."""
        options: dict[str, Any] = {}
        if self.name in _TRANSFORMS_INPUT:
            has_aux = any(key.startswith(_AUXILIARY_HEADS) for key in state)
            options = {"aux_logits": has_aux, "init_weights": False}
        network = _build(self.name, input_px, **options)
        unfilled = _load_body(network, _converted(self.name, state, network), str(path))
        said = (
            f"its classifier ({', '.join(unfilled)}) is another one than {self.name}'s, or "
            "empty, and is not used; everything else is loaded"
        )
        return Filled(network, unfilled, said if unfilled else "")

    def check(self, loaded: LoadedNetwork, overrides: Mapping[str, Any]) -> LoadedNetwork:
        """Take images as they come where mean and std are given for a file of the user's."""
        weights, network = loaded.weights, loaded.network
        if self.is_own or not is_fed_plainly(self.name, weights.file_sha256, overrides):
            check_input(self.name, network, loaded.preprocessing, self.reporter)
            return loaded
        feed_plainly(network)
        self.reporter.say(
            f"{weights.file}: the network takes images as --mean and --std make them "
            "(transform_input is off). Where it was trained with it, as torchvision's own weights "
            "are, leave --mean and --std out"
        )
        return replace(loaded, variant=PLAIN_INPUT)

    def tap(self, network: nn.Module, input_px: int) -> Taps:
        """Find the tap points of the trace, which Keras's names stand for too."""
        return GraphTaps(network, input_px, keras_aliases(self.name, network), _layout(network))


def is_fed_plainly(name: str, file_sha256: str, overrides: Mapping[str, Any]) -> bool:
    """Whether mean and std were given for weights that are not torchvision's own."""
    if name not in _TRANSFORMS_INPUT or not {"mean", "std"} & set(overrides):
        return False
    prefixes = (WeightsFile.at(entry.url).sha256_prefix for entry in _entries(name).values())
    return not any(prefix and file_sha256.startswith(prefix) for prefix in prefixes)


def feed_plainly(network: Any) -> None:
    """Let a network take its input as it comes."""
    network.transform_input = False


def check_input(
    name: str, network: nn.Module, preprocessing: Preprocessing, reporter: Reporter
) -> None:
    """Warn of a network that takes its input to be normalised in another way than it is."""
    is_transforming = getattr(network, "transform_input", False) is True
    if is_transforming and (preprocessing.mean, preprocessing.std) != _IMAGENET:
        reporter.warn(
            f"{name} turns its input from the mean and std of ImageNet to 0.5 and 0.5 by itself "
            f"(transform_input), and the images are normalised by other numbers: give it "
            "0.485 0.456 0.406 and 0.229 0.224 0.225, or build it with transform_input=False"
        )


def _build(name: str, input_px: int, seed: int = 0, **options: Any) -> nn.Module:
    """Build a network with seeded random values; the caller's generator is left alone."""
    if name in _TRANSFORMS_INPUT:
        options = {"transform_input": True, "init_weights": True} | options
    if name.startswith("vit_"):
        _check_multiple(name, input_px, int(name.rsplit("_", 1)[1]), "its patches")
        options["image_size"] = input_px
    if name.startswith("maxvit_") and input_px != _MAXVIT_PX:
        _check_multiple(name, input_px, _MAXVIT_PX, "its windows, after five halvings,")
        options["input_size"] = (input_px, input_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = models.get_model(name, weights=None, **options)
    return network.eval()


_MAXVIT_PX = 224


def _check_multiple(name: str, input_px: int, step: int, what: str) -> None:
    if input_px % step or input_px < step:
        near = max(1, input_px // step) * step
        raise BackboneError(
            f"{name} does not run at an input size of {input_px} pixels: {what} are {step} pixels "
            f"wide. Choose a multiple of {step}, such as {near} or {near + step}; "
            f"the least size that works is {step}"
        )


def _load_body(network: nn.Module, state: State, source: str) -> tuple[str, ...]:
    """Load a state dict; return the modules of the classifier that it does not fill."""
    levels = classifiers(network)
    heads = [(*level, *(head.rstrip(".") for head in _AUXILIARY_HEADS)) for level in levels]
    left = load_into(network, state, source, heads=heads)[:1]
    # In VGG16's IMAGENET1K_FEATURES the classifier has NaN for values.
    values = network.named_parameters()
    empty = {key for key, value in values if _is_in(key, levels[-1]) and not value.isfinite().all()}
    if not left and not empty:
        return ()
    start = levels.index(left) if left else 0
    return next(level for level in levels[start:] if all(_is_in(k, level) for k in empty))


def _is_in(key: str, level: Sequence[str]) -> bool:
    return key.startswith(tuple(f"{path}." for path in level))


def classifiers(network: nn.Module) -> list[tuple[str, ...]]:
    """Paths of the classifier of a network: of its last layer, then of the modules around that."""
    kinds = (nn.Linear, nn.Conv2d)
    names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    if not names:
        return []
    parts = names[-1].split(".")
    paths = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    # The module that holds all layers is no classifier.
    return [(p,) for p in paths if p == names[-1] or not all(_is_in(f"{n}.", (p,)) for n in names)]


# Torchvision's own conversion of the files of 2017, in which "norm.1" was "norm1" of today.
_OLD_DENSE_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)


def _converted(name: str, state: State, network: nn.Module) -> State:
    if name.startswith("densenet"):
        return {_OLD_DENSE_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    if name.startswith("vit_"):
        key = "encoder.pos_embedding"
        image_size, patch_size = int(network.image_size), int(network.patch_size)  # type: ignore[arg-type]
        if key in state and state[key].shape != network.state_dict()[key].shape:
            resized: State = interpolate_embeddings(image_size, patch_size, dict(state))
            return resized
    return state


def _layout(network: nn.Module) -> Layout:
    if isinstance(network, models.VisionTransformer):
        return Layout(n_tokens=network.seq_length, n_prefix=1, has_class=True)
    return Layout(is_channels_last=isinstance(network, models.SwinTransformer))

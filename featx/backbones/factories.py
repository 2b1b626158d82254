"""Networks that a function of the user's builds: ``--backbone module:function``.

The contract: the function is called without arguments and returns ::

    (network, preprocessing)              or        (network, preprocessing, layer)

- ``network``: a `torch.nn.Module` with its weights, which takes a float32 tensor of shape
  (n, 3, size, size). What it returns does not matter, for it is tapped inside. TorchScript
  (``torch.jit.load``) and exported programs (``torch.export.load``) are tapped at their output.
- ``preprocessing``: a `featx.preprocess.Preprocessing`, a torchvision preset
  (``weights.transforms()``), a mapping like timm's ``pretrained_cfg``, or None: then
  ``--mean``, ``--std`` and ``--input-size`` must be given.
- ``layer``: the module that gives the features by default. Without it, the default is the input
  of the last global pooling before the classifier, where torch.fx can trace the network.

A transformer may tell its number of class and register tokens in an attribute
``num_prefix_tokens``; without it, the mean of the tokens counts all of them. A package offers such
a function under a plain name by an entry point of the group ``featx.backbones``. The identity
of the network is its name, the SHA-256 of its state dict, and that of its source and modules: the
file of the function, files of the user's that it imports (see `featx.plugins`), and how PyTorch
prints the network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from featx.backbones.graph_taps import GraphTaps
from featx.backbones.module_taps import ModuleTaps
from featx.backbones.own_code import steps_of
from featx.backbones.programs import Holder, ProgramTaps, is_program
from featx.backbones.recipe import Filled, LoadedNetwork, Recipe, State, preprocessing_from_options
from featx.backbones.taps import Layout, Taps
from featx.backbones.timm_taps import TimmTaps, is_like_timm
from featx.backbones.torchvision_models import check_input, classifiers
from featx.errors import BackboneError, FeatxError, UsageError
from featx.network_names import GROUP, check_exists
from featx.plugins import Imported, import_named, is_plugin, offered
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import StoredFile, Weights, few, load_into, state_sha256, stored
from featx.words import as_only

__all__ = ["FactoryRecipe", "available", "is_factory"]

_CONTRACT = "it must return (network, preprocessing) or (network, preprocessing, layer)"


def available() -> tuple[str, ...]:
    """Names that installed packages offer as entry points, sorted."""
    return tuple(offered(GROUP))


def is_factory(name: str) -> bool:
    """Whether a name is ``module:function`` or an entry point."""
    return is_plugin(name, GROUP)


class FactoryRecipe(Recipe):
    """Calls the user's function, and fills its network from a file where one is given."""

    def __init__(
        self, name: str, weights: str | None, reporter: Reporter, *, allow_code: Collection[str]
    ) -> None:
        super().__init__(name, weights, reporter)
        if self.seed is not None:
            raise UsageError(f"{name} makes its own weights: leave --weights out, or give a file")
        code = import_named(name, GROUP, "--backbone", "function", allow_code)
        self._made, given, self._layer = _call(name, code)
        self._given = _as_preprocessing(given, name)
        self._source_sha256 = _sha256(code, self._made)

    def preprocess(self, overrides: Mapping[str, Any]) -> Preprocessing:
        """Give what the function returned, changed, or what the user typed."""
        if self._given is None:
            return preprocessing_from_options(self.name, overrides)
        return self._given.override(**overrides)

    def build(self, input_px: int, seed: int = 0) -> nn.Module:
        """Make the network of the function ready to run; its values are its own."""
        self._made = _runnable(self.name, self._made, input_px, self.reporter)
        return self._made

    def own(self, input_px: int, weights_key: str | None) -> tuple[Weights, State, Filled]:
        """Take the values that the function gave."""
        network = self.build(input_px)
        _check_values(self.name, network)
        state = network.output.tensors() if isinstance(network, Holder) else network.state_dict()
        return Weights("own", state_sha256(state), is_default=True), {}, Filled(network)

    def choose(self, spec: str, overrides: Mapping[str, Any]) -> StoredFile:
        """Take a file of the user's, for a network whose preprocessing the function gave."""
        path = Path(spec).expanduser()
        check_exists(path)
        return stored(path)

    def outline(self, input_px: int) -> nn.Module:
        """Give the network as it is: a function need not build it without values."""
        return self.build(input_px)

    def fill(self, state: State, input_px: int, path: Path) -> Filled:
        """Fill the network of the function; its classifier may be another one."""
        network = self.build(input_px)
        left = load_into(network, state, str(path), heads=classifiers(network))
        said = (
            f"its classifier is another one than that of {self.name} and is not used "
            f"({', '.join(left)})"
        )
        return Filled(network, left, said if left else "")

    def check(self, loaded: LoadedNetwork, overrides: Mapping[str, Any]) -> LoadedNetwork:
        """Warn of a network that normalises its input by itself, and note whose code made it."""
        check_input(self.name, loaded.network, loaded.preprocessing, self.reporter)
        return replace(loaded, is_own_code=True, source_sha256=self._source_sha256)

    def tap(self, network: nn.Module, input_px: int) -> Taps:
        """Find the points of a network of which nothing is known."""
        return make_taps(network, input_px, self._layer)


def make_taps(network: nn.Module, input_px: int, default: str | None) -> Taps:
    """Tap points of a network of which nothing is known."""
    if isinstance(network, Holder):
        return ProgramTaps(network, input_px, default)
    if default is None and is_like_timm(network) and _runs_by_halves(network, input_px):
        return TimmTaps(network, input_px)
    n_prefix = getattr(network, "num_prefix_tokens", 0)
    taps = _trace_or_watch(network, input_px, default)
    lengths = [point.shape[0] for point in taps.points if len(point.shape) == 2]
    if not n_prefix or not lengths:
        return taps
    layout = Layout(n_tokens=mode(lengths), n_prefix=n_prefix, has_class=True)
    if isinstance(taps, GraphTaps):
        return GraphTaps(network, input_px, layout=layout)
    return ModuleTaps(network, input_px, taps.default, layout, taps.points[0].variant)


def _runs_by_halves(network: Any, input_px: int) -> bool:
    """Whether the forward pass is that of the two halves, and nothing before or between them."""
    image = torch.randn(1, 3, input_px, input_px, generator=torch.Generator().manual_seed(0))

    def halves(images: torch.Tensor) -> Any:
        return network.forward_head(network.forward_features(images))

    try:
        by_halves, whole = (
            steps_of(network, run, lambda *_: True, image) for run in (halves, network)
        )
    except Exception:  # whatever somebody's code runs into: the taps say what it is
        return True
    return by_halves == whole


_HOOKS = "hooks"
"""Variant of the features of networks whose trace is another one: older versions tapped that."""


def _trace_or_watch(network: nn.Module, input_px: int, default: str | None) -> Taps:
    if default is not None:
        return ModuleTaps(network, input_px, default)
    try:
        traced = GraphTaps(network, input_px)
    except FeatxError:
        raise
    except Exception:
        # Its forward pass depends on values, which a trace cannot follow.
        return ModuleTaps(network, input_px, None)
    if traced.is_true():
        return traced
    watched = ModuleTaps(network, input_px, traced.default, variant=_HOOKS)
    if traced.default not in [point.name for point in watched.points]:
        watched.default = None
    return watched


def _sha256(code: Imported, network: nn.Module) -> str:
    """Digest the user's source, and the modules that it made: their settings may lie elsewhere."""
    source, modules = code.source_sha256, re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    return source and hashlib.sha256(f"{source}\n{modules}".encode()).hexdigest()


def _check_values(name: str, network: nn.Module) -> None:
    """Refuse parameters without values, and packed ones: nothing tells which weights these are."""

    def has_values(value: object) -> bool:
        return isinstance(value, torch.Tensor) and not (is_lazy(value) or value.is_quantized)

    if odd := [key for key, value in network.state_dict().items() if not has_values(value)]:
        raise BackboneError(
            f"{name} returns a network whose {few(odd)} have no plain values: return a network "
            "that runs at this input size, and a quantised one as it was before"
        )


def _call(name: str, code: Imported) -> tuple[nn.Module, Any, str | None]:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = code.found()
    except FeatxError:
        raise
    except Exception as error:
        raise BackboneError(
            f"{name} failed: {type(error).__name__}: {error} (--debug shows where)"
        ) from error
    parts = tuple(made) if isinstance(made, tuple | list) else (made, None)
    network = parts[0]
    if isinstance(network, torch.export.ExportedProgram):
        network = network.module()
    if not 2 <= len(parts) <= 3 or not isinstance(network, nn.Module):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise BackboneError(f"{name} returns ({kinds}): {_CONTRACT}")
    layer = as_only("layer", parts[2], "choose several with --layer") if parts[2:] else None
    if not isinstance(layer, str | None):
        raise BackboneError(f"{name} returns {layer!r} as its layer: give the name of one module")
    return network, parts[1], layer


def _runnable(name: str, network: nn.Module, input_px: int, reporter: Reporter) -> nn.Module:
    """Make a network ready to take float32 images on the CPU, in evaluation mode."""
    network = _bare(network)
    if is_program(network):
        network = Holder(network)
    network = network.eval().to("cpu")
    image = torch.zeros(1, 3, input_px, input_px)
    values = [value for value in network.state_dict().values() if isinstance(value, torch.Tensor)]
    dtypes = {value.dtype for value in values if not is_lazy(value) and value.is_floating_point()}
    if dtypes - {torch.float32} and not _takes(network, image):
        reporter.say(f"{name}: its weights are {_names(dtypes)}, and are used as float32")
        network = network.float()
    if any(is_lazy(value) for value in network.parameters()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _takes(network, image)
    return network


def _bare(network: nn.Module) -> nn.Module:
    """Take a network out of what only runs it: on several GPUs, compiled, or as an average."""
    around = (nn.DataParallel, DistributedDataParallel, AveragedModel)
    name = "module" if isinstance(network, around) else "_orig_mod"  # that of torch.compile
    inner = getattr(network, name, None)
    return _bare(inner) if isinstance(inner, nn.Module) else network


def _takes(network: nn.Module, image: torch.Tensor) -> bool:
    """Whether a network runs on an image: some change their input to the type of their weights."""
    try:
        with torch.no_grad():
            network(image)
    except Exception:  # whatever somebody's code runs into: the taps say what it is
        return False
    return True


def _names(dtypes: Collection[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _as_preprocessing(value: Any, origin: str) -> Preprocessing | None:
    """Read the preprocessing that a user's function returned."""
    if value is None or isinstance(value, Preprocessing):
        return value
    try:
        if isinstance(value, Mapping):
            return Preprocessing.from_timm(value, origin)
        if hasattr(value, "crop_size") and hasattr(value, "resize_size"):
            return Preprocessing.from_torchvision(value, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the preprocessing that {origin} returns lacks {error}: it needs input_size, "
            "crop_pct, interpolation, mean and std"
        ) from error
    raise UsageError(
        f"{origin} returns a {type(value).__name__} as its preprocessing: return a "
        "featx.preprocess.Preprocessing, a torchvision ImageClassification preset, or a mapping "
        "with input_size, crop_pct, interpolation, mean and std"
    )

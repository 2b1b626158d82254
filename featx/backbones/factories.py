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
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from featx.backbones.base import LoadedNetwork
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.local_files import as_preprocessing, preprocessing_from_options
from featx.backbones.module_taps import ModuleTaps
from featx.backbones.own_code import steps_of
from featx.backbones.programs import Holder, ProgramTaps, is_program
from featx.backbones.taps import Layout, Taps
from featx.backbones.timm_taps import TimmTaps, is_like_timm
from featx.backbones.torchvision_models import check_input, classifiers
from featx.errors import BackboneError, FeatxError, UsageError
from featx.network_names import GROUP, check_exists, parse_random
from featx.plugins import Imported, import_named, is_plugin, offered
from featx.progress import Reporter
from featx.weights import (
    Weights,
    few,
    fill_from_file,
    load_into,
    state_sha256,
    stored,
)
from featx.words import as_only

__all__ = ["available", "is_factory", "load"]

_CONTRACT = "it must return (network, preprocessing) or (network, preprocessing, layer)"


def available() -> tuple[str, ...]:
    """Names that installed packages offer as entry points, sorted."""
    return tuple(offered(GROUP))


def is_factory(name: str) -> bool:
    """Whether a name is ``module:function`` or an entry point."""
    return is_plugin(name, GROUP)


def load(
    name: str,
    weights: str | None,
    overrides: Mapping[str, Any],
    reporter: Reporter,
    weights_key: str | None = None,
    *,
    allow_code: Collection[str],
) -> LoadedNetwork:
    """Call the user's function, and fill its network from a file where one is given.

    Parameters
    ----------
    name : str
        ``module:function``, the module found as Python finds it or in the current folder,
        or the name of an entry point.
    weights : str or None
        Path of a file; None for what the function itself has loaded.
    overrides : mapping
        Keyword arguments of `Preprocessing.override`.
    reporter : Reporter
        Shows what is done.
    weights_key : str, optional
        Entry of the file, see `read_state_dict`.
    allow_code : collection of str
        What may be imported.

    Returns
    -------
    LoadedNetwork
        In evaluation mode, on the CPU.

    Raises
    ------
    UsageError
        If there is no such function, or it brings no preprocessing and the flags do not either.
    BackboneError
        If the function fails or returns something else.
    WeightsError
        If the file does not fit.
    """
    if weights and parse_random(weights) is not None:
        raise UsageError(f"{name} makes its own weights: leave --weights out, or give a file")
    code = import_named(name, GROUP, "--backbone", "function", allow_code)
    network, given, layer = _call(name, code)
    known = as_preprocessing(given, name)
    preprocessing = (
        known.override(**overrides) if known else preprocessing_from_options(name, overrides)
    )
    source_sha256 = _sha256(code, network)
    network = _runnable(name, network, preprocessing.crop_px, reporter)
    check_input(name, network, preprocessing, reporter)
    record, unfilled = _fill(name, network, weights, weights_key, reporter)
    return LoadedNetwork(
        name=name,
        network=network,
        weights=record,
        preprocessing=preprocessing,
        tap=lambda input_px: make_taps(network, input_px, layer),
        unfilled=unfilled,
        is_own_code=True,
        source_sha256=source_sha256,
    )


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


def _fill(
    name: str, network: nn.Module, weights: str | None, weights_key: str | None, reporter: Reporter
) -> tuple[Weights, tuple[str, ...]]:
    if weights is None:
        _check_values(name, network)
        state = network.output.tensors() if isinstance(network, Holder) else network.state_dict()
        return Weights("own", state_sha256(state), is_default=True), ()
    path = Path(weights).expanduser()
    check_exists(path)
    heads = classifiers(network)
    record, _, left = fill_from_file(
        stored(path),
        weights_key,
        lambda state: load_into(network, state, str(path), heads=heads),
        network.state_dict,
        reporter,
    )
    if left:
        reporter.say(
            f"{path}: its classifier is another one than that of {name} and is not used "
            f"({', '.join(left)})"
        )
    return record, left


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

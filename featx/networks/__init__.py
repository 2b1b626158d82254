"""Networks that are trained: from scratch, and tops that are put on a backbone.

In: a name with settings, as ``auto-cnn(blocks=3)``, the number of classes and the image size.
Out: a `torch.nn.Module` with random first weights that depend on a seed only; which of its layers
are frozen. The room must not know how networks are trained, nor data, caches or results. A new
network is a class and an entry in `featx.networks.scratch`.
"""

from __future__ import annotations

from featx.networks.freezing import Count, FineTuned, FrozenCount, count, freeze
from featx.networks.scratch import NETWORKS, SEARCH_SPACE
from featx.networks.spec import NetworkSpec, Top, available_tops, find, get_top

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


def available_networks() -> dict[str, NetworkSpec]:
    """All networks by name, with their default settings; ``origin`` names each one's source."""
    return dict(NETWORKS)


def is_network(text: str) -> bool:
    """Whether a text names a network of this package, and not a backbone."""
    return text.partition("(")[0] in NETWORKS


def get_network(text: str) -> NetworkSpec:
    """Find a network by its name, with its settings.

    Examples
    --------
    >>> from featx.networks import count, get_network
    >>> count(get_network("cnn-hoogasian-cifar").build(9, 32, seed=0)).n_total_keras
    592169
    """
    return find("network", text, NETWORKS, see="featx list networks")

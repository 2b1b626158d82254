"""Which step of a traced network gives the features by default."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn import functional

__all__ = ["find_default"]

_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_KEEPS = (nn.Dropout, nn.Flatten, nn.Identity)
_FLATTENS = ("flatten", "view", "reshape", "squeeze")


def find_default(
    graph: Graph, network: nn.Module, shapes: Mapping[Node, tuple[int, ...]]
) -> Node | None:
    """Find the last feature map, or what enters the classifier where nothing is pooled.

    It is the input of the last global pooling before the classifier, or before the output where
    there is no classifier; without such a pooling, the input of the classifier, or the output.
    """
    steps = _Steps(graph, dict(network.named_modules()))
    weighted = [node for node in steps.nodes if steps.is_a(node, nn.Linear, nn.Conv2d)]
    if not weighted or not steps.outputs:
        return None
    head = weighted[-1] if steps.classifies(weighted[-1]) else None
    end = head or steps.outputs[-1]
    before = steps.nodes[: steps.nodes.index(end) + 1]
    pooled = [node for node in before if steps.pools(node) and steps.is_global(node, end)]
    if not pooled and head is None:
        return steps.map_before(end, shapes)
    point = (pooled[-1] if pooled else end).args[0]
    while isinstance(point, Node) and steps.is_a(point, nn.Dropout):
        point = point.args[0]
    return point if isinstance(point, Node) else None


class _Steps:
    """The steps of a trace, and what is asked of them."""

    def __init__(self, graph: Graph, modules: Mapping[str, nn.Module]) -> None:
        self.nodes = list(graph.nodes)
        self._modules = modules
        inputs = set(self.nodes[-1].all_input_nodes)
        self.outputs = [node for node in self.nodes if node in inputs]

    def is_a(self, node: Node, *kinds: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(self._modules[str(node.target)], kinds)

    def pools(self, node: Node) -> bool:
        return (
            self.is_a(node, nn.AdaptiveAvgPool2d)
            or node.target is functional.adaptive_avg_pool2d
            or (node.op == "call_method" and node.target == "mean")
        )

    def is_global(self, pool: Node, end: Node) -> bool:
        """Whether nothing gets past a pooling: past that of a squeeze-and-excitation, the map does.

        A maximum of the same map may be taken beside the average.
        """
        (source,) = pool.all_input_nodes[:1]
        beside = [node for node in source.users if self.pools(node) or self._takes_maximum(node)]
        return not self._passes({pool, *beside}, end)

    def _takes_maximum(self, node: Node) -> bool:
        is_method = node.op == "call_method" and node.target in ("amax", "max")
        is_function = node.target in (functional.adaptive_max_pool2d, torch.amax)
        return is_method or is_function or self.is_a(node, nn.AdaptiveMaxPool2d)

    def classifies(self, node: Node) -> bool:
        """Whether the last layer with weights is a classifier, and not of the network's body.

        All goes through a classifier, and nothing is normalised behind it. A convolution is one
        where it is 1 x 1 and pooled at once, or, as in SqueezeNet, has a dropout before it.
        """
        behind = self.nodes[self.nodes.index(node) + 1 :]
        if any(self.is_a(other, *_NORMS) for other in behind):
            return False
        if all(self._passes({node}, output) for output in self.outputs):
            return False
        if self.is_a(node, nn.Linear):
            return True
        is_small = getattr(self._modules[str(node.target)], "kernel_size", None) == (1, 1)
        is_dropped = any(self.is_a(source, nn.Dropout) for source in node.all_input_nodes)
        is_pooled_at_once = any(self.pools(user) for user in node.users)
        is_pooled = any(self.pools(other) for other in behind)
        return is_small and (is_pooled_at_once or (is_dropped and is_pooled))

    def _passes(self, walls: Collection[Node], end: Node) -> bool:
        """Whether something of the images reaches a step without going through others."""
        ways = [node for node in self.nodes if node.op == "placeholder"][:1]
        seen = set(walls)
        while ways:
            node = ways.pop()
            if node in seen:
                continue
            if node is end:
                return True
            seen.add(node)
            ways += node.users
        return False

    def map_before(self, node: Node, shapes: Mapping[Node, tuple[int, ...]]) -> Node:
        """Give the map that was only flattened; the step itself where it is none."""

        def is_map(step: Node) -> bool:
            shape = shapes.get(step, ())
            return len(shape) == 3 and math.prod(shape[1:]) > 1

        found = node
        while not is_map(node) and self._keeps(found) and isinstance(found.args[0], Node):
            found = found.args[0]
        return found if is_map(found) else node

    def _keeps(self, node: Node) -> bool:
        is_method = node.op == "call_method" and node.target in _FLATTENS
        is_function = node.target in (torch.flatten, torch.reshape, torch.squeeze)
        return is_method or is_function or self.is_a(node, *_KEEPS)

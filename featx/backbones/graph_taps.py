"""Tap points of a network that torch.fx can trace.

The trace names every step, functional ones too (DenseNet's last ReLU is one), and
what lies behind the tap is neither computed nor kept. Shapes come from one pass
without values, which computes nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.nn import functional
from torchvision.models.feature_extraction import NodePathTracer

from featx.backbones.fake import N_FAKE, run_fake
from featx.backbones.taps import CLASS_TOKEN, Layout, Taps

__all__ = ["GraphTaps"]

Shape = tuple[int, ...]


class GraphTaps(Taps):
    """Tap points of a network that torch.fx can trace.

    The default point is the input of the last global pooling before the
    classifier, or of the classifier itself where nothing is pooled: the last
    convolutional feature map, or the class token of a transformer. A network that
    has neither has no default.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; not changed.
    input_px : int
        Side of the square input.
    aliases : mapping of str to str, optional
        Other names for some of the points.
    layout : Layout, optional
        What is known of the tokens and maps.
    default : str, optional
        Name of the default point, where it is not the one described above.
    """

    def __init__(
        self,
        network: nn.Module,
        input_px: int,
        aliases: Mapping[str, str] | None = None,
        layout: Layout | None = None,
        default: str | None = None,
    ) -> None:
        tracer = NodePathTracer()
        self._graph: Graph = tracer.trace(network)
        self._root = network
        self.aliases = dict(aliases or {})
        self._shapes = run_fake(
            lambda copy, images: _Shapes(copy, self._graph).shapes_for(images), network, input_px
        )
        paths = {
            node: path for node, path in tracer.node_to_qualname.items() if node in self._shapes
        }
        before_head = None if default else _before_head(self._graph, network)
        if before_head and before_head in paths and before_head.target is operator.getitem:
            # The trace numbers its steps ("getitem_5"): a name that lasts instead.
            paths[before_head] = CLASS_TOKEN
        self._node_of = dict(_short_names(paths))
        self._name_of = {path: self._short(node) for node, path in paths.items()}
        self._layout = layout or Layout()
        self.points = tuple(
            self._layout.point(name, self._shapes[node], self._module(node))
            for name, node in self._node_of.items()
        )
        is_point = before_head is not None and before_head in paths
        self.default = self._short(before_head) if is_point else default

    def _module(self, node: Node) -> nn.Module | None:
        is_module = node.op == "call_module"
        return self._root.get_submodule(str(node.target)) if is_module else None

    def _short(self, node: Node | None) -> str:
        return next(name for name, other in self._node_of.items() if other is node)

    def _canonical(self, name: str) -> str:
        path = self.aliases.get(name, name)
        if path in self._name_of:
            return self._name_of[path]
        inside = [short for full, short in self._name_of.items() if full.startswith(f"{path}.")]
        return inside[-1] if inside else path

    def cut(self, name: str) -> nn.Module:
        """Network that computes one tap point, with its parameters' names; see `Taps.cut`."""
        graph, outputs = self._copy_until([self._node_of[name]])
        graph.output(outputs[0])
        return self._finish(graph)

    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Network that computes several points in one pass, see `Taps.cut_many`."""
        graph, outputs = self._copy_until([self._node_of[name] for name in names])
        graph.output(tuple(outputs))
        return self._finish(graph)

    def _copy_until(self, wanted: Sequence[Node]) -> tuple[Graph, list[Node]]:
        """Copy the graph up to the last node wanted; give the nodes to put out, in order."""
        graph = Graph()
        copies: dict[Node, Node] = {}
        outputs: dict[Node, Node] = {}
        for node in self._graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node not in wanted:
                continue
            is_last = len(outputs) == len(set(wanted)) - 1
            # A copy, for what comes later may write into this one (a ReLU in place).
            output = copies[node] if is_last else graph.call_method("clone", (copies[node],))
            if self._layout.puts_channels_last(self._shapes[node], self._module(node)):
                output = graph.call_method("permute", (output, 0, 3, 1, 2))
            outputs[node] = output
            if is_last:
                break
        return graph, [outputs[node] for node in wanted]

    def _finish(self, graph: Graph) -> nn.Module:
        cut = GraphModule(self._root, graph)
        cut.graph.eliminate_dead_code()
        cut.recompile()
        cut.delete_all_unused_submodules()
        return cut.eval()


class _Shapes(Interpreter):
    """Runs a traced network and remembers the shape of every tensor with one entry an image."""

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        super().__init__(network, graph=graph)
        self._shapes: dict[Node, Shape] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if (
            isinstance(value, torch.Tensor)
            and value.dim() > 1
            and value.shape[0] == N_FAKE
            and n.op not in ("placeholder", "get_attr")
        ):
            self._shapes[n] = tuple(value.shape[1:])
        return value

    def shapes_for(self, image: torch.Tensor) -> dict[Node, Shape]:
        self.run(image)
        return self._shapes


def _short_names(paths: Mapping[Node, str]) -> Iterator[tuple[str, Node]]:
    """Name each node by the outermost module that ends with it, else by its path."""
    last_of: dict[str, Node] = {}
    for node, path in paths.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            last_of[".".join(parts[:depth])] = node
    taken: set[Node] = set()
    for node, path in paths.items():
        parts = path.split(".")
        names = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        name = next((name for name in names if last_of[name] is node), path)
        if node not in taken:
            taken.add(node)
            yield name, node


def _before_head(graph: Graph, network: nn.Module) -> Node | None:
    modules = dict(network.named_modules())

    def is_a(node: Node, *kinds: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(modules[str(node.target)], kinds)

    def pools(node: Node) -> bool:
        return (
            is_a(node, nn.AdaptiveAvgPool2d)
            or node.target is functional.adaptive_avg_pool2d
            or (node.op == "call_method" and node.target == "mean")
        )

    nodes = list(graph.nodes)
    heads = [i for i, node in enumerate(nodes) if is_a(node, nn.Linear, nn.Conv2d)]
    if not heads:
        return None
    head = heads[-1]
    if _goes_on(nodes[head + 1 :], modules):
        # No classifier follows: a network that was cut off already.
        head = len(nodes) - 1
    pooled = [node for node in nodes[:head] if pools(node)]
    point = (pooled[-1] if pooled else nodes[head]).args[0]
    while isinstance(point, Node) and is_a(point, nn.Dropout):
        point = point.args[0]
    return point if isinstance(point, Node) else None


def _goes_on(nodes: Sequence[Node], modules: Mapping[str, nn.Module]) -> bool:
    """Whether these steps normalise or add, as no step behind a classifier does."""
    adds = (operator.add, operator.iadd, torch.add)
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    return any(
        node.target in adds
        or (node.op == "call_module" and isinstance(modules[str(node.target)], norms))
        for node in nodes
    )

"""Where features can be tapped from a network, and the network cut off there.

`GraphTaps` traces the network with torch.fx, so that functional steps can be
tapped too (DenseNet's last ReLU is one) and nothing behind the tap is computed
or kept. `ModuleTaps` needs no trace: it stops the forward pass with a hook.
Both learn every shape from one pass over fake tensors, which computes nothing.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.nn import functional
from torchvision.models.feature_extraction import NodePathTracer

from featx.errors import BackboneError, unknown_name

__all__ = ["GraphTaps", "ModuleTaps", "TapPoint", "Taps"]

Shape = tuple[int, ...]

CLASS_TOKEN = "class_token"  # noqa: S105


@dataclass(frozen=True)
class TapPoint:
    """One place in a network whose output can be the features.

    Parameters
    ----------
    name : str
        The name to give to ``--layer``.
    shape : tuple of int
        Shape of the output for one image: ``(channels, height, width)`` for a
        feature map, ``(tokens, channels)`` for a transformer, ``(channels,)``.
    """

    name: str
    shape: Shape

    @property
    def n_values(self) -> int:
        """Number of values for one image, flattened."""
        return math.prod(self.shape)


class Taps(ABC):
    """All tap points of one network at one input size."""

    default: str
    points: tuple[TapPoint, ...]
    aliases: Mapping[str, str] = MappingProxyType({})

    def find(self, name: str | None) -> TapPoint:
        """Look up a tap point.

        Parameters
        ----------
        name : str or None
            A name of `points`; None for the default.

        Returns
        -------
        TapPoint
            Of that name.

        Raises
        ------
        UsageError
            If there is none, with the nearest names.
        """
        wanted = self.default if name is None else self._canonical(name)
        for point in self.points:
            if point.name == wanted:
                return point
        names = [point.name for point in self.points]
        error = unknown_name("layer", wanted, [*names, *self.aliases])
        error.add_note(f"the layers are: {', '.join([*self.aliases, *names])}")
        raise error

    def _canonical(self, name: str) -> str:
        return name

    @abstractmethod
    def cut(self, name: str) -> nn.Module:
        """Network that computes the output of one tap point and nothing behind it."""


class GraphTaps(Taps):
    """Tap points of a network that torch.fx can trace.

    The default point is the input of the last global pooling before the
    classifier, or of the classifier itself where nothing is pooled: the last
    convolutional feature map, or the class token of a transformer.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; not changed.
    input_px : int
        Side of the square input.
    aliases : mapping of str to str, optional
        Other names for some of the points.
    """

    def __init__(
        self, network: nn.Module, input_px: int, aliases: Mapping[str, str] | None = None
    ) -> None:
        tracer = NodePathTracer()
        self._graph: Graph = tracer.trace(network)
        self._root = network
        self.aliases = dict(aliases or {})
        traced = GraphModule(network, self._graph)
        shapes = _run_fake(lambda image: _Shapes(traced).shapes_for(image), input_px)
        paths = {node: path for node, path in tracer.node_to_qualname.items() if shapes.get(node)}
        default = _before_head(self._graph, network)
        if default.target is operator.getitem and default in paths:
            # The trace numbers its steps ("getitem_5"): a name that lasts instead.
            paths[default] = CLASS_TOKEN
        self._node_of = dict(_short_names(paths))
        self._name_of = {path: self._short(node) for node, path in paths.items()}
        self.points = tuple(TapPoint(name, shapes[node]) for name, node in self._node_of.items())
        self.default = self._short(default)

    def _short(self, node: Node) -> str:
        return next(name for name, other in self._node_of.items() if other is node)

    def _canonical(self, name: str) -> str:
        path = self.aliases.get(name, name)
        if path in self._name_of:
            return self._name_of[path]
        inside = [short for full, short in self._name_of.items() if full.startswith(f"{path}.")]
        return inside[-1] if inside else path

    def cut(self, name: str) -> nn.Module:
        """Network that computes the output of one tap point and nothing behind it.

        Parameters
        ----------
        name : str
            Name of one of `points`.

        Returns
        -------
        torch.nn.Module
            Sharing its parameters with the traced network.
        """
        last = self._node_of[name]
        graph = Graph()
        copies: dict[Node, Node] = {}
        for node in self._graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node is last:
                break
        graph.output(copies[last])
        cut = GraphModule(self._root, graph)
        cut.graph.eliminate_dead_code()
        cut.recompile()
        cut.delete_all_unused_submodules()
        return cut.eval()


class ModuleTaps(Taps):
    """Tap points of any network: the outputs of its modules.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    input_px : int
        Side of the square input.
    default : str
        Path of the module whose output is the default.
    """

    def __init__(self, network: nn.Module, input_px: int, default: str) -> None:
        self._network = network
        self.default = default
        shapes: dict[str, Shape] = {}

        def record(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor):
                    shapes[name] = tuple(output.shape[1:])

            return hook

        handles = [
            module.register_forward_hook(record(name))
            for name, module in network.named_modules()
            if name
        ]
        try:
            _run_fake(network, input_px)
        finally:
            for handle in handles:
                handle.remove()
        self.points = tuple(TapPoint(name, shape) for name, shape in shapes.items())

    def cut(self, name: str) -> nn.Module:
        """Network that stops at the output of one module.

        Parameters
        ----------
        name : str
            Name of one of `points`.

        Returns
        -------
        torch.nn.Module
            Sharing its parameters with the network.
        """
        return _StopAt(self._network, name)


class _ReachedError(Exception):
    def __init__(self, output: torch.Tensor) -> None:
        self.output = output


class _StopAt(nn.Module):
    """Runs a network up to one module and returns that module's output."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    @staticmethod
    def _stop(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        raise _ReachedError(output)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        handle = self.network.get_submodule(self.name).register_forward_hook(self._stop)
        try:
            self.network(images)
        except _ReachedError as reached:
            return reached.output
        finally:
            handle.remove()
        raise BackboneError("the layer was not reached in the forward pass")


class _Shapes(Interpreter):
    """Runs a traced network and remembers the shape of every tensor."""

    def __init__(self, traced: GraphModule) -> None:
        super().__init__(traced)
        self._shapes: dict[Node, Shape] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if (
            isinstance(value, torch.Tensor)
            and value.dim() > 1
            and n.op not in ("placeholder", "get_attr")
        ):
            self._shapes[n] = tuple(value.shape[1:])
        return value

    def shapes_for(self, image: torch.Tensor) -> dict[Node, Shape]:
        self.run(image)
        return self._shapes


def _run_fake(function: Any, input_px: int) -> Any:
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            return function(torch.empty(2, 3, input_px, input_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BackboneError(
            f"the network does not run at an input size of {input_px} pixels: {reason}. "
            "Choose another --input-size, or leave it out for the size of the weights"
        ) from error


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


def _before_head(graph: Graph, network: nn.Module) -> Node:
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
        raise BackboneError(f"{type(network).__name__} has no classifier to cut off: give --layer")
    head = heads[-1]
    pooled = [node for node in nodes[:head] if pools(node)]
    point = (pooled[-1] if pooled else nodes[head]).args[0]
    while isinstance(point, Node) and is_a(point, nn.Dropout):
        point = point.args[0]
    if not isinstance(point, Node):
        raise BackboneError(f"{type(network).__name__} has no feature map: give --layer")
    return point

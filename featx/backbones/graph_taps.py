"""Tap points of a network that torch.fx can trace, and which of them is the default.

The trace names every step, functional ones too (DenseNet's last ReLU is one), and
what lies behind the tap is neither computed nor kept. Shapes come from one pass
without values, which computes nothing.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Proxy
from torch.nn import functional
from torchvision.models.feature_extraction import NodePathTracer

from featx.backbones.fake import N_FAKE, buffers_kept, run_fake, unchanged
from featx.backbones.own_code import random_states, steps_of
from featx.backbones.taps import CLASS_TOKEN, Layout, Taps

__all__ = ["GraphTaps", "find_default"]

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


Shape = tuple[int, ...]

_FIRST = "first call"


class GraphTaps(Taps):
    """Tap points of a network that torch.fx can trace.

    The default point is the input of the last global pooling before the
    classifier, or of the classifier itself where nothing is pooled: the last
    convolutional feature map, or the class token of a transformer. A network without a
    classifier, one that was cut off, ends at its output in its place.
    """

    def __init__(
        self,
        network: nn.Module,
        input_px: int,
        aliases: Mapping[str, str] | None = None,
        layout: Layout | None = None,
        default: str | None = None,
    ) -> None:
        tracer = _Tracer()
        before = random_states()
        with buffers_kept(network), unchanged(network):
            self._graph: Graph = tracer.trace(network)
            read = {str(node.target) for node in self._graph.nodes if node.op == "get_attr"}
            made = {name: value for name, value in vars(network).items() if name in read}
        vars(network).update(made | vars(network))  # tensors that the forward pass makes itself
        self._is_by_chance = random_states() != before
        self._root, self._input_px = network, input_px
        self._is_leaf = tracer.is_leaf_module
        self.aliases = dict(aliases or {})
        self._shapes = run_fake(
            lambda copy, images: _Shapes(copy, self._graph).shapes_for(images), network, input_px
        )
        paths = {
            node: path for node, path in tracer.node_to_qualname.items() if node in self._shapes
        }
        before_head = None if default else find_default(self._graph, network, self._shapes)
        if before_head and before_head in paths and before_head.target is operator.getitem:
            # The trace numbers its steps ("getitem_5"): a name that lasts instead.
            paths[before_head] = CLASS_TOKEN
        ends = _ends(paths, tracer.calls, dict(network.named_modules()))
        names: dict[Node, str] = {}
        for name in sorted(ends, key=lambda name: name.count(".")):
            names.setdefault(ends[name], name)
        self._node_of = {names[node]: node for node in paths}
        self._name_of = {name: names[node] for name, node in ends.items()}
        self._layout = layout or Layout()
        self.points = tuple(
            replace(
                self._layout.point(name, self._shapes[node], self._module(node)),
                variant=_FIRST if name in tracer.calls and self._is_repeated(tracer, name) else "",
            )
            for name, node in self._node_of.items()
        )
        self.default = names[before_head] if before_head and before_head in paths else default

    def _module(self, node: Node) -> nn.Module | None:
        is_module = node.op == "call_module"
        return self._root.get_submodule(str(node.target)) if is_module else None

    def _is_repeated(self, tracer: _Tracer, name: str) -> bool:
        """Whether a module with modules inside is called several times."""
        is_leaf = self._is_leaf(self._root.get_submodule(name), name)
        return len(tracer.calls[name]) > 1 and not is_leaf

    def is_true(self) -> bool:
        """Whether the trace computes what the network does in its second pass, bit for bit."""
        root, is_leaf = self._root, self._is_leaf
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 3, self._input_px, self._input_px, generator=generator)
        # Older versions left out steps whose output is not used, though they may write in place.
        used = GraphModule(root, self._copy_until([])[0])
        used.graph.eliminate_dead_code()
        try:
            by_trace = steps_of(root, Interpreter(root, graph=used.graph).run, is_leaf, image)
            by_itself = steps_of(root, root, is_leaf, image, n_before=2)
        except Exception:  # whatever the trace of somebody's code runs into
            return False
        paths = {path for path, _ in by_trace}
        is_equal = by_trace == [(path, digest) for path, digest in by_itself if path in paths]
        return is_equal and not self._is_by_chance

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
        cut.delete_all_unused_submodules()
        return cut


class _Tracer(NodePathTracer):  # type: ignore[misc]
    """Keeps what each module gave, call by call; None where that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Node | None]] = {}

    def create_args_for_root(self, root_fn: Any, *args: Any, **options: Any) -> Any:
        """Trace with the defaults of a forward pass: ``mask=None`` is None, and no step."""
        function, proxies = super().create_args_for_root(root_fn, *args, **options)
        parameters = list(inspect.signature(root_fn).parameters.values())
        for i, parameter in enumerate(parameters[: len(proxies)]):
            if parameter.default is not parameter.empty:
                proxies[i] = parameter.default
        return function, proxies

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        node = output.node if isinstance(output, Proxy) else None
        self.calls.setdefault(self.path_of_module(m), []).append(node)
        return output


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


def _ends(
    paths: Mapping[Node, str], calls: Mapping[str, Sequence[Node | None]], taken: Collection[str]
) -> dict[str, Node]:
    """Give the step that each name stands for: the path of the step, or a module that ends there.

    A module that is called several times has its name for its first call, ``NAME_1`` for the next.
    """
    ends: dict[str, Node] = {}
    for node, path in paths.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            ends[".".join(parts[:depth])] = node
    for path, outputs in calls.items():
        if len(outputs) == 1:
            continue
        ends.pop(path, None)
        names = (f"{path}_{call}" if call else path for call in range(len(outputs)))
        for call, (name, last) in enumerate(zip(names, outputs, strict=True)):
            if last is not None and last in paths and not (call and name in taken):
                ends[name] = last
    return ends

"""Networks that are programs: TorchScript, and what ``torch.export`` made.

Their steps are not modules, so they are tapped at their output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from featx.backbones.fake import N_FAKE
from featx.backbones.taps import Repeated, TapPoint, Taps
from featx.errors import BackboneError

__all__ = ["Holder", "ProgramTaps", "is_program"]

_OUTPUT = "output"


def is_program(network: nn.Module) -> bool:
    """Whether a network was scripted, traced or exported."""
    return isinstance(network, torch.jit.ScriptModule) or _is_exported(network)


def _is_exported(network: nn.Module) -> bool:
    if not isinstance(network, torch.fx.GraphModule):
        return False
    is_aten = (isinstance(node.target, torch._ops.OpOverload) for node in network.graph.nodes)
    return any(is_aten)


class Program(nn.Module):
    """Runs a program on any number of images: one that was exported may take just so many."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.n_images = _n_images(program)
        # What is frozen into the program has no name, and no digest.
        if not self.tensors():
            raise BackboneError(
                "the program has no weights of its own, so that nothing tells which ones it holds: "
                "return it as it was before torch.jit.freeze"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        n = self.n_images
        if n is None or n == len(images):
            return self.program(images)  # type: ignore[no-any-return]
        n_more = -len(images) % n
        padded = torch.cat([images, images[-1:].expand(n_more, *images.shape[1:])])
        parts = [padded[start : start + n] for start in range(0, len(padded), n)]
        return torch.cat([self.program(part) for part in parts])[: len(images)]

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", *_: object, **__: object
    ) -> Iterator[tuple[str, nn.Module]]:
        """Give itself alone: the modules of a program take no hooks."""
        memo = set() if memo is None else memo
        if self not in memo:
            memo.add(self)
            yield prefix, self

    def train(self, mode: bool = True) -> Program:
        """Change the mode of TorchScript; an exported program is of one mode."""
        self.training = mode
        if isinstance(self.program, torch.jit.ScriptModule):
            self.program.train(mode)
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """Give its weights, with constants that a state dict leaves out."""
        return {**dict(self.program.named_parameters()), **dict(self.program.named_buffers())}


def _n_images(program: nn.Module) -> int | None:
    if not isinstance(program, torch.fx.GraphModule):
        return None
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    shape = [*getattr(inputs[0].meta.get("val"), "shape", ())] if inputs else []
    return shape[0] if shape and isinstance(shape[0], int) else None


class Holder(nn.Module):
    """A network whose one module is a program."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.output = Program(program)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        output: torch.Tensor = self.output(images)
        return output


class ProgramTaps(Taps):
    """The one point of a program: its output."""

    def __init__(self, network: Holder, input_px: int, default: str | None) -> None:
        self._network = network
        self.default = default or _OUTPUT
        try:
            with torch.no_grad():
                output = network(torch.zeros(N_FAKE, 3, input_px, input_px))
        except Exception as error:
            reason = str(error).strip().splitlines() or [repr(error)]
            raise BackboneError(
                f"the program does not run on float32 images (n, 3, {input_px}, {input_px}): "
                f"{reason[-1]}"
            ) from error
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) < 2 or shape[0] != N_FAKE:
            what = shape or type(output).__name__
            raise BackboneError(
                f"the program gives {what} for {N_FAKE} images: its output must be one tensor with "
                "one entry an image"
            )
        self.points = (TapPoint(_OUTPUT, shape[1:]),)

    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Give its output, see `Taps.cut_many`."""
        return Repeated(self._network, len(names))

"""A forward pass without values: shapes without computing, and the sizes that work."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.modules.module import register_module_parameter_registration_hook

from featx.errors import BackboneError

__all__ = ["N_FAKE", "buffers_kept", "least_size", "run_fake", "unchanged", "without_values"]

T = TypeVar("T")

N_FAKE = 5
"""Images in a fake batch: a number by which nothing else in a network is likely to be long."""

_LARGEST_PX = 1024


def run_fake(run: Callable[[nn.Module, torch.Tensor], T], network: nn.Module, input_px: int) -> T:
    """Run a network on images without values."""

    def pass_at(px: int) -> T:
        return _pass(run, network, px)

    try:
        return pass_at(input_px)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        least = least_size(pass_at, input_px)
        mend = (
            f"The least size that works is {least}"
            if least
            else "Leave --input-size out for the size of the weights"
        )
        raise BackboneError(
            f"the network does not run at an input size of {input_px} pixels: {reason}. {mend}"
        ) from error


def least_size(pass_at: Callable[[int], object], failing_px: int) -> int | None:
    """Find the least size at which a network runs, by trying."""
    low, high = failing_px, 2 * failing_px
    while not _works(pass_at, high):
        low, high = high, 2 * high
        if high > _LARGEST_PX:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(pass_at, middle) else (middle, high)
    return high


def _works(pass_at: Callable[[int], object], input_px: int) -> bool:
    try:
        pass_at(input_px)
    except Exception:
        return False
    return True


def _pass(run: Callable[[nn.Module, torch.Tensor], T], network: nn.Module, px: int) -> T:
    """Try a copy on the meta device, which is fastest, then fake tensors, then real ones."""
    shape = (N_FAKE, 3, px, px)
    try:
        with torch.device("meta"), torch.no_grad():
            return run(_emptied_copy(network), torch.empty(shape))
    except Exception:  # deepcopy or the meta device may fail
        if any(parameter.is_meta for parameter in network.parameters()):
            raise  # a network without values has no other way
    try:
        with (
            _quiet(),
            FakeTensorMode(allow_non_fake_inputs=True),
            unchanged(network),
            torch.no_grad(),
        ):
            return run(network, torch.empty(shape))
    except (DataDependentOutputException, DynamicOutputShapeException):
        # The pass depends on values, which fake tensors do not have.
        with unchanged(network), torch.no_grad():
            return run(network, torch.zeros(shape))


def _emptied_copy(network: nn.Module) -> nn.Module:
    """Copy modules, but no values: each tensor becomes one on the meta device."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        for values in (module._parameters, module._buffers, vars(module)):
            for value in values.values():
                if isinstance(value, nn.Parameter):
                    memo[id(value)] = nn.Parameter(value.detach().to("meta"), False)
                elif isinstance(value, torch.Tensor):
                    memo[id(value)] = value.detach().to("meta")
    return copy.deepcopy(network, memo)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing the trace of a pass that fails: the error says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def without_values(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose parameters and buffers have shapes only.

    What the network computes from values while it is built (RegNet's widths) is computed;
    its parameters take no memory and are not initialised.
    """

    def emptied(module: nn.Module, name: str, value: nn.Parameter | None) -> Any:
        return None if value is None else nn.Parameter(value.detach().to("meta"), False)

    handle = register_module_parameter_registration_hook(emptied)
    try:
        return build().to("meta")
    finally:
        handle.remove()


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Put back what modules hold: some keep tensors of a pass (LeViT), and fake ones are useless.

    Attributes are restored, and the content of those that are dictionaries or lists, among them
    the parameters, buffers and hooks of every module.
    """
    before = [
        (vars(module), dict(vars(module)), [(held, held.copy()) for held in _containers(module)])
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for attributes, values, contents in before:
            _restore(attributes, values)
            for container, content in contents:
                _restore(container, content)


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Put back what a pass writes into buffers: counters, running averages."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


def _containers(module: nn.Module) -> list[dict[Any, Any] | list[Any]]:
    return [value for value in vars(module).values() if isinstance(value, dict | list)]


def _restore(target: Any, content: Any) -> None:
    target.clear()
    (target.update if isinstance(target, dict) else target.extend)(content)

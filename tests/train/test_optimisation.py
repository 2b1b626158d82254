"""Optimisers, schedules and losses against torch's own and Keras's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featx.errors import UsageError
from featx.train.checkpoint import read_checkpoint, to_json, write_checkpoint
from featx.train.optimisation import get_loss, get_optimizer, make_scheduler
from featx.train.plan import LOSSES, OPTIMIZERS


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))]


def steps(optimizer: torch.optim.Optimizer, values: list[torch.nn.Parameter]) -> torch.Tensor:
    for _ in range(5):
        optimizer.zero_grad()
        (values[0] ** 2).sum().backward()
        optimizer.step()
    return values[0].detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_steps_as_torchs_of_that_name(name: str) -> None:
    ours = parameters()
    made = get_optimizer(name, None, 0.01)(ours, lr=0.1)
    theirs = parameters()
    if name == "Nesterov":
        other: torch.optim.Optimizer = torch.optim.SGD(
            theirs, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
        )
    else:
        other = getattr(torch.optim, name)(theirs, lr=0.1, weight_decay=0.01)
    assert torch.equal(steps(made, ours), steps(other, theirs))


def test_momentum_is_taken_up() -> None:
    plain, heavy = (
        steps(get_optimizer("SGD", momentum)(values, lr=0.1), values)
        for momentum, values in ((None, parameters()), (0.5, parameters()))
    )
    assert not torch.equal(plain, heavy)
    made = get_optimizer("RMSprop", 0.5)(parameters(), lr=0.1)
    assert made.param_groups[0]["momentum"] == 0.5


def rates(name: str, losses: list[float], **settings: float) -> list[float]:
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    scheduler = make_scheduler(
        name, optimizer, epochs=len(losses), step_size=int(settings["step_size"]), gamma=0.1
    )
    seen = []
    for loss in losses:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*([loss] if name == "plateau" else []))
    return seen


def test_rates_are_those_of_the_formulas() -> None:
    flat = [1.0] * 6
    assert rates("none", flat, step_size=2) == [1.0] * 6
    np.testing.assert_allclose(rates("step", flat, step_size=2), [1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = [(1 + np.cos(np.pi * t / 6)) / 2 for t in range(6)]
    np.testing.assert_allclose(rates("cosine", flat, step_size=2), cosine)
    # The first loss is the best; after two epochs without a better one the rate falls.
    np.testing.assert_allclose(rates("plateau", flat, step_size=2), [1, 1, 1, 0.1, 0.1, 0.01])
    np.testing.assert_allclose(rates("plateau", flat, step_size=1)[:3], [1, 1, 0.1])
    falling = [1 / (t + 1) for t in range(6)]
    assert rates("plateau", falling, step_size=2) == [1.0] * 6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_taken_up_goes_to_the_device_but_for_the_count_of_steps(
    name: str, tmp_path: Path
) -> None:
    """A count on a GPU would make every step wait for it."""
    values, make = parameters(), get_optimizer(name, 0.9 if name == "SGD" else None)
    optimizer = make(values, lr=0.1)
    steps(optimizer, values)
    tensors: dict[str, torch.Tensor] = {}
    plain = to_json({"optimizer": optimizer.state_dict()}, tensors)
    write_checkpoint(tmp_path / "file.safetensors", "key", plain, tensors)
    state = read_checkpoint(tmp_path / "file.safetensors", "key")["optimizer"]
    there = [value.detach().to("meta").requires_grad_() for value in values]
    resumed = make(there, lr=0.1)
    resumed.load_state_dict(state)
    (kept,) = resumed.state.values()
    devices = {key: value.device.type for key, value in kept.items() if torch.is_tensor(value)}
    assert devices == {key: "cpu" if key == "step" else "meta" for key in devices}
    assert devices
    assert name in ("SGD", "Nesterov") or float(kept["step"]) == 5


def test_binary_cross_entropy_is_keras_formula() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 4, (20, 5)), rng.integers(0, 5, 20)
    logits[0] = [60, 0, 0, 0, 0]  # beyond the cut-off
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = np.clip(p, 1e-7, 1 - 1e-7)
    y = np.eye(5)[labels]
    wanted = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    loss = get_loss("binary-cross-entropy")()
    found = loss(torch.tensor(logits, dtype=torch.float64), torch.tensor(labels))
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_cross_entropy_is_torchs() -> None:
    assert get_loss("cross-entropy") is torch.nn.CrossEntropyLoss
    assert set(LOSSES) == {"cross-entropy", "binary-cross-entropy"}


def test_unknown_names_are_told() -> None:
    with pytest.raises(UsageError, match="did you mean Adam"):
        get_optimizer("adm")
    with pytest.raises(UsageError, match="cosine"):
        make_scheduler(
            "cosin", torch.optim.SGD(parameters(), lr=1.0), epochs=1, step_size=1, gamma=0.1
        )
    with pytest.raises(UsageError, match="cross-entropy"):
        get_loss("cross")

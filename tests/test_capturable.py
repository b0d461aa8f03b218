"""Optimizers whose numbers stay on the device: `capturable`, learning rates as tensors, and GradScaler."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import assert_close, counted_launches
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tinynet
import tinynet.functional as F
from tinynet import dispatch, optim

pytestmark = pytest.mark.kernels
SHAPES = ((17, 3), (2050,), (), (5, 1, 2))
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"fused": True, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.1}),
    ("SGD", {"fused": True, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"capturable": True, "weight_decay": 0.01, "amsgrad": True}),
    ("AdamW", {"capturable": True, "weight_decay": 0.1, "betas": (0.8, 0.97)}),
    ("RMSprop", {"capturable": True, "momentum": 0.5, "centered": True}),
    ("Adadelta", {"capturable": True, "weight_decay": 0.01}),
    ("Adamax", {"capturable": True}),
    ("NAdam", {"capturable": True, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"capturable": True, "betas": (0.9, 0.9)}),
    ("RAdam", {"capturable": True, "betas": (0.9, 0.5), "weight_decay": 0.1, "decoupled_weight_decay": True}),
]
on_host = {"fused": None, "capturable": False}


class Waits(TorchDispatchMode):
    """Refuses operators for which the host would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero), func.name()
        return func(*args, **(kwargs or {}))


@contextmanager
def no_wait() -> Iterator[None]:
    with dispatch.own_mode(Waits()):
        yield


def make(device: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in SHAPES]


def give_gradients(*lists: list[nn.Parameter], seed: int, scale: float = 1.0, skip: int | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for index, row in enumerate(zip(*lists, strict=True)):
        gradient = torch.randn(row[0].shape, generator=generator)
        for parameter in row:
            parameter.grad = None if index == skip else gradient.to(parameter.device, parameter.dtype) * scale


def twins(name: str, options: dict[str, Any], device: str) -> tuple[list[nn.Parameter], Any, list[nn.Parameter], Any]:
    """Our optimizer with its learning rate on the device, and PyTorch's in float64 on the host."""
    ours = make(device)
    exact = [nn.Parameter(parameter.detach().cpu().double()) for parameter in ours]
    optimizer = getattr(optim, name)(ours, lr=torch.tensor(0.05, device=device), **options)
    others = {key: on_host.get(key, value) for key, value in options.items()}
    return ours, optimizer, exact, getattr(torch.optim, name)(exact, lr=0.05, foreach=False, **others)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_steps_with_a_schedule_follow_torch_and_never_wait(name: str, options: dict[str, Any], device: str) -> None:
    """Counts of steps differ between parameters: one has no gradient in the first two steps."""
    ours, optimizer, exact, expected = twins(name, options, device)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.8) for each in (optimizer, expected)]
    with counted_launches() as launches:
        for step in range(12):
            give_gradients(ours, exact, seed=step, skip=1 if step < 2 else None)
            with no_wait():
                optimizer.step()
            expected.step()
            for schedule in schedules:
                schedule.step()
    assert len(launches) == 12 + (name == "SGD")  # the first step of SGD's late parameter is not damped
    for index, (parameter, other) in enumerate(zip(ours, exact, strict=True)):
        assert_close(parameter, other, 1e-5, f"parameter {index}")
    if "capturable" in options:
        for values, others in zip(optimizer.state.values(), expected.state.values(), strict=True):
            assert values["step"].device == ours[0].device and values["step"].item() == others["step"].item()


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("engine", ["kernels", "reference"])
def test_a_grad_scaler_skips_steps_without_a_wait(name: str, options: dict[str, Any], engine: Any, device: str) -> None:
    ours, optimizer, exact, expected = twins(name, options, device)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=2)
    scaler.scale(torch.ones((), device=device))
    with tinynet.engine(engine):
        for step in range(6):
            give_gradients(ours, seed=step, scale=scaler.get_scale())
            give_gradients(exact, seed=step)
            overflows = step in (0, 3)
            if overflows:
                ours[1].grad[7] = float("inf")  # pyright: ignore[reportOptionalSubscript]
            before = [parameter.detach().clone() for parameter in ours]
            with no_wait():
                scaler.step(optimizer)
                scaler.update()
            if overflows:
                assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))
            elif name == "SGD" and step == 1:  # its buffers exist since the step that was skipped
                for parameter in exact:
                    expected.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                expected.step()
            else:
                expected.step()
    assert scaler.get_scale() == 1024.0
    for index, (parameter, other) in enumerate(zip(ours, exact, strict=True)):
        assert_close(parameter, other, 1e-5, f"parameter {index}")


def test_gradients_are_those_that_were_not_scaled(device: str) -> None:
    """After a step, as with PyTorch's fused optimizers; gradients that `unscale_` has divided stay as they are."""
    for unscales in (False, True):
        ours = make(device)
        optimizer = optim.AdamW(ours, capturable=True)
        scaler = torch.amp.GradScaler(device, init_scale=8.0)
        scaler.scale(torch.ones((), device=device))
        give_gradients(ours, seed=0, scale=8.0)
        expected = [parameter.grad / 8.0 for parameter in ours]  # pyright: ignore[reportOptionalOperand]
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        for parameter, gradient in zip(ours, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_states_move_with_the_option(device: str) -> None:
    """A state_dict from the host is continued on the device, and one from PyTorch too."""
    for source in (optim.NAdam, torch.optim.NAdam):
        ours, exact = make(device), make(device)
        first, expected = source(ours), optim.NAdam(exact)
        give_gradients(ours, exact, seed=0)
        first.step()
        expected.step()
        second = optim.NAdam(ours, capturable=True)
        saved = copy.deepcopy(first.state_dict())
        saved["param_groups"][0]["capturable"] = True
        second.load_state_dict(saved)
        give_gradients(ours, exact, seed=1)
        second.step()
        expected.step()
        for parameter, other in zip(ours, exact, strict=True):
            assert_close(parameter, other, 1e-5)
            assert second.state[parameter]["mu_product"].device == parameter.device


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_whole_step_reads_no_value_on_the_host(optimizer: str) -> None:
    """Forward, loss, backward, clipping, GradScaler, optimizer and schedule, on tensors without values."""
    with tinynet.engine("auto"), torch.device("meta"):
        model = tinynet.nn.Sequential(
            *(tinynet.nn.Conv2d(3, 8, 3, activation="relu"), tinynet.nn.BatchNorm2d(8), tinynet.nn.MaxPool2d(2)),
            *(tinynet.nn.Dropout(0.1), tinynet.nn.Flatten(), tinynet.nn.Linear(72, 5)),
        )
        chosen: Any
        if optimizer == "sgd":
            chosen = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        else:
            chosen = optim.AdamW(model.parameters(), lr=0.1, capturable=True)
        for group in chosen.param_groups:
            group["lr"] = torch.full((), 0.1)
        scaler = torch.amp.GradScaler("cpu")
        scaler._scale, scaler._growth_tracker = torch.full((), 8.0), torch.zeros((), dtype=torch.int32)
        x, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
        for _ in range(2):
            chosen.zero_grad()
            scaler.scale(F.cross_entropy(model(x), labels)).backward()
            scaler.unscale_(chosen)
            tinynet.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(chosen)
            scaler.update()
            for group in chosen.param_groups:
                group["lr"].mul_(0.9)  # as schedules do


def test_a_capture_that_would_freeze_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode(), torch.device("cuda"):
        parameter = nn.Parameter(torch.zeros(3))
        parameter.grad = torch.zeros(3)
        for refused in (optim.SGD([parameter], lr=0.1), optim.Lion([parameter], lr=0.1)):
            with pytest.raises(RuntimeError, match="capturable=True"):
                refused.step()

"""Converted modules that are recorded as a whole on the CPU engine: they compute the bits of the modules called as
usual, and notice every change that these depend on."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import Tensor

import tinynet
from tinynet.graphs import recorded as graphs
from tinynet.graphs.recorded import Recorded
from tinynet.nn import recorded_runs

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("on_the_cpu_engine")]
_GAIN = torch.full((8, 1, 1), 0.5)


class Residual(torch.nn.Module):
    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(width)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(width)
        self.shortcut = torch.nn.Sequential(
            torch.nn.Conv2d(channels, width, 1, stride, bias=False), torch.nn.BatchNorm2d(width)
        )
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x)) * self.scale


class Branches(torch.nn.Module):
    """Concatenated branches, of which each reads the ones before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = (torch.nn.Conv2d(channels + 4 * n, 4, 1 + 2 * (n % 2), padding=n % 2) for n in range(3))
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(layer, torch.nn.ReLU()) for layer in layers)
        self.mix = torch.nn.Conv2d(channels + 12, channels, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return F.relu(self.norm(self.mix(torch.cat(found, 1))), inplace=True)


class Gate(torch.nn.Module):
    """Multiplies channels by what a small network computes of their means, then shuffles them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.restore = torch.nn.Linear(channels, 6), torch.nn.Linear(6, channels)
        self.gain = torch.nn.Parameter(_GAIN.clone())
        self.order = [0, 2, 1, 3, 4]

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.restore(F.relu(self.reduce(x.mean((2, 3))))))
        y = x * gate[:, :, None, None] + x * self.gain
        return y.unflatten(1, (2, -1)).permute(self.order).flatten(1, 2)


class Attention(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.out.gain = 0.5  # pyright: ignore
        self.norm2 = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(width, 40), torch.nn.GELU(), torch.nn.Linear(40, width))

    def forward(self, x: Tensor) -> Tensor:
        # Attributes of layers, as timm's attention reads those of its dropout.
        gain: Any = self.out.gain if self.out.training else 1.0
        x = x * gain
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.mlp(self.norm2(x))


class Stack(torch.nn.Module):
    """Calls modules in turn; its own forward is joined."""

    def __init__(self, *modules: torch.nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(*modules)
        self.head = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Dropout(0.0), torch.nn.Linear(classes, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


# These stand for classes of a package whose forwards do nothing but compute: all of theirs are traced.
for kind in (Residual, Branches, Gate, Attention, Stack):
    kind.__module__ = "torchvision.imitated"

MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: Stack(Residual(3, 8), Residual(8, 12, 2), classes=12), (2, 3, 10, 11)),
    "branches": (lambda: Stack(torch.nn.Conv2d(3, 6, 3), Branches(6), Branches(6), classes=6), (2, 3, 9, 8)),
    "gate": (lambda: Stack(torch.nn.Conv2d(3, 8, 3), Gate(8), Residual(8, 6), classes=6), (3, 3, 8, 7)),
    "attention": (lambda: torch.nn.Sequential(Attention(16), Attention(16)), (2, 7, 16)),
}


def converted(name: str, seed: int = 0) -> tuple[Any, Any, Tensor]:
    """A converted model, the same in torch.nn and float64, and an input."""
    create, shape = MODELS[name]
    torch.manual_seed(seed)
    model = create()
    x = torch.randn(shape)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    return tinynet.convert(copy.deepcopy(model), verbose=False), model.double(), x


def step(model: Any, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The output, the gradients and the buffers after a forward and a backward."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1)).to(y.dtype))
    assert x.grad is not None
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **gradients, **{name: b.clone() for name, b in model.named_buffers()}}


def unrecorded(model: Any, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    with mock.patch.object(recorded_runs, "_FIRST_CALLS", 1 << 30):
        return step(model, x, seed)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert _strides(found[name]) == _strides(tensor), name


def _strides(x: Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def warm(model: Any, x: Tensor) -> Any:
    """The model after so many steps that the next one runs a recording."""
    for seed in range(3):
        step(model, x, seed)
    return model


@pytest.mark.every_case
@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_model_computes_the_bits_of_its_modules(name: str, runs: list[Recorded]) -> None:
    ours, theirs, x = converted(name)
    other = copy.deepcopy(ours)
    for call in range(5):
        given = x + call / 8
        found, before = step(ours, given, call), len(runs)
        assert before == max(0, call - 1)
        assert_same(found, unrecorded(other, given, call))
        exact = step(theirs, given.double(), call)
        for key, tensor in found.items():
            assert_close(tensor, exact[key], 1e-2, key)
    runs.clear()
    ours.eval()
    other.eval()
    with torch.no_grad():
        with mock.patch.object(recorded_runs, "_FIRST_CALLS", 1 << 30):
            expected = other(x)
        for _ in range(4):
            assert torch.equal(ours(x), expected)
    assert len(runs) == 2


@pytest.mark.parametrize(("limit", "most"), [("_MOST_SAVED", 30_000), ("_MOST_ALLOCATED", 60_000)])
def test_large_models_are_recorded_in_parts(limit: str, most: int, runs: list[Recorded]) -> None:
    ours, _, x = converted("residual")
    other = copy.deepcopy(ours)
    with (
        mock.patch.object(recorded_runs, limit, most),
        mock.patch.object(graphs, "record", wraps=graphs.record) as record,
    ):
        for call in range(4):
            runs.clear()
            record.reset_mock()
            assert_same(step(ours, x, call), unrecorded(other, x, call))
    assert not record.called  # the third call has recorded all parts
    assert len(runs) > 1
    assert all(run.size_of_saved() <= most for run in runs)


def _replace(model: Any) -> None:
    model.body[1].conv2 = tinynet.nn.Conv2d(12, 12, 3, padding=1)


def _mutate(model: Any) -> None:
    model.body[1].order[3:] = [4, 3]


CHANGES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "values": ("residual", lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})),
    "an attribute of a block": ("residual", lambda model: setattr(model.body[0], "scale", 3.0)),
    "contents of an attribute": ("gate", _mutate),
    "a parameter of a block": ("gate", lambda model: setattr(model.body[1], "gain", torch.nn.Parameter(_GAIN * 2))),
    "an attribute of a layer that a block reads": ("attention", lambda model: setattr(model[1].out, "gain", 2.0)),
    "the mode of a layer that a block reads": ("attention", lambda model: model[0].out.eval()),
    "a layer": ("residual", _replace),
    "an attribute of a layer": ("residual", lambda model: setattr(model.body[1].norm2, "eps", 0.5)),
    "a layer's class": ("residual", lambda model: setattr(model.body[0], "relu", tinynet.nn.Tanh())),
    "a block that is gone": ("residual", lambda model: setattr(model.body, "1", torch.nn.Conv2d(8, 12, 1))),
    "a further block": ("branches", lambda model: model.body.append(tinynet.nn.Tanh())),
    "one of a list": ("branches", lambda model: setattr(model.body[1].layers[0], "1", tinynet.nn.Sigmoid())),
    "evaluation of a block": ("residual", lambda model: model.body[1].eval()),
    "evaluation": ("residual", lambda model: model.eval()),
    "a frozen block": ("residual", lambda model: model.body[0].requires_grad_(False)),
    "a hook of a block": ("residual", lambda model: model.body[0].register_forward_hook(lambda m, args, y: y * 2)),
    "a hook of a layer": ("gate", lambda model: model.body[1].reduce.register_forward_hook(lambda m, args, y: y + 1)),
    "a hook of the model": ("residual", lambda model: model.register_forward_hook(lambda m, args, y: y * 2)),
    "a backward hook": (
        "residual",
        lambda model: model.body[1].register_full_backward_hook(lambda m, grads, _: (grads[0] * 2,)),
    ),
    "a forward": ("residual", lambda model: setattr(model.body[1], "forward", model.body[1].conv1.forward)),
    "dropout": ("residual", lambda model: setattr(model.head[2], "p", 0.5)),
    "no children": ("residual", lambda model: setattr(model.body[0], "shortcut", tinynet.nn.Conv2d(3, 8, 1))),
}


@pytest.mark.every_case
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_within_a_model_is_noticed(change: str, runs: list[Recorded]) -> None:
    name, apply = CHANGES[change]
    model, _, x = converted(name, seed=2)
    warm(model, x)
    assert runs
    other = copy.deepcopy(model)
    for changed in (model, other):
        torch.manual_seed(3)
        apply(changed)
    for seed in range(4):
        found = []
        for function, each in ((step, model), (unrecorded, other)):
            torch.manual_seed(seed)
            found.append(function(each, x, seed))
        assert_same(*found)


def test_second_derivatives_and_functional_calls(runs: list[Recorded]) -> None:
    for name in ("residual", "gate"):
        model, exact, x = converted(name, seed=4)
        warm(model, x)
        exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in model.state_dict().items()})
        found = []
        for each, given in ((model, x), (exact, x.double())):
            given = given.clone(memory_format=torch.preserve_format).requires_grad_()
            y = each(given)
            (dx,) = torch.autograd.grad(y.square().sum(), given, create_graph=True)
            found.append([dx.detach(), *torch.autograd.grad(dx.square().sum(), [given, next(each.parameters())])])
            parameters = {key: p.detach() * 1.25 for key, p in each.named_parameters()}
            last = list(parameters)[-2]
            parameters[last].requires_grad_()
            y = torch.func.functional_call(each, parameters, (given,))
            found[-1] += [y.detach(), *torch.autograd.grad(y.square().sum(), [given, parameters[last]])]
        for ours, theirs in zip(*found, strict=True):
            assert_close(ours, theirs, 2e-2)
    assert runs


@torch.fx.wrap
def scaled_by_chance(x: Tensor) -> Tensor:
    return x * torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(0.5).div_(0.5)


class ByChance(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return scaled_by_chance(super().forward(x)) + self.shortcut(x)


ByChance.__module__ = "torchvision.imitated"


def test_random_numbers_of_pytorch_are_drawn_again_in_each_call(runs: list[Recorded]) -> None:
    torch.manual_seed(5)
    model = tinynet.convert(Stack(ByChance(3, 8), ByChance(8, 6), classes=6), verbose=False)
    other, x = copy.deepcopy(model), torch.randn(4, 3, 8, 9).to(memory_format=torch.channels_last)
    outputs = []
    for call in range(5):
        found = []
        for function, each in ((step, model), (unrecorded, other)):
            torch.manual_seed(call)
            found.append(function(each, x, call))
        assert_same(*found)
        outputs.append(found[0]["y"])
    assert runs[-1].draws
    assert not torch.equal(outputs[3], outputs[4])
    given = x.clone().requires_grad_()
    y = model(given)
    (first,) = torch.autograd.grad(y.sum(), given, retain_graph=True)
    (again,) = torch.autograd.grad(y.sum(), given, create_graph=True)
    assert_close(again, first, 1e-4)


class Counting(torch.nn.Module):
    """Changes a buffer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        self.register_buffer("calls", torch.zeros(1))
        self.calls: Tensor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layers(x.mul_(2)) + y


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 6), torch.nn.Linear(5, 6)
        self.act = torch.nn.Tanh()

    def forward(self, x: Tensor, others: list[Tensor]) -> Tensor:
        return self.act(self.left(x)) + self.act(self.right(others[0])) * others[1]


Counting.__module__ = Two.__module__ = "torchvision.imitated"


def test_what_changes_buffers_or_inputs_is_not_recorded() -> None:
    model: Any = tinynet.convert(Counting(), verbose=False)
    for call in range(5):
        x, y = torch.ones(2, 4), torch.zeros(2, 4)
        expected = model.layers(2 * x)
        assert_close(model(x, y), expected, 1e-6)
        assert float(model.calls) == call + 1
        assert torch.equal(x, torch.full((2, 4), 2.0))


def test_parameters_that_are_frozen_in_every_other_step(runs: list[Recorded]) -> None:
    model, _, x = converted("residual")
    other = copy.deepcopy(model)
    for call in range(12):
        for each in (model, other):
            each.requires_grad_(call % 2 == 0)
        assert_same(step(model, x, call), unrecorded(other, x, call))
    assert len({id(run) for run in runs}) == 2
    assert len(runs) == 10


def test_several_inputs(runs: list[Recorded]) -> None:
    torch.manual_seed(6)
    model = tinynet.convert(Two(), verbose=False)
    for seed in range(5):
        torch.manual_seed(seed)
        x, y, z = torch.randn(3, 4), torch.randn(3, 5), torch.randn(3, 6)
        found = []
        for skip in (0, 1 << 30):
            with mock.patch.object(recorded_runs, "_FIRST_CALLS", (skip and 1 << 30) or 2):
                inputs = [t.clone().requires_grad_() for t in (x, y, z)]
                out = model(inputs[0], inputs[1:])
                found.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, *model.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert torch.equal(model(x, [y, z]), found[0][0])
    assert runs


def test_a_recorded_model_is_freed_and_copied() -> None:
    model, _, x = converted("residual")
    warm(model, x)
    other = copy.deepcopy(model)
    assert_same(step(other, x), step(model, x))
    block = weakref.ref(model.body[0])
    del model
    gc.collect()
    assert block() is None


def test_a_converted_model_can_be_reverted_after_it_was_recorded(runs: list[Recorded]) -> None:
    model, _, x = converted("residual")
    warm(model, x)
    expected = step(copy.deepcopy(model), x)
    runs.clear()
    found = step(tinynet.revert(model, verbose=False), x)
    assert not runs
    for key, tensor in expected.items():
        assert_close(found[key], tensor, 1e-3, key)

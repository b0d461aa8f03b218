"""Interplay with PyTorch's dispatcher: modes, traces, subclasses, and in-place changes between two passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import counted_launches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tinynet
from tinynet import functional, nn

pytestmark = pytest.mark.kernels


class Seen(TorchDispatchMode):
    """The names of all operators that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def flops(model: torch.nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """FLOPs of the forward alone, and with the backward."""
    with FlopCounterMode(display=False) as counter:
        result = model(*inputs)
        forward = counter.get_total_flops()
        (result[0] if isinstance(result, tuple) else result).sum().backward()
    return forward, counter.get_total_flops()


def perceptron(library: Any) -> torch.nn.Module:
    return torch.nn.Sequential(library.Linear(6, 8), library.ReLU(), library.Linear(8, 3))


MODELS: dict[str, tuple[Callable[[Any], torch.nn.Module], Tensor]] = {
    "perceptron": (perceptron, torch.randn(5, 6)),
    "perceptron, input gradient": (perceptron, torch.randn(5, 6, requires_grad=True)),
    "convolution": (lambda library: library.Conv2d(3, 8, 3, 2, 1), torch.randn(2, 3, 9, 8, requires_grad=True)),
    "gru, forward": (lambda library: library.GRU(5, 4, bidirectional=True), torch.randn(6, 3, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_pytorch(name: str) -> None:
    make, x = MODELS[name]
    ours, theirs = flops(make(nn), x), flops(make(torch.nn), x)
    assert ours[0] == theirs[0] > 0
    if "forward" not in name:  # PyTorch computes no gradient of the first state; our kernels do
        assert ours[1] == theirs[1]


def test_joined_layers_count_as_separate_ones() -> None:
    joined = nn.Sequential(nn.Linear(6, 8, activation="relu"), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    assert flops(joined, x) == flops(perceptron(torch.nn), x)


def test_modes_see_every_operator() -> None:
    images = torch.randn(2, 4, 8, 8, requires_grad=True)
    model = nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=1, activation="gelu", pool=2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)),
    )
    with Seen() as seen, counted_launches() as launches:
        loss = nn.CrossEntropyLoss()(model(images), torch.tensor([0, 2]))
        rows = nn.Embedding(5, 4)(torch.tensor([[1, 2, 3]]))
        y, _ = nn.LSTM(4, 6)(rows)
        (loss + nn.MSELoss()(y, torch.zeros_like(y))).backward()
    assert launches
    columns = ("convolution", "max_pool", "mean_pool", "dropout", "linear", "activation")
    for column in (*columns, "cross_entropy", "embedding", "recurrent", "elementwise_loss"):
        assert {f"tinynet::{column}", f"tinynet::{column}_backward"} <= set(seen.names), column
    assert images.grad is not None


def test_a_mode_around_the_backward_alone_sees_its_operators() -> None:
    x = torch.randn(5, 6, requires_grad=True)
    layer = nn.Linear(6, 3)
    y = layer(x)
    with Seen() as seen:
        y.sum().backward()
    assert "aten::mm" in seen.names
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(5, 6))


class Named(torch.Tensor):
    """A subclass that adds nothing."""


def test_subclasses_stay_themselves() -> None:
    layer = nn.Linear(6, 3, activation="tanh")
    x = torch.randn(5, 6)
    with counted_launches() as launches:
        y = layer(x.as_subclass(Named))  # pyright: ignore[reportArgumentType]
    assert type(y) is Named and launches
    torch.testing.assert_close(y.as_subclass(torch.Tensor), layer(x))  # pyright: ignore[reportArgumentType]


def test_a_wrapper_as_weight() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    layer = nn.Linear(6, 3)
    x = torch.randn(5, 6)
    expected = layer(x)
    weight = layer.weight.detach()
    layer.weight = torch.nn.Parameter(TwoTensor(weight, 2 * weight))
    y = layer(x)
    assert isinstance(y, TwoTensor)
    torch.testing.assert_close(y.a, expected)
    torch.testing.assert_close(y.b, 2 * (expected - layer.bias) + layer.bias)


class Everything(torch.nn.Module):
    """A layer of every column, and a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1, activation="silu"), nn.MaxPool2d(2), nn.AvgPool2d(2)),
            *(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(2, 4, activation="elu"),
                nn.Linear(4, 4),
                nn.Dropout(0.5),
            ),
        )
        self.table, self.layer = nn.Embedding(5, 4), nn.LSTM(4, 3, batch_first=True)
        self.rnn, self.cell = nn.RNNCell(3, 3), nn.LSTMCell(3, 3)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = functional.leaky_relu(self.images(x), 0.3) + self.table(index)
        y, (last, _) = self.layer(h.unsqueeze(1))
        z = self.cell(self.rnn(y[:, 0], last[0]))[0]
        return z, self.loss(z, index % 3), functional.mse_loss(z, z * 2)


@pytest.mark.parametrize("trace", ["fx", "jit"])
def test_traced_models(trace: str) -> None:
    torch.manual_seed(0)
    model = Everything().eval()
    x, index = torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 4])
    expected = model(x, index)
    traced: Any = torch.fx.symbolic_trace(model) if trace == "fx" else torch.jit.trace(model, (x, index))
    for actual, wanted in zip(traced(x, index), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    expected[1].backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    traced(x, index)[1].backward()
    for parameter, wanted in zip(traced.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.Softmax2d(), nn.ConvTranspose2d(4, 3, 2), nn.GroupNorm(2, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_look_at_shapes_are_traced_by_fx(layer: torch.nn.Module) -> None:
    model, x = torch.nn.Sequential(layer.eval()), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


IN_PLACE = {
    **{
        name: (lambda name=name: getattr(nn, name)())
        for name in ("LeakyReLU", "ReLU6", "Hardtanh", "ELU", "GELU", "SiLU")
    },
    **{
        name: (lambda name=name: getattr(nn, name)(4, 4))
        for name in ("Linear", "RNN", "LSTM", "GRU", "LSTMCell", "GRUCell")
    },
    "Conv2d": lambda: nn.Conv2d(3, 2, 3),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "AvgPool2d": lambda: nn.AvgPool2d(2),
    "Dropout": lambda: nn.Dropout(0.5),
    "Embedding": lambda: nn.Embedding(4, 4),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_outputs_changed_in_place(name: str) -> None:
    """Where PyTorch's layer allows it, the gradients are those of the same sum out of place."""
    torch.manual_seed(1)
    layer = IN_PLACE[name]()
    shape = {"Conv2d": (2, 3, 6, 6), "MaxPool2d": (2, 3, 6, 6), "AvgPool2d": (2, 3, 6, 6)}.get(name, (5, 4))
    shape = (3, 5, 4) if name in ("RNN", "LSTM", "GRU") else shape
    x = torch.randint(4, shape) if name == "Embedding" else torch.randn(shape, requires_grad=True)
    inputs = [t for t in (x, *layer.parameters()) if t.requires_grad]
    gradients = []
    for in_place in (False, True):
        torch.manual_seed(2)
        outputs = layer(x)
        parts = (
            [outputs]
            if isinstance(outputs, Tensor)
            else [outputs[0], *(s for s in outputs[1:] if isinstance(s, Tensor))]
        )
        changed = [y.add_(1) if in_place else y + 1 for y in parts]
        gradients.append(torch.autograd.grad(sum(y.square().sum() for y in changed), inputs))  # pyright: ignore
    for actual, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(actual, expected)


LEFT: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 2), (3, 4)),
    "convolution": (lambda: nn.Conv2d(4, 2, 3), (2, 4, 5, 5)),
    "layer_norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "batch_norm": (lambda: nn.BatchNorm1d(4), (3, 4)),
    "gelu": (nn.GELU, (3, 4)),
    "lstm": (lambda: nn.LSTM(4, 2), (3, 2, 4)),
}


@pytest.mark.parametrize("name", LEFT)
def test_tensors_left_from_a_function_transform(name: str, device: str) -> None:
    """They have no memory of their own, so that no kernel can read them; PyTorch's operators can."""
    build, shape = LEFT[name]
    x, left = torch.randn(shape, device=device), []
    torch.func.grad(lambda each: (left.append(each), each.sum())[1])(x)
    torch.manual_seed(0)
    layer = build().to(device)
    expected, found = layer(x), layer(left[0])
    if name == "lstm":
        expected, found = expected[0], found[0]
    torch.testing.assert_close(found, expected)
    if found.requires_grad:
        found.sum().backward()


def test_plain_tensors_take_the_launchers() -> None:
    with Seen() as seen:
        pass
    layer = nn.Linear(6, 3)
    with counted_launches() as launches:
        layer(torch.randn(5, 6)).sum().backward()
    assert len(launches) >= 2 and not seen.names
    with tinynet.engine("reference"), counted_launches() as launches:
        layer(torch.randn(5, 6)).sum().backward()
    assert not launches

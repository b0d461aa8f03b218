"""A function or module of ours beside PyTorch's, with small operands by name; `public_cases` lists all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import tinynet.functional as ours
from tinynet import nn

Operands = dict[str, Tensor]


class Case(NamedTuple):
    """A function of ours, PyTorch's, and operands for both by argument name, of which `constant` get no gradient."""

    function: Callable[..., Any]
    twin: Callable[..., Any]
    operands: Operands
    constant: tuple[str, ...] = ()


def function(
    name: str, operands: Callable[[], Operands], *arguments: Any, constant: tuple[str, ...] = (), **options: Any
) -> Case:
    """A function that both libraries have, of the operands by position, then the arguments."""

    def call(library: Any) -> Callable[..., Any]:
        return lambda **given: getattr(library, name)(*given.values(), *arguments, **options)

    return Case(call(ours), call(F), operands(), constant)


def criterion(name: str, operands: Callable[[], Operands], constant: tuple[str, ...] = ()) -> Case:
    """A module without parameters, of the operands by position."""

    def call(library: Any) -> Callable[..., Any]:
        module = getattr(library, name)()
        return lambda **given: module(*given.values())

    return Case(call(nn), call(torch.nn), operands(), constant)


def of_module(name: str, *arguments: Any, **options: Any) -> Case:
    """A module of both libraries as functions of its inputs and parameters; its parameters."""
    module = getattr(nn, name)(*arguments, **options)
    twin = getattr(torch.nn, name)(*arguments, **options)
    parameters = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}

    def call(module: torch.nn.Module) -> Callable[..., Any]:
        def function(input: Tensor, hx: Any = None, cx: Any = None, **parameters: Tensor) -> Any:
            states = () if hx is None else ((hx if cx is None else (hx, cx)),)
            return torch.func.functional_call(module, parameters, (input, *states))

        return function

    return Case(call(module), call(twin), parameters)


def module(name: str, input: Callable[[], Tensor], *arguments: Any, **options: Any) -> Case:
    """A module of one input and its parameters."""
    case = of_module(name, *arguments, **options)
    return case._replace(operands={"input": input(), **case.operands})


def recurrent(name: str, *states: str) -> Case:
    case = of_module(name, 3, 4)
    steps, layers = ((), ()) if name.endswith("Cell") else ((6,), (1,))
    initial = {state: torch.randn(*layers, 5, 4) for state in states}
    return case._replace(operands={"input": torch.randn(*steps, 5, 3), **initial, **case.operands})


def recurrent_function(name: str, layer: str, *states: str) -> Case:
    def call(library: Any) -> Callable[..., Any]:
        def run(input: Tensor, hx: Any, cx: Tensor | None = None, **parameters: Tensor) -> Any:
            initial = hx if cx is None else (hx, cx)
            return getattr(library, name)(input, initial, [*parameters.values()], True, 1, 0.0, False, False, False)

        return run

    return Case(call(ours), call(torch), recurrent(layer, *states).operands)


def unpooling(rank: int, of_module: bool) -> Case:
    def call(functions: Any, modules: Any) -> Callable[..., Any]:
        if of_module:
            return lambda input, indices: getattr(modules, f"MaxUnpool{rank}d")(2)(input, indices)
        return lambda input, indices: getattr(functions, f"max_unpool{rank}d")(input, indices, (2,) * rank)

    x = image(rank)
    indices = (1 + torch.randperm(x[0, 0].numel())).view(x.shape[2:]).expand(x.shape).contiguous()
    return Case(call(ours, nn), call(F, torch.nn), {"input": x, "indices": indices})


def fractional_pooling(name: str, rank: int) -> Case:
    def call(library: Any) -> Callable[..., Any]:
        if name.startswith("F"):
            return lambda input, samples: getattr(library, name)(2, 3, _random_samples=samples)(input)
        return lambda input, samples: getattr(library, name)(input, 2, 3, _random_samples=samples)

    libraries = (nn, torch.nn) if name.startswith("F") else (ours, F)
    operands = {"input": image(rank), "samples": torch.rand(2, 4, rank)}
    return Case(call(libraries[0]), call(libraries[1]), operands, ("samples",))


def normalization(name: str, rank: int) -> Case:
    """A module with a function after it, of the statistics of its input."""
    options = {"eps": 0.1, "affine": True, "track_running_stats": False}
    layer = getattr(nn, name)(4, **options, activation="tanh")
    twin = getattr(torch.nn, name)(4, **options)

    def call(module: torch.nn.Module) -> Callable[..., Any]:
        return lambda input, **affine: torch.func.functional_call(module, affine, (input,))

    return Case(call(layer), lambda **given: call(twin)(**given).tanh(), with_affine(image(rank), 4))


def normalization_function(name: str) -> Case:
    if name == "group_norm":
        return Case(
            lambda input, **affine: ours.group_norm(input, 2, **affine, eps=0.1),
            lambda input, **affine: F.group_norm(input, 2, **affine, eps=0.1),
            with_affine(image(), 4),
        )
    operands = with_affine(matrix(), 6)
    if name == "rms_norm":
        operands.pop("bias")
    return Case(
        lambda input, **affine: getattr(ours, name)(input, (6,), **affine, eps=0.1),
        lambda input, **affine: getattr(F, name)(input, (6,), **affine, eps=0.1),
        operands,
    )


def weighted(name: str, operands: Callable[[], Operands]) -> Case:
    """The losses, not reduced, with a weight for each class."""
    options: Any = {"reduction": "none"}
    function, twin = (partial(getattr(library, name), **options) for library in (ours, F))
    return Case(function, twin, operands(), ("weight",))


def convolution_of_sequences(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv_tbc, whose backward refuses upstream gradients with gaps."""
    return F.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=1).permute(2, 0, 1)


def cross_entropy_of_linear(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor, weight: Tensor
) -> Tensor:
    """F.linear_cross_entropy, which PyTorch before 2.13 lacks."""
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight)


# Operands -------------------------------------------------------------------------------------------------------------


def image(rank: int = 2) -> Tensor:
    """[N, C, ...] of `rank` axes."""
    return torch.randn(2, 4, *((5, 5, 5) if rank == 3 else (6,) * rank))


def matrix() -> Tensor:
    return torch.randn(4, 6)


def square() -> Tensor:
    return torch.randn(6, 6)


def random(shapes: dict[str, tuple[int, ...]]) -> Operands:
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def matrices(*names: str) -> Operands:
    return {name: matrix() for name in names}


def between_0_and_1(*names: str) -> Operands:
    return {name: 0.1 + 0.8 * torch.rand(4, 6) for name in names}


def with_signs(*names: str) -> Operands:
    return {**matrices(*names), "target": torch.randn(4, 6).sign()}


def with_affine(input: Tensor, length: int) -> Operands:
    return {"input": input, "weight": torch.randn(length), "bias": torch.randn(length)}


def filters(rank: int, transposed: bool) -> Operands:
    channels = (4, 3) if transposed else (3, 4)
    return {"input": image(rank), "weight": torch.randn(*channels, *[3] * rank), "bias": torch.randn(3)}


def labels() -> Operands:
    return {"input": matrix(), "target": torch.randint(6, (4,))}


def log_probabilities() -> Operands:
    lengths = {"input_lengths": torch.tensor([8, 7]), "target_lengths": torch.tensor([3, 2])}
    return {"log_probs": torch.randn(8, 2, 5).log_softmax(2), "targets": torch.randint(1, 5, (2, 3)), **lengths}


def table() -> Operands:
    return {"input": torch.randint(6, (4, 3)), "weight": torch.randn(6, 4)}

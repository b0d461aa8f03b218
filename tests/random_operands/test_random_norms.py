"""Normalizations and softmax on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import tolerance
from hypothesis import assume, given, note
from hypothesis import strategies as st
from random_checks import assert_near, check
from random_tensors import (
    Draw,
    Values,
    dtypes,
    positive,
    shapes,
    sizes,
    small_integers,
    sometimes_non_finite,
    spread,
    tensors,
    with_non_finite,
)
from torch import Tensor

from tinynet import functional
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.batch_norm import batch_norm
from tinynet.ops.group_norm import group_norm
from tinynet.ops.instance_norm import instance_norm
from tinynet.ops.layer_norm import layer_norm, rms_norm

pytestmark = pytest.mark.kernels

# Their derivative has no jump: a normalized value is rarely exact.
SMOOTH = (None, "gelu", "silu", "tanh", "sigmoid")

spread_or_non_finite: st.SearchStrategy[Values] = st.sampled_from([spread, spread, spread, with_non_finite])


def parameter_dtypes(dtype: torch.dtype) -> st.SearchStrategy[torch.dtype]:
    """Of normalizations of channels: the input's, or float32 for a 16-bit input."""
    return st.sampled_from([dtype, torch.float32])


@st.composite
def affine(draw: Draw, device: str, channels: int, dtype: torch.dtype) -> list[Tensor | None]:
    """Weight and bias, or None."""
    return [draw(tensors(device, (channels,), dtype)) if draw(st.booleans()) else None for _ in range(2)]


@st.composite
def statistics(draw: Draw, device: str, channels: int, dtype: torch.dtype, needed: bool) -> tuple[Any, Any]:
    """A mean and a variance, which may be written; None for both if they are not needed."""
    make = partial(tensors, device, (channels,), dtype, differentiable=False, dense=True)
    return (draw(make()), draw(make(positive))) if needed or draw(st.booleans()) else (None, None)


def in_float64(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return (None, None) if pair[0] is None else (pair[0].double(), pair[1].double())


@given(st.data())
def test_batch_norm(device: str, data: st.DataObject) -> None:
    draw, dtype, shape = data.draw, data.draw(dtypes), data.draw(shapes(2, 5, 9))
    shape[1] = max(1, shape[1])  # PyTorch takes no parameters of 0 channels
    training = draw(st.booleans()) and math.prod(shape) != shape[1]
    function = as_activation(draw(st.sampled_from([None, "relu", "tanh", "gelu"])))
    channels, length = shape[1], math.prod(shape) // shape[1]
    others = draw(parameter_dtypes(dtype))
    # Statistics of few values may be 0, and small deviations from 0 are amplified: signs are exact.
    x = draw(tensors(device, shape, dtype, values=small_integers))
    weight, bias = draw(affine(device, channels, others))
    residual = draw(tensors(device, shape, dtype)) if draw(st.booleans()) else None
    running = draw(statistics(device, channels, others, not training))
    exact = in_float64(running)
    momentum = draw(st.sampled_from([0.1, 1.0, 0.0]))
    note(f"training {training}, {function}, momentum {momentum}")

    def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        options: Any = {"activation": function, "residual": residual}
        return batch_norm(x, *running, weight, bias, training, momentum, 0.5, **options)

    def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        y = F.batch_norm(x, *exact, weight, bias, training, momentum, 0.5)
        return activation_reference(y if residual is None else y + residual, function)

    check(draw, ours, reference, x, weight, bias, residual, lengths=(16, 16, 4 * length, 4 * length, 1), magnitude=4.0)
    for actual, expected in zip(running, exact, strict=True):
        if actual is not None:
            assert_near(actual, expected, tolerance(others, 16), 1.0, "running statistics")


@given(st.data())
def test_instance_norm(device: str, data: st.DataObject) -> None:
    draw, dtype, space = data.draw, data.draw(dtypes), data.draw(shapes(1, 3, 9))
    space = [max(1, size) for size in space]
    space[0] = max(2, space[0])  # PyTorch needs two values of a channel
    shape = [draw(sizes(5)), draw(sizes(9)), *space]
    function = as_activation(draw(st.sampled_from([None, "relu", "tanh", "gelu"])))
    own, length = draw(st.booleans()), math.prod(shape) // shape[1]
    others = draw(parameter_dtypes(dtype))
    x = draw(tensors(device, shape, dtype, values=small_integers))
    weight, bias = draw(affine(device, shape[1], others))
    running = draw(statistics(device, shape[1], others, not own))
    exact = in_float64(running)
    note(f"use_input_stats {own}, {function}")

    def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return instance_norm(x, *running, weight, bias, own, 0.3, 0.5, activation=function)

    def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return activation_reference(F.instance_norm(x, *exact, weight, bias, own, 0.3, 0.5), function)

    check(draw, ours, reference, x, weight, bias, lengths=(16, 16, 4 * length, 4 * length), magnitude=4.0)
    for actual, expected in zip(running, exact, strict=True):
        if actual is not None:
            assert_near(actual, expected, tolerance(others, 16), 1.0, "running statistics")


@given(st.data())
def test_layer_norm(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    lead, shape = draw(shapes(0, 2, 17)), draw(st.lists(sizes(65, least=2), min_size=1, max_size=2))
    function = as_activation(draw(st.sampled_from(SMOOTH)))
    columns, rows = math.prod(shape), math.prod(lead)
    center, with_residual = draw(st.booleans()), draw(st.booleans())
    name, ours = ("layer_norm", layer_norm) if center else ("rms_norm", rms_norm)
    parameters = [draw(tensors(device, shape, dtype)) if draw(st.booleans()) else None for _ in range(1 + center)]
    residual = [draw(tensors(device, [*lead, *shape], dtype, small_integers))] if with_residual else []
    note(f"{name}, {function}")

    def reference(x: Tensor, *rest: Any) -> Any:
        added, given = rest[:with_residual], rest[with_residual:]
        total = x + added[0] if added else x
        y = activation_reference(getattr(F, name)(total, shape, *given, eps=1e-2), function)
        return (y, total) if added else y

    def run(x: Tensor, *rest: Any) -> Any:
        options = {"activation": function, "residual": rest[0] if with_residual else None, "eps": 1e-2}
        return ours(x, shape, *rest[with_residual:], **options)

    x = draw(tensors(device, [*lead, *shape], dtype, small_integers if residual else draw(spread_or_non_finite)))
    lengths = (columns, *[columns] * (1 + with_residual), rows, rows)
    # Deviations from the mean of an expanded row are rounding errors, which are divided by sqrt(eps).
    check(draw, run, reference, x, *residual, *parameters, lengths=lengths, magnitude=4.0)


@given(st.data())
def test_group_norm(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    groups, channels = draw(sizes(4)), draw(sizes(9))
    # PyTorch has NaN for the weight's gradient of nothing.
    space = [max(1, size) for size in draw(shapes(0, 2, 17))]
    shape = [draw(sizes(5)), groups * channels, *space, draw(sizes(17, least=2))]
    function = as_activation(draw(st.sampled_from(SMOOTH)))
    weight, bias = draw(affine(device, shape[1], draw(parameter_dtypes(dtype))))
    if weight is None and bias is not None:
        bias = bias.detach()  # PyTorch's own gradient fails
    check(
        draw,
        lambda x, w, b: group_norm(x, groups, w, b, 1e-2, activation=function),
        lambda x, w, b: activation_reference(F.group_norm(x, groups, w, b, 1e-2), function),
        draw(tensors(device, shape, dtype, draw(spread_or_non_finite))),
        weight,
        bias,
        lengths=(math.prod(shape), math.prod(shape), math.prod(shape), math.prod(shape)),
    )


@given(st.data())
def test_local_response_norm(device: str, data: st.DataObject) -> None:
    draw = data.draw
    shape = [draw(sizes(4)), draw(sizes(17)), *draw(st.lists(sizes(9), min_size=1, max_size=3))]
    arguments = (
        draw(st.integers(1, 7)),
        draw(st.sampled_from([1e-4, 0.5])),
        draw(st.sampled_from([0.75, 0.5, 1.5])),
        draw(st.sampled_from([1.0, 2.0])),
    )
    x = draw(tensors(device, shape, draw(dtypes)))
    check(
        draw,
        lambda x: functional.local_response_norm(x, *arguments),
        lambda x: F.local_response_norm(x, *arguments),
        x,
        lengths=(8, 8),
    )


@given(st.data())
def test_softmax(device: str, data: st.DataObject) -> None:
    draw, shape = data.draw, data.draw(shapes(0, 4, 33))
    dim = draw(st.integers(-max(len(shape), 1), max(len(shape), 1) - 1))
    name = draw(st.sampled_from(["softmax", "log_softmax", "softmin"]))
    x = draw(tensors(device, shape, draw(dtypes), draw(sometimes_non_finite)))
    length = max(shape[dim], 1) if shape else 1
    note(f"{name}, dim {dim}")
    ours, theirs = (partial(getattr(library, name), dim=dim) for library in (functional, F))
    check(draw, ours, theirs, x, lengths=(4, length))


@given(st.data())
def test_softmax_of_long_rows(device: str, data: st.DataObject) -> None:
    """Longer than one tile."""
    draw, rows, columns = data.draw, data.draw(sizes(3)), data.draw(st.integers(1, 40_000))
    assume(columns > 129)
    x = draw(tensors(device, [rows, columns], draw(dtypes), draw(sometimes_non_finite)))
    name = draw(st.sampled_from(["softmax", "log_softmax"]))
    ours, theirs = (partial(getattr(library, name), dim=1) for library in (functional, F))
    check(draw, ours, theirs, x, lengths=(4, columns))

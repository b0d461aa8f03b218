"""Convolutions and transposed convolutions of one to three axes on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch.nn.functional as F
from helpers import convolution_precision
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import check
from random_tensors import (
    Draw,
    Values,
    dtypes,
    fused_activations,
    normal,
    sizes,
    small_integers,
    tensors,
    with_non_finite,
)
from torch import Tensor

from tinynet import functional
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.tiles import ceil_div

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:Using padding='same'")]

# By the number of axes: the most taps along an axis, and the largest size drawn for it.
MOST_TAPS = {1: 9, 2: 5, 3: 3}
LARGEST = {1: 129, 2: 17, 3: 7}
SETS_OF_OPERANDS = 3  # for each window: each window compiles its own kernels, which takes most of the time


@pytest.fixture(scope="module")
def exact_products() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


class Axis(NamedTuple):
    """How a window slides along one axis."""

    taps: int
    stride: int
    dilation: int
    padding: int
    output_padding: int

    @property
    def reach(self) -> int:
        return (self.taps - 1) * self.dilation + 1


@st.composite
def axes(draw: Draw, rank: int, transposed: bool) -> list[Axis]:
    """Often the same small window along all axes, as in most networks: those have kernels of their own."""

    def one(most_taps: int, largest: int) -> Axis:
        taps, stride, dilation = draw(st.tuples(st.integers(1, most_taps), *[st.integers(1, largest)] * 2))
        padding = draw(st.integers(0, min(3, taps)))
        output_padding = draw(st.integers(0, max(stride, dilation) - 1)) if transposed else 0
        return Axis(taps, stride, dilation, padding, output_padding)

    if draw(st.booleans()):
        taps, stride = draw(st.sampled_from([1, 3, 3, 5])), draw(st.integers(1, 2))
        padding = draw(st.sampled_from([0, taps // 2]))
        return [Axis(taps, stride, 1, padding, stride - 1 if transposed and draw(st.booleans()) else 0)] * rank
    return [one(MOST_TAPS[rank], 3) for _ in range(rank)]


@st.composite
def channels(draw: Draw) -> tuple[int, int, int]:
    """(groups, input channels of a group, output channels of a group)."""
    return draw(
        st.one_of(
            st.tuples(st.just(1), sizes(33), sizes(33)),
            st.tuples(st.sampled_from([2, 3]), sizes(16), sizes(16)),
            st.tuples(sizes(33), st.just(1), sizes(2)),
        )
    )


@st.composite
def values_and_activations(draw: Draw) -> tuple[Activation, Values]:
    """Sometimes NaN and infinities in x, whose gradients through no activation or relu PyTorch defines."""
    if draw(st.integers(0, 4)) == 0:
        return as_activation(draw(st.sampled_from([None, "relu"]))), with_non_finite
    return draw(fused_activations())


# No batch, or one that may be empty.
batches = st.one_of(*[st.lists(sizes(4, least=0), min_size=1, max_size=1)] * 4, st.just([]))


def number_or_sizes(draw: Draw, numbers: list[int]) -> int | list[int]:
    return numbers[0] if len(set(numbers)) == 1 and draw(st.booleans()) else numbers


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(st.data())
def test_convolution(device: str, exact_products: None, rank: int, data: st.DataObject) -> None:
    draw, dtype, name = data.draw, data.draw(dtypes), f"conv{rank}d"
    function, values = draw(values_and_activations())
    pool = draw(st.sampled_from([1, 1, 2])) if rank == 2 else 1
    if pool == 2:
        function, values = as_activation(draw(st.sampled_from([None, "relu"]))), small_integers
    groups, inputs, outputs = draw(channels())
    window = draw(axes(rank, transposed=False))
    named = draw(st.sampled_from([None, None, "same", "valid"]))
    if named:
        window = [axis._replace(padding=0, stride=1 if named == "same" else axis.stride) for axis in window]
    options: dict[str, Any] = {
        "stride": number_or_sizes(draw, [axis.stride for axis in window]),
        "padding": named or number_or_sizes(draw, [axis.padding for axis in window]),
        "dilation": number_or_sizes(draw, [axis.dilation for axis in window]),
        "groups": groups,
    }
    least = [axis.reach - 2 * axis.padding + (pool - 1) * axis.stride for axis in window]
    note(f"{name}, {options}, {function}, pool {pool}")
    # Zeros around an image times a weight that is not finite are NaN or nothing, by PyTorch's backend.
    make = partial(tensors, device, dtype=dtype, values=normal if values is with_non_finite else values)

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = activation_reference(getattr(F, name)(x, weight, bias, **options), function)
        return F.max_pool2d(y, 2) if pool == 2 else y

    taps = math.prod(axis.taps for axis in window)
    for _ in range(SETS_OF_OPERANDS):
        size = [max(1, each, draw(sizes(LARGEST[rank]))) for each in least]
        batch = draw(batches)
        pixels = math.prod([*batch, *size])
        check(
            draw,
            partial(getattr(functional, name), **options, activation=function, **({"pool": pool} if rank == 2 else {})),
            reference,
            draw(make([*batch, groups * inputs, *size], values=values)),
            draw(make([groups * outputs, inputs, *(axis.taps for axis in window)])),
            draw(make([groups * outputs])) if draw(st.booleans()) else None,
            lengths=(taps * inputs, taps * outputs, pixels, pixels),
        )


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(st.data())
def test_transposed_convolution(device: str, exact_products: None, rank: int, data: st.DataObject) -> None:
    draw, dtype, name = data.draw, data.draw(dtypes), f"conv_transpose{rank}d"
    function, values = draw(values_and_activations())
    groups, inputs, outputs = draw(channels())
    window = draw(axes(rank, transposed=True))
    options: dict[str, Any] = {
        each: number_or_sizes(draw, [getattr(axis, each) for axis in window])
        for each in ("stride", "padding", "dilation", "output_padding")
    }
    options["groups"] = groups
    # An output has at least one element.
    least = [1 + ceil_div(max(0, 2 * axis.padding - axis.reach + 1), axis.stride) for axis in window]
    note(f"{name}, {options}, {function}")
    finite, taps = values is not with_non_finite, math.prod(axis.taps for axis in window)
    make = partial(tensors, device, dtype=dtype, values=values if finite else normal)
    for _ in range(SETS_OF_OPERANDS):
        size = [max(each, draw(sizes(LARGEST[rank] // 2))) for each in least]
        batch = draw(batches)
        pixels = math.prod([*batch, *(length * axis.stride for length, axis in zip(size, window, strict=True))])
        check(
            draw,
            partial(getattr(functional, name), **options, activation=function),
            lambda *operands: activation_reference(getattr(F, name)(*operands, **options), function),
            draw(make([*batch, groups * inputs, *size], values=values)),
            # Its gradient multiplies NaN by zeros around the upstream gradient, or doesn't, by PyTorch's backend.
            draw(make([groups * inputs, outputs, *(axis.taps for axis in window)], differentiable=finite)),
            draw(make([groups * outputs])) if draw(st.booleans()) else None,
            lengths=(taps * inputs, taps * outputs, pixels, pixels),
        )


@given(st.data())
def test_convolution_of_sequences(device: str, data: st.DataObject) -> None:
    draw, dtype, (taps, pad) = data.draw, data.draw(dtypes), data.draw(st.tuples(st.integers(1, 5), st.integers(0, 3)))
    inputs, outputs, batch, steps = (draw(sizes(each)) for each in (17, 17, 5, 33))
    steps = max(steps, taps - 2 * pad)
    make = partial(tensors, device, dtype=dtype)
    check(
        draw,
        lambda x, weight, bias: functional.conv_tbc(x, weight, bias, pad),
        # PyTorch's conv_tbc refuses some strides.
        lambda x, weight, bias: F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, 1, pad).permute(2, 0, 1),
        draw(make([steps, batch, inputs])),
        draw(make([taps, inputs, outputs])),
        draw(make([outputs])),
        lengths=(taps * inputs, taps * outputs, steps * batch, steps * batch),
    )

"""G g G^T of all filters: computed once, for many programs to read."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionShape
from tinynet_kernels.conv.winograd.tiles import WinogradTile
from tinynet_kernels.conv.winograd.transforms import filter_line, transform
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import ceil_div

_BLOCK_INPUTS = 16


@triton.jit
def load_filters(weight_ptr, input, output, inputs_left, outputs_left, taps, REVERSED: constexpr, EVEN: constexpr):
    """The 9 taps of the filters in fp32, a tuple of [input, output] where REVERSED, else of [output, input].

    That is their order in memory.

    Args:
        weight_ptr: the first tap of the first input and output, of W [K, 3, 3, C] or, REVERSED, of W with inputs and
            outputs exchanged, whose taps are taken from the last to the first.
        input, output: channels from there.
        inputs_left, outputs_left: how many there are; EVEN says that none is past them.
        taps: elements from a tap to the next, which is the number of channels of W's last axis.
    """
    g = ()
    for tap in tl.static_range(9):  # pyright: ignore[reportGeneralTypeIssues]
        if REVERSED:
            from_tap = weight_ptr + (8 - tap) * taps + (input[:, None] * (9 * taps) + output[None, :])
            mask = (input < inputs_left)[:, None] & (output < outputs_left)[None, :]
        else:
            from_tap = weight_ptr + tap * taps + (output[:, None] * (9 * taps) + input[None, :])
            mask = (output < outputs_left)[:, None] & (input < inputs_left)[None, :]
        if EVEN:
            g += (tl.load(from_tap).to(tl.float32),)  # in bounds: no channel is past the end
        else:
            g += (tl.load(from_tap, mask=mask, other=0.0).to(tl.float32),)
    return g


@triton.jit
def winograd_filter_kernel(
    weight_ptr, filters_ptr, group_inputs, group_outputs, REVERSED: constexpr, TILE: constexpr, BLOCK_INPUTS: constexpr
):
    """filters [groups, blocks of outputs, (m + 2)^2, inputs, block_outputs] = G g G^T; a [16, block_outputs] tile each.

    The grid is (blocks of inputs, blocks of outputs, groups). For REVERSED see `load_filters`.
    """
    POSITIONS: constexpr = (TILE.m + 2) * (TILE.m + 2)
    start = tl.program_id(0) * BLOCK_INPUTS
    block = tl.program_id(1)
    group = tl.program_id(2)
    input = start + tl.arange(0, BLOCK_INPUTS)
    output = tl.arange(0, TILE.block_outputs)
    outputs_left = group_outputs - block * TILE.block_outputs
    in_group = group.to(tl.int64) * group_inputs * group_outputs * 9
    first = block.to(tl.int64) * TILE.block_outputs
    if REVERSED:
        weight = weight_ptr + in_group + first
        taps = group_outputs
    else:
        weight = weight_ptr + in_group + first * 9 * group_inputs
        taps = group_inputs
    g = load_filters(weight, input, output, group_inputs, outputs_left, taps, REVERSED, False)
    u = transform(g, filter_line, 3, TILE.m)
    into = (group.to(tl.int64) * tl.num_programs(1) + block) * POSITIONS * group_inputs * TILE.block_outputs
    offset = input[:, None] * TILE.block_outputs + output[None, :]
    for position in tl.static_range(POSITIONS):  # pyright: ignore[reportGeneralTypeIssues]
        value = u[position] if REVERSED else tl.trans(u[position])  # pyright: ignore[reportArgumentType]
        from_position = filters_ptr + into + position * group_inputs * TILE.block_outputs
        tl.store(from_position + offset, value, mask=(input < group_inputs)[:, None])


@costs(winograd_filter_kernel)
def winograd_filter_cost(weight_ptr: torch.Tensor, filters_ptr: torch.Tensor, **others: Any) -> Cost:
    """W read, all filters written; no products."""
    return Cost(0, size_in_bytes(weight_ptr, filters_ptr))


def filter_problem(shape: ConvolutionShape, tile: WinogradTile, *, reversed: bool) -> Problem:
    """The launch of `winograd_filter_kernel`."""
    inputs, outputs = shape.group_inputs, shape.group_outputs
    return Problem(
        winograd_filter_kernel,
        (ceil_div(inputs, _BLOCK_INPUTS), ceil_div(outputs, tile.block_outputs), shape.groups),
        inputs,
        outputs,
        REVERSED=reversed,
        TILE=tile,
        BLOCK_INPUTS=_BLOCK_INPUTS,
        num_warps=4,
        num_stages=1,
    )

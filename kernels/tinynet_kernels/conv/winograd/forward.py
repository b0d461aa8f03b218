"""The convolution y = act(x * W + b) by Winograd's algorithm, and the data gradient: that of dZ and reversed taps.

A program computes block_tiles tiles of m x m pixels of block_outputs channels, in a loop over the input channels: the
patches of a block of them are loaded and transformed, then multiplied with the filters, one product and one fp32
accumulator for each of the (m + 2)^2 positions. Only results are stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes
from tinynet_kernels.conv.window import with_bias
from tinynet_kernels.conv.winograd.epilogue import (
    activated,
    largest_of_windows,
    store_infinite,
    store_squares,
    store_statistics_of_squares,
)
from tinynet_kernels.conv.winograd.filters import filter_problem, load_filters
from tinynet_kernels.conv.winograd.patches import grid_of, load_squares, squares_of
from tinynet_kernels.conv.winograd.tiles import (
    TileGrid,
    WinogradTile,
    transforms_own_filters,
)
from tinynet_kernels.conv.winograd.transforms import filter_line, input_line, output_line, transform
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import ceil_div


class WinogradSpec(NamedTuple):
    """What the kernel is compiled for, beside window, activation and tile.

    Attributes:
        reversed: whether inputs and outputs of the weight change places; see `filters.load_filters`.
        even_inputs, even_outputs: whether blocks divide the group's channels.
    """

    reversed: bool
    even_inputs: bool
    even_outputs: bool


@triton.jit
def winograd_forward_kernel(
    x_ptr,
    weight_ptr,
    filters_ptr,
    infinite_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    z_ptr,
    argmax_ptr,
    partial_ptr,
    N,
    H,
    W,
    P,
    Q,
    group_inputs,
    group_outputs,
    WINDOW: constexpr,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x * W + b), block_tiles tiles by block_outputs channels per program; the second grid axis is the group.

    Args:
        weight_ptr: W, read where there are no filters.
        filters_ptr: the transformed filters, or None for programs to transform their own.
        infinite_ptr: a number for each program, 0 or, where one of its sums is not finite, NaN. All other tensors as
            of `convolution_forward_kernel`.
    """
    POSITIONS: constexpr = (TILE.m + 2) * (TILE.m + 2)
    BLOCK: constexpr = TILE.block_outputs
    BLOCK_INPUTS: constexpr = TILE.block_inputs
    grid = grid_of(N, P, Q, TILE.m)
    tile_blocks = tl.cdiv(grid.tiles, TILE.block_tiles)
    start = tl.program_id(0) % tile_blocks * TILE.block_tiles
    block = tl.program_id(0) // tile_blocks
    group = tl.program_id(1)
    C = group_inputs * tl.num_programs(1)
    K = group_outputs * tl.num_programs(1)
    padding_h = WINDOW.padding_h
    padding_w = WINDOW.padding_w
    first_input = group.to(tl.int64) * group_inputs
    patches = squares_of(first_input, start, grid.tiles, grid, H, W, C, padding_h, padding_w, TILE.m, TILE.block_tiles)
    channel = tl.arange(0, BLOCK_INPUTS)
    column = tl.arange(0, BLOCK)
    columns_left = group_outputs - block * BLOCK
    if filters_ptr is None:
        in_group = group.to(tl.int64) * group_inputs * group_outputs * 9
        taps = group_outputs if SPEC.reversed else group_inputs
        next_input = 9 * taps if SPEC.reversed else 1
        next_output = 1 if SPEC.reversed else 9 * taps
        weight = weight_ptr + in_group + block.to(tl.int64) * BLOCK * next_output
    else:
        blocks = tl.cdiv(group_outputs, BLOCK)
        filters = filters_ptr + (group.to(tl.int64) * blocks + block) * POSITIONS * group_inputs * BLOCK

    z = ()
    for _ in tl.static_range(POSITIONS):  # pyright: ignore[reportGeneralTypeIssues]
        z += (tl.full((TILE.block_tiles, BLOCK), 0.0, tl.float32),)
    for first in range(0, group_inputs, BLOCK_INPUTS):
        inputs_left = group_inputs - first
        d = load_squares(x_ptr, patches, first, group_inputs, BLOCK_INPUTS, TILE.m + 2, SPEC.even_inputs)
        v = transform(d, input_line, TILE.m + 2, TILE.m)
        if filters_ptr is None:
            from_input = weight + tl.cast(first, tl.int64) * next_input
            EVEN: constexpr = SPEC.even_inputs and SPEC.even_outputs
            g = load_filters(from_input, channel, column, inputs_left, columns_left, taps, SPEC.reversed, EVEN)
            own = transform(g, filter_line, 3, TILE.m)
        sums = ()
        for position in tl.static_range(POSITIONS):  # pyright: ignore[reportGeneralTypeIssues]
            if filters_ptr is None:
                u = own[position] if SPEC.reversed else tl.trans(own[position])  # pyright: ignore[reportArgumentType]
            else:
                from_position = filters + (position * group_inputs + first) * BLOCK
                offset = channel[:, None] * BLOCK + column[None, :]
                if SPEC.even_inputs:
                    u = tl.load(from_position + offset)  # in bounds: filters are stored in whole blocks of columns
                else:
                    u = tl.load(from_position + offset, mask=(channel < inputs_left)[:, None], other=0.0)
            sums += (tl.dot(v[position], u, z[position], input_precision="ieee"),)
        z = sums

    sums = transform(z, output_line, TILE.m + 2, TILE.m)
    store_infinite(sums, infinite_ptr, group * tl.num_programs(0) + tl.program_id(0))
    out_channel = group.to(tl.int64) * group_outputs + block * BLOCK
    z = ()
    for pixel in tl.static_range(TILE.m * TILE.m):  # pyright: ignore[reportGeneralTypeIssues]
        value = with_bias(
            sums[pixel], bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, out_channel, columns_left, WINDOW
        )
        z += (value,)
    y = activated(z, ACTIVATION, y_ptr.dtype.element_ty)
    in_columns = column < columns_left
    STEP: constexpr = 2 if WINDOW.pool else 1
    SIDE: constexpr = TILE.m // STEP
    results = squares_of(out_channel, start, grid.tiles, grid, P // STEP, Q // STEP, K, 0, 0, SIDE, TILE.block_tiles)
    if WINDOW.pool:
        y, z, which = largest_of_windows(y, z, TILE.m)
        if argmax_ptr is not None:
            store_squares(argmax_ptr, which, results, in_columns, SIDE)
    if z_ptr is not None:
        store_squares(z_ptr, z, results, in_columns, SIDE)
    store_squares(y_ptr, y, results, in_columns, SIDE)
    if partial_ptr is not None:
        part = start // TILE.block_tiles
        partial = partial_ptr + part.to(tl.int64) * 3 * K + out_channel
        store_statistics_of_squares(partial, y, results, in_columns, SIDE)


class WinogradConvolution(NamedTuple):
    """A convolution's launches.

    Attributes:
        filters: the transform of the filters; None where each program transforms its own.
        filters_shape: of what that stores.
        convolution: the launch of `winograd_forward_kernel`.
        pixel_tiles: how many of its programs, of one block of channels, share the pixels.
    """

    filters: Problem | None
    filters_shape: Shape
    convolution: Problem
    pixel_tiles: int

    def launch(self, x: torch.Tensor, weight: torch.Tensor, **others: torch.Tensor | None) -> torch.Tensor:
        """Computes what `others` hold by the kernel's names; returns `infinite_ptr`'s numbers (see `is_right`)."""
        filters = None
        if self.filters is not None:
            filters = weight.new_empty(self.filters_shape, dtype=torch.float32)
            self.filters.launch(weight, filters)
        infinite = x.new_empty(self.convolution.grid, dtype=torch.float32)
        self.convolution.launch_named(x_ptr=x, weight_ptr=weight, filters_ptr=filters, infinite_ptr=infinite, **others)
        return infinite


@costs(winograd_forward_kernel)
def winograd_forward_cost(
    weight_ptr: torch.Tensor,
    filters_ptr: torch.Tensor | None,
    N: int,
    P: int,
    Q: int,
    TILE: WinogradTile,
    **others: Any,
) -> Cost:
    """2 (m + 2)^2 K C / groups operations for each tile; x, W or filters, and b read, y (and z, and argmax) written."""
    tiles = N * ceil_div(P, TILE.m) * ceil_div(Q, TILE.m)
    filters = weight_ptr if filters_ptr is None else filters_ptr
    return Cost(2 * (TILE.m + 2) ** 2 * tiles * weight_ptr.numel() // 9, size_in_bytes(filters, *others.values()))


def winograd_convolution(
    shape: ConvolutionShape,
    padding: Sizes,
    tile: WinogradTile,
    activation: Activation = IDENTITY,
    *,
    pool: bool = False,
    epsilon: float = 0.0,
    reversed: bool = False,
) -> WinogradConvolution:
    """The launches of a convolution of 3 x 3 taps and stride 1.

    Args:
        shape: of the convolution that is computed.
        padding: rows of zeros above the image, and columns before it.
        tile: of a program.
        activation: fused into the epilogue, as are the next two.
        pool: whether y is the largest of each 2 x 2 window.
        epsilon: of the normalization.
        reversed: whether inputs and outputs of the weight change places, and its taps are taken from the last on.
    """
    grid = TileGrid.of(shape, tile.m)
    inputs, outputs = shape.group_inputs, shape.group_outputs
    blocks = ceil_div(outputs, tile.block_outputs)
    pixel_tiles = ceil_div(grid.tiles, tile.block_tiles)
    convolution = Problem(
        winograd_forward_kernel,
        (pixel_tiles * blocks, shape.groups),
        *(shape.N, shape.H, shape.W, shape.P, shape.Q, inputs, outputs),
        WINDOW=ConvolutionSpec(padding=padding).compiled((3, 3), pool=pool, epsilon=epsilon),
        SPEC=WinogradSpec(reversed, inputs % tile.block_inputs == 0, outputs % tile.block_outputs == 0),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
        num_stages=1,
    )
    filters = None if transforms_own_filters(grid.tiles, tile) else filter_problem(shape, tile, reversed=reversed)
    filters_shape = shape.groups * blocks, (tile.m + 2) ** 2, inputs, tile.block_outputs
    return WinogradConvolution(filters, filters_shape, convolution, pixel_tiles)

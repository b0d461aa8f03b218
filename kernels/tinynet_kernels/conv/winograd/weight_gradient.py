"""The weight gradient by Winograd's algorithm: dW = G^T [sum over tiles of (A dZ A^T)^T (B^T x B)] G, by position.

A program computes [block_outputs, block_inputs] filters from its split of the tiles. A step loads and transforms the
pixels of block_tiles tiles: dZ of m x m, x of (m + 2) x (m + 2); then one product and one fp32 accumulator for each
position. Splits are added in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Sizes, weights_in
from tinynet_kernels.conv.winograd.epilogue import store_infinite
from tinynet_kernels.conv.winograd.patches import grid_of, load_squares, squares_of
from tinynet_kernels.conv.winograd.tiles import TileGrid, WinogradTile, winograd_weight_splits
from tinynet_kernels.conv.winograd.transforms import filter_gradient_line, input_line, output_gradient_line, transform
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div


@triton.jit
def winograd_weight_gradient_kernel(
    x_ptr,
    dz_ptr,
    dw_ptr,
    infinite_ptr,
    N,
    H,
    W,
    P,
    Q,
    group_inputs,
    group_outputs,
    tiles_per_split,
    stride_channel,
    stride_tap,
    WINDOW: constexpr,
    TILE: constexpr,
    EVEN_INPUTS: constexpr,
    EVEN_OUTPUTS: constexpr,
):
    """dW [splits, groups, outputs, inputs, 3, 3], with inputs and taps in any order.

    A program computes [block_outputs, block_inputs] filters. The grid: (blocks of outputs and inputs, splits, groups).

    Args:
        infinite_ptr: as of `winograd_forward_kernel`.
        stride_channel, stride_tap: elements of dW from an input to the next, and from a tap to the next.
        EVEN_INPUTS, EVEN_OUTPUTS: whether blocks divide the group's channels.
    """
    SIDE: constexpr = TILE.m + 2
    POSITIONS: constexpr = SIDE * SIDE
    input_blocks = tl.cdiv(group_inputs, TILE.block_inputs)
    first_input = tl.program_id(0) % input_blocks * TILE.block_inputs
    first_output = tl.program_id(0) // input_blocks * TILE.block_outputs
    split = tl.program_id(1)
    group = tl.program_id(2)
    C = group_inputs * tl.num_programs(2)
    K = group_outputs * tl.num_programs(2)
    in_x = group.to(tl.int64) * group_inputs + first_input
    in_dz = group.to(tl.int64) * group_outputs + first_output
    inputs_left = group_inputs - first_input
    outputs_left = group_outputs - first_output
    padding_h = WINDOW.padding_h
    padding_w = WINDOW.padding_w
    grid = grid_of(N, P, Q, TILE.m)
    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, grid.tiles)

    z = ()
    for _ in tl.static_range(POSITIONS):  # pyright: ignore[reportGeneralTypeIssues]
        z += (tl.full((TILE.block_outputs, TILE.block_inputs), 0.0, tl.float32),)
    for start in range(begin, end, TILE.block_tiles):
        patches = squares_of(in_x, start, end, grid, H, W, C, padding_h, padding_w, TILE.m, TILE.block_tiles)
        d = load_squares(x_ptr, patches, 0, inputs_left, TILE.block_inputs, SIDE, EVEN_INPUTS)
        v = transform(d, input_line, SIDE, TILE.m)
        squares = squares_of(in_dz, start, end, grid, P, Q, K, 0, 0, TILE.m, TILE.block_tiles)
        dz = load_squares(dz_ptr, squares, 0, outputs_left, TILE.block_outputs, TILE.m, EVEN_OUTPUTS)
        u = transform(dz, output_gradient_line, TILE.m, TILE.m)
        sums = ()
        for position in tl.static_range(POSITIONS):  # pyright: ignore[reportGeneralTypeIssues]
            transposed = tl.trans(u[position])  # pyright: ignore[reportArgumentType]
            sums += (tl.dot(transposed, v[position], z[position], input_precision="ieee"),)
        z = sums

    dw = transform(z, filter_gradient_line, SIDE, TILE.m)
    program = (group * tl.num_programs(1) + split) * tl.num_programs(0) + tl.program_id(0)
    store_infinite(dw, infinite_ptr, program)
    output = tl.arange(0, TILE.block_outputs)
    channel = tl.arange(0, TILE.block_inputs)
    mask = (output < outputs_left)[:, None] & (channel < inputs_left)[None, :]
    filters = (split * tl.num_programs(2) + group).to(tl.int64) * group_outputs + first_output
    from_filter = dw_ptr + filters * 9 * group_inputs + first_input * stride_channel
    offset = output[:, None] * (9 * group_inputs) + channel[None, :] * stride_channel
    for tap in tl.static_range(9):  # pyright: ignore[reportGeneralTypeIssues]
        value = dw[tap].to(dw_ptr.dtype.element_ty)  # pyright: ignore[reportAttributeAccessIssue]
        tl.store(from_filter + tap * stride_tap + offset, value, mask=mask)


class WinogradWeightGradient(NamedTuple):
    """A weight gradient's launch, and its splits."""

    problem: Problem
    splits: int

    def launch(self, x: torch.Tensor, dz: torch.Tensor, dw: torch.Tensor) -> torch.Tensor:
        """Computes dW [splits, ...]; returns `infinite_ptr`'s numbers (see `is_right`)."""
        infinite = x.new_empty(self.problem.grid, dtype=torch.float32)
        self.problem.launch(x, dz, dw, infinite)
        return infinite


@costs(winograd_weight_gradient_kernel)
def winograd_weight_gradient_cost(
    dw_ptr: torch.Tensor, N: int, P: int, Q: int, TILE: WinogradTile, **others: Any
) -> Cost:
    """2 (m + 2)^2 K C / groups operations for each tile; x and dZ read, every split of dW written."""
    tiles = N * ceil_div(P, TILE.m) * ceil_div(Q, TILE.m)
    return Cost(2 * (TILE.m + 2) ** 2 * tiles * weights_in(dw_ptr) // 9, size_in_bytes(dw_ptr, *others.values()))


def winograd_weight_gradient(
    shape: ConvolutionShape, padding: Sizes, tile: WinogradTile, channels_last: bool, target: Target
) -> WinogradWeightGradient:
    """The launch of the weight gradient of a convolution of 3 x 3 taps and stride 1.

    Args:
        shape: of the convolution.
        padding: rows of zeros above the image, and columns before it.
        tile: of a program.
        channels_last: whether dW is; contiguous otherwise.
        target: where it runs.
    """
    inputs, outputs = shape.group_inputs, shape.group_outputs
    blocks = ceil_div(outputs, tile.block_outputs) * ceil_div(inputs, tile.block_inputs)
    tiles = TileGrid.of(shape, tile.m).tiles
    splits = winograd_weight_splits(blocks * shape.groups, tiles, tile, target)
    tiles_per_split = ceil_div(ceil_div(tiles, splits), tile.block_tiles) * tile.block_tiles
    splits = ceil_div(tiles, tiles_per_split)
    strides = (1, inputs) if channels_last else (9, 1)
    problem = Problem(
        winograd_weight_gradient_kernel,
        (blocks, splits, shape.groups),
        *(shape.N, shape.H, shape.W, shape.P, shape.Q, inputs, outputs, tiles_per_split, *strides),
        WINDOW=ConvolutionSpec(padding=padding).compiled((3, 3)),
        TILE=tile,
        EVEN_INPUTS=inputs % tile.block_inputs == 0,
        EVEN_OUTPUTS=outputs % tile.block_outputs == 0,
        num_warps=4,
        num_stages=1,
    )
    return WinogradWeightGradient(problem, splits)

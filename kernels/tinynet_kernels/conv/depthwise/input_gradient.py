"""Data gradient of a depthwise convolution by rows of pixels.

    dX[n, c, d, h, w] = sum of dZ[n, c, o, p, q] W[c, t, r, s] over the taps that read (d, h, w) from (o, p, q)

A program computes a row of dX, or a part of it, as `forward` does a row of y. Which taps reach the pixels of a block,
and from which columns of dZ, is known to the compiler, since blocks begin at multiples of the stride; of the rows of
taps only those are walked over that reach the row. Weights lie as [T, R, S, C].
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.rows import gradient_row
from tinynet_kernels.conv.depthwise.tiles import divide_rows, input_gradient_tile
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionWindow
from tinynet_kernels.conv.window import inside
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target


@triton.jit
def add_row_of_taps(
    sums,
    row,
    t,
    r,
    w,
    channel,
    in_block,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """`sums` of PIXELS pixels from w on, with dZ W of row (t, r) of the taps added; see `sums_of_block`."""
    S: constexpr = WINDOW.S
    C: constexpr = TILE.channels
    o = (row.plane - t * WINDOW.dilation_d) // WINDOW.stride_d
    p = (row.row - r * WINDOW.dilation_h) // WINDOW.stride_h
    q = w // WINDOW.stride_w
    weights = row.weight + (t * WINDOW.R + r) * S * C
    dz_row = row.dz + ((o * row.P + p) * row.Q + q) * C
    added = ()
    for i in tl.static_range(PIXELS):  # pyright: ignore
        total = sums[i]
        for s in tl.static_range(S):  # pyright: ignore
            position = i + WINDOW.padding_w - s * WINDOW.dilation_w
            column = position // WINDOW.stride_w
            if position % WINDOW.stride_w == 0 and column >= FIRST and column < LAST:
                mask = in_block
                if TILE.masked:
                    mask = in_block & inside(q + column, row.Q)
                dz = tl.load(dz_row + column * C + channel, mask=mask, other=0.0)
                weight = tl.load(weights + s * C + channel, mask=in_block, other=0.0)
                total += dz.to(tl.float32) * weight.to(tl.float32)
        added += (total,)
    return added


@triton.jit
def compute_channels(
    row,
    w,
    start,
    columns,
    BLOCK: constexpr,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    ALL_ROWS: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """dX of PIXELS pixels from w on and `columns` channels from `start` on.

    Of the columns of dZ, from the first that the block's first pixel may see on, [FIRST, LAST) exist; TILE.masked asks
    for each. All rows of taps are unrolled for ALL_ROWS, which says that they reach the row.
    """
    R: constexpr = WINDOW.R
    channel = start + tl.arange(0, BLOCK)
    in_block = tl.arange(0, BLOCK) < columns
    sums = ()
    for _ in tl.static_range(PIXELS):  # pyright: ignore
        sums += (tl.zeros((BLOCK,), tl.float32),)
    if ALL_ROWS:
        for r in tl.static_range(R):  # pyright: ignore
            sums = add_row_of_taps(sums, row, 0, r, w, channel, in_block, PIXELS, FIRST, LAST, WINDOW, TILE)
    else:
        for t in range(row.plane_start, row.plane_end, WINDOW.tap_step_d):
            for tap in range(row.tap_start, row.tap_end, WINDOW.tap_step_h):
                sums = add_row_of_taps(sums, row, t, tap, w, channel, in_block, PIXELS, FIRST, LAST, WINDOW, TILE)
    for i in tl.static_range(PIXELS):  # pyright: ignore
        dx = row.dx + (w + i) * TILE.channels + channel
        tl.store(dx, tl.cast(sums[i], row.dx.dtype.element_ty), mask=in_block)


@triton.jit
def compute_block(
    row,
    w,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    ALL_ROWS: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """dX of PIXELS pixels from w on and all channels of the program."""
    BLOCK: constexpr = TILE.block_channels
    TAIL: constexpr = TILE.tail
    end = min(row.channel_end, TILE.channels - TAIL)
    for c in range(row.channel_start, end, BLOCK):
        compute_channels(row, w, c, BLOCK, BLOCK, PIXELS, FIRST, LAST, ALL_ROWS, WINDOW, TILE)
    if TAIL > 0:
        for _ in range(end, row.channel_end, TILE.tail_block):  # once, in the last part of the channels
            compute_channels(row, w, end, TAIL, TILE.tail_block, PIXELS, FIRST, LAST, ALL_ROWS, WINDOW, TILE)


@triton.jit
def compute_blocks(row, start, end, blocks, ALL_ROWS: constexpr, WINDOW: constexpr, TILE: constexpr):
    """dX of the blocks [start, end) of a row of so many blocks."""
    SIZE: constexpr = TILE.block_q
    LAST_SIZE: constexpr = TILE.last_q
    BEFORE: constexpr = -TILE.columns
    BEHIND: constexpr = TILE.columns
    if TILE.blocks == 1:
        compute_block(row, 0, LAST_SIZE, TILE.left, TILE.right, ALL_ROWS, WINDOW, TILE)
    else:
        if start == 0:
            compute_block(row, 0, SIZE, TILE.left, BEHIND, ALL_ROWS, WINDOW, TILE)
        if TILE.blocks > 2:
            for block in range(max(start, 1), min(end, blocks - 1)):
                compute_block(row, block * SIZE, SIZE, BEFORE, BEHIND, ALL_ROWS, WINDOW, TILE)
        if end == blocks:
            compute_block(row, (blocks - 1) * SIZE, LAST_SIZE, BEFORE, TILE.right, ALL_ROWS, WINDOW, TILE)


@triton.jit
def depthwise_rows_input_gradient_kernel(
    dz_ptr,
    weight_ptr,
    dx_ptr,
    D,
    H,
    W,
    Z,
    P,
    Q,
    segments,
    blocks,
    channels,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """dX. A program computes `blocks` blocks of a row of pixels and `channels` channels.

    Grid axes are rows in `segments` each, and parts of the channels.
    """
    index = tl.program_id(0) // segments
    start = (tl.program_id(0) - index * segments) * blocks
    all_blocks = tl.cdiv(W, TILE.block_q)
    end = min(start + blocks, all_blocks)
    row = gradient_row(dz_ptr, weight_ptr, dx_ptr, index, channels, D, H, W, Z, P, Q, WINDOW, TILE)
    if not TILE.unrolled:
        compute_blocks(row, start, end, all_blocks, False, WINDOW, TILE)
    elif (row.tap_start == 0) & (row.tap_end == WINDOW.R):
        compute_blocks(row, start, end, all_blocks, True, WINDOW, TILE)
    else:
        compute_blocks(row, start, end, all_blocks, False, WINDOW, TILE)


@costs(depthwise_rows_input_gradient_kernel)
def depthwise_rows_input_gradient_cost(dz_ptr: torch.Tensor, WINDOW: ConvolutionWindow, **others: Any) -> Cost:
    """2 N Z P Q C T R S operations; dZ and W read, dX written."""
    return Cost(2 * dz_ptr.numel() * WINDOW.T * WINDOW.R * WINDOW.S, size_in_bytes(dz_ptr, *others.values()))


def input_gradient_problem(
    shape: ConvolutionShape, window: ConvolutionWindow, dtype: torch.dtype, target: Target
) -> Problem:
    """The launch of `depthwise_rows_input_gradient_kernel`."""
    rows = shape.N * shape.D * shape.H
    tile = input_gradient_tile(shape, window, dtype)
    division = divide_rows(rows, shape.W, tile, target)
    return Problem(
        depthwise_rows_input_gradient_kernel,
        (rows * division.segments, division.parts),
        *(shape.D, shape.H, shape.W, shape.Z, shape.P, shape.Q),
        *(division.segments, division.blocks, division.channels),
        WINDOW=window,
        TILE=tile,
        num_warps=4,
    )

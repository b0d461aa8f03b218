"""Depthwise convolution by rows of pixels.

    y[n, c, o, p, q] = act(sum over t, r, s of x[n, c, o stride + t dilation - padding, ...] W[c, t, r, s] + b[c])

A program computes a row of output pixels, or a part of it, in blocks of [block_q, block_channels] whose sums stay in
registers. A step is one row of taps: a value of x is loaded and converted once for all pixels of the block that it
serves. The blocks at both ends of a row are compiled for the taps that lie outside of the image, and those between need
no mask, unless the edges are wider than a block. Weights lie as [T, R, S, C].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.rows import row_of_pixels
from tinynet_kernels.conv.depthwise.statistics import store_row_statistics
from tinynet_kernels.conv.depthwise.tiles import divide_rows, forward_tile
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionWindow
from tinynet_kernels.conv.window import inside, of_channels, store_activated, with_bias
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target


class Epilogue(NamedTuple):
    """What becomes of the sums, within a kernel; see `window.with_bias` and `window.store_activated`."""

    bias: Any
    mean: Any
    variance: Any
    scale: Any
    shift: Any
    y: Any
    z: Any


@triton.jit
def add_row_of_taps(
    sums,
    row,
    t,
    r,
    q,
    channel,
    in_block,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """`sums` of PIXELS pixels from q on, with x W of row (t, r) of the taps added; see `sums_of_block`."""
    S: constexpr = WINDOW.S
    C: constexpr = TILE.channels
    weights = row.weight + (t * WINDOW.R + r) * S * C
    w = q * WINDOW.stride_w - WINDOW.padding_w
    x_row = row.x + (t * row.plane_step + r * row.row_step + w * C)
    added = ()
    for i in tl.static_range(PIXELS):  # pyright: ignore
        total = sums[i]
        for s in tl.static_range(S):  # pyright: ignore
            column = i * WINDOW.stride_w + s * WINDOW.dilation_w
            if column >= FIRST and column < LAST:
                mask = in_block
                if TILE.masked:
                    mask = in_block & inside(w + column, row.W)
                x = tl.load(x_row + column * C + channel, mask=mask, other=0.0)
                weight = tl.load(weights + s * C + channel, mask=in_block, other=0.0)
                total += x.to(tl.float32) * weight.to(tl.float32)
        added += (total,)
    return added


@triton.jit
def sums_of_block(
    row,
    q,
    channel,
    in_block,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    ALL_ROWS: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """x * W of PIXELS pixels from q on: a tuple of [1, CHANNELS] in fp32.

    Of the columns that the block's windows see, [FIRST, LAST) are those of the image; TILE.masked asks for each. All
    rows of taps are unrolled for ALL_ROWS, which says that they lie inside the image.
    """
    R: constexpr = WINDOW.R
    sums = ()
    for _ in tl.static_range(PIXELS):  # pyright: ignore
        sums += (tl.zeros(channel.shape, tl.float32),)
    if ALL_ROWS:
        for r in tl.static_range(R):  # pyright: ignore
            sums = add_row_of_taps(sums, row, 0, r, q, channel, in_block, PIXELS, FIRST, LAST, WINDOW, TILE)
    else:
        for t in range(row.plane_start, row.plane_end):
            for tap_row in range(row.tap_start, row.tap_end):
                sums = add_row_of_taps(sums, row, t, tap_row, q, channel, in_block, PIXELS, FIRST, LAST, WINDOW, TILE)
    return sums


@triton.jit
def compute_channels(
    row,
    epilogue,
    q,
    start,
    columns,
    BLOCK: constexpr,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    ALL_ROWS: constexpr,
    ACTIVATION: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """y of PIXELS pixels from q on and `columns` channels from `start` on; see `sums_of_block`."""
    e = epilogue
    channel = (start + tl.arange(0, BLOCK))[None, :]
    in_block = (tl.arange(0, BLOCK) < columns)[None, :]
    sums = sums_of_block(row, q, channel, in_block, PIXELS, FIRST, LAST, ALL_ROWS, WINDOW, TILE)
    if e.bias is not None:
        bias = of_channels(e.bias, start, tl.arange(0, BLOCK) < columns)
    for i in tl.static_range(PIXELS):  # pyright: ignore
        z = sums[i]
        if e.bias is not None:  # read once for all pixels
            z += bias
        z = with_bias(z, None, e.mean, e.variance, e.scale, e.shift, start, columns, WINDOW)
        pixel = row.pixel + q + i
        store_activated(z, e.y, e.z, None, None, pixel, pixel + 1, start, columns, TILE.channels, ACTIVATION, WINDOW)


@triton.jit
def compute_block(
    row,
    epilogue,
    q,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    ALL_ROWS: constexpr,
    ACTIVATION: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """y of PIXELS pixels from q on and all channels of the program."""
    BLOCK: constexpr = TILE.block_channels
    TAIL: constexpr = TILE.tail
    end = min(row.channel_end, TILE.channels - TAIL)
    for c in range(row.channel_start, end, BLOCK):
        compute_channels(row, epilogue, q, c, BLOCK, BLOCK, PIXELS, FIRST, LAST, ALL_ROWS, ACTIVATION, WINDOW, TILE)
    if TAIL > 0:
        for _ in range(end, row.channel_end, TILE.tail_block):  # once, in the last part of the channels
            compute_channels(
                row, epilogue, q, end, TAIL, TILE.tail_block, PIXELS, FIRST, LAST, ALL_ROWS, ACTIVATION, WINDOW, TILE
            )


@triton.jit
def compute_blocks(
    row, epilogue, start, end, blocks, ALL_ROWS: constexpr, ACTIVATION: constexpr, WINDOW: constexpr, TILE: constexpr
):
    """y of the blocks [start, end) of a row of so many blocks."""
    SIZE: constexpr = TILE.block_q
    LAST_SIZE: constexpr = TILE.last_q
    ALL: constexpr = TILE.columns
    if TILE.blocks == 1:
        compute_block(row, epilogue, 0, LAST_SIZE, TILE.left, TILE.right, ALL_ROWS, ACTIVATION, WINDOW, TILE)
    else:
        if start == 0:
            compute_block(row, epilogue, 0, SIZE, TILE.left, ALL, ALL_ROWS, ACTIVATION, WINDOW, TILE)
        if TILE.blocks > 2:
            for block in range(max(start, 1), min(end, blocks - 1)):
                compute_block(row, epilogue, block * SIZE, SIZE, 0, ALL, ALL_ROWS, ACTIVATION, WINDOW, TILE)
        if end == blocks:
            q = (blocks - 1) * SIZE
            compute_block(row, epilogue, q, LAST_SIZE, 0, TILE.right, ALL_ROWS, ACTIVATION, WINDOW, TILE)


@triton.jit
def depthwise_rows_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    z_ptr,
    argmax_ptr,
    partial_ptr,
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
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x * W + b). A program computes `blocks` blocks of a row of pixels and `channels` channels.

    Grid axes are rows in `segments` each, and parts of the channels. Statistics are those of a program's pixels.
    """
    tl.static_assert(argmax_ptr is None, "a row holds no windows to pool")
    index = tl.program_id(0) // segments
    start = (tl.program_id(0) - index * segments) * blocks
    all_blocks = tl.cdiv(Q, TILE.block_q)
    end = min(start + blocks, all_blocks)
    row = row_of_pixels(x_ptr, weight_ptr, index, channels, D, H, W, Z, P, Q, WINDOW, TILE)
    epilogue = Epilogue(bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, y_ptr, z_ptr)
    if not TILE.unrolled:
        compute_blocks(row, epilogue, start, end, all_blocks, False, ACTIVATION, WINDOW, TILE)
    elif (row.tap_start == 0) & (row.tap_end == WINDOW.R):
        compute_blocks(row, epilogue, start, end, all_blocks, True, ACTIVATION, WINDOW, TILE)
    else:
        compute_blocks(row, epilogue, start, end, all_blocks, False, ACTIVATION, WINDOW, TILE)
    if partial_ptr is not None:
        tl.debug_barrier()  # y is read back
        store_row_statistics(y_ptr, partial_ptr, row, start * TILE.block_q, min(end * TILE.block_q, Q), TILE)


@costs(depthwise_rows_forward_kernel)
def depthwise_rows_cost(y_ptr: torch.Tensor, WINDOW: ConvolutionWindow, **others: Any) -> Cost:
    """2 N Z P Q C T R S operations; x, W and b read, y (and z) written."""
    return Cost(2 * y_ptr.numel() * WINDOW.T * WINDOW.R * WINDOW.S, size_in_bytes(y_ptr, *others.values()))


def forward_problem(
    shape: ConvolutionShape,
    window: ConvolutionWindow,
    activation: Activation,
    dtype: torch.dtype,
    target: Target,
) -> Problem:
    """The launch of `depthwise_rows_forward_kernel`."""
    rows = shape.N * shape.Z * shape.P
    tile = forward_tile(shape, window, dtype)
    division = divide_rows(rows, shape.Q, tile, target)
    return Problem(
        depthwise_rows_forward_kernel,
        (rows * division.segments, division.parts),
        *(shape.D, shape.H, shape.W, shape.Z, shape.P, shape.Q),
        *(division.segments, division.blocks, division.channels),
        WINDOW=window,
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )

"""Weight gradient of a depthwise convolution by rows of pixels.

    dW[c, t, r, s] = sum over n, o, p, q of x[n, c, o stride + t dilation - padding, p ..., q ...] dZ[n, c, o, p, q]

A program takes a block of channels and a share of the rows of dZ, and one row of taps after another: only rows of dZ
that meet the image there are read. The sums of a row of taps stay in registers along all rows of pixels; a step is a
block of pixels, each of whose values serves all taps. Blocks at both ends of a row are those of `forward`. The fp32
partial sums [SPLIT, C, T R S] are added in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.rows import rows_inside
from tinynet_kernels.conv.depthwise.tiles import gradient_shares, weight_gradient_tile
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionWindow
from tinynet_kernels.conv.window import inside
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div


class Share(NamedTuple):
    """What a program reads, within a kernel.

    Attributes:
        x, dz, dw: pointers to the first image, to its dZ, and to the program's share of dW.
        plane_start, plane_end: the share's planes.
        row_start, row_end: its rows of each.
        D, H, W: planes, rows and columns of an image.
        Z, P, Q: those of its dZ.
    """

    x: Any
    dz: Any
    dw: Any
    plane_start: Any
    plane_end: Any
    row_start: Any
    row_end: Any
    D: Any
    H: Any
    W: Any
    Z: Any
    P: Any
    Q: Any


@triton.jit
def add_products(
    sums,
    x_row,
    dz_row,
    q,
    W,
    channel,
    in_block,
    PIXELS: constexpr,
    FIRST: constexpr,
    LAST: constexpr,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """`sums` of a row of taps, with x dZ of PIXELS pixels from q on added; [FIRST, LAST) as in `forward`."""
    S: constexpr = WINDOW.S
    C: constexpr = TILE.channels
    w = q * WINDOW.stride_w - WINDOW.padding_w
    added = ()
    for s in tl.static_range(S):  # pyright: ignore
        total = sums[s]
        for i in tl.static_range(PIXELS):  # pyright: ignore
            column = i * WINDOW.stride_w + s * WINDOW.dilation_w
            if column >= FIRST and column < LAST:
                mask = in_block
                if TILE.masked:
                    mask = in_block & inside(w + column, W)
                x = tl.load(x_row + (w * C + column * C) + channel, mask=mask, other=0.0)
                dz = tl.load(dz_row + (q * C + i * C) + channel, mask=in_block, other=0.0)
                total += x.to(tl.float32) * dz.to(tl.float32)
        added += (total,)
    return added


@triton.jit
def sum_rows(share, start, columns, BLOCK: constexpr, WINDOW: constexpr, TILE: constexpr):
    """dW of `columns` channels from `start` on, over the rows of a `Share`."""
    T: constexpr = WINDOW.T
    R: constexpr = WINDOW.R
    S: constexpr = WINDOW.S
    C: constexpr = TILE.channels
    SIZE: constexpr = TILE.block_q
    LAST_SIZE: constexpr = TILE.last_q
    ALL: constexpr = TILE.columns
    LEFT: constexpr = TILE.left
    RIGHT: constexpr = TILE.right
    D, H, W, Z, P, Q = share.D, share.H, share.W, share.Z, share.P, share.Q
    blocks = tl.cdiv(Q, SIZE)
    channel = start + tl.arange(0, BLOCK)
    in_block = tl.arange(0, BLOCK) < columns
    for line in range(T * R):
        tap_h = line % R * WINDOW.dilation_h - WINDOW.padding_h
        row_start, row_end = rows_inside(tap_h, H, P, WINDOW.stride_h)
        row_start = max(row_start, share.row_start)
        row_end = min(row_end, share.row_end)
        sums = ()
        for _ in tl.static_range(S):  # pyright: ignore
            sums += (tl.zeros((BLOCK,), tl.float32),)
        for plane in range(share.plane_start, share.plane_end):
            image = plane
            end = row_end
            if WINDOW.volume:
                d = plane % Z * WINDOW.stride_d + line // R * WINDOW.dilation_d - WINDOW.padding_d
                image = plane // Z * D + d
                end = tl.where(inside(d, D), row_end, row_start)
            for p in range(row_start, end):
                x = share.x + (tl.cast(image, tl.int64) * H + p * WINDOW.stride_h + tap_h) * W * C
                dz = share.dz + (tl.cast(plane, tl.int64) * P + p) * Q * C
                if TILE.blocks == 1:
                    sums = add_products(sums, x, dz, 0, W, channel, in_block, LAST_SIZE, LEFT, RIGHT, WINDOW, TILE)
                else:
                    sums = add_products(sums, x, dz, 0, W, channel, in_block, SIZE, LEFT, ALL, WINDOW, TILE)
                    if TILE.blocks > 2:
                        for block in range(1, blocks - 1):
                            q = block * SIZE
                            sums = add_products(sums, x, dz, q, W, channel, in_block, SIZE, 0, ALL, WINDOW, TILE)
                    last = (blocks - 1) * SIZE
                    sums = add_products(sums, x, dz, last, W, channel, in_block, LAST_SIZE, 0, RIGHT, WINDOW, TILE)
        dw = share.dw + (channel * (T * R) + line) * S
        for s in tl.static_range(S):  # pyright: ignore
            tl.store(dw + s, sums[s], mask=in_block)


@triton.jit
def depthwise_rows_weight_gradient_kernel(
    x_ptr,
    dz_ptr,
    dw_ptr,
    planes,
    planes_per_share,
    rows_per_share,
    shares,
    D,
    H,
    W,
    Z,
    P,
    Q,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """dW[split, c, t, r, s] over a share of the rows of dZ, fp32; grid axes are blocks of channels, and splits.

    A share is `rows_per_share` rows of each of `planes_per_share` planes; a plane has rows for so many `shares`.
    """
    BLOCK: constexpr = TILE.block_channels
    TAIL: constexpr = TILE.tail
    split = tl.program_id(1)
    plane = split // shares * planes_per_share
    row = split % shares * rows_per_share
    dw = dw_ptr + split.to(tl.int64) * (TILE.channels * WINDOW.T * WINDOW.R * WINDOW.S)
    plane_end = min(plane + planes_per_share, planes)
    share = Share(x_ptr, dz_ptr, dw, plane, plane_end, row, row + rows_per_share, D, H, W, Z, P, Q)
    start = tl.program_id(0) * BLOCK
    if TAIL == 0:
        sum_rows(share, start, BLOCK, BLOCK, WINDOW, TILE)
    else:
        if start + BLOCK <= TILE.channels:
            sum_rows(share, start, BLOCK, BLOCK, WINDOW, TILE)
        else:
            sum_rows(share, start, TAIL, TILE.tail_block, WINDOW, TILE)


@costs(depthwise_rows_weight_gradient_kernel)
def depthwise_rows_weight_gradient_cost(dz_ptr: torch.Tensor, WINDOW: ConvolutionWindow, **others: Any) -> Cost:
    """2 N Z P Q C T R S operations; dZ and x read, every split of dW written."""
    return Cost(2 * dz_ptr.numel() * WINDOW.T * WINDOW.R * WINDOW.S, size_in_bytes(dz_ptr, *others.values()))


def weight_gradient_problem(
    shape: ConvolutionShape, window: ConvolutionWindow, dtype: torch.dtype, target: Target
) -> tuple[Problem, int]:
    """The launch of `depthwise_rows_weight_gradient_kernel`, and its splits."""
    tile = weight_gradient_tile(shape, window, dtype)
    planes = shape.N * shape.Z
    planes_per_share, rows_per_share = gradient_shares(planes, shape.P, shape.Q)
    shares = ceil_div(shape.P, rows_per_share)
    splits = ceil_div(planes, planes_per_share) * shares
    problem = Problem(
        depthwise_rows_weight_gradient_kernel,
        (ceil_div(shape.C, tile.block_channels), splits),
        *(planes, planes_per_share, rows_per_share, shares),
        *(shape.D, shape.H, shape.W, shape.Z, shape.P, shape.Q),
        WINDOW=window,
        TILE=tile,
        num_warps=4,
    )
    return problem, splits

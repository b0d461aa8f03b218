"""Convolutions whose groups hold one input channel: no matrix product, taps one after another.

    y[n, k, p, q] = sum over r, s of x[n, k // multiplier, p stride + r dilation - padding, q ...] W[k, r, s]

with `multiplier` = K / C output channels to each input channel: depthwise convolutions, and the forward of a first
layer on gray images (C = 1, where all output channels read one input value). Each output is R S multiply-adds, bound
by memory. A program computes a tile of [block_pixels, block_channels]; weights lie as [R, S, K] so that channels are
neighbors. Backward of depthwise convolutions, from dZ:

    dX    the same walk over taps, from the input's side: a tap counts where it hits an output pixel exactly
    dW    one program per tap and share of the pixels; fp32 partial sums [SPLIT, K, R S], added in a fixed order
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, ConvolutionWindow, Pair, Shape
from tinynet_kernels.conv.tiles import BoxTile, PixelTile, depthwise_box
from tinynet_kernels.conv.window import (
    box_position,
    inside,
    is_wide_convolution,
    next_box,
    pixel_position,
    store_activated,
    windows_of,
    with_bias,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import empty_channels_last, transpose
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target, every_register, rows_and_columns, split_count


@triton.jit
def single_channel_forward_kernel(
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
    pixels,
    H,
    W,
    C,
    P,
    Q,
    K,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x * W + b), one [block_pixels, block_channels] tile per program; WINDOW.one_channel says that C = 1.

    `pixels` as in `convolution_forward_kernel`.
    """
    R: constexpr = WINDOW.R
    S: constexpr = WINDOW.S
    UNROLL: constexpr = TILE.unroll
    BLOCK_PIXELS: constexpr = TILE.block_pixels
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    K = widened(K, WINDOW.wide)
    pixel_start = widened(tl.program_id(0), WINDOW.wide) * BLOCK_PIXELS
    column_start = tl.program_id(1) * BLOCK_CHANNELS
    column = column_start + tl.arange(0, BLOCK_CHANNELS)
    in_columns = column < K
    windows = windows_of(x_ptr, 0, pixel_start, pixels, H, W, C, P, Q, WINDOW, BLOCK_PIXELS)

    z = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for r in tl.range(0, R, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        in_rows = windows.in_tile & inside(windows.h + r * WINDOW.dilation_h, H)
        for s in tl.static_range(S):  # pyright: ignore
            valid = in_rows & inside(windows.w + s * WINDOW.dilation_w, W)
            tap_offset = windows.offset + (r * WINDOW.dilation_h * W + s * WINDOW.dilation_w) * C
            if WINDOW.one_channel:
                x = tl.load(windows.base + tap_offset, mask=valid, other=0.0)[:, None]
            else:
                offset = tap_offset[:, None] + (column // WINDOW.multiplier)[None, :]
                x = tl.load(windows.base + offset, mask=valid[:, None] & in_columns[None, :], other=0.0)
            weight = tl.load(weight_ptr + (r * S + s) * K + column, mask=in_columns, other=0.0)
            z += x.to(tl.float32) * weight.to(tl.float32)[None, :]

    columns_left = K - column_start
    z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, column_start, columns_left, WINDOW)
    store_activated(
        z, y_ptr, z_ptr, argmax_ptr, partial_ptr, pixel_start, pixels, column_start, columns_left, K, ACTIVATION, WINDOW
    )


@triton.jit
def depthwise_input_gradient_kernel(
    dz_ptr, weight_ptr, dx_ptr, pixels, H, W, C, P, Q, K, WINDOW: constexpr, TILE: constexpr
):
    """dX[n, c, h, w] = sum of dZ[n, k, p, q] W[k, r, s] over the (k, r, s) that read (c, h, w) at a pixel (p, q).

    One [block_pixels, block_channels] tile of dX per program; `pixels` are N H W.
    """
    S: constexpr = WINDOW.S
    MULTIPLIER: constexpr = WINDOW.multiplier
    BLOCK_PIXELS: constexpr = TILE.block_pixels
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    H = widened(H, WINDOW.wide)
    C = widened(C, WINDOW.wide)
    pixel_start = widened(tl.program_id(0), WINDOW.wide) * BLOCK_PIXELS
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_pixels = pixel < pixels
    in_channels = channel < C
    image, h, w = pixel_position(pixel, H, W)
    first_image = pixel_start // (H * W)
    image -= first_image
    dz_base = dz_ptr + first_image.to(tl.int64) * P * Q * K

    dx = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for tap_row in range(WINDOW.R * MULTIPLIER):
        r = tap_row // MULTIPLIER
        column = channel * MULTIPLIER + tap_row - r * MULTIPLIER
        row = h + WINDOW.padding_h - r * WINDOW.dilation_h  # p stride_h of the output pixel that reads here by tap r
        in_rows = in_pixels & (row % WINDOW.stride_h == 0) & inside(row, P * WINDOW.stride_h)
        for s in tl.static_range(S):  # pyright: ignore
            along = w + WINDOW.padding_w - s * WINDOW.dilation_w
            valid = in_rows & (along % WINDOW.stride_w == 0) & inside(along, Q * WINDOW.stride_w)
            offset = ((image * P + row // WINDOW.stride_h) * Q + along // WINDOW.stride_w) * K
            mask = valid[:, None] & in_channels[None, :]
            dz = tl.load(dz_base + (offset[:, None] + column[None, :]), mask=mask, other=0.0)
            weight = tl.load(weight_ptr + (r * S + s) * K + column, mask=in_channels, other=0.0)
            dx += dz.to(tl.float32) * weight.to(tl.float32)[None, :]

    offset = tl.arange(0, BLOCK_PIXELS)[:, None] * C + channel[None, :]
    mask = in_pixels[:, None] & in_channels[None, :]
    tl.store(dx_ptr + pixel_start.to(tl.int64) * C + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_weight_gradient_kernel(
    x_ptr, dz_ptr, dw_ptr, N, H, W, C, P, Q, K, boxes, boxes_per_split, WINDOW: constexpr, TILE: constexpr
):
    """dW[split, k, r, s] = sum of x[n, k // multiplier, ...] dZ[n, k, p, q] over the split's boxes of pixels, fp32.

    One tap and block_channels output channels per program. A step is a box of images, rows and columns: in-box offsets
    are hoisted, only the box's corner moves.
    """
    H = widened(H, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    boxes_per_split = widened(boxes_per_split, WINDOW.wide)
    column = tl.program_id(0) * TILE.block_channels + tl.arange(0, TILE.block_channels)
    in_columns = column < K
    tap = tl.program_id(1)
    split = tl.program_id(2)
    tap_h = tap // WINDOW.S * WINDOW.dilation_h - WINDOW.padding_h
    tap_w = tap % WINDOW.S * WINDOW.dilation_w - WINDOW.padding_w

    BLOCK_PIXELS: constexpr = TILE.box_n * TILE.box_p * TILE.box_q
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    image, row, along = pixel_position(tl.arange(0, BLOCK_PIXELS), TILE.box_p, TILE.box_q)
    dz_offset = (((image * P + row) * Q + along) * K)[:, None] + column[None, :]
    x_offset = (((image * H + row * WINDOW.stride_h) * W + along * WINDOW.stride_w) * C)[:, None]
    x_offset += (column // WINDOW.multiplier)[None, :]

    first_box = split * boxes_per_split
    n, p, q = box_position(first_box, P, Q, TILE)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for _ in range(first_box, min(first_box + boxes_per_split, boxes)):
        in_box = (n + image < N) & (p + row < P) & (q + along < Q)
        h = p * WINDOW.stride_h + tap_h
        w = q * WINDOW.stride_w + tap_w
        valid = in_box & inside(h + row * WINDOW.stride_h, H) & inside(w + along * WINDOW.stride_w, W)
        mask = valid[:, None] & in_columns[None, :]
        dz = tl.load(dz_ptr + ((n.to(tl.int64) * P + p) * Q + q) * K + dz_offset, mask=mask, other=0.0)
        x = tl.load(x_ptr + ((n.to(tl.int64) * H + h) * W + w) * C + x_offset, mask=mask, other=0.0)
        total += x.to(tl.float32) * dz.to(tl.float32)
        n, p, q = next_box(n, p, q, P, Q, TILE)
    dw = dw_ptr + split.to(tl.int64) * K * WINDOW.R * WINDOW.S + tap
    tl.store(dw + column * (WINDOW.R * WINDOW.S), tl.sum(total, axis=0), mask=in_columns)


@costs(depthwise_input_gradient_kernel)
@costs(depthwise_weight_gradient_kernel)
def depthwise_gradient_cost(dz_ptr: torch.Tensor, WINDOW: ConvolutionWindow, **others: Any) -> Cost:
    """2 N P Q K R S operations; dZ and W or x read, dX or every split of dW written."""
    return Cost(2 * dz_ptr.numel() * WINDOW.R * WINDOW.S, size_in_bytes(dz_ptr, *others.values()))


def taps_first(weight: torch.Tensor) -> torch.Tensor:
    """W [K, 1, R, S] as [R S, K]."""
    K, _, R, S = weight.shape
    packed = torch.empty((R * S, K), dtype=weight.dtype, device=weight.device)
    transpose(weight, packed, 1, K, R * S)
    return packed


def single_channel_problem(
    shape: ConvolutionShape, spec: ConvolutionSpec, activation: Activation, pool: bool, epsilon: float, target: Target
) -> Problem:
    """The launch of `forward.convolution_forward` for W [K, 1, R, S], which it is given as `taps_first`."""
    C, K, pixels = shape.C, shape.K, shape.pixels(pool)
    block_pixels, block_channels, num_warps = rows_and_columns(pixels, K, target)
    block_pixels = max(block_pixels, 4)  # of one window
    # A GPU's registers would not hold all taps of some tiles.
    unrolls = target.kind == "cpu" and C == 1 and shape.taps <= 9
    result = (block_pixels, K), (block_channels, 1)
    wide = is_wide_convolution(pixels, pixels // shape.N, block_pixels, C * shape.H * shape.W, result)
    options = {"multiplier": K // C, "one_channel": C == 1, "epsilon": epsilon}
    window = spec.compiled((shape.R, shape.S), wide=wide, pool=pool, **options)
    return Problem(
        single_channel_forward_kernel,
        (ceil_div(pixels, block_pixels), ceil_div(K, block_channels)),
        pixels,
        *shape.sides,
        WINDOW=window,
        ACTIVATION=activation.compiled,
        TILE=PixelTile(block_pixels, block_channels, shape.R if unrolls else 1),
        num_warps=num_warps,
        **(every_register(block_pixels, "ieee", target) if pool else {}),
    )


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: Shape, kernel_size: Pair, spec: ConvolutionSpec, size: Pair, target: Target
) -> Problem:
    N, K, P, Q = dz_shape
    H, W = size
    C = spec.groups
    block_pixels, block_channels, num_warps = rows_and_columns(N * H * W, C, target)
    result = (block_pixels, C), (block_channels, 1)
    wide = is_wide_convolution(N * H * W, H * W, block_pixels, K * P * Q, result)
    return Problem(
        depthwise_input_gradient_kernel,
        (ceil_div(N * H * W, block_pixels), ceil_div(C, block_channels)),
        *(N * H * W, H, W, C, P, Q, K),
        WINDOW=spec.compiled(kernel_size, wide=wide, multiplier=K // C),
        TILE=PixelTile(block_pixels, block_channels),
        num_warps=num_warps,
    )


def depthwise_input_gradient(
    dz: torch.Tensor, weight: torch.Tensor, spec: ConvolutionSpec, size: Pair, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dX [N, C, H, W] of dZ [N, K, P, Q] and W [K, 1, R, S]; see `input_gradient.convolution_input_gradient`."""
    dx = empty_channels_last(dz, dz.shape[0], spec.groups, *size, dtype)
    problem = _input_gradient_problem(dz.shape, weight.shape[2:], spec, size, current_target())
    problem.launch(dz, taps_first(weight), dx)
    return dx


@lru_cache(maxsize=4096)
def _weight_gradient_problem(
    dz_shape: Shape, x_shape: Shape, spec: ConvolutionSpec, kernel_size: Pair, target: Target
) -> tuple[Problem, int]:
    """The launch, and its splits."""
    N, K, P, Q = dz_shape
    _, C, H, W = x_shape
    taps = kernel_size[0] * kernel_size[1]
    _, block_channels, num_warps = rows_and_columns(N * P * Q, K, target)
    box_n, box_p, box_q = box = depthwise_box((N, P, Q), target)
    boxes = ceil_div(N, box_n) * ceil_div(P, box_p) * ceil_div(Q, box_q)
    channel_tiles = ceil_div(K, block_channels)
    boxes_per_split = ceil_div(boxes, split_count(channel_tiles * taps, boxes, target))
    splits = ceil_div(boxes, boxes_per_split)
    wide = exceed_int32(((box_n + 1, max(C * H * W, K * P * Q)),), (((boxes + boxes_per_split) * math.prod(box), 1),))
    problem = Problem(
        depthwise_weight_gradient_kernel,
        (channel_tiles, taps, splits),
        *(N, H, W, C, P, Q, K, boxes, boxes_per_split),
        WINDOW=spec.compiled(kernel_size, wide=wide, multiplier=K // C),
        TILE=BoxTile(*box, block_channels),
        num_warps=num_warps,
    )
    return problem, splits


def depthwise_weight_gradient(
    dz: torch.Tensor, x: torch.Tensor, spec: ConvolutionSpec, kernel_size: Pair, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dW [K, 1, R, S] in `dtype` (None: x's); see `weight_gradient.convolution_weight_gradient`."""
    problem, splits = _weight_gradient_problem(dz.shape, x.shape, spec, kernel_size, current_target())
    dw = torch.empty((splits, dz.shape[1], 1, *kernel_size), dtype=torch.float32, device=x.device)
    problem.launch(x, dz, dw)
    return sum_partials(dw, x.dtype if dtype is None else dtype)

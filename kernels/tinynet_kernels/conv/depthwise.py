"""Convolutions whose groups hold one input channel: no matrix product, taps one after another.

    y[n, k, p, q] = sum over r, s of x[n, k // multiplier, p stride + r dilation - padding, q ...] W[k, r, s]

with `multiplier` = K / C output channels to each input channel: depthwise convolutions, and the forward of a first
layer on gray images (C = 1, where all output channels read one input value). Each output is R S multiply-adds, bound
by memory. A program makes a tile of [BLOCK_PIXELS, BLOCK_CHANNELS]; weights lie as [R, S, K] so that channels are
neighbors. Backward of depthwise convolutions, from dZ:

    dX    the same walk over taps, from the input's side: a tap counts where it hits an output pixel exactly
    dW    one program a tap and a share of the pixels; fp32 partial sums [SPLIT, K, R S], added in a fixed order
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionSpec
from tinynet_kernels.conv.window import (
    first_image_of,
    inside,
    is_wide_convolution,
    next_box,
    output_pixels,
    output_position,
    pixel_position,
    store_activated,
    window_constants,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import empty_channels_last, transpose
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import (
    Target,
    ceil_div,
    current_target,
    depthwise_box,
    every_register,
    rows_and_columns,
    split_count,
)


@triton.jit
def single_channel_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    z_ptr,
    winner_ptr,
    pixels,
    H,
    W,
    C,
    P,
    Q,
    K,
    MULTIPLIER: constexpr,
    ONE_CHANNEL: constexpr,
    R: constexpr,
    S: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
    ACTIVATION: constexpr,
    HAS_BIAS: constexpr,
    SAVE_INPUT: constexpr,
    POOL: constexpr,
    WIDE: constexpr,
    UNROLL: constexpr,
    BLOCK_PIXELS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """y = act(x * W + b), one [BLOCK_PIXELS, BLOCK_CHANNELS] tile a program; ONE_CHANNEL says that C = 1.

    UNROLL rows of taps are added at once. POOL as in `convolution_forward_kernel`.
    """
    W = widened(W, WIDE)
    P = widened(P, WIDE)
    K = widened(K, WIDE)
    pixel_start = widened(tl.program_id(0), WIDE) * BLOCK_PIXELS
    column_start = tl.program_id(1) * BLOCK_CHANNELS
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    column = column_start + tl.arange(0, BLOCK_CHANNELS)
    in_pixels = pixel < pixels
    in_columns = column < K
    image, p, q = output_position(pixel, P, Q, POOL)
    first_image = first_image_of(pixel_start, P, Q, POOL)
    h = p * STRIDE_H - PADDING_H
    w = q * STRIDE_W - PADDING_W
    image -= first_image
    x_offset = ((image * H + h) * W + w) * C
    x_base = x_ptr + first_image.to(tl.int64) * H * W * C

    z = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for r in tl.range(0, R, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        in_rows = in_pixels & inside(h + r * DILATION_H, H)
        for s in tl.static_range(S):  # pyright: ignore
            valid = in_rows & inside(w + s * DILATION_W, W)
            tap_offset = x_offset + (r * DILATION_H * W + s * DILATION_W) * C
            if ONE_CHANNEL:
                x = tl.load(x_base + tap_offset, mask=valid, other=0.0)[:, None]
            else:
                offset = tap_offset[:, None] + (column // MULTIPLIER)[None, :]
                x = tl.load(x_base + offset, mask=valid[:, None] & in_columns[None, :], other=0.0)
            weight = tl.load(weight_ptr + (r * S + s) * K + column, mask=in_columns, other=0.0)
            z += x.to(tl.float32) * weight.to(tl.float32)[None, :]

    store_activated(
        z,
        bias_ptr,
        y_ptr,
        z_ptr,
        winner_ptr,
        pixel_start,
        pixels,
        column_start,
        K,
        0,
        K,
        ACTIVATION,
        HAS_BIAS,
        SAVE_INPUT,
        POOL,
        BLOCK_PIXELS,
        BLOCK_CHANNELS,
    )


@triton.jit
def depthwise_input_gradient_kernel(
    dz_ptr,
    weight_ptr,
    dx_ptr,
    pixels,
    H,
    W,
    C,
    P,
    Q,
    K,
    MULTIPLIER: constexpr,
    R: constexpr,
    S: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
    WIDE: constexpr,
    BLOCK_PIXELS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """dX[n, c, h, w] = sum of dZ[n, k, p, q] W[k, r, s] over the (k, r, s) that read (c, h, w) at a pixel (p, q).

    One [BLOCK_PIXELS, BLOCK_CHANNELS] tile of dX a program; `pixels` are N H W.
    """
    H = widened(H, WIDE)
    C = widened(C, WIDE)
    pixel_start = widened(tl.program_id(0), WIDE) * BLOCK_PIXELS
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_pixels = pixel < pixels
    in_channels = channel < C
    image, h, w = pixel_position(pixel, H, W)
    first_image = pixel_start // (H * W)
    image -= first_image
    dz_base = dz_ptr + first_image.to(tl.int64) * P * Q * K

    dx = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for tap_row in range(R * MULTIPLIER):
        r = tap_row // MULTIPLIER
        column = channel * MULTIPLIER + tap_row - r * MULTIPLIER
        row = h + PADDING_H - r * DILATION_H  # p STRIDE_H of the output pixel that reads here through tap r
        in_rows = in_pixels & (row % STRIDE_H == 0) & inside(row, P * STRIDE_H)
        for s in tl.static_range(S):  # pyright: ignore
            along = w + PADDING_W - s * DILATION_W
            valid = in_rows & (along % STRIDE_W == 0) & inside(along, Q * STRIDE_W)
            offset = ((image * P + row // STRIDE_H) * Q + along // STRIDE_W) * K
            dz = tl.load(
                dz_base + (offset[:, None] + column[None, :]), mask=valid[:, None] & in_channels[None, :], other=0.0
            )
            weight = tl.load(weight_ptr + (r * S + s) * K + column, mask=in_channels, other=0.0)
            dx += dz.to(tl.float32) * weight.to(tl.float32)[None, :]

    offset = tl.arange(0, BLOCK_PIXELS)[:, None] * C + channel[None, :]
    mask = in_pixels[:, None] & in_channels[None, :]
    tl.store(dx_ptr + pixel_start.to(tl.int64) * C + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_weight_gradient_kernel(
    x_ptr,
    dz_ptr,
    dw_ptr,
    N,
    H,
    W,
    C,
    P,
    Q,
    K,
    boxes,
    boxes_a_split,
    MULTIPLIER: constexpr,
    R: constexpr,
    S: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
    WIDE: constexpr,
    BOX_N: constexpr,
    BOX_P: constexpr,
    BOX_Q: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """dW[split, k, r, s] = sum of x[n, k // MULTIPLIER, ...] dZ[n, k, p, q] over the split's boxes of pixels, fp32.

    One tap and BLOCK_CHANNELS output channels a program. A step is a box of BOX_N images, BOX_P rows and BOX_Q columns:
    in-box offsets are hoisted, only the box's corner moves.
    """
    H = widened(H, WIDE)
    P = widened(P, WIDE)
    boxes_a_split = widened(boxes_a_split, WIDE)
    column = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_columns = column < K
    tap = tl.program_id(1)
    split = tl.program_id(2)
    tap_h = tap // S * DILATION_H - PADDING_H
    tap_w = tap % S * DILATION_W - PADDING_W

    BLOCK_PIXELS: constexpr = BOX_N * BOX_P * BOX_Q
    image, row, along = pixel_position(tl.arange(0, BLOCK_PIXELS), BOX_P, BOX_Q)
    dz_offset = (((image * P + row) * Q + along) * K)[:, None] + column[None, :]
    x_offset = (((image * H + row * STRIDE_H) * W + along * STRIDE_W) * C)[:, None] + (column // MULTIPLIER)[None, :]

    first_box = split * boxes_a_split
    n, p, q = pixel_position(first_box, tl.cdiv(P, BOX_P), tl.cdiv(Q, BOX_Q))
    n *= BOX_N
    p *= BOX_P
    q *= BOX_Q
    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for _ in range(first_box, min(first_box + boxes_a_split, boxes)):
        in_box = (n + image < N) & (p + row < P) & (q + along < Q)
        h = p * STRIDE_H + tap_h
        w = q * STRIDE_W + tap_w
        valid = in_box & inside(h + row * STRIDE_H, H) & inside(w + along * STRIDE_W, W)
        mask = valid[:, None] & in_columns[None, :]
        dz = tl.load(dz_ptr + ((n.to(tl.int64) * P + p) * Q + q) * K + dz_offset, mask=mask, other=0.0)
        x = tl.load(x_ptr + ((n.to(tl.int64) * H + h) * W + w) * C + x_offset, mask=mask, other=0.0)
        total += x.to(tl.float32) * dz.to(tl.float32)
        n, p, q = next_box(n, p, q, P, Q, BOX_N, BOX_P, BOX_Q)
    dw = dw_ptr + split.to(tl.int64) * K * R * S + tap
    tl.store(dw + column * (R * S), tl.sum(total, axis=0), mask=in_columns)


@costs(single_channel_forward_kernel)
def single_channel_forward_cost(
    x_ptr: torch.Tensor,
    weight_ptr: torch.Tensor,
    bias_ptr: torch.Tensor | None,
    y_ptr: torch.Tensor,
    z_ptr: torch.Tensor | None,
    winner_ptr: torch.Tensor | None,
    pixels: int,
    **_: Any,
) -> Cost:
    """2 N P Q K R S operations; x, W and b read, y (and z, and winners) written."""
    moved = size_in_bytes(x_ptr, weight_ptr, bias_ptr, y_ptr, z_ptr, winner_ptr)
    return Cost(2 * pixels * weight_ptr.numel(), moved)


@costs(depthwise_input_gradient_kernel)
def depthwise_input_gradient_cost(
    dz_ptr: torch.Tensor, weight_ptr: torch.Tensor, dx_ptr: torch.Tensor, **constants: Any
) -> Cost:
    """2 N P Q K R S operations; dZ and W read, dX written."""
    flops = 2 * dz_ptr.numel() * constants["R"] * constants["S"]
    return Cost(flops, size_in_bytes(dz_ptr, weight_ptr, dx_ptr))


@costs(depthwise_weight_gradient_kernel)
def depthwise_weight_gradient_cost(
    x_ptr: torch.Tensor, dz_ptr: torch.Tensor, dw_ptr: torch.Tensor, **constants: Any
) -> Cost:
    """2 N P Q K R S operations; x and dZ read, every split of dW written."""
    flops = 2 * dz_ptr.numel() * constants["R"] * constants["S"]
    return Cost(flops, size_in_bytes(x_ptr, dz_ptr, dw_ptr))


def taps_first(weight: torch.Tensor) -> torch.Tensor:
    """W [K, 1, R, S] as [R S, K]."""
    K, _, R, S = weight.shape
    packed = torch.empty((R * S, K), dtype=weight.dtype, device=weight.device)
    transpose(weight, packed, 1, K, R * S)
    return packed


def single_channel_problem(
    shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    spec: ConvolutionSpec,
    pool: bool,
    constants: dict[str, Any],
    target: Target,
) -> Problem:
    """The launch of `forward.convolution_forward` for W [K, 1, R, S], which it is given as `taps_first`."""
    N, C, H, W = shape
    K, _, R, S = weight_shape
    pixels, P, Q = output_pixels(shape, spec, (R, S), pool)
    block_pixels, block_channels, num_warps = rows_and_columns(pixels, K, target)
    block_pixels = max(block_pixels, 4)  # of one window
    unrolls = target.kind == "cpu" and C == 1 and R * S <= 9  # a GPU's registers would not hold all taps of some tiles
    return Problem(
        single_channel_forward_kernel,
        (ceil_div(pixels, block_pixels), ceil_div(K, block_channels)),
        pixels,
        H,
        W,
        C,
        P,
        Q,
        K,
        MULTIPLIER=K // C,
        ONE_CHANNEL=C == 1,
        **constants,
        WIDE=is_wide_convolution(
            pixels, pixels // N, block_pixels, C * H * W, ((block_pixels, K), (block_channels, 1))
        ),
        UNROLL=R if unrolls else 1,
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
        num_warps=num_warps,
        **(every_register(block_pixels, "ieee", target) if pool else {}),
    )


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: tuple[int, int, int, int],
    kernel_size: tuple[int, int],
    spec: ConvolutionSpec,
    size: tuple[int, int],
    target: Target,
) -> Problem:
    N, K, P, Q = dz_shape
    H, W = size
    C = spec.groups
    block_pixels, block_channels, num_warps = rows_and_columns(N * H * W, C, target)
    return Problem(
        depthwise_input_gradient_kernel,
        (ceil_div(N * H * W, block_pixels), ceil_div(C, block_channels)),
        N * H * W,
        H,
        W,
        C,
        P,
        Q,
        K,
        MULTIPLIER=K // C,
        **window_constants(spec, kernel_size),
        WIDE=is_wide_convolution(N * H * W, H * W, block_pixels, K * P * Q, ((block_pixels, C), (block_channels, 1))),
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
        num_warps=num_warps,
    )


def depthwise_input_gradient(
    dz: torch.Tensor,
    weight: torch.Tensor,
    spec: ConvolutionSpec,
    size: tuple[int, int],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """dX [N, C, H, W] of dZ [N, K, P, Q] and W [K, 1, R, S]; see `weight_gradient.convolution_input_gradient`."""
    dx = empty_channels_last(dz, dz.shape[0], spec.groups, *size, dtype)
    problem = _input_gradient_problem(dz.shape, weight.shape[2:], spec, size, current_target())
    problem.launch(dz, taps_first(weight), dx)
    return dx


@lru_cache(maxsize=4096)
def _weight_gradient_problem(
    dz_shape: tuple[int, int, int, int],
    x_shape: tuple[int, int, int, int],
    spec: ConvolutionSpec,
    kernel_size: tuple[int, int],
    target: Target,
) -> tuple[Problem, int]:
    """The launch, and its splits."""
    N, K, P, Q = dz_shape
    _, C, H, W = x_shape
    R, S = kernel_size
    _, block_channels, num_warps = rows_and_columns(N * P * Q, K, target)
    box = depthwise_box((N, P, Q), target)
    boxes = ceil_div(N, box[0]) * ceil_div(P, box[1]) * ceil_div(Q, box[2])
    channel_tiles = ceil_div(K, block_channels)
    boxes_a_split = ceil_div(boxes, split_count(channel_tiles * R * S, boxes, target))
    splits = ceil_div(boxes, boxes_a_split)
    problem = Problem(
        depthwise_weight_gradient_kernel,
        (channel_tiles, R * S, splits),
        N,
        H,
        W,
        C,
        P,
        Q,
        K,
        boxes,
        boxes_a_split,
        MULTIPLIER=K // C,
        **window_constants(spec, kernel_size),
        WIDE=exceed_int32(((box[0] + 1, max(C * H * W, K * P * Q)),), (((boxes + boxes_a_split) * math.prod(box), 1),)),
        BOX_N=box[0],
        BOX_P=box[1],
        BOX_Q=box[2],
        BLOCK_CHANNELS=block_channels,
        num_warps=num_warps,
    )
    return problem, splits


def depthwise_weight_gradient(
    dz: torch.Tensor,
    x: torch.Tensor,
    spec: ConvolutionSpec,
    kernel_size: tuple[int, int],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """dW [K, 1, R, S] in `dtype` (None: x's); see `weight_gradient.convolution_weight_gradient`."""
    problem, splits = _weight_gradient_problem(dz.shape, x.shape, spec, kernel_size, current_target())
    dw = torch.empty((splits, dz.shape[1], 1, *kernel_size), dtype=torch.float32, device=x.device)
    problem.launch(x, dz, dw)
    return sum_partials(dw, x.dtype if dtype is None else dtype)

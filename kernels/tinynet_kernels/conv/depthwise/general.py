"""Convolutions whose groups hold one input channel: no matrix product, taps one after another.

    y[n, k, o, p, q] = sum over t, r, s of x[n, k // multiplier, o stride + t dilation - padding, ...] W[k, t, r, s]

with `multiplier` = K / C output channels to each input channel: depthwise convolutions, and the forward of a first
layer on gray images (C = 1, where all output channels read one input value). Each output is T R S multiply-adds, bound
by memory. A program computes a tile of [block_pixels, block_channels]; weights lie as [T, R, S, K] so that channels are
neighbors, but for C = 1 on GPUs, where a launch that turns so few weights takes longer than it saves. Backward of
depthwise convolutions, from dZ:

    dX    the same walk over taps, from the input's side: a tap counts where it hits an output pixel exactly
    dW    one program per tap and share of the pixels; fp32 partial sums [SPLIT, K, T R S], added in a fixed order
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, ConvolutionWindow, Sizes
from tinynet_kernels.conv.tiles import BoxTile, PixelTile, depthwise_box
from tinynet_kernels.conv.window import (
    box_position,
    elements_before,
    inside,
    is_wide_convolution,
    next_box,
    offset_in,
    pixel_position,
    store_activated,
    windows_of,
    with_bias,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, ceil_div, every_register, rows_and_columns, split_count


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
    D,
    H,
    W,
    C,
    Z,
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
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    K = widened(K, WINDOW.wide)
    pixel_start = widened(tl.program_id(0), WINDOW.wide) * BLOCK_PIXELS
    column_start = tl.program_id(1) * BLOCK_CHANNELS
    column = column_start + tl.arange(0, BLOCK_CHANNELS)
    in_columns = column < K
    windows = windows_of(x_ptr, 0, pixel_start, pixels, D, H, W, C, Z, P, Q, WINDOW, BLOCK_PIXELS)

    z = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for line in tl.range(0, WINDOW.T * R, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        in_rows = windows.in_tile & inside(windows.h + line % R * WINDOW.dilation_h, H)
        line_offset = line % R * WINDOW.dilation_h * W
        if WINDOW.volume:
            in_rows = in_rows & inside(windows.d + line // R * WINDOW.dilation_d, D)
            line_offset += line // R * WINDOW.dilation_d * H * W
        for s in tl.static_range(S):  # pyright: ignore
            valid = in_rows & inside(windows.w + s * WINDOW.dilation_w, W)
            tap_offset = windows.offset + (line_offset + s * WINDOW.dilation_w) * C
            if WINDOW.one_channel:
                x = tl.load(windows.base + tap_offset, mask=valid, other=0.0)[:, None]
            else:
                offset = tap_offset[:, None] + (column // WINDOW.multiplier)[None, :]
                x = tl.load(windows.base + offset, mask=valid[:, None] & in_columns[None, :], other=0.0)
            tap = line * S + s
            place = column * (WINDOW.T * R * S) + tap if WINDOW.taps_last else tap * K + column
            weight = tl.load(weight_ptr + place, mask=in_columns, other=0.0)
            z += x.to(tl.float32) * weight.to(tl.float32)[None, :]

    columns_left = K - column_start
    z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, column_start, columns_left, WINDOW)
    store_activated(
        z, y_ptr, z_ptr, argmax_ptr, partial_ptr, pixel_start, pixels, column_start, columns_left, K, ACTIVATION, WINDOW
    )


@triton.jit
def depthwise_input_gradient_kernel(
    dz_ptr, weight_ptr, dx_ptr, pixels, D, H, W, C, Z, P, Q, K, WINDOW: constexpr, TILE: constexpr
):
    """dX[n, c, d, h, w] = sum of dZ[n, k, o, p, q] W[k, t, r, s] over the (k, t, r, s) that read (c, d, h, w).

    One [block_pixels, block_channels] tile of dX per program; `pixels` are N D H W.
    """
    R: constexpr = WINDOW.R
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
    image_pixels = H * W
    d = tl.zeros_like(image)
    if WINDOW.volume:
        d = image % D
        image = image // D
        image_pixels *= D
    first_image = pixel_start // image_pixels
    image -= first_image
    dz_base = dz_ptr + elements_before(first_image, Z, P, Q, K, WINDOW)

    dx = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for line_of_taps in range(WINDOW.T * R * MULTIPLIER):
        line = line_of_taps // MULTIPLIER
        column = channel * MULTIPLIER + line_of_taps % MULTIPLIER
        row = h + WINDOW.padding_h - line % R * WINDOW.dilation_h  # p stride_h of the output pixel that reads here
        in_rows = in_pixels & (row % WINDOW.stride_h == 0) & inside(row, P * WINDOW.stride_h)
        plane = d
        if WINDOW.volume:
            plane = d + WINDOW.padding_d - line // R * WINDOW.dilation_d
            in_rows = in_rows & (plane % WINDOW.stride_d == 0) & inside(plane, Z * WINDOW.stride_d)
        for s in tl.static_range(S):  # pyright: ignore
            along = w + WINDOW.padding_w - s * WINDOW.dilation_w
            valid = in_rows & (along % WINDOW.stride_w == 0) & inside(along, Q * WINDOW.stride_w)
            o, p, q = plane // WINDOW.stride_d, row // WINDOW.stride_h, along // WINDOW.stride_w
            offset = offset_in(image, o, p, q, Z, P, Q, WINDOW) * K
            mask = valid[:, None] & in_channels[None, :]
            dz = tl.load(dz_base + (offset[:, None] + column[None, :]), mask=mask, other=0.0)
            weight = tl.load(weight_ptr + (line * S + s) * K + column, mask=in_channels, other=0.0)
            dx += dz.to(tl.float32) * weight.to(tl.float32)[None, :]

    offset = tl.arange(0, BLOCK_PIXELS)[:, None] * C + channel[None, :]
    mask = in_pixels[:, None] & in_channels[None, :]
    tl.store(dx_ptr + pixel_start.to(tl.int64) * C + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_weight_gradient_kernel(
    x_ptr, dz_ptr, dw_ptr, N, D, H, W, C, Z, P, Q, K, boxes, boxes_per_split, WINDOW: constexpr, TILE: constexpr
):
    """dW[split, k, t, r, s] = sum of x[n, k // multiplier, ...] dZ[n, k, o, p, q] over the split's boxes, fp32.

    One tap and block_channels output channels per program. A step is a box of images, rows and columns: in-box offsets
    are hoisted, only the box's corner moves. The N Z planes of volumes are taken one by one.
    """
    H = widened(H, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    boxes_per_split = widened(boxes_per_split, WINDOW.wide)
    column = tl.program_id(0) * TILE.block_channels + tl.arange(0, TILE.block_channels)
    in_columns = column < K
    tap = tl.program_id(1)
    split = tl.program_id(2)
    tap_d = tap // (WINDOW.R * WINDOW.S) * WINDOW.dilation_d - WINDOW.padding_d
    tap_h = tap // WINDOW.S % WINDOW.R * WINDOW.dilation_h - WINDOW.padding_h
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
        plane = n
        if WINDOW.volume:
            d = n % Z * WINDOW.stride_d + tap_d
            plane = n // Z * D + d
            valid = valid & inside(d, D)
        mask = valid[:, None] & in_columns[None, :]
        dz = tl.load(dz_ptr + ((n.to(tl.int64) * P + p) * Q + q) * K + dz_offset, mask=mask, other=0.0)
        x = tl.load(x_ptr + ((plane.to(tl.int64) * H + h) * W + w) * C + x_offset, mask=mask, other=0.0)
        total += x.to(tl.float32) * dz.to(tl.float32)
        n, p, q = next_box(n, p, q, P, Q, TILE)
    TAPS: constexpr = WINDOW.T * WINDOW.R * WINDOW.S
    dw = dw_ptr + split.to(tl.int64) * K * TAPS + tap
    tl.store(dw + column * TAPS, tl.sum(total, axis=0), mask=in_columns)


@costs(depthwise_input_gradient_kernel)
@costs(depthwise_weight_gradient_kernel)
def depthwise_gradient_cost(dz_ptr: torch.Tensor, WINDOW: ConvolutionWindow, **others: Any) -> Cost:
    """2 N Z P Q K T R S operations; dZ and W or x read, dX or every split of dW written."""
    return Cost(2 * dz_ptr.numel() * WINDOW.T * WINDOW.R * WINDOW.S, size_in_bytes(dz_ptr, *others.values()))


def general_forward_problem(
    shape: ConvolutionShape,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    activation: Activation,
    pool: bool,
    epsilon: float,
    target: Target,
) -> Problem:
    """The launch of `single_channel_forward_kernel`."""
    C, K, pixels = shape.C, shape.K, shape.pixels(pool)
    block_pixels, block_channels, num_warps = rows_and_columns(pixels, K, target)
    block_pixels = max(block_pixels, 4)  # of one window
    # A GPU's registers would not hold all taps of some tiles.
    unrolls = target.kind == "cpu" and C == 1 and shape.taps <= 9
    result = (block_pixels, K), (block_channels, 1)
    wide = is_wide_convolution(pixels, pixels // shape.N, block_pixels, shape.image_elements, result)
    taps_last = C == 1 and target.kind in ("cuda", "hip")
    options = {"multiplier": K // C, "one_channel": C == 1, "taps_last": taps_last, "epsilon": epsilon}
    return Problem(
        single_channel_forward_kernel,
        (ceil_div(pixels, block_pixels), ceil_div(K, block_channels)),
        pixels,
        *shape.sides,
        WINDOW=spec.compiled(kernel_size, wide=wide, pool=pool, **options),
        ACTIVATION=activation.compiled,
        TILE=PixelTile(block_pixels, block_channels, shape.R if unrolls else 1),
        num_warps=num_warps,
        **(every_register(block_pixels, "ieee", target) if pool else {}),
    )


def general_input_gradient_problem(
    shape: ConvolutionShape, spec: ConvolutionSpec, kernel_size: Sizes, target: Target
) -> Problem:
    """The launch of `depthwise_input_gradient_kernel`."""
    image_pixels = shape.D * shape.H * shape.W
    pixels = shape.N * image_pixels
    block_pixels, block_channels, num_warps = rows_and_columns(pixels, shape.C, target)
    result = (block_pixels, shape.C), (block_channels, 1)
    wide = is_wide_convolution(pixels, image_pixels, block_pixels, shape.image_elements, result)
    return Problem(
        depthwise_input_gradient_kernel,
        (ceil_div(pixels, block_pixels), ceil_div(shape.C, block_channels)),
        pixels,
        *shape.sides,
        WINDOW=spec.compiled(kernel_size, wide=wide, multiplier=shape.K // shape.C),
        TILE=PixelTile(block_pixels, block_channels),
        num_warps=num_warps,
    )


def general_weight_gradient_problem(
    shape: ConvolutionShape, spec: ConvolutionSpec, kernel_size: Sizes, target: Target
) -> tuple[Problem, int]:
    """The launch of `depthwise_weight_gradient_kernel`, and its splits."""
    planes, K = shape.N * shape.Z, shape.K
    _, block_channels, num_warps = rows_and_columns(planes * shape.P * shape.Q, K, target)
    box_n, box_p, box_q = box = depthwise_box((shape.N if len(kernel_size) == 2 else 1, shape.P, shape.Q), target)
    boxes = ceil_div(planes, box_n) * ceil_div(shape.P, box_p) * ceil_div(shape.Q, box_q)
    channel_tiles = ceil_div(K, block_channels)
    boxes_per_split = ceil_div(boxes, split_count(channel_tiles * shape.taps, boxes, target))
    splits = ceil_div(boxes, boxes_per_split)
    wide = exceed_int32(((box_n + 1, shape.image_elements),), (((boxes + boxes_per_split) * math.prod(box), 1),))
    problem = Problem(
        depthwise_weight_gradient_kernel,
        (channel_tiles, shape.taps, splits),
        *(planes, *shape.sides, boxes, boxes_per_split),
        WINDOW=spec.compiled(kernel_size, wide=wide, multiplier=K // shape.C),
        TILE=BoxTile(*box, block_channels),
        num_warps=num_warps,
    )
    return problem, splits

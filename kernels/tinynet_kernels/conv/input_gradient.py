"""Data gradient of a two-dimensional convolution, from dZ = dY act' (`activation.activation_backward`).

    dX[n, c, h, w] = sum of dZ[n, k, p, q] W[k, c, r, s] over the taps that read (h, w) from a pixel (p, q)

With a stride, each tap reaches only the input pixels of one phase (h mod stride, w mod stride), so each phase is a
dense convolution of its own with stride 1 and its own taps: r0, r0 + step, ..., where step is the stride over its
common divisor with the dilation. Phases are a grid axis and none multiplies by zero; a masked loop over all taps would
take stride^2 times the products.

All tensors are channels_last. Depthwise convolutions are in `depthwise.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise import depthwise_input_gradient
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Pair, Shape
from tinynet_kernels.conv.tiles import convolution_precision, convolution_tile
from tinynet_kernels.conv.window import Filters, Windows, is_wide_convolution, pixel_position, sum_over_taps
from tinynet_kernels.gemm import GROUP, tile_start
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import as_images, as_rows, empty_channels_last
from tinynet_kernels.linear import linear_input_gradient
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import Target, ceil_div, current_target


@triton.jit
def first_tap(phase, TAPS: constexpr, STEP: constexpr, STRIDE: constexpr, PADDING: constexpr, DILATION: constexpr):
    """The first tap along one dimension that reaches the input pixels of a phase, or TAPS where none does."""
    tap = tl.cast(TAPS, tl.int32)
    for candidate in tl.static_range(STEP):  # pyright: ignore
        reaches = (phase + PADDING - candidate * DILATION) % STRIDE == 0
        tap = tl.where(reaches, tl.minimum(candidate, TAPS), tap)
    return tap


@triton.jit
def convolution_input_gradient_kernel(
    dz_ptr, weight_ptr, dx_ptr, N, H, W, C, P, Q, K, group_inputs, group_outputs, WINDOW: constexpr, TILE: constexpr
):
    """dX, one [block_m pixels, block_n channels] tile of one phase per program; grid axes are tiles, phases, groups.

    A step is one tap of block_k output channels, taps innermost. From a tap to the next, the input pixel stays, the tap
    grows by tap_step and the output pixel shrinks by tap_step dilation / stride. WINDOW.even says that block_k divides
    the group's output channels; offsets are relative to the tile's first image, as in `convolution_forward_kernel`.
    """
    R: constexpr = WINDOW.R
    S: constexpr = WINDOW.S
    STRIDE_H: constexpr = WINDOW.stride_h
    STRIDE_W: constexpr = WINDOW.stride_w
    TAP_STEP_H: constexpr = WINDOW.tap_step_h
    TAP_STEP_W: constexpr = WINDOW.tap_step_w
    N = widened(N, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    Q = widened(Q, WINDOW.wide)
    group_inputs = widened(group_inputs, WINDOW.wide)
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    group = tl.program_id(2)
    phase_rows = (H - phase_h + STRIDE_H - 1) // STRIDE_H
    phase_columns = (W - phase_w + STRIDE_W - 1) // STRIDE_W
    pixels = N * phase_rows * phase_columns
    if tl.program_id(0) >= tl.cdiv(pixels, TILE.block_m) * tl.cdiv(group_inputs, TILE.block_n):
        return
    pixel_start, column_start = tile_start(tl.program_id(0), pixels, group_inputs, WINDOW, TILE)
    pixel = pixel_start + tl.arange(0, TILE.block_m)
    columns_left = group_inputs - column_start
    column = tl.arange(0, TILE.block_n) % columns_left  # past the end: copies, never stored

    r = first_tap(phase_h, R, TAP_STEP_H, STRIDE_H, WINDOW.padding_h, WINDOW.dilation_h)
    s = first_tap(phase_w, S, TAP_STEP_W, STRIDE_W, WINDOW.padding_w, WINDOW.dilation_w)
    tap_rows = (R - r + TAP_STEP_H - 1) // TAP_STEP_H
    tap_columns = (S - s + TAP_STEP_W - 1) // TAP_STEP_W
    image, row, along = pixel_position(pixel, phase_rows, phase_columns)
    first_image = pixel_start // (phase_rows * phase_columns)
    image -= first_image
    p = row + (phase_h + WINDOW.padding_h - r * WINDOW.dilation_h) // STRIDE_H  # exact
    q = along + (phase_w + WINDOW.padding_w - s * WINDOW.dilation_w) // STRIDE_W
    dz_base = dz_ptr + first_image.to(tl.int64) * P * Q * K + group * group_outputs
    windows = Windows(pixel < pixels, p, q, dz_base, ((image * P + p) * Q + q) * K, P, Q, K)
    weights = R * S * group_inputs
    weight_base = weight_ptr + (group * group_outputs).to(tl.int64) * weights + (r * S + s) * group_inputs
    tap_row = TAP_STEP_H * S * group_inputs
    row_of_taps = (tap_columns - 1) * TAP_STEP_W * group_inputs
    filters = Filters(
        weight_base + column_start,
        tl.arange(0, TILE.block_k)[:, None] * weights + column[None, :],
        next_tap=TAP_STEP_W * group_inputs,
        next_row=tap_row - row_of_taps,
        next_channels=TILE.block_k * weights - (tap_rows - 1) * tap_row - row_of_taps,
    )
    ROWS: constexpr = (R + TAP_STEP_H - 1) // TAP_STEP_H
    COLUMNS: constexpr = (S + TAP_STEP_W - 1) // TAP_STEP_W
    STEP_H: constexpr = -(TAP_STEP_H * WINDOW.dilation_h // STRIDE_H)
    STEP_W: constexpr = -(TAP_STEP_W * WINDOW.dilation_w // STRIDE_W)
    dx = sum_over_taps(
        windows, filters, group_outputs, tap_rows, tap_columns, ROWS, COLUMNS, STEP_H, STEP_W, WINDOW, TILE
    )

    h = row * STRIDE_H + phase_h
    w = along * STRIDE_W + phase_w
    base = first_image.to(tl.int64) * H * W * C + group * group_inputs + column_start
    offset = (((image * H + h) * W + w) * C)[:, None] + tl.arange(0, TILE.block_n)[None, :]
    mask = (pixel < pixels)[:, None] & (tl.arange(0, TILE.block_n) < columns_left)[None, :]
    tl.store(dx_ptr + base + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@costs(convolution_input_gradient_kernel)
def convolution_input_gradient_cost(weight_ptr: torch.Tensor, N: int, P: int, Q: int, **others: Any) -> Cost:
    """2 N P Q K R S C / groups operations; dZ and W read, dX written."""
    return Cost(2 * N * P * Q * weight_ptr.numel(), size_in_bytes(weight_ptr, *others.values()))


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: Shape,
    weight_shape: Shape,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    size: Pair,
    target: Target,
) -> Problem:
    N, K, P, Q = dz_shape
    _, group_inputs, R, S = weight_shape
    H, W = size
    shape = ConvolutionShape(N, H, W, group_inputs * spec.groups, P, Q, K, R, S, spec.groups)
    stride_h, stride_w = spec.stride
    pixels = N * ceil_div(H, stride_h) * ceil_div(W, stride_w)  # of the largest phase
    tile = convolution_tile(pixels, group_inputs, shape.group_outputs, dtype, precision, target, is_gradient=True)
    wide = is_wide_convolution(
        pixels,
        max(1, (H // stride_h) * (W // stride_w)),
        tile.block_m,
        max(shape.C * H * W, K * P * Q),
        ((tile.block_k, shape.taps * group_inputs), (tile.block_n, 1)),
    )
    even = shape.group_outputs % tile.block_k == 0
    return Problem(
        convolution_input_gradient_kernel,
        (ceil_div(pixels, tile.block_m) * ceil_div(group_inputs, tile.block_n), stride_h * stride_w, spec.groups),
        N,
        *shape.sides,
        group_inputs,
        shape.group_outputs,
        WINDOW=spec.compiled((R, S), wide=wide, even=even, precision=precision, group=GROUP),
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def convolution_input_gradient(
    dz: torch.Tensor, weight: torch.Tensor, spec: ConvolutionSpec, size: Pair, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dX [N, C, H, W] in `dtype` (None: dZ's), channels_last.

    Args:
        dz: [N, K, P, Q], channels_last.
        weight: [K, C / groups, R, S], channels_last.
        spec: stride, padding, dilation, groups.
        size: (H, W) of the input.
    """
    K, group_inputs, R, S = weight.shape
    if spec.is_pointwise((R, S)):
        return as_images(linear_input_gradient(as_rows(dz), weight.view(K, -1), dtype), dz)
    if group_inputs == 1 and spec.groups > 1:
        return depthwise_input_gradient(dz, weight, spec, size, dtype)
    dx = empty_channels_last(dz, dz.shape[0], group_inputs * spec.groups, *size, dtype)
    target = current_target()
    precision = convolution_precision(dz.dtype, target)
    _input_gradient_problem(dz.shape, weight.shape, dz.dtype, precision, spec, size, target).launch(dz, weight, dx)
    return dx

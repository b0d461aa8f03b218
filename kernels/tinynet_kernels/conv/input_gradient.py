"""Data gradient of a convolution, from dZ = dY act' (`activation.activation_backward`); a transposed convolution.

    dX[n, c, d, h, w] = sum of dZ[n, k, o, p, q] W[k, c, t, r, s] over the taps that read (d, h, w) from (o, p, q)

With a stride, each tap reaches only the input pixels of one phase (d mod stride, h mod stride, w mod stride), so each
phase is a dense convolution of its own with stride 1 and its own taps: r0, r0 + step, ..., where step is the stride
over its common divisor with the dilation. Phases are a grid axis and none multiplies by zero; a masked loop over all
taps would take stride^2 times the products.

A transposed convolution is the data gradient of the convolution that maps its result to its input, followed by bias
and activation. All tensors are channels_last. Depthwise convolutions are in `depthwise`. Source:
torch.nn.functional.conv_transpose3d.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.launch import depthwise_input_gradient
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes
from tinynet_kernels.conv.tiles import convolution_precision, convolution_tile
from tinynet_kernels.conv.window import (
    Filters,
    Taps,
    Windows,
    elements_before,
    is_wide_convolution,
    of_channels,
    offset_in,
    pixel_position,
    sum_over_taps,
)
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
def phase_of(program, WINDOW: constexpr):
    """(plane, row, column) of the first pixel of a program's phase."""
    plane = program // (WINDOW.stride_h * WINDOW.stride_w)
    return plane, program // WINDOW.stride_w % WINDOW.stride_h, program % WINDOW.stride_w


@triton.jit
def convolution_input_gradient_kernel(
    dz_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    z_ptr,
    N,
    D,
    H,
    W,
    C,
    Z,
    P,
    Q,
    K,
    group_inputs,
    group_outputs,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dX, one [block_m pixels, block_n channels] tile of one phase per program; grid axes are tiles, phases, groups.

    A step is one tap of block_k output channels, taps innermost. From a tap to the next, the input pixel stays, the tap
    grows by tap_step and the output pixel shrinks by tap_step dilation / stride. WINDOW.even says that block_k divides
    the group's output channels; offsets are relative to the tile's first image, as in `convolution_forward_kernel`.
    Stored is act(dX + b), and dX + b itself unless z_ptr is None.
    """
    T: constexpr = WINDOW.T
    R: constexpr = WINDOW.R
    S: constexpr = WINDOW.S
    STRIDE_D: constexpr = WINDOW.stride_d
    STRIDE_H: constexpr = WINDOW.stride_h
    STRIDE_W: constexpr = WINDOW.stride_w
    TAP_STEP_H: constexpr = WINDOW.tap_step_h
    TAP_STEP_W: constexpr = WINDOW.tap_step_w
    N = widened(N, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    Q = widened(Q, WINDOW.wide)
    group_inputs = widened(group_inputs, WINDOW.wide)
    phase_d, phase_h, phase_w = phase_of(tl.program_id(1), WINDOW)
    group = tl.program_id(2)
    phase_rows = (H - phase_h + STRIDE_H - 1) // STRIDE_H
    phase_columns = (W - phase_w + STRIDE_W - 1) // STRIDE_W
    image_pixels = phase_rows * phase_columns
    if WINDOW.volume:
        phase_planes = (D - phase_d + STRIDE_D - 1) // STRIDE_D
        image_pixels *= phase_planes
    pixels = N * image_pixels
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
    tap_planes = 1
    first_image = pixel_start // image_pixels
    image, row, along = pixel_position(pixel, phase_rows, phase_columns)
    plane = tl.zeros_like(image)
    o = plane
    tap = r * S + s
    if WINDOW.volume:
        plane = image % phase_planes
        image = image // phase_planes
        t = first_tap(phase_d, T, WINDOW.tap_step_d, STRIDE_D, WINDOW.padding_d, WINDOW.dilation_d)
        tap_planes = (T - t + WINDOW.tap_step_d - 1) // WINDOW.tap_step_d
        o = plane + (phase_d + WINDOW.padding_d - t * WINDOW.dilation_d) // STRIDE_D  # exact
        tap += t * R * S
    image -= first_image
    p = row + (phase_h + WINDOW.padding_h - r * WINDOW.dilation_h) // STRIDE_H  # exact
    q = along + (phase_w + WINDOW.padding_w - s * WINDOW.dilation_w) // STRIDE_W
    dz_base = dz_ptr + elements_before(first_image, Z, P, Q, K, WINDOW) + group * group_outputs
    windows = Windows(pixel < pixels, o, p, q, dz_base, offset_in(image, o, p, q, Z, P, Q, WINDOW) * K, Z, P, Q, K)
    weights = T * R * S * group_inputs
    weight_base = weight_ptr + (group * group_outputs).to(tl.int64) * weights + tap * group_inputs
    tap_row = TAP_STEP_H * S * group_inputs
    row_of_taps = (tap_columns - 1) * TAP_STEP_W * group_inputs
    tap_plane = WINDOW.tap_step_d * R * S * group_inputs
    plane_of_taps = (tap_rows - 1) * tap_row + row_of_taps
    filters = Filters(
        weight_base + column_start,
        tl.arange(0, TILE.block_k)[:, None] * weights + column[None, :],
        next_tap=TAP_STEP_W * group_inputs,
        next_row=tap_row - row_of_taps,
        next_plane=tap_plane - plane_of_taps,
        next_channels=TILE.block_k * weights - (tap_planes - 1) * tap_plane - plane_of_taps,
    )
    taps = Taps(tap_planes, tap_rows, tap_columns)
    dx = sum_over_taps(windows, filters, taps, group_outputs, WINDOW, TILE)

    d = plane * STRIDE_D + phase_d
    h = row * STRIDE_H + phase_h
    w = along * STRIDE_W + phase_w
    base = elements_before(first_image, D, H, W, C, WINDOW) + group * group_inputs + column_start
    offset = (offset_in(image, d, h, w, D, H, W, WINDOW) * C)[:, None] + tl.arange(0, TILE.block_n)[None, :]
    column_mask = tl.arange(0, TILE.block_n) < columns_left
    mask = (pixel < pixels)[:, None] & column_mask[None, :]
    if bias_ptr is not None:
        dx += of_channels(bias_ptr, group * group_inputs + column_start, column_mask)
    if z_ptr is not None:
        tl.store(z_ptr + base + offset, dx.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + base + offset, activate(dx, ACTIVATION).to(dx_ptr.dtype.element_ty), mask=mask)


@costs(convolution_input_gradient_kernel)
def convolution_input_gradient_cost(weight_ptr: torch.Tensor, N: int, Z: int, P: int, Q: int, **others: Any) -> Cost:
    """2 N Z P Q K T R S C / groups operations; dZ, W and b read, dX (and z) written."""
    return Cost(2 * N * Z * P * Q * weight_ptr.numel(), size_in_bytes(weight_ptr, *others.values()))


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: Shape,
    dx_shape: Shape,
    kernel_size: Sizes,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    activation: Activation,
    target: Target,
) -> Problem:
    shape, spec, kernel_size = ConvolutionShape.of(dx_shape, dz_shape, kernel_size, spec)
    window = spec.compiled(kernel_size, precision=precision, group=GROUP).of_gradient()
    strides = window.stride_d, window.stride_h, window.stride_w
    sides = shape.D, shape.H, shape.W
    group_inputs = shape.group_inputs
    pixels = shape.N * math.prod(map(ceil_div, sides, strides))  # of the largest phase
    tile = convolution_tile(pixels, group_inputs, shape.group_outputs, dtype, precision, target, is_gradient=True)
    wide = is_wide_convolution(
        pixels,
        max(1, math.prod(side // stride for side, stride in zip(sides, strides, strict=True))),
        tile.block_m,
        shape.image_elements,
        ((tile.block_k, shape.taps * group_inputs), (tile.block_n, 1)),
    )
    tiles = ceil_div(pixels, tile.block_m) * ceil_div(group_inputs, tile.block_n)
    return Problem(
        convolution_input_gradient_kernel,
        (tiles, math.prod(strides), spec.groups),
        *(shape.N, *shape.sides, group_inputs, shape.group_outputs),
        WINDOW=window._replace(wide=wide, even=shape.group_outputs % tile.block_k == 0),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def convolution_input_gradient(
    dz: torch.Tensor, weight: torch.Tensor, spec: ConvolutionSpec, size: Sizes, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dX [N, C, *size] in `dtype` (None: dZ's), channels_last.

    Args:
        dz: [N, K, *sizes], channels_last.
        weight: [K, C / groups, *kernel size], channels_last.
        spec: stride, padding, dilation, groups; of one to three spatial axes, as the tensors.
        size: of the input.
    """
    K, group_inputs = weight.shape[:2]
    if spec.is_pointwise(weight.shape[2:]):
        return as_images(linear_input_gradient(as_rows(dz), weight.view(K, -1), dtype), dz)
    dx = empty_channels_last(dz, (dz.shape[0], group_inputs * spec.groups, *size), dtype)
    if group_inputs == 1 and spec.groups > 1:
        return depthwise_input_gradient(dz, weight, dx, spec)
    _launch(dz, weight, None, dx, None, spec, IDENTITY)
    return dx


def transposed_convolution_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    spec: ConvolutionSpec,
    size: Sizes,
    activation: Activation,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y [N, C, *size] = act(transposed convolution of x + b), channels_last, and z where act' reads it.

    Args:
        x: [N, K, *sizes], channels_last.
        weight: [K, C / groups, *kernel size], channels_last, x's dtype.
        bias: [C] or None.
        spec: of the convolution that maps y to x.
        size: of y.
        activation: fused into the epilogue.
        save: whether a backward will follow.
    """
    y = empty_channels_last(x, (x.shape[0], weight.shape[1] * spec.groups, *size))
    z = torch.empty_like(y) if save and activation.reads_input else None
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    _launch(x, weight, bias, y, z, spec, activation)
    return y, z


def _launch(
    dz: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    z: torch.Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
) -> None:
    target = current_target()
    precision = convolution_precision(dz.dtype, target)
    problem = _input_gradient_problem(
        dz.shape, dx.shape, weight.shape[2:], dz.dtype, precision, spec, activation, target
    )
    problem.launch(dz, weight, bias, dx, z)

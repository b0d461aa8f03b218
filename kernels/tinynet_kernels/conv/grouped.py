"""Convolutions in many thin groups, on a CPU: the groups' products side by side.

    y[n, g D + j, o, ...] = sum over d, t, r, s of x[n, g D + d, o stride + t dilation - padding, ...] W[g D + j, d, t]

with D = 2, 4, 8 or 16 input and as many output channels to each group, and the data gradient. One group's matrix is
thinner than a vector of the processor. But channels of neighboring groups are neighbors in memory, so a product in a
batch of groups, [G, M, D] x [G, D, D], fills vectors with G D channels (`tinynet_engines/cpu/runtime/groups.h`), and no
group reads another's values. A program computes a [block_pixels, G D] tile; a step is one tap of all its groups. The
weight gradient is in `grouped_weight_gradient.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.phases import offset_of_pixels, phase_of, phase_pixels, pixels_of_phase, tap_steps
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Sizes
from tinynet_kernels.conv.window import (
    Taps,
    elements_before,
    is_wide_convolution,
    of_channels,
    store_activated,
    tap_bits,
    tap_is_inside,
    windows_of,
    with_bias,
)
from tinynet_kernels.launch import Problem
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least


class GroupTile(NamedTuple):
    """The tile of a program: pixels, groups, and channels of one group."""

    block_pixels: int
    block_groups: int
    width: int


class GroupFilters(NamedTuple):
    """The weights of a program's groups, within a kernel.

    Attributes:
        base: pointer to the first tap.
        offset: of [groups, inputs, outputs] from there.
        next_tap, next_row, next_plane: from a tap to the next, from the last of a row to the first of the next, and
            from the last of a plane to the first of the next.
    """

    base: Any
    offset: Any
    next_tap: Any
    next_row: Any
    next_plane: Any


@triton.jit
def sum_over_taps_of_groups(windows, filters, taps, pixels_left, groups_left, WINDOW: constexpr, TILE: constexpr):
    """sum over taps of windows [groups, PIXELS, width] and filters [groups, width, width]: [PIXELS, groups width].

    As `window.sum_over_taps`, with all channels of a group in one step. Pixels and groups past those left are zeros.
    """
    M: constexpr = TILE.block_pixels
    G: constexpr = TILE.block_groups
    D: constexpr = TILE.width
    WALK: constexpr = WINDOW.walk
    BITMASK: constexpr = WALK.planes * WALK.rows * WALK.columns <= 32
    channel = tl.arange(0, G)[:, None, None] * D + tl.arange(0, D)[None, None, :]
    in_groups = tl.arange(0, G)[:, None, None] < groups_left
    # All of their shape before a conjunction: the CPU engine sees bounds of pixels and groups and conditions of pixels.
    in_tile = tl.broadcast_to(tl.arange(0, M)[None, :, None] < pixels_left, (G, M, D))
    in_tile = in_tile & tl.broadcast_to(in_groups, (G, M, D))
    offset = windows.offset[None, :, None] + channel
    next_tap = WALK.step_w * windows.C
    next_row = WALK.step_h * windows.W * windows.C - (taps.columns - 1) * next_tap
    x_base = windows.base
    filter_base = filters.base
    if BITMASK:
        bits = tap_bits(windows, windows.h, taps, WINDOW)
    count = taps.rows * taps.columns
    if WINDOW.volume:
        plane = WALK.step_d * windows.H * windows.W * windows.C
        next_plane = plane - (taps.rows - 1) * WALK.step_h * windows.W * windows.C - (taps.columns - 1) * next_tap
        plane_taps = count
        count *= taps.planes
    total = tl.zeros((G, M, D), tl.float32)
    column = 0
    row = 0
    for tap in range(count):
        if BITMASK:
            valid = tl.cast(bits & 1, tl.int1)
        elif WINDOW.volume:
            valid = tap_is_inside(windows, windows.h, tap // plane_taps, row, column, WINDOW)
        else:
            valid = tap_is_inside(windows, windows.h, 0, row, column, WINDOW)
        mask = tl.broadcast_to(valid[None, :, None], (G, M, D)) & in_tile
        x = tl.load(x_base + offset, mask=mask, other=0.0)
        weight = tl.load(filter_base + filters.offset, mask=in_groups, other=0.0)
        total = tl.dot(x, weight, total, input_precision=WINDOW.precision)
        column += 1
        row_ends = column == taps.columns
        column = tl.where(row_ends, 0, column)
        row += tl.where(row_ends, 1, 0)
        to_next = tl.where(row_ends, next_row, next_tap)
        to_filter = tl.where(row_ends, filters.next_row, filters.next_tap)
        if WINDOW.volume:
            plane_ends = row == taps.rows
            row = tl.where(plane_ends, 0, row)
            to_next = tl.where(plane_ends, next_plane, to_next)
            to_filter = tl.where(plane_ends, filters.next_plane, to_filter)
        x_base += to_next
        filter_base += to_filter
        if BITMASK:
            bits = bits >> 1
    shape: constexpr = (M, G * D)
    return tl.reshape(tl.trans(total, (1, 0, 2)), shape)


@triton.jit
def convolution_groups_forward_kernel(
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
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x * W + b), one [block_pixels, block_groups width] tile per program.

    As `forward.convolution_forward_kernel` otherwise; C = K.
    """
    BLOCK: constexpr = TILE.block_groups * TILE.width
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    C = widened(C, WINDOW.wide)
    pixel_start = widened(tl.program_id(0), WINDOW.wide) * TILE.block_pixels
    channel = tl.program_id(1) * BLOCK
    windows = windows_of(x_ptr, channel, pixel_start, pixels, D, H, W, C, Z, P, Q, WINDOW, TILE.block_pixels)
    g = tl.arange(0, TILE.block_groups)[:, None, None]
    d = tl.arange(0, TILE.width)
    weights = WINDOW.T * WINDOW.R * WINDOW.S * TILE.width
    offset = (g * TILE.width + d[None, None, :]) * weights + d[None, :, None]
    filters = GroupFilters(weight_ptr + channel.to(tl.int64) * weights, offset, TILE.width, TILE.width, TILE.width)
    columns_left = C - channel
    taps = Taps(WINDOW.T, WINDOW.R, WINDOW.S)
    groups_left = columns_left // TILE.width
    z = sum_over_taps_of_groups(windows, filters, taps, pixels - pixel_start, groups_left, WINDOW, TILE)
    z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, channel, columns_left, WINDOW)
    store_activated(
        z, y_ptr, z_ptr, argmax_ptr, partial_ptr, pixel_start, pixels, channel, columns_left, C, ACTIVATION, WINDOW
    )


@triton.jit
def convolution_groups_input_gradient_kernel(
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
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dX, one [block_pixels, block_groups width] tile of one phase per program; grid axes are tiles, channels, phases.

    As `input_gradient.convolution_input_gradient_kernel` otherwise; C = K.
    """
    BLOCK: constexpr = TILE.block_groups * TILE.width
    N = widened(N, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    Q = widened(Q, WINDOW.wide)
    C = widened(C, WINDOW.wide)
    channel = tl.program_id(1) * BLOCK
    columns_left = C - channel
    phase = phase_of(tl.program_id(2), D, H, W, WINDOW)
    pixels = N * pixels_of_phase(phase, WINDOW)
    pixel_start = widened(tl.program_id(0), WINDOW.wide) * TILE.block_pixels
    if pixel_start >= pixels:
        return
    pixel = pixel_start + tl.arange(0, TILE.block_pixels)
    of_phase = phase_pixels(dz_ptr, channel, phase, pixel, pixel_start, pixels, Z, P, Q, C, WINDOW)
    weights = WINDOW.T * WINDOW.R * WINDOW.S * TILE.width
    d = tl.arange(0, TILE.width)
    output = tl.arange(0, TILE.block_groups)[:, None, None] * TILE.width + d[None, :, None]
    steps = tap_steps(of_phase.taps, TILE.width, WINDOW)
    filters = GroupFilters(
        weight_ptr + channel.to(tl.int64) * weights + of_phase.tap * TILE.width,
        output * weights + d[None, None, :],
        steps.next_tap,
        steps.next_row,
        steps.next_plane,
    )
    groups_left = columns_left // TILE.width
    dx = sum_over_taps_of_groups(
        of_phase.windows, filters, of_phase.taps, pixels - pixel_start, groups_left, WINDOW, TILE
    )
    column = tl.arange(0, BLOCK)
    base = elements_before(of_phase.first_image, D, H, W, C, WINDOW) + channel
    offset = (offset_of_pixels(of_phase, pixel, phase, D, H, W, WINDOW) * C)[:, None] + column[None, :]
    mask = (pixel < pixels)[:, None] & (column < columns_left)[None, :]
    if bias_ptr is not None:
        dx += of_channels(bias_ptr, channel, column < columns_left)
    if z_ptr is not None:
        tl.store(z_ptr + base + offset, dx.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + base + offset, activate(dx, ACTIVATION).to(dx_ptr.dtype.element_ty), mask=mask)


def multiplies_groups(inputs: int, outputs: int, groups: int, target: Target) -> bool:
    """Whether a convolution of so many channels, and its gradients, are computed here."""
    return target.kind == "cpu" and inputs == outputs and groups > 1 and inputs // groups in (2, 4, 8, 16)


def group_tile(pixels: int, groups: int, width: int, target: Target) -> GroupTile:
    """The tile of a convolution in `groups` of `width` channels."""
    block_groups = min(128 // width, max(16 // width, power_of_2_at_least(groups)))
    block_pixels = min(256, max(16, power_of_2_at_least(pixels)))
    return GroupTile(block_pixels, block_groups, width)


def groups_problem(
    shape: ConvolutionShape,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    activation: Activation,
    pool: bool,
    epsilon: float,
    target: Target,
) -> Problem:
    """The launch of `forward.convolution_forward` where `multiplies_groups`."""
    pixels = shape.pixels(pool)
    tile = group_tile(pixels, shape.groups, shape.group_inputs, target)
    channels = tile.block_groups * tile.width
    wide = is_wide_convolution(
        pixels,
        pixels // shape.N,
        tile.block_pixels,
        shape.image_elements,
        ((tile.block_pixels, shape.C), (channels, 1)),
        ((channels, shape.taps * tile.width), (tile.width, 1)),
    )
    return Problem(
        convolution_groups_forward_kernel,
        (ceil_div(pixels, tile.block_pixels), ceil_div(shape.C, channels)),
        pixels,
        *shape.sides[:7],
        WINDOW=spec.compiled(kernel_size, wide=wide, pool=pool, epsilon=epsilon),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )


def groups_input_gradient_problem(
    shape: ConvolutionShape, spec: ConvolutionSpec, kernel_size: Sizes, activation: Activation, target: Target
) -> Problem:
    """The launch of `input_gradient.convolution_input_gradient` where `multiplies_groups`."""
    window = spec.compiled(kernel_size).of_gradient()
    strides = window.stride_d, window.stride_h, window.stride_w
    sides = shape.D, shape.H, shape.W
    pixels = shape.N * math.prod(map(ceil_div, sides, strides))  # of the largest phase
    tile = group_tile(pixels, shape.groups, shape.group_inputs, target)
    channels = tile.block_groups * tile.width
    wide = is_wide_convolution(
        pixels,
        max(1, math.prod(side // stride for side, stride in zip(sides, strides, strict=True))),
        tile.block_pixels,
        shape.image_elements,
        ((channels, shape.taps * tile.width), (tile.width, 1)),
    )
    return Problem(
        convolution_groups_input_gradient_kernel,
        (ceil_div(pixels, tile.block_pixels), ceil_div(shape.C, channels), math.prod(strides)),
        *(shape.N, *shape.sides[:7]),
        WINDOW=window._replace(wide=wide, in_order=math.prod(strides) == 1),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )

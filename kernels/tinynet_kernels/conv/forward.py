"""Two-dimensional convolution: y = act(x * W + b), x [N, C, H, W], W [K, C / groups, R, S], y [N, K, P, Q].

    y[n, k, p, q] = sum over c, r, s of x[n, c, p stride + r dilation - padding, q ...] W[k, c, r, s]

Everything here is channels_last: x lies as [N, H, W, C], W as [K, R, S, C], y as [N, P, Q, K] (`layout.py`). Three
kernels make the forward, by the channels of one group; all end in the same epilogue of bias and activation:

    16 and more     an implicit matrix product [N P Q, C R S] x [C R S, K]: no patch is ever written down. One step is
                    one tap of BLOCK_C channels. Taps are the inner loop, so neighboring steps read the same lines.
                    Which taps of a pixel lie inside the image is a bitmask, shifted once a step.
    2 to 15         the same product, but one step is BLOCK_K (tap, channel) pairs: a tap alone would be too thin
    1               no product: taps unrolled (`depthwise.py`)

A 1 x 1 convolution with stride 1 and no padding is a linear layer of pixels (`linear.py`). The backward is in
`weight_gradient.py`. Source: the definition of torch.nn.functional.conv2d; implicit GEMM as in cuDNN (Chetlur et al.
2014, arXiv:1410.0759).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise import single_channel_problem, taps_first
from tinynet_kernels.conv.spec import ConvolutionSpec
from tinynet_kernels.conv.window import (
    first_image_of,
    inside,
    is_wide_convolution,
    line_bits,
    output_pixels,
    output_position,
    store_activated,
    tap_bits,
    window_constants,
)
from tinynet_kernels.gemm import grouped_tile
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import as_images, as_rows, empty_channels_last
from tinynet_kernels.linear import GROUP, linear_forward
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import (
    GemmTile,
    Target,
    ceil_div,
    convolution_few_channels_tile,
    convolution_precision,
    convolution_tile,
    current_target,
    every_register,
)

FEW_CHANNELS = 16  # below this a tap's channels are too thin a step for a matrix instruction


@triton.jit
def convolution_forward_kernel(
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
    group_inputs,
    group_outputs,
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
    EVEN_C: constexpr,
    WIDE: constexpr,
    PRECISION: constexpr,
    GROUP: constexpr,
    BLOCK_PIXELS: constexpr,
    BLOCK_K: constexpr,
    BLOCK_C: constexpr,
):
    """y = act(x * W + b), one [BLOCK_PIXELS, BLOCK_K] tile a program; the second grid axis is the group.

    For POOL, `pixels` counts those that a 2 x 2 window holds, and y is the largest of each window.
    Input offsets are relative to the tile's first image: int32, or int64 for WIDE (huge images). EVEN_C says that
    BLOCK_C divides the group's input channels.
    """
    pixels = widened(pixels, WIDE)
    W = widened(W, WIDE)
    P = widened(P, WIDE)
    K = widened(K, WIDE)
    group_inputs = widened(group_inputs, WIDE)
    pixel_tile, column_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(pixels, BLOCK_PIXELS), tl.cdiv(group_outputs, BLOCK_K), GROUP
    )
    group = tl.program_id(1)
    pixel_start = pixel_tile * BLOCK_PIXELS
    column_start = column_tile * BLOCK_K
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    column = tl.arange(0, BLOCK_K) % (group_outputs - column_start)  # past the end: copies, never stored
    channel = tl.arange(0, BLOCK_C)

    image, p, q = output_position(pixel, P, Q, POOL)
    first_image = first_image_of(pixel_start, P, Q, POOL)
    h = p * STRIDE_H - PADDING_H
    w = q * STRIDE_W - PADDING_W
    image -= first_image
    x_offset = (((image * H + h) * W + w) * C)[:, None] + channel[None, :]
    x_base = x_ptr + first_image.to(tl.int64) * H * W * C + group * group_inputs

    TAPS: constexpr = R * S
    BITMASK: constexpr = TAPS <= 32
    in_tile = pixel < pixels
    if BITMASK:
        all_bits = tl.where(in_tile, tap_bits(h, w, H, W, R, S, DILATION_H, DILATION_W), 0)
        bits = all_bits

    weight_offset = channel[:, None] + column[None, :] * (TAPS * group_inputs)
    weight_base = weight_ptr + (group * group_outputs + column_start).to(tl.int64) * TAPS * group_inputs

    # From a tap to the next, to the next row of taps, and from the last tap to the first of the next channels.
    next_tap = DILATION_W * C
    next_row = DILATION_H * W * C - (S - 1) * next_tap
    next_channels = BLOCK_C - (R - 1) * DILATION_H * W * C - (S - 1) * next_tap
    next_weights = BLOCK_C - (TAPS - 1) * group_inputs

    z = tl.zeros((BLOCK_PIXELS, BLOCK_K), tl.float32)
    tap = 0
    s = 0
    channels_left = group_inputs
    for _ in range(TAPS * tl.cdiv(group_inputs, BLOCK_C)):
        if BITMASK:
            valid = tl.cast(bits & 1, tl.int1)
        else:
            valid = in_tile & inside(h + tap // S * DILATION_H, H) & inside(w + s * DILATION_W, W)
        if EVEN_C:
            a = tl.load(x_base + x_offset, mask=valid[:, None], other=0.0)
            b = tl.load(weight_base + weight_offset)  # in bounds: column < group_outputs, BLOCK_C divides the channels
        else:
            a = tl.load(x_base + x_offset, mask=valid[:, None] & (channel < channels_left)[None, :], other=0.0)
            b = tl.load(weight_base + weight_offset, mask=(channel < channels_left)[:, None], other=0.0)
        z = tl.dot(a, b, z, input_precision=PRECISION)
        tap += 1
        s += 1
        row_ends = s == S
        taps_end = tap == TAPS
        x_base += tl.where(taps_end, next_channels, tl.where(row_ends, next_row, next_tap))
        weight_base += tl.where(taps_end, next_weights, group_inputs)
        if BITMASK:
            bits = tl.where(taps_end, all_bits, bits >> 1)
        if not EVEN_C:
            channels_left -= tl.where(taps_end, BLOCK_C, 0)
        s = tl.where(row_ends, 0, s)
        tap = tl.where(taps_end, 0, tap)

    store_activated(
        z,
        bias_ptr,
        y_ptr,
        z_ptr,
        winner_ptr,
        pixel_start,
        pixels,
        column_start,
        group_outputs,
        group * group_outputs,
        K,
        ACTIVATION,
        HAS_BIAS,
        SAVE_INPUT,
        POOL,
        BLOCK_PIXELS,
        BLOCK_K,
    )


@triton.jit
def convolution_few_channels_kernel(
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
    group_outputs,
    GROUP_INPUTS: constexpr,
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
    PRECISION: constexpr,
    BLOCK_PIXELS: constexpr,
    BLOCK_K: constexpr,
    BLOCK_REDUCTION: constexpr,
):
    """As `convolution_forward_kernel`, with steps of BLOCK_REDUCTION (tap, channel) pairs."""
    W = widened(W, WIDE)
    P = widened(P, WIDE)
    K = widened(K, WIDE)
    column_tiles = tl.cdiv(group_outputs, BLOCK_K)
    group = tl.program_id(1)
    pixel_start = widened(tl.program_id(0) // column_tiles, WIDE) * BLOCK_PIXELS
    column_start = tl.program_id(0) % column_tiles * BLOCK_K
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    column = tl.arange(0, BLOCK_K) % (group_outputs - column_start)  # past the end: copies, never stored

    image, p, q = output_position(pixel, P, Q, POOL)
    first_image = first_image_of(pixel_start, P, Q, POOL)
    h = p * STRIDE_H - PADDING_H
    w = q * STRIDE_W - PADDING_W
    image -= first_image
    x_offset = ((image * H + h) * W + w) * C
    x_base = x_ptr + first_image.to(tl.int64) * H * W * C + group * GROUP_INPUTS

    REDUCTION: constexpr = R * S * GROUP_INPUTS
    BITMASK: constexpr = R <= 32 and S <= 32
    in_tile = pixel < pixels
    if BITMASK:
        row_bits = tl.where(in_tile, line_bits(h, H, R, DILATION_H), 0)
        column_bits = line_bits(w, W, S, DILATION_W)
    weight_base = weight_ptr + (group * group_outputs + column_start).to(tl.int64) * REDUCTION

    z = tl.zeros((BLOCK_PIXELS, BLOCK_K), tl.float32)
    for start in range(0, REDUCTION, BLOCK_REDUCTION):
        pair = start + tl.arange(0, BLOCK_REDUCTION)
        in_reduction = pair < REDUCTION
        tap = pair // GROUP_INPUTS
        r = tap // S
        s = tap % S
        if BITMASK:
            valid = tl.cast((row_bits[:, None] >> r[None, :]) & (column_bits[:, None] >> s[None, :]) & 1, tl.int1)
        else:
            valid = inside(h[:, None] + (r * DILATION_H)[None, :], H) & in_tile[:, None]
            valid = valid & inside(w[:, None] + (s * DILATION_W)[None, :], W)
        tap_offset = (r * DILATION_H * W + s * DILATION_W) * C + pair % GROUP_INPUTS
        a = tl.load(x_base + (x_offset[:, None] + tap_offset[None, :]), mask=valid & in_reduction[None, :], other=0.0)
        b = tl.load(weight_base + (column[None, :] * REDUCTION + pair[:, None]), mask=in_reduction[:, None], other=0.0)
        z = tl.dot(a, b, z, input_precision=PRECISION)

    store_activated(
        z,
        bias_ptr,
        y_ptr,
        z_ptr,
        winner_ptr,
        pixel_start,
        pixels,
        column_start,
        group_outputs,
        group * group_outputs,
        K,
        ACTIVATION,
        HAS_BIAS,
        SAVE_INPUT,
        POOL,
        BLOCK_PIXELS,
        BLOCK_K,
    )


@costs(convolution_forward_kernel)
@costs(convolution_few_channels_kernel)
def convolution_forward_cost(
    x_ptr: torch.Tensor,
    weight_ptr: torch.Tensor,
    bias_ptr: torch.Tensor | None,
    y_ptr: torch.Tensor,
    z_ptr: torch.Tensor | None,
    winner_ptr: torch.Tensor | None,
    pixels: int,
    **_: Any,
) -> Cost:
    """2 N P Q K R S C / groups operations; x, W and b read, y (and z, and winners) written."""
    moved = size_in_bytes(x_ptr, weight_ptr, bias_ptr, y_ptr, z_ptr, winner_ptr)
    return Cost(2 * pixels * weight_ptr.numel(), moved)


def convolution_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    *,
    save: bool,
    pool: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """y = act(x * W + b), what the derivative of `activation` reads, and who won, all channels_last.

    Args:
        x: [N, C, H, W], channels_last.
        weight: [K, C / groups, R, S], channels_last, x's dtype.
        bias: [K] or None.
        spec: stride, padding, dilation, groups.
        activation: fused into the epilogue.
        save: whether a backward will follow.
        pool: whether y is the largest of each 2 x 2 window, [N, K, P // 2, Q // 2]; P and Q are at least 2.

    Returns:
        y [N, K, P, Q]; y itself, z [N, K, P, Q] or None (identity, or nothing to save); for `pool` and `save` the
        winning tap of each window as of `pool.max_pool2d_forward`, else None.
    """
    K, group_inputs, R, S = weight.shape
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if spec.is_pointwise((R, S)) and not pool:
        y, saved = linear_forward(as_rows(x), weight.view(K, -1), bias, activation, save=save)
        return as_images(y, x), None if saved is None else as_images(saved, x), None
    save_input = save and not activation.reads_output and activation.name != "identity"
    target = current_target()
    problem, size = _forward_problem(
        x.shape,
        weight.shape,
        x.dtype,
        convolution_precision(x.dtype, target),
        spec,
        activation,
        bias is not None,
        save_input,
        pool,
        target,
    )
    y = empty_channels_last(x, x.shape[0], K, *size)
    z = torch.empty_like(y) if save_input else None
    winner = torch.empty_like(y, dtype=torch.int8) if pool and save else None
    problem.launch(x, taps_first(weight) if group_inputs == 1 else weight, bias, y, z, winner)
    if not save or activation.name == "identity":
        return y, None, winner
    return y, y if activation.reads_output else z, winner


@lru_cache(maxsize=4096)
def _forward_problem(
    shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    activation: Activation,
    has_bias: bool,
    save_input: bool,
    pool: bool,
    target: Target,
) -> tuple[Problem, tuple[int, int]]:
    """The forward's launch, and (height, width) of its results."""
    group_inputs, kernel_size = weight_shape[1], weight_shape[2:]
    _, P, Q = output_pixels(shape, spec, kernel_size, pool)
    constants = {
        **window_constants(spec, kernel_size),
        "ACTIVATION": activation.compiled,
        "HAS_BIAS": has_bias,
        "SAVE_INPUT": save_input,
        "POOL": pool,
    }
    if group_inputs == 1:
        problem = single_channel_problem(shape, weight_shape, spec, pool, constants, target)
    elif group_inputs < FEW_CHANNELS:
        problem = _few_channels_problem(shape, weight_shape, dtype, precision, spec, pool, constants, target)
    else:
        problem = _many_channels_problem(shape, weight_shape, dtype, precision, spec, pool, constants, target)
    return problem, (P // 2, Q // 2) if pool else (P, Q)


def _many_channels_problem(
    shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    pool: bool,
    constants: dict[str, Any],
    target: Target,
) -> Problem:
    N, C, H, W = shape
    K, group_inputs, R, S = weight_shape
    pixels, P, Q = output_pixels(shape, spec, (R, S), pool)
    group_outputs = K // spec.groups
    pooled = constants["ACTIVATION"].name if pool else None
    tile = convolution_tile(pixels, group_outputs, group_inputs, dtype, precision, target, pooled=pooled)
    return Problem(
        convolution_forward_kernel,
        _grid(tile, pixels, group_outputs, spec.groups),
        pixels,
        H,
        W,
        C,
        P,
        Q,
        K,
        group_inputs,
        group_outputs,
        **constants,
        EVEN_C=group_inputs % tile.block_k == 0,
        WIDE=is_wide_convolution(
            pixels,
            pixels // N,
            tile.block_m,
            C * H * W,
            ((tile.block_m, K), (tile.block_n, 1)),
            ((tile.block_n, R * S * group_inputs), (tile.block_k, 1)),
        ),
        PRECISION=precision,
        GROUP=GROUP,
        BLOCK_PIXELS=tile.block_m,
        BLOCK_K=tile.block_n,
        BLOCK_C=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **(every_register(tile.block_m, precision, target) if pool else {}),
    )


def _few_channels_problem(
    shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    pool: bool,
    constants: dict[str, Any],
    target: Target,
) -> Problem:
    N, C, H, W = shape
    K, group_inputs, R, S = weight_shape
    pixels, P, Q = output_pixels(shape, spec, (R, S), pool)
    group_outputs = K // spec.groups
    tile = convolution_few_channels_tile(pixels, group_outputs, R * S * group_inputs, dtype, target)
    return Problem(
        convolution_few_channels_kernel,
        _grid(tile, pixels, group_outputs, spec.groups),
        pixels,
        H,
        W,
        C,
        P,
        Q,
        K,
        group_outputs,
        GROUP_INPUTS=group_inputs,
        **constants,
        WIDE=is_wide_convolution(pixels, pixels // N, tile.block_m, C * H * W, ((tile.block_m, K), (tile.block_n, 1))),
        PRECISION=precision,
        BLOCK_PIXELS=tile.block_m,
        BLOCK_K=tile.block_n,
        BLOCK_REDUCTION=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **(every_register(tile.block_m, precision, target) if pool else {}),
    )


def _grid(tile: GemmTile, pixels: int, columns: int, groups: int) -> tuple[int, int]:
    return ceil_div(pixels, tile.block_m) * ceil_div(columns, tile.block_n), groups

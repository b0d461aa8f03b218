"""Gradients of a two-dimensional convolution, from dZ = dY act' (`activation.activation_backward`, which makes db too).

    dX[n, c, h, w] = sum of dZ[n, k, p, q] W[k, c, r, s] over the taps that read (h, w) from a pixel (p, q)
    dW[k, c, r, s] = sum over n, p, q of dZ[n, k, p, q] x[n, c, p stride + r dilation - padding, q ...]

Data gradient: with a stride, each tap reaches only the input pixels of one phase (h mod stride, w mod stride), so each
phase is a dense convolution of its own with stride 1 and its own taps: r0, r0 + step, ..., where step is the stride
over its common divisor with the dilation. Phases are a grid axis and none multiplies by zero; a masked loop over all
taps would do stride^2 times the products.

Weight gradient: a matrix product whose reduction runs over all pixels. One step is a box of pixels (images, rows,
columns), so that only the box's corner moves and nothing is divided in the loop. On a CPU, where a division costs
little beside a product and far apart pixels cost cache, it is a run of pixels in memory. The reduction is split over
programs into an fp32 workspace, added in a fixed order.

All tensors are channels_last. Depthwise convolutions are in `depthwise.py`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activation_derivative
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise import depthwise_input_gradient, depthwise_weight_gradient
from tinynet_kernels.conv.forward import FEW_CHANNELS
from tinynet_kernels.conv.spec import ConvolutionSpec
from tinynet_kernels.conv.window import (
    inside,
    is_wide_convolution,
    next_box,
    output_pixels,
    output_position,
    pixel_position,
    window_constants,
)
from tinynet_kernels.gemm import grouped_tile
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import as_images, as_rows, empty_channels_last
from tinynet_kernels.linear import GROUP, linear_input_gradient, linear_weight_gradient
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import (
    Target,
    ceil_div,
    convolution_precision,
    convolution_tile,
    convolution_weight_splits,
    convolution_weight_tile,
    current_target,
)


@triton.jit
def first_tap(
    phase,
    TAPS: constexpr,
    TAP_STEP: constexpr,
    STRIDE: constexpr,
    PADDING: constexpr,
    DILATION: constexpr,
):
    """The first tap along one dimension that reaches the input pixels of a phase, or TAPS where none does."""
    tap = tl.cast(TAPS, tl.int32)
    for candidate in tl.static_range(TAP_STEP):  # pyright: ignore
        reaches = (phase + PADDING - candidate * DILATION) % STRIDE == 0
        tap = tl.where(reaches, tl.minimum(candidate, TAPS), tap)
    return tap


@triton.jit
def convolution_input_gradient_kernel(
    dz_ptr,
    weight_ptr,
    dx_ptr,
    N,
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
    TAP_STEP_H: constexpr,
    TAP_STEP_W: constexpr,
    EVEN_K: constexpr,
    WIDE: constexpr,
    PRECISION: constexpr,
    GROUP: constexpr,
    BLOCK_PIXELS: constexpr,
    BLOCK_C: constexpr,
    BLOCK_K: constexpr,
):
    """dX, one [BLOCK_PIXELS, BLOCK_C] tile of one phase a program; grid axes are tiles, phases, groups.

    A step is one tap of BLOCK_K output channels, taps innermost. From a tap to the next, the input pixel stays, the tap
    grows by TAP_STEP and the output pixel shrinks by TAP_STEP dilation / stride. EVEN_K says that BLOCK_K divides the
    group's output channels; offsets are as in `convolution_forward_kernel`.
    """
    N = widened(N, WIDE)
    H = widened(H, WIDE)
    Q = widened(Q, WIDE)
    group_inputs = widened(group_inputs, WIDE)
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    group = tl.program_id(2)
    phase_rows = (H - phase_h + STRIDE_H - 1) // STRIDE_H
    phase_columns = (W - phase_w + STRIDE_W - 1) // STRIDE_W
    pixels = N * phase_rows * phase_columns
    pixel_tiles = tl.cdiv(pixels, BLOCK_PIXELS)
    column_tiles = tl.cdiv(group_inputs, BLOCK_C)
    if tl.program_id(0) >= pixel_tiles * column_tiles:
        return
    pixel_tile, column_tile = grouped_tile(tl.program_id(0), pixel_tiles, column_tiles, GROUP)
    pixel_start = pixel_tile * BLOCK_PIXELS
    column_start = column_tile * BLOCK_C
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    column = tl.arange(0, BLOCK_C) % (group_inputs - column_start)  # past the end: copies, never stored
    k = tl.arange(0, BLOCK_K)

    r = first_tap(phase_h, R, TAP_STEP_H, STRIDE_H, PADDING_H, DILATION_H)
    s = first_tap(phase_w, S, TAP_STEP_W, STRIDE_W, PADDING_W, DILATION_W)
    tap_rows = (R - r + TAP_STEP_H - 1) // TAP_STEP_H
    tap_columns = (S - s + TAP_STEP_W - 1) // TAP_STEP_W
    taps = tap_rows * tap_columns
    PIXEL_STEP_H: constexpr = TAP_STEP_H * DILATION_H // STRIDE_H
    PIXEL_STEP_W: constexpr = TAP_STEP_W * DILATION_W // STRIDE_W

    image, row, along = pixel_position(pixel, phase_rows, phase_columns)
    first_image = pixel_start // (phase_rows * phase_columns)
    image -= first_image
    p = row + (phase_h + PADDING_H - r * DILATION_H) // STRIDE_H  # exact
    q = along + (phase_w + PADDING_W - s * DILATION_W) // STRIDE_W
    in_tile = pixel < pixels

    MAX_ROWS: constexpr = (R + TAP_STEP_H - 1) // TAP_STEP_H
    MAX_COLUMNS: constexpr = (S + TAP_STEP_W - 1) // TAP_STEP_W
    BITMASK: constexpr = MAX_ROWS * MAX_COLUMNS <= 32
    if BITMASK:
        all_bits = tl.zeros((BLOCK_PIXELS,), tl.int32)
        for i in tl.static_range(MAX_ROWS):  # pyright: ignore
            for j in tl.static_range(MAX_COLUMNS):  # pyright: ignore
                reached = in_tile & inside(p - i * PIXEL_STEP_H, P) & inside(q - j * PIXEL_STEP_W, Q)
                reached = reached & (i < tap_rows) & (j < tap_columns)
                all_bits |= reached.to(tl.int32) << tl.minimum(i * tap_columns + j, 31)
        bits = all_bits

    dz_offset = (((image * P + p) * Q + q) * K)[:, None] + k[None, :]
    dz_base = dz_ptr + first_image.to(tl.int64) * P * Q * K + group * group_outputs
    weight_row = R * S * group_inputs
    weight_offset = k[:, None] * weight_row + column[None, :]
    weight_base = weight_ptr + (group * group_outputs).to(tl.int64) * weight_row + (r * S + s) * group_inputs
    weight_base += column_start

    row_of_taps = (tap_columns - 1) * PIXEL_STEP_W * K
    next_tap = -PIXEL_STEP_W * K
    next_row = row_of_taps - PIXEL_STEP_H * Q * K
    next_outputs = row_of_taps + (tap_rows - 1) * PIXEL_STEP_H * Q * K + BLOCK_K
    row_of_weights = (tap_columns - 1) * TAP_STEP_W * group_inputs
    next_tap_weights = TAP_STEP_W * group_inputs
    next_row_weights = TAP_STEP_H * S * group_inputs - row_of_weights
    next_output_weights = BLOCK_K * weight_row - (tap_rows - 1) * TAP_STEP_H * S * group_inputs - row_of_weights

    dx = tl.zeros((BLOCK_PIXELS, BLOCK_C), tl.float32)
    tap = 0
    tap_column = 0
    outputs_left = group_outputs
    for _ in range(taps * tl.cdiv(group_outputs, BLOCK_K)):
        if BITMASK:
            valid = tl.cast(bits & 1, tl.int1)
        else:
            tap_row = tap // tap_columns
            valid = in_tile & inside(p - tap_row * PIXEL_STEP_H, P) & inside(q - tap_column * PIXEL_STEP_W, Q)
        if EVEN_K:
            a = tl.load(dz_base + dz_offset, mask=valid[:, None], other=0.0)
            b = tl.load(weight_base + weight_offset)  # in bounds: column < group_inputs, BLOCK_K divides the outputs
        else:
            a = tl.load(dz_base + dz_offset, mask=valid[:, None] & (k < outputs_left)[None, :], other=0.0)
            b = tl.load(weight_base + weight_offset, mask=(k < outputs_left)[:, None], other=0.0)
        dx = tl.dot(a, b, dx, input_precision=PRECISION)
        tap += 1
        tap_column += 1
        row_ends = tap_column == tap_columns
        taps_end = tap == taps
        dz_base += tl.where(taps_end, next_outputs, tl.where(row_ends, next_row, next_tap))
        weight_base += tl.where(taps_end, next_output_weights, tl.where(row_ends, next_row_weights, next_tap_weights))
        if BITMASK:
            bits = tl.where(taps_end, all_bits, bits >> 1)
        if not EVEN_K:
            outputs_left -= tl.where(taps_end, BLOCK_K, 0)
        tap_column = tl.where(row_ends, 0, tap_column)
        tap = tl.where(taps_end, 0, tap)

    h = row * STRIDE_H + phase_h
    w = along * STRIDE_W + phase_w
    base = first_image.to(tl.int64) * H * W * C + group * group_inputs + column_start
    offset = (((image * H + h) * W + w) * C)[:, None] + tl.arange(0, BLOCK_C)[None, :]
    mask = in_tile[:, None] & (tl.arange(0, BLOCK_C) < group_inputs - column_start)[None, :]
    tl.store(dx_ptr + base + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def in_image(h, w, H, W, tap_h, tap_w, MANY_TAPS: constexpr):
    """Whether (h + tap_h, w + tap_w) is a pixel, [PIXELS, 1] for one tap or, MANY_TAPS, [PIXELS, COLUMNS]."""
    if MANY_TAPS:
        return inside(h[:, None] + tap_h[None, :], H) & inside(w[:, None] + tap_w[None, :], W)
    else:
        return (inside(h + tap_h, H) & inside(w + tap_w, W))[:, None]


@triton.jit
def pixel_gradients(
    dy_ptr,
    saved_ptr,
    winner_ptr,
    base,
    offset,
    mask,
    tap,
    ACTIVATION: constexpr,
):
    """dZ = dY act'(saved) of [PIXELS, CHANNELS], fp32; with winners of 2 x 2 windows 0 where another tap won."""
    dz = tl.load(dy_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION.name != "identity":
        saved = tl.load(saved_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        dz *= activation_derivative(saved, ACTIVATION)
    if winner_ptr is not None:
        winner = tl.load(winner_ptr + base + offset, mask=mask, other=-1).to(tl.int32)
        dz = tl.where(winner == tap[:, None], dz, 0.0)
    return dz


@triton.jit
def convolution_weight_gradient_kernel(
    x_ptr,
    dz_ptr,
    saved_ptr,
    winner_ptr,
    dw_ptr,
    db_ptr,
    N,
    H,
    W,
    C,
    P,
    Q,
    K,
    group_inputs,
    group_outputs,
    boxes,
    boxes_a_split,
    stride_dw_channel,
    stride_dw_tap,
    R: constexpr,
    S: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
    ACTIVATION: constexpr,
    FLAT: constexpr,
    TAPS_A_TILE: constexpr,
    CONSECUTIVE: constexpr,
    EVEN_BOXES: constexpr,
    WIDE: constexpr,
    PRECISION: constexpr,
    GROUP: constexpr,
    BOX_N: constexpr,
    BOX_P: constexpr,
    BOX_Q: constexpr,
    BLOCK_K: constexpr,
    BLOCK_COLUMNS: constexpr,
):
    """dW[split] over the split's boxes of output pixels; grid axes are tiles, splits, groups.

    One [BLOCK_K, BLOCK_COLUMNS] tile a program. Columns are the channels of one tap or, FLAT, (tap, channel) pairs: few
    channels fill a tile together. With TAPS_A_TILE > 1 they are that many taps' channels, a part of them that divides
    group_inputs: dZ is read once for all. EVEN_BOXES says that boxes tile the output exactly. CONSECUTIVE: a box is
    that many pixels one after the other in memory, across rows and images; their positions are divided in the loop.
    FLAT and CONSECUTIVE boxes may be of dY: dZ then takes ACTIVATION's derivative at `saved`; with winners dY, `saved`
    and they are of 2 x 2 windows, whose pixels come one after the other. The sums of dZ go to db[split], if given.
    """
    N = widened(N, WIDE)
    H = widened(H, WIDE)
    W = widened(W, WIDE)
    P = widened(P, WIDE)
    K = widened(K, WIDE)
    group_inputs = widened(group_inputs, WIDE)
    boxes_a_split = widened(boxes_a_split, WIDE)
    TAPS: constexpr = R * S
    if not (FLAT and CONSECUTIVE):
        tl.static_assert(ACTIVATION.name == "identity" and winner_ptr is None and db_ptr is None, "boxes are of dZ")
    tl.static_assert(TAPS_A_TILE == 1 or (CONSECUTIVE and not FLAT), "other tiles are of one tap")
    CHANNELS: constexpr = BLOCK_COLUMNS // TAPS_A_TILE
    TAP_TILES: constexpr = (TAPS + TAPS_A_TILE - 1) // TAPS_A_TILE
    if FLAT:
        columns = TAPS * group_inputs
        column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    else:
        columns = group_inputs
        column_tiles = TAP_TILES * tl.cdiv(columns, CHANNELS)
    row_tile, column_tile = grouped_tile(tl.program_id(0), tl.cdiv(group_outputs, BLOCK_K), column_tiles, GROUP)
    split = tl.program_id(1)
    group = tl.program_id(2)
    row_start = row_tile * BLOCK_K
    k = tl.arange(0, BLOCK_K) % (group_outputs - row_start)  # past the end: copies, never stored
    if FLAT:
        column_start = column_tile * BLOCK_COLUMNS
        columns_left = columns - column_start
        pair = column_start + tl.arange(0, BLOCK_COLUMNS) % columns_left
        tap = pair // group_inputs
        channel = pair % group_inputs
    elif TAPS_A_TILE > 1:
        first = column_tile % TAP_TILES * TAPS_A_TILE
        tap = first + tl.arange(0, BLOCK_COLUMNS) // CHANNELS
        channel = column_tile // TAP_TILES * CHANNELS + tl.arange(0, BLOCK_COLUMNS) % CHANNELS
        columns_left = (TAPS - first) * CHANNELS
    else:
        tap = column_tile % TAPS
        column_start = column_tile // TAPS * BLOCK_COLUMNS
        columns_left = columns - column_start
        channel = column_start + tl.arange(0, BLOCK_COLUMNS) % columns_left
    tap_h = tap // S * DILATION_H
    tap_w = tap % S * DILATION_W

    dz_group = dz_ptr + group * group_outputs + row_start
    x_group = x_ptr + group * group_inputs
    BLOCK_PIXELS: constexpr = BOX_N * BOX_P * BOX_Q
    first_box = split * boxes_a_split
    last_box = min(first_box + boxes_a_split, boxes)
    dw = tl.zeros((BLOCK_K, BLOCK_COLUMNS), tl.float32)
    if CONSECUTIVE:
        pixels = N * P * Q
        POOL: constexpr = winner_ptr is not None  # pyright: ignore[reportAssignmentType]
        WINDOW: constexpr = 4 if POOL else 1  # pyright: ignore[reportAssignmentType]
        if POOL:
            pixels = N * (P // 2) * (Q // 2) * 4
        x_offset = ((tap_h - PADDING_H) * W + tap_w - PADDING_W) * C + channel
        pixel_offset = tl.arange(0, BLOCK_PIXELS)
        transposed = tl.zeros((BLOCK_COLUMNS, BLOCK_K), tl.float32)  # the wider side of few channels along the vectors
        db = tl.zeros((BLOCK_K,), tl.float32)
        for start in range(first_box * BLOCK_PIXELS, last_box * BLOCK_PIXELS, BLOCK_PIXELS):
            image, row, along = output_position(start + pixel_offset, P, Q, POOL)
            h = row * STRIDE_H - PADDING_H
            w = along * STRIDE_W - PADDING_W
            in_output = pixel_offset < pixels - start
            valid = in_output[:, None] & in_image(h, w, H, W, tap_h, tap_w, FLAT or TAPS_A_TILE > 1)
            pixel_in_x = (image.to(tl.int64) * H + row * STRIDE_H) * W + along * STRIDE_W
            b = tl.load(x_group + (pixel_in_x * C)[:, None] + x_offset[None, :], mask=valid, other=0.0)
            base = tl.cast(start // WINDOW, tl.int64) * K + group * group_outputs + row_start
            if FLAT:
                dz = pixel_gradients(
                    dz_ptr,
                    saved_ptr,
                    winner_ptr,
                    base,
                    (pixel_offset // WINDOW * K)[:, None] + tl.arange(0, BLOCK_K)[None, :],
                    in_output[:, None] & (tl.arange(0, BLOCK_K) < group_outputs - row_start)[None, :],
                    pixel_offset % WINDOW,
                    ACTIVATION,
                )
                if db_ptr is not None:
                    db += tl.sum(dz, axis=0)
                transposed = tl.dot(tl.trans(b), dz.to(dz_ptr.dtype.element_ty), transposed, input_precision=PRECISION)
            else:
                a_offset = k[:, None] + (pixel_offset * K)[None, :]
                a = tl.load(dz_ptr + base + a_offset, mask=in_output[None, :], other=0.0)
                dw = tl.dot(a, b, dw, input_precision=PRECISION)
        if db_ptr is not None:
            db_row = db_ptr + split.to(tl.int64) * K + group * group_outputs + row_start
            is_first = (column_tile == 0) & (tl.arange(0, BLOCK_K) < group_outputs - row_start)
            tl.store(db_row + tl.arange(0, BLOCK_K), db, mask=is_first)
        if FLAT:
            dw = tl.trans(transposed)
    else:
        image, row, along = pixel_position(tl.arange(0, BLOCK_PIXELS), BOX_P, BOX_Q)
        dz_offset = k[:, None] + (((image * P + row) * Q + along) * K)[None, :]
        x_offset = (((image * H + row * STRIDE_H) * W + along * STRIDE_W) * C)[:, None]
        x_offset += ((tap_h * W + tap_w) * C + channel)[None, :]
        n, p, q = pixel_position(first_box, tl.cdiv(P, BOX_P), tl.cdiv(Q, BOX_Q))
        n *= BOX_N
        p *= BOX_P
        q *= BOX_Q
        for _ in range(first_box, last_box):
            h = p * STRIDE_H - PADDING_H
            w = q * STRIDE_W - PADDING_W
            valid = in_image(h + row * STRIDE_H, w + along * STRIDE_W, H, W, tap_h, tap_w, FLAT)
            dz_base = dz_group + ((n.to(tl.int64) * P + p) * Q + q) * K
            x_base = x_group + ((n.to(tl.int64) * H + h) * W + w) * C
            if EVEN_BOXES:
                a = tl.load(dz_base + dz_offset)  # in bounds: k < group_outputs, every box lies in the output
            else:
                in_output = (image < N - n) & (row < P - p) & (along < Q - q)
                valid = valid & in_output[:, None]
                a = tl.load(dz_base + dz_offset, mask=in_output[None, :], other=0.0)
            b = tl.load(x_base + x_offset, mask=valid, other=0.0)
            dw = tl.dot(a, b, dw, input_precision=PRECISION)
            n, p, q = next_box(n, p, q, P, Q, BOX_N, BOX_P, BOX_Q)

    base = (split.to(tl.int64) * K + group * group_outputs + row_start) * TAPS * group_inputs
    offset = tl.arange(0, BLOCK_K)[:, None] * (TAPS * group_inputs)
    offset += (tap * stride_dw_tap + channel * stride_dw_channel)[None, :]
    mask = (tl.arange(0, BLOCK_K) < group_outputs - row_start)[:, None]
    mask = mask & (tl.arange(0, BLOCK_COLUMNS) < columns_left)[None, :]
    tl.store(dw_ptr + base + offset, dw.to(dw_ptr.dtype.element_ty), mask=mask)


@costs(convolution_input_gradient_kernel)
def convolution_input_gradient_cost(
    dz_ptr: torch.Tensor, weight_ptr: torch.Tensor, dx_ptr: torch.Tensor, N: int, P: int, Q: int, **_: Any
) -> Cost:
    """2 N P Q K R S C / groups operations; dZ and W read, dX written."""
    return Cost(2 * N * P * Q * weight_ptr.numel(), size_in_bytes(dz_ptr, weight_ptr, dx_ptr))


@costs(convolution_weight_gradient_kernel)
def convolution_weight_gradient_cost(
    x_ptr: torch.Tensor,
    dz_ptr: torch.Tensor,
    saved_ptr: torch.Tensor | None,
    winner_ptr: torch.Tensor | None,
    dw_ptr: torch.Tensor,
    db_ptr: torch.Tensor | None,
    N: int,
    P: int,
    Q: int,
    **_: Any,
) -> Cost:
    """2 N P Q K R S C / groups operations; x, dZ and what makes it read, every split of dW and db written."""
    moved = size_in_bytes(x_ptr, dz_ptr, saved_ptr, winner_ptr, dw_ptr, db_ptr)
    return Cost(2 * N * P * Q * dw_ptr[0].numel(), moved)


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    size: tuple[int, int],
    target: Target,
) -> Problem:
    N, K, P, Q = dz_shape
    _, group_inputs, R, S = weight_shape
    H, W = size
    C = group_inputs * spec.groups
    group_outputs = K // spec.groups
    stride_h, stride_w = spec.stride
    phase_rows, phase_columns = ceil_div(H, stride_h), ceil_div(W, stride_w)  # of the largest phase
    pixels = N * phase_rows * phase_columns
    tile = convolution_tile(pixels, group_inputs, group_outputs, dtype, precision, target, is_gradient=True)
    return Problem(
        convolution_input_gradient_kernel,
        (ceil_div(pixels, tile.block_m) * ceil_div(group_inputs, tile.block_n), stride_h * stride_w, spec.groups),
        N,
        H,
        W,
        C,
        P,
        Q,
        K,
        group_inputs,
        group_outputs,
        **window_constants(spec, (R, S)),
        TAP_STEP_H=stride_h // math.gcd(stride_h, spec.dilation[0]),
        TAP_STEP_W=stride_w // math.gcd(stride_w, spec.dilation[1]),
        EVEN_K=group_outputs % tile.block_k == 0,
        WIDE=is_wide_convolution(
            pixels,
            max(1, (H // stride_h) * (W // stride_w)),
            tile.block_m,
            max(C * H * W, K * P * Q),
            ((tile.block_k, R * S * group_inputs), (tile.block_n, 1)),
        ),
        PRECISION=precision,
        GROUP=GROUP,
        BLOCK_PIXELS=tile.block_m,
        BLOCK_C=tile.block_n,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def convolution_input_gradient(
    dz: torch.Tensor,
    weight: torch.Tensor,
    spec: ConvolutionSpec,
    size: tuple[int, int],
    dtype: torch.dtype | None = None,
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


def takes_output_gradient(x: torch.Tensor, spec: ConvolutionSpec) -> bool:
    """Whether `convolution_weight_gradient` makes dZ from dY itself: where x has few channels, on a CPU."""
    group_inputs = x.shape[1] // spec.groups
    is_depthwise = group_inputs == 1 and spec.groups > 1
    return current_target().kind == "cpu" and group_inputs < FEW_CHANNELS and not is_depthwise


def convolution_weight_gradient(
    dz: torch.Tensor,
    x: torch.Tensor,
    spec: ConvolutionSpec,
    kernel_size: tuple[int, int],
    *,
    channels_last: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """dW [K, C / groups, R, S] in `dtype` (None: x's).

    Args:
        dz: [N, K, P, Q], channels_last.
        x: [N, C, H, W], channels_last.
        spec: stride, padding, dilation, groups.
        kernel_size: (R, S).
        channels_last: whether dW is; contiguous otherwise.
    """
    K, C = dz.shape[1], x.shape[1]
    if spec.is_pointwise(kernel_size):
        dw = linear_weight_gradient(as_rows(dz), as_rows(x), dtype)
        return dw.view(K, 1, 1, C).permute(0, 3, 1, 2) if channels_last else dw.view(K, C, 1, 1)
    if C == spec.groups > 1:
        dw = depthwise_weight_gradient(dz, x, spec, kernel_size, dtype)
        return dw.view(K, *kernel_size, 1).permute(0, 3, 1, 2) if channels_last else dw
    return convolution_weight_and_bias_gradient(
        dz, None, None, x, spec, kernel_size, IDENTITY, channels_last=channels_last, want_bias=False, dtype=dtype
    )[0]


@lru_cache(maxsize=4096)
def _weight_gradient_problem(
    x_shape: tuple[int, int, int, int],
    channels_out: int,
    pool: bool,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    kernel_size: tuple[int, int],
    activation: Activation,
    channels_last: bool,
    target: Target,
) -> tuple[Problem, tuple[int, ...]]:
    """The launch, and the shape of its partial sums."""
    N, C, H, W = x_shape
    K = channels_out
    R, S = kernel_size
    pixels, P, Q = output_pixels(x_shape, spec, kernel_size, pool)
    group_inputs, group_outputs = C // spec.groups, K // spec.groups
    tile = convolution_weight_tile(group_outputs, group_inputs, R * S, (N, P, Q), dtype, precision, target)
    box_pixels = tile.box[0] * tile.box[1] * tile.box[2]
    if tile.consecutive:
        boxes = ceil_div(pixels, box_pixels)
    else:
        boxes = ceil_div(N, tile.box[0]) * ceil_div(P, tile.box[1]) * ceil_div(Q, tile.box[2])
    if tile.flat:
        column_tiles = ceil_div(R * S * group_inputs, tile.block_columns)
    else:
        column_tiles = ceil_div(R * S, tile.taps) * ceil_div(group_inputs, tile.block_columns // tile.taps)
    tiles = ceil_div(group_outputs, tile.block_rows) * column_tiles
    box_bytes = box_pixels * (group_inputs + group_outputs) * dtype.itemsize
    boxes_a_split = ceil_div(boxes, convolution_weight_splits(tiles * spec.groups, boxes, box_bytes, target))
    splits = ceil_div(boxes, boxes_a_split)
    problem = Problem(
        convolution_weight_gradient_kernel,
        (tiles, splits, spec.groups),
        N,
        H,
        W,
        C,
        P,
        Q,
        K,
        group_inputs,
        group_outputs,
        boxes,
        boxes_a_split,
        *((1, group_inputs) if channels_last else (R * S, 1)),
        **window_constants(spec, kernel_size),
        ACTIVATION=activation.compiled,
        FLAT=tile.flat,
        TAPS_A_TILE=tile.taps,
        CONSECUTIVE=tile.consecutive,
        EVEN_BOXES=N % tile.box[0] == P % tile.box[1] == Q % tile.box[2] == 0,
        WIDE=exceed_int32(
            ((tile.box[0] + 1, max(C * H * W, K * P * Q)),),
            ((box_pixels, K), (tile.block_rows, 1)),
            ((tile.block_rows, R * S * group_inputs), (R * S * group_inputs, 1)),
            (((boxes + boxes_a_split) * box_pixels, 1),),
        ),
        PRECISION=precision,
        GROUP=GROUP,
        BOX_N=tile.box[0],
        BOX_P=tile.box[1],
        BOX_Q=tile.box[2],
        BLOCK_K=tile.block_rows,
        BLOCK_COLUMNS=tile.block_columns,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    shape = (splits, K, R, S, group_inputs) if channels_last else (splits, K, group_inputs, R, S)
    return problem, shape


def convolution_weight_and_bias_gradient(
    dy: torch.Tensor,
    saved: torch.Tensor | None,
    winner: torch.Tensor | None,
    x: torch.Tensor,
    spec: ConvolutionSpec,
    kernel_size: tuple[int, int],
    activation: Activation,
    *,
    channels_last: bool,
    want_bias: bool,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(dW, and db [K] in fp32 where wanted): straight from dY where `takes_output_gradient` says so, else from dZ.

    Args:
        dy: [N, K, P, Q], channels_last; with `winner` of its windows, [N, K, P // 2, Q // 2]; dZ for identity.
        saved: y or z in dY's shape, channels_last, as `activation.reads_output` says; None for identity.
        winner: the tap that each 2 x 2 window passed on, int8 in dY's shape, channels_last; None without pooling.
        x, spec, kernel_size, channels_last, dtype: as in `convolution_weight_gradient`.
        activation: the fused function.
        want_bias: whether to make db.
    """
    target = current_target()
    problem, shape = _weight_gradient_problem(
        x.shape,
        dy.shape[1],
        winner is not None,
        x.dtype,
        convolution_precision(x.dtype, target),
        spec,
        kernel_size,
        activation,
        channels_last,
        target,
    )
    dtype = x.dtype if dtype is None else dtype
    dw = torch.empty(shape, dtype=dtype if shape[0] == 1 else torch.float32, device=x.device)
    db = torch.empty(shape[:2], dtype=torch.float32, device=x.device) if want_bias else None
    problem.launch(x, dy, saved, winner, dw, db)
    summed = dw[0] if shape[0] == 1 else sum_partials(dw, dtype)
    return summed.permute(0, 3, 1, 2) if channels_last else summed, None if db is None else sum_partials(db)

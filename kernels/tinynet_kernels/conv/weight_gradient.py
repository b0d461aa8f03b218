"""Weight gradient of a two-dimensional convolution, from dZ = dY act' (`activation.activation_backward`).

    dW[k, c, r, s] = sum over n, p, q of dZ[n, k, p, q] x[n, c, p stride + r dilation - padding, q ...]

A matrix product whose reduction runs over all pixels, split over programs into an fp32 workspace that is added in a
fixed order. Two kernels, by what one step of the reduction is:

    boxes   (images, rows, columns) of pixels: only the box's corner moves, and nothing is divided in the loop
    runs    consecutive pixels of memory: on a CPU, where a division costs little beside a product and distant pixels
            cost cache. Where x has few channels, these read dY and compute dZ and its sums, the bias gradient, too.

All tensors but dW are channels_last. Depthwise convolutions are in `depthwise.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activation_derivative
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise import depthwise_weight_gradient
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Pair, Shape
from tinynet_kernels.conv.tiles import (
    FEW_CHANNELS,
    convolution_precision,
    convolution_weight_splits,
    convolution_weight_tile,
)
from tinynet_kernels.conv.window import box_position, inside, next_box, output_position, pixel_position
from tinynet_kernels.gemm import GROUP, grouped_tile
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import as_rows
from tinynet_kernels.linear import linear_weight_gradient
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target


class WeightTile(NamedTuple):
    """A program's tile of dW within a kernel. Rows are output channels of its group.

    Attributes:
        row_start: the first of its rows.
        is_first: whether no tile of the same rows comes before it.
        tap: of each of its columns, or of all; (tap_h, tap_w) pixels below and beside the first.
        channel: of each of its columns, within the group.
        columns_left: how many columns there are from its first to the last.
    """

    row_start: Any
    is_first: Any
    tap: Any
    tap_h: Any
    tap_w: Any
    channel: Any
    columns_left: Any


@triton.jit
def weight_tile_of(program, group_inputs, group_outputs, WINDOW: constexpr, TILE: constexpr):
    """The `WeightTile` of a program.

    Columns are the channels of one tap or, where the tile is flat, (tap, channel) pairs: few channels fill a tile
    together. With several taps per tile they are that many taps' channels, a part of them that divides group_inputs.
    """
    TAPS: constexpr = WINDOW.R * WINDOW.S
    CHANNELS: constexpr = TILE.block_columns // TILE.taps
    TAP_TILES: constexpr = (TAPS + TILE.taps - 1) // TILE.taps
    column = tl.arange(0, TILE.block_columns)
    if TILE.flat:
        column_tiles = tl.cdiv(TAPS * group_inputs, TILE.block_columns)
    else:
        column_tiles = TAP_TILES * tl.cdiv(group_inputs, CHANNELS)
    row_tile, column_tile = grouped_tile(program, tl.cdiv(group_outputs, TILE.block_rows), column_tiles, WINDOW.group)
    if TILE.flat:
        column_start = column_tile * TILE.block_columns
        columns_left = TAPS * group_inputs - column_start
        pair = column_start + column % columns_left
        tap = pair // group_inputs
        channel = pair % group_inputs
    elif TILE.taps > 1:
        first_tap = column_tile % TAP_TILES * TILE.taps
        tap = first_tap + column // CHANNELS
        channel = column_tile // TAP_TILES * CHANNELS + column % CHANNELS
        columns_left = (TAPS - first_tap) * CHANNELS
    else:
        tap = column_tile % TAPS
        column_start = column_tile // TAPS * TILE.block_columns
        columns_left = group_inputs - column_start
        channel = column_start + column % columns_left
    tap_h = tap // WINDOW.S * WINDOW.dilation_h
    tap_w = tap % WINDOW.S * WINDOW.dilation_w
    return WeightTile(row_tile * TILE.block_rows, column_tile == 0, tap, tap_h, tap_w, channel, columns_left)


@triton.jit
def store_weights(dw, dw_ptr, channel, tile, stride_channel, stride_tap, weights, group_outputs):
    """Stores a tile of dW [..., weights], whose first dimension is flat and at `channel` for the group's first row."""
    row = tl.arange(0, dw.shape[0])
    base = (channel + tile.row_start) * weights
    offset = row[:, None] * weights + (tile.tap * stride_tap + tile.channel * stride_channel)[None, :]
    mask = (row < group_outputs - tile.row_start)[:, None]
    mask = mask & (tl.arange(0, dw.shape[1]) < tile.columns_left)[None, :]
    tl.store(dw_ptr + base + offset, dw.to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def in_image(h, w, H, W, tile, TILE: constexpr):
    """Whether the taps of a tile lie in the image for windows that begin at (h, w): [PIXELS, COLUMNS or 1]."""
    if TILE.flat or TILE.taps > 1:
        return inside(h[:, None] + tile.tap_h[None, :], H) & inside(w[:, None] + tile.tap_w[None, :], W)
    else:
        return (inside(h + tile.tap_h, H) & inside(w + tile.tap_w, W))[:, None]


@triton.jit
def convolution_weight_gradient_boxes_kernel(
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
    group_inputs,
    group_outputs,
    stride_dw_channel,
    stride_dw_tap,
    boxes,
    boxes_per_split,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """dW[split] over the split's boxes of output pixels; grid axes are tiles, splits, groups.

    One [block_rows, block_columns] tile per program; see `weight_tile_of`. WINDOW.even says that boxes tile the output
    exactly.
    """
    N = widened(N, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    K = widened(K, WINDOW.wide)
    group_inputs = widened(group_inputs, WINDOW.wide)
    boxes_per_split = widened(boxes_per_split, WINDOW.wide)
    split = tl.program_id(1)
    group = tl.program_id(2)
    tl.static_assert(TILE.taps == 1, "boxes are multiplied with one tap")
    tile = weight_tile_of(tl.program_id(0), group_inputs, group_outputs, WINDOW, TILE)
    k = tl.arange(0, TILE.block_rows) % (group_outputs - tile.row_start)  # past the end: copies, never stored
    dz_group = dz_ptr + group * group_outputs + tile.row_start
    x_group = x_ptr + group * group_inputs

    BLOCK_PIXELS: constexpr = TILE.box_n * TILE.box_p * TILE.box_q
    ROWS: constexpr = TILE.block_rows
    COLUMNS: constexpr = TILE.block_columns
    image, row, along = pixel_position(tl.arange(0, BLOCK_PIXELS), TILE.box_p, TILE.box_q)
    dz_offset = k[:, None] + (((image * P + row) * Q + along) * K)[None, :]
    x_offset = (((image * H + row * WINDOW.stride_h) * W + along * WINDOW.stride_w) * C)[:, None]
    x_offset += ((tile.tap_h * W + tile.tap_w) * C + tile.channel)[None, :]
    first_box = split * boxes_per_split
    n, p, q = box_position(first_box, P, Q, TILE)
    dw = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(first_box, min(first_box + boxes_per_split, boxes)):
        h = p * WINDOW.stride_h - WINDOW.padding_h
        w = q * WINDOW.stride_w - WINDOW.padding_w
        valid = in_image(h + row * WINDOW.stride_h, w + along * WINDOW.stride_w, H, W, tile, TILE)
        dz_base = dz_group + ((n.to(tl.int64) * P + p) * Q + q) * K
        x_base = x_group + ((n.to(tl.int64) * H + h) * W + w) * C
        if WINDOW.even:
            a = tl.load(dz_base + dz_offset)  # in bounds: k < group_outputs, every box lies in the output
        else:
            in_output = (image < N - n) & (row < P - p) & (along < Q - q)
            valid = valid & in_output[:, None]
            a = tl.load(dz_base + dz_offset, mask=in_output[None, :], other=0.0)
        b = tl.load(x_base + x_offset, mask=valid, other=0.0)
        dw = tl.dot(a, b, dw, input_precision=WINDOW.precision)
        n, p, q = next_box(n, p, q, P, Q, TILE)

    channel = split.to(tl.int64) * K + group * group_outputs
    weights = WINDOW.R * WINDOW.S * group_inputs
    store_weights(dw, dw_ptr, channel, tile, stride_dw_channel, stride_dw_tap, weights, group_outputs)


@triton.jit
def pixel_gradients(dy_ptr, saved_ptr, argmax_ptr, base, offset, mask, tap, ACTIVATION: constexpr):
    """dZ = dY act'(saved) of [PIXELS, CHANNELS], fp32; with argmax of 2 x 2 windows 0 where another tap is largest."""
    dz = tl.load(dy_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION.name != "identity":
        saved = tl.load(saved_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        dz *= activation_derivative(saved, ACTIVATION)
    if argmax_ptr is not None:
        argmax = tl.load(argmax_ptr + base + offset, mask=mask, other=-1).to(tl.int32)
        dz = tl.where(argmax == tap[:, None], dz, 0.0)
    return dz


@triton.jit
def convolution_weight_gradient_runs_kernel(
    x_ptr,
    dz_ptr,
    saved_ptr,
    argmax_ptr,
    dw_ptr,
    db_ptr,
    pixels,
    H,
    W,
    C,
    P,
    Q,
    K,
    group_inputs,
    group_outputs,
    stride_dw_channel,
    stride_dw_tap,
    pixels_per_split,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dW[split] over the split's runs of output pixels in memory order; grid axes are tiles, splits, groups.

    One [block_rows, block_columns] tile per program; see `weight_tile_of`. With several taps per tile dZ is read once
    for all. Flat tiles may be given dY: dZ is then computed by ACTIVATION's derivative at `saved`; with argmax, dY and
    `saved` are of 2 x 2 windows, whose pixels come one after the other. The sums of dZ go to db[split], if given.
    """
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    K = widened(K, WINDOW.wide)
    group_inputs = widened(group_inputs, WINDOW.wide)
    pixels_per_split = widened(pixels_per_split, WINDOW.wide)
    if not TILE.flat:
        tl.static_assert(ACTIVATION.name == "identity" and argmax_ptr is None and db_ptr is None, "runs are of dZ")
    split = tl.program_id(1)
    group = tl.program_id(2)
    tile = weight_tile_of(tl.program_id(0), group_inputs, group_outputs, WINDOW, TILE)
    row = tl.arange(0, TILE.block_rows)
    in_rows = row < group_outputs - tile.row_start
    k = row % (group_outputs - tile.row_start)  # past the end: copies, never stored
    first_channel = group * group_outputs + tile.row_start
    x_group = x_ptr + group * group_inputs

    BLOCK_PIXELS: constexpr = TILE.box_n * TILE.box_p * TILE.box_q
    ROWS: constexpr = TILE.block_rows
    COLUMNS: constexpr = TILE.block_columns
    TAPS: constexpr = 4 if WINDOW.pool else 1
    pixel = tl.arange(0, BLOCK_PIXELS)
    x_offset = ((tile.tap_h - WINDOW.padding_h) * W + tile.tap_w - WINDOW.padding_w) * C + tile.channel
    dw = tl.zeros((ROWS, COLUMNS), tl.float32)
    transposed = tl.zeros((COLUMNS, ROWS), tl.float32)  # the longer side of flat tiles in vectors
    db = tl.zeros((ROWS,), tl.float32)
    first_pixel = split * pixels_per_split
    for start in range(first_pixel, min(first_pixel + pixels_per_split, pixels), BLOCK_PIXELS):
        image, p, q = output_position(start + pixel, P, Q, WINDOW.pool)
        h = p * WINDOW.stride_h - WINDOW.padding_h
        w = q * WINDOW.stride_w - WINDOW.padding_w
        in_output = pixel < pixels - start
        valid = in_output[:, None] & in_image(h, w, H, W, tile, TILE)
        pixel_in_x = (image.to(tl.int64) * H + p * WINDOW.stride_h) * W + q * WINDOW.stride_w
        b = tl.load(x_group + (pixel_in_x * C)[:, None] + x_offset[None, :], mask=valid, other=0.0)
        base = tl.cast(start // TAPS, tl.int64) * K + first_channel
        if TILE.flat:
            offset = (pixel // TAPS * K)[:, None] + row[None, :]
            mask = in_output[:, None] & in_rows[None, :]
            dz = pixel_gradients(dz_ptr, saved_ptr, argmax_ptr, base, offset, mask, pixel % TAPS, ACTIVATION)
            if db_ptr is not None:
                db += tl.sum(dz, axis=0)
            a = dz.to(dz_ptr.dtype.element_ty)
            transposed = tl.dot(tl.trans(b), a, transposed, input_precision=WINDOW.precision)
        else:
            a = tl.load(dz_ptr + base + (k[:, None] + (pixel * K)[None, :]), mask=in_output[None, :], other=0.0)
            dw = tl.dot(a, b, dw, input_precision=WINDOW.precision)

    channel = split.to(tl.int64) * K + group * group_outputs
    if db_ptr is not None:
        tl.store(db_ptr + channel + tile.row_start + row, db, mask=tile.is_first & in_rows)
    if TILE.flat:
        dw = tl.trans(transposed)
    weights = WINDOW.R * WINDOW.S * group_inputs
    store_weights(dw, dw_ptr, channel, tile, stride_dw_channel, stride_dw_tap, weights, group_outputs)


@costs(convolution_weight_gradient_boxes_kernel)
@costs(convolution_weight_gradient_runs_kernel)
def convolution_weight_gradient_cost(x_ptr: torch.Tensor, dw_ptr: torch.Tensor, P: int, Q: int, **others: Any) -> Cost:
    """2 N P Q K R S C / groups operations; x, dZ and its sources read, every split of dW and db written."""
    flops = 2 * x_ptr.shape[0] * P * Q * dw_ptr[0].numel()
    return Cost(flops, size_in_bytes(x_ptr, dw_ptr, *others.values()))


def takes_output_gradient(x: torch.Tensor, spec: ConvolutionSpec) -> bool:
    """Whether `convolution_weight_gradient` computes dZ from dY itself: where x has few channels, on a CPU."""
    group_inputs = x.shape[1] // spec.groups
    is_depthwise = group_inputs == 1 and spec.groups > 1
    return current_target().kind == "cpu" and group_inputs < FEW_CHANNELS and not is_depthwise


@lru_cache(maxsize=4096)
def _weight_gradient_problem(
    x_shape: Shape,
    K: int,
    pool: bool,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    kernel_size: Pair,
    activation: Activation,
    channels_last: bool,
    target: Target,
) -> tuple[Problem, tuple[int, ...]]:
    """The launch, and the shape of its partial sums."""
    shape = ConvolutionShape.of(x_shape, K, kernel_size, spec)
    N, H, W, C, P, Q, *_ = shape
    group_inputs, group_outputs, taps = shape.group_inputs, shape.group_outputs, shape.taps
    pixels = shape.pixels(pool)
    tile = convolution_weight_tile(shape, dtype, precision, target)
    box_pixels = tile.box_n * tile.box_p * tile.box_q
    if tile.consecutive:
        boxes = ceil_div(pixels, box_pixels)
    else:
        boxes = ceil_div(N, tile.box_n) * ceil_div(P, tile.box_p) * ceil_div(Q, tile.box_q)
    if tile.flat:
        column_tiles = ceil_div(taps * group_inputs, tile.block_columns)
    else:
        column_tiles = ceil_div(taps, tile.taps) * ceil_div(group_inputs, tile.block_columns // tile.taps)
    tiles = ceil_div(group_outputs, tile.block_rows) * column_tiles
    box_bytes = box_pixels * (group_inputs + group_outputs) * dtype.itemsize
    boxes_per_split = ceil_div(boxes, convolution_weight_splits(tiles * spec.groups, boxes, box_bytes, target))
    splits = ceil_div(boxes, boxes_per_split)
    wide = exceed_int32(
        ((tile.box_n + 1, max(C * H * W, K * P * Q)),),
        ((box_pixels, K), (tile.block_rows, 1)),
        ((tile.block_rows, taps * group_inputs), (taps * group_inputs, 1)),
        (((boxes + boxes_per_split) * box_pixels, 1),),
    )
    even = not tile.consecutive and N % tile.box_n == P % tile.box_p == Q % tile.box_q == 0
    window = spec.compiled(kernel_size, wide=wide, pool=pool, even=even, precision=precision, group=GROUP)
    numbers = *shape.sides, group_inputs, group_outputs, *((1, group_inputs) if channels_last else (taps, 1))
    grid = tiles, splits, spec.groups
    options = {"WINDOW": window, "TILE": tile, "num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if tile.consecutive:
        kernel, run = convolution_weight_gradient_runs_kernel, boxes_per_split * box_pixels
        problem = Problem(kernel, grid, pixels, *numbers, run, ACTIVATION=activation.compiled, **options)
    else:
        kernel = convolution_weight_gradient_boxes_kernel
        problem = Problem(kernel, grid, N, *numbers, boxes, boxes_per_split, **options)
    weight_shape = (*kernel_size, group_inputs) if channels_last else (group_inputs, *kernel_size)
    return problem, (splits, K, *weight_shape)


def convolution_weight_gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    spec: ConvolutionSpec,
    kernel_size: Pair,
    *,
    channels_last: bool,
    dtype: torch.dtype | None = None,
    saved: torch.Tensor | None = None,
    argmax: torch.Tensor | None = None,
    activation: Activation | None = None,
    want_bias: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dW [K, C / groups, R, S] in `dtype` (None: x's), from dZ or, where `takes_output_gradient`, dY.

    Args:
        dy: dZ or, with `activation`, dY [N, K, P, Q], channels_last; with `argmax` dY of [N, K, P // 2, Q // 2].
        x: [N, C, H, W], channels_last.
        spec: stride, padding, dilation, groups.
        kernel_size: (R, S).
        channels_last: whether dW is; contiguous otherwise.
        saved: y or z in dY's shape, channels_last, as `activation.reads_output` says; None for dZ.
        argmax: the tap that each 2 x 2 window passed on, int8 in dY's shape, channels_last; None without pooling.
        activation: the fused function, where `dy` is dY.
        want_bias: whether to compute db from dY.

    Returns:
        dW, and db [K] in fp32 or None.
    """
    K, C = dy.shape[1], x.shape[1]
    if activation is None and spec.is_pointwise(kernel_size):
        dw = linear_weight_gradient(as_rows(dy), as_rows(x), dtype)
        return dw.view(K, 1, 1, C).permute(0, 3, 1, 2) if channels_last else dw.view(K, C, 1, 1), None
    if activation is None and C == spec.groups > 1:
        dw = depthwise_weight_gradient(dy, x, spec, kernel_size, dtype)
        return dw.view(K, *kernel_size, 1).permute(0, 3, 1, 2) if channels_last else dw, None
    target = current_target()
    problem, shape = _weight_gradient_problem(
        x.shape,
        K,
        argmax is not None,
        x.dtype,
        convolution_precision(x.dtype, target),
        spec,
        kernel_size,
        IDENTITY if activation is None else activation,
        channels_last,
        target,
    )
    dtype = x.dtype if dtype is None else dtype
    dw = torch.empty(shape, dtype=dtype if shape[0] == 1 else torch.float32, device=x.device)
    db = torch.empty(shape[:2], dtype=torch.float32, device=x.device) if want_bias else None
    if problem.kernel is convolution_weight_gradient_runs_kernel:
        problem.launch(x, dy, saved, argmax, dw, db)
    else:
        problem.launch(x, dy, dw)
    summed = dw[0] if shape[0] == 1 else sum_partials(dw, dtype)
    return summed.permute(0, 3, 1, 2) if channels_last else summed, None if db is None else sum_partials(db)

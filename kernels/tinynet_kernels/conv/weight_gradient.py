"""Weight gradient of a convolution, from dZ = dY act' (`activation.activation_backward`).

    dW[k, c, t, r, s] = sum over n, o, p, q of dZ[n, k, o, p, q] x[n, c, o stride + t dilation - padding, p ..., q ...]

A matrix product whose reduction runs over all pixels, split over programs into an fp32 workspace that is added in a
fixed order. Two kernels, by what one step of the reduction is:

    boxes   (images, rows, columns) of pixels: only the box's corner moves, and of planes nothing is divided in the
            loop; the planes of volumes are taken one by one
    runs    consecutive pixels of memory: on a CPU, where a division costs little beside a product and distant pixels
            cost cache. Where x has few channels, these read dY and compute dZ and its sums, the bias gradient, too.

All tensors but dW are channels_last. Depthwise convolutions are in `depthwise`, those in thin groups on a CPU in
`grouped_weight_gradient.py`, of images with few channels on a CPU in `patches_weight_gradient.py`.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.launch import depthwise_weight_gradient_problem
from tinynet_kernels.conv.grouped import multiplies_groups
from tinynet_kernels.conv.grouped_weight_gradient import groups_weight_gradient_problem
from tinynet_kernels.conv.patches import multiplies_patches, padded_image
from tinynet_kernels.conv.patches_weight_gradient import (
    convolution_patches_weight_gradient_kernel,
    patches_weight_gradient_problem,
)
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes, weights_in
from tinynet_kernels.conv.tiles import (
    FEW_CHANNELS,
    convolution_precision,
    convolution_weight_splits,
    convolution_weight_tile,
)
from tinynet_kernels.conv.window import (
    box_position,
    inside,
    next_box,
    offset_in,
    output_position,
    pixel_gradients,
    pixel_position,
)
from tinynet_kernels.conv.winograd.check import is_right
from tinynet_kernels.conv.winograd.tiles import asks_for_full_precision, is_eligible, winograd_weight_tile
from tinynet_kernels.conv.winograd.weight_gradient import WinogradWeightGradient, winograd_weight_gradient
from tinynet_kernels.gemm import GROUP, grouped_tile
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.linear import linear_weight_gradient_kernel, linear_weight_gradient_problem
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.operand_layout import channels_last_strides, contiguous_strides
from tinynet_kernels.reduction import sum_partials, sum_two
from tinynet_kernels.tiles import Target, ceil_div, current_target, matmul_precision


class WeightTile(NamedTuple):
    """A program's tile of dW within a kernel. Rows are output channels of its group.

    Attributes:
        row_start: the first of its rows.
        is_first: whether no tile of the same rows comes before it.
        tap: of each of its columns, or of all; (tap_d, tap_h, tap_w) pixels behind, below and beside the first.
        channel: of each of its columns, within the group.
        columns_left: how many columns there are from its first to the last.
    """

    row_start: Any
    is_first: Any
    tap: Any
    tap_d: Any
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
    TAPS: constexpr = WINDOW.T * WINDOW.R * WINDOW.S
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
    t, r, s = pixel_position(tap, WINDOW.R, WINDOW.S)
    tap_d = t * WINDOW.dilation_d
    tap_h = r * WINDOW.dilation_h
    tap_w = s * WINDOW.dilation_w
    return WeightTile(row_tile * TILE.block_rows, column_tile == 0, tap, tap_d, tap_h, tap_w, channel, columns_left)


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
def in_image(d, h, w, D, H, W, tile, WINDOW: constexpr, TILE: constexpr):
    """Whether the taps of a tile lie in the image for windows that begin at (d, h, w): [PIXELS, COLUMNS or 1]."""
    if TILE.flat or TILE.taps > 1:
        valid = inside(h[:, None] + tile.tap_h[None, :], H) & inside(w[:, None] + tile.tap_w[None, :], W)
        if WINDOW.volume:
            valid = valid & inside(tl.expand_dims(d, 1) + tile.tap_d[None, :], D)
        return valid
    else:
        valid = inside(h + tile.tap_h, H) & inside(w + tile.tap_w, W)
        if WINDOW.volume:
            valid = valid & inside(d + tile.tap_d, D)
        return valid[:, None]


@triton.jit
def offset_of_taps(tile, H, W, C, WINDOW: constexpr):
    """The elements of x from a window's first tap to each column's of a tile."""
    pixels = tile.tap_h * W + tile.tap_w
    if WINDOW.volume:
        pixels += tile.tap_d * H * W
    return pixels * C + tile.channel


@triton.jit
def convolution_weight_gradient_boxes_kernel(
    x_ptr,
    dz_ptr,
    dw_ptr,
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
    x_offset += offset_of_taps(tile, H, W, C, WINDOW)[None, :]
    first_box = split * boxes_per_split
    n, p, q = box_position(first_box, P, Q, TILE)
    dw = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(first_box, min(first_box + boxes_per_split, boxes)):
        h = p * WINDOW.stride_h - WINDOW.padding_h
        w = q * WINDOW.stride_w - WINDOW.padding_w
        d = 0
        plane = n.to(tl.int64)
        if WINDOW.volume:
            d = n % Z * WINDOW.stride_d - WINDOW.padding_d
            plane = (n // Z).to(tl.int64) * D + d
            d = tl.zeros_like(row) + d
        valid = in_image(d, h + row * WINDOW.stride_h, w + along * WINDOW.stride_w, D, H, W, tile, WINDOW, TILE)
        dz_base = dz_group + ((n.to(tl.int64) * P + p) * Q + q) * K
        x_base = x_group + ((plane * H + h) * W + w) * C
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
    weights = WINDOW.T * WINDOW.R * WINDOW.S * group_inputs
    store_weights(dw, dw_ptr, channel, tile, stride_dw_channel, stride_dw_tap, weights, group_outputs)


@triton.jit
def convolution_weight_gradient_runs_kernel(
    x_ptr,
    dz_ptr,
    saved_ptr,
    argmax_ptr,
    dw_ptr,
    db_ptr,
    pixels,
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
    x_offset = offset_of_taps(tile, H, W, C, WINDOW)
    x_offset -= offset_in(0, WINDOW.padding_d, WINDOW.padding_h, WINDOW.padding_w, D, H, W, WINDOW) * C
    dw = tl.zeros((ROWS, COLUMNS), tl.float32)
    transposed = tl.zeros((COLUMNS, ROWS), tl.float32)  # the longer side of flat tiles in vectors
    db = tl.zeros((ROWS,), tl.float32)
    first_pixel = split * pixels_per_split
    for start in range(first_pixel, min(first_pixel + pixels_per_split, pixels), BLOCK_PIXELS):
        image, o, p, q = output_position(start + pixel, Z, P, Q, WINDOW)
        d = o * WINDOW.stride_d - WINDOW.padding_d
        h = p * WINDOW.stride_h - WINDOW.padding_h
        w = q * WINDOW.stride_w - WINDOW.padding_w
        in_output = pixel < pixels - start
        valid = in_output[:, None] & in_image(d, h, w, D, H, W, tile, WINDOW, TILE)
        first = o * WINDOW.stride_d, p * WINDOW.stride_h, q * WINDOW.stride_w
        pixel_in_x = offset_in(image.to(tl.int64), first[0], first[1], first[2], D, H, W, WINDOW)
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
    weights = WINDOW.T * WINDOW.R * WINDOW.S * group_inputs
    store_weights(dw, dw_ptr, channel, tile, stride_dw_channel, stride_dw_tap, weights, group_outputs)


@costs(convolution_weight_gradient_boxes_kernel)
@costs(convolution_weight_gradient_runs_kernel)
def convolution_weight_gradient_cost(
    x_ptr: torch.Tensor, dw_ptr: torch.Tensor, D: int, H: int, W: int, Z: int, P: int, Q: int, **others: Any
) -> Cost:
    """2 N Z P Q K T R S C / groups operations; x, dZ and its sources read, every split of dW and db written."""
    images = x_ptr.numel() // (x_ptr.shape[1] * D * H * W)
    flops = 2 * images * Z * P * Q * weights_in(dw_ptr)
    return Cost(flops, size_in_bytes(x_ptr, dw_ptr, *others.values()))


def takes_output_gradient(x: torch.Tensor, spec: ConvolutionSpec) -> bool:
    """Whether `convolution_weight_gradient` computes dZ from dY itself: where x has few channels, on a CPU."""
    return current_target().kind == "cpu" and spec.groups == 1 and x.shape[1] < FEW_CHANNELS


def convolution_weight_gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    *,
    channels_last: bool,
    dtype: torch.dtype | None = None,
    saved: torch.Tensor | None = None,
    argmax: torch.Tensor | None = None,
    activation: Activation | None = None,
    want_bias: bool = False,
    bias_parts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dW [K, C / groups, *kernel size] in `dtype` (None: x's), from dZ or, where `takes_output_gradient`, dY.

    Args:
        dy: dZ or, with `activation`, dY [N, K, *sizes], channels_last; with `argmax` dY of [N, K, P // 2, Q // 2].
        x: [N, C, *sizes], channels_last.
        spec: stride, padding, dilation, groups; of one to three spatial axes, as the tensors.
        kernel_size: of as many axes.
        channels_last: whether dW is; contiguous otherwise.
        saved: y or z in dY's shape, channels_last, as `activation.reads_output` says; None for dZ.
        argmax: the tap that each 2 x 2 window passed on, int8 in dY's shape, channels_last; None without pooling.
        activation: the fused function, where `dy` is dY.
        want_bias: whether to compute db from dY.
        bias_parts: partial sums of db, fp32 [parts, K], to be added in the launch that adds those of dW; None for none.

    Returns:
        dW, and db [K] in fp32 or None: also where dW has no partial sums, which leaves `bias_parts` as they are.
    """
    target = current_target()
    precisions = matmul_precision(x.dtype, target), convolution_precision(x.dtype, target)
    gradient = _weight_gradient(
        *(x.shape, dy.shape, argmax is not None, x.dtype, precisions),
        *(spec, tuple(kernel_size), activation, channels_last, target),
    )
    dw = x.new_empty_strided(gradient.shape, gradient.stride, dtype=dtype)
    if gradient.is_eligible:
        exact = asks_for_full_precision()
        winograd = _winograd_problem(x.shape, dy.shape, x.dtype, spec, channels_last, exact, target)
        if winograd is not None:
            parts = _parts_of(dw, winograd.splits)
            infinite = winograd.launch(x, dy, parts)
            if parts is not dw:
                sum_partials(parts, out=dw)
            if is_right(infinite, partial(_compute_again, gradient, spec), x, dy, dw):
                return dw, None
    parts = _parts_of(dw, gradient.splits)
    db = x.new_empty((gradient.splits, dw.shape[0]), dtype=torch.float32) if want_bias else None
    _launch(gradient, spec, x, dy, saved, argmax, parts, db)
    bias_parts = db if bias_parts is None else bias_parts
    if parts is dw:
        return dw, None if db is None else db.view(-1)
    if bias_parts is None:
        return sum_partials(parts, out=dw), None
    return sum_two(parts, bias_parts, out=dw)


def _parts_of(dw: torch.Tensor, splits: int) -> torch.Tensor:
    """Room for what the splits compute: dW itself where there is one, else fp32 [splits, weights]."""
    return dw if splits == 1 else dw.new_empty((splits, dw.numel()), dtype=torch.float32)


def _launch(
    gradient: WeightGradient,
    spec: ConvolutionSpec,
    x: torch.Tensor,
    dy: torch.Tensor,
    saved: torch.Tensor | None,
    argmax: torch.Tensor | None,
    parts: torch.Tensor,
    db: torch.Tensor | None,
) -> None:
    """Runs the problem, whose kernels take different tensors."""
    problem = gradient.problem
    if problem.kernel is linear_weight_gradient_kernel:
        problem.launch(dy, x, parts)
    elif problem.kernel is convolution_patches_weight_gradient_kernel:
        problem.launch(padded_image(x, gradient.shape[2:], spec), dy, saved, argmax, parts, db)
    elif problem.kernel is convolution_weight_gradient_runs_kernel:
        problem.launch(x, dy, saved, argmax, parts, db)
    else:
        problem.launch(x, dy, parts)


def _compute_again(
    gradient: WeightGradient, spec: ConvolutionSpec, x: torch.Tensor, dz: torch.Tensor, dw: torch.Tensor
) -> None:
    """Writes to dW what the definition gives."""
    parts = _parts_of(dw, gradient.splits)
    _launch(gradient, spec, x, dz, None, None, parts, None)
    if parts is not dw:
        sum_partials(parts, out=dw)


class WeightGradient(NamedTuple):
    """A weight gradient without its tensors.

    Attributes:
        shape, stride: of dW.
        problem: the launch by the definition.
        splits: of the pixels, each with a result of its own.
        is_eligible: whether Winograd's algorithm can compute the same.
    """

    shape: Shape
    stride: Shape
    problem: Problem
    splits: int
    is_eligible: bool = False


@lru_cache(maxsize=4096)
def _weight_gradient(
    x_shape: Shape,
    dy_shape: Shape,
    pool: bool,
    dtype: torch.dtype,
    precisions: tuple[str, str],
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    activation: Activation | None,
    channels_last: bool,
    target: Target,
) -> WeightGradient:
    """The `WeightGradient` of channels_last operands; `precisions` are those of linear layers and of convolutions."""
    (N, C, *_), K = x_shape, dy_shape[1]
    shape = K, C // spec.groups, *kernel_size
    stride = channels_last_strides(shape) if channels_last else contiguous_strides(shape)
    of_dz, eligible = activation is None, False
    operands = x_shape, dy_shape, dtype, spec, kernel_size
    if of_dz and spec.is_pointwise(kernel_size):
        sizes = N * math.prod(dy_shape[2:]), K, C
        problem = linear_weight_gradient_problem(sizes, (K, 1), (C, 1), dtype, precisions[0], False, target)
        splits = problem.grid[1]
    elif of_dz and C == spec.groups > 1:
        problem, splits = depthwise_weight_gradient_problem(*operands, target)
    elif of_dz and multiplies_groups(C, K, spec.groups, target):
        problem, splits = groups_weight_gradient_problem(*operands, channels_last, target)
    else:
        eligible = of_dz and is_eligible(spec, kernel_size, target)
        problem, splits = _problem(
            *(x_shape, dy_shape, pool, dtype, precisions[1], spec, kernel_size),
            *(activation or IDENTITY, channels_last, target),
        )
    return WeightGradient(shape, stride, problem, splits, eligible)


def _problem(
    x_shape: Shape,
    dy_shape: Shape,
    pool: bool,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    activation: Activation,
    channels_last: bool,
    target: Target,
) -> tuple[Problem, int]:
    """The launch, and its splits."""
    output = (*dy_shape[:2], *spec.output_size(x_shape[2:], kernel_size)) if pool else dy_shape
    shape, spec, kernel_size = ConvolutionShape.of(x_shape, output, kernel_size, spec)
    if multiplies_patches(shape.C, kernel_size, spec, target):
        return patches_weight_gradient_problem(
            shape, spec, kernel_size, pool, dtype, precision, activation, channels_last, target
        )
    group_inputs, group_outputs, taps = shape.group_inputs, shape.group_outputs, shape.taps
    planes, pixels = shape.N * shape.Z, shape.pixels(pool)
    tile = convolution_weight_tile(shape, len(kernel_size) == 3, dtype, precision, target)
    box_pixels = tile.box_n * tile.box_p * tile.box_q
    if tile.consecutive:
        boxes = ceil_div(pixels, box_pixels)
    else:
        boxes = ceil_div(planes, tile.box_n) * ceil_div(shape.P, tile.box_p) * ceil_div(shape.Q, tile.box_q)
    if tile.flat:
        column_tiles = ceil_div(taps * group_inputs, tile.block_columns)
    else:
        column_tiles = ceil_div(taps, tile.taps) * ceil_div(group_inputs, tile.block_columns // tile.taps)
    tiles = ceil_div(group_outputs, tile.block_rows) * column_tiles
    box_bytes = box_pixels * (group_inputs + group_outputs) * dtype.itemsize
    boxes_per_split = ceil_div(boxes, convolution_weight_splits(tiles * spec.groups, boxes, box_bytes, target))
    splits = ceil_div(boxes, boxes_per_split)
    wide = exceed_int32(
        ((tile.box_n + 1, shape.image_elements),),
        ((box_pixels, shape.K), (tile.block_rows, 1)),
        ((tile.block_rows, taps * group_inputs), (taps * group_inputs, 1)),
        (((boxes + boxes_per_split) * box_pixels, 1),),
    )
    even = not tile.consecutive and planes % tile.box_n == shape.P % tile.box_p == shape.Q % tile.box_q == 0
    window = spec.compiled(kernel_size, wide=wide, pool=pool, even=even, precision=precision, group=GROUP)
    numbers = *shape.sides, group_inputs, group_outputs, *((1, group_inputs) if channels_last else (taps, 1))
    grid = tiles, splits, spec.groups
    options = {"WINDOW": window, "TILE": tile, "num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if tile.consecutive:
        kernel, run = convolution_weight_gradient_runs_kernel, boxes_per_split * box_pixels
        return Problem(kernel, grid, pixels, *numbers, run, ACTIVATION=activation.compiled, **options), splits
    kernel = convolution_weight_gradient_boxes_kernel
    return Problem(kernel, grid, planes, *numbers, boxes, boxes_per_split, **options), splits


@lru_cache(maxsize=4096)
def _winograd_problem(
    x_shape: Shape,
    dz_shape: Shape,
    dtype: torch.dtype,
    spec: ConvolutionSpec,
    channels_last: bool,
    exact: bool,
    target: Target,
) -> WinogradWeightGradient | None:
    shape = ConvolutionShape.of(x_shape, dz_shape, (3, 3), spec)[0]
    tile = winograd_weight_tile(shape, dtype, exact, target)
    return None if tile is None else winograd_weight_gradient(shape, spec.padding, tile, channels_last, target)

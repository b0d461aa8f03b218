"""All weight and bias gradients of a recurrent layer in one launch, after the loop over time.

    dW_ih = d_input^T X     dW_hh = d_hidden^T H_previous     dW_hr = d_output^T unprojected
    db_ih, db_hh = sums of d_input and d_hidden over the rows; dW_hh and dW_hr are a product a direction

The outputs are small and the R rows many, so the reduction is split over programs: split s leaves its share of every
gradient, one after another, in row s of a workspace, and the rows are added in a fixed order. A program makes one tile
of one gradient; which one, its number tells.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import GROUP, UNIT, Matrix, Product, gemm_tile, has_wide_rows, is_wide_product, tile_start
from tinynet_kernels.launch import Cost, costs, launch, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import (
    ceil_div,
    current_target,
    every_register,
    fit_stages,
    linear_tile,
    matmul_precision,
    split_count,
)


@triton.jit
def weight_tile(d_gates, x, out_ptr, program, first_row, last_row, N, K, PRODUCT: constexpr, TILE: constexpr):
    """One [block_m, block_n] tile of d_gates^T x over rows [first_row, last_row); out [N, K].

    `d_gates`, transposed, and `x` are of type `Matrix`.
    """
    row_start, column_start = tile_start(program, N, K, PRODUCT, TILE)
    acc = gemm_tile(d_gates, x, row_start, column_start, first_row, last_row, N, K, PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    mask = (row < N - row_start)[:, None] & (column < K - column_start)[None, :]
    out = out_ptr + row_start.to(tl.int64) * K + column_start
    tl.store(out + row[:, None] * K + column[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_tile(d_gates_ptr, tile, first_row, last_row, N, BLOCK_N: constexpr, BLOCK_R: constexpr):
    """(BLOCK_N columns, their sums) of d_gates [R, N] over rows [first_row, last_row)."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_R)
    offset = row[:, None] * N + column[None, :]
    base = d_gates_ptr + tl.cast(first_row, tl.int64) * N
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first_row, last_row, BLOCK_R):
        mask = (row < last_row - start)[:, None] & (column < N)[None, :]
        total += tl.sum(tl.load(base + offset, mask=mask, other=0.0).to(tl.float32), axis=0)
        base += tl.cast(N, tl.int64) * BLOCK_R
    return column, total


@triton.jit
def recurrent_weight_gradient_kernel(
    d_gates_ptr,
    d_apart_ptr,
    x_ptr,
    previous_ptr,
    d_output_ptr,
    unprojected_ptr,
    out_ptr,
    R,
    inputs,
    hidden,
    outputs,
    gates,
    directions,
    apart,
    elements,
    rows_a_split,
    hidden_start,
    projection_start,
    input_tiles,
    hidden_tiles,
    shared_tiles,
    all_hidden_tiles,
    projection_tiles,
    all_projection_tiles,
    stride_xr,
    stride_xi,
    PRODUCT: constexpr,
    TILE: constexpr,
):
    """One tile of one gradient over one split's rows; out [SPLIT, elements].

    d_gates [R, D, gates] is d_input, and d_hidden but for the last `apart` of each direction's `gates`:
    these are d_apart [R, D, apart]. x [R, inputs], previous [R, D, outputs]; with a projection d_output [R, D, outputs]
    and unprojected [R, D, hidden]. Programs make `input_tiles` tiles of dW_ih, then a direction `hidden_tiles` of
    dW_hh, the first `shared_tiles` from d_gates, and `projection_tiles` of dW_hr, then column blocks of db_ih and
    db_hh. The gradients lie in that order in `out`, dW_hh and dW_hr from their `_start`.
    """
    WIDE: constexpr = PRODUCT.wide
    BLOCK_N: constexpr = TILE.block_m
    BLOCK_R: constexpr = TILE.block_k
    R = widened(R, WIDE)
    inputs = widened(inputs, WIDE)
    rows_a_split = widened(rows_a_split, WIDE)
    stride_xr = widened(stride_xr, WIDE)
    stride_xi = widened(stride_xi, WIDE)
    program = tl.program_id(0)
    split = tl.program_id(1)
    first_row = split * rows_a_split
    last_row = min(first_row + rows_a_split, R)
    width = directions * gates
    out = out_ptr + split.to(tl.int64) * elements
    bias_program = program - input_tiles - all_hidden_tiles - all_projection_tiles
    if program < input_tiles:
        d_gates = Matrix(d_gates_ptr, 1, width)
        x = Matrix(x_ptr, stride_xr, stride_xi)
        weight_tile(d_gates, x, out, program, first_row, last_row, width, inputs, PRODUCT, TILE)
    elif program < input_tiles + all_hidden_tiles:
        tile = program - input_tiles
        direction = tile // hidden_tiles
        tile %= hidden_tiles
        hidden_out = out + hidden_start + direction.to(tl.int64) * gates * outputs
        previous = Matrix(previous_ptr + direction * outputs, directions * outputs, 1)
        if tile < shared_tiles:
            d_shared = Matrix(d_gates_ptr + direction * gates, 1, width)
            weight_tile(
                d_shared, previous, hidden_out, tile, first_row, last_row, gates - apart, outputs, PRODUCT, TILE
            )
        elif d_apart_ptr is not None:
            d_apart = Matrix(d_apart_ptr + direction * apart, 1, directions * apart)
            apart_out = hidden_out + tl.cast(gates - apart, tl.int64) * outputs
            tile -= shared_tiles
            weight_tile(d_apart, previous, apart_out, tile, first_row, last_row, apart, outputs, PRODUCT, TILE)
    elif bias_program < 0:
        if d_output_ptr is not None:
            tile = program - input_tiles - all_hidden_tiles
            direction = tile // projection_tiles
            tile %= projection_tiles
            d_output = Matrix(d_output_ptr + direction * outputs, 1, directions * outputs)
            unprojected = Matrix(unprojected_ptr + direction * hidden, directions * hidden, 1)
            projection_out = out + projection_start + direction.to(tl.int64) * outputs * hidden
            weight_tile(
                d_output, unprojected, projection_out, tile, first_row, last_row, outputs, hidden, PRODUCT, TILE
            )
    else:
        input_bias = out + elements - 2 * width
        hidden_bias = input_bias + width
        blocks = tl.cdiv(width, BLOCK_N)
        if bias_program < blocks:
            column, total = bias_tile(d_gates_ptr, bias_program, first_row, last_row, width, BLOCK_N, BLOCK_R)
            total = total.to(out_ptr.dtype.element_ty)
            shared = column < width
            tl.store(input_bias + column, total, mask=shared)
            if d_apart_ptr is not None:
                shared = shared & (column % gates < gates - apart)
            tl.store(hidden_bias + column, total, mask=shared)
        elif d_apart_ptr is not None:
            columns = directions * apart
            tile = bias_program - blocks
            column, total = bias_tile(d_apart_ptr, tile, first_row, last_row, columns, BLOCK_N, BLOCK_R)
            total = total.to(out_ptr.dtype.element_ty)
            place = column // apart * gates + gates - apart + column % apart
            tl.store(hidden_bias + place, total, mask=column < columns)


@costs(recurrent_weight_gradient_kernel)
def recurrent_weight_gradient_cost(
    d_gates_ptr: Tensor,
    d_apart_ptr: Tensor | None,
    x_ptr: Tensor,
    previous_ptr: Tensor,
    d_output_ptr: Tensor | None,
    unprojected_ptr: Tensor | None,
    out_ptr: Tensor,
    R: int,
    **_: Any,
) -> Cost:
    """Two operations a row and gradient; operands read once, every split's gradients written."""
    operands = (d_gates_ptr, d_apart_ptr, x_ptr, previous_ptr, d_output_ptr, unprojected_ptr)
    return Cost(2 * R * out_ptr.shape[1], size_in_bytes(*operands, out_ptr))


class WeightGradients(NamedTuple):
    """Gradients of a layer's parameters, None where not wanted: parts of one buffer.

    Attributes:
        input: dW_ih [D gates, I].
        hidden: dW_hh [D, gates, P].
        projection: dW_hr [D, P, H].
        input_bias: db_ih [D gates].
        hidden_bias: db_hh [D gates].
    """

    input: Tensor | None
    hidden: Tensor | None
    projection: Tensor | None
    input_bias: Tensor | None
    hidden_bias: Tensor | None


def recurrent_weight_gradients(
    d_gates: Tensor,
    d_apart: Tensor | None,
    x: Tensor,
    previous: Tensor,
    d_output: Tensor | None,
    unprojected: Tensor | None,
    *,
    want_input: bool,
    want_hidden: bool,
    want_projection: bool,
    want_bias: bool,
) -> WeightGradients:
    """The gradients that are wanted, at least one, in x's dtype.

    Args:
        d_gates: d_input [R, D gates], contiguous.
        d_apart: the last columns of each direction's d_hidden [R, D apart], contiguous; the others are d_input's. None
            where all are.
        x: [R, I], any strides.
        previous: h before each step [R, D, P], contiguous.
        d_output: gradient of the projected h [R, D, P], contiguous, or None without a projection.
        unprojected: h before the projection [R, D, H], contiguous, or None.
        want_input: whether to make dW_ih.
        want_hidden: whether to make dW_hh.
        want_projection: whether to make dW_hr.
        want_bias: whether to make db_ih and db_hh.
    """
    R, width = d_gates.shape
    inputs = x.shape[1]
    _, D, outputs = previous.shape
    gates, apart = width // D, 0 if d_apart is None else d_apart.shape[1] // D
    hidden = 0 if unprojected is None else unprojected.shape[2]
    shapes = (
        (width, inputs) if want_input else (0,),
        (D, gates, outputs) if want_hidden else (0,),
        (D, outputs, hidden) if want_projection else (0,),
        (width if want_bias else 0,),
        (width if want_bias else 0,),
    )
    sizes = [math.prod(shape) for shape in shapes]
    target = current_target()
    precision = matmul_precision(x.dtype, target)
    aligned = has_wide_rows(x.stride()) and all(size % UNIT == 0 for size in (gates, apart, outputs, hidden))
    # Several products in one kernel need as many registers beside the accumulator as an activation does.
    tile = linear_tile(gates, max(inputs, outputs), R, x.dtype, precision, aligned, "gelu", target)
    if want_projection and target.kind == "cuda":  # the third product gets a stage of shared memory of its own
        stage = (tile.block_m + tile.block_n) * tile.block_k * x.element_size()
        tile = fit_stages(tile, x.dtype, target._replace(shared_memory=target.shared_memory - stage))

    def tiles_of(wanted: bool, rows: int, columns: int) -> int:
        return ceil_div(rows, tile.block_m) * ceil_div(columns, tile.block_n) if wanted else 0

    input_tiles = tiles_of(want_input, width, inputs)
    shared_tiles = tiles_of(want_hidden, gates - apart, outputs)
    hidden_tiles = shared_tiles + tiles_of(want_hidden, apart, outputs)
    projection_tiles = tiles_of(want_projection, outputs, hidden)
    bias_tiles = ceil_div(width, tile.block_m) + ceil_div(D * apart, tile.block_m) if want_bias else 0
    tiles = input_tiles + D * (hidden_tiles + projection_tiles) + bias_tiles
    steps = ceil_div(R, tile.block_k)
    rows_a_split = ceil_div(steps, split_count(tiles, steps, target)) * tile.block_k
    splits = ceil_div(R, rows_a_split)
    wide = is_wide_product(width, inputs, R, tile, (1, width), x.stride()[::-1])
    blackwell = target.architecture in (100, 103, 120)  # where this kernel spilled; elsewhere a limit costs the loop
    dtype = x.dtype if splits == 1 else torch.float32
    partial = torch.empty((splits, sum(sizes)), dtype=dtype, device=x.device)
    launch(
        recurrent_weight_gradient_kernel,
        (tiles, splits),
        d_gates,
        d_apart,
        x,
        previous,
        d_output if want_projection else None,
        unprojected if want_projection else None,
        partial,
        R,
        inputs,
        hidden,
        outputs,
        gates,
        D,
        apart,
        partial.shape[1],
        rows_a_split,
        sizes[0],
        sizes[0] + sizes[1],
        input_tiles,
        max(hidden_tiles, 1),
        shared_tiles,
        D * hidden_tiles,
        max(projection_tiles, 1),
        D * projection_tiles,
        *x.stride(),
        PRODUCT=Product(precision, R % tile.block_k == 0, wide, GROUP),
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **(every_register(tile.block_m, precision, target) if blackwell else {}),
    )
    made = partial[0] if splits == 1 else sum_partials(partial, x.dtype)
    wanted = (want_input, want_hidden, want_projection, want_bias, want_bias)
    made = zip(made.split(sizes), shapes, wanted, strict=True)
    return WeightGradients(*(part.view(shape) if want else None for part, shape, want in made))

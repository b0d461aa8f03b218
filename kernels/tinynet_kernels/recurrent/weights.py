"""All weight and bias gradients of a recurrent layer in one launch, after the loop over time.

    dW_ih = d_input^T X     dW_hh = d_hidden^T H_previous     dW_hr = d_output^T unprojected
    db_ih, db_hh = sums of d_input and d_hidden over the rows; dW_hh and dW_hr are one product per direction

The outputs are small and the R rows many, so the reduction is split over programs: split s leaves its share of every
gradient, one after another, in row s of a workspace, and the rows are added in a fixed order. A program computes one
tile of one gradient; which one follows from its number and the sizes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import GROUP, UNIT, Matrix, Product, gemm_tile, has_wide_rows, is_wide_product, tile_start
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.recurrent.spec import BackwardBuffers, Wanted
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import (
    Target,
    ceil_div,
    current_target,
    every_register,
    fit_stages,
    linear_tile,
    matmul_precision,
    split_count,
)


@triton.jit
def tiles_of(N, K, TILE: constexpr):
    """How many tiles an [N, K] gradient takes."""
    return tl.cdiv(N, TILE.block_m) * tl.cdiv(K, TILE.block_n)


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
def bias_tile(d_gates_ptr, tile, first_row, last_row, N, TILE: constexpr):
    """(block_m columns, their sums) of d_gates [R, N] over rows [first_row, last_row)."""
    COLUMNS: constexpr = TILE.block_m
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, TILE.block_k)
    offset = row[:, None] * N + column[None, :]
    base = d_gates_ptr + tl.cast(first_row, tl.int64) * N
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first_row, last_row, TILE.block_k):
        mask = (row < last_row - start)[:, None] & (column < N)[None, :]
        total += tl.sum(tl.load(base + offset, mask=mask, other=0.0).to(tl.float32), axis=0)
        base += tl.cast(N, tl.int64) * TILE.block_k
    return column, total


@triton.jit
def recurrent_weight_gradient_kernel(
    d_gates_ptr,
    d_hidden_ptr,
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
    hidden_gates,
    directions,
    elements,
    rows_per_split,
    stride_xr,
    stride_xi,
    PRODUCT: constexpr,
    TILE: constexpr,
):
    """One tile of one gradient over one split's rows; out [SPLIT, elements].

    d_gates [R, D, gates] is d_input, and d_hidden but for the last `hidden_gates` of each direction's `gates`: these
    are d_hidden [R, D, hidden_gates]. x [R, inputs], previous [R, D, outputs]; with a projection d_output
    [R, D, outputs] and unprojected [R, D, hidden]. An operand is None where its gradient is not wanted. The gradients
    lie in `out` in the order in which programs compute them: dW_ih, dW_hh of each direction, dW_hr of each direction,
    db_ih, db_hh.
    """
    WIDE: constexpr = PRODUCT.wide
    R = widened(R, WIDE)
    inputs = widened(inputs, WIDE)
    rows_per_split = widened(rows_per_split, WIDE)
    stride_xr = widened(stride_xr, WIDE)
    stride_xi = widened(stride_xi, WIDE)
    program = tl.program_id(0)
    first_row = tl.program_id(1) * rows_per_split
    last_row = min(first_row + rows_per_split, R)
    width = directions * gates
    out = out_ptr + tl.program_id(1).to(tl.int64) * elements
    input_elements = tl.cast(width, tl.int64) * inputs if x_ptr is not None else 0
    hidden_elements = tl.cast(width, tl.int64) * outputs if previous_ptr is not None else 0
    shared_gates = gates - hidden_gates
    input_tiles = tiles_of(width, inputs, TILE) if x_ptr is not None else 0
    shared_tiles = tiles_of(shared_gates, outputs, TILE)
    hidden_tiles = shared_tiles + tiles_of(hidden_gates, outputs, TILE)
    all_hidden_tiles = directions * hidden_tiles if previous_ptr is not None else 0
    projection_tiles = tiles_of(outputs, hidden, TILE)
    all_projection_tiles = directions * projection_tiles if unprojected_ptr is not None else 0
    hidden_program = program - input_tiles
    projection_program = hidden_program - all_hidden_tiles
    bias_program = projection_program - all_projection_tiles
    if hidden_program < 0:
        if x_ptr is not None:
            d_gates = Matrix(d_gates_ptr, 1, width)
            x = Matrix(x_ptr, stride_xr, stride_xi)
            weight_tile(d_gates, x, out, program, first_row, last_row, width, inputs, PRODUCT, TILE)
    elif projection_program < 0:
        if previous_ptr is not None:
            direction = hidden_program // hidden_tiles
            tile = hidden_program % hidden_tiles
            previous = Matrix(previous_ptr + direction * outputs, directions * outputs, 1)
            start = out + input_elements + direction.to(tl.int64) * gates * outputs
            if tile < shared_tiles:
                d_shared = Matrix(d_gates_ptr + direction * gates, 1, width)
                weight_tile(d_shared, previous, start, tile, first_row, last_row, shared_gates, outputs, PRODUCT, TILE)
            elif d_hidden_ptr is not None:
                tile -= shared_tiles
                start += tl.cast(shared_gates, tl.int64) * outputs
                own = Matrix(d_hidden_ptr + direction * hidden_gates, 1, directions * hidden_gates)
                weight_tile(own, previous, start, tile, first_row, last_row, hidden_gates, outputs, PRODUCT, TILE)
    elif bias_program < 0:
        if unprojected_ptr is not None:
            direction = projection_program // projection_tiles
            tile = projection_program % projection_tiles
            d_output = Matrix(d_output_ptr + direction * outputs, 1, directions * outputs)
            unprojected = Matrix(unprojected_ptr + direction * hidden, directions * hidden, 1)
            start = out + input_elements + hidden_elements + direction.to(tl.int64) * outputs * hidden
            weight_tile(d_output, unprojected, start, tile, first_row, last_row, outputs, hidden, PRODUCT, TILE)
    else:
        input_bias = out + elements - 2 * width
        blocks = tl.cdiv(width, TILE.block_m)
        if bias_program < blocks:
            column, total = bias_tile(d_gates_ptr, bias_program, first_row, last_row, width, TILE)
            shared = column < width
            tl.store(input_bias + column, total.to(out_ptr.dtype.element_ty), mask=shared)
            if d_hidden_ptr is not None:
                shared = shared & (column % gates < shared_gates)
            tl.store(input_bias + width + column, total.to(out_ptr.dtype.element_ty), mask=shared)
        elif d_hidden_ptr is not None:
            columns = directions * hidden_gates
            column, total = bias_tile(d_hidden_ptr, bias_program - blocks, first_row, last_row, columns, TILE)
            place = column // hidden_gates * gates + shared_gates + column % hidden_gates
            tl.store(input_bias + width + place, total.to(out_ptr.dtype.element_ty), mask=column < columns)


@costs(recurrent_weight_gradient_kernel)
def recurrent_weight_gradient_cost(out_ptr: Tensor, R: int, **others: Any) -> Cost:
    """Two operations per row and gradient; operands read once, every split's gradients written."""
    return Cost(2 * R * out_ptr.shape[1], size_in_bytes(out_ptr, *others.values()))


def recurrent_weight_gradients(
    buffers: BackwardBuffers, x: Tensor, previous: Tensor, wanted: Wanted
) -> list[Tensor | None]:
    """dW_ih [D gates, I], dW_hh [D, gates, P], dW_hr [D, P, H], db_ih and db_hh [D gates]: parts of one buffer.

    Those that are not wanted are None; both biases' come where one of them is wanted.

    Args:
        buffers: what the backward over time left.
        x: [R, I], any strides.
        previous: h before each step [R, D, P], contiguous.
        wanted: which gradients; where none of a parameter is, nothing is launched.
    """
    R, width = buffers.gates.shape
    _, D, outputs = previous.shape
    gates, inputs = width // D, x.shape[1]
    hidden = 0 if buffers.unprojected is None else buffers.unprojected.shape[2]
    hidden_gates = 0 if buffers.hidden_gates is None else buffers.hidden_gates.shape[1] // D
    want_bias = wanted.input_bias or wanted.hidden_bias
    each = (wanted.input, wanted.hidden, wanted.projection, want_bias, want_bias)
    if not any(each):
        return [None] * len(each)
    shapes = ((width, inputs), (D, gates, outputs), (D, outputs, hidden), (width,), (width,))
    lengths = [math.prod(shape) if want else 0 for shape, want in zip(shapes, each, strict=True)]
    target = current_target()
    sizes = (R, inputs, hidden, outputs, gates, hidden_gates, D)
    problem = _problem(sizes, each[:4], sum(lengths), x.stride(), x.dtype, matmul_precision(x.dtype, target), target)
    splits = problem.grid[1]
    partial = x.new_empty((splits, sum(lengths)), dtype=x.dtype if splits == 1 else torch.float32)
    problem.launch_named(
        d_gates_ptr=buffers.gates,
        d_hidden_ptr=buffers.hidden_gates,
        x_ptr=x if wanted.input else None,
        previous_ptr=previous if wanted.hidden else None,
        d_output_ptr=buffers.output if wanted.projection else None,
        unprojected_ptr=buffers.unprojected if wanted.projection else None,
        out_ptr=partial,
    )
    parts = (partial[0] if splits == 1 else sum_partials(partial, x.dtype)).split(lengths)
    return [part.view(shape) if want else None for part, shape, want in zip(parts, shapes, each, strict=True)]


@lru_cache(maxsize=4096)
def _problem(
    sizes: tuple[int, ...],
    wanted: tuple[bool, ...],
    elements: int,
    stride_x: tuple[int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
) -> Problem:
    """The launch, of the kernel's sizes up to `directions`; `wanted`: whether dW_ih, dW_hh, dW_hr, the biases'."""
    R, inputs, hidden, outputs, gates, hidden_gates, D = sizes
    width = D * gates
    aligned = has_wide_rows(stride_x) and all(size % UNIT == 0 for size in (gates, hidden_gates, outputs, hidden))
    # Several products in one kernel need as many registers beside the accumulator as an activation does.
    tile = linear_tile(gates, max(inputs, outputs), R, dtype, precision, aligned, "gelu", target)
    if wanted[2] and target.kind == "cuda":  # the third product gets a stage of shared memory of its own
        stage = (tile.block_m + tile.block_n) * tile.block_k * dtype.itemsize
        tile = fit_stages(tile, dtype, target._replace(shared_memory=target.shared_memory - stage))

    def tiles_of(rows: int, columns: int) -> int:
        return ceil_div(rows, tile.block_m) * ceil_div(columns, tile.block_n)

    tiles = (
        tiles_of(width, inputs),
        D * (tiles_of(gates - hidden_gates, outputs) + tiles_of(hidden_gates, outputs)),
        D * tiles_of(outputs, hidden),
        tiles_of(width, 1) + tiles_of(D * hidden_gates, 1),
    )
    programs = sum(count for count, want in zip(tiles, wanted, strict=True) if want)
    steps = ceil_div(R, tile.block_k)
    rows_per_split = ceil_div(steps, split_count(programs, steps, target)) * tile.block_k
    wide = is_wide_product(width, inputs, R, tile, (1, width), stride_x[::-1])
    blackwell = target.architecture in (100, 103, 120)  # where this kernel spilled; elsewhere a limit costs the loop
    return Problem(
        recurrent_weight_gradient_kernel,
        (programs, ceil_div(R, rows_per_split)),
        *sizes,
        elements,
        rows_per_split,
        *stride_x,
        PRODUCT=Product(precision, R % tile.block_k == 0, wide, GROUP),
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **(every_register(tile.block_m, precision, target) if blackwell else {}),
    )

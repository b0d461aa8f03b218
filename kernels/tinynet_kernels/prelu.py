"""PReLU: y = x where positive, else w_c x, with a learned slope w_c for each channel (He et al. 2015).

    dX = dY (1 or w_c)        dw_c = sum of dY x over the elements of channel c where x is not positive

x comes as a matrix [rows, columns] whose rows, or whose columns (`by_column`), belong to the channels in turn. One tile
per program. The backward's programs leave partial sums of dw in fp32, which `sum_partials` adds in a fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import RowsTile, load_rows, store_rows
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target, rows_and_columns


class PReLUSpec(NamedTuple):
    """Whether channels are columns, rows otherwise, and whether offsets are int64."""

    by_column: bool
    wide: bool


@triton.jit
def prelu_kernel(
    x_ptr, weight_ptr, grad_ptr, y_ptr, partial_ptr, rows, columns, channels, SPEC: constexpr, TILE: constexpr
):
    """y = prelu(x) or, where there is an upstream gradient, y = dX and partial sums of dw; contiguous [rows, columns].

    partial is [row tiles, columns] for `by_column`, else [column tiles, rows].
    """
    rows = widened(rows, SPEC.wide)
    columns = widened(columns, SPEC.wide)
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    row_tile = tl.program_id(0) // column_tiles
    column_tile = tl.program_id(0) % column_tiles
    first_row = row_tile * TILE.block_rows
    first_column = column_tile * TILE.block_columns
    row = tl.arange(0, TILE.block_rows)
    column = tl.arange(0, TILE.block_columns)
    in_rows = row < rows - first_row
    in_columns = column < columns - first_column
    mask = in_rows[:, None] & in_columns[None, :]
    column += first_column
    x = load_rows(x_ptr, columns, first_row, row, column, mask, SPEC.wide)
    if SPEC.by_column:
        weight = tl.load(weight_ptr + column % channels, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    else:
        weight = tl.load(weight_ptr + (first_row + row) % channels, mask=in_rows, other=0.0).to(tl.float32)[:, None]
    if grad_ptr is None:
        store_rows(y_ptr, columns, tl.where(x > 0, x, x * weight), first_row, row, column, mask, SPEC.wide)
    else:
        grad = load_rows(grad_ptr, columns, first_row, row, column, mask, SPEC.wide)
        if y_ptr is not None:
            store_rows(y_ptr, columns, tl.where(x > 0, grad, grad * weight), first_row, row, column, mask, SPEC.wide)
        if partial_ptr is not None:
            dw = tl.where(x > 0, 0.0, grad * x)
            if SPEC.by_column:
                partial = partial_ptr + row_tile.to(tl.int64) * columns
                tl.store(partial + column, tl.sum(dw, axis=0), mask=in_columns)
            else:
                partial = partial_ptr + column_tile.to(tl.int64) * rows + first_row
                tl.store(partial + row, tl.sum(dw, axis=1), mask=in_rows)


@costs(prelu_kernel)
def prelu_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is read or written once; two operations an element."""
    return Cost(2 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


@lru_cache(maxsize=4096)
def _problem(shape: tuple[int, int, int], target: Target) -> Problem:
    batch, channels, length = shape
    by_column = length == 1
    rows, columns = (batch, channels) if by_column else (batch * channels, length)
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    wide = exceed_int32(((min(block_rows, rows), columns), (columns + block_columns, 1)), ((rows + block_rows, 1),))
    return Problem(
        prelu_kernel,
        (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),),
        rows,
        columns,
        channels,
        SPEC=PReLUSpec(by_column, wide),
        TILE=RowsTile(block_rows, block_columns),
        num_warps=num_warps,
    )


def prelu_forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y of contiguous x [N, C, L] and weight [C]; not empty."""
    y = torch.empty_like(x)
    _problem(tuple(x.shape), current_target()).launch(x, weight, None, y, None)
    return y


def prelu_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, want_x: bool, want_weight: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(dX [N, C, L], dw [C] in the weight's dtype), each None where not wanted; contiguous."""
    N, C, L = x.shape
    problem = _problem((N, C, L), current_target())
    dx = torch.empty_like(x) if want_x else None
    tile = problem.constants["TILE"]
    parts = ceil_div(N, tile.block_rows) if L == 1 else N * ceil_div(L, tile.block_columns)
    partial = x.new_empty((parts, C), dtype=torch.float32) if want_weight else None
    problem.launch(x, weight, grad, dx, partial)
    return dx, None if partial is None else sum_partials(partial, weight.dtype)

"""Elementwise operators from a function of scalars: (y, z) = f(a, b, c), each a matrix whose rows may have gaps.

An operator writes f as a `triton.jit` function of fp32 blocks that returns a tuple, and calls `elementwise`. One
[block_rows, block_columns] tile per program, rounded once to the outputs' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, ceil_div, current_target, rows_and_columns


class RowsTile(NamedTuple):
    """The tile of a kernel that walks matrices without reusing what it loads."""

    block_rows: int
    block_columns: int


@triton.jit
def load_rows(ptr, stride, first_row, row, column, mask, WIDE: constexpr):
    """The tile of a matrix whose rows are `stride` apart, in fp32."""
    offset = row[:, None] * widened(stride, WIDE) + column[None, :]
    return tl.load(ptr + first_row.to(tl.int64) * stride + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(ptr, stride, values, first_row, row, column, mask, WIDE: constexpr):
    """Stores the tile of a matrix whose rows are `stride` apart."""
    offset = row[:, None] * widened(stride, WIDE) + column[None, :]
    tl.store(ptr + first_row.to(tl.int64) * stride + offset, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def elementwise_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    y_ptr,
    z_ptr,
    stride_a,
    stride_b,
    stride_c,
    stride_y,
    stride_z,
    rows,
    columns,
    FUNCTION: constexpr,
    WIDE: constexpr,
    TILE: constexpr,
):
    """(y, z) = FUNCTION(a, b, c) of matrices [rows, columns]; those from the end may be absent."""
    rows = widened(rows, WIDE)
    columns = widened(columns, WIDE)
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    first_row = tl.program_id(0) // column_tiles * TILE.block_rows
    first_column = tl.program_id(0) % column_tiles * TILE.block_columns
    row = tl.arange(0, TILE.block_rows)
    column = first_column + tl.arange(0, TILE.block_columns)
    mask = (row < rows - first_row)[:, None] & (tl.arange(0, TILE.block_columns) < columns - first_column)[None, :]
    a = load_rows(a_ptr, stride_a, first_row, row, column, mask, WIDE)
    if b_ptr is None:
        results = FUNCTION(a)
    else:
        b = load_rows(b_ptr, stride_b, first_row, row, column, mask, WIDE)
        if c_ptr is None:
            results = FUNCTION(a, b)
        else:
            results = FUNCTION(a, b, load_rows(c_ptr, stride_c, first_row, row, column, mask, WIDE))
    store_rows(y_ptr, stride_y, results[0], first_row, row, column, mask, WIDE)
    if z_ptr is not None:
        store_rows(z_ptr, stride_z, results[1], first_row, row, column, mask, WIDE)


@costs(elementwise_kernel)
def elementwise_cost(**arguments: Any) -> Cost:
    """Every matrix is read or written once; a function counts as one operation for each element of y."""
    return Cost(arguments["y_ptr"].numel(), size_in_bytes(*arguments.values()))


def elementwise(
    function: Any, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    """Writes function(*inputs) into the outputs, and returns them.

    Args:
        function: a `triton.jit` function of as many fp32 blocks as there are inputs; returns a tuple of blocks.
        inputs: one to three matrices [rows, columns], the last dimension contiguous; not empty.
        outputs: one or two of the same shape that share no memory with each other.
    """
    a, b, c = (*inputs, None, None)[:3]
    y, z = (*outputs, None)[:2]
    strides = tuple([0 if matrix is None else matrix.stride(0) for matrix in (a, b, c, y, z)])
    _problem(function, *a.shape, strides, current_target()).launch(a, b, c, y, z)  # type: ignore[union-attr]
    return outputs


@lru_cache(maxsize=4096)
def _problem(function: Any, rows: int, columns: int, strides: tuple[int, ...], target: Target) -> Problem:
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    reach = ((min(block_rows, rows), max(strides)), (columns + block_columns, 1))
    return Problem(
        elementwise_kernel,
        (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),),
        *strides,
        rows,
        columns,
        FUNCTION=function,
        WIDE=exceed_int32(reach, ((rows + block_rows, 1),)),
        TILE=RowsTile(block_rows, block_columns),
        num_warps=num_warps,
    )

"""Sums, products and copies of tensors of any strides whose last dimension is contiguous, or one value for all of it.

    y[i, j, row, column] = f(a[i, j, row, column], b[i, j, row, column])

One [block_rows, block_columns] tile of one matrix [rows, columns] per program, rounded once to y's dtype.
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


class ArithmeticTile(NamedTuple):
    """The tile of one program.

    Attributes:
        block_rows, block_columns: its shape.
        a_column, b_column: the stride of columns, 0 or 1.
        wide: whether offsets in it are taken as int64.
    """

    block_rows: int
    block_columns: int
    a_column: int
    b_column: int
    wide: bool


@triton.jit
def added(a, b):
    return a + b


@triton.jit
def multiplied(a, b):
    return a * b


@triton.jit
def arithmetic_kernel(
    a_ptr,
    b_ptr,
    y_ptr,
    stride_a0,
    stride_a1,
    stride_ar,
    stride_b0,
    stride_b1,
    stride_br,
    stride_y0,
    stride_y1,
    stride_yr,
    second,
    rows,
    columns,
    FUNCTION: constexpr,
    TILE: constexpr,
):
    """y = FUNCTION(a, b) of tensors [first, second, rows, columns]; without b, y = a."""
    rows = widened(rows, TILE.wide)
    columns = widened(columns, TILE.wide)
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    tiles = tl.cdiv(rows, TILE.block_rows) * column_tiles
    program = tl.program_id(0)
    matrix = program // tiles
    i = (matrix // second).to(tl.int64)
    j = (matrix % second).to(tl.int64)
    first_row = (program % tiles // column_tiles * TILE.block_rows).to(tl.int64)
    first_column = program % column_tiles * TILE.block_columns
    row = tl.arange(0, TILE.block_rows)[:, None]
    column = first_column + tl.arange(0, TILE.block_columns)[None, :]
    mask = (row < rows - first_row) & (column < columns)
    a_start = a_ptr + i * stride_a0 + j * stride_a1 + first_row * stride_ar
    a_offset = row * widened(stride_ar, TILE.wide) + column * TILE.a_column
    y = tl.load(a_start + a_offset, mask=mask, other=0.0).to(tl.float32)
    if b_ptr is not None:
        b_start = b_ptr + i * stride_b0 + j * stride_b1 + first_row * stride_br
        b_offset = row * widened(stride_br, TILE.wide) + column * TILE.b_column
        y = FUNCTION(y, tl.load(b_start + b_offset, mask=mask, other=0.0).to(tl.float32))
    y_start = y_ptr + i * stride_y0 + j * stride_y1 + first_row * stride_yr
    y_offset = row * widened(stride_yr, TILE.wide) + column
    tl.store(y_start + y_offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@costs(arithmetic_kernel)
def arithmetic_cost(**arguments: Any) -> Cost:
    """Every tensor is read or written once, with one operation for each element of y."""
    return Cost(arguments["y_ptr"].numel(), size_in_bytes(*arguments.values()))


Strides = tuple[int, int, int, int]


def arithmetic(
    function: Any, y: torch.Tensor, operands: Sequence[torch.Tensor], shape: Sequence[int], strides: Sequence[Strides]
) -> None:
    """Writes function(*operands) into y.

    Args:
        function: `added` or `multiplied` of two operands; None: y becomes the one operand.
        y: shares no memory with the operands.
        operands: of y's dtype.
        shape: in which all are seen, of four dimensions; none is 0.
        strides: those of y and of each operand in this shape; the last one is 1 for y, and 0 or 1 for operands.
    """
    a, b = (*operands, None)[:2]
    *both, absent = *strides[1:], (0, 0, 0, 0)
    stride_a, stride_b = (*both, absent)[:2]
    _problem(function, tuple(shape), strides[0], stride_a, stride_b, current_target()).launch(a, b, y)


@lru_cache(maxsize=4096)
def _problem(
    function: Any, shape: tuple[int, ...], stride_y: Strides, stride_a: Strides, stride_b: Strides, target: Target
) -> Problem:
    first, second, rows, columns = shape
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    largest = max(stride_y[2], stride_a[2], stride_b[2])
    wide = exceed_int32(((min(block_rows, rows), largest), (columns + block_columns, 1)), ((rows + block_rows, 1),))
    return Problem(
        arithmetic_kernel,
        (first * second * ceil_div(rows, block_rows) * ceil_div(columns, block_columns),),
        *stride_a[:3],
        *stride_b[:3],
        *stride_y[:3],
        second,
        rows,
        columns,
        FUNCTION=function,
        TILE=ArithmeticTile(block_rows, block_columns, stride_a[3], stride_b[3], wide),
        num_warps=num_warps,
    )

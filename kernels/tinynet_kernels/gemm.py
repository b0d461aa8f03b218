"""The main loop that linear layers share: one tile of C = A B with any strides, accumulated in fp32.

One program computes a [block_m, block_n] tile and walks the reduction in steps of block_k. In-tile offsets are int32,
or int64 where sizes and strides are (`is_wide_product`), and hoisted; an int64 scalar base advances. Rows and columns
past the edge wrap round to valid ones, so the loop needs no mask for them and what they compute is never stored: on
sm_90 that is 80 instructions per step against 99 with masks. Only a reduction that block_k does not divide is masked.

Triton compiles for integers that 16 divides, and calls all others odd. `in_units` lets a kernel know of 8: a row of 72
16-bit values still begins at a multiple of 16 bytes, and is loaded 16 bytes at a time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.offsets import LARGEST_OFFSET, exceed_int32, widened
from tinynet_kernels.tiles import GemmTile, Target

GROUP = 8  # row tiles that share a column tile in the second-level cache
UNIT = 8  # 16-bit elements of the widest load


class Product(NamedTuple):
    """What a product's kernel is compiled for, beside its tile.

    Attributes:
        precision: `input_precision` of `tl.dot`.
        even: whether the tile's depth divides the reduction, which then needs no mask.
        wide: whether sizes and strides are taken as int64.
        group: row tiles that share a column tile in the second-level cache (`grouped_tile`).
        units: bit i says that size or stride i comes in units of 8 (`in_units`).
    """

    precision: str
    even: bool
    wide: bool
    group: int
    units: int = 0


class Matrix(NamedTuple):
    """A matrix within a kernel: the pointer to its first element and its strides, in elements."""

    ptr: Any
    row_stride: Any
    column_stride: Any


@triton.jit
def actual(number, INDEX: constexpr, PRODUCT: constexpr):
    """The size or stride that was passed as number INDEX of those that `in_units` was given."""
    return widened(number, PRODUCT.wide) * (8 if (PRODUCT.units >> INDEX) % 2 else 1)


def passed_as(number: int, index: int, product: Product) -> int:
    """`actual` outside of kernels."""
    return number * (8 if product.units >> index & 1 else 1)


@triton.jit
def gemm_tile(a, b, row_start, column_start, k_start, k_end, M, N, PRODUCT: constexpr, TILE: constexpr):
    """sum over k in [k_start, k_end) of A[row, k] B[k, column], fp32 [block_m, block_n].

    Rows from `row_start` and columns from `column_start`; those past M and N hold copies of others. A and B are
    `Matrix`.
    """
    BLOCK_M: constexpr = TILE.block_m
    BLOCK_N: constexpr = TILE.block_n
    BLOCK_K: constexpr = TILE.block_k
    row = tl.arange(0, BLOCK_M) % (M - row_start)
    column = tl.arange(0, BLOCK_N) % (N - column_start)
    k = tl.arange(0, BLOCK_K)
    a_offset = row[:, None] * a.row_stride + k[None, :] * a.column_stride
    b_offset = k[:, None] * b.row_stride + column[None, :] * b.column_stride
    first_k = tl.cast(k_start, tl.int64)
    a_base = a.ptr + row_start.to(tl.int64) * a.row_stride + first_k * a.column_stride
    b_base = b.ptr + column_start.to(tl.int64) * b.column_stride + first_k * b.row_stride
    a_step = tl.cast(a.column_stride, tl.int64) * BLOCK_K
    b_step = tl.cast(b.row_stride, tl.int64) * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step_start in range(k_start, k_end, BLOCK_K):
        if PRODUCT.even:
            a_tile = tl.load(a_base + a_offset)  # in bounds: row < M, k < k_end
            b_tile = tl.load(b_base + b_offset)  # in bounds: k < k_end, column < N
        else:
            a_tile = tl.load(a_base + a_offset, mask=(k < k_end - step_start)[None, :], other=0.0)
            b_tile = tl.load(b_base + b_offset, mask=(k < k_end - step_start)[:, None], other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRODUCT.precision)
        a_base += a_step
        b_base += b_step
    return acc


@triton.jit
def grouped_tile(program, row_tiles, column_tiles, GROUP: constexpr):
    """(row tile, column tile) of a program: GROUP row tiles share each column tile while it is in cache."""
    group_size = GROUP * column_tiles
    first_row = program // group_size * GROUP
    rows = min(row_tiles - first_row, GROUP)
    return first_row + program % group_size % rows, program % group_size // rows


@triton.jit
def tile_start(program, M, N, PRODUCT: constexpr, TILE: constexpr):
    """(first row, first column) of a program's tile of an [M, N] result."""
    row_tiles = tl.cdiv(M, TILE.block_m)
    column_tiles = tl.cdiv(N, TILE.block_n)
    row_tile, column_tile = grouped_tile(program, row_tiles, column_tiles, PRODUCT.group)
    return row_tile * TILE.block_m, column_tile * TILE.block_n


def in_units(target: Target, *numbers: int) -> tuple[tuple[int, ...], int]:
    """Sizes and strides divided by their units, and which have a unit of 8: bit i for number i.

    The unit is 8 where only that divides, else 1; the kernel multiplies by it again (`actual`).
    """
    if target.kind == "cpu":  # its code is the same for all
        return numbers, 0
    # A number past an int32 comes as an int64, its eighth would not.
    in_eights = [number % (2 * UNIT) == UNIT and number <= LARGEST_OFFSET for number in numbers]
    divided = [number // UNIT if eight else number for number, eight in zip(numbers, in_eights, strict=True)]
    return tuple(divided), sum(eight << index for index, eight in enumerate(in_eights))


@lru_cache(maxsize=4096)
def is_wide_product(
    M: int, N: int, K: int, tile: GemmTile, stride_a: tuple[int, int], stride_b: tuple[int, int]
) -> bool:
    """Whether a tile of the product A B, or of its contiguous result, reaches further than int32 offsets do.

    Args:
        M, N, K: rows and columns of the result, length of the reduction.
        tile: of the product.
        stride_a: of A [M, K].
        stride_b: of B as [N, K].
    """
    rows, columns, depth = min(tile.block_m, M), min(tile.block_n, N), min(tile.block_k, K)
    return exceed_int32(
        ((rows, stride_a[0]), (depth, stride_a[1])),
        ((columns, stride_b[0]), (depth, stride_b[1])),
        ((rows, N), (columns, 1)),
        ((max(M + tile.block_m, N + tile.block_n, K + tile.block_k), 1),),  # where the last tiles end
    )


def has_wide_rows(stride: tuple[int, ...]) -> bool:
    """Whether a matrix's rows, or columns, are contiguous and begin at multiples of 8 elements: else each is a load."""
    one, other = stride
    return (one == 1 and other % UNIT == 0) or (other == 1 and one % UNIT == 0)

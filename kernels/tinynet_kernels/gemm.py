"""The main loop that linear layers share: one tile of C = A B with any strides, accumulated in fp32.

One program makes a [BLOCK_M, BLOCK_N] tile and walks the reduction in steps of BLOCK_K. In-tile offsets are int32, or
int64 where sizes and strides are (`is_wide_product`), and hoisted; an int64 scalar base advances. Rows and columns past
the edge wrap round to valid ones, so the loop needs no mask for them and what they compute is never stored: on sm_90
that is 80 instructions a step against 99 with masks. Only a reduction that BLOCK_K does not divide is masked.

Triton compiles for integers that 16 divides, and calls all others odd. `in_units` lets a kernel know of 8: a row of 72
16-bit values still begins at a multiple of 16 bytes, and is loaded 16 bytes at a time.
"""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl

from tinynet_kernels.offsets import LARGEST_OFFSET, exceed_int32
from tinynet_kernels.tiles import GemmTile, Target

UNIT = 8  # 16-bit elements of the widest load


@triton.jit
def gemm_tile(
    a_ptr,
    b_ptr,
    row_start,
    column_start,
    k_start,
    k_end,
    M,
    N,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sum over k in [k_start, k_end) of A[row, k] B[k, column], fp32 [BLOCK_M, BLOCK_N].

    Rows from `row_start` and columns from `column_start`; those past M and N hold copies of others. EVEN_K says that
    BLOCK_K divides k_end - k_start.
    """
    row = tl.arange(0, BLOCK_M) % (M - row_start)
    column = tl.arange(0, BLOCK_N) % (N - column_start)
    k = tl.arange(0, BLOCK_K)
    a_offset = row[:, None] * stride_am + k[None, :] * stride_ak
    b_offset = k[:, None] * stride_bk + column[None, :] * stride_bn
    first_k = tl.cast(k_start, tl.int64)
    a_base = a_ptr + row_start.to(tl.int64) * stride_am + first_k * stride_ak
    b_base = b_ptr + column_start.to(tl.int64) * stride_bn + first_k * stride_bk
    a_step = tl.cast(stride_ak, tl.int64) * BLOCK_K
    b_step = tl.cast(stride_bk, tl.int64) * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step_start in range(k_start, k_end, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_base + a_offset)  # in bounds: row < M, k < k_end
            b = tl.load(b_base + b_offset)  # in bounds: k < k_end, column < N
        else:
            a = tl.load(a_base + a_offset, mask=(k < k_end - step_start)[None, :], other=0.0)
            b = tl.load(b_base + b_offset, mask=(k < k_end - step_start)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_base += a_step
        b_base += b_step
    return acc


@triton.jit
def grouped_tile(program, row_tiles, column_tiles, GROUP: tl.constexpr):
    """(row tile, column tile) of a program: GROUP row tiles share each column tile while it is in cache."""
    group_size = GROUP * column_tiles
    first_row = program // group_size * GROUP
    rows = min(row_tiles - first_row, GROUP)
    return first_row + program % group_size % rows, program % group_size // rows


def in_units(target: Target, *numbers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides divided by their units, and the units: 8 where only that divides, else 1.

    The kernel multiplies each by its constexpr unit again.
    """
    if target.kind == "cpu":  # its code is the same for all
        return numbers, (1,) * len(numbers)
    # A number past an int32 comes as an int64, its eighth would not.
    units = tuple([UNIT if number % (2 * UNIT) == UNIT and number <= LARGEST_OFFSET else 1 for number in numbers])
    return tuple([number // unit for number, unit in zip(numbers, units, strict=True)]), units


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

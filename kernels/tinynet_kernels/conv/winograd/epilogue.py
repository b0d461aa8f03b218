"""What becomes of the sums of a tile of output pixels: whether they are finite, pooling, statistics, and y."""

from __future__ import annotations

import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.winograd.patches import pixel_of


@triton.jit
def store_infinite(sums, infinite_ptr, program):
    """Stores NaN for this program where a tuple of tiles holds a value that is not finite, else 0: 0 x is NaN or 0."""
    total = 0.0 * sums[0]
    for i in tl.static_range(1, len(sums)):  # pyright: ignore[reportGeneralTypeIssues]
        total += 0.0 * sums[i]
    tl.store(infinite_ptr + program, tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
def activated(z, ACTIVATION: constexpr, DTYPE: constexpr):
    """act of each of a tuple of tiles, in fp32 but rounded to DTYPE, as a pool or a norm that follows reads it."""
    y = ()
    for pixel in tl.static_range(len(z)):  # pyright: ignore[reportGeneralTypeIssues]
        y += (activate(z[pixel], ACTIVATION).to(DTYPE).to(tl.float32),)
    return y


@triton.jit
def largest_of_window(y, z, FIRST: constexpr, M: constexpr):
    """Of the 2 x 2 pixels of y from FIRST on the largest, its z, and which it was, 2 row + column.

    y and z are tuples of M x M pixels. Ties and NaN as of `window.largest_of_window`.
    """
    largest = y[FIRST]
    before = z[FIRST]
    which = tl.zeros(largest.shape, tl.int32)
    for tap in tl.static_range(1, 4):  # pyright: ignore[reportGeneralTypeIssues]
        value = y[FIRST + tap // 2 * M + tap % 2]
        is_larger = (value > largest) | (value != value)
        largest = tl.where(is_larger, value, largest)
        before = tl.where(is_larger, z[FIRST + tap // 2 * M + tap % 2], before)
        which = tl.where(is_larger, tap, which)
    return largest, before, which


@triton.jit
def largest_of_windows(y, z, M: constexpr):
    """`largest_of_window` of each 2 x 2 window of M x M pixels: three tuples."""
    largest = ()
    before = ()
    which = ()
    for row in tl.static_range(0, M, 2):  # pyright: ignore[reportGeneralTypeIssues]
        for column in tl.static_range(0, M, 2):  # pyright: ignore[reportGeneralTypeIssues]
            of_window = largest_of_window(y, z, row * M + column, M)
            largest += (of_window[0],)
            before += (of_window[1],)
            which += (of_window[2],)
    return largest, before, which


@triton.jit
def store_squares(ptr, values, squares, in_columns, SIDE: constexpr):
    """Stores a tuple of SIDE x SIDE pixels [tiles, COLUMNS], in row order, where there are such pixels and columns."""
    column = tl.arange(0, in_columns.shape[0])
    for i in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
        for j in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
            mask = pixel_of(squares, i, j)[:, None] & in_columns[None, :]
            pixel = ptr + squares.base + (i * squares.W + j) * squares.C
            offset = squares.offset[:, None] + column[None, :]
            tl.store(pixel + offset, values[i * SIDE + j].to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_statistics_of_squares(ptr, values, squares, in_columns, SIDE: constexpr):
    """As `window.store_statistics` of SIDE x SIDE pixels [tiles, COLUMNS], a tuple, at the program's first column."""
    count = 0.0
    total = tl.zeros(in_columns.shape, tl.float32)
    for i in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
        for j in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
            exists = pixel_of(squares, i, j)
            count += tl.sum(exists.to(tl.float32), axis=0)  # pyright: ignore[reportOperatorIssue]
            total += tl.sum(tl.where(exists[:, None], values[i * SIDE + j], 0.0), axis=0)
    mean = total / count
    squared = tl.zeros(in_columns.shape, tl.float32)
    for i in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
        for j in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
            deviation = values[i * SIDE + j] - mean[None, :]
            deviation = tl.where(pixel_of(squares, i, j)[:, None], deviation, 0.0)
            squared += tl.sum(deviation * deviation, axis=0)
    column = tl.arange(0, in_columns.shape[0])
    tl.store(ptr + column, tl.zeros_like(mean) + count, mask=in_columns)
    tl.store(ptr + squares.C + column, mean, mask=in_columns)
    tl.store(ptr + 2 * squares.C + column, squared, mask=in_columns)

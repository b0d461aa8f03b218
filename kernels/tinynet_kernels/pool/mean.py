"""The mean of each window of an image, and its p-norm, along up to three axes.

    mean: y = sum over taps of x / divisor
    norm: y = s^(1/p) with s = taps (sum over taps of x^p / divisor), as PyTorch's lp_pool defines it

Backward: without atomics. One program computes a tile of dx and gathers, for each element, from the windows that may
hold it:

    mean: dx = sum over windows of dY / divisor
    norm: dx = taps x^(p - 1) sum over windows of dY s^(1/p - 1) / divisor, where s^(1/p - 1) is computed from y

y and dx are dense, channels_last or not; x has any strides. `window.py` explains windows and tiles. Where windows are
runs of neighbors that fill contiguous memory, as those of whole images are, their means are means of rows, which have
kernels of their own. On the CPU, means in contiguous layout are computed along the other axes first and then along
columns: but for the smaller, last part, loads then run along memory.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.pool.spec import POINT, Axis, Mean, Window, taps
from tinynet_kernels.pool.window import (
    Place,
    are_in_windows,
    dense_offset,
    elements_of_program,
    empty_images,
    ends_of_taps,
    first_taps,
    is_inside,
    last_windows,
    loop_place,
    nearest_taps,
    nearest_windows,
    offset_of_tap,
    pool_problem,
    strided_offset,
)
from tinynet_kernels.tiles import Target, ceil_div, current_target, rows_and_columns

SHORTEST_RUN = 16  # neighbors that are a row of `row_mean_kernel`


@triton.jit
def power(x, P: constexpr):
    """x^p in fp32: NaN for a negative x unless p is an integer."""
    if P == 0.0:
        return tl.full(x.shape, 1.0, tl.float32)
    elif P == 1.0:
        return x
    elif P == 2.0:
        return x * x
    elif P == 3.0:
        return x * x * x
    elif P == 0.5:
        return tl.sqrt(x)
    else:
        size = tl.exp2(P * tl.log2(tl.abs(x)))
        if P % 2.0 == 0.0:
            return size
        elif P % 1.0 == 0.0:
            return tl.where(x < 0.0, -size, size)
        else:
            return tl.where(x < 0.0, float("nan"), size)


@triton.jit
def counted(first, size, AXIS: constexpr, INCLUDE_PAD: constexpr):
    """The elements along one axis that count in the divisor of the strided window that starts at `first`."""
    padded_end = tl.minimum(first + AXIS.kernel, size + AXIS.padding)
    if INCLUDE_PAD:
        return padded_end - first
    else:
        return tl.minimum(padded_end, size) - tl.maximum(first, 0)


@triton.jit
def mean_divisor(first, end, D, H, W, WINDOW: constexpr, MEAN: constexpr):
    """What the sum over windows from `first` to `end`, both a `Place`, is divided by, in fp32."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    if MEAN.divisor_override != 0:
        return tl.full((1, 1), MEAN.divisor_override, tl.float32)
    elif WINDOW.adaptive:
        area = (end.row - first.row) * (end.column - first.column)
        return ((end.depth - first.depth) * area).to(tl.float32)
    else:
        rows = counted(first.row, H, ROWS, MEAN.count_include_pad)
        area = rows * counted(first.column, W, COLUMNS, MEAN.count_include_pad)
        return (counted(first.depth, D, DEPTH, MEAN.count_include_pad) * area).to(tl.float32)


@triton.jit
def mean_pool_forward_kernel(
    x_ptr,
    y_ptr,
    lines,
    inner,
    C,
    D,
    H,
    W,
    OD,
    OH,
    OW,
    stride_xn,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    WINDOW: constexpr,
    TILE: constexpr,
    MEAN: constexpr,
):
    """y = the sum over the window / divisor, or the norm."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_LINES: constexpr = TILE.block_lines
    BLOCK_INNER: constexpr = TILE.block_inner
    UNROLL: constexpr = TILE.unroll
    P: constexpr = MEAN.norm
    TAPS: constexpr = DEPTH.kernel * ROWS.kernel * COLUMNS.kernel
    REPLACES: constexpr = TILE.replaces and not TILE.always_inside
    at = elements_of_program(lines, inner, C, OD, OH, OW, TILE)
    window = Place(at.depth, at.row, at.column)
    first = first_taps(at, window, None, C, D, H, W, OD, OH, OW, WINDOW)
    end = ends_of_taps(window, D, H, W, OD, OH, OW, WINDOW)
    stride_xd = widened(stride_xd, TILE.wide)
    stride_xh = widened(stride_xh, TILE.wide)
    stride_xw = widened(stride_xw, TILE.wide)
    x_offset = strided_offset(at, first, stride_xn, stride_xc, stride_xd, stride_xh, stride_xw)
    total = tl.zeros((BLOCK_LINES, BLOCK_INNER), tl.float32)
    for number in tl.range(0, TAPS, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        k = loop_place(number, ROWS.kernel, COLUMNS.kernel)
        tap = nearest_taps(k, first, end, WINDOW) if REPLACES else k
        tap_ptr = x_ptr + offset_of_tap(tap, stride_xd, stride_xh, stride_xw, WINDOW)
        mask = at.mask if TILE.always_inside or REPLACES else at.mask & is_inside(k, first, end, WINDOW)
        x = tl.load(tap_ptr + x_offset, mask=mask, other=0.0).to(tl.float32)
        if REPLACES:
            x = tl.where(is_inside(k, first, end, WINDOW), x, 0.0)
        total += x if P == 0.0 else power(x, P)
    y = total / mean_divisor(first, end, D, H, W, WINDOW, MEAN)
    if P != 0.0:
        y = power(y * TAPS, 1.0 / P)
    offset = dense_offset(at, window, C, OD, OH, OW, TILE)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=at.mask)


@triton.jit
def mean_pool_backward_kernel(
    grad_ptr,
    x_ptr,
    y_ptr,
    dx_ptr,
    stride_xn,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    lines,
    inner,
    C,
    D,
    H,
    W,
    OD,
    OH,
    OW,
    WINDOW: constexpr,
    TILE: constexpr,
    MEAN: constexpr,
):
    """dx = the sum of dY / divisor over the windows that hold x's element; for norms also of x [any strides] and y."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_LINES: constexpr = TILE.block_lines
    BLOCK_INNER: constexpr = TILE.block_inner
    UNROLL: constexpr = TILE.unroll
    STEPS: constexpr = TILE.loop_depth * TILE.loop_rows * TILE.loop_columns
    P: constexpr = MEAN.norm
    at = elements_of_program(lines, inner, C, D, H, W, TILE)
    last = last_windows(at, D, H, W, OD, OH, OW, WINDOW)
    dx = tl.zeros((BLOCK_LINES, BLOCK_INNER), tl.float32)
    for step in tl.range(0, STEPS, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        back = loop_place(step, TILE.loop_rows, TILE.loop_columns)
        window = Place(last.depth - back.depth, last.row - back.row, last.column - back.column)
        first = first_taps(at, window, None, C, D, H, W, OD, OH, OW, WINDOW)
        end = ends_of_taps(window, D, H, W, OD, OH, OW, WINDOW)
        holds = are_in_windows(at, window, D, H, W, OD, OH, OW, WINDOW)
        if TILE.replaces:
            window = nearest_windows(window, OD, OH, OW, WINDOW)
        mask = at.mask if TILE.replaces else at.mask & holds
        offset = dense_offset(at, window, C, OD, OH, OW, TILE)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if P != 0.0:
            y = tl.load(y_ptr + offset, mask=mask, other=1.0).to(tl.float32)
            grad = tl.where((y == 0.0) & (P == 1.0), 0.0, grad * power(y, 1.0 - P))
        dx += tl.where(holds, grad / mean_divisor(first, end, D, H, W, WINDOW, MEAN), 0.0)
    place = Place(at.depth, at.row, at.column)
    if P != 0.0:
        x_offset = strided_offset(at, place, stride_xn, stride_xc, stride_xd, stride_xh, stride_xw)
        x = tl.load(x_ptr + x_offset, mask=at.mask, other=0.0).to(tl.float32)
        dx *= (DEPTH.kernel * ROWS.kernel * COLUMNS.kernel) * power(x, P - 1.0)
    tl.store(dx_ptr + dense_offset(at, place, C, D, H, W, TILE), dx.to(dx_ptr.dtype.element_ty), mask=at.mask)


@triton.jit
def row_mean_kernel(x_ptr, y_ptr, rows, columns, TILE: constexpr, DIVISOR: constexpr):
    """y = the sum of each row of x [rows, columns] / divisor."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_COLUMNS: constexpr = TILE.block_columns
    start = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    in_rows = row < rows - start
    column = tl.arange(0, BLOCK_COLUMNS)
    x_ptr += start * columns
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, columns, BLOCK_COLUMNS):
        mask = in_rows[:, None] & (column < columns - first)[None, :]
        offset = row[:, None].to(tl.int64) * columns + (first + column)[None, :]
        total += tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    y = tl.sum(total, axis=1) / DIVISOR
    tl.store(y_ptr + start + row, y.to(y_ptr.dtype.element_ty), mask=in_rows)


@triton.jit
def row_mean_backward_kernel(grad_ptr, dx_ptr, rows, columns, TILE: constexpr, DIVISOR: constexpr):
    """dx = dY of its row / divisor, for x [rows, columns]."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_COLUMNS: constexpr = TILE.block_columns
    start = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    in_rows = row < rows - start
    column = tl.arange(0, BLOCK_COLUMNS)
    dx_ptr += start * columns
    grad = tl.load(grad_ptr + start + row, mask=in_rows, other=0.0).to(tl.float32) / DIVISOR
    dx = (grad[:, None] + tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)).to(dx_ptr.dtype.element_ty)
    for first in range(0, columns, BLOCK_COLUMNS):
        mask = in_rows[:, None] & (column < columns - first)[None, :]
        tl.store(dx_ptr + (row[:, None].to(tl.int64) * columns + (first + column)[None, :]), dx, mask=mask)


class RowTile(NamedTuple):
    """The tile of one program of `row_mean_kernel`, and of its backward."""

    block_rows: int
    block_columns: int


@costs(mean_pool_forward_kernel)
def mean_pool_forward_cost(y_ptr: torch.Tensor, WINDOW: Window, **others: Any) -> Cost:
    """One addition per tap; x is read once, y is written."""
    return Cost(y_ptr.numel() * taps(WINDOW), size_in_bytes(y_ptr, *others.values()))


@costs(mean_pool_backward_kernel)
def mean_pool_backward_cost(dx_ptr: torch.Tensor, TILE: Any, **others: Any) -> Cost:
    """One addition per window that may hold an element; dY (and x and y) are read once, dx is written."""
    windows = TILE.loop_depth * TILE.loop_rows * TILE.loop_columns
    return Cost(dx_ptr.numel() * windows, size_in_bytes(dx_ptr, *others.values()))


@costs(row_mean_backward_kernel)
def row_mean_backward_cost(grad_ptr: torch.Tensor, dx_ptr: torch.Tensor, **others: Any) -> Cost:
    """One division per row; dY is read once, dx is written."""
    return Cost(grad_ptr.numel(), size_in_bytes(grad_ptr, dx_ptr, *others.values()))


@costs(row_mean_kernel)
def row_mean_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """One addition per element; x is read once, y is written."""
    return Cost(x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


def mean_pool_forward(
    x: torch.Tensor,
    window: Window,
    out_size: tuple[int, ...],
    mean: Mean,
    *,
    channels_last: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The means or norms y [N, C, *out_size].

    Args:
        x: [N, C, ...] with one to three further axes, any strides.
        window: without dilation.
        out_size: of those axes.
        mean: what is computed.
        channels_last: the layout of y.
        dtype: of y; None for x's.
    """
    dtype = dtype or x.dtype
    problem = _forward_problem(x.shape, x.stride(), window, out_size, channels_last, current_target(), mean)
    if problem is None:
        others, columns, of_others = _by_axis(window, mean)
        size = (*out_size[:-1], x.shape[-1])
        means = mean_pool_forward(x, others, size, of_others, channels_last=False, dtype=torch.float32)
        return mean_pool_forward(means, columns, out_size, mean, channels_last=False, dtype=dtype)
    y = empty_images(x, out_size, dtype, channels_last)
    problem.launch(x, y)
    return y


def mean_pool_backward(
    grad: torch.Tensor,
    x: torch.Tensor | None,
    y: torch.Tensor | None,
    window: Window,
    size: tuple[int, ...],
    mean: Mean,
    *,
    channels_last: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """dx [N, C, *size].

    Args:
        grad: dY [N, C, ...], dense in the forward's layout.
        x, y: the forward's for a norm; None for a mean.
        window: the forward's.
        size: of x's axes.
        mean: the forward's.
        channels_last: the forward's.
        dtype: of dx; None for dY's.
    """
    dtype = dtype or grad.dtype
    stride = () if x is None else x.stride()
    problem = _backward_problem(grad.shape, stride, window, size, channels_last, current_target(), mean)
    if problem is None:
        others, columns, of_others = _by_axis(window, mean)
        wide = (*grad.shape[2:-1], size[-1])
        means = mean_pool_backward(grad, None, None, columns, wide, mean, channels_last=False, dtype=torch.float32)
        return mean_pool_backward(means, None, None, others, size, of_others, channels_last=False, dtype=dtype)
    dx = empty_images(grad, size, dtype, channels_last)
    if problem.kernel is row_mean_backward_kernel:
        problem.launch(grad, dx)
    else:
        problem.launch(grad, x, y, dx, *_strides_of_images(stride))
    return dx


@lru_cache(maxsize=4096)
def _forward_problem(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    window: Window,
    out_size: tuple[int, ...],
    channels_last: bool,
    target: Target,
    mean: Mean,
) -> Problem | None:
    """The launch; None where the means are computed axis by axis."""
    if not channels_last and stride == torch.empty(shape, device="meta").stride():
        run = _run_of_window(window, out_size, shape[2:], mean)
        if run:
            return _rows_problem(row_mean_kernel, math.prod(shape) // run, run, mean, target)
    if not channels_last and _can_go_by_axis(window, mean) and _is_faster_by_axis(window, target):
        return None
    options = {"most_on_cpu": 9 if channels_last else 16, "MEAN": mean}
    return pool_problem(mean_pool_forward_kernel, shape, stride, window, out_size, channels_last, target, **options)


@lru_cache(maxsize=4096)
def _backward_problem(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    window: Window,
    size: tuple[int, ...],
    channels_last: bool,
    target: Target,
    mean: Mean,
) -> Problem | None:
    """The launch; None where the gradients are computed axis by axis."""
    run = 0 if channels_last else _run_of_window(window, shape[2:], size, mean)
    if run:
        return _rows_problem(row_mean_backward_kernel, math.prod(shape), run, mean, target)
    if not channels_last and _can_go_by_axis(window, mean) and _is_faster_by_axis(window, target):
        return None
    return pool_problem(mean_pool_backward_kernel, shape, (), window, size, channels_last, target, MEAN=mean)


def _run_of_window(window: Window, out_size: tuple[int, ...], size: tuple[int, ...], mean: Mean) -> int:
    """How many neighbors in contiguous memory a window is, if windows are runs that fill the images; else 0."""
    if window.adaptive or mean.norm != 0.0:
        return 0
    axes = list(zip(reversed(window[:3]), reversed(size), strict=False))
    if math.prod(out_size) == 1 and all(axis.kernel == length and axis.padding == 0 for axis, length in axes):
        return math.prod(size)
    columns = window.columns
    fill = columns == Axis(columns.kernel, columns.kernel) and out_size[-1] * columns.kernel == size[-1]
    return columns.kernel if window[:2] == (POINT, POINT) and fill and columns.kernel >= SHORTEST_RUN else 0


def _can_go_by_axis(window: Window, mean: Mean) -> bool:
    """Whether what is computed along columns is apart from what is along the other axes."""
    return window[:2] != (POINT, POINT) and window.columns != POINT and mean.norm == 0.0


def _is_faster_by_axis(window: Window, target: Target) -> bool:
    """Whether means in contiguous layout are better computed along the other axes first and then along columns."""
    return target.kind == "cpu" and taps(window) > 4


@lru_cache(maxsize=4096)
def _by_axis(window: Window, mean: Mean) -> tuple[Window, Window, Mean]:
    """The window along depth and rows, the one along columns, and which mean the former computes."""
    others, columns = window._replace(columns=POINT), window._replace(depth=POINT, rows=POINT)
    return others, columns, mean._replace(divisor_override=1) if mean.divisor_override else mean


def _strides_of_images(stride: tuple[int, ...]) -> tuple[int | None, ...]:
    """The strides of x [N, C, D, H, W], None for a mean."""
    return (*stride[:2], *[0] * (5 - len(stride)), *stride[2:]) if stride else (None,) * 5


@lru_cache(maxsize=4096)
def _rows_problem(kernel: Any, rows: int, columns: int, mean: Mean, target: Target) -> Problem:
    """A launch on x [rows, columns], a row for each window."""
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    if target.kind in ("cuda", "hip"):
        block_rows = min(block_rows, 16)  # of sums in registers
    tile, divisor = RowTile(block_rows, block_columns), mean.divisor_override or columns
    grid = (ceil_div(rows, block_rows),)
    return Problem(kernel, grid, rows, columns, TILE=tile, DIVISOR=divisor, num_warps=num_warps)

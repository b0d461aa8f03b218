"""The maximum of each window of an image: y[o] = the largest tap x[first(o) + k dilation], along up to three axes.

NaN is larger than every number, and of equal taps the first is taken. The forward walks the taps of each window and
saves which one was largest (argmax), in one byte where a window has fewer than 127.

Backward: without atomics. One program computes a tile of dx and gathers, for each element, from the windows that may
hold it. Contiguous layout on the CPU has a kernel of its own, in `scatter.py`.

y, argmax and dx are dense, channels_last or not; x has any strides. `window.py` explains windows and tiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import to_channels_last, to_contiguous
from tinynet_kernels.offsets import widened
from tinynet_kernels.pool.scatter import is_scattered, max_pool_scatter
from tinynet_kernels.pool.spec import Window, taps
from tinynet_kernels.pool.window import (
    Place,
    dense_offset,
    elements_of_program,
    empty_images,
    ends_of_taps,
    first_taps,
    is_inside,
    last_windows,
    loop_place,
    nearest_taps,
    number_of_tap,
    offset_of_tap,
    place_of_tap,
    pool_problem,
    strided_offset,
    windows_exist,
)
from tinynet_kernels.tiles import Target, current_target


@triton.jit
def max_pool_forward_kernel(
    x_ptr,
    y_ptr,
    argmax_ptr,
    index_ptr,
    sample_ptr,
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
):
    """y = the largest tap, argmax = its number in the window, index = its element of x; None is not stored."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_LINES: constexpr = TILE.block_lines
    BLOCK_INNER: constexpr = TILE.block_inner
    UNROLL: constexpr = TILE.unroll
    at = elements_of_program(lines, inner, C, OD, OH, OW, TILE)
    window = Place(at.depth, at.row, at.column)
    first = first_taps(at, window, sample_ptr, C, D, H, W, OD, OH, OW, WINDOW)
    end = ends_of_taps(window, D, H, W, OD, OH, OW, WINDOW)
    stride_xd = widened(stride_xd, TILE.wide)
    stride_xh = widened(stride_xh, TILE.wide)
    stride_xw = widened(stride_xw, TILE.wide)
    x_offset = strided_offset(at, first, stride_xn, stride_xc, stride_xd, stride_xh, stride_xw)
    y = tl.full((BLOCK_LINES, BLOCK_INNER), float("-inf"), tl.float32)
    argmax = tl.zeros((BLOCK_LINES, BLOCK_INNER), tl.int32)
    if not TILE.always_inside:
        argmax += number_of_tap(nearest_taps(Place(0, 0, 0), first, end, WINDOW), WINDOW)
    for number in tl.range(0, DEPTH.kernel * ROWS.kernel * COLUMNS.kernel, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        k = loop_place(number, ROWS.kernel, COLUMNS.kernel)
        tap = k if TILE.always_inside else nearest_taps(k, first, end, WINDOW)
        from_first = offset_of_tap(tap, stride_xd, stride_xh, stride_xw, WINDOW)
        mask = at.mask
        if not TILE.always_inside and DEPTH.dilation * ROWS.dilation * COLUMNS.dilation > 1:
            mask = mask & is_inside(place_of_tap(tap, WINDOW), first, end, WINDOW)
        x = tl.load(x_ptr + (x_offset + from_first), mask=mask, other=float("-inf")).to(tl.float32)
        is_largest = (x > y) | (x != x)
        y = tl.where(is_largest, x, y)
        argmax = tl.where(is_largest, number_of_tap(tap, WINDOW), argmax)
    offset = dense_offset(at, window, C, OD, OH, OW, TILE)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=at.mask)
    if argmax_ptr is not None:
        tl.store(argmax_ptr + offset, argmax.to(argmax_ptr.dtype.element_ty), mask=at.mask)
    if index_ptr is not None:
        k = loop_place(argmax, ROWS.kernel, COLUMNS.kernel)
        depth = first.depth + k.depth * DEPTH.dilation
        row = depth.to(tl.int64) * H + first.row + k.row * ROWS.dilation
        tl.store(index_ptr + offset, row * W + first.column + k.column * COLUMNS.dilation, mask=at.mask)


@triton.jit
def max_pool_backward_kernel(
    grad_ptr,
    argmax_ptr,
    sample_ptr,
    dx_ptr,
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
):
    """dx = the sum of dY over the windows whose maximum is x's element."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_LINES: constexpr = TILE.block_lines
    BLOCK_INNER: constexpr = TILE.block_inner
    UNROLL: constexpr = TILE.unroll
    STEPS: constexpr = TILE.loop_depth * TILE.loop_rows * TILE.loop_columns
    at = elements_of_program(lines, inner, C, D, H, W, TILE)
    last = last_windows(at, D, H, W, OD, OH, OW, WINDOW)
    dx = tl.zeros((BLOCK_LINES, BLOCK_INNER), tl.float32)
    for step in tl.range(0, STEPS, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        back = loop_place(step, TILE.loop_rows, TILE.loop_columns)
        window = Place(last.depth - back.depth, last.row - back.row, last.column - back.column)
        first = first_taps(at, window, sample_ptr, C, D, H, W, OD, OH, OW, WINDOW)
        depth = at.depth - first.depth
        row = at.row - first.row
        column = at.column - first.column
        kd = depth // DEPTH.dilation
        kh = row // ROWS.dilation
        kw = column // COLUMNS.dilation
        is_row = (kd < DEPTH.kernel) & (kd * DEPTH.dilation == depth) & (kh < ROWS.kernel) & (kh * ROWS.dilation == row)
        is_tap = is_row & ((kw < COLUMNS.kernel) & (kw * COLUMNS.dilation == column))
        if WINDOW.fractional:  # other windows that may hold an element start at or before it
            is_tap = is_tap & (depth >= 0) & (row >= 0) & (column >= 0)
        mask = at.mask & (is_tap & windows_exist(window, OD, OH, OW))
        offset = dense_offset(at, window, C, OD, OH, OW, TILE)
        argmax = tl.load(argmax_ptr + offset, mask=mask, other=0).to(tl.int32)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dx += tl.where(argmax == (kd * ROWS.kernel + kh) * COLUMNS.kernel + kw, grad, 0.0)
    offset = dense_offset(at, Place(at.depth, at.row, at.column), C, D, H, W, TILE)
    tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=at.mask)


@costs(max_pool_forward_kernel)
def max_pool_forward_cost(y_ptr: torch.Tensor, WINDOW: Window, **others: Any) -> Cost:
    """One comparison per tap; x is read once, the results are written."""
    return Cost(y_ptr.numel() * taps(WINDOW), size_in_bytes(y_ptr, *others.values()))


@costs(max_pool_backward_kernel)
def max_pool_backward_cost(grad_ptr: torch.Tensor, **others: Any) -> Cost:
    """One addition per window; dY and argmax are read once, dx is written."""
    return Cost(grad_ptr.numel(), size_in_bytes(grad_ptr, *others.values()))


def max_pool_forward(
    x: torch.Tensor,
    window: Window,
    out_size: tuple[int, ...],
    samples: torch.Tensor | None = None,
    *,
    channels_last: bool,
    want_argmax: bool,
    want_index: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The maxima, the element of x that each is, and the number of its tap.

    Args:
        x: [N, C, ...] with one to three further axes, any strides.
        window: of the pooling.
        out_size: of those axes.
        samples: where fractional, fp32 [N, C, 3] along depth, rows and columns, contiguous.
        channels_last: the layout of the results.
        want_argmax: whether to compute argmax, for the backward.
        want_index: whether to compute the indices.

    Returns:
        y [N, C, *out_size]; indices into the flattened axes, int64, or None; argmax, int8 or int32, or None.
    """
    target = current_target()
    if not channels_last and x.is_contiguous() and _is_faster_in_channels_last(x.shape, window, want_argmax, target):
        x = to_channels_last(x)
        results = max_pool_forward(
            x, window, out_size, channels_last=True, want_argmax=want_argmax, want_index=want_index
        )
        y, index, argmax = (None if result is None else to_contiguous(result) for result in results)
        assert y is not None
        return y, index, argmax
    y = empty_images(x, out_size, x.dtype, channels_last)
    argmax = empty_images(x, out_size, argmax_dtype(window), channels_last) if want_argmax else None
    index = empty_images(x, out_size, torch.int64, channels_last) if want_index else None
    problem = _problem(True, x.shape, x.stride(), window, out_size, channels_last, target)
    problem.launch(x, y, argmax, index, samples)
    return y, index, argmax


def max_pool_backward(
    grad: torch.Tensor,
    argmax: torch.Tensor,
    window: Window,
    size: tuple[int, ...],
    samples: torch.Tensor | None = None,
    *,
    channels_last: bool,
) -> torch.Tensor:
    """dx [N, C, *size].

    Args:
        grad: dY [N, C, ...], dense in the layout of `argmax`.
        argmax: what the forward returned.
        window: the forward's.
        size: of x's axes.
        samples: the forward's.
        channels_last: the forward's.
    """
    target = current_target()
    if not channels_last and is_scattered(grad.shape, window, target):
        return max_pool_scatter(grad, argmax, window, size, target)
    dx = empty_images(grad, size, grad.dtype, channels_last)
    _problem(False, grad.shape, (), window, size, channels_last, target).launch(grad, argmax, samples, dx)
    return dx


def argmax_dtype(window: Window) -> torch.dtype:
    """What the number of one of a window's taps is stored in."""
    return torch.int8 if taps(window) < 127 else torch.int32


@lru_cache(maxsize=4096)
def _is_faster_in_channels_last(shape: tuple[int, ...], window: Window, want_argmax: bool, target: Target) -> bool:
    """Whether a contiguous image of `shape` is better transposed first.

    The inner loop then runs over channels rather than over the columns of a row, whose taps are apart; measured on the
    CPU, where only maxima of few taps without an argmax, or of few channels, are faster as they are.
    """
    images, channels = shape[:2]
    few_channels = channels < (16 if taps(window) >= 64 else 32)
    can = target.kind == "cpu" and len(shape) == 4 and images > 0 and not window.fractional
    return can and not few_channels and (want_argmax or taps(window) > 4)


@lru_cache(maxsize=4096)
def _problem(
    forward: bool,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    window: Window,
    result_size: tuple[int, ...],
    channels_last: bool,
    target: Target,
) -> Problem:
    kernel = max_pool_forward_kernel if forward else max_pool_backward_kernel
    # Loads of whole channels run along memory, and a mask of theirs is one of whole lines.
    most_on_cpu = 9 if channels_last else 4 if forward else 1
    return pool_problem(
        kernel, shape, stride, window, result_size, channels_last, target, most_on_cpu=most_on_cpu, long_on_cpu=10
    )

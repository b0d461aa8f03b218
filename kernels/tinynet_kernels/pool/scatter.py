"""The gradient of maxima in contiguous layout on the CPU: each window adds its dY to the element that was largest.

Windows overlap, and the lanes of a vector must not add to the same element. So a vector holds one window of several
planes (an image's channels), and a program walks all windows of its planes, one after the other. In `maximum.py` each
element asks the windows that may hold it instead: that fills a GPU, but along contiguous columns, whose windows are at
varying places, a CPU reads element by element.

Tiling: one program computes dx of `block_planes` planes. It first fills them with zeros, `block_elements` at a time.
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
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.pool.spec import Window, reach
from tinynet_kernels.pool.window import first_tap
from tinynet_kernels.tiles import Target, ceil_div

MOST_PLANES = 16  # one vector of fp32
BLOCK_ELEMENTS = 1024


class ScatterTile(NamedTuple):
    """The tile of one program.

    Attributes:
        block_planes: planes of a program.
        block_elements: elements of a plane that are filled or rounded at a time.
        overlap: whether an element may lie in several windows.
        wide: whether offsets within the tile are int64.
    """

    block_planes: int
    block_elements: int
    overlap: bool
    wide: bool


@triton.jit
def quotient(number, divisor: constexpr, SMALL: constexpr):
    """number // divisor; SMALL: of a number below 128, by a multiplication."""
    if SMALL:
        return (number * (65536 // divisor + 1)) >> 16
    else:
        return number // divisor


@triton.jit
def max_pool_scatter_kernel(
    grad_ptr,
    argmax_ptr,
    sum_ptr,
    dx_ptr,
    planes,
    D,
    H,
    W,
    OD,
    OH,
    OW,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """sum = the sum of dY over the windows whose maximum is x's element; dx = sum in its dtype, None if it is `sum`."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_PLANES: constexpr = TILE.block_planes
    BLOCK_ELEMENTS: constexpr = TILE.block_elements
    IS_SMALL: constexpr = argmax_ptr.dtype.element_ty == tl.int8
    start = tl.program_id(0).to(tl.int64) * BLOCK_PLANES
    plane = tl.arange(0, BLOCK_PLANES)
    exists = plane < planes - start
    H = widened(H, TILE.wide)
    W = widened(W, TILE.wide)
    OH = widened(OH, TILE.wide)
    OW = widened(OW, TILE.wide)
    size = D * H * W
    out_size = OD * OH * OW
    sum_ptr += start * size
    grad_ptr += start * out_size
    argmax_ptr += start * out_size
    element = tl.arange(0, BLOCK_ELEMENTS)
    for first in range(0, size, BLOCK_ELEMENTS):
        mask = exists[:, None] & (element < size - first)[None, :]
        zeros = tl.zeros((BLOCK_PLANES, BLOCK_ELEMENTS), sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + (plane[:, None] * size + (first + element)[None, :]), zeros, mask=mask)
    tl.debug_barrier()
    for depth in range(0, OD):
        first_depth = first_tap(depth, D, OD, 0.0, DEPTH, WINDOW)
        for row in range(0, OH):
            first_row = first_tap(row, H, OH, 0.0, ROWS, WINDOW)
            for column in range(0, OW):
                first_column = first_tap(column, W, OW, 0.0, COLUMNS, WINDOW)
                window = plane * out_size + ((depth * OH + row) * OW + column)
                grad = tl.load(grad_ptr + window, mask=exists, other=0.0)
                tap = tl.load(argmax_ptr + window, mask=exists, other=0).to(tl.int32)
                # As if all taps lay in one row, then moved to the row and the plane of the window where the tap lies.
                offset = (first_depth * H + first_row) * W + first_column + tap * COLUMNS.dilation
                if DEPTH.kernel * ROWS.kernel > 1:
                    tap_row = quotient(tap, COLUMNS.kernel, IS_SMALL)
                    offset += tap_row * (ROWS.dilation * W - COLUMNS.kernel * COLUMNS.dilation)
                    if DEPTH.kernel > 1:
                        tap_depth = quotient(tap_row, ROWS.kernel, IS_SMALL)
                        offset += tap_depth * (DEPTH.dilation * H - ROWS.kernel * ROWS.dilation) * W
                largest_ptr = sum_ptr + (plane * size + offset)
                if TILE.overlap:
                    total = tl.load(largest_ptr, mask=exists, other=0.0) + grad.to(sum_ptr.dtype.element_ty)
                    tl.debug_barrier()  # between what was loaded and what overwrites it
                    tl.store(largest_ptr, total, mask=exists)
                    tl.debug_barrier()
                else:
                    tl.store(largest_ptr, grad, mask=exists)
    if dx_ptr is not None:
        dx_ptr += start * size
        for first in range(0, size, BLOCK_ELEMENTS):
            mask = exists[:, None] & (element < size - first)[None, :]
            offset = plane[:, None] * size + (first + element)[None, :]
            total = tl.load(sum_ptr + offset, mask=mask, other=0.0)
            tl.store(dx_ptr + offset, total.to(dx_ptr.dtype.element_ty), mask=mask)


@costs(max_pool_scatter_kernel)
def max_pool_scatter_cost(grad_ptr: torch.Tensor, sum_ptr: torch.Tensor, **others: Any) -> Cost:
    """One addition per window; dY and argmax are read once, dx is written."""
    return Cost(grad_ptr.numel(), size_in_bytes(grad_ptr, sum_ptr, *others.values()))


def max_pool_scatter(
    grad: torch.Tensor, argmax: torch.Tensor, window: Window, size: tuple[int, ...], target: Target
) -> torch.Tensor:
    """dx [N, C, *size], contiguous.

    Args:
        grad: dY [N, C, ...], contiguous.
        argmax: the number of each window's largest tap, contiguous.
        window: strided or adaptive.
        size: of x's axes.
        target: where it runs.
    """
    dx = grad.new_empty((*grad.shape[:2], *size))
    is_exact = grad.dtype is torch.float32 or not _overlap(window)
    total = dx if is_exact else torch.empty_like(dx, dtype=torch.float32)
    _problem(grad.shape, window, size, target).launch(grad, argmax, total, None if is_exact else dx)
    return dx


def is_scattered(shape: tuple[int, ...], window: Window, target: Target) -> bool:
    """Whether the gradient of maxima [N, C, ...] in contiguous layout is computed here; a few planes fill no vector."""
    return target.kind == "cpu" and not window.fractional and shape[0] * shape[1] >= MOST_PLANES // 2


def _overlap(window: Window) -> bool:
    """Whether an element may lie in several windows."""
    return window.adaptive or any(reach(axis) > axis.stride for axis in window[:3])


@lru_cache(maxsize=4096)
def _problem(shape: tuple[int, ...], window: Window, size: tuple[int, ...], target: Target) -> Problem:
    N, C, *out_size = shape
    absent = [1] * (3 - len(size))
    D, H, W = *absent, *size
    block_planes = MOST_PLANES
    while block_planes > 4 and ceil_div(N * C, block_planes) < target.processors:
        block_planes //= 2
    area = max(D * H * W, math.prod(out_size)) + BLOCK_ELEMENTS
    wide = exceed_int32(((block_planes, area), (area, 1)), ((max(H, W) + 1, max(out_size)),))
    tile = ScatterTile(block_planes, BLOCK_ELEMENTS, _overlap(window), wide)
    grid = (ceil_div(N * C, block_planes),)
    return Problem(max_pool_scatter_kernel, grid, N * C, D, H, W, *absent, *out_size, WINDOW=window, TILE=tile)

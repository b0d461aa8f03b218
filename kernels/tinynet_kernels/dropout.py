"""Dropout of elements and of channels: y = x / divisor + shift where kept, else `dropped`.

Dropout has divisor 1 - p, and zero for the rest; alpha dropout drops to the negative limit of selu and then restores
its mean and variance (Klambauer et al. 2017). The gradient is dX = dY / divisor where kept, else 0: the same kernel.

Elements: the mask is never stored. Element i is kept where its random number is at least p: Philox (Salmon et al. 2011)
of the seed and i, so the backward draws the same ones. The seed lies in memory on x's device, drawn there by PyTorch's
own generator: no host synchronization, and a captured graph draws a new one at each replay. Tiling: flat; one Philox
call gives four random numbers.

Channels: `keep` holds one number per channel of each sample, drawn by PyTorch. x comes as a matrix [rows, columns]
whose rows, or whose columns (`by_column`), are the channels. Tiling: one tile per program.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import RowsTile, load_rows, store_rows
from tinynet_kernels.launch import Cost, Problem, costs, launch, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, ceil_div, current_target, flat_block, rows_and_columns


class Scale(NamedTuple):
    """What becomes of an element: kept ones are x / divisor + shift, the others `dropped`."""

    divisor: float
    shift: float = 0.0
    dropped: float = 0.0


class ChannelSpec(NamedTuple):
    """Whether channels are columns, rows otherwise, and whether offsets are int64."""

    by_column: bool
    wide: bool


@triton.jit
def uniform_numbers(seed_ptr, program, BLOCK: constexpr):
    """BLOCK random numbers in [0, 1), the same for a seed and a program each time."""
    seed = tl.load(seed_ptr)  # in bounds: one element
    quarter = tl.arange(0, BLOCK // 4).to(tl.uint32)
    zero = quarter * 0
    a, b, c, d = tl.philox(seed, quarter, zero + program.to(tl.uint32), zero, zero)
    bits = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (BLOCK,))
    return tl.uint_to_uniform_float(bits)


@triton.jit
def dropout_kernel(x_ptr, seed_ptr, y_ptr, elements, p, divisor, shift, dropped, BLOCK: constexpr):
    """y = x / divisor + shift where the element's random number is at least p, else `dropped`; flat."""
    program = tl.program_id(0)
    start = program.to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    uniform = uniform_numbers(seed_ptr, program, BLOCK)
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    y = tl.where(uniform >= p, x / divisor + shift, dropped)
    tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def channel_dropout_kernel(
    x_ptr, keep_ptr, y_ptr, rows, columns, positions, divisor, shift, dropped, SPEC: constexpr, TILE: constexpr
):
    """y = x / divisor + shift where `keep` of the channel is not 0, else `dropped`; contiguous [rows, columns].

    A row is a channel of a sample; or, for `by_column`, one of the `positions` of a sample, and `keep` is
    [samples, columns].
    """
    rows = widened(rows, SPEC.wide)
    columns = widened(columns, SPEC.wide)
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    first_row = tl.program_id(0) // column_tiles * TILE.block_rows
    first_column = tl.program_id(0) % column_tiles * TILE.block_columns
    row = tl.arange(0, TILE.block_rows)
    column = tl.arange(0, TILE.block_columns)
    in_rows = row < rows - first_row
    mask = in_rows[:, None] & (column < columns - first_column)[None, :]
    column += first_column
    if SPEC.by_column:
        sample = ((first_row + row) // positions).to(tl.int64)
        keep = tl.load(keep_ptr + sample[:, None] * columns + column[None, :], mask=mask, other=0)
    else:
        keep = tl.load(keep_ptr + first_row + row, mask=in_rows, other=0)[:, None]
    x = load_rows(x_ptr, columns, first_row, row, column, mask, SPEC.wide)
    y = tl.where(keep != 0, x / divisor + shift, dropped)
    store_rows(y_ptr, columns, y, first_row, row, column, mask, SPEC.wide)


@costs(dropout_kernel)
@costs(channel_dropout_kernel)
def dropout_cost(x_ptr: torch.Tensor, y_ptr: torch.Tensor, **_: Any) -> Cost:
    """One pass: x read, y written."""
    return Cost(x_ptr.numel(), size_in_bytes(x_ptr, y_ptr))


def dropout_apply(x: torch.Tensor, seed: torch.Tensor, p: float, scale: Scale) -> torch.Tensor:
    """x with its dropped elements replaced and the others scaled; the same seed drops the same elements.

    Args:
        x: dense, of any shape and layout; elements are counted in memory order.
        seed: int64 [1] on x's device.
        p: probability of being dropped, 0 <= p < 1.
        scale: what becomes of the elements.
    """
    y = torch.empty_like(x)
    elements = x.numel()
    block, num_warps = flat_block(elements, current_target())
    block = max(block, 4)
    grid = (ceil_div(elements, block),)
    launch(dropout_kernel, grid, x, seed, y, elements, p, *scale, BLOCK=block, num_warps=num_warps)
    return y


def channel_dropout_apply(x: torch.Tensor, keep: torch.Tensor, scale: Scale) -> torch.Tensor:
    """x with its dropped channels replaced and the others scaled.

    Args:
        x: contiguous [N, C, L], or [N, P, C] for P positions of channels that are neighbors in memory; not empty.
        keep: [N, C, 1], or [N, 1, C] for the latter; contiguous, zero where a channel is dropped.
        scale: what becomes of the elements.
    """
    y = torch.empty_like(x)
    _channel_problem(*x.shape, keep.shape[2] > 1, scale, current_target()).launch(x, keep, y)
    return y


@lru_cache(maxsize=4096)
def _channel_problem(N: int, middle: int, columns: int, by_column: bool, scale: Scale, target: Target) -> Problem:
    rows = N * middle
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    wide = exceed_int32(((min(block_rows, rows), columns), (columns + block_columns, 1)), ((rows + block_rows, 1),))
    return Problem(
        channel_dropout_kernel,
        (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),),
        rows,
        columns,
        middle,
        *scale,
        SPEC=ChannelSpec(by_column, wide),
        TILE=RowsTile(block_rows, block_columns),
        num_warps=num_warps,
    )

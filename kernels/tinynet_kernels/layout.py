"""Memory order of images of one to three axes: NCHW to channels_last and back, each a batched matrix transposition.

    channels_last: [N, C, pixels] -> [N, pixels, C]        contiguous: [N, pixels, C] -> [N, C, pixels]

Convolution kernels work on channels_last, where the values that one tap multiplies are adjacent; a weight
[K, C, R, S] becomes [K, R, S, C] by the same kernel. One program moves a [block_batch, block_rows, block_columns] tile;
the compiler turns it in shared memory so that loads and stores both run along memory.
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
from tinynet_kernels.operand_layout import channels_last_strides
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least


class TransposeTile(NamedTuple):
    """The tile of one program, and whether sizes are taken as int64 in it."""

    block_batch: int
    block_rows: int
    block_columns: int
    wide: bool


@triton.jit
def transpose_kernel(source_ptr, target_ptr, batch, rows, columns, TILE: constexpr):
    """target[b, column, row] = source[b, row, column], both contiguous."""
    rows = widened(rows, TILE.wide)
    columns = widened(columns, TILE.wide)
    row_tiles = tl.cdiv(rows, TILE.block_rows)
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    program = tl.program_id(0)
    batch_start = program // (row_tiles * column_tiles) * TILE.block_batch
    row_start = program // column_tiles % row_tiles * TILE.block_rows
    column_start = program % column_tiles * TILE.block_columns
    b = tl.arange(0, TILE.block_batch)[:, None, None]
    row = tl.arange(0, TILE.block_rows)[None, :, None]
    column = tl.arange(0, TILE.block_columns)[None, None, :]
    mask = (b < batch - batch_start) & (row < rows - row_start) & (column < columns - column_start)
    image = batch_start.to(tl.int64) * rows * columns
    source = source_ptr + image + row_start.to(tl.int64) * columns + column_start
    target = target_ptr + image + column_start.to(tl.int64) * rows + row_start
    values = tl.load(source + (b * rows * columns + row * columns + column), mask=mask, other=0.0)
    tl.store(target + (b * rows * columns + column * rows + row), values, mask=mask)


@costs(transpose_kernel)
def transpose_cost(**arguments: Any) -> Cost:
    """Every element is read once and written once."""
    return Cost(0, size_in_bytes(*arguments.values()))


@lru_cache(maxsize=4096)
def convolution_transpose_tile(batch: int, rows: int, columns: int, target: Target) -> tuple[int, int, int, int]:
    """(BLOCK_BATCH, BLOCK_ROWS, BLOCK_COLUMNS, num_warps) for a batched transposition."""
    side, size = (1024, 1 << 18) if target.kind == "interpreter" else (64, 1 << 12)
    block_rows = min(side, power_of_2_at_least(rows))
    block_columns = min(side, power_of_2_at_least(columns))
    block_batch = min(max(1, size // (block_rows * block_columns)), power_of_2_at_least(batch))
    return block_batch, block_rows, block_columns, 4


@lru_cache(maxsize=4096)
def _transpose_problem(batch: int, rows: int, columns: int, target: Target) -> Problem:
    block_batch, block_rows, block_columns, num_warps = convolution_transpose_tile(batch, rows, columns, target)
    tiles = ceil_div(batch, block_batch) * ceil_div(rows, block_rows) * ceil_div(columns, block_columns)
    images, lines, entries = min(block_batch, batch), min(block_rows, rows), min(block_columns, columns)
    wide = exceed_int32(
        ((images, rows * columns), (lines, columns), (entries, 1)),
        ((images, rows * columns), (entries, rows), (lines, 1)),
    )
    tile = TransposeTile(block_batch, block_rows, block_columns, wide)
    return Problem(transpose_kernel, (tiles,), batch, rows, columns, TILE=tile, num_warps=num_warps)


def transpose(source: torch.Tensor, target: torch.Tensor, batch: int, rows: int, columns: int) -> None:
    """Writes `source`, contiguous as [batch, rows, columns], into `target`, contiguous as [batch, columns, rows]."""
    _transpose_problem(batch, rows, columns, current_target()).launch(source, target)


_CHANNELS_BEHIND = {rank: (0, *range(2, rank), 1) for rank in (3, 4, 5)}  # [N, C, *sizes] as [N, *sizes, C]
_CHANNELS_BEFORE = {rank: (0, rank - 1, *range(1, rank - 1)) for rank in (3, 4, 5)}  # and back


def channels_behind(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, *sizes] viewed as [N, *sizes, C]."""
    return x.permute(_CHANNELS_BEHIND[x.dim()])


def channels_before(x: torch.Tensor) -> torch.Tensor:
    """x [N, *sizes, C] viewed as [N, C, *sizes]."""
    return x.permute(_CHANNELS_BEFORE[x.dim()])


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x [N, C, *sizes] came in channels_last; for one channel or one pixel the strides decide.

    Of signals [N, C, L] PyTorch knows no such order, and results for them are contiguous.
    """
    return x.dim() > 3 and x.stride(1) == 1 and x.stride(-1) == x.shape[1] and _lies_in_channels_last(x)


def _lies_in_channels_last(x: torch.Tensor) -> bool:
    """Whether the memory of x [N, C, *sizes] is [N, *sizes, C]."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return channels_behind(x).is_contiguous()


def to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, *sizes] itself where its memory is [N, *sizes, C], else a copy that is; not empty."""
    if _lies_in_channels_last(x):
        return x
    y = empty_channels_last(x, x.shape)
    if not x.is_contiguous():
        return y.copy_(x)
    N, C = x.shape[:2]
    transpose(x, y, N, C, math.prod(x.shape[2:]))
    return y


def to_contiguous(x: torch.Tensor) -> torch.Tensor:
    """A channels_last x as [N, C, *sizes] in memory: a view where both orders are one, else a copy."""
    N, C = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    if C == 1 or pixels == 1:
        return channels_behind(x).reshape(x.shape)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    transpose(x, y, N, pixels, C)
    return y


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """A channels_last x [N, C, *sizes] viewed as the matrix [pixels, C]."""
    C = x.shape[1]
    return x.as_strided((x.numel() // C, C), (C, 1))  # in half of the time that a permutation and a reshape take


def matrix_of(x: torch.Tensor) -> tuple[int, int, tuple[int, ...]]:
    """Rows, columns and strides of x [..., columns] as a matrix: x is one, or is contiguous."""
    if x.dim() == 2:
        rows, columns = x.shape
        return rows, columns, x.stride()
    columns = x.shape[-1]
    return x.numel() // columns, columns, (columns, 1)


def as_images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Contiguous rows [pixels, K] viewed as a channels_last [N, K, *sizes], with N and sizes of `like`."""
    N, _, *sizes = like.shape
    shape = (N, rows.shape[1], *sizes)
    return rows.as_strided(shape, channels_last_strides(shape))


def empty_channels_last(like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialized channels_last [N, C, *sizes] in `dtype` (None: that of `like`), on the device of `like`."""
    return like.new_empty_strided(shape, channels_last_strides(shape), dtype=dtype)

"""What the kernels of layer normalization share: tiles of rows, loads, the affine part, tile rules."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import load_rows
from tinynet_kernels.launch import Cost, size_in_bytes
from tinynet_kernels.offsets import exceed_int32
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least


class LayerNormSpec(NamedTuple):
    """Whether to subtract the mean, whether act' is computed from y, and whether offsets are int64."""

    center: bool
    reads_output: bool
    wide: bool


class LayerNormTile(NamedTuple):
    """The tile of one program, whether it holds whole rows, and how many of them a backward walks at most."""

    block_rows: int
    block_columns: int
    whole: bool
    tiles: int


class Tile(NamedTuple):
    """Where a tile lies within a kernel: rows from `first`, which is int64, and columns; `mask` tells which exist."""

    first: Any
    row: Any
    column: Any
    in_rows: Any
    in_columns: Any
    mask: Any


@triton.jit
def tile_at(first, start, rows, columns, TILE: constexpr):
    """The `Tile` at row `first` and column `start`."""
    row = tl.arange(0, TILE.block_rows)
    column = tl.arange(0, TILE.block_columns)
    in_rows = row < rows - first
    in_columns = column < columns - start
    return Tile(first, row, start + column, in_rows, in_columns, in_rows[:, None] & in_columns[None, :])


@triton.jit
def load_tile(ptr, stride, at, WIDE: constexpr):
    """The tile of a matrix whose rows are `stride` apart, in fp32."""
    return load_rows(ptr, stride, at.first, at.row, at.column, at.mask, WIDE)


@triton.jit
def load_parameter(ptr, at):
    """A parameter's values of a tile's columns, [1, block_columns] in fp32."""
    return tl.load(ptr + at.column, mask=at.in_columns, other=0.0).to(tl.float32)[None, :]


@triton.jit
def affine(normalized, weight_ptr, bias_ptr, at):
    """z of the module's formulas."""
    z = normalized
    if weight_ptr is not None:
        z = z * load_parameter(weight_ptr, at)
    if bias_ptr is not None:
        z = z + load_parameter(bias_ptr, at)
    return z


def layer_norm_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is read or written once; eight operations for each element of x."""
    return Cost(8 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


@lru_cache(maxsize=4096)
def layer_norm_tile(rows: int, columns: int, target: Target) -> LayerNormTile:
    """Whole rows where a program has registers for them, else a part of one row.

    On a CPU rows of 256 to 4,096 values come one by one: they are read once and stay in the first-level cache. Longer
    ones come in parts of four rows.

    Args:
        rows, columns: of the matrix.
        target: where it runs.
    """
    if target.kind == "cpu" and 256 < columns <= 4096:
        return LayerNormTile(1, power_of_2_at_least(columns), True, 1)
    longest, elements = {"interpreter": (1 << 12, 1 << 14), "cpu": (256, 1024)}.get(target.kind, (8192, 1024))
    block_columns = min(power_of_2_at_least(columns), longest)
    block_rows = min(max(1, elements // block_columns), power_of_2_at_least(rows))
    return LayerNormTile(block_rows, block_columns, columns <= longest, 1)


def warps_of(tile: LayerNormTile) -> int:
    """Warps of a program, by the elements of its tile."""
    return min(16, max(4, tile.block_rows * tile.block_columns // 512))


_LEAST_ELEMENTS = 1 << 15  # of a program on a CPU: it computes so many in about the time that a launch takes


@lru_cache(maxsize=4096)
def backward_tile(rows: int, columns: int, target: Target) -> LayerNormTile:
    """The forward's tile, with so many tiles per program that few partial sums are left."""
    tile = layer_norm_tile(rows, columns, target)
    programs = {"interpreter": 2, "cpu": 8 * target.processors}.get(target.kind, 2 * target.processors)
    if target.kind == "cpu":  # one program alone needs no second launch for its sums
        programs = min(programs, max(1, rows * columns // _LEAST_ELEMENTS))
    return tile._replace(tiles=ceil_div(rows, tile.block_rows * programs))


@lru_cache(maxsize=4096)
def parameter_tile(rows: int, columns: int, target: Target) -> LayerNormTile:
    """The tile of long rows' parameter gradients: it walks down, so it is short."""
    block_columns, block_rows = 256, 4 if target.kind == "cpu" else 8
    column_tiles = ceil_div(columns, block_columns)
    programs = max(
        1, {"interpreter": 2, "cpu": 8 * target.processors}.get(target.kind, 4 * target.processors) // column_tiles
    )
    return LayerNormTile(block_rows, block_columns, False, ceil_div(rows, block_rows * programs))


def spec_of(
    rows: int, columns: int, strides: tuple[int, ...], activation: Activation, center: bool, tile: LayerNormTile
) -> LayerNormSpec:
    reach = (min(tile.block_rows, rows), max(*strides, columns)), (columns + tile.block_columns, 1)
    return LayerNormSpec(center, activation.reads_output, exceed_int32(reach))

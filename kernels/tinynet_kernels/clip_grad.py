"""Clipping many gradients: by their total norm in two launches, by value in one; tables as in `optimizer.py`.

    total = (sum |g|^p)^(1/p) over all gradients (p = inf: max |g|);   g <- g min(max_norm / (total + 1e-6), 1)
    g <- min(max(g, -limit), limit)

Tiling: the first launch has at most PARTS programs, each of which adds every so many-th block of the table into one
fp32 partial sum. In the second one each program adds all of these again, in one order, and scales its block; the first
program stores the total norm. So nothing waits for the device, and reruns are bitwise equal.

Source: torch.nn.utils.clip_grad_norm_ and clip_grad_value_.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, Reached, costs
from tinynet_kernels.optimizer import (
    TRITON_DTYPES,
    PointerTable,
    TableTile,
    load_block,
    store_block,
    table_block,
    table_cost,
    tensor_pointer,
)
from tinynet_kernels.tiles import Target, current_target, power_of_2_at_least

PARTS = 1024  # partial sums of one table at most
CPU_PARTS = 32  # each block reads all of them, in a small part of the time that the block takes


@triton.jit
def larger(a, b):
    """The larger of two; NaN wins."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def reduced(values, NORM: constexpr):
    """The sum of a block, or its largest."""
    return tl.reduce(values, 0, larger) if NORM == "inf" else tl.sum(values, axis=0)


@triton.jit
def added(total, gradient_ptr, left, NORM: constexpr, TILE: constexpr):
    """total with the first `left` elements of one block, added or the largest; all of them where `left` is None."""
    gradient = load_block(gradient_ptr, left, TILE)
    values = gradient * gradient if NORM == "2" else tl.abs(gradient)
    return larger(total, values) if NORM == "inf" else total + values


@triton.jit
def gradient_norm_kernel(table_ptr, block_ptr, partial_ptr, blocks, NORM: constexpr, DTYPE: constexpr, TILE: constexpr):
    """partial[program] = sum of g^2 or |g|, or max |g|, over blocks program, program + programs, ..."""
    total = tl.full((TILE.block,), 0.0, tl.float32)
    for number in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row_ptr, start, left = table_block(table_ptr, block_ptr, number, TILE)
        gradient_ptr = tensor_pointer(row_ptr + 2, start, DTYPE, TILE)
        if TILE.aligned and left == TILE.block:
            total = added(total, gradient_ptr, None, NORM, TILE)
        else:
            total = added(total, gradient_ptr, left, NORM, TILE)
    tl.store(partial_ptr + tl.program_id(0), reduced(total, NORM))


@triton.jit
def scale_block(gradient_ptr, left, factor, TILE: constexpr):
    """g <- factor g."""
    scaled = factor * load_block(gradient_ptr, left, TILE)
    tl.debug_barrier()  # in a small block several warps hold the same element: all load before any stores
    store_block(gradient_ptr, scaled, left, TILE)


@triton.jit
def clip_norm_kernel(
    table_ptr,
    block_ptr,
    partial_ptr,
    norm_ptr,
    max_norm,
    parts,
    NORM: constexpr,
    BLOCK_PARTS: constexpr,
    DTYPE: constexpr,
    TILE: constexpr,
):
    """g <- g min(max_norm / (norm + 1e-6), 1), norm from its `parts` partial sums; the first program stores norm."""
    part = tl.arange(0, BLOCK_PARTS)
    norm = reduced(tl.load(partial_ptr + part, mask=part < parts, other=0.0), NORM)
    if NORM == "2":
        norm = tl.sqrt(norm)
    if tl.program_id(0) == 0:
        tl.store(norm_ptr, norm)
    factor = tl.minimum(max_norm / (norm + 1e-6), 1.0, propagate_nan=tl.PropagateNan.ALL)
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    gradient_ptr = tensor_pointer(row_ptr + 2, start, DTYPE, TILE)
    if TILE.aligned and left == TILE.block:
        scale_block(gradient_ptr, None, factor, TILE)
    else:
        scale_block(gradient_ptr, left, factor, TILE)


@triton.jit
def clip_block(gradient_ptr, left, limit, TILE: constexpr):
    """g <- g within [-limit, limit]; NaN stays."""
    above = tl.maximum(load_block(gradient_ptr, left, TILE), -limit, propagate_nan=tl.PropagateNan.ALL)
    clipped = tl.minimum(above, limit, propagate_nan=tl.PropagateNan.ALL)
    tl.debug_barrier()  # as above
    store_block(gradient_ptr, clipped, left, TILE)


@triton.jit
def clip_value_kernel(table_ptr, block_ptr, limit, DTYPE: constexpr, TILE: constexpr):
    """g <- g within [-limit, limit]."""
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    gradient_ptr = tensor_pointer(row_ptr + 2, start, DTYPE, TILE)
    if TILE.aligned and left == TILE.block:
        clip_block(gradient_ptr, None, limit, TILE)
    else:
        clip_block(gradient_ptr, left, limit, TILE)


@costs(gradient_norm_kernel)
def gradient_norm_cost(**launched: Any) -> Cost:
    """Gradients are read once."""
    return table_cost(2, 1, **launched)


@costs(clip_norm_kernel)
@costs(clip_value_kernel)
def clip_cost(**launched: Any) -> Cost:
    """Gradients are read and written once."""
    return table_cost(2, 2, **launched)


def gradient_partials(tables: Sequence[PointerTable], norm: str, reached: Sequence[Reached]) -> torch.Tensor:
    """Partial sums of all gradients of the tables, fp32 [parts], the first launch of `clip_norm`.

    Args:
        tables: of parameters and gradients on one device, none without an element.
        norm: "1", "2" or "inf".
        reached: the tensors of each table, for whoever observes launches.
    """
    target = current_target()
    most = CPU_PARTS if target.kind == "cpu" else PARTS
    counts = [min(len(table.blocks), most) for table in tables]
    partial = torch.empty(sum(counts), dtype=torch.float32, device=tables[0].addresses.device)
    start = 0
    for table, count, tensors in zip(tables, counts, reached, strict=True):
        problem = _norm_problem(norm, count, len(table.blocks), table.dtype, table.tile, table.num_warps, target)
        problem.launch(table.addresses, table.blocks, partial[start : start + count], reached=tensors)
        start += count
    return partial


def clip_norm(
    tables: Sequence[PointerTable], partial: torch.Tensor, max_norm: float, norm: str, reached: Sequence[Reached]
) -> torch.Tensor:
    """Scales all gradients of the tables so that their norm is at most `max_norm`.

    Args:
        tables, norm, reached: as in `gradient_partials`.
        partial: its result.
        max_norm: the largest norm that stays.

    Returns:
        The norm before, fp32 [].
    """
    total = torch.empty((), dtype=torch.float32, device=partial.device)
    for table, tensors in zip(tables, reached, strict=True):
        problem = _clip_problem(norm, len(partial), len(table.blocks), table.dtype, table.tile, table.num_warps)
        problem.launch(table.addresses, table.blocks, partial, total, float(max_norm), reached=tensors)
    return total


def clip_value(table: PointerTable, limit: float, reached: Reached) -> None:
    """Clips each element of the table's gradients to [-limit, limit]."""
    problem = _value_problem(len(table.blocks), table.dtype, table.tile, table.num_warps)
    problem.launch(table.addresses, table.blocks, float(limit), reached=reached)


@lru_cache(maxsize=4096)
def _norm_problem(
    norm: str, parts: int, blocks: int, dtype: torch.dtype, tile: TableTile, num_warps: int, target: Target
) -> Problem:
    constants = {"NORM": norm, "DTYPE": TRITON_DTYPES[dtype], "TILE": tile, "num_warps": num_warps}
    return Problem(gradient_norm_kernel, (parts,), blocks, **constants)


@lru_cache(maxsize=4096)
def _clip_problem(norm: str, parts: int, blocks: int, dtype: torch.dtype, tile: TableTile, num_warps: int) -> Problem:
    constants = {"DTYPE": TRITON_DTYPES[dtype], "TILE": tile, "num_warps": num_warps}
    return Problem(clip_norm_kernel, (blocks,), parts, NORM=norm, BLOCK_PARTS=power_of_2_at_least(parts), **constants)


@lru_cache(maxsize=4096)
def _value_problem(blocks: int, dtype: torch.dtype, tile: TableTile, num_warps: int) -> Problem:
    constants = {"DTYPE": TRITON_DTYPES[dtype], "TILE": tile, "num_warps": num_warps}
    return Problem(clip_value_kernel, (blocks,), **constants)

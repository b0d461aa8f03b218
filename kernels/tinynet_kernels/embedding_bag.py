"""Embedding bags: the sum, mean or maximum of the rows weight[index[t]] of each bag's tokens, times their factors.

    sum   y[b] = sum over offsets[b] <= t < offsets[b + 1] of factor[t] weight[index[t]]
    mean  the same without factors, over the number of tokens
    max   the maximum, of equal ones the first

Tokens of the row `padding_idx` don't count, and a bag without tokens is zero.

Forward: one program walks the tokens of BLOCK_BAGS bags, BLOCK_COLUMNS columns of each.
Backward: dW gathers in the order of the sorted tokens (`embedding.py`). The gradient of a factor is the product of the
bag's dY and the token's row, BLOCK_TOKENS tokens per program.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least, rows_and_columns


class BagTile(NamedTuple):
    """The tile of one program: bags, or tokens, and columns."""

    block_rows: int
    block_columns: int


@triton.jit
def embedding_bag_forward_kernel(
    index_ptr,
    offsets_ptr,
    weight_ptr,
    factor_ptr,
    y_ptr,
    count_ptr,
    argmax_ptr,
    bags,
    columns,
    stride_row,
    padding_idx,
    TILE: constexpr,
):
    """y, and the mean's `count` or the maximum's `argmax` (token numbers, -1 for none): the mode is which is given."""
    BLOCK_BAGS: constexpr = TILE.block_rows
    BLOCK_COLUMNS: constexpr = TILE.block_columns
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    first = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_BAGS
    first_column = tl.program_id(0) % column_tiles * BLOCK_COLUMNS
    bag = tl.arange(0, BLOCK_BAGS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    in_bags = bag < bags - first
    in_columns = tl.arange(0, BLOCK_COLUMNS) < columns - first_column
    start = tl.load(offsets_ptr + first + bag, mask=in_bags, other=0).to(tl.int64)
    end = tl.load(offsets_ptr + first + bag + 1, mask=in_bags, other=0).to(tl.int64)
    y = tl.zeros((BLOCK_BAGS, BLOCK_COLUMNS), tl.float32)
    argmax = tl.full((BLOCK_BAGS, BLOCK_COLUMNS), -1, tl.int64)
    count = tl.zeros((BLOCK_BAGS,), tl.float32)
    longest = tl.max(end - start, axis=0)
    for step in range(0, longest):  # pyright: ignore[reportArgumentType]
        token = start + step
        in_bag = token < end
        row = tl.load(index_ptr + token, mask=in_bag, other=0).to(tl.int64)
        counts = in_bag & (row != padding_idx)
        row_ptr = weight_ptr + (tl.where(counts, row, 0) * stride_row)[:, None]
        x = tl.load(row_ptr + column[None, :], mask=in_columns[None, :], other=0.0).to(tl.float32)
        if argmax_ptr is not None:
            larger = counts[:, None] & ((argmax < 0) | (x > y))
            y = tl.where(larger, x, y)
            argmax = tl.where(larger, token[:, None], argmax)
        elif factor_ptr is not None:
            factor = tl.load(factor_ptr + token, mask=counts, other=0.0).to(tl.float32)
            y += tl.where(counts[:, None], x * factor[:, None], 0.0)
        else:
            y += tl.where(counts[:, None], x, 0.0)
        if count_ptr is not None:
            count += tl.where(counts, 1.0, 0.0)
    mask = in_bags[:, None] & in_columns[None, :]
    offset = (first + bag)[:, None] * columns + column[None, :]
    if count_ptr is not None:
        count = tl.maximum(count, 1.0)
        y /= count[:, None]
        if first_column == 0:
            tl.store(count_ptr + first + bag, count, mask=in_bags)
    if argmax_ptr is not None:
        tl.store(argmax_ptr + offset, argmax, mask=mask)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def embedding_bag_factor_gradient_kernel(
    grad_ptr,
    index_ptr,
    bag_ptr,
    weight_ptr,
    dfactor_ptr,
    tokens,
    columns,
    bags,
    stride_row,
    padding_idx,
    TILE: constexpr,
):
    """dfactor[t] = sum over columns of dY[bag[t]] weight[index[t]]; zero for padding and outside the bags."""
    BLOCK_TOKENS: constexpr = TILE.block_rows
    BLOCK_COLUMNS: constexpr = TILE.block_columns
    first = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS
    token = tl.arange(0, BLOCK_TOKENS)
    in_tokens = token < tokens - first
    row = tl.load(index_ptr + first + token, mask=in_tokens, other=0).to(tl.int64)
    bag = tl.load(bag_ptr + first + token, mask=in_tokens, other=0)
    counts = in_tokens & (row != padding_idx) & (bag >= 0) & (bag < bags)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        mask = counts[:, None] & (tl.arange(0, BLOCK_COLUMNS) < columns - start)[None, :]
        grad = tl.load(grad_ptr + bag[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(weight_ptr + row[:, None] * stride_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += grad * x
    dfactor = tl.sum(total, axis=1)
    tl.store(dfactor_ptr + first + token, dfactor.to(dfactor_ptr.dtype.element_ty), mask=in_tokens)


@costs(embedding_bag_forward_kernel)
def embedding_bag_forward_cost(index_ptr: torch.Tensor, weight_ptr: torch.Tensor, columns: int, **others: Any) -> Cost:
    """Every token's row is read and added once, every result written."""
    elements = index_ptr.numel() * columns
    return Cost(elements, elements * weight_ptr.element_size() + size_in_bytes(index_ptr, *others.values()))


@costs(embedding_bag_factor_gradient_kernel)
def embedding_bag_factor_gradient_cost(
    index_ptr: torch.Tensor, weight_ptr: torch.Tensor, columns: int, **_: Any
) -> Cost:
    """Every token's row and its bag's gradient are read, multiplied and added once."""
    elements = index_ptr.numel() * columns
    return Cost(2 * elements, 2 * elements * weight_ptr.element_size() + 2 * size_in_bytes(index_ptr))


def embedding_bag_forward(
    index: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    factor: torch.Tensor | None,
    mode: str,
    padding_idx: int | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(y [B, D], a mean's counts fp32 [B] or None, a maximum's argmax int64 [B, D] or None).

    Args:
        index: [T], int32 or int64, contiguous, in range.
        offsets: [B + 1], int32 or int64, contiguous: where each bag begins, and the last ends.
        weight: [V, D], last dimension contiguous.
        factor: [T] for "sum", or None for ones.
        mode: "sum", "mean" or "max".
        padding_idx: tokens of this row don't count; None for none.
    """
    bags, columns = offsets.numel() - 1, weight.shape[1]
    y = weight.new_empty((bags, columns))
    count = weight.new_empty((bags,), dtype=torch.float32) if mode == "mean" else None
    argmax = weight.new_empty((bags, columns), dtype=torch.int64) if mode == "max" else None
    _forward_problem(bags, columns, weight.stride(0), padding_idx, current_target()).launch_named(
        index_ptr=index,
        offsets_ptr=offsets,
        weight_ptr=weight,
        factor_ptr=factor,
        y_ptr=y,
        count_ptr=count,
        argmax_ptr=argmax,
    )
    return y, count, argmax


def embedding_bag_factor_gradient(
    grad: torch.Tensor, index: torch.Tensor, bag: torch.Tensor, weight: torch.Tensor, padding_idx: int | None
) -> torch.Tensor:
    """dfactor [T] in the weight's dtype.

    Args:
        grad: dY [B, D], contiguous.
        index: [T], as in the forward.
        bag: of each token, int64 [T].
        weight: as in the forward.
        padding_idx: as in the forward.
    """
    tokens = index.numel()
    dfactor = weight.new_empty((tokens,))
    options = grad.shape[0], weight.stride(0), padding_idx, current_target()
    _gradient_problem(tokens, weight.shape[1], *options).launch(grad, index, bag, weight, dfactor)
    return dfactor


@lru_cache(maxsize=4096)
def _forward_problem(bags: int, columns: int, stride_row: int, padding_idx: int | None, target: Target) -> Problem:
    tile, num_warps = bag_tile(bags, columns, target)
    return Problem(
        embedding_bag_forward_kernel,
        (ceil_div(bags, tile.block_rows) * ceil_div(columns, tile.block_columns),),
        bags,
        columns,
        stride_row,
        -1 if padding_idx is None else padding_idx,
        TILE=tile,
        num_warps=num_warps,
    )


@lru_cache(maxsize=4096)
def _gradient_problem(
    tokens: int, columns: int, bags: int, stride_row: int, padding_idx: int | None, target: Target
) -> Problem:
    block_rows, block_columns, num_warps = rows_and_columns(tokens, columns, target)
    return Problem(
        embedding_bag_factor_gradient_kernel,
        (ceil_div(tokens, block_rows),),
        tokens,
        columns,
        bags,
        stride_row,
        -1 if padding_idx is None else padding_idx,
        TILE=BagTile(block_rows, block_columns),
        num_warps=num_warps,
    )


def bag_tile(bags: int, columns: int, target: Target) -> tuple[BagTile, int]:
    """The forward's tile and warps: few bags, since a program walks as many tokens as the longest of its bags has."""
    if target.kind == "interpreter":
        block_rows, block_columns, num_warps = rows_and_columns(bags, columns, target)
        return BagTile(block_rows, block_columns), num_warps
    block_columns = min(256, max(16, power_of_2_at_least(columns)))
    return BagTile(max(1, min(128 // block_columns, power_of_2_at_least(bags))), block_columns), 1

"""Embedding: y[t] = weight[index[t]], and a weight gradient without atomics.

Forward: one program copies a [BLOCK_TOKENS, BLOCK_COLUMNS] tile of rows.
Backward: the tokens are sorted by index beforehand (a stable sort), so that those of vocabulary row v lie between
bounds[v] and bounds[v + 1]. One program computes BLOCK_COLUMNS columns of one row of dW and adds its tokens' gradients
in that order: deterministic, and every row is written, rows that no token has with zeros. Bags of tokens
(`embedding_bag.py`) share this backward.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels import replays
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least, rows_and_columns


@triton.jit
def embedding_forward_kernel(
    index_ptr, weight_ptr, y_ptr, tokens, columns, stride_row, BLOCK_TOKENS: constexpr, BLOCK_COLUMNS: constexpr
):
    """y[t, c] = weight[index[t], c], one [BLOCK_TOKENS, BLOCK_COLUMNS] tile per program."""
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    first = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_TOKENS
    token = tl.arange(0, BLOCK_TOKENS)
    column = (tl.program_id(0) % column_tiles) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    token_mask = token < tokens - first
    mask = token_mask[:, None] & (column < columns)[None, :]
    index = tl.load(index_ptr + first + token, mask=token_mask, other=0).to(tl.int64)
    row = tl.load(weight_ptr + index[:, None] * stride_row + column[None, :], mask=mask, other=0.0)
    tl.store(y_ptr + first * columns + token[:, None] * columns + column[None, :], row, mask=mask)


@triton.jit
def embedding_backward_kernel(
    grad_ptr,
    order_ptr,
    bounds_ptr,
    bag_ptr,
    factor_ptr,
    count_ptr,
    argmax_ptr,
    dw_ptr,
    columns,
    bags,
    padding_idx,
    BY_FREQUENCY: constexpr,
    BLOCK_COLUMNS: constexpr,
):
    """dW[v] = sum of dY[order[i]] for bounds[v] <= i < bounds[v + 1]; BLOCK_COLUMNS of one row per program.

    BY_FREQUENCY divides by the count of tokens. The row `padding_idx` (-1 for none) stays zero. Where tokens lie in
    `bags`, dY has one row per bag: it counts times the token's `factor`, over the `count` of the bag's tokens, or
    only where the token is the bag's `argmax`; each where given.
    """
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row = tl.program_id(0) // column_tiles
    first_column = tl.program_id(0) % column_tiles * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    mask = tl.arange(0, BLOCK_COLUMNS) < columns - first_column
    start = tl.load(bounds_ptr + row)  # in bounds: row < rows, and bounds has rows + 1 elements
    end = tl.load(bounds_ptr + row + 1)  # in bounds: as above
    end = tl.where(row == padding_idx, start, end)
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for i in range(start, end):
        token = tl.load(order_ptr + i)  # in bounds: i < bounds[rows], the number of tokens
        if bag_ptr is None:
            total += tl.load(grad_ptr + token * columns + column, mask=mask, other=0.0).to(tl.float32)
        else:
            bag = tl.load(bag_ptr + token)  # in bounds: one for each token
            in_bag = (bag >= 0) & (bag < bags)
            bag = tl.where(in_bag, bag, 0)
            offset = bag * columns + column
            grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            if factor_ptr is not None:
                grad *= tl.load(factor_ptr + token).to(tl.float32)  # in bounds: one for each token
            if count_ptr is not None:
                grad /= tl.load(count_ptr + bag)  # in bounds: bag < bags
            if argmax_ptr is not None:
                grad = tl.where(tl.load(argmax_ptr + offset, mask=mask, other=-1) == token, grad, 0.0)
            grad = tl.where(in_bag, grad, 0.0)
            total += grad
    if BY_FREQUENCY:
        total /= tl.maximum(end - start, 1).to(tl.float32)
    dw = dw_ptr + row.to(tl.int64) * columns
    tl.store(dw + column, total.to(dw_ptr.dtype.element_ty), mask=mask)


@costs(embedding_forward_kernel)
def embedding_forward_cost(index_ptr: torch.Tensor, y_ptr: torch.Tensor, **_: Any) -> Cost:
    """Every token's row is read and written; no arithmetic."""
    return Cost(0, size_in_bytes(index_ptr) + 2 * size_in_bytes(y_ptr))


@costs(embedding_backward_kernel)
def embedding_backward_cost(grad_ptr: torch.Tensor, order_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every token's gradient is read and added once, every row of dW written."""
    tokens, columns = order_ptr.numel(), grad_ptr.shape[1]
    bytes_read = tokens * columns * grad_ptr.element_size() + size_in_bytes(order_ptr)
    return Cost(tokens * columns, bytes_read + size_in_bytes(*others.values()))


def embedding_forward(index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y [T, D] of index [T] (int32 or int64, contiguous, in range) and weight [V, D] (last dimension contiguous)."""
    tokens, columns = index.numel(), weight.shape[1]
    y = torch.empty((tokens, columns), dtype=weight.dtype, device=weight.device)
    _forward_problem(tokens, columns, weight.stride(0), current_target()).launch(index, weight, y)
    return y


class Bags(NamedTuple):
    """What the backward reads of bags of tokens.

    Attributes:
        bag: of each token, int64 [T]; those in none of the B bags get no gradient.
        factor: of each token, [T]; None for 1.
        count: how many tokens' mean a bag is, fp32 [B]; None for a sum.
        argmax: the token with the maximum, int64 [B, D]; None for a sum or a mean.
    """

    bag: torch.Tensor
    factor: torch.Tensor | None
    count: torch.Tensor | None
    argmax: torch.Tensor | None


def embedding_backward(
    grad: torch.Tensor,
    index: torch.Tensor,
    rows: int,
    padding_idx: int | None,
    scale_by_frequency: bool,
    bags: Bags | None = None,
) -> torch.Tensor:
    """dW [V, D] of dY [T, D] (contiguous) and index [T].

    Args:
        grad: dY; [B, D] with bags.
        index: as in the forward.
        rows: V.
        padding_idx: this row's gradient is zero; None for none.
        scale_by_frequency: divide a row's gradient by the number of its tokens.
        bags: of the tokens; None where each token is a row of y.
    """
    columns = grad.shape[1]
    order = torch.empty_like(index, dtype=torch.int64)
    bounds = torch.empty(rows + 1, dtype=torch.int64, device=index.device)
    replays.fill(order, _sort_tokens, bounds, index)
    dw = torch.empty((rows, columns), dtype=grad.dtype, device=grad.device)
    bag, factor, count, argmax = bags or (None, None, None, None)
    _backward_problem(rows, columns, grad.shape[0], padding_idx, scale_by_frequency).launch_named(
        grad_ptr=grad,
        order_ptr=order,
        bounds_ptr=bounds,
        bag_ptr=bag,
        factor_ptr=factor,
        count_ptr=count,
        argmax_ptr=argmax,
        dw_ptr=dw,
    )
    return dw


def _sort_tokens(order: torch.Tensor, bounds: torch.Tensor, index: torch.Tensor) -> None:
    """Writes the order of tokens by index, and where those of each row begin among them: [tokens] and [rows + 1]."""
    ordered = torch.empty_like(index)
    torch.sort(index, stable=True, out=(ordered, order))
    rows = torch.arange(len(bounds), device=index.device, dtype=index.dtype)
    torch.searchsorted(ordered, rows, out=bounds)


@lru_cache(maxsize=4096)
def _forward_problem(tokens: int, columns: int, stride_row: int, target: Target) -> Problem:
    block_tokens, block_columns, num_warps = rows_and_columns(tokens, columns, target)
    if target.kind == "cpu":  # a copy needs no room in the cache
        block_tokens = min(4 * block_tokens, power_of_2_at_least(tokens))
    return Problem(
        embedding_forward_kernel,
        (ceil_div(tokens, block_tokens) * ceil_div(columns, block_columns),),
        tokens,
        columns,
        stride_row,
        BLOCK_TOKENS=block_tokens,
        BLOCK_COLUMNS=block_columns,
        num_warps=num_warps,
    )


@lru_cache(maxsize=4096)
def _backward_problem(
    rows: int, columns: int, grad_rows: int, padding_idx: int | None, scale_by_frequency: bool
) -> Problem:
    block_columns = min(1024, power_of_2_at_least(columns))
    return Problem(
        embedding_backward_kernel,
        (rows * ceil_div(columns, block_columns),),
        columns,
        grad_rows,
        -1 if padding_idx is None else padding_idx,
        BY_FREQUENCY=scale_by_frequency,
        BLOCK_COLUMNS=block_columns,
        num_warps=1 if block_columns <= 256 else 4,
    )

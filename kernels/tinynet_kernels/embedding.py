"""Embedding: y[t] = weight[index[t]], and a weight gradient without atomics.

Forward: one program copies a [BLOCK_TOKENS, BLOCK_COLUMNS] tile of rows.
Backward: the tokens are sorted by index beforehand (a stable sort), so that those of vocabulary row v lie between
bounds[v] and bounds[v + 1]. One program computes BLOCK_COLUMNS columns of one row of dW and adds its tokens' gradients
in that order: deterministic, and every row is written, rows that no token has with zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, costs, launch, size_in_bytes
from tinynet_kernels.tiles import ceil_div, current_target, power_of_2_at_least, rows_and_columns


@triton.jit
def embedding_forward_kernel(
    index_ptr, weight_ptr, y_ptr, tokens, columns, stride_row, BLOCK_TOKENS: constexpr, BLOCK_COLUMNS: constexpr
):
    """y[t, c] = weight[index[t], c], one [BLOCK_TOKENS, BLOCK_COLUMNS] tile per program."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS
    token = tl.arange(0, BLOCK_TOKENS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    token_mask = token < tokens - first
    mask = token_mask[:, None] & (column < columns)[None, :]
    index = tl.load(index_ptr + first + token, mask=token_mask, other=0).to(tl.int64)
    row = tl.load(weight_ptr + index[:, None] * stride_row + column[None, :], mask=mask, other=0.0)
    tl.store(y_ptr + first * columns + token[:, None] * columns + column[None, :], row, mask=mask)


@triton.jit
def embedding_backward_kernel(
    grad_ptr, order_ptr, bounds_ptr, dw_ptr, columns, padding_idx, BY_FREQUENCY: constexpr, BLOCK_COLUMNS: constexpr
):
    """dW[v] = sum of dY[order[i]] for bounds[v] <= i < bounds[v + 1]; BLOCK_COLUMNS of one row per program.

    BY_FREQUENCY divides by the count of tokens. The row `padding_idx` (-1 for none) stays zero.
    """
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = column < columns
    start = tl.load(bounds_ptr + row)  # in bounds: row < rows, and bounds has rows + 1 elements
    end = tl.load(bounds_ptr + row + 1)  # in bounds: as above
    end = tl.where(row == padding_idx, start, end)
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for i in range(start, end):
        token = tl.load(order_ptr + i)  # in bounds: i < bounds[rows], the number of tokens
        total += tl.load(grad_ptr + token * columns + column, mask=mask, other=0.0).to(tl.float32)
    if BY_FREQUENCY:
        total /= tl.maximum(end - start, 1).to(tl.float32)
    dw = dw_ptr + row.to(tl.int64) * columns
    tl.store(dw + column, total.to(dw_ptr.dtype.element_ty), mask=mask)


@costs(embedding_forward_kernel)
def embedding_forward_cost(index_ptr: torch.Tensor, y_ptr: torch.Tensor, **_: Any) -> Cost:
    """Every token's row is read and written; no arithmetic."""
    return Cost(0, size_in_bytes(index_ptr) + 2 * size_in_bytes(y_ptr))


@costs(embedding_backward_kernel)
def embedding_backward_cost(grad_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every token's gradient is read and added once, every row of dW written."""
    return Cost(grad_ptr.numel(), size_in_bytes(grad_ptr, *others.values()))


def embedding_forward(index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y [T, D] of index [T] (int32 or int64, contiguous, in range) and weight [V, D] (last dimension contiguous)."""
    tokens, columns = index.numel(), weight.shape[1]
    y = torch.empty((tokens, columns), dtype=weight.dtype, device=weight.device)
    block_tokens, block_columns, num_warps = rows_and_columns(tokens, columns, current_target())
    grid, numbers = (ceil_div(tokens, block_tokens), ceil_div(columns, block_columns)), (tokens, columns)
    options = {"BLOCK_TOKENS": block_tokens, "BLOCK_COLUMNS": block_columns, "num_warps": num_warps}
    launch(embedding_forward_kernel, grid, index, weight, y, *numbers, weight.stride(0), **options)
    return y


def embedding_backward(
    grad: torch.Tensor, index: torch.Tensor, rows: int, padding_idx: int | None, scale_by_frequency: bool
) -> torch.Tensor:
    """dW [V, D] of dY [T, D] (contiguous) and index [T].

    Args:
        grad: dY.
        index: as in the forward.
        rows: V.
        padding_idx: this row's gradient is zero; None for none.
        scale_by_frequency: divide a row's gradient by the number of its tokens.
    """
    columns = grad.shape[1]
    ordered, order = torch.sort(index, stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(rows + 1, device=index.device, dtype=index.dtype))
    dw = torch.empty((rows, columns), dtype=grad.dtype, device=grad.device)
    block_columns = min(1024, power_of_2_at_least(columns))
    grid, numbers = (rows, ceil_div(columns, block_columns)), (columns, -1 if padding_idx is None else padding_idx)
    num_warps = 1 if block_columns <= 256 else 4
    options = {"BY_FREQUENCY": scale_by_frequency, "BLOCK_COLUMNS": block_columns, "num_warps": num_warps}
    launch(embedding_backward_kernel, grid, grad, order, bounds, dw, *numbers, **options)
    return dw

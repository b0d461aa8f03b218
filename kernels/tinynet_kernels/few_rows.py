"""Linear layer of few rows on a CPU: y = act(x W^T + b), x [M, K] of one to eight rows, W [N, K], b [N], y [M, N].

    y[m, n] = sum over k of x[m, k] W[n, k]

Each weight is used in only M products, so that reading W decides the time. A matrix product (`linear.py`) would first
copy tiles of W into another order; here both operands are read along k, in the order of memory. Each y[m, n] has a
vector of partial sums, added at the end. One program computes block_n columns of all rows, in steps of block_k
products. Partial sums of one row fill the first-level cache, those of several rows stay in registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32
from tinynet_kernels.tiles import Target, ceil_div


class FewRowsTile(NamedTuple):
    """All rows of x, the tile of W that a step reads, and whether block_k divides K."""

    rows: int
    block_n: int
    block_k: int
    even: bool


@triton.jit
def add_products(sums, x_ptr, weight_ptr, offset, k, left, stride_xm, MASKED: constexpr, TILE: constexpr):
    """The partial sums of each row, with the products of a step added; where MASKED, of its first `left` columns."""
    ROWS: constexpr = TILE.rows
    if MASKED:
        weight = tl.load(weight_ptr + offset, mask=(k < left)[None, :], other=0.0).to(tl.float32)
    else:
        weight = tl.load(weight_ptr + offset).to(tl.float32)  # in bounds: a whole step, of columns of W
    added = ()
    for row in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
        if MASKED:
            x = tl.load(x_ptr + row * stride_xm + k, mask=k < left, other=0.0).to(tl.float32)
        else:
            x = tl.load(x_ptr + row * stride_xm + k).to(tl.float32)  # in bounds: a whole step of a row
        added += (sums[row] + weight * x[None, :],)
    return added


@triton.jit
def linear_few_rows_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    z_ptr,
    N,
    K,
    stride_xm,
    stride_wn,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x W^T + b), and z = x W^T + b where it is to be saved, of block_n columns per program."""
    ROWS: constexpr = TILE.rows
    BLOCK_N: constexpr = TILE.block_n
    BLOCK_K: constexpr = TILE.block_k
    column_start = tl.program_id(0) * BLOCK_N
    columns_left = N - column_start
    column = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    weight_ptr += column_start.to(tl.int64) * stride_wn
    offset = (column % columns_left)[:, None] * stride_wn + k[None, :]  # past the end: copies, never stored
    sums = ()
    for _ in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
        sums += (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
    whole = K // BLOCK_K * BLOCK_K
    for start in range(0, whole, BLOCK_K):
        sums = add_products(sums, x_ptr + start, weight_ptr + start, offset, k, BLOCK_K, stride_xm, False, TILE)
    if not TILE.even:
        left = K - whole
        sums = add_products(sums, x_ptr + whole, weight_ptr + whole, offset, k, left, stride_xm, True, TILE)
    in_columns = column < columns_left
    for m in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
        z = tl.sum(sums[m], axis=1)
        if bias_ptr is not None:
            z += tl.load(bias_ptr + column_start + column, mask=in_columns, other=0.0).to(tl.float32)
        at = m * N + column_start + column
        if z_ptr is not None:
            tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=in_columns)
        tl.store(y_ptr + at, activate(z, ACTIVATION).to(y_ptr.dtype.element_ty), mask=in_columns)


@costs(linear_few_rows_kernel)
def linear_few_rows_cost(x_ptr: torch.Tensor, weight_ptr: torch.Tensor, **others: Any) -> Cost:
    """2 M N K operations; x, W and b read, y (and z) written."""
    return Cost(2 * x_ptr.numel() * weight_ptr.shape[0], size_in_bytes(x_ptr, weight_ptr, *others.values()))


def most_rows(dtype: torch.dtype) -> int:
    """Of more rows a matrix product takes less time."""
    return 8 if dtype is torch.float32 else 4


def few_rows_tile(M: int, K: int, dtype: torch.dtype) -> FewRowsTile:
    """Of several rows in fp32, partial sums fit 32 registers; 16-bit weights take longer to convert than to add."""
    block_n, block_k = (4 if M <= 5 else 2, 16) if M > 1 and dtype is torch.float32 else (8, 64)
    return FewRowsTile(M, block_n, block_k, K % block_k == 0)


def has_few_rows(
    sizes: tuple[int, int, int],
    stride_x: tuple[int, int],
    stride_weight: tuple[int, int],
    dtype: torch.dtype,
    target: Target,
) -> bool:
    """Whether the kernel computes a layer: on a CPU, of few rows, both operands contiguous along k.

    Args:
        sizes: M, N, K.
        stride_x, stride_weight: of x [M, K] and W [N, K].
        dtype: of both.
        target: where it runs.
    """
    rows, N, K = sizes
    if target.kind != "cpu" or rows > most_rows(dtype) or not stride_x[1] == stride_weight[1] == 1:
        return False
    tile = few_rows_tile(rows, K, dtype)
    return not exceed_int32(
        ((rows, stride_x[0]), (K + tile.block_k, 1)),
        ((tile.block_n, stride_weight[0]), (tile.block_k, 1)),
        ((rows, N), (N + tile.block_n, 1)),
    )


def few_rows_problem(
    sizes: tuple[int, int, int],
    stride_x: tuple[int, int],
    stride_weight: tuple[int, int],
    dtype: torch.dtype,
    activation: Activation,
) -> Problem:
    """The launch of a layer where `has_few_rows`, of x, W, b, y and z."""
    M, N, K = sizes
    tile = few_rows_tile(M, K, dtype)
    return Problem(
        linear_few_rows_kernel,
        (ceil_div(N, tile.block_n),),
        *(N, K, stride_x[0], stride_weight[0]),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )

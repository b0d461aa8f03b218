"""Products of many small matrices: C[b] = alpha A[b] B[b] + beta D[b], A [B, M, K], B [B, K, N], C and D [B, M, N].

One program computes a [block_m, block_n] tile of one C, by the main loop of linear layers (`gemm.gemm_tile`), which
takes any strides; alpha, beta and D are its epilogue.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import (
    GROUP,
    Matrix,
    Product,
    actual,
    gemm_tile,
    has_wide_rows,
    in_units,
    is_wide_product,
    tile_start,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, linear_tile, matmul_precision


@triton.jit
def batched_product_kernel(
    a_ptr,
    b_ptr,
    add_ptr,
    out_ptr,
    alpha,
    beta,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_ab,
    stride_bb,
    stride_add,
    PRODUCT: constexpr,
    TILE: constexpr,
):
    """C = alpha A B + beta D. One [block_m, block_n] tile of one matrix per program; D's rows are contiguous, as C."""
    M = actual(M, 0, PRODUCT)
    N = actual(N, 1, PRODUCT)
    K = actual(K, 2, PRODUCT)
    batch = tl.program_id(1).to(tl.int64)
    a = Matrix(a_ptr + batch * stride_ab, actual(stride_am, 3, PRODUCT), actual(stride_ak, 4, PRODUCT))
    b = Matrix(b_ptr + batch * stride_bb, actual(stride_bk, 5, PRODUCT), actual(stride_bn, 6, PRODUCT))
    row_start, column_start = tile_start(tl.program_id(0), M, N, PRODUCT, TILE)
    c = alpha * gemm_tile(a, b, row_start, column_start, row_start * 0, K, M, N, PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    mask = (row < M - row_start)[:, None] & (column < N - column_start)[None, :]
    base = row_start.to(tl.int64) * N + column_start
    offset = row[:, None] * N + column[None, :]
    if add_ptr is not None:
        added = tl.load(add_ptr + batch * stride_add + base + offset, mask=mask, other=0.0)
        c += beta * added.to(tl.float32)
    out_ptr += batch * M * N + base
    tl.store(out_ptr + offset, c.to(out_ptr.dtype.element_ty), mask=mask)


@costs(batched_product_kernel)
def batched_product_cost(a_ptr: torch.Tensor, b_ptr: torch.Tensor, **others: Any) -> Cost:
    """2 B M N K operations; A, B and D read, C written."""
    return Cost(2 * a_ptr.numel() * b_ptr.shape[2], size_in_bytes(a_ptr, b_ptr, *others.values()))


def batched_product(
    a: torch.Tensor, b: torch.Tensor, add: torch.Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> torch.Tensor:
    """alpha A B + beta D of each pair of matrices.

    Args:
        a: [B, M, K], any strides, no size 0.
        b: [B, K, N], of the same dtype, any strides.
        add: D, contiguous [B, M, N]; None for none.
        alpha, beta: numbers.

    Returns:
        [B, M, N], contiguous, of the same dtype.
    """
    count, M, K = a.shape
    N = b.shape[2]
    out = a.new_empty((count, M, N))
    target, dtype = current_target(), a.dtype
    precision = matmul_precision(dtype, target)
    problem = _problem(count, (M, N, K), a.stride(), b.stride(), dtype, precision, target)
    problem.launch(a, b, add, out, float(alpha), float(beta))
    return out


@lru_cache(maxsize=4096)
def _problem(
    count: int,
    sizes: tuple[int, int, int],
    stride_a: tuple[int, ...],
    stride_b: tuple[int, ...],
    dtype: torch.dtype,
    precision: str,
    target: Target,
) -> Problem:
    M, N, K = sizes
    (batch_a, *in_a), (batch_b, *in_b) = stride_a, stride_b
    aligned = has_wide_rows(tuple(in_a)) and has_wide_rows(tuple(in_b))
    tile = linear_tile(M, N, K, dtype, precision, aligned, "identity", target)
    wide = is_wide_product(M, N, K, tile, (in_a[0], in_a[1]), (in_b[1], in_b[0]))
    numbers, units = in_units(target, M, N, K, *in_a, *in_b)
    return Problem(
        batched_product_kernel,
        (ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n), count),
        *numbers,
        batch_a,
        batch_b,
        M * N,
        PRODUCT=Product(precision, K % tile.block_k == 0, wide, GROUP, units),
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )

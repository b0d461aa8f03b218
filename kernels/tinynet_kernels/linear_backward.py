"""All gradients of a small linear layer in one launch.

On a GPU each of them alone would leave most of it idle; on a CPU a launch takes as long as they do.

    dX [M, K] = dZ W act'(saved)      the layer below's dZ where x was its output, as in `linear.py`
    dW [N, K] = dZ^T x
    db [N]    = sums of dZ's columns

Tiling: the first programs compute one tile of dX each, the next ones one tile of dW, the last ones a block of db. None
reads what another writes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import GROUP, Matrix, Product, actual, in_units, is_wide_product, passed_as
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import matrix_of
from tinynet_kernels.linear import input_gradient_tile, weight_gradient_tile
from tinynet_kernels.tiles import (
    GemmTile,
    Target,
    ceil_div,
    current_target,
    every_register,
    fuses_derivative,
    gemm_tile,
    matmul_precision,
    product_splits,
    smallest_gemm_tile,
)


class Backward(NamedTuple):
    """What `linear_backward_kernel` is compiled for, beside its tile.

    Attributes:
        input: the product dZ W.
        weight: the product dZ^T x.
        rows, columns: of dZ in one step of a sum of columns.
    """

    input: Product
    weight: Product
    rows: int = 64
    columns: int = 64


@triton.jit
def linear_backward_kernel(
    dz_ptr,
    x_ptr,
    weight_ptr,
    saved_ptr,
    dx_ptr,
    dw_ptr,
    db_ptr,
    M,
    N,
    K,
    stride_dzm,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    input_tiles,
    weight_tiles,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """A tile of dX, or one of dW, or a block of db. dX is None where it isn't wanted, and so is db."""
    PRODUCT: constexpr = SPEC.weight
    INPUT: constexpr = SPEC.input
    M = actual(M, 0, PRODUCT)
    N = actual(N, 1, PRODUCT)
    K = actual(K, 2, PRODUCT)
    stride_dzm = actual(stride_dzm, 3, PRODUCT)
    program = tl.program_id(0)
    if program < weight_tiles:
        dz = Matrix(dz_ptr, 1, stride_dzm)
        x = Matrix(x_ptr, actual(stride_xm, 4, PRODUCT), actual(stride_xk, 5, PRODUCT))
        weight_gradient_tile(dz, x, dw_ptr, program, program * 0, M, M, N, K, PRODUCT, False, TILE)
    elif program < weight_tiles + input_tiles:
        if dx_ptr is not None:
            dz = Matrix(dz_ptr, stride_dzm, 1)
            weight = Matrix(weight_ptr, actual(stride_wn, 6, PRODUCT), actual(stride_wk, 7, PRODUCT))
            tile = program - weight_tiles
            input_gradient_tile(dz, weight, saved_ptr, dx_ptr, None, tile, M, N, K, INPUT, ACTIVATION, TILE)
    elif db_ptr is not None:
        sum_columns(dz_ptr, db_ptr, program - weight_tiles - input_tiles, M, N, stride_dzm, SPEC)


@triton.jit
def sum_columns(dz_ptr, db_ptr, block, M, N, stride_dzm, SPEC: constexpr):
    """db of one block of columns."""
    ROWS: constexpr = SPEC.rows
    COLUMNS: constexpr = SPEC.columns
    column_start = tl.cast(block, tl.int64) * COLUMNS
    column = tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    column_mask = column < N - column_start
    dz_ptr += column_start
    offset = row[:, None] * stride_dzm + column[None, :]
    db = tl.zeros((COLUMNS,), tl.float32)
    for start in tl.range(0, M, ROWS, num_stages=1):  # pyright: ignore[reportGeneralTypeIssues]
        mask = (row < M - start)[:, None] & column_mask[None, :]
        db += tl.sum(tl.load(dz_ptr + offset, mask=mask, other=0.0).to(tl.float32), axis=0)
        dz_ptr += tl.cast(stride_dzm, tl.int64) * ROWS
    tl.store(db_ptr + column_start + column, db.to(db_ptr.dtype.element_ty), mask=column_mask)


@costs(linear_backward_kernel)
def linear_backward_cost(
    dz_ptr: torch.Tensor, weight_ptr: torch.Tensor, dx_ptr: torch.Tensor | None, K: int, SPEC: Backward, **others: Any
) -> Cost:
    """2 M N K operations for each product; operands read, gradients written."""
    products = 1 if dx_ptr is None else 2
    read = size_in_bytes(dz_ptr, *([] if dx_ptr is None else [weight_ptr]))
    flops = products * 2 * dz_ptr.numel() * passed_as(K, 2, SPEC.weight)
    return Cost(flops, read + size_in_bytes(dx_ptr, *others.values()))


def joins_gradients(M: int, N: int, K: int, dtype: torch.dtype, below: Activation) -> bool:
    """Whether `joined_gradients` serves a layer.

    Args:
        M, N, K: rows, outputs and inputs.
        dtype: of the operands.
        below: the activation whose derivative comes with dX.
    """
    target = current_target()
    return is_small(M, N, K, dtype, target) and fuses_derivative(below.name, target)


@lru_cache(maxsize=4096)
def is_small(M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> bool:
    """Whether a layer is small.

    On a GPU: its tiles are no more than four to a multiprocessor, and its products need no split. On a CPU: a product
    takes less than 100 microseconds, and few rows, which leave most of this kernel's tiles empty, less than ten.
    """
    if target.kind == "cpu":
        products = M * N * K
        return products <= (10 << 20 if M >= 32 else 1 << 20)
    if target.kind not in ("cuda", "hip"):
        return False
    tile = smallest_gemm_tile(dtype, target)
    input_tiles, weight_tiles = _tiles(M, K, tile), _tiles(N, K, tile)
    splits = (
        product_splits(input_tiles, ceil_div(N, tile.block_k), target),
        product_splits(weight_tiles, ceil_div(M, tile.block_k), target),
    )
    return splits == (1, 1) and input_tiles + weight_tiles <= 4 * target.processors


def joined_tile(M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> GemmTile:
    """The tile of both products: [block_m, block_n] of dX [M, K] and of dW [N, K]."""
    if target.kind == "cpu":
        return gemm_tile(max(M, N), K, max(M, N), dtype, target)
    return smallest_gemm_tile(dtype, target)


def _tiles(rows: int, columns: int, tile: GemmTile) -> int:
    return ceil_div(rows, tile.block_m) * ceil_div(columns, tile.block_n)


def joined_gradients(
    dz: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    saved: torch.Tensor | None = None,
    below: Activation = IDENTITY,
    *,
    want_input: bool,
    want_bias: bool,
    dtypes: tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None] = (None, None, None),
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """dX or the layer below's dZ, dW and db, where `joins_gradients` says so.

    Args:
        dz: [..., N], contiguous or, of two dimensions, the last one.
        x: [M, K], any strides, or contiguous [..., K].
        weight: [N, K], any strides.
        saved: what `linear_forward` returned for the layer below, [..., K]; None for an identity.
        below: that layer's activation, the identity where x is no layer's output.
        want_input, want_bias: whether to compute dX, and db.
        dtypes: of dX, dW and db; None for dz's.
    """
    (M, N, (stride_dz, _)), (_, K, stride_x) = matrix_of(dz), matrix_of(x)
    target = current_target()
    precision = matmul_precision(dz.dtype, target)
    strides = stride_dz, *stride_x, *weight.stride()
    problem = _problem((M, N, K), strides, dz.dtype, precision, below, want_input, want_bias, target)
    of_input, of_weight, of_bias = (dtype or dz.dtype for dtype in dtypes)
    dx = dz.new_empty((*dz.shape[:-1], K), dtype=of_input) if want_input else None
    dw = dz.new_empty((N, K), dtype=of_weight)
    db = dz.new_empty((N,), dtype=of_bias) if want_bias else None
    problem.launch_named(
        dz_ptr=dz, x_ptr=x, weight_ptr=weight, saved_ptr=saved if want_input else None, dx_ptr=dx, dw_ptr=dw, db_ptr=db
    )
    return dx, dw, db


@lru_cache(maxsize=4096)
def _problem(
    sizes: tuple[int, int, int],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    precision: str,
    below: Activation,
    want_input: bool,
    want_bias: bool,
    target: Target,
) -> Problem:
    M, N, K = sizes
    stride_dzm, stride_xm, stride_xk, stride_wn, stride_wk = strides
    tile = joined_tile(M, N, K, dtype, target)
    numbers, units = in_units(target, M, N, K, *strides)
    of_input = is_wide_product(M, K, N, tile, (stride_dzm, 1), (stride_wk, stride_wn))
    of_weight = is_wide_product(N, K, M, tile, (1, stride_dzm), (stride_xk, stride_xm))
    wide = of_input or of_weight
    input_tiles, weight_tiles = _tiles(M, K, tile) if want_input else 0, _tiles(N, K, tile)
    spec = Backward(
        Product(precision, N % tile.block_k == 0, wide, GROUP, units),
        Product(precision, M % tile.block_k == 0, wide, GROUP, units),
    )
    return Problem(
        linear_backward_kernel,
        (weight_tiles + input_tiles + (ceil_div(N, spec.columns) if want_bias else 0),),
        *numbers,
        input_tiles,
        weight_tiles,
        SPEC=spec,
        ACTIVATION=below.compiled,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **every_register(tile.block_m, precision, target),
    )

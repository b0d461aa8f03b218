"""Linear layer: y = act(x W^T + b), x [M, K], W [N, K], b [N], y [M, N].

Forward: one program computes a tile of y; bias and activation are its epilogue, which also stores the pre-activation
where the derivative needs it. Backward, from dZ = dY act' (`activation.activation_backward`, which computes db too):

    dX [M, K] = dZ W            where x is the output of another layer in one chain, this product's epilogue turns it
                                into that layer's dZ, dX act'(x), and sums its columns, that layer's db
    dW [N, K] = dZ^T x          M is long and the output small: the reduction is split over programs into an fp32
                                workspace [SPLIT, N, K], added in a fixed order

Where the tiles of y, or of dX, would leave most of a GPU idle, their reduction is split too (`split_product`). A CPU
computes y of few rows without a matrix product (`few_rows.py`).

act' stays out of the products' loads: fused there it costs 3 to 18 times the main loop's instructions.
Operands may be transposed views: the loop takes any strides (`gemm.gemm_tile`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate, activation_backward, activation_derivative
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.few_rows import few_rows_problem, has_few_rows
from tinynet_kernels.gemm import (
    GROUP,
    Matrix,
    Product,
    actual,
    gemm_tile,
    has_wide_rows,
    in_units,
    is_wide_product,
    passed_as,
    tile_start,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import matrix_of
from tinynet_kernels.offsets import widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.split_product import SplitProduct, split_product
from tinynet_kernels.tiles import (
    MOST_ROWS_OF_STORES,
    Target,
    balancing_splits,
    ceil_div,
    current_target,
    every_register,
    fuses_derivative,
    linear_tile,
    matmul_precision,
    product_splits,
    split_count,
    with_more_columns,
)


@triton.jit
def linear_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    z_ptr,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    PRODUCT: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x W^T + b), and z = x W^T + b where it is to be saved. One [block_m, block_n] tile per program."""
    M = actual(M, 0, PRODUCT)
    N = actual(N, 1, PRODUCT)
    K = actual(K, 2, PRODUCT)
    x = Matrix(x_ptr, actual(stride_xm, 3, PRODUCT), actual(stride_xk, 4, PRODUCT))
    weight = Matrix(weight_ptr, actual(stride_wk, 6, PRODUCT), actual(stride_wn, 5, PRODUCT))
    row_start, column_start = tile_start(tl.program_id(0), M, N, PRODUCT, TILE)
    z = gemm_tile(x, weight, row_start, column_start, row_start * 0, K, M, N, PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    column_mask = column < N - column_start
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column_start + column, mask=column_mask, other=0.0)
        z += bias.to(tl.float32)[None, :]
    mask = (row < M - row_start)[:, None] & column_mask[None, :]
    base = row_start.to(tl.int64) * N + column_start
    offset = row[:, None] * N + column[None, :]
    if z_ptr is not None:
        tl.store(z_ptr + base + offset, z.to(z_ptr.dtype.element_ty), mask=mask)
    y = activate(z, ACTIVATION)
    tl.store(y_ptr + base + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def input_gradient_tile(
    dz,
    weight,
    saved_ptr,
    dx_ptr,
    partial_ptr,
    program,
    M,
    N,
    K,
    PRODUCT: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """One tile of dX = dZ W act'(saved); see `linear_input_gradient_kernel`. dZ and W are `Matrix`."""
    row_start, column_start = tile_start(program, M, K, PRODUCT, TILE)
    dx = gemm_tile(dz, weight, row_start, column_start, row_start * 0, N, M, K, PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    column_mask = column < K - column_start
    mask = (row < M - row_start)[:, None] & column_mask[None, :]
    base = row_start.to(tl.int64) * K + column_start
    offset = row[:, None] * K + column[None, :]
    if ACTIVATION.name != "identity":
        saved = tl.load(saved_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        dx *= activation_derivative(saved, ACTIVATION)
    tl.store(dx_ptr + base + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        partial = tl.sum(tl.where(mask, dx, 0.0), axis=0)  # rows past M hold copies of others
        row_tile = (row_start // TILE.block_m).to(tl.int64)
        tl.store(partial_ptr + row_tile * K + column_start + column, partial, mask=column_mask)


@triton.jit
def linear_input_gradient_kernel(
    dz_ptr,
    weight_ptr,
    saved_ptr,
    dx_ptr,
    partial_ptr,
    M,
    N,
    K,
    stride_dzm,
    stride_wn,
    stride_wk,
    PRODUCT: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dX = dZ W act'(saved). One [block_m, block_n] tile of dX [M, K] per program; the loop walks N.

    `saved` and dX are contiguous [M, K]. `partial`, where given, receives the sums of dX's columns: a row [K] for each
    row tile.
    """
    M = actual(M, 0, PRODUCT)
    N = actual(N, 1, PRODUCT)
    K = actual(K, 2, PRODUCT)
    dz = Matrix(dz_ptr, actual(stride_dzm, 3, PRODUCT), 1)
    weight = Matrix(weight_ptr, actual(stride_wn, 4, PRODUCT), actual(stride_wk, 5, PRODUCT))
    program = tl.program_id(0)
    input_gradient_tile(dz, weight, saved_ptr, dx_ptr, partial_ptr, program, M, N, K, PRODUCT, ACTIVATION, TILE)


@triton.jit
def weight_gradient_tile(
    dz, x, dw_ptr, program, split, rows_per_split, M, N, K, PRODUCT: constexpr, ACCUMULATE: constexpr, TILE: constexpr
):
    """One tile of dW[split] = dZ^T x; see `linear_weight_gradient_kernel`. dZ^T and x are `Matrix`."""
    row_start, column_start = tile_start(program, N, K, PRODUCT, TILE)
    m_start = split * rows_per_split
    m_end = min(m_start + rows_per_split, M)
    dw = gemm_tile(dz, x, row_start, column_start, m_start, m_end, N, K, PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    mask = (row < N - row_start)[:, None] & (column < K - column_start)[None, :]
    base = (tl.cast(split, tl.int64) * N + row_start) * K + column_start
    offset = row[:, None] * K + column[None, :]
    if ACCUMULATE:
        dw += tl.load(dw_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        tl.debug_barrier()
    tl.store(dw_ptr + base + offset, dw.to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def linear_weight_gradient_kernel(
    dz_ptr,
    x_ptr,
    dw_ptr,
    M,
    N,
    K,
    stride_dzm,
    stride_xm,
    stride_xk,
    rows_per_split,
    PRODUCT: constexpr,
    ACCUMULATE: constexpr,
    TILE: constexpr,
):
    """dW[split] = dZ^T x over the split's rows, fp32 or the weight's dtype, [SPLIT, N, K]; or dW += for ACCUMULATE.

    One [block_m, block_n] tile of one split of dW per program; the loop walks `rows_per_split` of the M rows.
    """
    M = actual(M, 0, PRODUCT)
    N = actual(N, 1, PRODUCT)
    K = actual(K, 2, PRODUCT)
    dz = Matrix(dz_ptr, 1, actual(stride_dzm, 3, PRODUCT))
    x = Matrix(x_ptr, actual(stride_xm, 4, PRODUCT), actual(stride_xk, 5, PRODUCT))
    rows = widened(rows_per_split, PRODUCT.wide)
    program = tl.program_id(0)
    weight_gradient_tile(dz, x, dw_ptr, program, tl.program_id(1), rows, M, N, K, PRODUCT, ACCUMULATE, TILE)


@costs(linear_forward_kernel)
def linear_forward_cost(x_ptr: torch.Tensor, weight_ptr: torch.Tensor, **others: Any) -> Cost:
    """2 M N K operations; x, W and b read, y (and z) written."""
    return Cost(2 * x_ptr.numel() * weight_ptr.shape[0], size_in_bytes(x_ptr, weight_ptr, *others.values()))


@costs(linear_input_gradient_kernel)
def linear_input_gradient_cost(dz_ptr: torch.Tensor, weight_ptr: torch.Tensor, **others: Any) -> Cost:
    """2 M N K operations; dZ, W and what was saved are read, dX and partial sums written."""
    return Cost(2 * dz_ptr.numel() * weight_ptr[0].numel(), size_in_bytes(dz_ptr, weight_ptr, *others.values()))


@costs(linear_weight_gradient_kernel)
def linear_weight_gradient_cost(dz_ptr: torch.Tensor, K: int, PRODUCT: Product, **others: Any) -> Cost:
    """2 M N K operations; dZ and x read, every split of dW written."""
    return Cost(2 * dz_ptr.numel() * passed_as(K, 2, PRODUCT), size_in_bytes(dz_ptr, *others.values()))


Sizes = tuple[int, int, int]
Strides = tuple[int, int]


@lru_cache(maxsize=4096)
def linear_forward_problem(
    sizes: Sizes,
    stride_x: Strides,
    stride_weight: Strides,
    dtype: torch.dtype,
    precision: str,
    activation: Activation,
    target: Target,
) -> Problem | SplitProduct:
    if has_few_rows(sizes, stride_x, stride_weight, dtype, target):
        return few_rows_problem(sizes, stride_x, stride_weight, dtype, activation)
    M, N, K = sizes
    aligned = has_wide_rows(stride_x) and has_wide_rows(stride_weight)
    tile = linear_tile(M, N, K, dtype, precision, aligned, activation.name, target)
    tiles = ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n)
    splits = product_splits(tiles, ceil_div(K, tile.block_k), target)
    if splits > 1:
        operands = stride_x, stride_weight[::-1]
        return split_product(sizes, *operands, precision, activation, tile, splits, aligned=aligned, target=target)
    wide = is_wide_product(M, N, K, tile, stride_x, stride_weight)
    numbers, units = in_units(target, M, N, K, *stride_x, *stride_weight)
    return Problem(
        linear_forward_kernel,
        (tiles,),
        *numbers,
        PRODUCT=Product(precision, K % tile.block_k == 0, wide, GROUP, units),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def linear_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Activation,
    *,
    save: bool,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y = act(x W^T + b) and what the derivative of `activation` reads.

    Args:
        x: [M, K], any strides, or contiguous [..., K].
        weight: [N, K], any strides, x's dtype.
        bias: [N] or None.
        activation: fused into the epilogue.
        save: whether a backward will follow.
        out: contiguous [..., N], receives y; None for a new tensor.

    Returns:
        y [..., N], and y itself, z in y's shape or None (identity, or nothing to save).
    """
    M, K, stride_x = matrix_of(x)
    N = weight.shape[0]
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    y = x.new_empty((*x.shape[:-1], N)) if out is None else out
    z = torch.empty_like(y) if save and activation.reads_input else None
    target, dtype = current_target(), x.dtype
    precision = matmul_precision(dtype, target)
    problem = linear_forward_problem((M, N, K), stride_x, weight.stride(), dtype, precision, activation, target)
    problem.launch(x, weight, bias, y, z)
    return y, y if save and activation.reads_output else z


@lru_cache(maxsize=4096)
def linear_input_gradient_problem(
    sizes: Sizes,
    stride_dz: Strides,
    stride_weight: Strides,
    dtype: torch.dtype,
    precision: str,
    activation: Activation,
    plain: bool,
    target: Target,
) -> Problem | SplitProduct:
    M, N, K = sizes
    aligned = has_wide_rows(stride_dz) and has_wide_rows(stride_weight)
    tile = linear_tile(M, K, N, dtype, precision, aligned, activation.name, target, derivative=True)
    if target.kind == "cpu" and M >= 256 and ceil_div(M, 256) * ceil_div(K, tile.block_n) >= target.processors:
        tile = tile._replace(block_m=256)  # rows that share a tile of W, which a program first brings into order
    tiles = ceil_div(M, tile.block_m) * ceil_div(K, tile.block_n)
    splits = product_splits(tiles, ceil_div(N, tile.block_k), target) if plain else 1
    if splits > 1:
        operands = stride_dz, stride_weight
        return split_product((M, K, N), *operands, precision, activation, tile, splits, aligned=aligned, target=target)
    wide = is_wide_product(M, K, N, tile, stride_dz, stride_weight[::-1])
    numbers, units = in_units(target, M, N, K, stride_dz[0], *stride_weight)
    return Problem(
        linear_input_gradient_kernel,
        (tiles,),
        *numbers,
        PRODUCT=Product(precision, N % tile.block_k == 0, wide, GROUP, units),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **({} if plain else every_register(tile.block_m, precision, target)),
    )


def linear_input_gradient(dz: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """dX [..., K] = dZ W in `dtype` (None: dZ's), W [N, K]; dZ [..., N] is contiguous, of two dimensions the last."""
    dx = dz.new_empty((*dz.shape[:-1], weight.shape[1]), dtype=dtype)
    problem = _input_gradient_problem_of(dz, weight, IDENTITY, current_target(), want_bias=False)
    problem.launch(dz, weight, None, dx, None)
    return dx


def linear_hidden_gradient(
    dz: torch.Tensor,
    weight: torch.Tensor,
    saved: torch.Tensor | None,
    activation: Activation,
    *,
    want_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of the layer below, whose output x = act(z) was the input here: its dZ = dX act'(saved), its db.

    Args:
        dz: [..., N], contiguous or, of two dimensions, the last one.
        weight: [N, K].
        saved: what `linear_forward` returned for the layer below, [..., K] or None.
        activation: that layer's.
        want_bias: whether to compute db.

    Returns:
        dZ [..., K] in `dz`'s dtype, and db [K] in fp32 or None.
    """
    target = current_target()
    if not fuses_derivative(activation.name, target):
        dx = linear_input_gradient(dz, weight)
        below, db = activation_backward(dx, saved, activation, want_dz=True, want_bias=want_bias)
        assert below is not None
        return below, db
    (M, _, _), K = matrix_of(dz), weight.shape[1]
    problem = _input_gradient_problem_of(dz, weight, activation, target, want_bias=want_bias)
    below = dz.new_empty((*dz.shape[:-1], K))
    partial = None
    if want_bias:
        assert isinstance(problem, Problem)  # the sums of columns are a part of the product's epilogue
        row_tiles = ceil_div(M, problem.constants["TILE"].block_m)
        partial = dz.new_empty((K,) if row_tiles == 1 else (row_tiles, K), dtype=torch.float32)
    problem.launch(dz, weight, saved, below, partial)
    return below, partial if partial is None or partial.dim() == 1 else sum_partials(partial)


def _input_gradient_problem_of(
    dz: torch.Tensor, weight: torch.Tensor, activation: Activation, target: Target, *, want_bias: bool
) -> Problem | SplitProduct:
    (M, N, stride_dz), dtype = matrix_of(dz), dz.dtype
    plain = activation.name == "identity" and not want_bias
    options = dtype, matmul_precision(dtype, target), activation, plain, target
    return linear_input_gradient_problem((M, N, weight.shape[1]), stride_dz, weight.stride(), *options)


@lru_cache(maxsize=4096)
def linear_weight_gradient_problem(
    sizes: Sizes,
    stride_dz: Strides,
    stride_x: Strides,
    dtype: torch.dtype,
    precision: str,
    accumulate: bool,
    target: Target,
) -> Problem:
    M, N, K = sizes
    aligned = has_wide_rows(stride_dz) and has_wide_rows(stride_x)
    tile = linear_tile(N, K, M, dtype, precision, aligned, "identity", target)
    if target.kind == "cpu" and accumulate and M >= 256:
        tile = tile._replace(block_m=min(64, tile.block_m), block_k=256)  # a sum is read and written once per call
    if target.kind == "cpu" and M <= MOST_ROWS_OF_STORES:
        tile = tile._replace(block_m=min(64 if M <= 16 else 128, tile.block_m))
    if not accumulate or M <= MOST_ROWS_OF_STORES:
        tile = with_more_columns(tile, N, K, M, target)
    wide = is_wide_product(N, K, M, tile, stride_dz[::-1], stride_x[::-1])
    numbers, units = in_units(target, M, N, K, stride_dz[0], *stride_x)
    tiles = ceil_div(N, tile.block_m) * ceil_div(K, tile.block_n)
    steps = ceil_div(M, tile.block_k)
    splits = 1 if accumulate else max(split_count(tiles, steps, target), balancing_splits(tile, N, K, steps, target))
    rows_per_split = ceil_div(steps, splits) * tile.block_k
    group = 1 if target.kind == "cpu" else GROUP  # a CPU writes a large dW fastest in the order of memory
    return Problem(
        linear_weight_gradient_kernel,
        (tiles, ceil_div(M, rows_per_split)),
        *numbers,
        rows_per_split,
        PRODUCT=Product(precision, M % tile.block_k == 0, wide, group, units),
        ACCUMULATE=accumulate,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def linear_weight_gradient(
    dz: torch.Tensor, x: torch.Tensor, dtype: torch.dtype | None = None, add_to: torch.Tensor | None = None
) -> torch.Tensor:
    """dW [N, K] = dZ^T [N, M] x [M, K].

    Args:
        dz: [..., N], contiguous or, of two dimensions, the last one.
        x: [M, K], any strides, or contiguous [..., K].
        dtype: of dW; None for x's.
        add_to: a contiguous [N, K] to which dW is added, and which is returned; None for a new tensor.
    """
    (M, N, stride_dz), (_, K, stride_x) = matrix_of(dz), matrix_of(x)
    target = current_target()
    precision = matmul_precision(dz.dtype, target)
    accumulate = add_to is not None
    strides = stride_dz, stride_x
    problem = linear_weight_gradient_problem((M, N, K), *strides, dz.dtype, precision, accumulate, target)
    if add_to is not None:
        problem.launch(dz, x, add_to)
        return add_to
    splits = problem.grid[1]
    if splits == 1:
        dw = x.new_empty((N, K), dtype=dtype)
        problem.launch(dz, x, dw)
        return dw
    parts = x.new_empty((splits, N, K), dtype=torch.float32)
    problem.launch(dz, x, parts)
    return sum_partials(parts, x.dtype if dtype is None else dtype)

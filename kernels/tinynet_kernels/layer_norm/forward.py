"""The forward of layer normalization: y, the sum with the residual, and the statistics, in one kernel."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import store_rows
from tinynet_kernels.launch import Problem, costs
from tinynet_kernels.layer_norm.rows import (
    affine,
    layer_norm_cost,
    layer_norm_tile,
    load_tile,
    spec_of,
    tile_at,
    warps_of,
)
from tinynet_kernels.layout import matrix_of
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import Target, ceil_div, current_target


@triton.jit
def load_sum(x_ptr, residual_ptr, stride_x, stride_residual, at, WIDE: constexpr):
    """x, or the rounded sum of x and the residual."""
    x = load_tile(x_ptr, stride_x, at, WIDE)
    if residual_ptr is not None:
        x += load_tile(residual_ptr, stride_residual, at, WIDE)
        x = x.to(x_ptr.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def sums_of_squares(x, mask, count, CENTER: constexpr):
    """(mean, sum of the squared deviations from it) of each row of a tile with `count` columns."""
    if CENTER:
        mean = tl.sum(x, axis=1) / count
        x = tl.where(mask, x - mean[:, None], 0.0)
    else:
        mean = tl.zeros((x.shape[0],), tl.float32)
    return mean, tl.sum(x * x, axis=1)


@triton.jit
def layer_norm_forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    sum_ptr,
    mean_ptr,
    rstd_ptr,
    eps,
    rows,
    columns,
    stride_x,
    stride_residual,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y, the sum with the residual where there is one, and the statistics where they are saved, of block_rows rows."""
    WIDE: constexpr = SPEC.wide
    columns = widened(columns, WIDE)
    first = tl.program_id(0).to(tl.int64) * TILE.block_rows
    at = tile_at(first, 0, rows, columns, TILE)
    if TILE.whole:
        x = load_sum(x_ptr, residual_ptr, stride_x, stride_residual, at, WIDE)
        mean, squares = sums_of_squares(x, at.mask, columns, SPEC.center)
    else:
        mean = tl.full((TILE.block_rows,), 0.0, tl.float32)
        squares = tl.full((TILE.block_rows,), 0.0, tl.float32)
        for start in range(0, columns, TILE.block_columns):
            block = tile_at(first, start, rows, columns, TILE)
            values = load_sum(x_ptr, residual_ptr, stride_x, stride_residual, block, WIDE)
            count = tl.minimum(columns - start, TILE.block_columns).to(tl.float32)
            block_mean, block_squares = sums_of_squares(values, block.mask, count, SPEC.center)
            squares += block_squares
            if SPEC.center:
                share = count / (start + count)
                difference = block_mean - mean
                squares += difference * difference * (share * start)
                mean += difference * share
    rstd = 1.0 / tl.sqrt(squares / columns + eps)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + first + at.row, rstd, mask=at.in_rows)
        if SPEC.center:
            tl.store(mean_ptr + first + at.row, mean, mask=at.in_rows)
    if TILE.whole:
        z = affine((x - mean[:, None]) * rstd[:, None], weight_ptr, bias_ptr, at)
        store_rows(y_ptr, columns, activate(z, ACTIVATION), first, at.row, at.column, at.mask, WIDE)
        if sum_ptr is not None:
            store_rows(sum_ptr, columns, x, first, at.row, at.column, at.mask, WIDE)
    else:
        for start in range(0, columns, TILE.block_columns):
            block = tile_at(first, start, rows, columns, TILE)
            values = load_sum(x_ptr, residual_ptr, stride_x, stride_residual, block, WIDE)
            z = affine((values - mean[:, None]) * rstd[:, None], weight_ptr, bias_ptr, block)
            store_rows(y_ptr, columns, activate(z, ACTIVATION), first, block.row, block.column, block.mask, WIDE)
            if sum_ptr is not None:
                store_rows(sum_ptr, columns, values, first, block.row, block.column, block.mask, WIDE)


costs(layer_norm_forward_kernel)(layer_norm_cost)


def layer_norm_forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    activation: Activation,
    *,
    center: bool,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """act(LayerNorm(x + residual)), or RMSNorm's without `center`.

    Args:
        x: [rows, columns], the last dimension contiguous, or contiguous [..., columns]; not empty.
        residual: like x, or None.
        weight, bias: [columns], contiguous, or None; of x's dtype or float32.
        eps: added to the variance.
        activation: applied after the affine part.
        center: whether to subtract the mean.
        save: whether a backward will follow.

    Returns:
        y in x's shape; the sum where there is a residual; mean [rows] for `center`, and rstd [rows],
        in fp32 where `save`. None for what is absent.
    """
    rows, columns, (stride_x, _) = matrix_of(x)
    strides = stride_x, 0 if residual is None else matrix_of(residual)[2][0]
    y = x.new_empty(x.shape)
    total = None if residual is None else torch.empty_like(y)
    rstd = x.new_empty(rows, dtype=torch.float32) if save else None
    mean = None if rstd is None or not center else torch.empty_like(rstd)
    _forward_problem(rows, columns, strides, activation, center, current_target()).launch_named(
        x_ptr=x,
        residual_ptr=residual,
        weight_ptr=weight,
        bias_ptr=bias,
        y_ptr=y,
        sum_ptr=total,
        mean_ptr=mean,
        rstd_ptr=rstd,
        eps=eps,
    )
    return y, total, mean, rstd


@lru_cache(maxsize=4096)
def _forward_problem(
    rows: int, columns: int, strides: tuple[int, int], activation: Activation, center: bool, target: Target
) -> Problem:
    tile = layer_norm_tile(rows, columns, target)
    return Problem(
        layer_norm_forward_kernel,
        (ceil_div(rows, tile.block_rows),),
        rows,
        columns,
        *strides,
        SPEC=spec_of(rows, columns, strides, activation, center, tile),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=warps_of(tile),
    )

"""The backward of layer normalization: one kernel for whole rows, two for rows that don't fit a tile."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate, activation_derivative
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import store_rows
from tinynet_kernels.launch import Problem, costs
from tinynet_kernels.layer_norm.rows import (
    LayerNormTile,
    affine,
    backward_tile,
    layer_norm_cost,
    load_parameter,
    load_tile,
    parameter_tile,
    spec_of,
    tile_at,
    warps_of,
)
from tinynet_kernels.layout import matrix_of
from tinynet_kernels.offsets import widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target


class Statistics(NamedTuple):
    """mean and rstd of a tile's rows, [block_rows, 1] each."""

    mean: Any
    rstd: Any


@triton.jit
def load_statistics(mean_ptr, rstd_ptr, at):
    """The `Statistics` that the forward saved; a mean of 0 where there is none."""
    rstd = tl.load(rstd_ptr + at.first + at.row, mask=at.in_rows, other=0.0)[:, None]
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + at.first + at.row, mask=at.in_rows, other=0.0)[:, None]
    else:
        mean = tl.zeros_like(rstd)
    return Statistics(mean, rstd)


@triton.jit
def normalized_and_dz(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, stride_grad, stride_x, statistics, at, SPEC: constexpr, ACTIVATION: constexpr
):
    """(n, dz) of a tile; both finite where masked, dz 0, unless the row's statistics are not."""
    x = load_tile(x_ptr, stride_x, at, SPEC.wide)
    normalized = (x - statistics.mean) * statistics.rstd
    dz = load_tile(grad_ptr, stride_grad, at, SPEC.wide)
    if ACTIVATION.name != "identity":
        z = affine(normalized, weight_ptr, bias_ptr, at)
        dz *= activation_derivative(activate(z, ACTIVATION) if SPEC.reads_output else z, ACTIVATION)
    return normalized, dz


@triton.jit
def times_weight(dz, weight_ptr, at):
    """g of the module's formulas."""
    if weight_ptr is not None:
        return dz * load_parameter(weight_ptr, at)
    else:
        return dz


@triton.jit
def store_input_gradient(
    g, n, mean_g, mean_gn, rstd, sum_grad_ptr, dx_ptr, columns, stride_sum_grad, at, SPEC: constexpr
):
    """Stores dx of a tile."""
    dx = g - n * mean_gn[:, None]
    if SPEC.center:
        dx -= mean_g[:, None]
    dx *= rstd
    if sum_grad_ptr is not None:
        dx += load_tile(sum_grad_ptr, stride_sum_grad, at, SPEC.wide)
    store_rows(dx_ptr, columns, dx, at.first, at.row, at.column, at.mask, SPEC.wide)


@triton.jit
def store_partials(dw, db, weight_partial_ptr, bias_partial_ptr, columns, at):
    """Stores a program's sums over rows, where wanted, into [programs on the first axis, columns]."""
    offset = tl.program_id(0).to(tl.int64) * columns
    if weight_partial_ptr is not None:
        tl.store(weight_partial_ptr + offset + at.column, tl.sum(dw, axis=0), mask=at.in_columns)
    if bias_partial_ptr is not None:
        tl.store(bias_partial_ptr + offset + at.column, tl.sum(db, axis=0), mask=at.in_columns)


@triton.jit
def layer_norm_backward_kernel(
    grad_ptr,
    sum_grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    weight_partial_ptr,
    bias_partial_ptr,
    rows,
    columns,
    stride_grad,
    stride_sum_grad,
    stride_x,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dx of `tiles` tiles of whole rows, and each program's partial sums of dw and db, [programs, columns]."""
    TILES: constexpr = TILE.tiles
    columns = widened(columns, SPEC.wide)
    first_tile = tl.program_id(0).to(tl.int64) * TILES
    at = tile_at(first_tile * TILE.block_rows, 0, rows, columns, TILE)
    dw = tl.full((TILE.block_rows, TILE.block_columns), 0.0, tl.float32)
    db = tl.full((TILE.block_rows, TILE.block_columns), 0.0, tl.float32)
    for tile in range(tl.minimum(TILES, tl.cdiv(rows, TILE.block_rows) - first_tile).to(tl.int32)):
        at = tile_at((first_tile + tile) * TILE.block_rows, 0, rows, columns, TILE)
        statistics = load_statistics(mean_ptr, rstd_ptr, at)
        n, dz = normalized_and_dz(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, stride_grad, stride_x, statistics, at, SPEC, ACTIVATION
        )
        if dx_ptr is not None:
            g = times_weight(dz, weight_ptr, at)
            means = tl.sum(g, axis=1) / columns, tl.sum(g * n, axis=1) / columns
            store_input_gradient(
                g, n, means[0], means[1], statistics.rstd, sum_grad_ptr, dx_ptr, columns, stride_sum_grad, at, SPEC
            )
        if weight_partial_ptr is not None:
            dw += dz * n
        if bias_partial_ptr is not None:
            db += dz
    store_partials(dw, db, weight_partial_ptr, bias_partial_ptr, columns, at)


@triton.jit
def layer_norm_long_input_gradient_kernel(
    grad_ptr,
    sum_grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    rows,
    columns,
    stride_grad,
    stride_sum_grad,
    stride_x,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dx of block_rows rows, in two passes over them: the means of g and g n, then dx."""
    columns = widened(columns, SPEC.wide)
    first = tl.program_id(0).to(tl.int64) * TILE.block_rows
    statistics = load_statistics(mean_ptr, rstd_ptr, tile_at(first, 0, rows, columns, TILE))
    sum_g = tl.full((TILE.block_rows,), 0.0, tl.float32)
    sum_gn = tl.full((TILE.block_rows,), 0.0, tl.float32)
    for start in range(0, columns, TILE.block_columns):
        at = tile_at(first, start, rows, columns, TILE)
        n, dz = normalized_and_dz(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, stride_grad, stride_x, statistics, at, SPEC, ACTIVATION
        )
        g = times_weight(dz, weight_ptr, at)
        sum_g += tl.sum(g, axis=1)
        sum_gn += tl.sum(g * n, axis=1)
    for start in range(0, columns, TILE.block_columns):
        at = tile_at(first, start, rows, columns, TILE)
        n, dz = normalized_and_dz(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, stride_grad, stride_x, statistics, at, SPEC, ACTIVATION
        )
        g = times_weight(dz, weight_ptr, at)
        store_input_gradient(
            g,
            n,
            sum_g / columns,
            sum_gn / columns,
            statistics.rstd,
            sum_grad_ptr,
            dx_ptr,
            columns,
            stride_sum_grad,
            at,
            SPEC,
        )


@triton.jit
def layer_norm_parameter_gradient_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    weight_partial_ptr,
    bias_partial_ptr,
    rows,
    columns,
    stride_grad,
    stride_x,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """Partial sums of dw and db, [programs on the first axis, columns], of `tiles` tiles below each other."""
    TILES: constexpr = TILE.tiles
    columns = widened(columns, SPEC.wide)
    start = tl.program_id(1) * TILE.block_columns
    first_tile = tl.program_id(0).to(tl.int64) * TILES
    at = tile_at(first_tile * TILE.block_rows, start, rows, columns, TILE)
    dw = tl.full((TILE.block_rows, TILE.block_columns), 0.0, tl.float32)
    db = tl.full((TILE.block_rows, TILE.block_columns), 0.0, tl.float32)
    for tile in range(tl.minimum(TILES, tl.cdiv(rows, TILE.block_rows) - first_tile).to(tl.int32)):
        at = tile_at((first_tile + tile) * TILE.block_rows, start, rows, columns, TILE)
        statistics = load_statistics(mean_ptr, rstd_ptr, at)
        n, dz = normalized_and_dz(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, stride_grad, stride_x, statistics, at, SPEC, ACTIVATION
        )
        dw += dz * n
        db += dz
    store_partials(dw, db, weight_partial_ptr, bias_partial_ptr, columns, at)


for _kernel in (
    layer_norm_backward_kernel,
    layer_norm_long_input_gradient_kernel,
    layer_norm_parameter_gradient_kernel,
):
    costs(_kernel)(layer_norm_cost)


def layer_norm_backward(
    grad: torch.Tensor,
    sum_grad: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    activation: Activation,
    *,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dx, dw, db), each None where not wanted.

    Args:
        grad, sum_grad: upstream gradients in x's shape, contiguous or, of two dimensions, the last one; None for no
            second one.
        x: what was normalized: the forward's x or its sum with the residual.
        weight, mean, rstd: as in the forward.
        bias: the forward's, or None with a weight and without an activation, whose backward does not read it.
        activation: the forward's.
        want_x, want_weight, want_bias: which gradients to compute.
    """
    rows, columns, (stride_x, _) = matrix_of(x)
    strides = matrix_of(grad)[2][0], 0 if sum_grad is None else matrix_of(sum_grad)[2][0], stride_x
    wants = want_x, want_weight or want_bias
    problems = _backward_problems(rows, columns, strides, activation, mean is not None, wants, current_target())
    parts = problems[-1].grid[0]
    dx = x.new_empty(x.shape) if want_x else None
    shape = (parts, columns) if parts > 1 else (columns,)
    dw = x.new_empty(shape, dtype=torch.float32) if want_weight else None
    db = x.new_empty(shape, dtype=torch.float32) if want_bias else None
    inputs = {"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "mean_ptr": mean, "rstd_ptr": rstd}
    partial = {"weight_partial_ptr": dw, "bias_partial_ptr": db}
    for problem in problems:
        if problem.kernel is layer_norm_parameter_gradient_kernel:
            problem.launch_named(grad_ptr=grad, **inputs, **partial)
        elif problem.kernel is layer_norm_long_input_gradient_kernel:
            problem.launch_named(grad_ptr=grad, sum_grad_ptr=sum_grad, **inputs, dx_ptr=dx)
        else:
            problem.launch_named(grad_ptr=grad, sum_grad_ptr=sum_grad, **inputs, dx_ptr=dx, **partial)
    return dx, _summed(dw, weight), _summed(db, weight if bias is None else bias)


def _summed(partial: torch.Tensor | None, like: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of partial sums, or of one part itself, in the dtype of the parameter."""
    if partial is None or like is None:
        return None
    return sum_partials(partial, like.dtype) if partial.dim() > 1 else partial.to(like.dtype)


@lru_cache(maxsize=4096)
def _backward_problems(
    rows: int,
    columns: int,
    strides: tuple[int, int, int],
    activation: Activation,
    center: bool,
    wants: tuple[bool, bool],
    target: Target,
) -> list[Problem]:
    """The launches: one for whole rows, else up to two. The last one's first axis counts partial sums."""

    def problem(kernel: Any, grid: tuple[int, ...], numbers: tuple[int, ...], tile: LayerNormTile) -> Problem:
        return Problem(
            kernel,
            grid,
            rows,
            columns,
            *numbers,
            SPEC=spec_of(rows, columns, strides, activation, center, tile),
            ACTIVATION=activation.compiled,
            TILE=tile,
            num_warps=warps_of(tile),
        )

    tile = backward_tile(rows, columns, target)
    if tile.whole:
        return [problem(layer_norm_backward_kernel, (ceil_div(rows, tile.block_rows * tile.tiles),), strides, tile)]
    problems = []
    if wants[0]:
        problems.append(
            problem(layer_norm_long_input_gradient_kernel, (ceil_div(rows, tile.block_rows),), strides, tile)
        )
    if wants[1]:
        tile = parameter_tile(rows, columns, target)
        grid = ceil_div(rows, tile.block_rows * tile.tiles), ceil_div(columns, tile.block_columns)
        problems.append(problem(layer_norm_parameter_gradient_kernel, grid, (strides[0], strides[2]), tile))
    return problems

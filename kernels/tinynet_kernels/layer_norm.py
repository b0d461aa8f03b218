"""Layer normalization of rows, and its form without a mean, RMS normalization; for one row x [K]:

    mean = sum_k x_k / K (0 for RMS)      rstd = (sum_k (x_k - mean)^2 / K + eps)^-1/2
    n_k = (x_k - mean) rstd               y_k = act(z_k), z_k = n_k w_k + b_k

    dz_k = dy_k act'(z_k)                 dw_k = sum of dz_k n_k over rows,  db_k = sum of dz_k over rows
    g_k = dz_k w_k                        dx_k = rstd (g_k - mean(g) - n_k mean(g n)), without mean(g) for RMS

With a residual r, x is the rounded sum of both inputs, which is a second output; its upstream gradient is added to dx.

Tiling: a row that fits one tile is read once: one program holds block_rows rows of block_columns >= K columns. The mean
comes first, then the squares of the deviations. Longer rows are read twice, block_columns at a time; statistics of
blocks are merged (Chan et al. 1979). Saved are mean and rstd in fp32; z is recomputed.

The backward's programs each walk `tiles` tiles downwards and leave partial sums of dw and db in fp32, which
`sum_partials` adds in a fixed order. Rows that don't fit one tile get their parameters' gradients from a kernel of its
own, whose tiles walk down the columns.

Source: Ba et al. 2016; Zhang and Sennrich 2019 (RMS).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate, activation_derivative
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import load_rows, store_rows
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least


class LayerNormSpec(NamedTuple):
    """Whether to subtract the mean, whether act' is computed from y, and whether offsets are int64."""

    center: bool
    reads_output: bool
    wide: bool


class LayerNormTile(NamedTuple):
    """The tile of one program, whether it holds whole rows, and how many of them a backward walks at most."""

    block_rows: int
    block_columns: int
    whole: bool
    tiles: int


class Tile(NamedTuple):
    """Where a tile lies within a kernel: rows from `first`, which is int64, and columns; `mask` tells which exist."""

    first: Any
    row: Any
    column: Any
    in_rows: Any
    in_columns: Any
    mask: Any


@triton.jit
def tile_at(first, start, rows, columns, TILE: constexpr):
    """The `Tile` at row `first` and column `start`."""
    row = tl.arange(0, TILE.block_rows)
    column = tl.arange(0, TILE.block_columns)
    in_rows = row < rows - first
    in_columns = column < columns - start
    return Tile(first, row, start + column, in_rows, in_columns, in_rows[:, None] & in_columns[None, :])


@triton.jit
def load_tile(ptr, stride, at, WIDE: constexpr):
    """The tile of a matrix whose rows are `stride` apart, in fp32."""
    return load_rows(ptr, stride, at.first, at.row, at.column, at.mask, WIDE)


@triton.jit
def load_sum(x_ptr, residual_ptr, stride_x, stride_residual, at, WIDE: constexpr):
    """x, or the rounded sum of x and the residual."""
    x = load_tile(x_ptr, stride_x, at, WIDE)
    if residual_ptr is not None:
        x += load_tile(residual_ptr, stride_residual, at, WIDE)
        x = x.to(x_ptr.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def load_parameter(ptr, at):
    """A parameter's values of a tile's columns, [1, block_columns] in fp32."""
    return tl.load(ptr + at.column, mask=at.in_columns, other=0.0).to(tl.float32)[None, :]


@triton.jit
def affine(normalized, weight_ptr, bias_ptr, at):
    """z of the module's formulas."""
    z = normalized
    if weight_ptr is not None:
        z = z * load_parameter(weight_ptr, at)
    if bias_ptr is not None:
        z = z + load_parameter(bias_ptr, at)
    return z


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
        mean = tl.zeros((TILE.block_rows,), tl.float32)
        squares = tl.zeros((TILE.block_rows,), tl.float32)
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
    dw = tl.zeros((TILE.block_rows, TILE.block_columns), tl.float32)
    db = tl.zeros((TILE.block_rows, TILE.block_columns), tl.float32)
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
    sum_g = tl.zeros((TILE.block_rows,), tl.float32)
    sum_gn = tl.zeros((TILE.block_rows,), tl.float32)
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
    dw = tl.zeros((TILE.block_rows, TILE.block_columns), tl.float32)
    db = tl.zeros((TILE.block_rows, TILE.block_columns), tl.float32)
    for tile in range(tl.minimum(TILES, tl.cdiv(rows, TILE.block_rows) - first_tile).to(tl.int32)):
        at = tile_at((first_tile + tile) * TILE.block_rows, start, rows, columns, TILE)
        statistics = load_statistics(mean_ptr, rstd_ptr, at)
        n, dz = normalized_and_dz(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, stride_grad, stride_x, statistics, at, SPEC, ACTIVATION
        )
        dw += dz * n
        db += dz
    store_partials(dw, db, weight_partial_ptr, bias_partial_ptr, columns, at)


@costs(layer_norm_forward_kernel)
@costs(layer_norm_backward_kernel)
@costs(layer_norm_long_input_gradient_kernel)
@costs(layer_norm_parameter_gradient_kernel)
def layer_norm_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is read or written once; eight operations for each element of x."""
    return Cost(8 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


@lru_cache(maxsize=4096)
def layer_norm_tile(rows: int, columns: int, target: Target) -> LayerNormTile:
    """Whole rows where a program has registers for them, else a part of one row; on a CPU parts of four rows.

    Args:
        rows, columns: of the matrix.
        target: where it runs.
    """
    longest, elements = {"interpreter": (1 << 12, 1 << 14), "cpu": (256, 1024)}.get(target.kind, (8192, 1024))
    block_columns = min(power_of_2_at_least(columns), longest)
    block_rows = min(max(1, elements // block_columns), power_of_2_at_least(rows))
    return LayerNormTile(block_rows, block_columns, columns <= longest, 1)


def _warps(tile: LayerNormTile) -> int:
    return min(16, max(4, tile.block_rows * tile.block_columns // 512))


@lru_cache(maxsize=4096)
def backward_tile(rows: int, columns: int, target: Target) -> LayerNormTile:
    """The forward's tile, on a CPU of whole rows, with so many tiles per program that few partial sums are left."""
    tile = layer_norm_tile(rows, columns, target)
    if target.kind == "cpu" and 256 < columns <= 4096:
        tile = LayerNormTile(1, power_of_2_at_least(columns), True, 1)
    programs = {"interpreter": 2, "cpu": 8 * target.processors}.get(target.kind, 2 * target.processors)
    return tile._replace(tiles=ceil_div(rows, tile.block_rows * programs))


@lru_cache(maxsize=4096)
def parameter_tile(rows: int, columns: int, target: Target) -> LayerNormTile:
    """The tile of long rows' parameter gradients: it walks down, so it is short."""
    block_columns, block_rows = 256, 4 if target.kind == "cpu" else 8
    column_tiles = ceil_div(columns, block_columns)
    programs = max(
        1, {"interpreter": 2, "cpu": 8 * target.processors}.get(target.kind, 4 * target.processors) // column_tiles
    )
    return LayerNormTile(block_rows, block_columns, False, ceil_div(rows, block_rows * programs))


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
        x: [rows, columns], the last dimension contiguous; not empty.
        residual: like x, or None.
        weight, bias: [columns], contiguous, or None; of x's dtype or float32.
        eps: added to the variance.
        activation: applied after the affine part.
        center: whether to subtract the mean.
        save: whether a backward will follow.

    Returns:
        y [rows, columns]; the sum [rows, columns] where there is a residual; mean [rows] for `center`, and rstd [rows],
        in fp32 where `save`. None for what is absent.
    """
    rows, columns = x.shape
    strides = x.stride(0), 0 if residual is None else residual.stride(0)
    y = x.new_empty((rows, columns))
    total = None if residual is None else x.new_empty((rows, columns))
    rstd = x.new_empty(rows, dtype=torch.float32) if save else None
    mean = x.new_empty(rows, dtype=torch.float32) if save and center else None
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


def _spec(
    rows: int, columns: int, strides: tuple[int, ...], activation: Activation, center: bool, tile: LayerNormTile
) -> LayerNormSpec:
    reach = (min(tile.block_rows, rows), max(*strides, columns)), (columns + tile.block_columns, 1)
    return LayerNormSpec(center, activation.reads_output, exceed_int32(reach))


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
        SPEC=_spec(rows, columns, strides, activation, center, tile),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=_warps(tile),
    )


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
        grad, sum_grad: upstream gradients [rows, columns], the last dimension contiguous; None for no second one.
        x: what was normalized: the forward's x or its sum with the residual.
        weight, bias, mean, rstd: as in the forward.
        activation: the forward's.
        want_x, want_weight, want_bias: which gradients to compute.
    """
    rows, columns = x.shape
    strides = grad.stride(0), 0 if sum_grad is None else sum_grad.stride(0), x.stride(0)
    wants = want_x, want_weight or want_bias
    problems = _backward_problems(rows, columns, strides, activation, mean is not None, wants, current_target())
    parts = problems[-1].grid[0]
    dx = x.new_empty((rows, columns)) if want_x else None
    partials = [
        x.new_empty((parts, columns), dtype=torch.float32) if want else None for want in (want_weight, want_bias)
    ]
    inputs = {"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "mean_ptr": mean, "rstd_ptr": rstd}
    partial = {"weight_partial_ptr": partials[0], "bias_partial_ptr": partials[1]}
    for problem in problems:
        if problem.kernel is layer_norm_parameter_gradient_kernel:
            problem.launch_named(grad_ptr=grad, **inputs, **partial)
        elif problem.kernel is layer_norm_long_input_gradient_kernel:
            problem.launch_named(grad_ptr=grad, sum_grad_ptr=sum_grad, **inputs, dx_ptr=dx)
        else:
            problem.launch_named(grad_ptr=grad, sum_grad_ptr=sum_grad, **inputs, dx_ptr=dx, **partial)
    sums = [
        None if each is None or like is None else sum_partials(each, like.dtype)
        for each, like in zip(partials, (weight, bias), strict=True)
    ]
    return dx, sums[0], sums[1]


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
            SPEC=_spec(rows, columns, strides, activation, center, tile),
            ACTIVATION=activation.compiled,
            TILE=tile,
            num_warps=_warps(tile),
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

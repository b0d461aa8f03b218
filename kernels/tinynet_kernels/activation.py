"""Activations: y = act(z), and dZ = dY act'(.) with the bias gradient db = sum over rows of dZ.

`activate` is the one definition of each function and `activation_derivative` the one of each derivative; every kernel
that fuses an activation calls these. A derivative is computed from the output where that is as exact (relu, tanh, ...),
else from the pre-activation z: `Activation.reads_output` says which, and launchers save that one alone.

Tiling: the forward is flat. The backward walks tiles and stores one partial bias gradient per row block, which
`reduction.sum_partials` adds in a fixed order.

Source: the formulas of torch.nn.functional, in forms that neither overflow nor cancel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import matrix_of
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import (
    Target,
    ceil_div,
    current_target,
    every_register,
    flat_block,
    fuses_derivative,
    power_of_2_at_least,
    rows_and_columns,
)

# selu's constants: Klambauer et al. 2017, "Self-Normalizing Neural Networks".
SELU_ALPHA = tl.constexpr(1.6732632423543772)
SELU_SCALE = tl.constexpr(1.0507009873554805)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2_PI = tl.constexpr(0.3989422804014327)
GELU_TANH_SLOPE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi), since tanh(u) = 2 sigmoid(2 u) - 1


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x) through e^-|x|, which cannot overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def expm1(x):
    """e^x - 1; near 0 its Taylor series, where the subtraction would cancel."""
    series = x * (1.0 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720))))))
    return tl.where(tl.abs(x) < 0.35, series, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0; the quotient undoes the rounding of 1 + x (Goldberg 1991, theorem 4)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * x / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def tanh(x):
    """Hyperbolic tangent through expm1(-2 |x|): exact near 0, saturating without overflow."""
    e = expm1(-2.0 * tl.abs(x))
    magnitude = -e / (2.0 + e)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def softplus(x):
    """log(1 + e^x) without overflow."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def activate(z, ACTIVATION: constexpr):
    """act(z) of an fp32 block; NaN stays NaN. The parameters are those of `Activation`, in its order."""
    if ACTIVATION.name == "identity":
        return z
    elif ACTIVATION.name == "relu":
        return tl.where(z <= 0, 0.0, z)
    elif ACTIVATION.name == "leaky_relu":
        return tl.where(z > 0, z, z * ACTIVATION.a)
    elif ACTIVATION.name == "relu6":
        return tl.where(z <= 0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACTIVATION.name == "elu":
        return tl.where(z > 0, z, ACTIVATION.a * expm1(z))
    elif ACTIVATION.name == "selu":
        return tl.where(z > 0, z, expm1(z) * SELU_ALPHA) * SELU_SCALE
    elif ACTIVATION.name == "celu":
        return tl.where(z > 0, z, ACTIVATION.a * expm1(z / ACTIVATION.a))
    elif ACTIVATION.name == "gelu":
        return z * 0.5 * (1.0 + tl.erf(z * SQRT_HALF))
    elif ACTIVATION.name == "gelu_tanh":
        return z * sigmoid(z * (1.0 + 0.044715 * z * z) * GELU_TANH_SLOPE)
    elif ACTIVATION.name == "silu":
        return z * sigmoid(z)
    elif ACTIVATION.name == "mish":
        return z * tanh(softplus(z))
    elif ACTIVATION.name == "sigmoid":
        return sigmoid(z)
    elif ACTIVATION.name == "log_sigmoid":
        return -softplus(-z)
    elif ACTIVATION.name == "tanh":
        return tanh(z)
    elif ACTIVATION.name == "softplus":
        return tl.where(z * ACTIVATION.a > ACTIVATION.b, z, softplus(z * ACTIVATION.a) / ACTIVATION.a)
    elif ACTIVATION.name == "softsign":
        return z / (1.0 + tl.abs(z))
    elif ACTIVATION.name == "hardtanh":
        return tl.where(z <= ACTIVATION.a, ACTIVATION.a, tl.where(z >= ACTIVATION.b, ACTIVATION.b, z))
    elif ACTIVATION.name == "hardswish":
        return z * tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, (z + 3.0) * (1.0 / 6)))
    elif ACTIVATION.name == "hardsigmoid":
        return tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, (z + 3.0) * (1.0 / 6)))
    elif ACTIVATION.name == "hardshrink":
        return tl.where((z >= -ACTIVATION.a) & (z <= ACTIVATION.a), 0.0, z)
    elif ACTIVATION.name == "softshrink":
        shrunk = tl.where(z > ACTIVATION.a, z - ACTIVATION.a, tl.where(z < -ACTIVATION.a, z + ACTIVATION.a, 0.0))
        return tl.where(z == z, shrunk, z)
    elif ACTIVATION.name == "tanhshrink":
        return z - tanh(z)
    else:
        tl.static_assert(ACTIVATION.name == "threshold", "unknown activation")
        return tl.where(z <= ACTIVATION.a, ACTIVATION.b, z)


@triton.jit
def activation_derivative(s, ACTIVATION: constexpr):
    """act' of an fp32 block s, which is y where `Activation.reads_output`, else the pre-activation z."""
    if ACTIVATION.name == "identity":
        return tl.full(s.shape, 1.0, tl.float32)
    elif ACTIVATION.name == "relu":
        return tl.where(s <= 0, 0.0, 1.0)
    elif ACTIVATION.name == "leaky_relu":
        return tl.where(s > 0, 1.0, ACTIVATION.a)
    elif ACTIVATION.name == "relu6":
        return tl.where((s <= 0) | (s >= 6.0), 0.0, 1.0)
    elif ACTIVATION.name == "elu":
        return tl.where(s > 0, 1.0, ACTIVATION.a * tl.exp(s))
    elif ACTIVATION.name == "selu":
        return tl.where(s > 0, 1.0, tl.exp(s) * SELU_ALPHA) * SELU_SCALE
    elif ACTIVATION.name == "celu":
        return tl.where(s > 0, 1.0, tl.exp(s / ACTIVATION.a))
    elif ACTIVATION.name == "gelu":
        density = tl.exp(-0.5 * s * s) * INVERSE_SQRT_2_PI
        return 0.5 * (1.0 + tl.erf(s * SQRT_HALF)) + s * density
    elif ACTIVATION.name == "gelu_tanh":
        g = sigmoid(s * (1.0 + 0.044715 * s * s) * GELU_TANH_SLOPE)
        return g + s * g * (1.0 - g) * (1.0 + 3.0 * 0.044715 * s * s) * GELU_TANH_SLOPE
    elif ACTIVATION.name == "silu":
        g = sigmoid(s)
        return g * (1.0 + s * (1.0 - g))
    elif ACTIVATION.name == "mish":
        t = tanh(softplus(s))
        return t + s * sigmoid(s) * (1.0 - t * t)
    elif ACTIVATION.name == "sigmoid":
        return s * (1.0 - s)
    elif ACTIVATION.name == "log_sigmoid":
        return sigmoid(-s)
    elif ACTIVATION.name == "tanh":
        return 1.0 - s * s
    elif ACTIVATION.name == "softplus":
        return tl.where(s * ACTIVATION.a > ACTIVATION.b, 1.0, sigmoid(s * ACTIVATION.a))
    elif ACTIVATION.name == "softsign":
        d = 1.0 + tl.abs(s)
        return 1.0 / (d * d)
    elif ACTIVATION.name == "hardtanh":
        return tl.where((s <= ACTIVATION.a) | (s >= ACTIVATION.b), 0.0, 1.0)
    elif ACTIVATION.name == "hardswish":
        return tl.where(s <= -3.0, 0.0, tl.where(s >= 3.0, 1.0, s * (1.0 / 3) + 0.5))
    elif ACTIVATION.name == "hardsigmoid":
        return tl.where((s > -3.0) & (s < 3.0), 1.0 / 6, 0.0)
    elif ACTIVATION.name == "hardshrink" or ACTIVATION.name == "softshrink":
        return tl.where((s >= -ACTIVATION.a) & (s <= ACTIVATION.a), 0.0, 1.0)
    elif ACTIVATION.name == "tanhshrink":
        t = tanh(s)
        return t * t
    else:
        tl.static_assert(ACTIVATION.name == "threshold", "unknown activation")
        return tl.where(s <= ACTIVATION.a, 0.0, 1.0)


class WalkTile(NamedTuple):
    """The tile of `activation_backward_kernel`, and how many of them one program walks at most."""

    block_rows: int
    block_columns: int
    tiles: int


@triton.jit
def activation_forward_kernel(x_ptr, y_ptr, elements, ACTIVATION: constexpr, BLOCK: constexpr):
    """y = act(x), flat: BLOCK elements per program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    y = activate(x, ACTIVATION)
    tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def activation_input_gradient_kernel(grad_ptr, saved_ptr, dx_ptr, elements, ACTIVATION: constexpr, BLOCK: constexpr):
    """dX = dY act'(saved), flat: BLOCK elements per program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    grad = tl.load(grad_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    saved = tl.load(saved_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    dx = grad * activation_derivative(saved, ACTIVATION)
    tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def activation_backward_kernel(
    grad_ptr,
    saved_ptr,
    dz_ptr,
    partial_ptr,
    rows,
    columns,
    stride_grad,
    ACTIVATION: constexpr,
    WIDE: constexpr,
    TILE: constexpr,
):
    """dZ = dY act'(saved) and, per program, the partial sum of dZ over its rows; either is left out where it is None.

    A program walks at most `tiles` tiles of [block_rows, block_columns] downwards. `saved` and dZ are contiguous
    [rows, columns]; dY's rows are `stride_grad` apart.
    """
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_COLUMNS: constexpr = TILE.block_columns
    TILES: constexpr = TILE.tiles
    rows = widened(rows, WIDE)
    columns = widened(columns, WIDE)
    stride_grad = widened(stride_grad, WIDE)
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row_block = (tl.program_id(0) // column_tiles).to(tl.int64)
    first_column = tl.program_id(0) % column_tiles * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    in_columns = tl.arange(0, BLOCK_COLUMNS) < columns - first_column
    row = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    first_tile = row_block * TILES
    for tile in range(tl.minimum(TILES, tl.cdiv(rows, BLOCK_ROWS) - first_tile).to(tl.int32)):
        first = (first_tile + tile) * BLOCK_ROWS
        mask = (row < rows - first)[:, None] & in_columns[None, :]
        grad_offset = row[:, None] * stride_grad + column[None, :]
        offset = row[:, None] * columns + column[None, :]
        dz = tl.load(grad_ptr + first * stride_grad + grad_offset, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION.name != "identity":
            saved = tl.load(saved_ptr + first * columns + offset, mask=mask, other=0.0).to(tl.float32)
            dz *= activation_derivative(saved, ACTIVATION)
        if dz_ptr is not None:
            tl.store(dz_ptr + first * columns + offset, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        total += dz  # masked lanes add 0 * act'(0) = 0: every act'(0) is finite
    if partial_ptr is not None:
        partial = partial_ptr + row_block * columns
        tl.store(partial + column, tl.sum(total, axis=0), mask=in_columns)


@costs(activation_forward_kernel)
def activation_forward_cost(x_ptr: torch.Tensor, y_ptr: torch.Tensor, **_: Any) -> Cost:
    """One pass: x read, y written; an activation counts as one operation."""
    return Cost(x_ptr.numel(), size_in_bytes(x_ptr, y_ptr))


@costs(activation_input_gradient_kernel)
@costs(activation_backward_kernel)
def activation_backward_cost(grad_ptr: torch.Tensor, **others: Any) -> Cost:
    """dY and what was saved are read once, dZ and the partial sums written once."""
    return Cost(2 * grad_ptr.numel(), size_in_bytes(grad_ptr, *others.values()))


def activation_forward(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """y = act(x) for a dense x of any shape and layout; y has its strides."""
    y = torch.empty_like(x)
    _flat_problem(x.numel(), activation, False, current_target()).launch(x, y)
    return y


def activation_input_gradient(grad: torch.Tensor, saved: torch.Tensor, activation: Activation) -> torch.Tensor:
    """dX = dY act'(saved) for dense tensors of one layout; see `Activation.reads_output` for `saved`."""
    dx = torch.empty_like(saved)
    _flat_problem(saved.numel(), activation, True, current_target()).launch(grad, saved, dx)
    return dx


@lru_cache(maxsize=4096)
def _flat_problem(elements: int, activation: Activation, is_gradient: bool, target: Target) -> Problem:
    block, num_warps = flat_block(elements, target)
    return Problem(
        activation_input_gradient_kernel if is_gradient else activation_forward_kernel,
        (ceil_div(elements, block),),
        elements,
        ACTIVATION=activation.compiled,
        BLOCK=block,
        num_warps=num_warps,
    )


def activation_backward(
    grad: torch.Tensor,
    saved: torch.Tensor | None,
    activation: Activation,
    *,
    want_dz: bool,
    want_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dZ [..., columns] and the bias gradient [columns] of y = act(z + bias).

    Args:
        grad: dY [..., columns], contiguous or, of two dimensions, the last one.
        saved: y or z, contiguous, as `activation.reads_output` says; None for identity.
        activation: the function.
        want_dz: whether to compute dZ. For identity dZ is dY itself, and the caller wants none.
        want_bias: whether to compute the bias gradient, in fp32.
    """
    dz, partial = activation_backward_parts(grad, saved, activation, want_dz=want_dz, want_bias=want_bias)
    return dz, partial if partial is None or partial.dim() == 1 else sum_partials(partial)


def activation_backward_parts(
    grad: torch.Tensor,
    saved: torch.Tensor | None,
    activation: Activation,
    *,
    want_dz: bool,
    want_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """As `activation_backward`, but partial sums of the bias gradient, fp32 [parts, columns]; of one part, the sum."""
    rows, columns, (stride, _) = matrix_of(grad)
    problem = _backward_problem(rows, columns, stride, activation, want_bias, current_target())
    dz = grad.new_empty(grad.shape) if want_dz else None
    tile = problem.constants["TILE"]
    partial = None
    if want_bias:
        row_blocks = ceil_div(rows, tile.block_rows * tile.tiles)
        partial = grad.new_empty((columns,) if row_blocks == 1 else (row_blocks, columns), dtype=torch.float32)
    problem.launch(grad, saved, dz, partial)
    return dz, partial


@lru_cache(maxsize=4096)
def _backward_problem(
    rows: int,
    columns: int,
    stride_grad: int,
    activation: Activation,
    want_bias: bool,
    target: Target,
) -> Problem:
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target, activation.name)
    tile = WalkTile(block_rows, block_columns, 1)
    if want_bias:
        tile = tile._replace(tiles=tiles_per_program(rows, columns, tile, target))
    return Problem(
        activation_backward_kernel,
        (ceil_div(rows, block_rows * tile.tiles) * ceil_div(columns, block_columns),),
        rows,
        columns,
        stride_grad,
        ACTIVATION=activation.compiled,
        WIDE=exceed_int32(
            ((min(block_rows, rows), max(stride_grad, columns)), (columns + block_columns, 1)),
            ((rows + block_rows, 1),),
        ),
        TILE=tile,
        num_warps=num_warps,
        **({} if fuses_derivative(activation.name, target) else every_register(block_rows, "ieee", target)),
    )


def tiles_per_program(rows: int, columns: int, tile: WalkTile, target: Target) -> int:
    """More tiles per program mean fewer partial sums; few enough programs are left to fill a chip.

    On a CPU a second launch costs more than the sums of a short column: one program computes them all.
    """
    row_blocks = ceil_div(rows, tile.block_rows)
    if target.kind == "cpu":
        return power_of_2_at_least(row_blocks if rows <= 512 else ceil_div(row_blocks, 8 * target.processors))
    programs = row_blocks * ceil_div(columns, tile.block_columns)
    tiles = 1
    while tiles < 16 and programs // (2 * tiles) >= 512:
        tiles *= 2
    return tiles

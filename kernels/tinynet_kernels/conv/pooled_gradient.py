"""dZ of a convolution that kept the largest of each 2 x 2 window, and the parts of db, in one pass over the windows.

    dZ[n, k, 2 p + r, 2 q + s] = dY[n, k, p, q] act'(saved[n, k, p, q])   where argmax[n, k, p, q] = 2 r + s, else 0
    db[k]                      = sum over n, p, q of dY act'

All tensors are channels_last. Tiling: as `activation.activation_backward_kernel`, a program walks `tiles` tiles of
[block_rows windows, block_columns channels]; each window writes its four pixels. Where P or Q is odd, windows that lie
half outside hold the zeros of the last row or column.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import WalkTile, activation_derivative, tiles_per_program
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import empty_channels_last
from tinynet_kernels.tiles import Target, ceil_div, current_target, every_register, rows_and_columns


@triton.jit
def pooled_gradient_kernel(
    grad_ptr,
    saved_ptr,
    argmax_ptr,
    dz_ptr,
    partial_ptr,
    windows,
    P,
    Q,
    K,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dZ and, where wanted, a partial sum of dY act' for each program. `windows` are N ceil(P / 2) ceil(Q / 2)."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_COLUMNS: constexpr = TILE.block_columns
    TILES: constexpr = TILE.tiles
    column_tiles = tl.cdiv(K, BLOCK_COLUMNS)
    row_block = (tl.program_id(0) // column_tiles).to(tl.int64)
    first_column = tl.program_id(0) % column_tiles * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    in_columns = tl.arange(0, BLOCK_COLUMNS) < K - first_column
    across = (Q + 1) // 2
    down = (P + 1) // 2
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for tile in range(TILES):
        window = (row_block * TILES + tile) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        q = (window % across).to(tl.int32)
        p = (window // across % down).to(tl.int32)
        image = window // (across * down)
        in_windows = window < windows
        exists = in_windows & (2 * p + 1 < P) & (2 * q + 1 < Q)
        mask = exists[:, None] & in_columns[None, :]
        offset = ((image * (P // 2) + p) * (Q // 2) + q)[:, None] * K + column[None, :]
        dz = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION.name != "identity":
            saved = tl.load(saved_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            dz *= activation_derivative(saved, ACTIVATION)
        argmax = tl.load(argmax_ptr + offset, mask=mask, other=-1)
        pixel = ((image * P + 2 * p) * Q + 2 * q)[:, None] * K + column[None, :]
        for tap in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            is_pixel = in_windows & (2 * p + tap // 2 < P) & (2 * q + tap % 2 < Q)
            values = tl.where(argmax == tap, dz, 0.0).to(dz_ptr.dtype.element_ty)
            place = dz_ptr + pixel + (tap // 2 * Q + tap % 2) * K
            tl.store(place, values, mask=is_pixel[:, None] & in_columns[None, :])
        total += dz  # masked lanes add 0 * act'(0) = 0: every act'(0) is finite
    if partial_ptr is not None:
        tl.store(partial_ptr + row_block * K + column, tl.sum(total, axis=0), mask=in_columns)


@costs(pooled_gradient_kernel)
def pooled_gradient_cost(grad_ptr: torch.Tensor, **others: Any) -> Cost:
    """dY, what was saved and argmax are read once, dZ and the partial sums written once."""
    return Cost(2 * grad_ptr.numel(), size_in_bytes(grad_ptr, *others.values()))


def pooled_gradient(
    grad: torch.Tensor,
    saved: torch.Tensor | None,
    argmax: torch.Tensor,
    activation: Activation,
    size: tuple[int, ...],
    *,
    want_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dZ [N, K, P, Q], channels_last, and partial sums of db, fp32 [parts, K], one part or more, or None.

    Args:
        grad: dY [N, K, P // 2, Q // 2], channels_last.
        saved: y or z in dY's shape, channels_last, as `activation.reads_output` says; None for identity.
        argmax: the tap that is the maximum of each window, int8 in dY's shape, channels_last.
        activation: the fused function.
        size: P and Q.
        want_bias: whether to compute the partial sums.
    """
    N, K = grad.shape[:2]
    P, Q = size
    problem, parts = _problem(N, K, P, Q, activation, want_bias, current_target())
    dz = empty_channels_last(grad, (N, K, P, Q))
    partial = grad.new_empty((parts, K), dtype=torch.float32) if want_bias else None
    problem.launch(grad, saved, argmax, dz, partial)
    return dz, partial


@lru_cache(maxsize=4096)
def _problem(
    N: int, K: int, P: int, Q: int, activation: Activation, want_bias: bool, target: Target
) -> tuple[Problem, int]:
    """The launch, and how many parts of db it computes."""
    windows = N * ceil_div(P, 2) * ceil_div(Q, 2)
    block_rows, block_columns, num_warps = rows_and_columns(windows, K, target, activation.name)
    tile = WalkTile(block_rows, block_columns, 1)
    if want_bias:
        tile = tile._replace(tiles=tiles_per_program(windows, K, tile, target))
    parts = ceil_div(windows, block_rows * tile.tiles)
    problem = Problem(
        pooled_gradient_kernel,
        (parts * ceil_div(K, block_columns),),
        *(windows, P, Q, K),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=num_warps,
        **every_register(block_rows, "ieee", target),
    )
    return problem, parts

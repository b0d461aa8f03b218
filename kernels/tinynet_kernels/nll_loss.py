"""Negative log likelihood. For one row x [C] of log-probabilities and its label y:

    loss = -w_y x_y        dx_y = -w_y dloss, all others 0

The mean divides by the sum of the labels' weights. An ignored row adds nothing to either sum; a label out of range
makes its loss NaN.

Tiling: block_rows rows per program, which read and write one element of each. The backward's zeros are PyTorch's, which
fills memory no slower. A sum over rows takes two stages (`reduction.reduce_losses`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.cross_entropy import (
    CrossEntropy,
    CrossEntropyTile,
    row_offset,
    rows_of_program,
    three_dimensions,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import reduce_losses, store_partial_losses, store_reduced_loss
from tinynet_kernels.tiles import Target, ceil_div, current_target, flat_block


@triton.jit
def label_weights(at, counted, weight_ptr):
    """w_y of the rows whose labels count, else 0, fp32 [block_rows]."""
    if weight_ptr is None:
        return tl.where(counted, 1.0, 0.0)
    else:
        return tl.load(weight_ptr + at.label, mask=counted, other=0.0).to(tl.float32)


@triton.jit
def nll_loss_forward_kernel(
    x_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    divisor_ptr,
    partial_ptr,
    rows,
    C,
    S,
    ignore_index,
    stride_xn,
    stride_xc,
    stride_xs,
    stride_tn,
    stride_ts,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The losses of block_rows rows or, reduced, their sum: into `partial` [2, programs] or, without it, `loss`."""
    S = widened(S, SPEC.wide)
    at = rows_of_program(target_ptr, rows, S, ignore_index, stride_tn, stride_ts, SPEC, TILE)
    counted = at.counted & (at.label >= 0) & (at.label < C)
    weight = label_weights(at, counted, weight_ptr)
    offset = row_offset(at, stride_xn, stride_xs) + at.label * stride_xc
    x = tl.load(x_ptr + offset, mask=counted, other=0.0).to(tl.float32)
    loss = tl.where(counted, -weight * x, tl.where(at.counted, float("nan"), 0.0))
    if SPEC.reduced:
        total = tl.sum(loss, axis=0)
        divisor = tl.sum(weight, axis=0)
        if partial_ptr is None:
            store_reduced_loss(total, divisor, loss_ptr, divisor_ptr)
        else:
            store_partial_losses(total, divisor, partial_ptr)
    else:
        tl.store(loss_ptr + at.row, loss.to(loss_ptr.dtype.element_ty), mask=at.inside)


@triton.jit
def nll_loss_backward_kernel(
    grad_ptr,
    dx_ptr,
    target_ptr,
    weight_ptr,
    divisor_ptr,
    rows,
    C,
    S,
    ignore_index,
    stride_xn,
    stride_xc,
    stride_xs,
    stride_tn,
    stride_ts,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dx_y of block_rows rows, into a dx of zeros; its strides are `stride_x*`."""
    S = widened(S, SPEC.wide)
    at = rows_of_program(target_ptr, rows, S, ignore_index, stride_tn, stride_ts, SPEC, TILE)
    counted = at.counted & (at.label >= 0) & (at.label < C)
    weight = label_weights(at, counted, weight_ptr)
    if SPEC.reduced:
        upstream = tl.load(grad_ptr).to(tl.float32)  # in bounds: a reduced loss is one element
        if divisor_ptr is not None:
            upstream = upstream / tl.load(divisor_ptr)  # in bounds: one element
        dx = -weight * upstream
    else:
        dx = -weight * tl.load(grad_ptr + at.row, mask=at.inside, other=0.0).to(tl.float32)
    offset = row_offset(at, stride_xn, stride_xs) + at.label * stride_xc
    tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=counted)


@costs(nll_loss_forward_kernel)
def nll_loss_forward_cost(x_ptr: torch.Tensor, target_ptr: torch.Tensor, **others: Any) -> Cost:
    """One element of each row of x is read; every other tensor is moved once."""
    rows = target_ptr.numel()
    return Cost(2 * rows, rows * x_ptr.element_size() + size_in_bytes(target_ptr, *others.values()))


@costs(nll_loss_backward_kernel)
def nll_loss_backward_cost(dx_ptr: torch.Tensor, target_ptr: torch.Tensor, **others: Any) -> Cost:
    """One element of each row of dx is written; every other tensor is moved once."""
    rows = target_ptr.numel()
    return Cost(2 * rows, rows * dx_ptr.element_size() + size_in_bytes(target_ptr, *others.values()))


def nll_loss_forward(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int, reduction: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss, and the mean's divisor.

    Args:
        x: [N, C] or [N, C, S], any strides.
        target: labels [N] or [N, S], any strides.
        weight: [C], contiguous, or None.
        ignore_index: the label of rows to leave out.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss, [] or the target's shape; the divisor, fp32 [1], else None.
    """
    reduced = reduction != "none"
    problem = _problem(False, x.shape, x.stride(), target.stride(), ignore_index, reduced, current_target())
    programs = problem.grid[0]
    loss = x.new_empty(() if reduced else target.shape)
    divisor = x.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = x.new_empty((2, programs), dtype=torch.float32) if reduced and programs > 1 else None
    problem.launch(x, target, weight, loss, divisor, partial)
    if partial is not None:
        reduce_losses(partial, loss, divisor)
    return loss, divisor


def nll_loss_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    divisor: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
) -> torch.Tensor:
    """dx of x's shape.

    Args:
        grad: the upstream gradient, [] or contiguous in the loss's shape.
        x: of which shape and strides alone are read.
        target, weight, ignore_index, reduction: as in the forward.
        divisor: what the forward returned.
    """
    dx = torch.zeros_like(x)
    given = dx.shape, dx.stride(), target.stride(), ignore_index, reduction != "none"
    _problem(True, *given, current_target()).launch(grad, dx, target, weight, divisor)
    return dx


@lru_cache(maxsize=4096)
def _problem(
    backward: bool,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    target_stride: tuple[int, ...],
    ignore_index: int,
    reduced: bool,
    target: Target,
) -> Problem:
    N, C, S = three_dimensions(shape, 1)
    rows = N * S
    block_rows, num_warps = flat_block(rows, target)
    return Problem(
        nll_loss_backward_kernel if backward else nll_loss_forward_kernel,
        (ceil_div(rows, block_rows),),
        rows,
        C,
        S,
        ignore_index,
        *three_dimensions(stride, 0),
        *three_dimensions(target_stride, 0)[:2],
        SPEC=CrossEntropy(False, 0.0, reduced, exceed_int32(((S + block_rows, 1),))),
        TILE=CrossEntropyTile(block_rows, 1, num_warps),
        num_warps=num_warps,
    )

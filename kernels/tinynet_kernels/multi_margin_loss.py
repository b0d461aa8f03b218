"""Multi-class margin loss (hinge loss). For one row x [C] with label y, and z_c = margin - x_y + x_c:

    loss = w_y / C  sum_{c != y} max(0, z_c)^p             p 1 or 2
    dx_c = w_y / C  p z_c^(p - 1) dloss  where z_c > 0     dx_y = -sum_{c != y} dx_c

A label out of range makes its loss NaN.

Tiling: forward, block_rows rows per program, which walks the classes; it saves the sum in dx_y of each row, so that the
backward is one [block_rows, block_classes] tile per program. A sum over rows takes two stages.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.cross_entropy import cross_entropy_tile
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import reduce_losses, store_partial_losses, store_reduced_loss
from tinynet_kernels.tiles import Target, ceil_div, current_target


class MultiMargin(NamedTuple):
    """What a kernel is compiled for, beside its tile.

    Attributes:
        p: power of the margins, 1 or 2.
        margin: of the label's score over the others.
        reduction: "mean", "sum" or "none".
        wide: whether offsets are int64.
    """

    p: int
    margin: float
    reduction: str
    wide: bool


class Rows(NamedTuple):
    """A program's rows, within a kernel: `first` is int64, all others [block_rows]; `scale` is w_y / C."""

    first: Any
    row: Any
    inside: Any
    label: Any
    counted: Any
    label_score: Any
    scale: Any


@triton.jit
def rows_of_program(x_ptr, target_ptr, weight_ptr, rows, C, stride_x, TILE: constexpr):
    """This program's `Rows`; those with a label out of range are not counted."""
    first = tl.program_id(0).to(tl.int64) * TILE.block_rows
    row = tl.arange(0, TILE.block_rows)
    inside = row < rows - first
    label = tl.load(target_ptr + first + row, mask=inside, other=-1)
    counted = inside & (label >= 0) & (label < C)
    label_score = tl.load(x_ptr + (first + row) * stride_x + label, mask=counted, other=0.0).to(tl.float32)
    scale = tl.where(counted, 1.0 / C, 0.0)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + label, mask=counted, other=0.0).to(tl.float32)
    return Rows(first, row, inside, label, counted, label_score, scale)


@triton.jit
def margins(x_ptr, at, start, C, stride_x, SPEC: constexpr, TILE: constexpr):
    """(z_c, or 0 where it is negative or of the label; column; mask) of one tile of classes from `start`."""
    column = start + tl.arange(0, TILE.block_classes)
    mask = at.counted[:, None] & (tl.arange(0, TILE.block_classes) < C - start)[None, :]
    offset = at.row[:, None] * widened(stride_x, SPEC.wide) + column[None, :]
    x = tl.load(x_ptr + at.first * stride_x + offset, mask=mask, other=0.0).to(tl.float32)
    z = SPEC.margin - at.label_score[:, None] + x
    others = mask & (column[None, :] != at.label.to(column.dtype)[:, None])
    return tl.where(others & (z > 0), z, 0.0), column, mask


@triton.jit
def multi_margin_loss_forward_kernel(
    x_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    divisor_ptr,
    partial_ptr,
    saved_ptr,
    rows,
    C,
    stride_x,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The losses of block_rows rows, or their sum; `saved` [rows], where given, receives -dx_y for an upstream of 1."""
    C = widened(C, SPEC.wide)
    at = rows_of_program(x_ptr, target_ptr, weight_ptr, rows, C, stride_x, TILE)
    loss = tl.full((TILE.block_rows,), 0.0, tl.float32)
    slope = tl.full((TILE.block_rows,), 0.0, tl.float32)
    for start in range(0, C, TILE.block_classes):
        z, _, _ = margins(x_ptr, at, start, C, stride_x, SPEC, TILE)
        if SPEC.p == 1:
            loss += tl.sum(z, axis=1)
            slope += tl.sum(tl.where(z > 0, 1.0, 0.0), axis=1)
        else:
            loss += tl.sum(z * z, axis=1)
            slope += tl.sum(2.0 * z, axis=1)
    loss = tl.where(at.counted, loss * at.scale, tl.where(at.inside, float("nan"), 0.0))
    if saved_ptr is not None:
        tl.store(saved_ptr + at.first + at.row, slope * at.scale, mask=at.inside)
    if SPEC.reduction == "none":
        tl.store(loss_ptr + at.first + at.row, loss.to(loss_ptr.dtype.element_ty), mask=at.inside)
    else:
        count = tl.sum(tl.where(at.inside, 1.0, 0.0), axis=0)
        if partial_ptr is None:
            store_reduced_loss(tl.sum(loss, axis=0), count, loss_ptr, divisor_ptr)
        else:
            store_partial_losses(tl.sum(loss, axis=0), count, partial_ptr)


@triton.jit
def multi_margin_loss_backward_kernel(
    grad_ptr,
    x_ptr,
    target_ptr,
    weight_ptr,
    saved_ptr,
    dx_ptr,
    rows,
    C,
    stride_x,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dx, contiguous [rows, C]: one [block_rows, block_classes] tile per program."""
    C = widened(C, SPEC.wide)
    at = rows_of_program(x_ptr, target_ptr, weight_ptr, rows, C, stride_x, TILE)
    z, column, _ = margins(x_ptr, at, tl.program_id(1) * TILE.block_classes, C, stride_x, SPEC, TILE)
    if SPEC.reduction == "none":
        upstream = tl.load(grad_ptr + at.first + at.row, mask=at.inside, other=0.0).to(tl.float32)
    else:
        upstream = tl.full((TILE.block_rows,), 0.0, tl.float32)
        upstream += tl.load(grad_ptr).to(tl.float32)  # in bounds: one element
        if SPEC.reduction == "mean":
            upstream = upstream / rows
    slope = tl.load(saved_ptr + at.first + at.row, mask=at.inside, other=0.0)
    dx = (2.0 * z if SPEC.p == 2 else tl.where(z > 0, 1.0, 0.0)) * at.scale[:, None]
    dx = tl.where(column[None, :] == at.label.to(column.dtype)[:, None], -slope[:, None], dx) * upstream[:, None]
    mask = at.inside[:, None] & (tl.arange(0, TILE.block_classes) < C - tl.program_id(1) * TILE.block_classes)[None, :]
    offset = at.row[:, None] * C + column[None, :]
    tl.store(dx_ptr + at.first * C + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@costs(multi_margin_loss_forward_kernel)
@costs(multi_margin_loss_backward_kernel)
def multi_margin_loss_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is moved once; a difference, a product and a sum per score."""
    return Cost(4 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


def multi_margin_loss_forward(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    p: int,
    margin: float,
    reduction: str,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss, and what its backward reads.

    Args:
        x: scores [N, C], the last dimension contiguous.
        target: labels [N], contiguous.
        weight: [C], contiguous, or None.
        p: 1 or 2.
        margin: any number.
        reduction: "mean", "sum" or "none".
        save: whether a backward will follow.

    Returns:
        The loss, [] or [N]; fp32 [N] where `save`, else None.
    """
    rows = x.shape[0]
    problem = _problem(False, *x.shape, x.stride(0), p, margin, reduction, current_target())
    programs, reduced = problem.grid[0], reduction != "none"
    loss = x.new_empty(() if reduced else (rows,))
    divisor = x.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = x.new_empty((2, programs), dtype=torch.float32) if reduced and programs > 1 else None
    saved = x.new_empty(rows, dtype=torch.float32) if save else None
    problem.launch_named(
        x_ptr=x,
        target_ptr=target,
        weight_ptr=weight,
        loss_ptr=loss,
        divisor_ptr=divisor,
        partial_ptr=partial,
        saved_ptr=saved,
    )
    if partial is not None:
        reduce_losses(partial, loss, divisor)
    return loss, saved


def multi_margin_loss_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    saved: torch.Tensor,
    p: int,
    margin: float,
    reduction: str,
) -> torch.Tensor:
    """dx [N, C], contiguous; `grad` is [] or contiguous [N], all others as in the forward."""
    dx = x.new_empty(x.shape)
    problem = _problem(True, *x.shape, x.stride(0), p, margin, reduction, current_target())
    problem.launch(grad, x, target, weight, saved, dx)
    return dx


@lru_cache(maxsize=4096)
def _problem(
    backward: bool, rows: int, C: int, stride: int, p: int, margin: float, reduction: str, target: Target
) -> Problem:
    tile = cross_entropy_tile(rows, C, True, target)
    row_programs = ceil_div(rows, tile.block_rows)
    wide = exceed_int32(((min(tile.block_rows, rows), max(stride, C)), (C + tile.block_classes, 1)))
    return Problem(
        multi_margin_loss_backward_kernel if backward else multi_margin_loss_forward_kernel,
        (row_programs, ceil_div(C, tile.block_classes)) if backward else (row_programs,),
        rows,
        C,
        stride,
        SPEC=MultiMargin(p, margin, reduction, wide),
        TILE=tile,
        num_warps=tile.num_warps,
    )

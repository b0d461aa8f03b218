"""Triplet margin loss of an anchor, a positive and a negative example, each a vector [D]:

    loss = max(0, margin + |a - p| - e)        e = |a - n|, or min(|a - n|, |p - n|) where the two may be swapped

Norms and their gradients are those of `distance`. The smaller of two equal distances is half of each.

Tiling: forward, block_rows triplets per program, which walks D; it saves for each distance its value and the factor of
its gradient times the loss's derivative by it, [2 distances, rows]. Backward, one [block_rows, block_classes] tile of
all gradients per program. A sum over triplets takes two stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.cosine_similarity import vectors_tile
from tinynet_kernels.distance import Norm, no_sums, norm_and_factor, norm_gradient, norm_of, with_elements
from tinynet_kernels.elementwise import load_rows, store_rows
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import reduce_losses, store_partial_losses, store_reduced_loss
from tinynet_kernels.tiles import Target, ceil_div, current_target


class Triplet(NamedTuple):
    """What a kernel is compiled for, beside the norm and its tile.

    Attributes:
        margin: see the module's formulas.
        swap: whether anchor and positive may be swapped.
        reduction: "mean", "sum" or "none".
        wide: whether offsets are int64.
    """

    margin: float
    swap: bool
    reduction: str
    wide: bool


@triton.jit
def triplet_margin_loss_forward_kernel(
    anchor_ptr,
    positive_ptr,
    negative_ptr,
    loss_ptr,
    divisor_ptr,
    partial_ptr,
    saved_ptr,
    rows,
    D,
    stride_a,
    stride_p,
    stride_n,
    NORM: constexpr,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The losses of block_rows triplets, or their sum."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    D = widened(D, SPEC.wide)
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    inside = row < rows - first
    near = no_sums(BLOCK_ROWS, NORM)
    far = no_sums(BLOCK_ROWS, NORM)
    swapped = no_sums(BLOCK_ROWS, NORM)
    for start in range(0, D, TILE.block_classes):
        column = start + tl.arange(0, TILE.block_classes)
        mask = inside[:, None] & (tl.arange(0, TILE.block_classes) < D - start)[None, :]
        a = load_rows(anchor_ptr, stride_a, first, row, column, mask, SPEC.wide)
        p = load_rows(positive_ptr, stride_p, first, row, column, mask, SPEC.wide)
        n = load_rows(negative_ptr, stride_n, first, row, column, mask, SPEC.wide)
        near = with_elements(near, a - p + NORM.eps, mask, NORM)
        far = with_elements(far, a - n + NORM.eps, mask, NORM)
        if SPEC.swap:
            swapped = with_elements(swapped, p - n + NORM.eps, mask, NORM)
    near_y, near_factor = norm_and_factor(near, NORM)
    far_y, far_factor = norm_and_factor(far, NORM)
    away = far_y
    if SPEC.swap:
        swapped_y, swapped_factor = norm_and_factor(swapped, NORM)
        is_nan = (far_y != far_y) | (swapped_y != swapped_y)
        away = tl.where(is_nan, float("nan"), tl.minimum(far_y, swapped_y))
    excess = SPEC.margin + near_y - away
    loss = tl.where(excess < 0, 0.0, excess)  # NaN stays
    if saved_ptr is not None:
        slope = tl.where(excess >= 0, 1.0, 0.0)
        saved = saved_ptr + first + row
        tl.store(saved, near_y, mask=inside)
        tl.store(saved + rows, slope * near_factor, mask=inside)
        tl.store(saved + 2 * rows, far_y, mask=inside)
        share = slope
        if SPEC.swap:
            share = slope * tl.where(far_y == swapped_y, 0.5, tl.where(far_y < swapped_y, 1.0, 0.0))
            tl.store(saved + 4 * rows, swapped_y, mask=inside)
            tl.store(saved + 5 * rows, (slope - share) * swapped_factor, mask=inside)
        tl.store(saved + 3 * rows, share * far_factor, mask=inside)
    if SPEC.reduction == "none":
        tl.store(loss_ptr + first + row, loss.to(loss_ptr.dtype.element_ty), mask=inside)
    else:
        total = tl.sum(tl.where(inside, loss, 0.0), axis=0)
        count = tl.sum(tl.where(inside, 1.0, 0.0), axis=0)
        if partial_ptr is None:
            store_reduced_loss(total, count, loss_ptr, divisor_ptr)
        else:
            store_partial_losses(total, count, partial_ptr)


@triton.jit
def scaled_gradient(d, saved, rows, inside, upstream, NORM: constexpr):
    """The loss's gradient by a difference, without its sign; `saved` points at the values of its distance."""
    y = tl.load(saved, mask=inside, other=0.0)
    factor = tl.load(saved + rows, mask=inside, other=0.0) * upstream
    return norm_gradient(d, y, NORM) * factor[:, None]


@triton.jit
def triplet_margin_loss_backward_kernel(
    grad_ptr,
    anchor_ptr,
    positive_ptr,
    negative_ptr,
    saved_ptr,
    da_ptr,
    dp_ptr,
    dn_ptr,
    rows,
    D,
    stride_a,
    stride_p,
    stride_n,
    NORM: constexpr,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The gradients of anchor, positive and negative, contiguous [rows, D]; None is not stored."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    D = widened(D, SPEC.wide)
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    inside = row < rows - first
    start = tl.program_id(1) * TILE.block_classes
    column = start + tl.arange(0, TILE.block_classes)
    mask = inside[:, None] & (tl.arange(0, TILE.block_classes) < D - start)[None, :]
    a = load_rows(anchor_ptr, stride_a, first, row, column, mask, SPEC.wide)
    p = load_rows(positive_ptr, stride_p, first, row, column, mask, SPEC.wide)
    n = load_rows(negative_ptr, stride_n, first, row, column, mask, SPEC.wide)
    if SPEC.reduction == "none":
        upstream = tl.load(grad_ptr + first + row, mask=inside, other=0.0).to(tl.float32)
    else:
        upstream = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(grad_ptr).to(tl.float32)  # in bounds: one element
        if SPEC.reduction == "mean":
            upstream = upstream / rows
    saved = saved_ptr + first + row
    near = scaled_gradient(a - p + NORM.eps, saved, rows, inside, upstream, NORM)
    far = scaled_gradient(a - n + NORM.eps, saved + 2 * rows, rows, inside, upstream, NORM)
    if da_ptr is not None:
        store_rows(da_ptr, D, near - far, first, row, column, mask, SPEC.wide)
    if SPEC.swap:
        swapped = scaled_gradient(p - n + NORM.eps, saved + 4 * rows, rows, inside, upstream, NORM)
        near += swapped
        far += swapped
    if dp_ptr is not None:
        store_rows(dp_ptr, D, -near, first, row, column, mask, SPEC.wide)
    if dn_ptr is not None:
        store_rows(dn_ptr, D, far, first, row, column, mask, SPEC.wide)


@costs(triplet_margin_loss_forward_kernel)
@costs(triplet_margin_loss_backward_kernel)
def triplet_margin_loss_cost(anchor_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is moved once; four operations for each of two distances."""
    return Cost(8 * anchor_ptr.numel(), size_in_bytes(anchor_ptr, *others.values()))


def triplet_margin_loss_forward(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    margin: float,
    p: float,
    eps: float,
    swap: bool,
    reduction: str,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss, and what the backward reads.

    Args:
        anchor, positive, negative: [rows, D], the last dimension contiguous.
        margin, swap: see the module's formulas.
        p, eps: of the distances.
        reduction: "mean", "sum" or "none".
        save: whether a backward will follow.

    Returns:
        [] or, for "none", [rows]; fp32 [6 or 4, rows] where `save`, else None.
    """
    rows, reduced = anchor.shape[0], reduction != "none"
    problem = _problem_of(False, anchor, positive, negative, (margin, swap, reduction), norm_of(p, eps))
    programs = problem.grid[0]
    loss = anchor.new_empty(() if reduced else (rows,))
    divisor = anchor.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = anchor.new_empty((2, programs), dtype=torch.float32) if reduced and programs > 1 else None
    saved = anchor.new_empty((6 if swap else 4, rows), dtype=torch.float32) if save else None
    problem.launch_named(
        anchor_ptr=anchor,
        positive_ptr=positive,
        negative_ptr=negative,
        loss_ptr=loss,
        divisor_ptr=divisor,
        partial_ptr=partial,
        saved_ptr=saved,
    )
    if partial is not None:
        reduce_losses(partial, loss, divisor)
    return loss, saved


def triplet_margin_loss_backward(
    grad: torch.Tensor,
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    saved: torch.Tensor,
    margin: float,
    p: float,
    eps: float,
    swap: bool,
    reduction: str,
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """The gradients of anchor, positive and negative [rows, D], None where not wanted; `grad` is [] or [rows]."""
    gradients = [anchor.new_empty(anchor.shape) if want else None for want in wanted]
    problem = _problem_of(True, anchor, positive, negative, (margin, swap, reduction), norm_of(p, eps))
    problem.launch_named(
        grad_ptr=grad,
        anchor_ptr=anchor,
        positive_ptr=positive,
        negative_ptr=negative,
        saved_ptr=saved,
        da_ptr=gradients[0],
        dp_ptr=gradients[1],
        dn_ptr=gradients[2],
    )
    return gradients


def _problem_of(
    backward: bool, anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, options: Any, norm: Norm
) -> Problem:
    strides = anchor.stride(0), positive.stride(0), negative.stride(0)
    return _problem(backward, *anchor.shape, strides, options, norm, current_target())


@lru_cache(maxsize=4096)
def _problem(
    backward: bool,
    rows: int,
    D: int,
    strides: tuple[int, int, int],
    options: tuple[float, bool, str],
    norm: Norm,
    target: Target,
) -> Problem:
    tile = vectors_tile(rows, D, True, target)
    row_programs = ceil_div(rows, tile.block_rows)
    wide = exceed_int32(((min(tile.block_rows, rows), max(*strides, D)), (D + tile.block_classes, 1)))
    return Problem(
        triplet_margin_loss_backward_kernel if backward else triplet_margin_loss_forward_kernel,
        (row_programs, ceil_div(D, tile.block_classes)) if backward else (row_programs,),
        rows,
        D,
        *strides,
        NORM=norm,
        SPEC=Triplet(*options, wide),
        TILE=tile,
        num_warps=tile.num_warps,
    )

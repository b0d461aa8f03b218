"""Multi-label margin loss. One row of targets holds T labels y_j, then -1. For one row x [C], z_jc = 1 - x_{y_j} + x_c:

    loss = 1 / C  sum over j < T, and c that are no label, of max(0, z_jc)
    dx_c = 1 / C  (number of j with z_jc > 0) dloss          where c is no label
    dx_c = -1 / C  sum over j with y_j = c of n_j dloss      where it is; n_j = number of such c with z_jc > 0

A label out of range makes its row's loss NaN.

Tiling: one row per program, which walks the classes block_classes at a time and compares each block with the T labels
twice: to find which of its classes are labels, and for the margins. T and n_j are saved, [N, C + 1] int32, so that the
backward is one pass, a block of classes per program.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.reduction import reduce_losses, store_partial_losses, store_reduced_loss
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least


class MultiLabelMargin(NamedTuple):
    """What a kernel is compiled for: "mean", "sum" or "none", and classes of one step."""

    reduction: str
    block_classes: int


@triton.jit
def multilabel_margin_loss_forward_kernel(
    x_ptr,
    target_ptr,
    loss_ptr,
    divisor_ptr,
    partial_ptr,
    saved_ptr,
    C,
    stride_x,
    SPEC: constexpr,
):
    """The loss of one row, or its share of the sum; `saved` receives T, n_0, n_1, ..."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * stride_x
    target_row = target_ptr + row * C
    saved_row = saved_ptr + row * (C + 1)
    offset = tl.arange(0, SPEC.block_classes)
    labels = C
    outside = tl.full((), 0, tl.int32)
    for start in range(0, C, SPEC.block_classes):
        mask = offset < C - start
        label = tl.load(target_row + start + offset, mask=mask, other=0)
        labels = tl.minimum(labels, tl.min(tl.where(label < 0, start + offset, C), axis=0))
        outside += tl.sum(tl.where((label < -1) | (label >= C), 1, 0), axis=0)
    loss = tl.full((), 0.0, tl.float32)
    labels = tl.where(outside > 0, 0, labels)
    for start in range(0, C, SPEC.block_classes):
        mask = offset < C - start
        x = tl.load(x_row + start + offset, mask=mask, other=0.0).to(tl.float32)
        is_other = mask
        for j in range(labels):
            is_other = is_other & (start + offset != tl.load(target_row + j).to(tl.int32))  # in bounds: j < C
        for j in range(labels):
            label_score = tl.load(x_row + tl.load(target_row + j)).to(tl.float32)  # in bounds: 0 <= y_j < C
            z = 1.0 - label_score + x
            z = tl.where(is_other & (z > 0), z, 0.0)
            loss += tl.sum(z, axis=0)
            count = tl.sum(tl.where(z > 0, 1, 0), axis=0)
            if start > 0:
                count += tl.load(saved_row + 1 + j)  # in bounds: j < C
                tl.debug_barrier()  # before other threads' counts are overwritten
            tl.store(saved_row + 1 + j, count)
        tl.debug_barrier()  # the next block reads these counts
    tl.store(saved_row, labels)
    loss = tl.where(outside > 0, float("nan"), loss / C)
    if SPEC.reduction == "none":
        tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty))
    elif partial_ptr is None:
        store_reduced_loss(loss, 1.0, loss_ptr, divisor_ptr)
    else:
        store_partial_losses(loss, 1.0, partial_ptr)


@triton.jit
def multilabel_margin_loss_backward_kernel(
    grad_ptr, x_ptr, target_ptr, saved_ptr, dx_ptr, C, stride_x, SPEC: constexpr
):
    """dx of one row's block of classes; contiguous [N, C]."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * stride_x
    target_row = target_ptr + row * C
    saved_row = saved_ptr + row * (C + 1)
    start = tl.program_id(1) * SPEC.block_classes
    offset = tl.arange(0, SPEC.block_classes)
    mask = offset < C - start
    x = tl.load(x_row + start + offset, mask=mask, other=0.0).to(tl.float32)
    column = start + offset
    exceeded = tl.full((SPEC.block_classes,), 0.0, tl.float32)
    own = tl.full((SPEC.block_classes,), 0.0, tl.float32)
    is_label = tl.full((SPEC.block_classes,), 0, tl.int32)
    for j in range(tl.load(saved_row)):  # in bounds: T, of one row
        label = tl.load(target_row + j)  # in bounds: j < T <= C
        z = 1.0 - tl.load(x_row + label).to(tl.float32) + x  # in bounds: 0 <= y_j < C, else T is 0
        exceeded += tl.where(z > 0, 1.0, 0.0)
        here = column == label.to(tl.int32)
        own += tl.where(here, tl.load(saved_row + 1 + j).to(tl.float32), 0.0)  # in bounds: j < C
        is_label = is_label | here.to(tl.int32)
    if SPEC.reduction == "none":
        upstream = tl.load(grad_ptr + row).to(tl.float32)  # in bounds: one element per row
    else:
        upstream = tl.load(grad_ptr).to(tl.float32)  # in bounds: a reduced loss is one element
        if SPEC.reduction == "mean":
            upstream = upstream / tl.num_programs(0)
    dx = tl.where(is_label > 0, -own, exceeded) * (upstream / C)
    tl.store(dx_ptr + row * C + column, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@costs(multilabel_margin_loss_forward_kernel)
@costs(multilabel_margin_loss_backward_kernel)
def multilabel_margin_loss_cost(
    x_ptr: torch.Tensor, target_ptr: torch.Tensor, saved_ptr: torch.Tensor, **others: Any
) -> Cost:
    """x and the targets are read once and dx written once; what is computed and saved depends on the labels."""
    return Cost(x_ptr.numel(), size_in_bytes(x_ptr, target_ptr, *others.values()))


def multilabel_margin_loss_forward(
    x: torch.Tensor, target: torch.Tensor, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, [] or [N], and what its backward reads, int32 [N, C + 1].

    Args:
        x: scores [N, C], the last dimension contiguous.
        target: labels [N, C], those of each row before its first -1; contiguous.
        reduction: "mean", "sum" or "none".
    """
    rows, C = x.shape
    reduced = reduction != "none"
    loss = x.new_empty(() if reduced else (rows,))
    divisor = x.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = x.new_empty((2, rows), dtype=torch.float32) if reduced and rows > 1 else None
    saved = x.new_empty((rows, C + 1), dtype=torch.int32)
    problem = _problem(False, rows, C, x.stride(0), reduction, current_target())
    problem.launch(x, target, loss, divisor, partial, saved)
    if partial is not None:
        reduce_losses(partial, loss, divisor)
    return loss, saved


def multilabel_margin_loss_backward(
    grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, saved: torch.Tensor, reduction: str
) -> torch.Tensor:
    """dx [N, C], contiguous; `grad` is [] or contiguous [N], all others as in the forward."""
    dx = x.new_empty(x.shape)
    problem = _problem(True, *x.shape, x.stride(0), reduction, current_target())
    problem.launch(grad, x, target, saved, dx)
    return dx


@lru_cache(maxsize=4096)
def _problem(backward: bool, rows: int, C: int, stride: int, reduction: str, target: Target) -> Problem:
    block = multilabel_block(C, target)
    return Problem(
        multilabel_margin_loss_backward_kernel if backward else multilabel_margin_loss_forward_kernel,
        (rows, ceil_div(C, block)) if backward else (rows,),
        C,
        stride,
        SPEC=MultiLabelMargin(reduction, block),
        num_warps=4,
    )


def multilabel_block(C: int, target: Target) -> int:
    """Classes of one step: few enough that those of a GPU's thread stay in registers."""
    most = {"interpreter": 1 << 16, "cpu": 1024}.get(target.kind, 512)
    return min(most, max(16, power_of_2_at_least(C)))

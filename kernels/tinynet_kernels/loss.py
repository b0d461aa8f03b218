"""Losses: cross-entropy of a softmax, and the mean squared error.

Cross-entropy, for one row x [C] of logits and coefficients q [C]:

    loss = -sum_c q_c log softmax(x)_c = A log s - sum_c q_c (x_c - m)
           where m = max x, s = sum_c e^(x_c - m), A = sum_c q_c
    dloss/dx_c = A e^(x_c - m - log s) - q_c
    dloss/dp_c = -(1 - label_smoothing) w_c (x_c - m - log s)

where p is one-hot of the label, or the class probabilities given, and q_c = w_c ((1 - label_smoothing) p_c +
label_smoothing / C). The mean divides by the sum of the labels' weights, or by the number of rows for probabilities. An
ignored row adds nothing to either sum; a label out of range makes its loss NaN.

Tiling: a program makes BLOCK_ROWS rows and walks the classes BLOCK_CLASSES at a time with a running maximum (online
softmax: Milakov and Gimelshein 2018), so the logits are read once. Saved for backward are m, log s and A of each row,
12 bytes; the backward reads the logits again and writes the gradient, scaled by the upstream gradient, in the same
pass. That moves the logits three times in all. Writing the gradient in the forward and scaling it in the backward would
move them four times, and round a 16-bit gradient twice.

Sums over rows or elements take two stages: a partial sum a program, then one program that adds the partials and
divides, in a fixed order. Where the first stage is one program it finishes the work itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, launch, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, ceil_div, current_target, flat_block, power_of_2_at_least

# Where the running maximum starts, and what stands for a masked logit: finite, so that no difference is NaN.
LOWEST = tl.constexpr(-1.7e38)
MASKED = tl.constexpr(-3.4e38)


@triton.jit
def row_offset(first, S, stride_n, stride_s, WIDE: constexpr, BLOCK_ROWS: constexpr):
    """Where the BLOCK_ROWS rows n S + s from the int64 row `first` on start in a [N, *, S] tensor.

    The long division is one a program: 64-bit ones of every row, as for WIDE, would cost more than the row's
    exponentials.
    """
    image = first // S
    s = first - image * S
    s = (s if WIDE else s.to(tl.int32)) + tl.arange(0, BLOCK_ROWS)
    return (image + s // S) * stride_n + (s % S).to(tl.int64) * stride_s


@triton.jit
def coefficients(
    label,
    target_ptr,
    target_row,
    weight_ptr,
    column,
    row_mask,
    C,
    stride_tc,
    PROBABILITIES: constexpr,
    HAS_WEIGHT: constexpr,
    LABEL_SMOOTHING: constexpr,
):
    """q_c [BLOCK_ROWS, BLOCK_CLASSES] of the module's formulas; 0 where masked."""
    mask = row_mask[:, None] & (column < C)[None, :]
    if PROBABILITIES:
        offset = target_row[:, None] + column.to(tl.int64)[None, :] * stride_tc
        q = tl.load(target_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        # A label that column's type does not hold is out of range: its row's loss is NaN whatever matches.
        q = tl.where(column[None, :] == label.to(column.dtype)[:, None], 1.0, 0.0)
    if LABEL_SMOOTHING > 0:
        q = q * (1.0 - LABEL_SMOOTHING) + LABEL_SMOOTHING / C
    if HAS_WEIGHT:
        q *= tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    return tl.where(mask, q, 0.0)


@triton.jit
def store_reduced(total, divisor, loss_ptr, divisor_ptr, MEAN: constexpr):
    """The sum, or the sum / divisor; the divisor is kept for the backward."""
    if MEAN:
        tl.store(divisor_ptr, divisor)
        total = total / divisor
    tl.store(loss_ptr, total.to(loss_ptr.dtype.element_ty))


@triton.jit
def reduce_losses_kernel(
    partial_ptr,
    loss_ptr,
    divisor_ptr,
    parts,
    MEAN: constexpr,
    BLOCK: constexpr,
):
    """The second stage: loss = sum partial[0] (/ sum partial[1]) over [2, parts], in one program."""
    offset = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    divisor = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        mask = offset < parts - start
        total += tl.load(partial_ptr + start + offset, mask=mask, other=0.0)
        divisor += tl.load(partial_ptr + parts + start + offset, mask=mask, other=0.0)
    store_reduced(tl.sum(total, axis=0), tl.sum(divisor, axis=0), loss_ptr, divisor_ptr, MEAN)


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    divisor_ptr,
    partial_ptr,
    saved_ptr,
    rows,
    C,
    S,
    ignore_index,
    stride_xn,
    stride_xc,
    stride_xs,
    stride_tn,
    stride_tc,
    stride_ts,
    PROBABILITIES: constexpr,
    HAS_WEIGHT: constexpr,
    LABEL_SMOOTHING: constexpr,
    REDUCTION: constexpr,
    ONE_PROGRAM: constexpr,
    SAVE: constexpr,
    WIDE: constexpr,
    BLOCK_ROWS: constexpr,
    BLOCK_CLASSES: constexpr,
):
    """The losses of BLOCK_ROWS rows, or their partial sum; SAVE also stores m, log s and A, [3, rows].

    With REDUCTION "none" the losses go to `loss`, else the sums of losses and of divisors to `partial` [2, programs],
    or, where there is ONE_PROGRAM, the finished loss to `loss`.
    """
    C = widened(C, WIDE)
    S = widened(S, WIDE)
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)
    inside = tl.arange(0, BLOCK_ROWS) < rows - first
    logits_row = row_offset(first, S, stride_xn, stride_xs, WIDE, BLOCK_ROWS)
    target_row = row_offset(first, S, stride_tn, stride_ts, WIDE, BLOCK_ROWS)
    label = tl.zeros((BLOCK_ROWS,), tl.int64)
    counted = inside
    if not PROBABILITIES:
        label = tl.load(target_ptr + target_row, mask=inside, other=0).to(tl.int64)
        counted = inside & (label != ignore_index) & (label >= 0) & (label < C)

    # Whether a row's only coefficient is its label's.
    ONE_CLASS: constexpr = not PROBABILITIES and LABEL_SMOOTHING == 0  # pyright: ignore[reportAssignmentType]
    maximum = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    exponentials = tl.zeros((BLOCK_ROWS,), tl.float32)
    weighted = tl.zeros((BLOCK_ROWS,), tl.float32)  # sum of q_c (x_c - maximum)
    coefficient_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, C, BLOCK_CLASSES):
        column = start + tl.arange(0, BLOCK_CLASSES)
        mask = inside[:, None] & (column < C)[None, :]
        offset = logits_row[:, None] + column.to(tl.int64)[None, :] * stride_xc
        x = tl.load(logits_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x, MASKED)
        higher = tl.maximum(maximum, tl.max(x, axis=1))
        shift = maximum - higher
        x -= higher[:, None]
        exponentials = exponentials * tl.exp(shift) + tl.sum(tl.exp(x), axis=1)
        if not ONE_CLASS:
            q = coefficients(
                label,
                target_ptr,
                target_row,
                weight_ptr,
                column,
                counted,
                C,
                stride_tc,
                PROBABILITIES,
                HAS_WEIGHT,
                LABEL_SMOOTHING,
            )
            # A logit of -inf with no coefficient adds nothing: 0 log 0 = 0. The choice comes after the product: a
            # product next to the sum would be fused into its first addition, each lane rounding its own way.
            weighted += coefficient_sum * shift + tl.sum(tl.where(q == 0, 0.0, q * x), axis=1)
            coefficient_sum += tl.sum(q, axis=1)
        maximum = higher

    if ONE_CLASS:
        coefficient_sum = tl.where(counted, 1.0, 0.0)
        if HAS_WEIGHT:
            coefficient_sum = tl.load(weight_ptr + label, mask=counted, other=0.0).to(tl.float32)
        x = tl.load(logits_ptr + logits_row + label * stride_xc, mask=counted, other=0.0).to(tl.float32)
        weighted = tl.where(coefficient_sum == 0, 0.0, coefficient_sum * (x - maximum))
    log_sum = tl.log(tl.where(inside, exponentials, 1.0))
    loss = coefficient_sum * log_sum - weighted
    divisor = tl.where(counted, 1.0, 0.0)
    if not PROBABILITIES:
        uncounted = tl.where(inside & (label != ignore_index), float("nan"), 0.0)
        loss = tl.where(counted, loss, uncounted)
        coefficient_sum = tl.where(counted, coefficient_sum, uncounted)
        if HAS_WEIGHT:
            divisor = tl.load(weight_ptr + label, mask=counted, other=0.0).to(tl.float32)
    if SAVE:
        tl.store(saved_ptr + row, maximum, mask=inside)
        tl.store(saved_ptr + rows + row, log_sum, mask=inside)
        tl.store(saved_ptr + rows + rows + row, coefficient_sum, mask=inside)
    if REDUCTION == "none":
        tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty), mask=inside)
    else:
        total = tl.sum(tl.where(inside, loss, 0.0), axis=0)
        divisor = tl.sum(divisor, axis=0)
        if ONE_PROGRAM:
            store_reduced(total, divisor, loss_ptr, divisor_ptr, REDUCTION == "mean")
        else:
            tl.store(partial_ptr + tl.program_id(0), total)
            tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), divisor)


@triton.jit
def cross_entropy_backward_kernel(
    grad_ptr,
    logits_ptr,
    target_ptr,
    weight_ptr,
    divisor_ptr,
    saved_ptr,
    dx_ptr,
    dtarget_ptr,
    rows,
    C,
    S,
    ignore_index,
    stride_xn,
    stride_xc,
    stride_xs,
    stride_tn,
    stride_tc,
    stride_ts,
    stride_dxn,
    stride_dxc,
    stride_dxs,
    stride_dtn,
    stride_dtc,
    stride_dts,
    PROBABILITIES: constexpr,
    HAS_WEIGHT: constexpr,
    LABEL_SMOOTHING: constexpr,
    REDUCTION: constexpr,
    WANT_DX: constexpr,
    WANT_DTARGET: constexpr,
    WIDE: constexpr,
    BLOCK_ROWS: constexpr,
    BLOCK_CLASSES: constexpr,
):
    """dx and dp, times the upstream gradient: one [BLOCK_ROWS, BLOCK_CLASSES] tile a program."""
    C = widened(C, WIDE)
    S = widened(S, WIDE)
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)
    inside = tl.arange(0, BLOCK_ROWS) < rows - first
    first_column = tl.program_id(1) * BLOCK_CLASSES
    column = first_column + tl.arange(0, BLOCK_CLASSES)
    wide_column = column.to(tl.int64)[None, :]
    mask = inside[:, None] & (tl.arange(0, BLOCK_CLASSES) < C - first_column)[None, :]
    target_row = row_offset(first, S, stride_tn, stride_ts, WIDE, BLOCK_ROWS)
    label = tl.zeros((BLOCK_ROWS,), tl.int64)
    counted = inside
    if not PROBABILITIES:
        label = tl.load(target_ptr + target_row, mask=inside, other=0).to(tl.int64)
        counted = inside & (label != ignore_index)

    if REDUCTION == "none":
        scale = tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32)
    else:
        upstream = tl.load(grad_ptr).to(tl.float32)  # in bounds: a reduced loss is one element
        if REDUCTION == "mean":
            upstream = upstream / tl.load(divisor_ptr)  # in bounds: one element
        scale = tl.full((BLOCK_ROWS,), 1.0, tl.float32) * upstream
    maximum = tl.load(saved_ptr + row, mask=inside, other=0.0)
    log_sum = tl.load(saved_ptr + rows + row, mask=inside, other=0.0)
    offset = row_offset(first, S, stride_xn, stride_xs, WIDE, BLOCK_ROWS)[:, None] + wide_column * stride_xc
    x = tl.load(logits_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    log_probability = x - maximum[:, None] - log_sum[:, None]
    if WANT_DX:
        coefficient_sum = tl.load(saved_ptr + rows + rows + row, mask=inside, other=0.0)
        q = coefficients(
            label,
            target_ptr,
            target_row,
            weight_ptr,
            column,
            counted,
            C,
            stride_tc,
            PROBABILITIES,
            HAS_WEIGHT,
            LABEL_SMOOTHING,
        )
        dx = scale[:, None] * (coefficient_sum[:, None] * tl.exp(log_probability) - q)
        dx = tl.where(counted[:, None], dx, 0.0)
        dx_offset = row_offset(first, S, stride_dxn, stride_dxs, WIDE, BLOCK_ROWS)[:, None] + wide_column * stride_dxc
        tl.store(dx_ptr + dx_offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if WANT_DTARGET:
        dtarget = scale[:, None] * log_probability * (LABEL_SMOOTHING - 1.0)
        if HAS_WEIGHT:
            dtarget *= tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
        dtarget_offset = (
            row_offset(first, S, stride_dtn, stride_dts, WIDE, BLOCK_ROWS)[:, None] + wide_column * stride_dtc
        )
        tl.store(dtarget_ptr + dtarget_offset, dtarget.to(dtarget_ptr.dtype.element_ty), mask=mask)


@triton.jit
def mse_loss_forward_kernel(
    x_ptr,
    target_ptr,
    loss_ptr,
    partial_ptr,
    elements,
    REDUCTION: constexpr,
    BLOCK: constexpr,
):
    """(x - target)^2 of BLOCK elements, or the partial sum of the squares and their count, [2, programs]."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    square = (x - target) * (x - target)
    if REDUCTION == "none":
        tl.store(loss_ptr + start + offset, square.to(loss_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(square, axis=0))
        count = tl.sum(tl.where(mask, 1.0, 0.0), axis=0)
        tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), count)


@triton.jit
def mse_loss_backward_kernel(
    grad_ptr,
    x_ptr,
    target_ptr,
    dx_ptr,
    dtarget_ptr,
    elements,
    REDUCTION: constexpr,
    WANT_DX: constexpr,
    WANT_DTARGET: constexpr,
    BLOCK: constexpr,
):
    """dx = 2 (x - target) dloss (/ elements for the mean), and dtarget = -dx; BLOCK elements a program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    if REDUCTION == "none":
        upstream = tl.load(grad_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        upstream = tl.load(grad_ptr).to(tl.float32)  # in bounds: a reduced loss is one element
        if REDUCTION == "mean":
            upstream = upstream / elements
    dx = (x - target) * 2.0 * upstream
    if WANT_DX:
        tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if WANT_DTARGET:
        tl.store(dtarget_ptr + start + offset, (-dx).to(dtarget_ptr.dtype.element_ty), mask=mask)


@costs(reduce_losses_kernel)
def reduce_losses_cost(partial_ptr: torch.Tensor, loss_ptr: torch.Tensor, **_: Any) -> Cost:
    """The partial sums are read, the loss is written."""
    return Cost(partial_ptr.numel(), size_in_bytes(partial_ptr, loss_ptr))


@costs(cross_entropy_forward_kernel)
def cross_entropy_forward_cost(
    logits_ptr: torch.Tensor,
    target_ptr: torch.Tensor,
    weight_ptr: torch.Tensor | None,
    loss_ptr: torch.Tensor,
    partial_ptr: torch.Tensor | None,
    saved_ptr: torch.Tensor | None,
    **_: Any,
) -> Cost:
    """Logits, target and weight read once; per logit a maximum, an exponential, and two products with their sums."""
    moved = size_in_bytes(logits_ptr, target_ptr, weight_ptr, loss_ptr, partial_ptr, saved_ptr)
    return Cost(6 * logits_ptr.numel(), moved)


@costs(cross_entropy_backward_kernel)
def cross_entropy_backward_cost(
    grad_ptr: torch.Tensor,
    logits_ptr: torch.Tensor,
    target_ptr: torch.Tensor,
    weight_ptr: torch.Tensor | None,
    saved_ptr: torch.Tensor,
    dx_ptr: torch.Tensor | None,
    dtarget_ptr: torch.Tensor | None,
    **_: Any,
) -> Cost:
    """Logits, target and what was saved are read once, the gradients written once."""
    moved = size_in_bytes(grad_ptr, logits_ptr, target_ptr, weight_ptr, saved_ptr, dx_ptr, dtarget_ptr)
    return Cost(6 * logits_ptr.numel(), moved)


@costs(mse_loss_forward_kernel)
def mse_loss_forward_cost(
    x_ptr: torch.Tensor,
    target_ptr: torch.Tensor,
    loss_ptr: torch.Tensor | None,
    partial_ptr: torch.Tensor | None,
    **_: Any,
) -> Cost:
    """x and target are read, the squares or their partial sums written."""
    return Cost(3 * x_ptr.numel(), size_in_bytes(x_ptr, target_ptr, loss_ptr, partial_ptr))


@costs(mse_loss_backward_kernel)
def mse_loss_backward_cost(
    grad_ptr: torch.Tensor,
    x_ptr: torch.Tensor,
    target_ptr: torch.Tensor,
    dx_ptr: torch.Tensor | None,
    dtarget_ptr: torch.Tensor | None,
    **_: Any,
) -> Cost:
    """x, target and the upstream gradient are read, the gradients written."""
    return Cost(3 * x_ptr.numel(), size_in_bytes(grad_ptr, x_ptr, target_ptr, dx_ptr, dtarget_ptr))


@lru_cache(maxsize=4096)
def cross_entropy_tile(rows: int, C: int, contiguous_classes: bool, target: Target) -> tuple[int, int, int]:
    """(BLOCK_ROWS, BLOCK_CLASSES, num_warps): a tile long in the direction in which the logits are contiguous.

    Args:
        rows: rows of logits.
        C: classes.
        contiguous_classes: whether neighbouring classes are neighbours in memory; else neighbouring rows are.
        target: where it runs.
    """
    if target.kind == "interpreter":
        elements, widest = 1 << 16, 256
    else:
        elements, widest = 2048, 4096 if contiguous_classes else 64
    block_classes = min(widest, power_of_2_at_least(C))
    least_rows = 2 if target.kind == "cpu" else 1  # its C compiler leaves the loop over a single row scalar
    block_rows = max(least_rows, min(elements // block_classes, power_of_2_at_least(rows)))
    return block_rows, block_classes, 8 if block_classes > elements else 4


@lru_cache(maxsize=4096)
def _cross_entropy_forward_problem(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    target_stride: tuple[int, ...],
    probabilities: bool,
    has_weight: bool,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    save: bool,
    target: Target,
) -> Problem:
    N, C, S = _three_dimensions(shape, 1)
    rows = N * S
    block_rows, block_classes, num_warps = cross_entropy_tile(rows, C, stride[1] == 1, target)
    programs = ceil_div(rows, block_rows)
    return Problem(
        cross_entropy_forward_kernel,
        (programs,),
        rows,
        C,
        S,
        ignore_index,
        *_three_dimensions(stride, 0),
        *_target_strides(target_stride, probabilities),
        PROBABILITIES=probabilities,
        HAS_WEIGHT=has_weight,
        LABEL_SMOOTHING=label_smoothing,
        REDUCTION=reduction,
        ONE_PROGRAM=programs == 1,
        SAVE=save,
        WIDE=exceed_int32(((C + block_classes, 1),), ((S + block_rows, 1),)),
        BLOCK_ROWS=block_rows,
        BLOCK_CLASSES=block_classes,
        num_warps=num_warps,
    )


def cross_entropy_forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The loss, and what its backward reads.

    Args:
        logits: [N, C] or [N, C, S], any strides.
        target: labels [N] or [N, S], or probabilities of the logits' shape; any strides.
        weight: [C], contiguous, or None.
        ignore_index: the label of rows to leave out.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1].
        save: whether a backward will follow.

    Returns:
        The loss, [] or the logits' shape without C; the mean's divisor, fp32 [1], else None; [3, N S] fp32 where
        `save`, else None.
    """
    shape = logits.shape
    problem = _cross_entropy_forward_problem(
        shape,
        logits.stride(),
        target.stride(),
        target.is_floating_point(),
        weight is not None,
        ignore_index,
        reduction,
        label_smoothing,
        save,
        current_target(),
    )
    programs = problem.grid[0]
    loss = logits.new_empty(() if reduction != "none" else (shape[0], *shape[2:]))
    divisor = logits.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = None
    if programs > 1 and reduction != "none":
        partial = logits.new_empty((2, programs), dtype=torch.float32)
    saved = logits.new_empty((3, problem.numbers[0]), dtype=torch.float32) if save else None
    problem.launch(logits, target, weight, loss, divisor, partial, saved)
    if partial is not None:
        _reduce_losses(partial, loss, divisor)
    return loss, divisor, saved


@lru_cache(maxsize=4096)
def _cross_entropy_backward_problem(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    target_stride: tuple[int, ...],
    dx_stride: tuple[int, ...] | None,
    dtarget_stride: tuple[int, ...] | None,
    probabilities: bool,
    has_weight: bool,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    target: Target,
) -> Problem:
    N, C, S = _three_dimensions(shape, 1)
    rows = N * S
    block_rows, block_classes, num_warps = cross_entropy_tile(rows, C, stride[1] == 1, target)
    return Problem(
        cross_entropy_backward_kernel,
        (ceil_div(rows, block_rows), ceil_div(C, block_classes)),
        rows,
        C,
        S,
        ignore_index,
        *_three_dimensions(stride, 0),
        *_target_strides(target_stride, probabilities),
        *_three_dimensions(dx_stride or (), 0),
        *_three_dimensions(dtarget_stride or (), 0),
        PROBABILITIES=probabilities,
        HAS_WEIGHT=has_weight,
        LABEL_SMOOTHING=label_smoothing,
        REDUCTION=reduction,
        WANT_DX=dx_stride is not None,
        WANT_DTARGET=dtarget_stride is not None,
        WIDE=exceed_int32(((C + block_classes, 1),), ((S + block_rows, 1),)),
        BLOCK_ROWS=block_rows,
        BLOCK_CLASSES=block_classes,
        num_warps=num_warps,
    )


def cross_entropy_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    divisor: torch.Tensor | None,
    saved: torch.Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    *,
    want_dx: bool,
    want_dtarget: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of the logits and of class probabilities, each None where not wanted.

    Args:
        grad: the upstream gradient, [] or contiguous in the loss's shape.
        logits, target, weight, ignore_index, reduction, label_smoothing: as in the forward.
        divisor, saved: what the forward returned.
        want_dx: whether to make dx, of the logits' shape.
        want_dtarget: whether to make dp, of the logits' shape; for probabilities only.
    """
    dx = torch.empty_like(logits) if want_dx else None
    dtarget = torch.empty_like(target) if want_dtarget else None
    _cross_entropy_backward_problem(
        logits.shape,
        logits.stride(),
        target.stride(),
        None if dx is None else dx.stride(),
        None if dtarget is None else dtarget.stride(),
        target.is_floating_point(),
        weight is not None,
        ignore_index,
        reduction,
        label_smoothing,
        current_target(),
    ).launch(grad, logits, target, weight, divisor, saved, dx, dtarget)
    return dx, dtarget


def _three_dimensions(numbers: tuple[int, ...], absent: int) -> tuple[int, ...]:
    """Sizes or strides of [N, C, S], with `absent` for the dimensions a tensor does not have."""
    return (*numbers, *(absent,) * (3 - len(numbers)))


def _target_strides(stride: tuple[int, ...], probabilities: bool) -> tuple[int, ...]:
    """The strides of N, C and S; labels have no class axis."""
    return _three_dimensions(stride if probabilities else (stride[0], 0, *stride[1:]), 0)


def _reduce_losses(partial: torch.Tensor, loss: torch.Tensor, divisor: torch.Tensor | None) -> None:
    parts = partial.shape[1]
    block = min(1024, power_of_2_at_least(parts))
    mean = divisor is not None
    launch(reduce_losses_kernel, (1,), partial, loss, divisor, parts, MEAN=mean, BLOCK=block, num_warps=4)


def mse_loss_forward(x: torch.Tensor, target: torch.Tensor, reduction: str) -> torch.Tensor:
    """(x - target)^2, reduced: [] for "mean" and "sum", x's shape and strides for "none".

    Args:
        x: [...], dense.
        target: [...], x's dtype and strides.
        reduction: "mean", "sum" or "none".
    """
    elements = x.numel()
    block, num_warps = flat_block(elements, current_target())
    programs = ceil_div(elements, block)
    workspace = {"dtype": torch.float32, "device": x.device}
    reduced = reduction != "none"
    loss = torch.empty((), dtype=x.dtype, device=x.device) if reduced else torch.empty_like(x)
    partial = torch.empty((2, programs), **workspace) if reduced else None
    launch(
        mse_loss_forward_kernel,
        (programs,),
        x,
        target,
        loss,
        partial,
        elements,
        REDUCTION=reduction,
        BLOCK=block,
        num_warps=num_warps,
    )
    if partial is not None:
        _reduce_losses(partial, loss, torch.empty(1, **workspace) if reduction == "mean" else None)
    return loss


def mse_loss_backward(
    grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, reduction: str, *, want_dx: bool, want_dtarget: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and target, each None where not wanted.

    Args:
        grad: the upstream gradient, [] or x's shape and strides.
        x, target, reduction: as in the forward.
        want_dx: whether to make dx.
        want_dtarget: whether to make dtarget.
    """
    elements = x.numel()
    block, num_warps = flat_block(elements, current_target())
    dx = torch.empty_like(x) if want_dx else None
    dtarget = torch.empty_like(x) if want_dtarget else None
    launch(
        mse_loss_backward_kernel,
        (ceil_div(elements, block),),
        grad,
        x,
        target,
        dx,
        dtarget,
        elements,
        REDUCTION=reduction,
        WANT_DX=want_dx,
        WANT_DTARGET=want_dtarget,
        BLOCK=block,
        num_warps=num_warps,
    )
    return dx, dtarget

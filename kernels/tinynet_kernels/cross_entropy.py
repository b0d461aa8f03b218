"""Cross-entropy of a softmax. For one row x [C] of logits and coefficients q [C]:

    loss = -sum_c q_c log softmax(x)_c = A log s - sum_c q_c (x_c - m)
           where m = max x, s = sum_c e^(x_c - m), A = sum_c q_c
    dloss/dx_c = A e^(x_c - m - log s) - q_c
    dloss/dp_c = -(1 - label_smoothing) w_c (x_c - m - log s)

where p is one-hot of the label, or the class probabilities given, and q_c = w_c ((1 - label_smoothing) p_c +
label_smoothing / C). The mean divides by the sum of the labels' weights, or by the number of rows for probabilities. An
ignored row adds nothing to either sum; a label out of range makes its loss NaN.

Tiling: one program computes block_rows rows and walks the classes block_classes at a time with a running maximum
(online softmax: Milakov and Gimelshein 2018), so the logits are read once. Saved for the backward are m, log s and A of
each row, 12 bytes; the backward reads the logits again and writes the gradient, scaled by the upstream gradient, in the
same pass. That moves the logits three times in all. Writing the gradient in the forward and scaling it in the backward
would move them four times, and round a 16-bit gradient twice.

A sum over rows takes two stages (`reduction.reduce_losses`). Where the first is one program it finishes the work
itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import reduce_losses, store_partial_losses, store_reduced_loss
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least

# Where the running maximum starts, and what stands for a masked logit: finite, so that no difference is NaN.
LOWEST = tl.constexpr(-1.7e38)
MASKED = tl.constexpr(-3.4e38)


class Order(NamedTuple):
    """How a dense tensor [N, C, S] lies in memory: which of two axes has the longer stride."""

    n_over_c: bool
    n_over_s: bool
    c_over_s: bool


class CrossEntropy(NamedTuple):
    """What a cross-entropy kernel is compiled for, beside its tile.

    Attributes:
        probabilities: whether targets are class probabilities, else labels.
        label_smoothing: in [0, 1].
        reduced: whether the loss is a sum or mean of the rows', else one per row.
        wide: whether sizes are taken as int64.
        dx_order, dtarget_order: of the gradients; None where there is none, and in the forward.
    """

    probabilities: bool
    label_smoothing: float
    reduced: bool
    wide: bool
    dx_order: Order | None = None
    dtarget_order: Order | None = None


class CrossEntropyTile(NamedTuple):
    """The tile of one program: rows, and classes of one step of the forward."""

    block_rows: int
    block_classes: int
    num_warps: int


class Rows(NamedTuple):
    """A program's rows n S + s, [block_rows] each, within a kernel: n is int64, s int32, or int64 where wide.

    `inside` tells which rows exist, `label` is 0 for probabilities, and `counted` tells which rows are not ignored.
    """

    row: Any
    n: Any
    s: Any
    inside: Any
    label: Any
    counted: Any


@triton.jit
def split_rows(rows, S, WIDE: constexpr, BLOCK_ROWS: constexpr):
    """(row, n, s, inside) of this program's rows n S + s of `rows`; see `Rows`.

    The long division is one per program: 64-bit ones of every row would cost more than the row's exponentials.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)
    inside = tl.arange(0, BLOCK_ROWS) < rows - first
    n = first // S
    s = first - n * S
    s = (s if WIDE else s.to(tl.int32)) + tl.arange(0, BLOCK_ROWS)
    n += s // S
    s = s % S
    return row, n, s, inside


@triton.jit
def rows_of_program(target_ptr, rows, S, ignore_index, stride_tn, stride_ts, SPEC: constexpr, TILE: constexpr):
    """This program's `Rows` of `rows`."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    row, n, s, inside = split_rows(rows, S, SPEC.wide, BLOCK_ROWS)
    label = tl.zeros((BLOCK_ROWS,), tl.int64)
    counted = inside
    if not SPEC.probabilities:
        label = tl.load(target_ptr + (n * stride_tn + s.to(tl.int64) * stride_ts), mask=inside, other=0).to(tl.int64)
        counted = inside & (label != ignore_index)
    return Rows(row, n, s, inside, label, counted)


@triton.jit
def row_offset(at, stride_n, stride_s):
    """Where the rows start in a tensor [N, *, S], [block_rows] int64."""
    return at.n * stride_n + at.s.to(tl.int64) * stride_s


@triton.jit
def dense_offset(at, column, N, C, S, ORDER: constexpr):
    """Where the rows' classes `column` lie in a dense tensor [N, C, S], [block_rows, block_classes] int64."""
    N = tl.cast(N, tl.int64)
    C = tl.cast(C, tl.int64)
    stride_n = (C if ORDER.n_over_c else 1) * (S if ORDER.n_over_s else 1)
    stride_c = (1 if ORDER.n_over_c else N) * (S if ORDER.c_over_s else 1)
    stride_s = (1 if ORDER.n_over_s else N) * (1 if ORDER.c_over_s else C)
    return row_offset(at, stride_n, stride_s)[:, None] + column.to(tl.int64)[None, :] * stride_c


@triton.jit
def coefficients(at, counted, column, target_ptr, target_row, weight_ptr, C, stride_tc, SPEC: constexpr):
    """q_c [block_rows, block_classes] of the module's formulas; 0 where not counted."""
    mask = counted[:, None] & (column < C)[None, :]
    if SPEC.probabilities:
        offset = target_row[:, None] + column.to(tl.int64)[None, :] * stride_tc
        q = tl.load(target_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        # A label that column's type does not hold is out of range: its row's loss is NaN whatever matches.
        q = tl.where(column[None, :] == at.label.to(column.dtype)[:, None], 1.0, 0.0)
    if SPEC.label_smoothing > 0:
        q = q * (1.0 - SPEC.label_smoothing) + SPEC.label_smoothing / C
    if weight_ptr is not None:
        q *= tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    return tl.where(mask, q, 0.0)


@triton.jit
def softmax_statistics(
    logits_ptr,
    target_ptr,
    weight_ptr,
    at,
    C,
    stride_xn,
    stride_xc,
    stride_xs,
    stride_tn,
    stride_tc,
    stride_ts,
    SPEC: constexpr,
    TILE: constexpr,
):
    """(m, log s, A, loss, share in the mean's divisor) of the rows of `at`, [block_rows] each."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_CLASSES: constexpr = TILE.block_classes
    # Whether a row's only coefficient is its label's.
    ONE_CLASS: constexpr = not SPEC.probabilities and SPEC.label_smoothing == 0
    logits_row = row_offset(at, stride_xn, stride_xs)
    target_row = row_offset(at, stride_tn, stride_ts)
    counted = at.counted
    if not SPEC.probabilities:
        counted = counted & (at.label >= 0) & (at.label < C)
    maximum = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    exponentials = tl.zeros((BLOCK_ROWS,), tl.float32)
    weighted = tl.zeros((BLOCK_ROWS,), tl.float32)  # sum of q_c (x_c - maximum)
    coefficient_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, C, BLOCK_CLASSES):
        column = start + tl.arange(0, BLOCK_CLASSES)
        mask = at.inside[:, None] & (column < C)[None, :]
        offset = logits_row[:, None] + column.to(tl.int64)[None, :] * stride_xc
        x = tl.load(logits_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x, MASKED)
        higher = tl.maximum(maximum, tl.max(x, axis=1))
        shift = maximum - higher
        x -= higher[:, None]
        exponentials = exponentials * tl.exp(shift) + tl.sum(tl.exp(x), axis=1)
        if not ONE_CLASS:
            q = coefficients(at, counted, column, target_ptr, target_row, weight_ptr, C, stride_tc, SPEC)
            # A logit of -inf with no coefficient adds nothing: 0 log 0 = 0. The choice comes after the product: a
            # product next to the sum would be fused into its first addition, each lane rounding its own way.
            weighted += coefficient_sum * shift + tl.sum(tl.where(q == 0, 0.0, q * x), axis=1)
            coefficient_sum += tl.sum(q, axis=1)
        maximum = higher

    if ONE_CLASS:
        coefficient_sum = tl.where(counted, 1.0, 0.0)
        if weight_ptr is not None:
            coefficient_sum = tl.load(weight_ptr + at.label, mask=counted, other=0.0).to(tl.float32)
        x = tl.load(logits_ptr + logits_row + at.label * stride_xc, mask=counted, other=0.0).to(tl.float32)
        weighted = tl.where(coefficient_sum == 0, 0.0, coefficient_sum * (x - maximum))
    log_sum = tl.log(tl.where(at.inside, exponentials, 1.0))
    loss = coefficient_sum * log_sum - weighted
    divisor = tl.where(counted, 1.0, 0.0)
    if not SPEC.probabilities:
        uncounted = tl.where(at.counted, float("nan"), 0.0)  # of rows whose label is out of range
        loss = tl.where(counted, loss, uncounted)
        coefficient_sum = tl.where(counted, coefficient_sum, uncounted)
        if weight_ptr is not None:
            divisor = tl.load(weight_ptr + at.label, mask=counted, other=0.0).to(tl.float32)
    return maximum, log_sum, coefficient_sum, loss, divisor


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
    SPEC: constexpr,
    TILE: constexpr,
):
    """The losses of block_rows rows, or their sum; `saved`, where given, receives m, log s and A, [3, rows].

    Reduced, the sums of losses and of divisors go to `partial` [2, programs] or, without it, where there is one
    program, the finished loss to `loss`; the mean has a `divisor` to store.
    """
    C = widened(C, SPEC.wide)
    S = widened(S, SPEC.wide)
    at = rows_of_program(target_ptr, rows, S, ignore_index, stride_tn, stride_ts, SPEC, TILE)
    maximum, log_sum, coefficient_sum, loss, divisor = softmax_statistics(
        logits_ptr,
        target_ptr,
        weight_ptr,
        at,
        C,
        stride_xn,
        stride_xc,
        stride_xs,
        stride_tn,
        stride_tc,
        stride_ts,
        SPEC,
        TILE,
    )
    if saved_ptr is not None:
        tl.store(saved_ptr + at.row, maximum, mask=at.inside)
        tl.store(saved_ptr + rows + at.row, log_sum, mask=at.inside)
        tl.store(saved_ptr + rows + rows + at.row, coefficient_sum, mask=at.inside)
    if SPEC.reduced:
        total = tl.sum(tl.where(at.inside, loss, 0.0), axis=0)
        divisor = tl.sum(divisor, axis=0)
        if partial_ptr is None:
            store_reduced_loss(total, divisor, loss_ptr, divisor_ptr)
        else:
            store_partial_losses(total, divisor, partial_ptr)
    else:
        tl.store(loss_ptr + at.row, loss.to(loss_ptr.dtype.element_ty), mask=at.inside)


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
    SPEC: constexpr,
    TILE: constexpr,
):
    """dx and dp, times the upstream gradient: one [block_rows, block_classes] tile per program; None is not stored."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_CLASSES: constexpr = TILE.block_classes
    C = widened(C, SPEC.wide)
    S = widened(S, SPEC.wide)
    at = rows_of_program(target_ptr, rows, S, ignore_index, stride_tn, stride_ts, SPEC, TILE)
    first_column = tl.program_id(1) * BLOCK_CLASSES
    column = first_column + tl.arange(0, BLOCK_CLASSES)
    mask = at.inside[:, None] & (tl.arange(0, BLOCK_CLASSES) < C - first_column)[None, :]
    if SPEC.reduced:
        upstream = tl.load(grad_ptr).to(tl.float32)  # in bounds: a reduced loss is one element
        if divisor_ptr is not None:
            upstream = upstream / tl.load(divisor_ptr)  # in bounds: one element
        scale = tl.full((BLOCK_ROWS,), 1.0, tl.float32) * upstream
    else:
        scale = tl.load(grad_ptr + at.row, mask=at.inside, other=0.0).to(tl.float32)
    maximum = tl.load(saved_ptr + at.row, mask=at.inside, other=0.0)
    log_sum = tl.load(saved_ptr + rows + at.row, mask=at.inside, other=0.0)
    offset = row_offset(at, stride_xn, stride_xs)[:, None] + column.to(tl.int64)[None, :] * stride_xc
    x = tl.load(logits_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    log_probability = x - maximum[:, None] - log_sum[:, None]
    if dx_ptr is not None:
        DX_ORDER: constexpr = SPEC.dx_order
        coefficient_sum = tl.load(saved_ptr + rows + rows + at.row, mask=at.inside, other=0.0)
        target_row = row_offset(at, stride_tn, stride_ts)
        q = coefficients(at, at.counted, column, target_ptr, target_row, weight_ptr, C, stride_tc, SPEC)
        dx = scale[:, None] * (coefficient_sum[:, None] * tl.exp(log_probability) - q)
        dx = tl.where(at.counted[:, None], dx, 0.0)
        dx_offset = dense_offset(at, column, rows // S, C, S, DX_ORDER)
        tl.store(dx_ptr + dx_offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if dtarget_ptr is not None:
        DTARGET_ORDER: constexpr = SPEC.dtarget_order
        dtarget = scale[:, None] * log_probability * (SPEC.label_smoothing - 1.0)
        if weight_ptr is not None:
            dtarget *= tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
        dtarget_offset = dense_offset(at, column, rows // S, C, S, DTARGET_ORDER)
        tl.store(dtarget_ptr + dtarget_offset, dtarget.to(dtarget_ptr.dtype.element_ty), mask=mask)


@costs(cross_entropy_forward_kernel)
@costs(cross_entropy_backward_kernel)
def cross_entropy_cost(logits_ptr: torch.Tensor, **others: Any) -> Cost:
    """Each tensor is moved once; per logit a maximum, an exponential, and two products with their sums."""
    return Cost(6 * logits_ptr.numel(), size_in_bytes(logits_ptr, *others.values()))


@lru_cache(maxsize=4096)
def cross_entropy_tile(
    rows: int, C: int, contiguous_classes: bool, target: Target, *, labels_only: bool = False
) -> CrossEntropyTile:
    """A tile long in the direction in which the logits are contiguous.

    Args:
        rows: rows of logits.
        C: classes.
        contiguous_classes: whether neighboring classes are neighbors in memory; else neighboring rows are.
        target: where it runs.
        labels_only: whether a row's loss depends on one class beside the sum of all, which takes few registers.
    """
    if target.kind == "interpreter":
        elements, widest = 1 << 16, 256
    else:
        elements, widest = 2048, 4096 if contiguous_classes else 64
    block_classes = min(widest, power_of_2_at_least(C))
    least_rows = 2 if target.kind == "cpu" else 1  # its C compiler leaves the loop over a single row scalar
    whole = power_of_2_at_least(rows) * block_classes
    longest = 4 * elements if labels_only else 2 * elements
    if target.kind in ("cuda", "hip") and elements < whole <= longest:  # one program needs no second stage
        return CrossEntropyTile(whole // block_classes, block_classes, 8 if whole <= 2 * elements else 16)
    block_rows = max(least_rows, min(elements // block_classes, power_of_2_at_least(rows)))
    return CrossEntropyTile(block_rows, block_classes, 8 if block_classes > elements else 4)


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
    shape, reduced = logits.shape, reduction != "none"
    given = (shape, logits.stride(), target.stride(), target.is_floating_point(), ignore_index, reduced)
    problem = _problem(False, *given, label_smoothing, None, None, current_target())
    programs = problem.grid[0]
    loss = logits.new_empty(() if reduced else (shape[0], *shape[2:]))
    divisor = logits.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = logits.new_empty((2, programs), dtype=torch.float32) if reduced and programs > 1 else None
    saved = logits.new_empty((3, problem.numbers[0]), dtype=torch.float32) if save else None
    problem.launch_named(
        logits_ptr=logits,
        target_ptr=target,
        weight_ptr=weight,
        loss_ptr=loss,
        divisor_ptr=divisor,
        partial_ptr=partial,
        saved_ptr=saved,
    )
    if partial is not None:
        reduce_losses(partial, loss, divisor)
    return loss, divisor, saved


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
        want_dx: whether to compute dx, of the logits' shape.
        want_dtarget: whether to compute dp, of the logits' shape; for probabilities only.
    """
    dx = torch.empty_like(logits) if want_dx else None
    dtarget = torch.empty_like(target) if want_dtarget else None
    given = (logits.shape, logits.stride(), target.stride(), target.is_floating_point(), ignore_index)
    strides = None if dx is None else dx.stride(), None if dtarget is None else dtarget.stride()
    problem = _problem(True, *given, reduction != "none", label_smoothing, *strides, current_target())
    problem.launch_named(
        grad_ptr=grad,
        logits_ptr=logits,
        target_ptr=target,
        weight_ptr=weight,
        divisor_ptr=divisor,
        saved_ptr=saved,
        dx_ptr=dx,
        dtarget_ptr=dtarget,
    )
    return dx, dtarget


@lru_cache(maxsize=4096)
def _problem(
    backward: bool,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    target_stride: tuple[int, ...],
    probabilities: bool,
    ignore_index: int,
    reduced: bool,
    label_smoothing: float,
    dx_stride: tuple[int, ...] | None,
    dtarget_stride: tuple[int, ...] | None,
    target: Target,
) -> Problem:
    N, C, S = three_dimensions(shape, 1)
    rows = N * S
    labels_only = not probabilities and label_smoothing == 0
    tile = cross_entropy_tile(rows, C, stride[1] == 1, target, labels_only=labels_only)
    wide = exceed_int32(((C + tile.block_classes, 1),), ((S + tile.block_rows, 1),))
    orders = _order(dx_stride), _order(dtarget_stride)
    if not probabilities:  # labels have no class axis
        target_stride = (target_stride[0], 0, *target_stride[1:])
    row_programs = ceil_div(rows, tile.block_rows)
    return Problem(
        cross_entropy_backward_kernel if backward else cross_entropy_forward_kernel,
        (row_programs, ceil_div(C, tile.block_classes)) if backward else (row_programs,),
        rows,
        C,
        S,
        ignore_index,
        *three_dimensions(stride, 0),
        *three_dimensions(target_stride, 0),
        SPEC=CrossEntropy(probabilities, label_smoothing, reduced, wide, *orders),
        TILE=tile,
        num_warps=tile.num_warps,
    )


def three_dimensions(numbers: tuple[int, ...], absent: int) -> tuple[int, ...]:
    """Sizes or strides of [N, C, S], with `absent` for the dimensions a tensor does not have."""
    return (*numbers, *(absent,) * (3 - len(numbers)))


def _order(stride: tuple[int, ...] | None) -> Order | None:
    """The order of a dense tensor's axes; an axis of one element may stand anywhere."""
    if stride is None:
        return None
    n, c, s = three_dimensions(stride, 0)
    return Order(n >= c, n >= s, c >= s)

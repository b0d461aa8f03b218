"""Cross-entropy of a linear layer, loss = cross_entropy(x W^T + b), without its logits [N, C S] in memory at once.

Rows of x are taken in chunks, one after the other: `linear_forward` computes a chunk's logits, one kernel their losses
and, in place, their gradients G (`cross_entropy` has the formulas), and the products of `linear` the rest:

    dx = G W        dW += G^T x        db += the sums of G's columns

So the gradients cost three products of logits' size in all, where computing the logits again in the backward would cost
four. dW is summed over the chunks in fp32, or in its own dtype where memory is to be saved.

Tiling of the kernel: block_rows rows per program, which walks the classes twice: for the statistics of the softmax,
then for the gradients.

Source: Liger-Kernel's FusedLinearCrossEntropy (Hsu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activation_backward
from tinynet_kernels.activation_spec import IDENTITY
from tinynet_kernels.constants import constexpr
from tinynet_kernels.cross_entropy import (
    CrossEntropy,
    coefficients,
    cross_entropy_tile,
    row_offset,
    rows_of_program,
    softmax_statistics,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.linear import linear_forward, linear_input_gradient, linear_weight_gradient
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import reduce_losses
from tinynet_kernels.tiles import Target, ceil_div, current_target


class Options(NamedTuple):
    """Options of the loss.

    Attributes:
        ignore_index: the label of rows to leave out.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1].
        chunk: rows of x at a time.
        fp32_sums: whether dW is summed in fp32, else in its own dtype.
    """

    ignore_index: int
    reduction: str
    label_smoothing: float
    chunk: int
    fp32_sums: bool


class Gradients(NamedTuple):
    """The gradients of x, W, b and class probabilities, each None where not wanted."""

    dx: torch.Tensor | None
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None
    dtarget: torch.Tensor | None


@triton.jit
def linear_cross_entropy_kernel(
    logits_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    scale_ptr,
    dtarget_ptr,
    rows,
    C,
    S,
    ignore_index,
    stride_tn,
    stride_tc,
    stride_ts,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The losses of block_rows rows of contiguous logits [N, C, S], which their gradients then replace.

    `scale`, the upstream gradient, is fp32: one for each row or, where SPEC.reduced, for all; None leaves the logits.
    `dtarget`, where given, is contiguous [N, C, S].
    """
    BLOCK_CLASSES: constexpr = TILE.block_classes
    C = widened(C, SPEC.wide)
    S = widened(S, SPEC.wide)
    at = rows_of_program(target_ptr, rows, S, ignore_index, stride_tn, stride_ts, SPEC, TILE)
    row_stride = tl.cast(C, tl.int64) * S
    maximum, log_sum, coefficient_sum, loss, _ = softmax_statistics(
        logits_ptr,
        target_ptr,
        weight_ptr,
        at,
        C,
        row_stride,
        S,
        1,
        stride_tn,
        stride_tc,
        stride_ts,
        SPEC,
        TILE,
    )
    tl.store(loss_ptr + at.row, loss, mask=at.inside)
    if scale_ptr is not None:
        if SPEC.reduced:
            scale = tl.load(scale_ptr) + tl.zeros_like(loss)  # in bounds: one element
        else:
            scale = tl.load(scale_ptr + at.row, mask=at.inside, other=0.0)
        logits_row = row_offset(at, row_stride, 1)
        target_row = row_offset(at, stride_tn, stride_ts)
        for first in range(0, C, BLOCK_CLASSES):
            column = first + tl.arange(0, BLOCK_CLASSES)
            mask = at.inside[:, None] & (tl.arange(0, BLOCK_CLASSES) < C - first)[None, :]
            place = logits_row[:, None] + column.to(tl.int64)[None, :] * S
            x = tl.load(logits_ptr + place, mask=mask, other=0.0).to(tl.float32)
            log_probability = x - maximum[:, None] - log_sum[:, None]
            q = coefficients(at, at.counted, column, target_ptr, target_row, weight_ptr, C, stride_tc, SPEC)
            dx = scale[:, None] * (coefficient_sum[:, None] * tl.exp(log_probability) - q)
            dx = tl.where(at.counted[:, None], dx, 0.0)
            tl.debug_barrier()  # before other threads' logits are overwritten
            tl.store(logits_ptr + place, dx.to(logits_ptr.dtype.element_ty), mask=mask)
            if dtarget_ptr is not None:
                dtarget = scale[:, None] * log_probability * (SPEC.label_smoothing - 1.0)
                if weight_ptr is not None:
                    dtarget *= tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
                tl.store(dtarget_ptr + place, dtarget.to(dtarget_ptr.dtype.element_ty), mask=mask)


@costs(linear_cross_entropy_kernel)
def linear_cross_entropy_cost(logits_ptr: torch.Tensor, scale_ptr: torch.Tensor | None, **others: Any) -> Cost:
    """The logits are read, and written where there are gradients; six operations per logit as in a cross-entropy."""
    logits = size_in_bytes(logits_ptr) * (1 if scale_ptr is None else 2)
    return Cost(6 * logits_ptr.numel(), logits + size_in_bytes(scale_ptr, *others.values()))


@lru_cache(maxsize=4096)
def _problem(
    shape: tuple[int, int, int], target_stride: tuple[int, ...], probabilities: bool, options: Options, target: Target
) -> Problem:
    N, C, S = shape
    tile = cross_entropy_tile(N * S, C, S == 1, target)
    if S > 1 and target.kind not in ("cpu", "interpreter"):
        tile = tile._replace(block_rows=tile.block_rows // 2)  # its offsets fill the registers
    wide = exceed_int32(((C + tile.block_classes, 1),), ((S + tile.block_rows, 1),))
    strides = target_stride if probabilities else (target_stride[0], 0, target_stride[1])
    return Problem(
        linear_cross_entropy_kernel,
        (ceil_div(N * S, tile.block_rows),),
        N * S,
        C,
        S,
        options.ignore_index,
        *strides,
        SPEC=CrossEntropy(probabilities, options.label_smoothing, options.reduction != "none", wide),
        TILE=tile,
        num_warps=tile.num_warps,
    )


def linear_cross_entropy_losses(
    x: torch.Tensor,
    linear_weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    options: Options,
    *,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, Gradients]:
    """The losses of all rows and, for a given upstream gradient, the gradients.

    Args:
        x: [N, K], any strides.
        linear_weight: [C S, K], any strides, x's dtype.
        bias: [C S] or None.
        target: labels [N, S] or probabilities [N, C, S] in x's dtype, any strides.
        weight: [C], contiguous, or None.
        scale: the upstream gradient, fp32, contiguous: one element for reduced losses, else [N S]; None computes no
            gradients.
        options: see `Options`.
        wanted: which gradients to compute, in the order of `Gradients`; the last for probabilities only.

    Returns:
        The losses, fp32 [N, S], and the gradients.
    """
    N, K = x.shape
    S = target.shape[-1]
    C = linear_weight.shape[0] // S
    losses = x.new_empty((N, S), dtype=torch.float32)
    want_x, want_weight, want_bias, want_target = (scale is not None and want for want in wanted)
    dx = x.new_empty((N, K)) if want_x else None
    dtarget = x.new_empty((N, C, S)) if want_target else None
    sums, bias_sums = None, None
    sum_dtype = torch.float32 if options.fp32_sums else x.dtype
    buffer = x.new_empty((min(N, options.chunk), C * S))
    for start in range(0, N, options.chunk):
        rows = slice(start, start + options.chunk)
        labels = target[rows]
        logits, _ = linear_forward(x[rows], linear_weight, bias, IDENTITY, save=False, out=buffer[: labels.shape[0]])
        shape = labels.shape[0], C, S
        problem = _problem(shape, labels.stride(), target.is_floating_point(), options, current_target())
        problem.launch_named(
            logits_ptr=logits,
            target_ptr=labels,
            weight_ptr=weight,
            loss_ptr=losses[rows],
            scale_ptr=scale if scale is None or scale.numel() == 1 else scale[start * S : (start + options.chunk) * S],
            dtarget_ptr=None if dtarget is None else dtarget[rows],
        )
        if dx is not None:
            dx[rows] = linear_input_gradient(logits, linear_weight)
        if want_weight:
            sums = linear_weight_gradient(logits, x[rows], sum_dtype, add_to=sums)
        if want_bias:
            _, db = activation_backward(logits, None, IDENTITY, want_dz=False, want_bias=True)
            assert db is not None
            bias_sums = db if bias_sums is None else bias_sums.add_(db)
    dweight = None if sums is None else sums.to(x.dtype)
    return losses, Gradients(dx, dweight, None if bias_sums is None else bias_sums.to(x.dtype), dtarget)


def reduced(losses: torch.Tensor, divisor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The sum of the losses, fp32 and contiguous, or their mean by `divisor`, fp32 [1]; a scalar of `dtype`."""
    partial = losses.new_zeros((2, losses.numel()))
    partial[0] = losses.view(-1)
    if divisor is not None:
        partial[1, :1] = divisor
    loss = losses.new_empty((), dtype=dtype)
    reduce_losses(partial, loss, None if divisor is None else losses.new_empty(1))
    return loss

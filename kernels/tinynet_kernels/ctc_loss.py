"""Connectionist temporal classification: the loss of all alignments of a sequence with its target.

The target of L labels is extended to l' = blank, l_1, blank, l_2, ..., blank of 2 L + 1. With the log-probability x_tc
of class c at step t of T:

    alpha_ts = x_t,l'_s + logsumexp(alpha_t-1,s  alpha_t-1,s-1  alpha_t-1,s-2)     the last where l'_s-2 is not l'_s
    beta_ts  = x_t,l'_s + logsumexp(beta_t+1,s   beta_t+1,s+1   beta_t+1,s+2)      the last where l'_s+2 is not l'_s
    loss     = -logsumexp(alpha_T,2L  alpha_T,2L-1)
    w_ts     = e^v_ts / sum over r of e^v_tr     where v_ts = alpha_ts + beta_ts - x_t,l'_s: the sum is e^-loss
    dx_tc    = (e^(x_tc) - sum over s with l'_s = c of w_ts) dloss

The largest alpha, and the largest beta, of a step is subtracted from all, which keeps them accurate over many steps: w
does not change, and the loss adds what was subtracted.

dx is PyTorch's: the gradient by what log_softmax took, for log-probabilities that it returned. A target that is too
long to be aligned has a loss of inf and a gradient of NaN, or 0 and 0 with `zero_infinity`; a label out of range makes
the loss NaN.

Tiling: forward, one sequence per program, all positions s in one block, which walks the steps and reads the last one's
alphas back from memory; alpha is saved, fp32 [N, T, 2 S + 1]. Backward, the same for the betas, which leaves w; then
block_steps steps of one sequence per program write e^x and subtract w one position after the other, in a fixed order.

Source: Graves et al. 2006.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least

NONE = tl.constexpr(float("-inf"))  # the logarithm of no probability


class CTC(NamedTuple):
    """What a kernel is compiled for: the class that stands for no label, and whether infinite losses count as 0."""

    blank: int
    zero_infinity: bool


class CTCTile(NamedTuple):
    """Positions of one sequence, a power of 2 that holds them all; steps and classes of a program of the gradient."""

    block_positions: int
    block_steps: int
    block_classes: int
    num_warps: int


class Sequence(NamedTuple):
    """What a program knows of its sequence, within a kernel.

    `labels` and `jumps` are [block_positions]: the class of each position, and whether it is not that of two before.
    """

    steps: Any
    last: Any
    labels: Any
    jumps: Any
    inside: Any
    valid: Any


@triton.jit
def sequence_of_program(targets_ptr, steps_ptr, lengths_ptr, T, S, C, stride_target, SPEC: constexpr, TILE: constexpr):
    """This program's `Sequence`; lengths past their tensors are cut."""
    n = tl.program_id(0).to(tl.int64)
    steps = tl.minimum(tl.load(steps_ptr + n), T).to(tl.int32)  # in bounds: one per sequence, here and below
    length = tl.minimum(tl.load(lengths_ptr + n), S).to(tl.int32)  # in bounds: as above
    s = tl.arange(0, TILE.block_positions)
    inside = s < 2 * length + 1
    is_label = inside & (s % 2 == 1)
    labels = tl.load(targets_ptr + n * stride_target + s // 2, mask=is_label, other=SPEC.blank)
    earlier = tl.load(targets_ptr + n * stride_target + s // 2 - 1, mask=is_label & (s > 2), other=SPEC.blank)
    valid = (labels >= 0) & (labels < C)
    return Sequence(steps, 2 * length, labels.to(tl.int64), is_label & (labels != earlier), inside, valid)


@triton.jit
def highest_of(values):
    """The largest of a block; 0 if all are -inf, so that no difference is NaN."""
    highest = tl.max(values, axis=0)
    return tl.where(highest == NONE, 0.0, highest)


@triton.jit
def logsumexp(a, b, c):
    """log(e^a + e^b + e^c); -inf of three that are."""
    highest = tl.maximum(a, tl.maximum(b, c))
    highest = tl.where(highest == NONE, 0.0, highest)
    return tl.log(tl.exp(a - highest) + tl.exp(b - highest) + tl.exp(c - highest)) + highest


@triton.jit
def ctc_loss_alpha_kernel(
    x_ptr,
    targets_ptr,
    steps_ptr,
    lengths_ptr,
    loss_ptr,
    alpha_ptr,
    T,
    S,
    C,
    stride_xt,
    stride_xn,
    stride_xc,
    stride_target,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The loss and the alphas of one sequence; `alpha` is [N, T, 2 S + 1], whose rows past the last step stay unset."""
    at = sequence_of_program(targets_ptr, steps_ptr, lengths_ptr, T, S, C, stride_target, SPEC, TILE)
    n = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, TILE.block_positions)
    width = 2 * S + 1
    row = alpha_ptr + n * T * width
    x_step = x_ptr + n * stride_xn + at.labels * stride_xc
    has_place = s < width
    readable = at.inside & at.valid
    subtracted = tl.full((), 0.0, tl.float32)
    if at.steps > 0:
        x = tl.load(x_step, mask=readable & (s < 2), other=NONE).to(tl.float32)
        tl.store(row + s, x, mask=has_place)
    for _ in range(1, at.steps):
        tl.debug_barrier()  # the positions before these were stored by other threads
        x_step += stride_xt
        x = tl.load(x_step, mask=readable, other=NONE).to(tl.float32)
        same = tl.load(row + s, mask=at.inside, other=NONE)
        one = tl.load(row + s - 1, mask=at.inside & (s >= 1), other=NONE)
        two = tl.load(row + s - 2, mask=at.jumps & (s >= 2), other=NONE)
        row += width
        alpha = logsumexp(same, one, two) + x
        highest = highest_of(alpha)
        subtracted += highest
        tl.store(row + s, alpha - highest, mask=has_place)
    tl.debug_barrier()
    loss = tl.where(at.last > 0, float("inf"), 0.0)
    if at.steps > 0:
        final = tl.load(row + at.last)  # in bounds: last <= 2 S
        before = tl.load(row + at.last - 1, mask=at.last > 0, other=NONE)
        loss = -subtracted - logsumexp(final, before, tl.full((), NONE, tl.float32))
    tl.store(loss_ptr + n, loss + tl.sum(tl.where(at.valid, 0.0, float("nan")), axis=0))


@triton.jit
def ctc_loss_beta_kernel(
    x_ptr,
    targets_ptr,
    steps_ptr,
    lengths_ptr,
    alpha_ptr,
    beta_ptr,
    w_ptr,
    T,
    S,
    C,
    stride_xt,
    stride_xn,
    stride_xc,
    stride_target,
    SPEC: constexpr,
    TILE: constexpr,
):
    """w of one sequence, [N, T, 2 S + 1]; `beta` [N, 2, 2 S + 1] holds the betas of two steps."""
    at = sequence_of_program(targets_ptr, steps_ptr, lengths_ptr, T, S, C, stride_target, SPEC, TILE)
    n = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, TILE.block_positions)
    width = 2 * S + 1
    later = tl.load(
        targets_ptr + n * stride_target + s // 2 + 1, mask=(s % 2 == 1) & (s + 2 < at.last), other=SPEC.blank
    )
    jumps = (s % 2 == 1) & (s + 2 < at.last) & (later != at.labels)
    has_place = s < width
    readable = at.inside & at.valid
    rows = beta_ptr + n * 2 * width
    for back in range(at.steps):
        t = at.steps - 1 - back
        x_step = x_ptr + t.to(tl.int64) * stride_xt + n * stride_xn + at.labels * stride_xc
        x = tl.load(x_step, mask=readable, other=NONE).to(tl.float32)
        beta = tl.where(at.inside & (s >= at.last - 1), 0.0, NONE)
        if back > 0:
            tl.debug_barrier()  # the positions after these were stored by other threads
            row = rows + (back - 1) % 2 * width
            same = tl.load(row + s, mask=at.inside, other=NONE)
            one = tl.load(row + s + 1, mask=s + 1 <= at.last, other=NONE)
            two = tl.load(row + s + 2, mask=jumps, other=NONE)
            beta = logsumexp(same, one, two)
        beta += x
        beta -= highest_of(beta)
        tl.store(rows + back % 2 * width + s, beta, mask=has_place)
        place = (n * T + t) * width + s
        alpha = tl.load(alpha_ptr + place, mask=at.inside, other=NONE)
        v = tl.where(x == NONE, NONE, alpha + beta - x)
        probability = tl.exp(v - highest_of(v))
        tl.store(w_ptr + place, probability / tl.sum(probability, axis=0), mask=at.inside)


@triton.jit
def ctc_loss_gradient_kernel(
    grad_ptr,
    x_ptr,
    targets_ptr,
    steps_ptr,
    lengths_ptr,
    loss_ptr,
    w_ptr,
    dx_ptr,
    T,
    S,
    C,
    stride_xt,
    stride_xn,
    stride_xc,
    stride_target,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dx of block_steps steps of one sequence, fp32 [T, N, C]."""
    n = tl.program_id(0).to(tl.int64)
    N = tl.num_programs(0)
    steps = tl.minimum(tl.load(steps_ptr + n), T).to(tl.int32)  # in bounds: one per sequence, here and below
    length = tl.minimum(tl.load(lengths_ptr + n), S).to(tl.int32)  # in bounds: one per sequence
    loss = tl.load(loss_ptr + n)  # in bounds: one per sequence
    upstream = tl.load(grad_ptr + n).to(tl.float32)  # in bounds: one per sequence
    is_infinite = loss == float("inf")
    t = tl.program_id(1) * TILE.block_steps + tl.arange(0, TILE.block_steps)
    exists = t < T
    counts = t < steps
    if SPEC.zero_infinity:
        counts = counts & (loss < float("inf"))
    x_row = (t.to(tl.int64) * stride_xt + n * stride_xn)[:, None]
    dx_row = (t.to(tl.int64) * N + n) * C
    for start in range(0, C, TILE.block_classes):
        column = start + tl.arange(0, TILE.block_classes)
        mask = exists[:, None] & (tl.arange(0, TILE.block_classes) < C - start)[None, :]
        x = tl.load(x_ptr + x_row + column.to(tl.int64)[None, :] * stride_xc, mask=mask, other=0.0).to(tl.float32)
        # PyTorch subtracts e^(-inf + loss - x) where no position has the class: NaN for infinite ones.
        dx = tl.where(is_infinite | (x == NONE), float("nan"), tl.exp(x)) * upstream
        tl.store(dx_ptr + dx_row[:, None] + column[None, :], tl.where(counts[:, None], dx, 0.0), mask=mask)
    width = 2 * S + 1
    w_row = w_ptr + (n * T + t) * width
    blanks = tl.full((TILE.block_steps,), 0.0, tl.float32)
    for j in range(length):
        tl.debug_barrier()  # what these threads read, others stored
        blanks += tl.load(w_row + 2 * j, mask=counts, other=0.0)
        label = tl.load(targets_ptr + n * stride_target + j)  # in bounds: j < S
        valid = counts & (label >= 0) & (label < C)
        w = tl.load(w_row + 2 * j + 1, mask=valid, other=0.0)
        dx = tl.load(dx_ptr + dx_row + label, mask=valid, other=0.0)
        tl.debug_barrier()
        tl.store(dx_ptr + dx_row + label, dx - w * upstream, mask=valid)
    tl.debug_barrier()
    blanks += tl.load(w_row + 2 * length, mask=counts, other=0.0)
    dx = tl.load(dx_ptr + dx_row + SPEC.blank, mask=counts, other=0.0)
    tl.debug_barrier()
    tl.store(dx_ptr + dx_row + SPEC.blank, dx - blanks * upstream, mask=counts)


@costs(ctc_loss_alpha_kernel)
@costs(ctc_loss_beta_kernel)
@costs(ctc_loss_gradient_kernel)
def ctc_loss_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is moved once; a few operations per log-probability."""
    return Cost(4 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


def ctc_loss_forward(
    x: torch.Tensor, targets: torch.Tensor, steps: torch.Tensor, lengths: torch.Tensor, blank: int, zero_infinity: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The losses, and what their backward reads.

    Args:
        x: log-probabilities [T, N, C], any strides.
        targets: labels [N, S], the last dimension contiguous.
        steps: of each sequence that count, int64 [N], contiguous.
        lengths: labels of each target that count, int64 [N], contiguous.
        blank: the class that stands for no label.
        zero_infinity: whether infinite losses count as 0.

    Returns:
        The losses [N] in x's dtype; the losses before zero_infinity, fp32 [N]; alpha, fp32 [N, T, 2 S + 1].
    """
    T, N, _ = x.shape
    S = targets.shape[1]
    loss = x.new_empty(N, dtype=torch.float32)
    alpha = x.new_empty((N, T, 2 * S + 1), dtype=torch.float32)
    problem = _problem(ctc_loss_alpha_kernel, x.shape, x.stride(), S, targets.stride(0), blank, False, current_target())
    problem.launch(x, targets, steps, lengths, loss, alpha)
    result = torch.where(loss == torch.inf, 0.0, loss) if zero_infinity else loss.clone()
    return result.to(x.dtype), loss, alpha


def ctc_loss_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    steps: torch.Tensor,
    lengths: torch.Tensor,
    loss: torch.Tensor,
    alpha: torch.Tensor,
    blank: int,
    zero_infinity: bool,
) -> torch.Tensor:
    """dx [T, N, C], contiguous, of the upstream gradient [N], contiguous; all others as in the forward."""
    N, _, width = alpha.shape
    S, target = targets.shape[1], current_target()
    beta = alpha.new_empty((N, 2, width))
    w = torch.empty_like(alpha)
    dx = x.new_empty(x.shape, dtype=torch.float32)
    given = x.shape, x.stride(), S, targets.stride(0), blank, zero_infinity, target
    _problem(ctc_loss_beta_kernel, *given).launch_named(
        x_ptr=x,
        targets_ptr=targets,
        steps_ptr=steps,
        lengths_ptr=lengths,
        alpha_ptr=alpha,
        beta_ptr=beta,
        w_ptr=w,
    )
    _problem(ctc_loss_gradient_kernel, *given).launch_named(
        grad_ptr=grad,
        x_ptr=x,
        targets_ptr=targets,
        steps_ptr=steps,
        lengths_ptr=lengths,
        loss_ptr=loss,
        w_ptr=w,
        dx_ptr=dx,
    )
    return dx.to(x.dtype)


@lru_cache(maxsize=4096)
def _problem(
    kernel: Any,
    shape: tuple[int, int, int],
    stride: tuple[int, int, int],
    S: int,
    stride_target: int,
    blank: int,
    zero_infinity: bool,
    target: Target,
) -> Problem:
    T, N, C = shape
    tile = ctc_tile(T, C, S, target)
    gradient = kernel is ctc_loss_gradient_kernel
    return Problem(
        kernel,
        (N, ceil_div(T, tile.block_steps)) if gradient else (N,),
        T,
        S,
        C,
        *stride,
        stride_target,
        SPEC=CTC(blank, zero_infinity),
        TILE=tile,
        num_warps=4 if gradient else tile.num_warps,
    )


def ctc_tile(T: int, C: int, S: int, target: Target) -> CTCTile:
    """A thread of a GPU has four positions, or as many as 8 warps leave it."""
    positions = max(16, power_of_2_at_least(2 * S + 1))
    most_steps = 256 if target.kind == "interpreter" else 32
    steps, classes = min(most_steps, max(16, power_of_2_at_least(T))), min(64, max(16, power_of_2_at_least(C)))
    return CTCTile(positions, steps, classes, min(8, max(1, positions // 128)))

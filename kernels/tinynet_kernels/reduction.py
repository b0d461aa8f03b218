"""The second stage of two-stage reductions, which add partial results in a fixed order: reruns are bitwise equal.

Kernels sum over programs without atomics. Each program stores its partial sum in an fp32 workspace:

    [parts, elements]  `sum_partials`: out = sum over parts of partial[part], flat over the elements, BLOCK per program
    [1 or 2, parts]    `reduce_losses`: loss = sum of partial[0], or that / sum of partial[1], in one program
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, flat_block, power_of_2_at_least


@triton.jit
def sum_of_parts(partial_ptr, parts, elements, offset, mask):
    """partial[0, e] + partial[1, e] + ..., in that order; `offset` and `mask` are of elements e, of any shape."""
    total = tl.zeros(offset.shape, tl.float32)
    for _ in range(parts):
        total += tl.load(partial_ptr + offset, mask=mask, other=0.0)
        partial_ptr += elements
    return total


@triton.jit
def sum_partials_kernel(partial_ptr, out_ptr, parts, elements, BLOCK: constexpr):
    """out[e] = partial[0, e] + partial[1, e] + ..., in that order."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    total = sum_of_parts(partial_ptr + start, parts, elements, offset, mask)
    tl.store(out_ptr + start + offset, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_partial_losses(total, divisor, partial_ptr):
    """A program's sums of losses and of divisors, into `partial` [2, programs]."""
    tl.store(partial_ptr + tl.program_id(0), total)
    tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), divisor)


@triton.jit
def store_reduced_loss(total, divisor, loss_ptr, divisor_ptr):
    """The sum or, where there is a place for the divisor, which the backward reads, the sum / divisor."""
    if divisor_ptr is not None:
        tl.store(divisor_ptr, divisor)
        total = total / divisor
    tl.store(loss_ptr, total.to(loss_ptr.dtype.element_ty))


@triton.jit
def reduce_losses_kernel(partial_ptr, loss_ptr, divisor_ptr, parts, BLOCK: constexpr):
    """loss = sum partial[0] over [1, parts], or that / sum partial[1] over [2, parts], in one program."""
    offset = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    divisor = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        mask = offset < parts - start
        total += tl.load(partial_ptr + start + offset, mask=mask, other=0.0)
        if divisor_ptr is not None:
            divisor += tl.load(partial_ptr + parts + start + offset, mask=mask, other=0.0)
    store_reduced_loss(tl.sum(total, axis=0), tl.sum(divisor, axis=0), loss_ptr, divisor_ptr)


@costs(sum_partials_kernel)
@costs(reduce_losses_kernel)
def reduction_cost(partial_ptr: torch.Tensor, **others: Any) -> Cost:
    """The workspace is read once and the result written once."""
    return Cost(partial_ptr.numel(), size_in_bytes(partial_ptr, *others.values()))


def sum_partials(partial: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sum over the first dimension.

    Args:
        partial: fp32 [parts, ...], contiguous.
        dtype: of the result [...].
    """
    parts = partial.shape[0]
    if parts == 1 and dtype is torch.float32:
        return partial[0]
    out = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    _sum_problem(parts, out.numel(), current_target()).launch(partial, out)
    return out


def reduce_losses(partial: torch.Tensor, loss: torch.Tensor, divisor: torch.Tensor | None) -> None:
    """The loss of partial sums of losses and of their divisors.

    Args:
        partial: fp32 [2, parts], contiguous; the sum reads the losses, [0], alone.
        loss: one element, written.
        divisor: of the mean, fp32 [1], written; None for the sum.
    """
    _losses_problem(partial.shape[1]).launch(partial, loss, divisor)


@lru_cache(maxsize=4096)
def _sum_problem(parts: int, elements: int, target: Target) -> Problem:
    block, num_warps = flat_block(elements, target)
    grid = (ceil_div(elements, block),)
    return Problem(sum_partials_kernel, grid, parts, elements, BLOCK=block, num_warps=num_warps)


@lru_cache(maxsize=4096)
def _losses_problem(parts: int) -> Problem:
    return Problem(reduce_losses_kernel, (1,), parts, BLOCK=min(1024, power_of_2_at_least(parts)), num_warps=4)

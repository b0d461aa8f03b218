"""The second stage of two-stage reductions, which add partial results in a fixed order: reruns are bitwise equal.

Kernels sum over programs without atomics. Each program stores its partial sum in an fp32 workspace:

    [parts, elements]  `sum_partials`: out = sum over parts of partial[part], flat over the elements, BLOCK per program;
                       on GPUs, of few elements in many parts, blocks of parts at a time (`blocks_of_parts`)
    [1 or 2, parts]    `reduce_losses`: loss = sum of partial[0], or that / sum of partial[1], in one program
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

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
def sum_of_blocks(partial_ptr, first, parts, elements, share, mask, BLOCK_PARTS: constexpr, BLOCK: constexpr):
    """The sum of `share` parts from `first` on, [BLOCK]: BLOCK_PARTS sums, each in order, then the sum of these."""
    part = tl.arange(0, BLOCK_PARTS)
    offset = part[:, None] * elements + tl.arange(0, BLOCK)[None, :]
    end = tl.minimum(first + share, parts)
    partial = partial_ptr + first.to(tl.int64) * elements
    total = tl.zeros((BLOCK_PARTS, BLOCK), tl.float32)
    for position in range(first, end, BLOCK_PARTS):
        total += tl.load(partial + offset, mask=(part < end - position)[:, None] & mask[None, :], other=0.0)
        partial += BLOCK_PARTS * elements
    return tl.sum(total, axis=0)


@triton.jit
def store_sum(partial_ptr, out_ptr, parts, elements, share, program, q, BLOCK_PARTS: constexpr, BLOCK: constexpr):
    """The sum of share `q` of the parts, of the elements of one program."""
    start = program.to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    if BLOCK_PARTS == 1:
        total = sum_of_parts(partial_ptr + start, parts, elements, offset, mask)
    else:
        total = sum_of_blocks(partial_ptr + start, q * share, parts, elements, share, mask, BLOCK_PARTS, BLOCK)
    out = out_ptr + q.to(tl.int64) * elements + start
    tl.store(out + offset, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_partials_kernel(partial_ptr, out_ptr, parts, elements, share, BLOCK_PARTS: constexpr, BLOCK: constexpr):
    """out[e] = partial[0, e] + partial[1, e] + ..., in that order or in blocks; out[q, e] the sum of share q only."""
    program, q = tl.program_id(0), tl.program_id(1)
    store_sum(partial_ptr, out_ptr, parts, elements, share, program, q, BLOCK_PARTS, BLOCK)


@triton.jit
def sum_two_kernel(
    partial_ptr,
    out_ptr,
    other_partial_ptr,
    other_out_ptr,
    parts,
    elements,
    programs,
    other_parts,
    other_elements,
    BLOCK_PARTS: constexpr,
    BLOCK: constexpr,
    OTHER_BLOCK_PARTS: constexpr,
    OTHER_BLOCK: constexpr,
):
    """Two sums as of `sum_partials_kernel`, of one share each: the first `programs` programs compute the first one."""
    program = tl.program_id(0)
    zero = program * 0
    if program < programs:
        store_sum(partial_ptr, out_ptr, parts, elements, parts, program, zero, BLOCK_PARTS, BLOCK)
    else:
        store_sum(
            other_partial_ptr,
            other_out_ptr,
            other_parts,
            other_elements,
            other_parts,
            program - programs,
            zero,
            OTHER_BLOCK_PARTS,
            OTHER_BLOCK,
        )


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


@costs(sum_two_kernel)
def sum_two_cost(partial_ptr: torch.Tensor, other_partial_ptr: torch.Tensor, **others: Any) -> Cost:
    """As of both sums."""
    flops = partial_ptr.numel() + other_partial_ptr.numel()
    return Cost(flops, size_in_bytes(partial_ptr, other_partial_ptr, *others.values()))


def sum_partials(
    partial: torch.Tensor, dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over the first dimension.

    Args:
        partial: fp32 [parts, ...], contiguous.
        dtype: of the result [...].
        out: receives the result, element after element of its memory; None for a new tensor.
    """
    parts = partial.shape[0]
    if out is None:
        if parts == 1 and dtype is torch.float32:
            return partial[0]
        out = partial.new_empty(partial.shape[1:], dtype=dtype)
    blocks = blocks_of_parts(parts, out.numel(), current_target())
    problem = _sum_problem(parts, out.numel(), blocks)
    if blocks.shares == 1:
        problem.launch(partial, out)
        return out
    shares = partial.new_empty((blocks.shares, *partial.shape[1:]))
    problem.launch(partial, shares)
    return sum_partials(shares, out=out)


def sum_two(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sums as of `sum_partials`, in one launch on GPUs, where a launch costs more than small sums.

    Args:
        first, second: fp32 [parts, ...], contiguous.
        out: receives the first sum.

    Returns:
        `out`, and the second sum in fp32.
    """
    target = current_target()
    if target.kind not in ("cuda", "hip") or 1 in (first.shape[0], second.shape[0]):
        return sum_partials(first, out=out), sum_partials(second)
    blocks = [blocks_of_parts(partial.shape[0], partial[0].numel(), target) for partial in (first, second)]
    if any(each.shares > 1 for each in blocks):
        return sum_partials(first, out=out), sum_partials(second)
    other = second.new_empty(second.shape[1:])
    _two_problem(first.shape[0], out.numel(), second.shape[0], other.numel(), *blocks).launch(first, out, second, other)
    return out, other


def reduce_losses(partial: torch.Tensor, loss: torch.Tensor, divisor: torch.Tensor | None) -> None:
    """The loss of partial sums of losses and of their divisors.

    Args:
        partial: fp32 [2, parts], contiguous; the sum reads the losses, [0], alone.
        loss: one element, written.
        divisor: of the mean, fp32 [1], written; None for the sum.
    """
    _losses_problem(partial.shape[1]).launch(partial, loss, divisor)


MOST_STEPS = 8  # of a program that adds blocks of parts


class Blocks(NamedTuple):
    """How a sum of parts is divided.

    Attributes:
        block_parts: parts that a program adds at a time.
        block: elements of a program.
        shares: into which the parts are divided; the sums of several are added by another launch.
        num_warps: of a program.
    """

    block_parts: int
    block: int
    shares: int
    num_warps: int


@lru_cache(maxsize=4096)
def blocks_of_parts(parts: int, elements: int, target: Target) -> Blocks:
    """Part after part, except where that would leave most of a GPU idle, each of its few programs in a long loop.

    There, blocks are as long as half of the multiprocessors can share, but no shorter than 32 elements, 128 bytes; and
    no program adds more than eight of them.

    Args:
        parts, elements: of the workspace.
        target: where it runs.
    """
    block, num_warps = flat_block(elements, target)
    gpu = target.kind in ("cuda", "hip")
    if not gpu or parts <= MOST_STEPS or 2 * ceil_div(elements, block) >= target.processors:
        return Blocks(1, block, 1, num_warps)
    while block > 32 and 2 * ceil_div(elements, block) < target.processors:
        block //= 2
    block_parts = min(4096 // block, power_of_2_at_least(parts))
    return Blocks(block_parts, block, ceil_div(parts, MOST_STEPS * block_parts), num_warps)


@lru_cache(maxsize=4096)
def _sum_problem(parts: int, elements: int, blocks: Blocks) -> Problem:
    share = ceil_div(parts, blocks.shares * blocks.block_parts) * blocks.block_parts
    return Problem(
        sum_partials_kernel,
        (ceil_div(elements, blocks.block), blocks.shares),
        *(parts, elements, share),
        BLOCK_PARTS=blocks.block_parts,
        BLOCK=blocks.block,
        num_warps=blocks.num_warps,
    )


@lru_cache(maxsize=4096)
def _two_problem(
    parts: int, elements: int, other_parts: int, other_elements: int, blocks: Blocks, other: Blocks
) -> Problem:
    programs = ceil_div(elements, blocks.block)
    return Problem(
        sum_two_kernel,
        (programs + ceil_div(other_elements, other.block),),
        *(parts, elements, programs, other_parts, other_elements),
        BLOCK_PARTS=blocks.block_parts,
        BLOCK=blocks.block,
        OTHER_BLOCK_PARTS=other.block_parts,
        OTHER_BLOCK=other.block,
        num_warps=max(blocks.num_warps, other.num_warps),
    )


@lru_cache(maxsize=4096)
def _losses_problem(parts: int) -> Problem:
    return Problem(reduce_losses_kernel, (1,), parts, BLOCK=min(1024, power_of_2_at_least(parts)), num_warps=4)

"""The second stage of every two-stage reduction: out = sum over parts of partial[part], in a fixed order.

Backward kernels use no atomics. Each program leaves its partial sum in an fp32 workspace [parts, elements]; this kernel
adds the parts one after another, so reruns are bitwise equal. Flat over the elements: BLOCK a program.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, flat_block


@triton.jit
def sum_partials_kernel(partial_ptr, out_ptr, parts, elements, BLOCK: constexpr):
    """out[e] = partial[0, e] + partial[1, e] + ..., in that order."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    partial = partial_ptr + start
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        total += tl.load(partial + offset, mask=mask, other=0.0)
        partial += elements
    tl.store(out_ptr + start + offset, total.to(out_ptr.dtype.element_ty), mask=mask)


@costs(sum_partials_kernel)
def sum_partials_cost(partial_ptr: torch.Tensor, out_ptr: torch.Tensor, **_: Any) -> Cost:
    """The workspace is read once and the sum written once."""
    return Cost(partial_ptr.numel(), size_in_bytes(partial_ptr, out_ptr))


@lru_cache(maxsize=4096)
def _problem(parts: int, elements: int, target: Target) -> Problem:
    block, num_warps = flat_block(elements, target)
    grid = (ceil_div(elements, block),)
    return Problem(sum_partials_kernel, grid, parts, elements, BLOCK=block, num_warps=num_warps)


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
    _problem(parts, out.numel(), current_target()).launch(partial, out)
    return out

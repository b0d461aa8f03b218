"""Randomized leaky ReLU in training: y = x where positive, else r x, r uniform in [lower, upper) for each element.

The slopes are never stored: they are drawn as in `dropout.py`, and again in the backward, dX = dY (1 or r).

Tiling: flat; one Philox call gives four random numbers. Source: Xu et al. 2015.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.dropout import uniform_numbers
from tinynet_kernels.launch import Cost, costs, launch, size_in_bytes
from tinynet_kernels.tiles import ceil_div, current_target, flat_block


@triton.jit
def rrelu_kernel(x_ptr, seed_ptr, grad_ptr, y_ptr, elements, lower, width, BLOCK: constexpr):
    """y = x or, where there is an upstream gradient, dY, times 1 where x is positive and a random slope elsewhere."""
    program = tl.program_id(0)
    start = program.to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    slope = lower + width * uniform_numbers(seed_ptr, program, BLOCK)
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    factor = tl.where(x <= 0, slope, 1.0)
    if grad_ptr is None:
        y = x * factor
    else:
        y = tl.load(grad_ptr + start + offset, mask=mask, other=0.0).to(tl.float32) * factor
    tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@costs(rrelu_kernel)
def rrelu_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is read or written once; two operations per element."""
    return Cost(2 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


def rrelu_apply(
    x: torch.Tensor, seed: torch.Tensor, grad: torch.Tensor | None, lower: float, upper: float
) -> torch.Tensor:
    """y of x or, where there is an upstream gradient, dX; the same seed draws the same slopes.

    Args:
        x: dense, of any shape and layout; elements are counted in memory order.
        seed: int64 [1] on x's device.
        grad: dY with x's strides, or None.
        lower, upper: bounds of the slopes.
    """
    y = torch.empty_like(x)
    elements = x.numel()
    block, num_warps = flat_block(elements, current_target())
    block = max(block, 4)
    grid, numbers = (ceil_div(elements, block),), (elements, lower, upper - lower)
    launch(rrelu_kernel, grid, x, seed, grad, y, *numbers, BLOCK=block, num_warps=num_warps)
    return y

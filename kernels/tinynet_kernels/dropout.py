"""Dropout: y = x m / (1 - p), m one with probability 1 - p, else zero.

The mask is never stored: element i's random number is Philox (Salmon et al. 2011) of the seed and i, so the backward,
dX = dY m / (1 - p), runs the same kernel on dY. The seed lies in memory on x's device, drawn there by PyTorch's own
generator: no host synchronization, and a captured graph draws a new one at each replay.

Tiling: flat; one Philox call gives four random numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, costs, launch, size_in_bytes
from tinynet_kernels.tiles import ceil_div, current_target, flat_block


@triton.jit
def dropout_kernel(x_ptr, seed_ptr, y_ptr, elements, p, BLOCK: constexpr):
    """y = x / (1 - p) where the element's random number is at least p, else 0; BLOCK elements per program."""
    program = tl.program_id(0)
    start = program.to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    seed = tl.load(seed_ptr)  # in bounds: one element
    quarter = tl.arange(0, BLOCK // 4).to(tl.uint32)
    zero = quarter * 0
    a, b, c, d = tl.philox(seed, quarter, zero + program.to(tl.uint32), zero, zero)
    bits = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (BLOCK,))
    uniform = tl.uint_to_uniform_float(bits)
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    y = tl.where(uniform >= p, x / (1.0 - p), 0.0)
    tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@costs(dropout_kernel)
def dropout_cost(x_ptr: torch.Tensor, y_ptr: torch.Tensor, **_: Any) -> Cost:
    """One pass: x read, y written."""
    return Cost(x_ptr.numel(), size_in_bytes(x_ptr, y_ptr))


def dropout_apply(x: torch.Tensor, seed: torch.Tensor, p: float) -> torch.Tensor:
    """x with its dropped elements zeroed and the others scaled; the same seed drops the same elements.

    Args:
        x: dense, of any shape and layout; elements are counted in memory order.
        seed: int64 [1] on x's device.
        p: probability of a zero, 0 <= p < 1.
    """
    y = torch.empty_like(x)
    elements = x.numel()
    block, num_warps = flat_block(elements, current_target())
    block = max(block, 4)
    grid = (ceil_div(elements, block),)
    launch(dropout_kernel, grid, x, seed, y, elements, p, BLOCK=block, num_warps=num_warps)
    return y

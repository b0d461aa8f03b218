"""Mean squared error: (x - target)^2, its sum or its mean; dx = 2 (x - target) dloss, and dtarget = -dx.

Tiling: flat, BLOCK elements per program. A sum takes two stages (`reduction.reduce_losses`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, costs, launch, size_in_bytes
from tinynet_kernels.reduction import reduce_losses, store_partial_losses
from tinynet_kernels.tiles import ceil_div, current_target, flat_block


@triton.jit
def mse_loss_forward_kernel(x_ptr, target_ptr, loss_ptr, partial_ptr, elements, BLOCK: constexpr):
    """(x - target)^2 of BLOCK elements, or their sum and count where there is `partial`, [2, programs]."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    square = (x - target) * (x - target)
    if partial_ptr is None:
        tl.store(loss_ptr + start + offset, square.to(loss_ptr.dtype.element_ty), mask=mask)
    else:
        count = tl.sum(tl.where(mask, 1.0, 0.0), axis=0)
        store_partial_losses(tl.sum(square, axis=0), count, partial_ptr)


@triton.jit
def mse_loss_backward_kernel(
    grad_ptr, x_ptr, target_ptr, dx_ptr, dtarget_ptr, elements, REDUCTION: constexpr, BLOCK: constexpr
):
    """dx = 2 (x - target) dloss (/ elements for the mean), and dtarget = -dx, where given; BLOCK elements per program.

    `grad` is one element, or with REDUCTION "none" one for each of x.
    """
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
    if dx_ptr is not None:
        tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if dtarget_ptr is not None:
        tl.store(dtarget_ptr + start + offset, (-dx).to(dtarget_ptr.dtype.element_ty), mask=mask)


@costs(mse_loss_forward_kernel)
@costs(mse_loss_backward_kernel)
def mse_loss_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Each tensor is moved once; a difference and two products per element."""
    return Cost(3 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


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
    loss = torch.empty_like(x) if reduction == "none" else x.new_empty(())
    partial = None if reduction == "none" else x.new_empty((2, programs), dtype=torch.float32)
    tensors = (x, target, loss, partial)
    launch(mse_loss_forward_kernel, (programs,), *tensors, elements, BLOCK=block, num_warps=num_warps)
    if partial is not None:
        reduce_losses(partial, loss, partial.new_empty(1) if reduction == "mean" else None)
    return loss


def mse_loss_backward(
    grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, reduction: str, *, want_dx: bool, want_dtarget: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and target, each None where not wanted.

    Args:
        grad: the upstream gradient, [] or x's shape and strides.
        x, target, reduction: as in the forward.
        want_dx: whether to compute dx.
        want_dtarget: whether to compute dtarget.
    """
    elements = x.numel()
    block, num_warps = flat_block(elements, current_target())
    dx = torch.empty_like(x) if want_dx else None
    dtarget = torch.empty_like(x) if want_dtarget else None
    grid, tensors = (ceil_div(elements, block),), (grad, x, target, dx, dtarget)
    options = {"REDUCTION": reduction, "BLOCK": block, "num_warps": num_warps}
    launch(mse_loss_backward_kernel, grid, *tensors, elements, **options)
    return dx, dtarget

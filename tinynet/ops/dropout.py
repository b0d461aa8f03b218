"""Dropout whose mask is recomputed in the backward, not stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import check_floating, is_dense, needs_gradient
from tinynet.ops.autograd import through_kernels
from tinynet.ops.operator import Operator, contiguous_like


def dropout_reference(x: Tensor, p: float) -> Tensor:
    """Dropout in plain PyTorch; it drops other elements than the kernels do, with the same probability."""
    return F.dropout(x, p, training=True)


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    (seed,) = ctx.saved_tensors
    ones = torch.empty_strided(ctx.shape, ctx.strides, dtype=grad.dtype, device=seed.device).fill_(1)
    return (grad * kernels.dropout.dropout_apply(ones, seed, ctx.p),)


class DropoutFunction(torch.autograd.Function):
    """y = x m(seed) / (1 - p) through the kernel; x is dense."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.p, ctx.shape, ctx.strides = p, x.shape, x.stride()
        return kernels.dropout.dropout_apply(x, seed, p)

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        if grad.stride() != ctx.strides:  # elements are counted in memory order
            grad = grad.new_empty_strided(grad.shape, ctx.strides).copy_(grad)
        return kernels.dropout.dropout_apply(grad, seed, ctx.p), None, None


def _scaled(x: Tensor, seed: Tensor, p: float, save: bool) -> list[Tensor]:
    return [kernels.dropout.dropout_apply(x.contiguous(), seed, p)]


dropout_operator = Operator(
    "dropout(Tensor x, Tensor seed, float p) -> Tensor",
    forward=_scaled,
    fake=lambda x, seed, p, save: [contiguous_like(x)],
    saves=lambda given, results: [given[1]],
    backward=lambda grads, saved, p, wanted: [*_scaled(grads[0], saved[0], p, False), None],
    fake_backward=lambda grads, saved, p, wanted: [contiguous_like(grads[0]), None],
    reference=lambda x, seed, p: x * _scaled(torch.ones_like(x), seed, p, False)[0],
)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zeroes each element with probability p and scales the others by 1 / (1 - p), where `training`.

    The seed comes from PyTorch's generator of x's device, so `torch.manual_seed` repeats a run; the elements that are
    dropped are others than torch.nn.functional.dropout's.

    Args:
        input: x [...], float32, bfloat16, float16 (kernels) or float64 (reference).
        p: probability, 0 <= p <= 1.
        training: False returns x.
        inplace: taken for compatibility; x is never written to.

    Raises:
        ValueError: p outside [0, 1].
        TypeError: x is not floating point.

    Source: torch.nn.functional.dropout (Srivastava et al. 2014).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout, (input,), input, p, training, inplace)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    p = float(p)  # numpy's numbers are none that a kernel takes
    check_floating("dropout", input=input)
    if not training or p == 0.0:
        return input
    route = route_of("dropout", ("input",), input)
    if p == 1.0:
        return input * 0.0
    if route is Route.REFERENCE:
        return dropout_reference(input, p)
    seed = torch.randint(1 << 62, (1,), device=input.device)
    if route is Route.OPERATOR:
        return dropout_operator(route, input, seed, p)
    dense = input if is_dense(input) else input.contiguous()
    if needs_gradient(input):
        return DropoutFunction.apply(dense, seed, p)  # pyright: ignore[reportReturnType]
    return kernels.dropout.dropout_apply(dense, seed, p)

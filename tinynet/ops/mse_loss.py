"""The mean squared error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route
from tinynet.ops.activation import is_dense
from tinynet.ops.arguments import autocast_to_float32, check_floating, checked_reduction, needs_gradient
from tinynet.ops.autograd import gradients_of, through_kernels
from tinynet.ops.operator import Operator, Tensors


def mse_loss_reference(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)^2, reduced, in plain PyTorch."""
    return F.mse_loss(input, target, reduction=reduction)


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    inputs = (*ctx.saved_tensors, ctx.reduction)
    return gradients_of(mse_loss_reference, inputs, (*ctx.needs_input_grad[:2], False), (grad,))


class MSELossFunction(torch.autograd.Function):
    """(x - target)^2, reduced, through the kernels; both dense, in one layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, reduction: str) -> Tensor:
        from tinynet_kernels.mse_loss import mse_loss_forward

        ctx.save_for_backward(x, target)
        ctx.reduction = reduction
        return mse_loss_forward(x, target, reduction)

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, target = ctx.saved_tensors
        return (*_gradients(grad, x, target, ctx.reduction, ctx.needs_input_grad[:2]), None)


def _same_dense_layout(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are where they walk memory alike, else both contiguous."""
    if x.stride() == target.stride() and is_dense(x):
        return x, target
    return x.contiguous(), target.contiguous()


def _gradients(
    grad: Tensor, x: Tensor, target: Tensor, reduction: str, wanted: tuple[bool, ...] | list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(dx, dtarget) of dense tensors of one layout, each None where not wanted."""
    from tinynet_kernels.mse_loss import mse_loss_backward

    if reduction == "none" and grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    return mse_loss_backward(grad, x, target, reduction, want_dx=wanted[0], want_dtarget=wanted[1])


def _operator_forward(x: Tensor, target: Tensor, reduction: str, save: bool) -> Tensors:
    from tinynet_kernels.mse_loss import mse_loss_forward

    return [mse_loss_forward(x.contiguous(), target.contiguous(), reduction)]


mse_loss_operator = Operator(
    "mse_loss(Tensor x, Tensor target, str reduction, bool save) -> Tensor",
    forward=_operator_forward,
    fake=lambda x, target, reduction, save: [x.new_empty(x.shape if reduction == "none" else ())],
    saves=lambda given, made: given[:2],
    backward=lambda grads, saved, reduction, wanted: _gradients(
        grads[0], saved[0].contiguous(), saved[1].contiguous(), reduction, wanted
    ),
    fake_backward=lambda grads, saved, reduction, wanted: [
        x.new_empty(x.shape) if want else None for x, want in zip(saved, wanted, strict=True)
    ],
    reference=mse_loss_reference,
)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input - target)^2, reduced.

    Args:
        input: [...], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under autocast.
        target: [...], input's dtype; shapes that differ are broadcast, with PyTorch's warning. Both get gradients.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".
        weight: input's shape, multiplies the squares; the mean then divides by its sum.

    Returns:
        [] for "mean" and "sum", else the broadcast shape; input's dtype.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.nn.functional.mse_loss.
    """
    if has_torch_function_unary(input):
        arguments = size_average, reduce, reduction, weight
        return handle_torch_function(mse_loss, (input,), input, target, *arguments)
    reduction = checked_reduction("mse_loss", reduction, size_average, reduce)
    input, target, weight = autocast_to_float32(input, target, weight)
    check_floating("mse_loss", input=input, target=target, weight=weight)
    way = route("mse_loss", ("input", "target", "weight"), input, target, weight)
    if weight is not None:
        return _weighted_mse_loss(input, target, weight, reduction)
    if input.shape != target.shape:
        input, target = _broadcast(input, target)
    if way is Route.REFERENCE:
        return mse_loss_reference(input, target, reduction)
    if way is Route.OPERATOR:
        return mse_loss_operator(input, target, reduction, needs_gradient(input, target))
    input, target = _same_dense_layout(input, target)
    if needs_gradient(input, target):
        return MSELossFunction.apply(input, target, reduction)  # pyright: ignore[reportReturnType]
    from tinynet_kernels.mse_loss import mse_loss_forward

    return mse_loss_forward(input, target, reduction)


def _weighted_mse_loss(input: Tensor, target: Tensor, weight: Tensor, reduction: str) -> Tensor:
    if weight.shape != input.shape:
        raise ValueError(
            f"mse_loss: weight must have the shape {tuple(input.shape)} of input, got {tuple(weight.shape)}"
        )
    squares = mse_loss(input, target, reduction="none") * weight
    if reduction == "none":
        return squares
    return squares.sum() if reduction == "sum" else squares.sum() / weight.sum()


def _broadcast(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    warnings.warn(
        f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
        "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
        stacklevel=3,
    )
    try:
        input, target = torch.broadcast_tensors(input, target)
    except RuntimeError as error:
        raise ValueError(
            f"mse_loss: target {tuple(target.shape)} does not broadcast with input {tuple(input.shape)}"
        ) from error
    return input, target

"""The mean squared error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import autocast_to_float32, check_floating, checked_reduction, is_dense
from tinynet.ops.operator import Operator, Tensors, like_saved


def mse_loss_reference(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)^2, reduced, in plain PyTorch."""
    return F.mse_loss(input, target, reduction=reduction)


def _same_dense_layout(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are where they are dense in one layout, else both contiguous."""
    if x.stride() == target.stride() and is_dense(x):
        return x, target
    return x.contiguous(), target.contiguous()


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], reduction: str, wanted: Sequence[bool]) -> Tensors:
    """(dx, dtarget), each None where not wanted."""
    x, target = _same_dense_layout(*saved)
    grad = grads[0]
    if reduction == "none" and grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    return kernels.mse_loss.mse_loss_backward(grad, x, target, reduction, want_dx=wanted[0], want_dtarget=wanted[1])


mse_loss_operator = Operator(
    "mse_loss(Tensor x, Tensor target, str reduction) -> Tensor",
    forward=lambda x, target, reduction, _: [
        kernels.mse_loss.mse_loss_forward(*_same_dense_layout(x, target), reduction)
    ],
    fake=lambda x, target, reduction, _: [
        torch.empty_like(_same_dense_layout(x, target)[0]) if reduction == "none" else x.new_empty(())
    ],
    saves=lambda given, results: given[:2],
    backward=_backward,
    fake_backward=lambda grads, saved, reduction, wanted: like_saved(grads, _same_dense_layout(*saved), wanted),
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
    route = route_of("mse_loss", ("input", "target", "weight"), input, target, weight)
    if weight is not None:
        return _weighted_mse_loss(input, target, weight, reduction)
    if input.shape != target.shape:
        input, target = _broadcast(input, target)
    return mse_loss_operator(route, input, target, reduction)


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

"""Losses of a difference: mean squared and mean absolute error, and two between them."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tinynet.ops.arguments import checked_reduction
from tinynet.ops.elementwise_loss import prepared, reduced
from tinynet_kernels.loss_spec import Loss

_NAMES = ("input", "target", "", "weight")


def _loss_of_difference(
    operator: str,
    loss: Loss,
    input: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None,
    *,
    over_weight: bool = False,
) -> Tensor:
    """A loss of operands that may broadcast; `over_weight`: the weighted mean divides by the weight's sum."""
    route, operands = prepared(operator, _NAMES, input, target, None, weight, sizes="warn")
    if weight is not None and reduction == "mean" and over_weight:
        return reduced(route, operands, loss, "sum") / weight.sum()
    return reduced(route, operands, loss, reduction)


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
        target: [...], another dtype is promoted; shapes that differ are broadcast, with PyTorch's warning. Both get
            gradients.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".
        weight: input's shape, multiplies the squares; the mean then divides by its sum.

    Returns:
        [] for "mean" and "sum", else the broadcast shape; the promoted dtype.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, an operand that is not a tensor.

    Source: torch.nn.functional.mse_loss.
    """
    if has_torch_function_variadic(input, target, weight):
        arguments = size_average, reduce, reduction, weight
        return handle_torch_function(mse_loss, (input, target, weight), input, target, *arguments)
    reduction = checked_reduction("mse_loss", reduction, size_average, reduce)
    return _loss_of_difference("mse_loss", Loss("mse"), input, target, reduction, weight, over_weight=True)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|input - target|, reduced; the gradient is 0 where they are equal.

    Arguments, result and errors are those of `mse_loss`.

    Source: torch.nn.functional.l1_loss.
    """
    if has_torch_function_variadic(input, target, weight):
        arguments = size_average, reduce, reduction, weight
        return handle_torch_function(l1_loss, (input, target, weight), input, target, *arguments)
    reduction = checked_reduction("l1_loss", reduction, size_average, reduce)
    return _loss_of_difference("l1_loss", Loss("l1"), input, target, reduction, weight, over_weight=True)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """d^2 / (2 beta) where d = |input - target| is below beta, else d - beta / 2; reduced.

    Args:
        input, target, size_average, reduce, reduction: as in `mse_loss`.
        beta: where the square ends; 0 for `l1_loss`.

    Returns:
        As `mse_loss`.

    Raises:
        RuntimeError: a beta below 0.
        ValueError, TypeError: as `mse_loss`.

    Source: torch.nn.functional.smooth_l1_loss (Girshick 2015).
    """
    if has_torch_function_variadic(input, target):
        arguments = size_average, reduce, reduction, beta
        return handle_torch_function(smooth_l1_loss, (input, target), input, target, *arguments)
    reduction = checked_reduction("smooth_l1_loss", reduction, size_average, reduce)
    if not beta >= 0:
        raise RuntimeError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    loss = Loss("smooth_l1", float(beta)) if beta else Loss("l1")
    return _loss_of_difference("smooth_l1_loss", loss, input, target, reduction, None)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """d^2 / 2 where d = |input - target| is at most delta, else delta (d - delta / 2); reduced.

    Args:
        input, target, reduction: as in `mse_loss`.
        delta: where the square ends; above 0.
        weight: input's shape, multiplies the losses; the mean still divides by their number.

    Returns:
        As `mse_loss`.

    Raises:
        RuntimeError: a delta that is not above 0.
        ValueError, TypeError: as `mse_loss`.

    Source: torch.nn.functional.huber_loss (Huber 1964).
    """
    if has_torch_function_variadic(input, target, weight):
        arguments = reduction, delta, weight
        return handle_torch_function(huber_loss, (input, target, weight), input, target, *arguments)
    reduction = checked_reduction("huber_loss", reduction, None, None)
    if not delta > 0:
        raise RuntimeError(f"huber_loss: delta must be above 0, got {delta}")
    return _loss_of_difference("huber_loss", Loss("huber", float(delta)), input, target, reduction, weight)

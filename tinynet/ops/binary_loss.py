"""Losses of yes-or-no labels: cross-entropy of probabilities and of logits, one label or many."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tinynet.ops.arguments import autocast_dtype, check_floating, checked_reduction
from tinynet.ops.elementwise_loss import elementwise_loss_operator, prepared, reduced, refuse_gradient
from tinynet_kernels.loss_spec import Loss


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight (target log input + (1 - target) log(1 - input)), reduced; each logarithm is at least -100.

    Args:
        input: probabilities [...], float32, bfloat16, float16 (kernels) or float64 (reference).
        target: input's shape and dtype, from 0 to 1. Both get gradients.
        weight: broadcasts with the target; gets no gradient. None for ones.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else input's shape; input's dtype, float32 under autocast. On a device an element
        outside of [0, 1] makes the loss NaN: raising would wait for the device.

    Raises:
        RuntimeError: on the CPU, an element outside of [0, 1]; a weight that requires a gradient; autocast on a device,
            where 16-bit probabilities are too coarse.
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.nn.functional.binary_cross_entropy.
    """
    name = "binary_cross_entropy"
    if has_torch_function_variadic(input, target, weight):
        arguments = weight, size_average, reduce, reduction
        return handle_torch_function(binary_cross_entropy, (input, target, weight), input, target, *arguments)
    reduction = checked_reduction(name, reduction, size_average, reduce)
    refuse_gradient(name, "weight", weight)
    if autocast_dtype(input) is None:
        check_floating(name, input=input, target=target, weight=weight)
    elif not input.is_cpu:
        raise RuntimeError(
            "binary_cross_entropy: probabilities are too coarse under autocast; use binary_cross_entropy_with_logits"
        )
    names = ("input", "target", "", "weight")
    route, operands = prepared(name, names, input, target, None, weight, sizes="same", integer_target=False)
    return reduced(route, operands, Loss("bce"), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-weight (pos_weight target log s + (1 - target) log(1 - s)), reduced, where s = sigmoid(input).

    Args:
        input: logits [...], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under autocast.
        target: input's shape, from 0 to 1; another floating dtype is promoted. Both get gradients.
        weight, pos_weight: broadcast with the input; get no gradient. None for ones.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else input's shape; the promoted dtype.

    Raises:
        RuntimeError: a weight or pos_weight that requires a gradient.
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: dtypes that are not floating point.

    Source: torch.nn.functional.binary_cross_entropy_with_logits.
    """
    name = "binary_cross_entropy_with_logits"
    if has_torch_function_variadic(input, target, weight, pos_weight):
        relevant = (input, target, weight, pos_weight)
        arguments = weight, size_average, reduce, reduction, pos_weight
        return handle_torch_function(binary_cross_entropy_with_logits, relevant, input, target, *arguments)
    reduction = checked_reduction(name, reduction, size_average, reduce)
    refuse_gradient(name, "weight", weight)
    refuse_gradient(name, "pos_weight", pos_weight)
    names = ("input", "target", "pos_weight", "weight")
    route, operands = prepared(name, names, input, target, pos_weight, weight, sizes="same", integer_target=False)
    return reduced(route, operands, Loss("bce_with_logits"), reduction)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over the last axis of `binary_cross_entropy_with_logits`, reduced over the others.

    Args:
        input: logits [..., C], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under autocast.
        target: broadcasts with the input; another dtype is promoted.
        weight: broadcasts with the input; None for ones. All three get gradients.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else [...]; the promoted dtype.

    Raises:
        IndexError: an input without axes.
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, an operand that is not a tensor.

    Source: torch.nn.functional.multilabel_soft_margin_loss.
    """
    name = "multilabel_soft_margin_loss"
    if has_torch_function_variadic(input, target, weight):
        arguments = weight, size_average, reduce, reduction
        return handle_torch_function(multilabel_soft_margin_loss, (input, target, weight), input, target, *arguments)
    reduction = checked_reduction(name, reduction, size_average, reduce)
    if input.dim() == 0:
        raise IndexError(f"{name}: input must have an axis of classes, got a scalar")
    route, operands = prepared(name, ("input", "target", "", "weight"), input, target, None, weight)
    shape, classes = operands[0].shape, input.shape[-1]
    if len(shape) != input.dim():
        raise ValueError(f"{name}: target and weight may not have more axes than input {tuple(input.shape)}")
    loss = Loss("bce_with_logits")
    if reduction != "none":
        rows = shape[:-1].numel() if reduction == "mean" else 1
        return reduced(route, operands, loss, "sum", rows * classes)
    rows = [None if x is None else x.reshape(shape[:-1].numel(), shape[-1]) for x in operands]
    return elementwise_loss_operator(route, *rows, *loss, "rows", classes).view(shape[:-1])


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """log(1 + exp(-target input)), reduced; large products don't overflow.

    Args:
        input: scores [...], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under autocast.
        target: 1 or -1, broadcasts with the input; another dtype is promoted. It gets no gradient.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else the broadcast shape; the promoted dtype.

    Raises:
        RuntimeError: a target that requires a gradient.
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, a target that is not a tensor.

    Source: torch.nn.functional.soft_margin_loss.
    """
    if has_torch_function_variadic(input, target):
        arguments = size_average, reduce, reduction
        return handle_torch_function(soft_margin_loss, (input, target), input, target, *arguments)
    reduction = checked_reduction("soft_margin_loss", reduction, size_average, reduce)
    refuse_gradient("soft_margin_loss", "target", target)
    route, operands = prepared("soft_margin_loss", ("input", "target", "", ""), input, target, None, None)
    return reduced(route, operands, Loss("soft_margin"), reduction)

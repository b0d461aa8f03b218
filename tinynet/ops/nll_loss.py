"""The negative log likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import (
    as_integer,
    autocast_to_float32,
    check_device,
    check_floating,
    checked_reduction,
)
from tinynet.ops.labels import as_rows, check_labels
from tinynet.ops.operator import Operator, Tensors, like_saved


def nll_loss_reference(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """The negative log likelihood in plain PyTorch, whose backward takes no input of odd strides; see `nll_loss`."""
    return F.nll_loss(input.contiguous(), target, weight, ignore_index=ignore_index, reduction=reduction)


def _forward(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, save: bool
) -> Tensors:
    weight = None if weight is None else weight.contiguous()
    results = kernels.nll_loss.nll_loss_forward(x, target, weight, ignore_index, reduction)
    check_labels("nll_loss", results[0], target, x.shape[1], ignore_index)
    return results


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    x, target, weight, divisor = saved
    ignore_index, reduction, _ = rest
    weight = None if weight is None else weight.contiguous()
    given = grads[0].contiguous(), x, target, weight, divisor
    return kernels.nll_loss.nll_loss_backward(*given, ignore_index, reduction), None, None


nll_loss_operator = Operator(
    "nll_loss(Tensor x, Tensor target, Tensor? weight, int ignore_index, str reduction) -> (Tensor, Tensor)",
    forward=_forward,
    fake=lambda x, target, weight, ignore_index, reduction, save: (
        x.new_empty(target.shape if reduction == "none" else ()),
        x.new_empty(1, dtype=torch.float32) if reduction == "mean" else None,
    ),
    saves=lambda given, results: [*given[:3], results[1]],
    backward=_backward,
    fake_backward=lambda grads, saved, *rest: [*like_saved(grads, saved[:1], rest[-1][:1]), None, None],
    reference=nll_loss_reference,
)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-w_y x_y of each row x of log-probabilities with label y, reduced.

    Args:
        input: log-probabilities [C], [N, C] or [N, C, d1, ...], float32, bfloat16, float16 (kernels) or float64
            (reference); any strides. In float32 under autocast.
        target: labels [] (or [1]), [N] or [N, d1, ...], int64 or uint8.
        weight: w [C], input's dtype, or None for ones. It gets no gradient.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        ignore_index: rows with this label count for nothing.
        reduction: "mean" (over the weights of the labels that count; NaN where none does), "sum" or "none".

    Returns:
        [] for "mean" and "sum", else target's shape; input's dtype. On a device a label out of range makes the loss
        NaN: raising would wait for the device.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, a target of another dtype.
        IndexError: a label out of range, on the CPU.

    Source: torch.nn.functional.nll_loss.
    """
    if has_torch_function_unary(input):
        arguments = weight, size_average, ignore_index, reduce, reduction
        return handle_torch_function(nll_loss, (input,), input, target, *arguments)
    reduction = checked_reduction("nll_loss", reduction, size_average, reduce)
    input, target, weight = autocast_to_float32(input, target, weight)
    check_floating("nll_loss", input=input, weight=weight)
    if not isinstance(target, Tensor):
        raise TypeError(f"nll_loss: target must be a tensor, got {type(target).__name__}")
    check_device("nll_loss", "target", target, "input", input)
    route = route_of("nll_loss", ("input", "target", "weight"), input, target, weight)
    ignore_index = _check_nll_loss(input, target, weight, ignore_index)
    weight = None if weight is None else weight.detach()
    target = target.long() if target.dtype is torch.uint8 else target
    if route is Route.REFERENCE:
        return nll_loss_reference(input, target, weight, ignore_index, reduction)
    rows = target.reshape(1) if input.dim() == 1 else as_rows(target, classes=False)
    loss = nll_loss_operator(route, as_rows(input, classes=True), rows, weight, ignore_index, reduction)
    if reduction != "none" or input.dim() == 2:
        return loss
    return loss.view(() if input.dim() == 1 else target.shape)


def _check_nll_loss(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: Any) -> int:
    index = as_integer(ignore_index)
    if index is None:
        raise TypeError(f"nll_loss: ignore_index must be an integer, got {ignore_index!r}")
    if input.dim() == 0:
        raise ValueError("nll_loss: input must be [C], [N, C] or [N, C, d1, ...], got a scalar")
    class_axis = 0 if input.dim() == 1 else 1
    classes = input.shape[class_axis]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"nll_loss: weight must be [{classes}] for this input, got {tuple(weight.shape)}")
    expected = input.shape[:class_axis] + input.shape[class_axis + 1 :]
    if target.shape != expected and not (input.dim() == 1 and target.shape == (1,)):
        raise ValueError(f"nll_loss: target must be labels {tuple(expected)} for this input, got {tuple(target.shape)}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"nll_loss: target must hold labels in int64 or uint8, got {target.dtype}")
    return index

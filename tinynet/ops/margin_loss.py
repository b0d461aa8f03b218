"""Margin losses of rows of scores, with one label per row or several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import autocast_to_float32, check_device, check_floating, checked_reduction
from tinynet.ops.labels import look_where_nan
from tinynet.ops.operator import Operator, Tensors, contiguous_like


def multi_margin_loss_reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    p: int = 1,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """The multi-class margin loss in plain PyTorch, in float32 for 16-bit inputs; see `multi_margin_loss`.

    PyTorch leaves its result for an empty batch unset; here it is 0.
    """
    if not input.numel():
        return input.sum(-1) if reduction == "none" else input.sum()
    if input.dtype is torch.float64:
        return F.multi_margin_loss(input, target, p, margin, weight, reduction=reduction)
    weight = None if weight is None else weight.float()
    return F.multi_margin_loss(input.float(), target, p, margin, weight, reduction=reduction).to(input.dtype)


def multilabel_margin_loss_reference(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The multi-label margin loss in plain PyTorch, in float32 for 16-bit inputs; see `multilabel_margin_loss`.

    PyTorch leaves its result for an empty batch unset; here it is 0.
    """
    if not input.numel():
        return input.sum(-1) if reduction == "none" else input.sum()
    wide = input if input.dtype is torch.float64 else input.float()
    return F.multilabel_margin_loss(wide, target, reduction=reduction).to(input.dtype)


def _multi_margin_forward(x: Tensor, target: Tensor, weight: Tensor | None, *rest: Any) -> Tensors:
    *options, save = rest
    weight = None if weight is None else weight.contiguous()
    results = kernels.multi_margin_loss.multi_margin_loss_forward(x, target, weight, *options, save=save)
    look_where_nan(partial(_check_range, "multi_margin_loss", 0, x.shape[1]), results[0], target)
    return results


def _multi_margin_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    x, target, weight, slopes = saved
    weight = None if weight is None else weight.contiguous()
    given = grads[0].contiguous(), x, target, weight, slopes, *rest[:-1]
    return kernels.multi_margin_loss.multi_margin_loss_backward(*given), None, None


multi_margin_loss_operator = Operator(
    "multi_margin_loss(Tensor x, Tensor target, Tensor? weight, int p, float margin, str reduction) -> "
    "(Tensor, Tensor)",
    forward=_multi_margin_forward,
    fake=lambda x, target, weight, p, margin, reduction, save: (
        x.new_empty(target.shape if reduction == "none" else ()),
        x.new_empty(target.shape, dtype=torch.float32) if save else None,
    ),
    saves=lambda given, results: [*given[:3], results[1]],
    backward=_multi_margin_backward,
    fake_backward=lambda grads, saved, *rest: [contiguous_like(saved[0]), None, None],
    reference=multi_margin_loss_reference,
)


def _multilabel_margin_forward(x: Tensor, target: Tensor, reduction: str, save: bool) -> Tensors:
    results = kernels.multilabel_margin_loss.multilabel_margin_loss_forward(x, target, reduction)
    look_where_nan(partial(_check_range, "multilabel_margin_loss", -1, x.shape[1]), results[0], target)
    return results


def _multilabel_margin_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    x, target, counts = saved
    given = grads[0].contiguous(), x, target, counts, rest[0]
    return kernels.multilabel_margin_loss.multilabel_margin_loss_backward(*given), None


multilabel_margin_loss_operator = Operator(
    "multilabel_margin_loss(Tensor x, Tensor target, str reduction) -> (Tensor, Tensor)",
    forward=_multilabel_margin_forward,
    fake=lambda x, target, reduction, save: (
        x.new_empty(x.shape[:1] if reduction == "none" else ()),
        x.new_empty((x.shape[0], x.shape[1] + 1), dtype=torch.int32),
    ),
    saves=lambda given, results: [*given[:2], results[1]],
    backward=_multilabel_margin_backward,
    fake_backward=lambda grads, saved, *rest: [contiguous_like(saved[0]), None],
    reference=multilabel_margin_loss_reference,
)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """w_y / C sum_{c != y} max(0, margin - x_y + x_c)^p of each row x of scores with label y, reduced.

    Args:
        input: scores [C] or [N, C], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under
            autocast.
        target: labels [] or [N], int64.
        p: 1 or 2.
        margin: of the label's score over the others.
        weight: w [C], input's dtype, or None for ones. It gets no gradient.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else target's shape; input's dtype. On a device a label out of range makes the loss
        NaN: raising would wait for the device.

    Raises:
        ValueError: shapes or devices that don't fit together, another p, an unknown reduction.
        TypeError: an input that is not floating point, a target of another dtype.
        IndexError: a label out of range, on the CPU.

    Source: torch.nn.functional.multi_margin_loss (Weston and Watkins 1999).
    """
    if has_torch_function_unary(input):
        arguments = p, margin, weight, size_average, reduce, reduction
        return handle_torch_function(multi_margin_loss, (input,), input, target, *arguments)
    reduction = checked_reduction("multi_margin_loss", reduction, size_average, reduce)
    input, target, weight = autocast_to_float32(input, target, weight)
    check_floating("multi_margin_loss", input=input, weight=weight)
    route = _route("multi_margin_loss", input, target, weight)
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: p must be 1 or 2, got {p!r}")
    rows = input.shape[0] if input.dim() == 2 else 1
    if target.dim() > 1 or target.numel() != rows:
        raise ValueError(
            f"multi_margin_loss: target must be labels [{rows}] for input {tuple(input.shape)}, "
            f"got {tuple(target.shape)}"
        )
    classes = input.shape[-1] if input.dim() else 1
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"multi_margin_loss: weight must be [{classes}] for this input, got {tuple(weight.shape)}")
    weight = None if weight is None else weight.detach()
    options = int(p), float(margin), reduction
    if route is Route.REFERENCE:
        return multi_margin_loss_reference(input, target, weight, *options)
    scores = _with_contiguous_rows(input.reshape(rows, classes))
    loss = multi_margin_loss_operator(route, scores, target.reshape(rows).contiguous(), weight, *options)
    return loss if reduction != "none" else loss.view(target.shape)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 / C sum_{j, c} max(0, 1 - x_{y_j} + x_c) of each row x of scores, over labels y_j and other classes c; reduced.

    Args:
        input: scores [C] or [N, C], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under
            autocast.
        target: input's shape, int64: each row's labels, then -1 and anything.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else input's shape without C; input's dtype. On a device a label out of range makes the
        loss NaN: raising would wait for the device.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, a target of another dtype.
        IndexError: a label out of range, on the CPU.

    Source: torch.nn.functional.multilabel_margin_loss.
    """
    if has_torch_function_unary(input):
        arguments = size_average, reduce, reduction
        return handle_torch_function(multilabel_margin_loss, (input,), input, target, *arguments)
    reduction = checked_reduction("multilabel_margin_loss", reduction, size_average, reduce)
    input, target = autocast_to_float32(input, target)
    check_floating("multilabel_margin_loss", input=input)
    route = _route("multilabel_margin_loss", input, target, None)
    if target.shape != input.shape:
        raise ValueError(
            f"multilabel_margin_loss: target must have the shape {tuple(input.shape)} of input, "
            f"got {tuple(target.shape)}"
        )
    if route is Route.REFERENCE:
        return multilabel_margin_loss_reference(input, target, reduction)
    shape = input.shape if input.dim() == 2 else (1, input.numel())
    scores, labels = _with_contiguous_rows(input.reshape(shape)), target.reshape(shape).contiguous()
    loss = multilabel_margin_loss_operator(route, scores, labels, reduction)
    return loss if reduction != "none" or input.dim() == 2 else loss.view(())


def _route(operator: str, input: Tensor, target: Any, weight: Tensor | None) -> Route:
    """Who computes, after the checks that both losses share."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{operator}: target must be a tensor, got {type(target).__name__}")
    check_device(operator, "target", target, "input", input)
    route = route_of(operator, ("input", "target", "weight"), input, target, weight)
    if input.dim() > 2 or (input.dim() and not input.shape[-1]):
        raise ValueError(f"{operator}: input must be [C] or [N, C] with classes, got {tuple(input.shape)}")
    if target.dtype is not torch.int64:
        raise TypeError(f"{operator}: target must hold labels in int64, got {target.dtype}")
    return route


def _check_range(operator: str, least: int, classes: int, target: Tensor) -> None:
    if target.is_cpu:
        out_of_range = (target < least) | (target >= classes)
        if out_of_range.any():
            label = int(target[out_of_range][0])
            raise IndexError(f"{operator}: target {label} is out of bounds: expected {least} to {classes - 1}")


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()

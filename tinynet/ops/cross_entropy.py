"""Cross-entropy, fused with its softmax."""

from __future__ import annotations

import math
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


def cross_entropy_reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of softmax(input) in plain PyTorch; see `cross_entropy`."""
    return F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The launcher, and a look at the labels where the loss is NaN and looking costs no wait for a device."""
    weight = None if weight is None else weight.contiguous()
    options = ignore_index, reduction, label_smoothing
    results = kernels.cross_entropy.cross_entropy_forward(logits, target, weight, *options, save=save)
    loss = results[0]
    if not target.is_floating_point():
        check_labels("cross_entropy", loss, target, logits.shape[1], ignore_index)
    return results


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    """(dx, dp, None for the weight), each None where not wanted."""
    logits, target, weight, divisor, row_sums = saved
    *options, wanted = rest
    gradients = kernels.cross_entropy.cross_entropy_backward(
        grads[0].contiguous(),
        logits,
        target,
        None if weight is None else weight.contiguous(),
        divisor,
        row_sums,
        *options,
        want_dx=wanted[0],
        want_dtarget=wanted[1],
    )
    return *gradients, None


def _fake(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    save: bool,
) -> Tensors:
    N, _, *S = logits.shape
    return (
        logits.new_empty((N, *S) if reduction == "none" else ()),
        logits.new_empty(1, dtype=torch.float32) if reduction == "mean" else None,
        logits.new_empty((3, math.prod([N, *S])), dtype=torch.float32) if save else None,
    )


cross_entropy_operator = Operator(
    "cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    saves=lambda given, results: [*given[:3], *results[1:]],
    backward=_backward,
    fake_backward=lambda grads, saved, *rest: [*like_saved(grads, saved[:2], rest[-1][:2]), None],
    reference=cross_entropy_reference,
)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum_c w_c p_c log softmax(input)_c of each row of logits, reduced.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...], float32, bfloat16, float16 (kernels) or float64 (reference); any
            strides. In float32 under autocast.
        target: labels [], [N] or [N, d1, ...], int64 or uint8; or class probabilities p of input's shape and dtype,
            which get a gradient too.
        weight: w [C], input's dtype, or None for ones. It gets no gradient.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        ignore_index: rows with this label count for nothing.
        reduction: "mean" (over the weights of the labels that count; NaN where none does), "sum" or "none".
        label_smoothing: p becomes (1 - label_smoothing) p + label_smoothing / C.

    Returns:
        [] for "mean" and "sum", else input's shape without C; input's dtype. On a device a label out of range makes
        the loss NaN: raising would wait for the device.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction, label_smoothing outside [0, 1].
        TypeError: an input that is not floating point, a target of another dtype.
        IndexError: a label out of range, on the CPU.

    Source: torch.nn.functional.cross_entropy; label smoothing: Szegedy et al. 2016.
    """
    if has_torch_function_unary(input):
        arguments = weight, size_average, ignore_index, reduce, reduction, label_smoothing
        return handle_torch_function(cross_entropy, (input,), input, target, *arguments)
    reduction = checked_reduction("cross_entropy", reduction, size_average, reduce)
    input, target, weight = autocast_to_float32(input, target, weight)
    check_floating("cross_entropy", input=input, weight=weight)
    if not isinstance(target, Tensor):
        raise TypeError(f"cross_entropy: target must be a tensor, got {type(target).__name__}")
    check_device("cross_entropy", "target", target, "input", input)
    route = route_of("cross_entropy", ("input", "target", "weight"), input, target, weight)
    _check_cross_entropy(input, target, weight, ignore_index, label_smoothing)
    weight = None if weight is None else weight.detach()
    target = target.long() if target.dtype is torch.uint8 else target
    options = (as_integer(ignore_index), reduction, float(label_smoothing))
    if route is Route.REFERENCE:
        return cross_entropy_reference(input, target, weight, *options)
    logits = as_rows(input, classes=True)
    rows = as_rows(target, classes=target.is_floating_point())
    loss: Tensor = cross_entropy_operator(route, logits, rows, weight, *options)
    if reduction != "none" or input.dim() == 2:
        return loss
    return loss.view(() if input.dim() == 1 else (input.shape[0], *input.shape[2:]))


def _check_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> None:
    if as_integer(ignore_index) is None:
        raise TypeError(f"cross_entropy: ignore_index must be an integer, got {ignore_index!r}")
    if input.dim() == 0:
        raise ValueError("cross_entropy: input must be [C], [N, C] or [N, C, d1, ...], got a scalar")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must be between 0 and 1, got {label_smoothing}")
    class_axis = 0 if input.dim() == 1 else 1
    classes = input.shape[class_axis]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"cross_entropy: weight must be [{classes}] for this input, got {tuple(weight.shape)}")
    if target.shape == input.shape:
        check_floating("cross_entropy", input=input, target=target)
        if ignore_index >= 0:
            raise ValueError(f"cross_entropy: ignore_index ({ignore_index}) goes with labels, not with probabilities")
        return
    labels_shape = input.shape[:class_axis] + input.shape[class_axis + 1 :]
    if target.shape != labels_shape:
        raise ValueError(
            f"cross_entropy: target must be labels {tuple(labels_shape)} or probabilities {tuple(input.shape)} for "
            f"this input, got {tuple(target.shape)}"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"cross_entropy: target must hold labels in int64 or uint8, got {target.dtype}")

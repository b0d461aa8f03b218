"""Rows of classes and their labels, as the losses of several columns take them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from tinynet_kernels import replays


def as_rows(tensor: Tensor, classes: bool) -> Tensor:
    """[N, C] as it is, [1, C] from [C], [N, C, S] from [N, C, d1, ...]; the same without the class axis."""
    lead = 2 if classes else 1
    if tensor.dim() == lead:
        return tensor
    return tensor.unsqueeze(0) if tensor.dim() < lead else tensor.flatten(lead)


def look_where_nan(check: Callable[..., None], loss: Tensor, *operands: Tensor | None) -> None:
    """Checks the operands where a loss is NaN, as for a label out of range, unless looking would wait for a device."""
    if loss.is_cpu:
        replays.on_host(partial(_look, check), loss, *operands)


def _look(check: Callable[..., None], loss: Tensor, *operands: Tensor | None) -> None:
    if bool(loss.isnan().any()) if loss.dim() else math.isnan(loss.item()):
        check(*operands)


def check_labels(operator: str, loss: Tensor, target: Tensor, classes: int, ignore_index: int) -> None:
    """Looks for labels out of range where the loss is NaN, as they make it.

    Raises:
        IndexError: a label neither in [0, classes) nor `ignore_index`.
    """
    look_where_nan(partial(_check_labels, operator, classes, ignore_index), loss, target)


def _check_labels(operator: str, classes: int, ignore_index: int, target: Tensor) -> None:
    out_of_range = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if out_of_range.any():
        label = int(target[out_of_range][0])
        raise IndexError(f"{operator}: target {label} is out of bounds: expected 0 to {classes - 1} or ignore_index")

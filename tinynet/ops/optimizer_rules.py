"""Optimizer steps by `tinynet_kernels.optimizer_rules`: the definitions in plain PyTorch, and the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tinynet.ops import kernels
from tinynet.ops.optimizer import Bucket, Number, buckets_of, of_row, taken_unless, widened
from tinynet_kernels.optimizer_spec import Rule

if TYPE_CHECKING:
    from tinynet_kernels.optimizer import PointerTable

# A rule, and its numbers at one step; those on the device are tensors, of one element or of one for each parameter.
Plan = tuple[Rule, Sequence[Number]]


def _rmsprop(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    lr, alpha, one_minus_alpha, eps, momentum = scalars
    new = [alpha * states[0] + one_minus_alpha * g * g]
    variance = new[0]
    if rule.centered:
        average = alpha * states[-1] + one_minus_alpha * g
        variance = variance - average * average
    update = g / (variance.sqrt() + eps)
    if rule.has_momentum:
        update = momentum * states[1] + update
        new.append(update)
    if rule.centered:
        new.append(average)
    return [p - lr * update, *new]


def _adagrad(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    lr, eps = scalars
    total = states[0] + g * g
    return [p - lr * g / (total.sqrt() + eps), total]


def _adadelta(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    lr, rho, one_minus_rho, eps = scalars
    square = rho * states[0] + one_minus_rho * g * g
    delta = g * (states[1] + eps).sqrt() / (square + eps).sqrt()
    return [p - lr * delta, square, rho * states[1] + one_minus_rho * delta * delta]


def _adamax(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    lr, beta1, one_minus_beta1, beta2, eps = scalars
    average = beta1 * states[0] + one_minus_beta1 * g
    largest = torch.maximum(beta2 * states[1], g.abs() + eps)
    return [p - lr * average / largest, average, largest]


def _nadam(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    gradient_step, average_step, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_root, eps = scalars
    average = beta1 * states[0] + one_minus_beta1 * g
    square = beta2 * states[1] + one_minus_beta2 * g * g
    step = (gradient_step * g + average_step * average) / (square.sqrt() * inverse_root + eps)
    return [p - step, average, square]


def _radam(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    step_size, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, is_rectified = scalars
    average = beta1 * states[0] + one_minus_beta1 * g
    square = beta2 * states[1] + one_minus_beta2 * g * g
    rectified = torch.as_tensor(is_rectified != 0, device=p.device)
    return [p - step_size * torch.where(rectified, average / (square.sqrt() + eps), average), average, square]


def _lion(p: Tensor, g: Tensor, states: Sequence[Tensor], rule: Rule, scalars: Sequence[Any]) -> list[Tensor]:
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2 = scalars
    direction = beta1 * states[0] + one_minus_beta1 * g
    return [p - lr * direction.sign(), beta2 * states[0] + one_minus_beta2 * g]


_REFERENCES: dict[str, Callable[..., list[Tensor]]] = {
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "adadelta": _adadelta,
    "adamax": _adamax,
    "nadam": _nadam,
    "radam": _radam,
    "lion": _lion,
}


def rule_reference(
    parameter: Tensor,
    gradient: Tensor,
    *states: Tensor,
    rule: Rule,
    scalars: Sequence[Number],
    weight_decay: float,
    decay: Number,
) -> None:
    """One step of one parameter and its states, in place. 16-bit tensors are computed in float32 and rounded once."""
    p, g = widened(parameter), widened(gradient)
    if rule.maximize:
        g = -g
    if rule.has_weight_decay:
        g = g + weight_decay * p
    new = _REFERENCES[rule.name](decay * p, g, [widened(state) for state in states], rule, scalars)
    for tensor, value in zip((parameter, *states), new, strict=True):
        tensor.copy_(value)


def rule_steps(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: dict[str, Sequence[Tensor]],
    phases: Sequence[Any],
    plan: Callable[[Bucket], Plan],
    *,
    weight_decay: float,
    decay: Number,
    on_device: bool = False,
    found_inf: Tensor | None = None,
    tables: list[PointerTable] | None = None,
) -> None:
    """One step of many parameters, in place.

    Args:
        params: floating point, any shapes, dtypes and devices.
        grads: one per parameter, dense.
        states: by name and in the rule's order, one per parameter, of its shape.
        phases: what the plan of each parameter depends on, such as the number of its step; None on the device.
        plan: the rule and its numbers for the parameters of a bucket.
        weight_decay: times the parameter is added to the gradient, where the rule has it.
        decay: what parameters are multiplied by first.
        on_device: whether the numbers are.
        found_inf: of a GradScaler, one element; where it isn't 0, nothing changes.
        tables: a list of the caller's, empty at first; given again at the next step, it saves time.

    Raises:
        RuntimeError: a sparse gradient, or a step under CUDA graph capture.
        ValueError: tensors whose shapes or numbers don't fit together.
    """
    columns = {"params": params, "grads": grads, **states}
    for bucket in buckets_of("optimizer", columns, phases, tables, on_device=on_device):
        rule, scalars = plan(bucket)
        if bucket.table is None:
            for index, row in enumerate(bucket.rows):
                numbers = [of_row(index, each) for each in scalars]
                with taken_unless(found_inf, row[0], *row[2:]):
                    rule_reference(*row, rule=rule, scalars=numbers, weight_decay=weight_decay, decay=decay)
        else:
            options = {"reached": bucket.columns, "found_inf": found_inf}
            kernels.optimizer_rules.rule_step(bucket.table, rule, weight_decay, decay, *scalars, **options)
            increment_version(bucket.written)

"""Clipping gradients in place, by their total norm and by value."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import utils

from tinynet.dispatch import Route, is_plain_eager, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import is_dense
from tinynet.ops.optimizer import share_memory
from tinynet_kernels import replays

if TYPE_CHECKING:
    from tinynet_kernels.optimizer import PointerTable

_NORMS = {1.0: "1", 2.0: "2", float("inf"): "inf"}


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales all gradients in place so that their total norm is at most `max_norm`.

    Two launches for all gradients of one dtype, and no wait for the device unless `error_if_nonfinite` asks for one.
    What the kernels don't take (other norms, float64, gradients with gaps or that share memory, on several devices)
    goes through PyTorch's function.

    Args:
        parameters: a tensor or several; those without a gradient are skipped.
        max_norm: the largest norm that stays as it is.
        norm_type: 1, 2, inf, or any other that torch.linalg.vector_norm takes.
        error_if_nonfinite: whether a norm that is infinite or NaN is an error.
        foreach: accepted for compatibility with PyTorch; no effect.

    Returns:
        The total norm before, a scalar; float32 where PyTorch's is of the gradients' 16-bit dtype.

    Raises:
        RuntimeError: the norm is not finite, with `error_if_nonfinite`; nothing was scaled then.

    Source: torch.nn.utils.clip_grad_norm_; Pascanu et al. 2013, "On the difficulty of training recurrent neural
    networks".

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm_([weight], max_norm=1.0), weight.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
    """
    params = _listed(parameters)
    norm = _NORMS.get(float(norm_type))
    groups = None if norm is None else _groups(params)
    if norm is None or groups is None:
        return utils.clip_grad_norm_(params, max_norm, norm_type, error_if_nonfinite, _is_foreach(params, foreach))
    tables = [_tables.of(group) for group in groups]
    partial = kernels.clip_grad.gradient_partials(tables, norm, groups)
    if error_if_nonfinite and not (partial.amax() if norm == "inf" else partial.sum()).isfinite():
        raise RuntimeError(
            f"clip_grad_norm_: the total norm of order {norm_type} of the gradients is not finite; "
            "error_if_nonfinite=False scales them all the same"
        )
    total = kernels.clip_grad.clip_norm(tables, partial, max_norm, norm, groups)
    increment_version([gradient for group in groups for gradient in group[1]])
    return total


@torch.no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clips each element of all gradients to [-clip_value, clip_value], in place and in one launch for each dtype.

    Args:
        parameters: a tensor or several; those without a gradient are skipped.
        clip_value: the largest absolute value that stays as it is.
        foreach: accepted for compatibility with PyTorch; no effect.

    Source: torch.nn.utils.clip_grad_value_.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> weight.grad = torch.tensor([3.0, -0.5, -4.0])
        >>> clip_grad_value_([weight], 1.0)
        >>> weight.grad
        tensor([ 1.0000, -0.5000, -1.0000])
    """
    params = _listed(parameters)
    groups = _groups(params)
    if groups is None:
        if any(parameter.grad is not None for parameter in params):  # PyTorch's function refuses an empty list
            utils.clip_grad_value_(params, clip_value, _is_foreach(params, foreach))
        return
    for group in groups:
        kernels.clip_grad.clip_value(_tables.of(group), clip_value, group)
    increment_version([gradient for group in groups for gradient in group[1]])


Group = tuple[list[Tensor], list[Any]]  # parameters and their gradients


class _Tables(threading.local):
    """The table of the last call for as many tensors of one dtype and device, of this thread: to renew it is quick."""

    def __init__(self) -> None:
        self._tables: dict[Any, PointerTable] = {}

    def of(self, group: Group) -> PointerTable:
        if replays.recorder() is not None:  # a replay reads the table, which later calls would change
            return kernels.optimizer.PointerTable(group)
        params, gradients = group
        key = len(params), gradients[0].dtype, gradients[0].device
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = kernels.optimizer.PointerTable(group)
        else:
            table.update(group)
        return table


_tables = _Tables()


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _is_foreach(params: list[Tensor], foreach: bool | None) -> bool | None:
    """`foreach` for PyTorch's functions: its fused ones do not write to gradients with the lazy negative bit."""
    return False if any(each.grad is not None and each.grad.is_neg() for each in params) else foreach


def _groups(params: list[Tensor]) -> list[Group] | None:
    """Parameters and gradients that have elements, by dtype; None where the kernels don't take all of them, or none."""
    params = [parameter for parameter in params if parameter.grad is not None and parameter.grad.numel()]
    gradients: list[Any] = [parameter.grad for parameter in params]
    if not params or not is_plain_eager(*gradients) or share_memory(gradients):
        return None
    groups: dict[torch.dtype, Group] = {}
    for parameter, gradient in zip(params, gradients, strict=True):
        if gradient.device != params[0].device or gradient.dtype is not parameter.dtype or not is_dense(gradient):
            return None
        group = groups.setdefault(gradient.dtype, ([], []))
        group[0].append(parameter)
        group[1].append(gradient)
    firsts = [group[1][0] for group in groups.values()]
    served = all(route_of("clip_grad", ("parameters",), first) is Route.KERNELS for first in firsts)
    return list(groups.values()) if served else None

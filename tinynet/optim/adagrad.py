"""Adagrad and Adadelta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tinynet.ops.optimizer_rules import Plan
from tinynet.optim.optimizer import OPTIONS_ADDED_LATER
from tinynet.optim.rules import RuleOptimizer
from tinynet_kernels.optimizer_spec import Rule


class Adagrad(RuleOptimizer):
    """Gradients divided by the root of the sum of all their squares, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate.
        lr_decay: step t has the learning rate lr / (1 + (t - 1) lr_decay).
        weight_decay: L2 penalty, added to the gradient.
        initial_accumulator_value: of the sum.
        eps: added to the denominator.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach, fused, differentiable: accepted for compatibility with PyTorch; the last must be False.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `sum`, in the parameter's dtype and layout, and `step`. Source: torch.optim.Adagrad.
    """

    rule = "adagrad"
    at_least_0 = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
    fractions = ()
    later = OPTIONS_ADDED_LATER

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:  # now, as in PyTorch, whose Adagrad can continue no others
            for parameter in group["params"]:
                self._state_of(parameter, self._states(group), group)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        return rule, (group["lr"] / (1.0 + (phase - 1.0) * group["lr_decay"]), group["eps"])

    def _first(self, name: str, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        return torch.full_like(parameter, float(group["initial_accumulator_value"]))


class Adadelta(RuleOptimizer):
    """Gradients scaled by the root of the average squared step over that of the average square, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: factor of the step.
        rho: decay of both averages, in [0, 1).
        eps: added to both averages.
        weight_decay: L2 penalty, added to the gradient.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach: accepted for compatibility with PyTorch; no effect.
        capturable: whether a CUDA graph can hold steps; see `Adam`.
        differentiable: must be False.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `square_avg` and `acc_delta`, in the parameter's dtype and layout, and `step`. Source: torch.optim.Adadelta.
    """

    rule = "adadelta"
    at_least_0 = ("lr", "eps", "weight_decay")
    fractions = ("rho",)
    later = (*RuleOptimizer.later, ("capturable", False))

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "square_avg", "acc_delta"

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        rho = group["rho"]
        return rule, (group["lr"], rho, 1.0 - rho, group["eps"])

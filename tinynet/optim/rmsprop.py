"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinynet.ops.optimizer_rules import Plan
from tinynet.optim.rules import RuleOptimizer
from tinynet_kernels.optimizer_spec import Rule


class RMSprop(RuleOptimizer):
    """Gradients divided by the root of a running average of their squares, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate.
        alpha: decay of the average.
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        momentum: decay of the sum of updates; 0 for none.
        centered: whether to subtract the square of the average gradient.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach: accepted for compatibility with PyTorch; no effect.
        capturable: whether a CUDA graph can hold steps; see `Adam`.
        differentiable: must be False.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `square_avg`, with momentum `momentum_buffer`, centered `grad_avg`, in the parameter's dtype and layout, and
    `step`. Source: torch.optim.RMSprop.
    """

    rule = "rmsprop"
    at_least_0 = ("lr", "alpha", "eps", "weight_decay", "momentum")
    fractions = ()
    later = (*RuleOptimizer.later, ("momentum", 0), ("centered", False), ("capturable", False))

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ["square_avg"]
        if group["momentum"] > 0:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        return tuple(names)

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        lr, alpha, eps, momentum = (group[name] for name in ("lr", "alpha", "eps", "momentum"))
        rule = rule._replace(centered=bool(group["centered"]), has_momentum=momentum > 0)
        return rule, (lr, alpha, 1.0 - alpha, eps, momentum)

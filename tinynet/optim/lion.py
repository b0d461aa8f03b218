"""Lion, which PyTorch does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinynet.ops.optimizer_rules import Plan
from tinynet.optim.rules import RuleOptimizer
from tinynet_kernels.optimizer_spec import Rule


class Lion(RuleOptimizer):
    """Steps of one size, in the direction of an average's sign, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: the size of a step; a third to a tenth of AdamW's.
        betas: share of the average in the direction, and its decay, each in [0, 1).
        weight_decay: each step multiplies the parameter by 1 - lr weight_decay; three to ten times AdamW's.
        maximize: whether to maximize the objective instead of minimizing it.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `exp_avg`, in the parameter's dtype and layout, and `step`. Source: Chen et al. 2023, arXiv:2302.06675.
    """

    rule = "lion"
    at_least_0 = ("lr", "weight_decay")
    fractions = ("betas",)
    decouples_weight_decay = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        return rule, (lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2)

"""LAMB, which PyTorch does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinynet.ops.lamb import lamb
from tinynet.optim.rules import RuleOptimizer


class LAMB(RuleOptimizer):
    """Adam whose step for each parameter tensor is as long as the tensor times `lr`, in fused kernels.

    For large batches. Parameters of norm 0, as new biases, take Adam's own step.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: length of a step, as a part of the parameter's.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        eps: added to the denominator.
        weight_decay: times the parameter is added to Adam's step, before that is scaled.
        maximize: whether to maximize the objective instead of minimizing it.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `exp_avg` and `exp_avg_sq`, in the parameter's dtype and layout, and `step`. Source: You et al. 2020, "Large
    batch optimization for deep learning", algorithm 2, with Adam's corrections of both averages.

    Example:
        >>> model = tinynet.nn.Linear(3, 4)
        >>> optimizer = tinynet.optim.LAMB(model.parameters(), lr=2e-3, weight_decay=0.01)
    """

    at_least_0 = ("lr", "eps", "weight_decay")
    fractions = ("betas",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def _step_group(self, group: dict[str, Any], tables: list[Any], found_inf: Tensor | None) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self._state_of(parameter, ("exp_avg", "exp_avg_sq"), group) for parameter in params]
        steps = [self._phase(state, group) for state in states]
        beta1, beta2 = map(float, group["betas"])
        lamb(
            params,
            [parameter.grad for parameter in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            steps,
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
            tables=tables,
        )
        for state, step in zip(states, steps, strict=True):
            self._count(state, step)

"""Adamax, NAdam and RAdam."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinynet.ops.optimizer_rules import Plan
from tinynet.optim.optimizer import count
from tinynet.optim.rules import RuleOptimizer
from tinynet_kernels.optimizer_spec import Rule


class Adamax(RuleOptimizer):
    """Adam with the largest gradient so far in place of the root of their average square, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of the largest, each in [0, 1).
        eps: added to the absolute gradient.
        weight_decay: L2 penalty, added to the gradient.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach, capturable, differentiable: accepted for compatibility with PyTorch; the last two must be False.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `exp_avg` and `exp_inf`, in the parameter's dtype and layout, and `step`. Source: torch.optim.Adamax.
    """

    rule = "adamax"
    at_least_0 = ("lr", "eps", "weight_decay")
    fractions = ("betas",)
    later = (*RuleOptimizer.later, ("capturable", False))

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_inf"

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        lr, eps, (beta1, beta2) = float(group["lr"]), float(group["eps"]), map(float, group["betas"])
        return rule, (lr / (1.0 - beta1**phase), beta1, 1.0 - beta1, beta2, eps)


class NAdam(RuleOptimizer):
    """Adam with Nesterov momentum, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        momentum_decay: how fast the momentum grows to betas[0].
        decoupled_weight_decay: whether each step multiplies the parameter by 1 - lr weight_decay instead.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach, capturable, differentiable: accepted for compatibility with PyTorch; the last two must be False.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `exp_avg` and `exp_avg_sq`, in the parameter's dtype and layout, `step` and `mu_product`.

    Source: torch.optim.NAdam.
    """

    rule = "nadam"
    at_least_0 = ("lr", "eps", "weight_decay", "momentum_decay")
    fractions = ("betas",)
    later = (*RuleOptimizer.later, ("capturable", False), ("decoupled_weight_decay", False))

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        step, product = phase
        lr, eps, (beta1, beta2) = float(group["lr"]), float(group["eps"]), map(float, group["betas"])
        following = _momentum(step + 1.0, group)
        gradient_step = lr * (1.0 - _momentum(step, group)) / (1.0 - product)
        average_step = lr * following / (1.0 - product * following)
        moments = beta1, 1.0 - beta1, beta2, 1.0 - beta2
        return rule, (gradient_step, average_step, *moments, 1.0 / math.sqrt(1.0 - beta2**step), eps)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for values in self.state.values():
            if "mu_product" in values:
                values["mu_product"] = count(float(values["mu_product"]))

    def _state_of(self, parameter: Tensor, names: tuple[str, ...], group: dict[str, Any]) -> dict[str, Any]:
        state = super()._state_of(parameter, names, group)
        state.setdefault("mu_product", count(1.0))
        return state

    def _phase(self, state: dict[str, Any], group: dict[str, Any]) -> Any:
        """The number of the step, and the product of all momenta up to it."""
        step = super()._phase(state, group)
        return step, (state["mu_product"] * _momentum(step, group)).item()

    def _count(self, state: dict[str, Any], phase: Any) -> None:
        state["step"].fill_(phase[0])
        state["mu_product"].fill_(phase[1])


def _momentum(step: float, group: dict[str, Any]) -> float:
    return float(group["betas"][0]) * (1.0 - 0.5 * 0.96 ** (step * float(group["momentum_decay"])))


class RAdam(RuleOptimizer):
    """Adam whose first steps don't divide by averages of few squares, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        decoupled_weight_decay: whether each step multiplies the parameter by 1 - lr weight_decay instead.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach, capturable, differentiable: accepted for compatibility with PyTorch; the last two must be False.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `exp_avg` and `exp_avg_sq`, in the parameter's dtype and layout, and `step`. Source: torch.optim.RAdam.
    """

    rule = "radam"
    at_least_0 = ("lr", "eps", "weight_decay")
    fractions = ("betas",)
    later = (*RuleOptimizer.later, ("capturable", False), ("decoupled_weight_decay", False))

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        lr, eps, (beta1, beta2) = float(group["lr"]), float(group["eps"]), map(float, group["betas"])
        moments = beta1, 1.0 - beta1, beta2, 1.0 - beta2
        step_size, correction = lr / (1.0 - beta1**phase), 1.0 - beta2**phase
        longest = 2.0 / (1.0 - beta2) - 1.0  # how many gradients the average of squares holds in the end, and now
        length = longest - 2.0 * phase * beta2**phase / correction
        if length <= 5.0:
            return rule, (step_size, *moments, eps)
        rectification = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return rule._replace(rectified=True), (step_size * math.sqrt(rectification * correction), *moments, eps)

"""Adamax, NAdam and RAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tinynet.ops.optimizer import Bucket, stacked
from tinynet.ops.optimizer_rules import Plan
from tinynet.optim.optimizer import count, counts_of_state
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
        foreach: accepted for compatibility with PyTorch; no effect.
        capturable: whether a CUDA graph can hold steps; see `Adam`.
        differentiable: must be False.

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
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
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
        foreach: accepted for compatibility with PyTorch; no effect.
        capturable: whether a CUDA graph can hold steps; see `Adam`.
        differentiable: must be False.

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
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        following = _momentum(step + 1.0, group)
        gradient_step = lr * (1.0 - _momentum(step, group)) / (1.0 - product)
        average_step = lr * following / (1.0 - product * following)
        moments = beta1, 1.0 - beta1, beta2, 1.0 - beta2
        return rule, (gradient_step, average_step, *moments, (1.0 - beta2**step) ** -0.5, eps)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            counts_of_state("mu_product", group["params"], self.state, self._is_on_device(group))

    def _state_of(self, parameter: Tensor, names: tuple[str, ...], group: dict[str, Any]) -> dict[str, Any]:
        state = super()._state_of(parameter, names, group)
        if "mu_product" not in state:
            state["mu_product"] = count(1.0, parameter if self._is_on_device(group) else None)
        return state

    def _phase(self, state: dict[str, Any], group: dict[str, Any]) -> Any:
        """The number of the step, and the product of all momenta up to it."""
        step = super()._phase(state, group)
        return step, (state["mu_product"] * _momentum(step, group)).item()

    def _count(self, state: dict[str, Any], phase: Any) -> None:
        state["step"].fill_(phase[0])
        state["mu_product"].fill_(phase[1])

    def _phase_on_device(self, states: list[dict[str, Any]], group: dict[str, Any], bucket: Bucket) -> Any:
        products = stacked([state["mu_product"] for state in states], bucket)
        return super()._phase_on_device(states, group, bucket), products

    def _count_on_device(self, states: list[dict[str, Any]], group: dict[str, Any], found_inf: Tensor | None) -> None:
        super()._count_on_device(states, group, found_inf)
        products = [state["mu_product"] for state in states]
        momenta = _momentum(torch.stack([state["step"] for state in states]).double(), group)
        if found_inf is not None:
            momenta = torch.where(found_inf == 0, momenta, 1.0)
        torch._foreach_mul_(products, momenta.to(products[0].dtype).unbind())  # pyright: ignore[reportPrivateImportUsage]


def _momentum(step: Any, group: dict[str, Any]) -> Any:
    return group["betas"][0] * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))


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
        foreach: accepted for compatibility with PyTorch; no effect.
        capturable: whether a CUDA graph can hold steps; see `Adam`.
        differentiable: must be False.

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
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        moments = beta1, 1.0 - beta1, beta2, 1.0 - beta2
        step_size, correction = lr / (1.0 - beta1**phase), 1.0 - beta2**phase
        longest = 2.0 / (1.0 - beta2) - 1.0  # how many gradients the average of squares holds in the end, and now
        if longest <= 5.0:
            return rule, (step_size, *moments, eps, 0.0)
        length = longest - 2.0 * phase * beta2**phase / correction
        is_rectified = (length > 5.0) * 1.0
        rectification = is_rectified * (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        factor = (rectification * correction) ** 0.5 + (1.0 - is_rectified)
        return rule, (step_size * factor, *moments, eps, is_rectified)

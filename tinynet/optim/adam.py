"""Adam, and AdamW with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tinynet.ops.optimizer import adam
from tinynet.optim.optimizer import (
    OPTIONS_ADDED_LATER,
    FusedOptimizer,
    check_options,
    count,
    counts_of_state,
    number,
)


class Adam(FusedOptimizer):
    """Adam, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate, a number or a tensor of one element (on the CPU, or each step waits for the device; with
            `capturable`, on the parameters' device).
        betas: decay rates of the running averages of the gradient and of its square, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: whether to divide by the maximum of all averages of squares so far.
        foreach, fused: accepted for compatibility with PyTorch; no effect.
        maximize: whether to maximize the objective instead of minimizing it.
        capturable: whether counts of steps, learning rates that are tensors, and what a GradScaler found stay on the
            device, so that a CUDA graph can hold steps. Otherwise these numbers cost less on the host.
        differentiable: must be False.
        decoupled_weight_decay: whether to use `AdamW`'s weight decay instead of the L2 penalty.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `step`, a float tensor on the CPU or, with `capturable`, on the parameter's device, and `exp_avg`,
    `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`, in the parameter's dtype and layout. Source: torch.optim.Adam;
    Kingma and Ba 2015.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            counts_of_state("step", group["params"], self.state, self._is_on_device(group))

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in (
            ("amsgrad", False),
            ("capturable", False),
            ("decoupled_weight_decay", False),
            *OPTIONS_ADDED_LATER,
        ):
            group.setdefault(name, value)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, at_least_0=("lr", "eps", "weight_decay"))
        betas = group.get("betas")
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas: got {betas!r}, expected two numbers")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"betas[{index}]: got {beta}, expected a number in [0, 1)")

    def _step_group(self, group: dict[str, Any], tables: list[Any], found_inf: Tensor | None) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        amsgrad, capturable = group["amsgrad"], self._is_on_device(group)
        states = [self._state_of(parameter, amsgrad, capturable) for parameter in params]
        device = params[0].device if capturable else None
        beta1, beta2 = number(group["betas"], device)
        adam(
            params,
            [parameter.grad for parameter in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if amsgrad else [],
            [state["step"] for state in states],
            amsgrad=amsgrad,
            beta1=beta1,
            beta2=beta2,
            lr=number(group["lr"], device),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            maximize=group["maximize"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            capturable=capturable,
            found_inf=found_inf,
            tables=tables,
        )

    def _state_of(self, parameter: Tensor, amsgrad: bool, capturable: bool) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = count(0.0, parameter if capturable else None)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if amsgrad and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class AdamW(Adam):
    """Adam with decoupled weight decay, which does not affect the moments.

    Arguments and state as in `Adam`, except `weight_decay`: each step multiplies the parameter by 1 - lr weight_decay.

    Source: torch.optim.AdamW; Loshchilov and Hutter 2019, "Decoupled weight decay regularization".
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        group["decoupled_weight_decay"] = True  # even if an Adam state was loaded

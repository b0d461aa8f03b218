"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tinynet.ops.optimizer import sgd
from tinynet.optim.optimizer import OPTIONS_ADDED_LATER, FusedOptimizer, check_options, number


class SGD(FusedOptimizer):
    """Stochastic gradient descent with momentum, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate, a number or a tensor of one element (on the CPU, or each step waits for the device; with
            `fused`, on the parameters' device).
        momentum: factor by which the velocity decays per step; 0 for no momentum.
        dampening: from the second step on, the velocity gets (1 - dampening) times the gradient.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: whether to use Nesterov momentum.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach: accepted for compatibility with PyTorch; no effect.
        differentiable: must be False.
        fused: whether a learning rate and what a GradScaler found stay on the device, so that no step waits for it. The
            kernels are the same.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `momentum_buffer`, in the parameter's dtype and layout. Source: torch.optim.SGD.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _is_on_device(self, group: dict[str, Any]) -> bool:
        return bool(group["fused"])

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in (("nesterov", False), *OPTIONS_ADDED_LATER):
            group.setdefault(name, value)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, at_least_0=("lr", "momentum", "weight_decay"), finite=("dampening",))
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov: needs momentum above 0 and dampening 0, got momentum {group['momentum']} "
                f"and dampening {group['dampening']}"
            )

    def _step_group(self, group: dict[str, Any], tables: list[Any], found_inf: Tensor | None) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        momentum = float(group["momentum"])
        states = [self.state[parameter] for parameter in params] if momentum else []
        buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
        sgd(
            params,
            [parameter.grad for parameter in params],
            buffers,
            lr=number(group["lr"], params[0].device if self._is_on_device(group) else None),
            momentum=momentum,
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            found_inf=found_inf,
            tables=tables,
        )
        for state, buffer in zip(states, buffers, strict=True):
            state["momentum_buffer"] = buffer

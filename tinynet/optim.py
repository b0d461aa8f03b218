"""Optimizers with torch.optim's names, arguments, parameter groups and state_dict, in fused kernels.

`SGD`, `Adam` and `AdamW` are drop-in replacements: PyTorch's learning-rate schedulers and GradScaler work with them,
and a state_dict can be loaded in both directions. One launch updates all parameters of a group that share device, dtype
and step count. As in PyTorch, optimizer state has the parameter's dtype; 16-bit parameters are updated in float32 and
rounded once per step.

Differences from torch.optim: `foreach` and `fused` are accepted but have no effect (`tinynet.engine` chooses the
implementation). These are errors: `capturable` and `differentiable`; complex parameters; sparse gradients; a parameter
that appears twice in a group; hyperparameters that are not finite.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from tinynet.ops.optimizer import adam, sgd

__all__ = ["SGD", "Adam", "AdamW"]


class _Optimizer(torch.optim.Optimizer):
    """The base class: checks groups, calls the closure, and caches the tables of addresses between steps."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._tables: defaultdict[int, list[Any]] = defaultdict(list)
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            self._complete(group)
            self._check_group(group)
        _check_state_shapes(state["state"])
        super().__setstate__(state)
        self._tables = defaultdict(list)  # tables hold memory addresses, which are valid only in this process

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `step` as torch.optim.Optimizer does, but calls that wrapper only if a profiler or a hook is active."""
        profiled = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: _Optimizer, *args: Any, **kwargs: Any) -> Any:
            if (
                _profiler_enabled()
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
            ):
                return profiled(self, *args, **kwargs)
            return func(self, *args, **kwargs)

        return step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets all gradients to None or, without `set_to_none`, to zero; see torch.optim.Optimizer.zero_grad."""
        if not set_to_none or _profiler_enabled() or torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as torch.optim.Optimizer does.

        Args:
            param_group: a dict of "params" and the options that differ from the defaults.

        Raises:
            ValueError: an option out of range, or a parameter given twice.
            TypeError: a complex parameter.
        """
        if isinstance(param_group, dict):
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        try:
            if len(params) != len(set(params)):
                raise ValueError("params: a parameter is given twice in one group")
            if any(parameter.is_complex() for parameter in params):
                raise TypeError("params: complex parameters are not supported")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's result, or None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            self._step_group(group, self._tables[index])
        return loss

    def _step_group(self, group: dict[str, Any], tables: list[Any]) -> None:
        raise NotImplementedError

    def _complete(self, group: dict[str, Any]) -> None:
        """Adds to a loaded group the options that older versions of PyTorch did not save."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError for an option that is missing, not finite or out of range."""
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate, a number or a tensor of one element (on the CPU; otherwise each step waits for the device).
        momentum: factor by which the velocity decays per step; 0 for no momentum.
        dampening: from the second step on, the velocity gets (1 - dampening) times the gradient.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: whether to use Nesterov momentum.
        maximize: whether to maximize the objective instead of minimizing it.
        foreach, fused: accepted for compatibility with PyTorch; no effect.
        differentiable: must be False.

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

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in (("nesterov", False), *_OPTIONS_ADDED_LATER):
            group.setdefault(name, value)

    def _check_group(self, group: dict[str, Any]) -> None:
        _check_options(group, at_least_0=("lr", "momentum", "weight_decay"), finite=("dampening",))
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov: needs momentum above 0 and dampening 0, got momentum {group['momentum']} "
                f"and dampening {group['dampening']}"
            )

    def _step_group(self, group: dict[str, Any], tables: list[Any]) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        momentum = float(group["momentum"])
        states = [self.state[parameter] for parameter in params] if momentum else []
        buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
        sgd(
            params,
            [parameter.grad for parameter in params],
            buffers,
            lr=float(group["lr"]),
            momentum=momentum,
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            tables=tables,
        )
        for state, buffer in zip(states, buffers, strict=True):
            state["momentum_buffer"] = buffer


class Adam(_Optimizer):
    """Adam, in fused kernels.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate, a number or a tensor of one element (on the CPU; otherwise each step waits for the device).
        betas: decay rates of the running averages of the gradient and of its square, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: whether to divide by the maximum of all averages of squares so far.
        foreach, fused: accepted for compatibility with PyTorch; no effect.
        maximize: whether to maximize the objective instead of minimizing it.
        capturable, differentiable: must be False.
        decoupled_weight_decay: whether to use `AdamW`'s weight decay instead of the L2 penalty.

    Raises:
        ValueError: a hyperparameter is out of range or not finite.

    State: `step`, a float tensor on the CPU, and `exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`, in
    the parameter's dtype and layout. Source: torch.optim.Adam; Kingma and Ba 2015.
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
        if capturable:
            raise ValueError("capturable: CUDA graph capture of the step is not supported, expected False")
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
        for values in self.state.values():
            if "step" in values:  # PyTorch may have saved a number, or a tensor on the GPU
                values["step"] = torch.tensor(float(values["step"]), dtype=_step_dtype(), device="cpu")

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in (
            ("amsgrad", False),
            ("capturable", False),
            ("decoupled_weight_decay", False),
            *_OPTIONS_ADDED_LATER,
        ):
            group.setdefault(name, value)

    def _check_group(self, group: dict[str, Any]) -> None:
        _check_options(group, at_least_0=("lr", "eps", "weight_decay"))
        betas = group.get("betas")
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas: got {betas!r}, expected two numbers")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"betas[{index}]: got {beta}, expected a number in [0, 1)")

    def _step_group(self, group: dict[str, Any], tables: list[Any]) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        amsgrad = group["amsgrad"]
        states = [self._state_of(parameter, amsgrad) for parameter in params]
        beta1, beta2 = group["betas"]
        adam(
            params,
            [parameter.grad for parameter in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if amsgrad else [],
            [state["step"] for state in states],
            amsgrad=amsgrad,
            beta1=float(beta1),
            beta2=float(beta2),
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            maximize=group["maximize"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            tables=tables,
        )

    def _state_of(self, parameter: Tensor, amsgrad: bool) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=_step_dtype(), device="cpu")
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


# Options that PyTorch added to its optimizers over time, with the values that older state_dicts imply.
_OPTIONS_ADDED_LATER = (("maximize", False), ("foreach", None), ("differentiable", False), ("fused", None))


def _step_dtype() -> torch.dtype:
    """The dtype of step counts, as in PyTorch: float32 (exact up to 2^24) unless the default dtype is float64."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def _check_options(group: dict[str, Any], at_least_0: tuple[str, ...], finite: tuple[str, ...] = ()) -> None:
    for name in (*at_least_0, *finite):
        value = group.get(name)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name}: got a tensor of shape {tuple(value.shape)}, expected one element")
        if not isinstance(value, (float, int, Tensor, Real)):
            raise ValueError(f"{name}: got {value!r}, expected a number")
        if not math.isfinite(value) or (name in at_least_0 and value < 0):
            raise ValueError(f"{name}: got {float(value)}, expected a finite number, not below 0")
    if group["differentiable"]:
        raise ValueError("differentiable: steps are not differentiable, expected False")
    if group["fused"] and group["foreach"]:
        raise ValueError("fused and foreach: expected at most one of them to be True")


def _check_state_shapes(state: dict[Any, dict[str, Any]]) -> None:
    for parameter, values in state.items():
        if not isinstance(parameter, Tensor):
            continue  # PyTorch keeps entries that belong to no parameter
        for name, value in values.items():
            if name != "step" and isinstance(value, Tensor) and value.shape != parameter.shape:
                raise ValueError(
                    f"state {name}: got shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}"
                )

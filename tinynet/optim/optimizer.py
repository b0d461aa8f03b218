"""The base of all optimizers: groups and their checks, the closure, and the tables of addresses between steps."""

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

from tinynet_kernels import replays

# Options that PyTorch added to its optimizers over time, with the values that older state_dicts imply.
OPTIONS_ADDED_LATER = (("maximize", False), ("foreach", None), ("differentiable", False), ("fused", None))


class FusedOptimizer(torch.optim.Optimizer):
    """The base class: checks groups, calls the closure, and caches the tables of addresses between steps.

    Attributes:
        grad_scale, found_inf: what a GradScaler leaves here during a step, one element each; the scale is None where
            gradients were divided by it before.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None

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
        def step(self: FusedOptimizer, *args: Any, **kwargs: Any) -> Any:
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
        scaling = (self.grad_scale, self.found_inf) if hasattr(self, "found_inf") else ()
        if replays.recorder() is not None and all(map(self._is_captured, self.param_groups)):
            tables = defaultdict(list)  # a replay reads these, and later steps would change the optimizer's own
            self._step_groups(*scaling, tables=tables)
        else:
            replays.on_host(self._step_groups, *scaling)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `step` reads what a GradScaler leaves at the optimizer; it waits for the device otherwise."""
        return all(map(self._is_on_device, self.param_groups))

    def _is_on_device(self, group: dict[str, Any]) -> bool:
        """Whether the numbers of a group's steps stay on the device."""
        return bool(group.get("capturable"))

    def _is_captured(self, group: dict[str, Any]) -> bool:
        """Whether a CUDA graph can hold a group's steps, which read the learning rate anew in each replay."""
        is_cuda = all(parameter.is_cuda for parameter in group["params"])
        return is_cuda and self._is_on_device(group) and getattr(group["lr"], "is_cuda", False)

    @torch.no_grad()
    def _step_groups(
        self,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        tables: dict[int, list[Any]] | None = None,
    ) -> None:
        tables = self._tables if tables is None else tables
        for index, group in enumerate(self.param_groups):
            if grad_scale is not None:
                gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
                torch._foreach_div_(gradients, grad_scale)  # pyright: ignore[reportPrivateImportUsage]
            self._step_group(group, tables[index], found_inf)

    def _step_group(self, group: dict[str, Any], tables: list[Any], found_inf: Tensor | None) -> None:
        """Takes the step of a group; none where `found_inf` isn't 0, which is given only for steps on the device."""
        raise NotImplementedError

    def _complete(self, group: dict[str, Any]) -> None:
        """Adds to a loaded group the options that older versions of PyTorch did not save."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError for an option that is missing, not finite or out of range."""
        raise NotImplementedError


def count(value: float, like: Tensor | None = None) -> Tensor:
    """A number among the states: float32 (exact up to 2^24) unless the default dtype is float64.

    Args:
        value: the number.
        like: a parameter on whose device it is to be; None for the CPU.
    """
    dtype = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32  # as in PyTorch
    if like is None:
        return torch.tensor(value, dtype=dtype, device="cpu")
    return torch.full((), value, dtype=dtype, device=like.device)  # which a CUDA graph can capture


def counts_of_state(name: str, params: Iterable[Tensor], state: dict[Any, dict[str, Any]], on_device: bool) -> None:
    """Puts a number of each parameter's state where steps expect it; PyTorch may have saved a float."""
    for parameter in params:
        values = state.get(parameter, {})
        if name in values:
            values[name] = count(float(values[name]), parameter if on_device else None)


def number(value: Any, device: torch.device | None = None) -> Any:
    """A hyperparameter as a float, or as float64 on the device where it is a tensor there; of a pair, both."""
    if type(value) is float:
        return value
    if isinstance(value, (tuple, list)):
        return tuple([number(each, device) for each in value])
    if device is not None and isinstance(value, Tensor) and value.device == device:
        return value.double().reshape(())
    return float(value)


def check_options(group: dict[str, Any], at_least_0: tuple[str, ...], finite: tuple[str, ...] = ()) -> None:
    for name in (*at_least_0, *finite):
        value = group.get(name)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name}: got a tensor of shape {tuple(value.shape)}, expected one element")
        if not isinstance(value, (float, int, Tensor, Real)):
            raise ValueError(f"{name}: got {value!r}, expected a number")
        if not math.isfinite(value) or (name in at_least_0 and value < 0):
            raise ValueError(f"{name}: got {float(value)}, expected a finite number, not below 0")
    if group.get("differentiable"):
        raise ValueError("differentiable: steps are not differentiable, expected False")
    if group.get("fused") and group.get("foreach"):
        raise ValueError("fused and foreach: expected at most one of them to be True")


_NUMBERS = ("step", "mu_product")  # states that are one number


def _check_state_shapes(state: dict[Any, dict[str, Any]]) -> None:
    for parameter, values in state.items():
        if not isinstance(parameter, Tensor):
            continue  # PyTorch keeps entries that belong to no parameter
        for name, value in values.items():
            if name not in _NUMBERS and isinstance(value, Tensor) and value.shape != parameter.shape:
                raise ValueError(
                    f"state {name}: got shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}"
                )

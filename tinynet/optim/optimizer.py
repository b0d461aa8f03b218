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

NOT_CAPTURABLE = (
    "capturable: expected False, for learning rates and counts of steps are on the host; tinynet.graphed records a "
    "step all the same"
)


class FusedOptimizer(torch.optim.Optimizer):
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
        replays.on_host(self._step_groups)
        return loss

    @torch.no_grad()
    def _step_groups(self) -> None:
        for index, group in enumerate(self.param_groups):
            self._step_group(group, self._tables[index])

    def _step_group(self, group: dict[str, Any], tables: list[Any]) -> None:
        raise NotImplementedError

    def _complete(self, group: dict[str, Any]) -> None:
        """Adds to a loaded group the options that older versions of PyTorch did not save."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError for an option that is missing, not finite or out of range."""
        raise NotImplementedError


def count(value: float) -> Tensor:
    """A number among the states, on the CPU: float32 (exact up to 2^24) unless the default dtype is float64."""
    dtype = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32  # as in PyTorch
    return torch.tensor(value, dtype=dtype, device="cpu")


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

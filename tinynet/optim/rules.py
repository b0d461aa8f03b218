"""The base of optimizers that take their step by one of `tinynet_kernels.optimizer_rules`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.ops.optimizer import Bucket, count_on_device, stacked
from tinynet.ops.optimizer_rules import Plan, rule_steps
from tinynet.optim.optimizer import (
    OPTIONS_ADDED_LATER,
    FusedOptimizer,
    check_options,
    count,
    counts_of_state,
    number,
)
from tinynet_kernels.optimizer_spec import Rule


class RuleOptimizer(FusedOptimizer):
    """What such optimizers share: their states, the count of steps, and the step of a group.

    Attributes:
        rule: the rule's name.
        at_least_0: options that must be numbers not below 0.
        fractions: options that must be in [0, 1).
        decouples_weight_decay: whether a step multiplies the parameter by 1 - lr weight_decay, where no option says so.
        later: options that older versions of PyTorch did not save, and their values then.
    """

    rule: str
    at_least_0: tuple[str, ...] = ("lr", "eps", "weight_decay")
    fractions: tuple[str, ...] = ()
    decouples_weight_decay = False
    later: tuple[tuple[str, Any], ...] = OPTIONS_ADDED_LATER[:3]

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the states, in the rule's order."""
        raise NotImplementedError

    def _plan(self, group: dict[str, Any], rule: Rule, phase: Any) -> Plan:
        """The rule and its numbers in a phase, of a rule that knows what all rules have in common.

        Numbers of the group and of the phase are floats or, on the device, float64 tensors.
        """
        raise NotImplementedError

    def _first(self, name: str, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """A state before the first step."""
        return torch.zeros_like(parameter)

    def _phase(self, state: dict[str, Any], group: dict[str, Any]) -> Any:
        """What the plan of a parameter depends on: the number of its step, from 1."""
        return state["step"].item() + 1.0

    def _count(self, state: dict[str, Any], phase: Any) -> None:
        """Writes the phase of a step that was taken into the state."""
        state["step"].fill_(phase)

    def _phase_on_device(self, states: list[dict[str, Any]], group: dict[str, Any], bucket: Bucket) -> Any:
        """As `_phase`, of a bucket's parameters, after their steps were counted."""
        return stacked([state["step"] for state in states], bucket)

    def _count_on_device(self, states: list[dict[str, Any]], group: dict[str, Any], found_inf: Tensor | None) -> None:
        """Counts the steps that are about to be taken."""
        count_on_device([state["step"] for state in states], found_inf)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            counts_of_state("step", group["params"], self.state, self._is_on_device(group))

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in self.later:
            group.setdefault(name, value)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, at_least_0=self.at_least_0)
        for name in self.fractions:
            values = group.get(name)
            for value in values if isinstance(values, (tuple, list)) else (values,):
                if not isinstance(value, (int, float, Tensor)) or not 0.0 <= value < 1.0:
                    raise ValueError(f"{name}: got {values!r}, expected numbers in [0, 1)")
        if "betas" in self.fractions and len(group["betas"]) != 2:
            raise ValueError(f"betas: got {group['betas']!r}, expected two numbers")

    def _step_group(self, group: dict[str, Any], tables: list[Any], found_inf: Tensor | None) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        names = self._states(group)
        states = [self._state_of(parameter, names, group) for parameter in params]
        device = params[0].device if self._is_on_device(group) else None
        numbers = {name: number(group[name]) for name in (*self.at_least_0, *self.fractions) if name != "lr"}
        numbers["lr"] = number(group["lr"], device)
        options = {**group, **numbers}
        phases = [None if device else self._phase(state, options) for state in states]
        if device:
            self._count_on_device(states, options, found_inf)
        weight_decay = numbers["weight_decay"]
        is_decoupled = group.get("decoupled_weight_decay", self.decouples_weight_decay)
        rule = Rule(self.rule, len(names), weight_decay != 0 and not is_decoupled, bool(group["maximize"]))

        def plan(bucket: Bucket) -> Plan:
            phase = self._phase_on_device(states, options, bucket) if device else bucket.phase
            return self._plan(options, rule, phase)

        rule_steps(
            params,
            [parameter.grad for parameter in params],
            {name: [state[name] for state in states] for name in names},
            phases,
            plan,
            weight_decay=weight_decay,
            decay=1.0 - numbers["lr"] * weight_decay if is_decoupled else 1.0,
            on_device=device is not None,
            found_inf=found_inf,
            tables=tables,
        )
        if not device:
            for state, phase in zip(states, phases, strict=True):
                self._count(state, phase)

    def _state_of(self, parameter: Tensor, names: tuple[str, ...], group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = count(0.0, parameter if self._is_on_device(group) else None)
        for name in names:
            if name not in state:
                state[name] = self._first(name, parameter, group)
        return state

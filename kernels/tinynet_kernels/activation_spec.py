"""Which activation: its name, its parameters, and what its derivative is computed from. No Triton here."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

# name -> its parameters with PyTorch's defaults, in the order of torch.nn.functional.
PARAMETERS: dict[str, dict[str, float]] = {
    "identity": {},
    "relu": {},
    "leaky_relu": {"negative_slope": 0.01},
    "relu6": {},
    "elu": {"alpha": 1.0},
    "selu": {},
    "celu": {"alpha": 1.0},
    "gelu": {},
    "gelu_tanh": {},
    "silu": {},
    "mish": {},
    "sigmoid": {},
    "log_sigmoid": {},
    "tanh": {},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "softsign": {},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "hardswish": {},
    "hardsigmoid": {},
    "hardshrink": {"lambd": 0.5},
    "softshrink": {"lambd": 0.5},
    "tanhshrink": {},
    "threshold": {"threshold": 0.0, "value": 0.0},  # PyTorch has no defaults for these
}

# Their derivative is as exact from the output as from the input, so the pre-activation need not be saved.
_FROM_OUTPUT = frozenset({"relu", "leaky_relu", "relu6", "hardtanh", "sigmoid", "tanh"})


class CompiledActivation(NamedTuple):
    """What a kernel is compiled for: the name, and the parameters in order, 0 where there are fewer than two."""

    name: str
    a: float
    b: float


class Activation:
    """An activation function by name, with its parameters as numbers.

    `Activation("leaky_relu", 0.2)`, or by name `Activation("leaky_relu", negative_slope=0.2)`; a parameter left out has
    PyTorch's default. Instances are immutable, hashable and picklable; equal ones compare equal.

    Args:
        name: a key of `PARAMETERS`.
        values, parameters: see `PARAMETERS`; in that order, or by name.

    Raises:
        ValueError: an unknown name, or a parameter that is not finite or out of its range.
        TypeError: a parameter this activation does not have, or one that is not a number.

    Attributes:
        name: as given.
        parameters: all of them, by name.
        reads_output: whether the derivative is computed from the output y.
        reads_input: whether it is computed from the input z. The identity's needs neither.
        compiled: the kernels' constexpr ACTIVATION.
    """

    __slots__ = ("_hash", "compiled", "name", "parameters", "reads_input", "reads_output")

    name: str
    parameters: dict[str, float]
    reads_output: bool
    reads_input: bool
    compiled: CompiledActivation
    _hash: int  # launchers look problems up by their activation at every call

    def __init__(self, name: str, *values: float, **parameters: float) -> None:
        if name not in PARAMETERS:
            raise ValueError(f"activation: got {name!r}, expected one of {', '.join(PARAMETERS)}")
        if values:
            parameters = _named(name, values, parameters)
        unknown = parameters.keys() - PARAMETERS[name].keys()
        if unknown:
            known = ", ".join(PARAMETERS[name]) or "none"
            raise TypeError(f"activation {name!r} has no parameter {sorted(unknown)[0]!r}; it has: {known}")
        merged = {**PARAMETERS[name], **parameters}
        for key, value in merged.items():
            _check_number(name, key, value)
        _check_ranges(name, merged)
        numbers = [float(value) for value in merged.values()] + [0.0, 0.0]
        write = object.__setattr__
        write(self, "name", name)
        write(self, "parameters", {key: float(value) for key, value in merged.items()})
        # A negative slope below zero makes the output positive on both sides.
        write(self, "reads_output", name in _FROM_OUTPUT and merged.get("negative_slope", 0.0) >= 0)
        write(self, "reads_input", name != "identity" and not self.reads_output)
        write(self, "compiled", CompiledActivation(name, numbers[0], numbers[1]))
        write(self, "_hash", hash((name, *numbers)))

    @staticmethod
    def from_values(name: str, values: list[float]) -> Activation:
        """The activation whose parameters have these values, in order; what a registered operator is given."""
        return Activation(name, *values)

    @property
    def values(self) -> list[float]:
        """The parameters' values, in order."""
        return list(self.parameters.values())

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError("Activation is immutable")

    def __fx_create_arg__(self, tracer: Any) -> Any:
        """This activation in a graph of torch.fx: its name, or a call of its constructor."""
        if self.parameters == PARAMETERS[self.name]:
            return self.name
        return tracer.create_node("call_function", Activation, (self.name,), self.parameters)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.name, self.parameters)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Activation):
            return NotImplemented
        return self.name == other.name and self.parameters == other.parameters

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Activation({', '.join([repr(self.name), *(f'{k}={v:g}' for k, v in self.parameters.items())])})"

    def __str__(self) -> str:
        """What a module prints: the bare name where the parameters are the defaults."""
        return self.name if self.parameters == PARAMETERS[self.name] else repr(self)


def _rebuild(name: str, parameters: dict[str, float]) -> Activation:
    return Activation(name, **parameters)


def _named(name: str, values: tuple[float, ...], parameters: dict[str, float]) -> dict[str, float]:
    """All parameters by name, of which `values` came by position."""
    known = list(PARAMETERS[name])
    if len(values) > len(known):
        raise TypeError(f"activation {name!r} has {len(known)} parameters, got {len(values)} by position")
    by_position = dict(zip(known, values, strict=False))
    for twice in by_position.keys() & parameters.keys():
        raise TypeError(f"activation {name!r}: {twice} came by position and by name")
    return by_position | parameters


def _check_number(name: str, key: str, value: Any) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | float) or _is_scalar(value)):
        raise TypeError(f"activation {name!r}: {key} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"activation {name!r}: {key} must be finite, got {value}")


def _is_scalar(value: Any) -> bool:
    """Whether a value is numpy's number or a tensor of one."""
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0 and value.dtype is not torch.bool)


def _check_ranges(name: str, parameters: dict[str, float]) -> None:
    if name == "celu" and parameters["alpha"] == 0:
        raise ValueError("activation 'celu': alpha must not be 0")
    if name == "softplus" and parameters["beta"] == 0:
        raise ValueError("activation 'softplus': beta must not be 0")
    if name == "hardtanh" and parameters["max_val"] <= parameters["min_val"]:
        low, high = parameters["min_val"], parameters["max_val"]
        raise ValueError(f"activation 'hardtanh': max_val must be above min_val, got {low} and {high}")
    if name == "softshrink" and parameters["lambd"] < 0:
        raise ValueError(f"activation 'softshrink': lambd must not be negative, got {parameters['lambd']}")


IDENTITY = Activation("identity")

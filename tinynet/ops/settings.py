"""How a registered operator takes settings: PyTorch's schemas know numbers, strings and lists alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.spec import ConvolutionSpec


class Setting(NamedTuple):
    """One setting of an operator.

    Attributes:
        schema: the argument in PyTorch's types, such as "str activation".
        encode: from what an operator's functions take to what the registered operator takes.
        decode: back again.
    """

    schema: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def setting_of(argument: str) -> Setting:
    """The setting of an argument such as "Activation activation", "int dim" or "SymInt[] size"; lists become tuples."""
    kind, name = argument.split(" ")
    if kind == "Activation":
        return Setting(f"str {name}", _text, _activation)
    if kind == "ConvolutionSpec":
        return Setting(f"int[] {name}", lambda spec: spec.values, ConvolutionSpec.from_values)
    return Setting(argument, _as_is, tuple if "[]" in kind else _as_is)


def _as_is(value: Any) -> Any:
    return value


def _text(activation: Activation) -> str:
    """The name and the parameters, as in "leaky_relu 0.2"; none is rounded."""
    return " ".join([activation.name, *map(repr, activation.values)])


@lru_cache(maxsize=4096)
def _activation(text: str) -> Activation:
    name, *values = text.split()
    return Activation.from_values(name, [float(value) for value in values])

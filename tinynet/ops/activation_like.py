"""What may stand for an activation in `activation=`: its name, an `Activation`, a module or a function of torch.nn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinynet_kernels.activation_spec import IDENTITY, PARAMETERS, Activation

ActivationLike = str | Activation | nn.Module | Callable[..., Tensor] | None

_NAMES = {name: Activation(name) for name in PARAMETERS}  # once, so that a call with a name costs one look-up
_OUR_FUNCTIONS, _OUR_MODULES = "tinynet.ops.activation", "tinynet.nn.activation"


def gelu_activation(approximate: str = "none") -> Activation:
    """The `Activation` behind PyTorch's `approximate` argument.

    Raises:
        ValueError: neither "none" nor "tanh".
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _NAMES["gelu" if approximate == "none" else "gelu_tanh"]


# The `Activation` of a module of each class.
MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.Identity: lambda module: IDENTITY,
    nn.ReLU: lambda module: _NAMES["relu"],
    nn.LeakyReLU: lambda module: Activation("leaky_relu", module.negative_slope),
    nn.ReLU6: lambda module: _NAMES["relu6"],
    nn.ELU: lambda module: Activation("elu", module.alpha),
    nn.SELU: lambda module: _NAMES["selu"],
    nn.CELU: lambda module: Activation("celu", module.alpha),
    nn.GELU: lambda module: gelu_activation(module.approximate),
    nn.SiLU: lambda module: _NAMES["silu"],
    nn.Mish: lambda module: _NAMES["mish"],
    nn.Sigmoid: lambda module: _NAMES["sigmoid"],
    nn.LogSigmoid: lambda module: _NAMES["log_sigmoid"],
    nn.Tanh: lambda module: _NAMES["tanh"],
    nn.Softplus: lambda module: Activation("softplus", module.beta, module.threshold),
    nn.Softsign: lambda module: _NAMES["softsign"],
    nn.Hardtanh: lambda module: Activation("hardtanh", module.min_val, module.max_val),
    nn.Hardswish: lambda module: _NAMES["hardswish"],
    nn.Hardsigmoid: lambda module: _NAMES["hardsigmoid"],
    nn.Hardshrink: lambda module: Activation("hardshrink", module.lambd),
    nn.Softshrink: lambda module: Activation("softshrink", module.lambd),
    nn.Tanhshrink: lambda module: _NAMES["tanhshrink"],
    nn.Threshold: lambda module: Activation("threshold", module.threshold, module.value),
}
_SPELLINGS = {"logsigmoid": "log_sigmoid", "expit": "sigmoid"}  # where a function's name is not the activation's
_FUNCTIONS: dict[Any, str] = {
    getattr(module, name): _SPELLINGS.get(name, name)
    for module in (F, torch, torch.special, Tensor)
    for name in (*PARAMETERS, *_SPELLINGS)
    if hasattr(module, name)
}


def as_activation(activation: ActivationLike) -> Activation:
    """The `Activation` that this stands for.

    Args:
        activation: a name; an `Activation`; an activation module of torch.nn or tinynet.nn, as `nn.LeakyReLU(0.2)`; a
            function such as `torch.relu`, or a `functools.partial` of one with its parameters; None for the identity.

    Raises:
        ValueError: an unknown name.
        TypeError: anything else, such as a module or function of another kind.
    """
    if activation is None:
        return IDENTITY
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        return _NAMES.get(activation) or Activation(activation)  # the constructor says what is wrong
    found = _of_module(activation) if isinstance(activation, nn.Module) else _of_function(activation)
    if found is None:
        what = f"the class {activation.__name__}" if isinstance(activation, type) else repr(activation)
        raise TypeError(
            "activation must be a name, an Activation, an activation module or function of torch.nn, or None, "
            f"got {what}"
        )
    return found


def _of_module(module: nn.Module) -> Activation | None:
    kind = type(module)
    of_kind = MODULES.get(kind.__bases__[0] if kind.__module__ == _OUR_MODULES else kind)  # type: ignore[arg-type]
    return None if of_kind is None else of_kind(module)


def _of_function(function: Any) -> Activation | None:
    arguments, keywords = (), {}
    if isinstance(function, partial):
        function, arguments, keywords = function.func, function.args, function.keywords
        keywords = {name: value for name, value in keywords.items() if name != "inplace"}
    if getattr(function, "__module__", None) == _OUR_FUNCTIONS:
        function = getattr(F, function.__name__, None)
    try:
        name = _FUNCTIONS.get(function)
    except TypeError:  # not hashable
        return None
    if name is None or (name == "threshold" and not arguments and not keywords):
        return None
    return gelu_activation(*arguments, **keywords) if name == "gelu" else Activation(name, *arguments, **keywords)

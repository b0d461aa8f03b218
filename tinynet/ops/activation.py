"""Activations: y = act(x), elementwise.

Public functions take PyTorch's `inplace` for compatibility; x is never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.activation_like import ActivationLike, as_activation, gelu_activation
from tinynet.ops.arguments import check_floating, is_dense, needs_gradient, route_floating
from tinynet.ops.autograd import EagerFunction, gradients_of, through_kernels
from tinynet.ops.operator import Operator, contiguous_like
from tinynet_kernels.activation_spec import Activation

_REFERENCES: dict[str, Any] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "threshold": F.threshold,
}
# dX of (dY, y) where the output is saved, as PyTorch does: changing it in place is an error. All others save x.
_FROM_OUTPUT: dict[str, Any] = {
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "tanh": torch.ops.aten.tanh_backward,
}


def activation_reference(x: Tensor, activation: Activation) -> Tensor:
    """act(x) in plain PyTorch."""
    return _REFERENCES[activation.name](x, **activation.parameters)


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    (saved,) = ctx.saved_tensors
    from_output = _FROM_OUTPUT.get(ctx.activation.name)
    if from_output is not None:
        return (from_output(grad, saved),)
    return gradients_of(lambda x: activation_reference(x, ctx.activation), (saved,), (True,), (grad,))


class ActivationFunction(EagerFunction):
    """y = act(x) through the kernels; x is dense."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        y = kernels.activation.activation_forward(x, activation)
        ctx.save_for_backward(y if activation.name in _FROM_OUTPUT else x)
        ctx.activation = activation
        return y

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        (saved,) = ctx.saved_tensors
        return activation_input_gradient(grad, saved, ctx.activation), None


def activation_input_gradient(grad: Tensor, saved: Tensor, activation: Activation) -> Tensor:
    """dX = dY act'(saved) of a dense `saved`, in its layout."""
    if grad.stride() != saved.stride():
        grad = torch.empty_like(saved).copy_(grad)
    return kernels.activation.activation_input_gradient(grad, saved, activation)


activation_operator = Operator(
    "activation(Tensor x, Activation activation) -> Tensor",
    forward=lambda x, activation, save: [kernels.activation.activation_forward(x.contiguous(), activation)],
    fake=lambda x, *_: [contiguous_like(x)],
    saves=lambda given, results: [results[0] if given[1].name in _FROM_OUTPUT else given[0]],
    backward=lambda grads, saved, activation, _: [
        activation_input_gradient(grads[0], saved[0].contiguous(), activation)
    ],
    fake_backward=lambda grads, saved, *_: [contiguous_like(saved[0])],
    reference=activation_reference,
)


def activate(x: Tensor, activation: ActivationLike) -> Tensor:
    """act(x), elementwise.

    Args:
        x: [...], float32, bfloat16, float16 (kernels) or float64 (reference).
        activation: a name, `Activation`, module, function or None for identity.

    Returns:
        [...], x's dtype, in x's memory order where x is dense.

    Raises:
        ValueError: an unknown activation.
        TypeError: x is not a floating-point tensor.

    Source: torch.nn.functional.
    """
    function = as_activation(activation)
    if has_torch_function_unary(x):
        return handle_torch_function(activate, (x,), x, function)
    if function.name == "identity":
        check_floating("activation", x=x)
        return x
    route = route_floating("activation", None, ("x",), x)
    if route is not Route.KERNELS:
        return activation_operator(route, x, function)
    dense = x if is_dense(x) else x.contiguous()
    if needs_gradient(x):
        return ActivationFunction.run(dense, function)
    return kernels.activation.activation_forward(dense, function)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0). Source: torch.nn.functional.relu."""
    return activate(input, "relu")


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where positive, else negative_slope * x. Source: torch.nn.functional.leaky_relu."""
    return activate(input, Activation("leaky_relu", negative_slope=negative_slope))


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6). Source: torch.nn.functional.relu6."""
    return activate(input, "relu6")


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha (e^x - 1). Source: torch.nn.functional.elu (Clevert et al. 2016)."""
    return activate(input, Activation("elu", alpha=alpha))


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """The self-normalizing elu. Source: torch.nn.functional.selu (Klambauer et al. 2017)."""
    return activate(input, "selu")


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha (e^(x / alpha) - 1). Source: torch.nn.functional.celu (Barron 2017)."""
    return activate(input, Activation("celu", alpha=alpha))


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), with Phi from erf ("none") or its tanh approximation ("tanh").

    Raises:
        ValueError: another `approximate`.

    Source: torch.nn.functional.gelu (Hendrycks and Gimpel 2016).
    """
    return activate(input, gelu_activation(approximate))


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x). Source: torch.nn.functional.silu."""
    return activate(input, "silu")


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(softplus(x)). Source: torch.nn.functional.mish (Misra 2019)."""
    return activate(input, "mish")


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x). Source: torch.sigmoid."""
    return activate(input, "sigmoid")


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)). Source: torch.nn.functional.logsigmoid."""
    return activate(input, "log_sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent. Source: torch.tanh."""
    return activate(input, "tanh")


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta; x itself where beta x > threshold. Source: torch.nn.functional.softplus."""
    return activate(input, Activation("softplus", beta=beta, threshold=threshold))


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|). Source: torch.nn.functional.softsign."""
    return activate(input, "softsign")


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val]. Source: torch.nn.functional.hardtanh."""
    return activate(input, Activation("hardtanh", min_val=min_val, max_val=max_val))


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x min(max(x + 3, 0), 6) / 6. Source: torch.nn.functional.hardswish (Howard et al. 2019)."""
    return activate(input, "hardswish")


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6. Source: torch.nn.functional.hardsigmoid."""
    return activate(input, "hardsigmoid")


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x where |x| > lambd, else 0. Source: torch.nn.functional.hardshrink."""
    return activate(input, Activation("hardshrink", lambd=lambd))


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved towards 0 by lambd. Source: torch.nn.functional.softshrink."""
    return activate(input, Activation("softshrink", lambd=lambd))


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x). Source: torch.nn.functional.tanhshrink."""
    return activate(input, "tanhshrink")


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else value. Source: torch.nn.functional.threshold."""
    return activate(input, Activation("threshold", threshold=threshold, value=value))

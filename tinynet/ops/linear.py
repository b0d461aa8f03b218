"""Linear layer with a fused activation: y = act(x W^T + b)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinynet.engines.dispatch import Route, route
from tinynet.ops.activation import activation_reference, as_activation
from tinynet.ops.arguments import autocast, check_floating, needs_gradient
from tinynet_kernels.activation_spec import Activation


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """act(x W^T + b) in plain PyTorch."""
    return activation_reference(F.linear(x, weight, bias), activation)


class LinearFunction(torch.autograd.Function):
    """act(x W^T + b) of x [M, K] through the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
        from tinynet_kernels.linear import linear_forward

        y, saved = linear_forward(x, weight, bias, activation, save=True)
        ctx.save_for_backward(x, weight, saved)
        ctx.activation = activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, saved = ctx.saved_tensors
        return (*linear_gradients(grad, x, weight, saved, ctx.activation, ctx.needs_input_grad[:3]), None)


def linear_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: Activation,
    wanted: tuple[bool, ...] | list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dX, dW, db), each None where not wanted.

    Args:
        grad: dY [M, N].
        x: [M, K].
        weight: [N, K].
        saved: what `linear_forward` returned for the derivative.
        activation: the fused function.
        wanted: whether dX, dW and db are needed.
    """
    from tinynet_kernels.activation import activation_backward
    from tinynet_kernels.linear import linear_input_gradient, linear_weight_gradient

    want_x, want_weight, want_bias = wanted
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    dz, bias_gradient = grad, None
    curved = activation.name != "identity"
    if want_bias or (curved and (want_x or want_weight)):
        made, bias_gradient = activation_backward(grad, saved, activation, want_dz=curved, want_bias=want_bias)
        dz = grad if made is None else made
    if bias_gradient is not None and bias_gradient.dtype is not weight.dtype:
        bias_gradient = bias_gradient.to(weight.dtype)
    return (
        linear_input_gradient(dz, weight) if want_x else None,
        linear_weight_gradient(dz, x) if want_weight else None,
        bias_gradient,
    )


@torch.library.custom_op("tinynet::linear", mutates_args=())
def linear_operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, name: str, parameters: list[float], save: bool
) -> tuple[Tensor, Tensor]:
    """`linear` of x [M, K] for captured graphs: y, and z where the backward needs it (else empty)."""
    from tinynet_kernels.linear import linear_forward

    activation = Activation.from_values(name, parameters)
    y, saved = linear_forward(x, weight, bias, activation, save=save and not activation.reads_output)
    return y, y.new_empty(0) if saved is None else saved


@linear_operator.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, name: str, parameters: list[float], save: bool
) -> tuple[Tensor, Tensor]:
    y = x.new_empty((x.shape[0], weight.shape[0]))
    keeps_input = save and name != "identity" and not Activation.from_values(name, parameters).reads_output
    return y, torch.empty_like(y) if keeps_input else y.new_empty(0)


@torch.library.custom_op("tinynet::linear_backward", mutates_args=())
def linear_backward_operator(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    name: str,
    parameters: list[float],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients; those not wanted come back empty."""
    activation = Activation.from_values(name, parameters)
    gradients = linear_gradients(grad, x, weight, saved, activation, wanted)
    dx, dw, db = (grad.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx, dw, db


@linear_backward_operator.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    name: str,
    parameters: list[float],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    dx, dw, db = (grad.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))
    return dx, dw, db


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.name, ctx.parameters, _ = inputs
    y, z = output
    ctx.save_for_backward(x, weight, y if Activation.from_values(ctx.name, ctx.parameters).reads_output else z)
    ctx.mark_non_differentiable(z)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, saved = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = linear_backward_operator(grad, x, weight, saved, ctx.name, ctx.parameters, wanted)
    kept = (gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
    return (*kept, None, None, None)


linear_operator.register_autograd(_backward, setup_context=_setup_context)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | Activation | None = None,
) -> Tensor:
    """act(x W^T + b), in one kernel.

    Args:
        input: x [..., K], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        weight: [N, K], x's dtype and device.
        bias: [N] or None.
        activation: a name, an `Activation`, or None for identity.

    Returns:
        [..., N], x's dtype (autocast's under autocast).

    Raises:
        ValueError: shapes or devices that don't fit together, or an unknown activation.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.nn.functional.linear.
    """
    function = as_activation(activation)
    x, weight, bias = autocast(input, weight, bias)
    check_floating("linear", input=x, weight=weight, bias=bias)
    _check_shapes(x, weight, bias)
    way = Route.REFERENCE if x.numel() == 0 or weight.numel() == 0 else route(x)
    if way is Route.REFERENCE:
        return linear_reference(x, weight, bias, function)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    needs_grad = needs_gradient(x, weight, bias)
    if way is Route.OPERATOR:
        y = linear_operator(rows, weight, bias, function.name, function.values, needs_grad)[0]
    elif needs_grad:
        y: Tensor = LinearFunction.apply(rows, weight, bias, function)  # pyright: ignore[reportAssignmentType]
    else:
        from tinynet_kernels.linear import linear_forward

        y, _ = linear_forward(rows, weight, bias, function, save=False)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2:
        raise ValueError(f"linear: weight must be [N, K], got shape {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: the last dimension of input {tuple(x.shape)} must be that of weight {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias must be [{weight.shape[0]}] for this weight, got {tuple(bias.shape)}")

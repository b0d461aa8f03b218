"""Linear layer with a fused activation: y = act(x W^T + b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import (
    autocast,
    autocast_dtype,
    cast_to,
    needs_gradient,
    route_floating,
    with_contiguous_rows,
)
from tinynet.ops.autograd import EagerFunction, gradients_of, held, hold, through_kernels
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import IDENTITY, Activation


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """act(x W^T + b) in plain PyTorch."""
    return activation_reference(F.linear(x, weight, bias), activation)


_NAMES = ("input", "weight", "bias")
# A layer of a chain: its weight [N, K], its bias [N] or None, the activation after it.
Layer = tuple[Tensor, Tensor | None, Activation]


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    saved, parameters = ctx.saved_tensors, held(ctx.parameters)
    x = saved[0] if ctx.dtype is None or saved[-1] is None else saved[-1]
    wanted = [False, False, *ctx.needs_input_grad[2:]]
    return gradients_of(_chain_reference, (ctx.activations, ctx.dtype, x, *parameters), wanted, (grad,))


def _chain_reference(
    activations: Sequence[Activation], dtype: torch.dtype | None, x: Tensor, *parameters: Tensor | None
) -> Tensor:
    """A chain of linear layers in `dtype` (None: the tensors' own), in plain PyTorch."""
    cast: Sequence[Any] = parameters
    if dtype is not None:
        x, *cast = cast_to(dtype, x, *parameters)
    for activation, weight, bias in zip(activations, cast[::2], cast[1::2], strict=True):
        x = linear_reference(x, weight, bias, activation)
    return x


class LinearFunction(EagerFunction):
    """A chain of linear layers, one or more, of x [M, K] or contiguous [..., K] through the kernels.

    Its tensors come as x, weight, bias, weight, bias, ... in their own dtypes, and so do their gradients; the kernels
    compute in `dtype`, or for None in the one that all tensors have. A chain knows who reads a hidden layer's output:
    the product that computes its gradient applies act' and sums db too, which otherwise takes a pass of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, activations: tuple[Activation, ...], dtype: torch.dtype | None, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        y, saved = _forward(x, parameters, activations, dtype, save=True)
        ctx.activations, ctx.dtype, ctx.dtypes = activations, dtype, None
        ctx.parameters = hold(*parameters)
        if dtype is not None:
            ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, *parameters)]
            # A cast x has lost its history, which second derivatives through x need.
            saved.append(x if ctx.needs_input_grad[2] else None)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors if ctx.dtype is None else ctx.saved_tensors[:-1]
        return None, None, *linear_gradients(grad, saved, ctx.activations, ctx.needs_input_grad[2:], ctx.dtypes)


def _forward(
    x: Tensor,
    parameters: Sequence[Any],
    activations: Sequence[Activation],
    dtype: torch.dtype | None,
    *,
    save: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """y of a chain, and what its backward reads: x, weight and what the derivative needs of each layer, in `dtype`."""
    linear_forward = kernels.linear.linear_forward
    saved = []
    if dtype is not None:
        x, *parameters = cast_to(dtype, x, *parameters)
    for activation, weight, bias in zip(activations, parameters[::2], parameters[1::2], strict=True):
        y, for_derivative = linear_forward(x, weight, bias, activation, save=save)
        saved += x, weight, for_derivative
        x = y
    return x, saved


def linear_gradients(
    grad: Tensor,
    saved: Sequence[Any],
    activations: Sequence[Activation],
    wanted: Sequence[bool],
    dtypes: Sequence[torch.dtype | None] | None = None,
) -> list[Tensor | None]:
    """Gradients of a chain's x, weight, bias, weight, bias, ..., each None where not wanted.

    Args:
        grad: dY [..., N].
        saved: what `_forward` saved: x [..., K], weight [N, K], and what the derivative needs, of each layer.
        activations: the fused functions.
        wanted: which gradients are.
        dtypes: of the gradients; None for a bias that isn't. None in all: that of x.
    """
    launchers = kernels.linear
    dtypes = [saved[0].dtype] * len(wanted) if dtypes is None else dtypes
    gradients: list[Tensor | None] = [None] * len(wanted)
    dz: Any = with_contiguous_rows(grad)
    db = None
    joins = _joins(dz, saved, activations, wanted)
    sums_bias = wanted[-1] and not joins[-1]
    has_activation = activations[-1].name != "identity"
    if sums_bias or (has_activation and any(wanted)):
        through_activation, db = kernels.activation.activation_backward(
            dz, saved[-1], activations[-1], want_dz=has_activation, want_bias=sums_bias
        )
        dz = dz if through_activation is None else through_activation
    for layer in reversed(range(len(activations))):
        x, weight = saved[3 * layer], saved[3 * layer + 1]
        below, saved_below = (activations[layer - 1], saved[3 * layer - 1]) if layer else (IDENTITY, None)
        of_weight, of_bias = 2 * layer + 1, 2 * layer + 2
        want_input, of_input = any(wanted[:of_weight]), None if layer else dtypes[0]
        if joins[layer]:
            dz, gradients[of_weight], gradients[of_bias] = kernels.linear_backward.joined_gradients(
                *(dz, x, weight, saved_below, below),
                want_input=want_input,
                want_bias=wanted[of_bias],
                dtypes=(of_input, dtypes[of_weight], dtypes[of_bias]),
            )
            db = None
        else:
            if wanted[of_weight]:
                gradients[of_weight] = launchers.linear_weight_gradient(dz, x, dtypes[of_weight])
            if wanted[of_bias] and db is None:  # the layer above, all of whose gradients were computed at once, left it
                _, db = kernels.activation.activation_backward(dz, None, IDENTITY, want_dz=False, want_bias=True)
            if db is not None:
                gradients[of_bias] = db if db.dtype is dtypes[of_bias] else db.to(dtypes[of_bias])
            if want_input and layer:
                sums_bias = wanted[of_bias - 2] and not joins[layer - 1]
                dz, db = launchers.linear_hidden_gradient(dz, weight, saved_below, below, want_bias=sums_bias)
            elif want_input:
                dz = launchers.linear_input_gradient(dz, weight, of_input)
        if not want_input:
            break
    if wanted[0]:
        gradients[0] = dz
    return gradients


def _joins(dz: Tensor, saved: Sequence[Any], activations: Sequence[Activation], wanted: Sequence[bool]) -> list[bool]:
    """For which layers of a chain one launch computes all gradients."""
    is_joined = kernels.linear_backward.joins_gradients
    below = (IDENTITY, *activations[:-1])
    rows, joins = dz.numel() // dz.shape[-1], []
    for layer in range(len(activations)):
        N, K = saved[3 * layer + 1].shape
        joins.append(wanted[2 * layer + 1] and is_joined(rows, N, K, dz.dtype, below[layer]))
    return joins


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, save: bool) -> Tensors:
    y = x.new_empty((x.shape[0], weight.shape[0]))
    return y, torch.empty_like(y) if save and activation.reads_input else None


def _fake_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    shapes = saved[0].shape, saved[1].shape, saved[1].shape[:1]
    return [grads[0].new_empty(shape) if want else None for shape, want in zip(shapes, rest[-1], strict=True)]


linear_operator = Operator(
    "linear(Tensor x, Tensor weight, Tensor? bias, Activation activation) -> (Tensor, Tensor)",
    forward=lambda x, weight, bias, activation, save: kernels.linear.linear_forward(
        x, weight, bias, activation, save=save and activation.reads_input
    ),
    fake=_fake,
    saves=lambda given, results: [*given[:2], results[0] if given[3].reads_output else results[1]],
    backward=lambda grads, saved, activation, wanted: linear_gradients(grads[0], saved, (activation,), wanted),
    fake_backward=_fake_backward,
    reference=linear_reference,
    flops=lambda wanted, x, weight, *_: 2 * x.shape[0] * weight.numel() * (1 if wanted is None else sum(wanted[:2])),
)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: ActivationLike = None,
) -> Tensor:
    """act(x W^T + b), in one kernel.

    Args:
        input: x [..., K], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        weight: [N, K], x's dtype and device.
        bias: [N] or None.
        activation: a name, `Activation`, module, function or None for identity.

    Returns:
        [..., N], x's dtype (autocast's under autocast).

    Raises:
        ValueError: shapes or devices that don't fit together, or an unknown activation.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.nn.functional.linear.
    """
    function = as_activation(activation)
    if has_torch_function_unary(input):
        return handle_torch_function(linear, (input,), input, weight, bias, function)
    return linear_chain(input, ((weight, bias, function),))


def linear_chain(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Linear layers one after another, in one autograd function: each reads the output of the one before it.

    Args:
        input: x [..., K] of the first layer, as in `linear`.
        layers: (weight, bias, activation) of each, at least one.

    Returns:
        [..., N] of the last layer.

    Raises:
        ValueError, TypeError: see `linear`.
    """
    dtype = autocast_dtype(input)
    parameters: list[Tensor | None] = []
    for weight, bias, _ in layers:
        parameters += weight, bias
    names = _NAMES if len(layers) == 1 else ("input", *_NAMES[1:] * len(layers))
    route = route_floating("linear", dtype, names, input, *parameters)
    shape = input.shape
    for weight, bias, _ in layers:
        shape = _output_shape(shape, weight, bias)
    if route is not Route.KERNELS:
        return _layer_by_layer(input, layers, route)
    as_given = input.dim() == 2 or input.is_contiguous()
    x = input if as_given else input.reshape(-1, input.shape[-1])
    activations = tuple([layer[2] for layer in layers])
    if needs_gradient(input, *parameters):
        y: Tensor = LinearFunction.run(activations, dtype, x, *parameters)
    else:
        y, _ = _forward(x, parameters, activations, dtype, save=False)
    return y if as_given else y.view(shape)


def _layer_by_layer(x: Tensor, layers: Sequence[Layer], route: Route) -> Tensor:
    """A chain through the reference or the registered operator."""
    for weight, bias, activation in layers:
        x, weight, bias = autocast(x, weight, bias)
        if route is Route.REFERENCE:
            x = linear_reference(x, weight, bias, activation)
            continue
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        y = linear_operator(Route.OPERATOR, rows, weight, bias, activation)
        x = y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])
    return x


def _output_shape(shape: Sequence[int], weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    """The shape of a layer's output for input of `shape`, after a check that its tensors fit together."""
    weight_shape = weight.shape
    if len(weight_shape) != 2:
        raise ValueError(f"linear: weight must be [N, K], got shape {tuple(weight_shape)}")
    N, K = weight_shape
    if not shape or shape[-1] != K:
        raise ValueError(
            f"linear: the last dimension of input {tuple(shape)} must be that of weight {tuple(weight_shape)}"
        )
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"linear: bias must be [{N}] for this weight, got {tuple(bias.shape)}")
    return (*shape[:-1], N)

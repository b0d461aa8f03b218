"""Group normalization, with an optional activation after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import as_integer, autocast_norm, bias_to_save, route_norm
from tinynet.ops.channels import as_channels, from_channels, in_order_of
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import Activation


def group_norm_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: Activation
) -> Tensor:
    """act(GroupNorm(x)) of x [N, C, S] in plain PyTorch; its own operator reads zero tensors as if they had memory."""
    N, C, S = x.shape
    z = F.layer_norm(x.reshape(N, groups, C // groups * S), (C // groups * S,), eps=eps).view(N, C, S)
    z = z if weight is None else z * weight.view(C, 1)
    z = z if bias is None else z + bias.view(C, 1)
    return activation_reference(z, activation).to(x.dtype)


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    """(dx, dw, db), each None where not wanted."""
    groups, eps, activation, wanted = rest
    wants = dict(zip(("want_x", "want_weight", "want_bias"), wanted, strict=True))
    x, weight, bias, mean, variance = saved
    grad = in_order_of(grads[0], x)
    return kernels.group_norm.group_norm_backward(
        grad, x, weight, bias, mean, variance, groups, eps, activation, **wants
    )


def _fake(x: Tensor, weight: Any, bias: Any, groups: int, eps: float, activation: Activation, save: bool) -> Tensors:
    statistics = [x.new_empty((x.shape[0], groups), dtype=torch.float32) if save else None for _ in range(2)]
    return [torch.empty_like(x), *statistics]


def _fake_gradients(grads: Any, saved: Sequence[Any], *rest: Any) -> Tensors:
    x, weight, bias, *_ = saved
    like = x, weight, weight if bias is None else bias
    return [torch.empty_like(t) if want else None for t, want in zip(like, rest[-1], strict=True)]


def _saves(given: Sequence[Any], results: Sequence[Any]) -> Tensors:
    x, weight, bias, *_, activation = given
    return [x, weight, bias_to_save(weight, bias, is_read=activation.name != "identity"), *results[1:]]


group_norm_operator = Operator(
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, Activation activation) "
    "-> (Tensor, Tensor, Tensor)",
    forward=lambda *arguments: kernels.group_norm.group_norm_forward(*arguments[:-1], save=arguments[-1]),
    fake=_fake,
    saves=_saves,
    backward=_backward,
    fake_backward=_fake_gradients,
    reference=group_norm_reference,
)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
) -> Tensor:
    """act((input - mean) / sqrt(variance + eps) weight + bias), statistics over each group of channels of an image.

    Args:
        input: [N, C, *], float32, bfloat16, float16 (kernels) or float64 (reference); contiguous or channels_last
            without a copy. On devices other than CPUs in float32 under autocast.
        num_groups: a divisor of C.
        weight, bias: [C], or None for ones and zeros; input's dtype, or both float32.
        eps: added to the variance.
        activation: applied last, in the same kernel: a name, `Activation`, module, function or None.

    Returns:
        input's shape and dtype, channels_last where input is.

    Raises:
        ValueError: shapes or devices that don't fit together, groups of a single value.
        TypeError: dtypes that are not floating point or don't fit together, num_groups that is no integer.

    Source: torch.nn.functional.group_norm (Wu and He 2018).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(group_norm, (input,), input, num_groups, weight, bias, eps, activation=activation)
    input, weight, bias = autocast_norm(input, weight, bias)
    route = route_norm("group_norm", input, weight, bias)
    groups = _checked_groups(input, num_groups)
    channels = input.shape[1]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != (channels,):
            raise ValueError(f"group_norm: {name} must be [{channels}] for this input, got {tuple(parameter.shape)}")
    weight, bias = (None if parameter is None else parameter.contiguous() for parameter in (weight, bias))
    y = group_norm_operator(route, as_channels(input), weight, bias, groups, float(eps), as_activation(activation))
    return from_channels(y, input)


def _checked_groups(input: Tensor, num_groups: int) -> int:
    groups = as_integer(num_groups)
    if groups is None:
        raise TypeError(f"group_norm: num_groups must be an integer, got {num_groups!r}")
    if input.dim() < 2:
        raise ValueError(f"group_norm: input must be [N, C, *], got shape {tuple(input.shape)}")
    if groups < 1 or input.shape[1] % groups:
        raise ValueError(f"group_norm: num_groups must divide the {input.shape[1]} channels of input, got {groups}")
    F._verify_batch_size([input.shape[0] * input.shape[1] // groups, groups, *input.shape[2:]])  # pyright: ignore
    return groups
